"""Point-in-time recovery through the command line, on real servers: each target shows exactly the state it names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from drkit.operations.init import init_site
from tests.fixtures.physical import standby_of
from tests.fixtures.recovery import Walk, promoted, walking
from tests.fixtures.site import ReadySite


@dataclass(frozen=True)
class Scene:
    """The whole walk, shipped: bases ``first`` and ``second`` on timeline 1, then a promoted standby on timeline 2."""

    walk: Walk
    first: str
    second: str


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = init_site(tmp_path_factory.mktemp("pitr") / "site", principal="test@example.org")
    made.policy_file.unlink()
    with walking(ReadySite(made.folder, made)) as walk:
        walk.set("one")
        first = walk.base()
        walk.set("two")
        walk.set("three")
        walk.server.execute("select pg_create_restore_point('before four')")
        walk.set("four")
        walk.switch()
        second = walk.base()
        walk.set("five")
        walk.switch()
        with standby_of(walk.server) as standby:
            walk.set("six")
            walk.switch()
            promoted(standby)
            walk.set("seven on two", standby)
            walk.switch(standby)
        walk.set("seven on one")
        walk.switch()
        walk.ship()
        yield Scene(walk, first, second)


def test_immediate_shows_the_base(scene: Scene) -> None:
    assert scene.walk.state_at("--at", "immediate", "--artifact", scene.first) == "one"


@pytest.mark.parametrize("kind", ["xid", "xid exclusive", "time", "lsn", "name", "latest", "timeline 1"])
def test_every_target_shows_its_state(scene: Scene, kind: str) -> None:
    marks = scene.walk.marks
    words, state = {
        "xid": (["--at", f"xid:{marks['two'].xid}", "--artifact", scene.first], "two"),
        "xid exclusive": (["--at", f"xid:{marks['two'].xid}", "--exclusive", "--artifact", scene.first], "one"),
        "time": (["--at", marks["three"].after.isoformat()], "three"),
        "lsn": (["--at", f"lsn:{marks['five'].lsn}"], "five"),
        "name": (["--at", "name:before four", "--artifact", scene.first], "three"),
        "latest": ([], "seven on two"),
        "timeline 1": (["--timeline", "1"], "seven on one"),
    }[kind]
    assert scene.walk.state_at(*words) == state
