"""Drills of base and WAL on real servers: random moments, what is recorded of them, and that nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from drkit.operations.init import init_site
from tests.fixtures.recovery import POLICY, Walk, document_of, walking
from tests.fixtures.site import ReadySite

DRILLS = """\
objectives: {rpo: 1h, rto: 1h}
drills:
  - name: rehearsal
    pick: random
    level: works
    checks:
      - {name: there is one row, sql: "select count(*) from status", expect: 1, database: postgres}
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    made = init_site(tmp_path_factory.mktemp("pitr-drill") / "site", principal="test@example.org")
    made.policy_file.unlink()
    with walking(ReadySite(made.folder, made)) as walk:
        path = walk.site.folder / "policies" / f"{POLICY}.yaml"
        path.write_text(path.read_text() + DRILLS)
        walk.base()
        for number in range(3):
            walk.set(f"state {number}")
        walk.switch()
        walk.set("after the switch")
        walk.switch()
        walk.ship()
        yield walk


def drill(walk: Walk, *words: str) -> tuple[int, dict[str, Any], str]:
    done = walk.site.call("drill", POLICY, "--json", *words)
    return done.returncode, document_of(done), done.stderr


def listing(walk: Walk) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in walk.archive.iterdir())


def test_a_drill_of_a_random_moment_proves_every_level(walk: Walk) -> None:
    before = listing(walk)
    status, document, said = drill(walk, "--seed", "7")
    assert status == 0, said
    assert {name: level["result"] for name, level in document["levels"].items()} == dict.fromkeys(
        ("exists", "intact", "loads", "replays", "same-data", "works"), "passed"
    )
    assert listing(walk) == before
