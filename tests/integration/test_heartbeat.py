"""Heartbeats on real servers: written by ``drkit serve``, and what drills make of those that came back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from drkit.engines.postgres_heartbeat import write_heartbeat
from drkit.errors import SourceError
from drkit.operations.init import init_site
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import POLICY, Walk, document_of, walking
from tests.fixtures.shipping import LOGGED, LogSite, until
from tests.fixtures.site import ReadySite

DRILLS = "drills:\n  - {name: rehearsal, level: replays}\n"
BEATS = "select number from drkit.heartbeat where policy = 'orders' order by number"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Lend a log with a mark before the first heartbeat, one when all is well, and one after each kind of trouble."""
    made = init_site(tmp_path_factory.mktemp("heartbeat") / "site", principal="test@example.org")
    made.policy_file.unlink()
    with walking(ReadySite(made.folder, made)) as walk:
        path = walk.site.folder / "policies" / f"{POLICY}.yaml"
        path.write_text(path.read_text().replace("{method: wal}", "{method: wal, heartbeat: 1s}") + DRILLS)
        walk.base()
        walk.set("before the first")
        beat(walk)
        beat(walk)
        last = beat(walk)
        walk.set("sound")
        trouble(walk, "removed", "delete from drkit.heartbeat where number = 2")
        walk.server.execute("insert into drkit.heartbeat values ('orders', 2, now(), 1000)")
        trouble(walk, "late", "update drkit.heartbeat set beat_at = beat_at - interval '1 hour'")
        trouble(walk, "early", f"update drkit.heartbeat set beat_at = now() + interval '1 day' where number = {last}")
        trouble(walk, "emptied", "delete from drkit.heartbeat")
        walk.set("later than every moment that is drilled")
        walk.switch()
        walk.ship()
        yield walk


def beat(walk: Walk) -> int:
    return write_heartbeat(walk.server.url("postgres"), POLICY, timedelta(seconds=1))


def trouble(walk: Walk, name: str, statement: str) -> None:
    walk.server.execute(statement)
    walk.set(name)


def drill_at(walk: Walk, mark: str) -> tuple[int, dict[str, Any], str]:
    done = walk.site.call("drill", POLICY, "--json", "--at", walk.marks[mark].after.isoformat())
    return done.returncode, document_of(done), done.stderr


def test_a_drill_proves_the_moment_to_the_heartbeat(walk: Walk) -> None:
    status, document, said = drill_at(walk, "sound")
    assert (status, document["verdict"]) == (0, "passed"), said
    proof = document["recovered"]["heartbeat"]
    assert (proof["count"], proof["newest"], proof["contradictions"]) == (3, 3, 0)
    assert "3 heartbeats, the newest, 3, of " in document["levels"]["replays"]["summary"]
    (record,) = [item for item in records(walk) if item["run_id"] == document["run_id"]]
    assert record["recovered"]["heartbeat"] == proof


def records(walk: Walk) -> list[dict[str, Any]]:
    return list(document_of(walk.site.call("drills", POLICY, "--json"))["drills"])


@pytest.mark.parametrize(
    ("mark", "line"),
    [
        ("removed", "heartbeat 2 is missing"),
        ("late", "the newest heartbeat, 3, is 1:00:0"),
        ("early", "heartbeat 3 is of "),
    ],
)
def test_a_heartbeat_that_is_missing_late_or_early_fails_the_drill_and_is_named(
    walk: Walk, mark: str, line: str
) -> None:
    status, document, _ = drill_at(walk, mark)
    assert (status, document["verdict"]) == (11, "failed")
    level = document["levels"]["replays"]
    assert level["result"] == "failed"
    (found,) = level["lines"]
    assert found.startswith(line)
    assert document["recovered"]["heartbeat"]["contradictions"] == 1


def test_a_table_that_came_back_empty_fails_the_drill(walk: Walk) -> None:
    status, document, _ = drill_at(walk, "emptied")
    assert (status, document["verdict"]) == (11, "failed")
    assert "without any heartbeat of policy orders" in document["error"]


def test_a_moment_before_the_first_heartbeat_is_a_finding(walk: Walk) -> None:
    status, document, _ = drill_at(walk, "before the first")
    assert (status, document["verdict"]) == (0, "passed_with_findings")
    assert "not proven to the row" in document["findings"][0]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres(segment_mib=1, **LOGGED) as server:
        yield server


def test_serve_writes_heartbeats_without_a_hole_and_keeps_on(server: PostgresServer, ready_site: ReadySite) -> None:
    site = LogSite(ready_site)
    site.write_policy(server.url("postgres").reveal(), "heartbeat: 1s")
    with site.serving():
        site.wait_for("beating: heartbeat 1 is written")
        until(lambda: len(server.execute(BEATS)) >= 2, "two heartbeats")
        server.execute("alter table drkit.heartbeat rename to elsewhere")
        server.execute("create view drkit.heartbeat as select 1 as number")
        site.wait_for("failing: ")
        server.execute("drop view drkit.heartbeat")
        server.execute("alter table drkit.elsewhere rename to heartbeat")
        before = len(server.execute(BEATS))
        until(lambda: len(server.execute(BEATS)) > before, "another heartbeat")
    numbers = [number for (number,) in server.execute(BEATS)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_role_with_no_more_than_the_documented_rights_writes_them(server: PostgresServer) -> None:
    server.create_database("narrow")
    server.execute("create role beater login")
    url = server.url("narrow", "beater")
    with pytest.raises(
        SourceError, match=r"role beater may not make the table drkit\.heartbeat in database narrow"
    ) as refused:
        write_heartbeat(url, "orders", timedelta(seconds=1))
    for hint in refused.value.hints:
        server.execute(hint, "narrow")
    assert [write_heartbeat(url, "orders", timedelta(seconds=1)) for _ in range(2)] == [1, 2]
    assert write_heartbeat(url, "others", timedelta(seconds=1)) == 1
