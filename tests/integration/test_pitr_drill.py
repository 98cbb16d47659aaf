"""Drills of base and WAL on real servers: random moments, what is recorded of them, and that nothing is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drkit.operations.base_plan import BaseSources
from drkit.operations.drill_outcome import DrillRequest
from drkit.operations.drill_replay import pick_moment
from drkit.operations.init import init_site
from drkit.policy import DrillRule
from drkit.recovery import BasePoint, LogFile, LogState
from drkit.units import format_utc
from drkit.wal import parse_lsn, segment_of
from tests.fixtures.physical import start_server
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


def listing(walk: Walk) -> dict[str, tuple[int, int, int]]:
    """Return what the source has archived: each file with its size, when it was written, and whether it is the same."""
    found = ((path.name, path.stat()) for path in walk.archive.iterdir())
    return {name: (status.st_size, status.st_mtime_ns, status.st_ino) for name, status in found}


def test_a_drill_of_a_random_moment_proves_every_level(walk: Walk) -> None:
    before = listing(walk)
    status, document, said = drill(walk, "--seed", "7")
    assert status == 0, said
    assert {name: level["result"] for name, level in document["levels"].items()} == dict.fromkeys(
        ("exists", "intact", "loads", "replays", "same-data", "works"), "passed"
    )
    assert listing(walk) == before


def test_two_drills_at_once_leave_the_source_as_it_is(walk: Walk) -> None:
    source = "select archived_count, failed_count, (select count(*) from pg_replication_slots) from pg_stat_archiver"
    before, asked, log = listing(walk), walk.server.execute(source), walk.log_objects()
    words = [sys.executable, "-c", "from drkit.cli import main; main()", "drill", POLICY, "--json"]
    children = [
        subprocess.Popen([*words, "--seed", seed], cwd=walk.site.folder, stdout=subprocess.PIPE) for seed in ("1", "2")
    ]
    done = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], done
    assert listing(walk) == before
    assert walk.server.execute(source) == asked
    assert walk.log_objects() == log
    documents = [json.loads(stdout) for stdout in done]
    assert [document["levels"]["replays"]["result"] for document in documents] == ["passed", "passed"]
    runs = [find_run(walk, document["run_id"]) for document in documents]
    assert max(run["started_at"] for run in runs) < min(run["ended_at"] for run in runs), "they ran at once"
    assert list((walk.site.folder / "scratch").glob("*")) == []


def find_run(walk: Walk, run_id: str) -> dict[str, Any]:
    runs = document_of(walk.site.call("run", "list", "--json"))["runs"]
    return dict(next(run for run in runs if run["run_id"] == run_id))


def test_a_moment_is_reached_to_the_commit(walk: Walk) -> None:
    mark = walk.marks["state 1"]
    status, document, said = drill(walk, "--at", mark.after.isoformat())
    assert status == 0, said
    recovered = document["recovered"]
    assert recovered["newest_commit_at"] == format_utc(mark.committed_at)
    assert document["rpo_s"] == pytest.approx((mark.after - mark.committed_at).total_seconds(), abs=1e-3)
    assert parse_lsn(recovered["lsn"]) <= parse_lsn(walk.marks["state 2"].lsn)
    (record,) = [item for item in records(walk) if item["run_id"] == document["run_id"]]
    assert record["recovered"]["lsn"] == recovered["lsn"]
    assert record["restored_to_at"] == format_utc(mark.after)


def test_a_plan_says_how_long_it_will_take_once_a_drill_has_measured(walk: Walk) -> None:
    assert drill(walk, "--at", walk.marks["state 2"].after.isoformat())[0] == 0
    plan = walk.restore("--plan")
    assert "(rates from the drill of" in plan.stdout
    expected = document_of(walk.restore("--plan", "--json"))["expected_s"]
    assert set(expected) == {"fetch", "write", "replay"}
    assert all(took > 0 for took in expected.values())


def test_a_dump_that_is_not_there_is_not_replaced_by_a_base(walk: Walk) -> None:
    done = walk.restore("--to", walk.server.url("somewhere").reveal())
    assert done.returncode == 9
    assert "--into DIR" in done.stderr


def records(walk: Walk) -> list[dict[str, Any]]:
    return list(document_of(walk.site.call("drills", POLICY, "--json"))["drills"])


def test_the_checks_ask_the_moment_that_was_replayed_to(walk: Walk) -> None:
    path = walk.site.folder / "policies" / f"{POLICY}.yaml"
    text = path.read_text()
    question = "select state from status"
    path.write_text(text.replace("select count(*) from status", question).replace("expect: 1,", 'expect: "state 1",'))
    try:
        status, document, said = drill(walk, "--at", walk.marks["state 1"].after.isoformat())
        assert status == 0, said
        status, document, _ = drill(walk, "--at", walk.marks["state 2"].after.isoformat())
        assert (status, document["levels"]["works"]["result"]) == (11, "failed")
    finally:
        path.write_text(text)


def test_damage_inside_the_base_is_seen(walk: Walk) -> None:
    """A page that was already broken when the base was taken passes every digest; amcheck sees it."""
    server = walk.server
    server.execute(
        "create table broken as select generate_series(1, 1000) as a; create index on broken (a); checkpoint"
    )
    ((relative,),) = server.execute("select pg_relation_filepath('broken_a_idx')")
    server.execute("select pg_switch_wal()")
    server.stop("fast")
    path = server.folder / "data" / relative
    content = bytearray(path.read_bytes())
    content[8192 + 4096 : 8192 + 8000] = bytes(8000 - 4096)
    path.write_bytes(bytes(content))
    start_server(server)
    artifact = walk.base()
    status, document, _ = drill(walk, "--artifact", artifact, "--level", "same-data")
    server.execute("drop table broken")
    assert (status, document["levels"]["same-data"]["result"]) == (11, "failed")
    assert any("broken_a_idx" in line for line in document["levels"]["same-data"]["lines"])


def test_level_loads_compares_the_files_with_the_backup_manifest(walk: Walk) -> None:
    status, document, said = drill(walk, "--level", "loads")
    assert status == 0, said
    assert "backup manifest" in document["levels"]["loads"]["summary"]
    assert document["levels"]["replays"]["result"] == "not run"


def test_a_replay_that_fails_is_a_failed_drill_and_leaves_nothing(walk: Walk) -> None:
    path = next(path for path in walk.log_objects() if path.name.startswith(segment_at(walk, "state 1")))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:50] + b"\0" + content[51:])
    try:
        status, document, _ = drill(walk, "--at", walk.marks["state 1"].after.isoformat())
    finally:
        path.unlink()
        path.write_bytes(content)
    assert (status, document["verdict"]) == (11, "failed")
    assert path.name.removesuffix(".zst.age") in document["error"]
    assert document["levels"]["works"]["result"] == "not run"
    assert document["teardown"] == "nothing left behind"


def segment_at(walk: Walk, state: str) -> str:
    return segment_of(parse_lsn(walk.marks[state].lsn), 1, 16 << 20).name


def test_draws_are_seeded_and_reach_the_edges() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    bases = [BasePoint("A", 1, 0x1000000, 0x1000100, start, 1, 1)]
    files = [
        LogFile(
            segment_of(number << 24, 1, 16 << 20).name,
            "segment",
            1,
            number << 24,
            (number + 1) << 24,
            start + timedelta(hours=number),
            start + timedelta(hours=number, minutes=59),
            100,
            start + timedelta(hours=number + 1),
        )
        for number in range(1, 25)
    ]
    sources = BaseSources(None, None, {}, LogState(bases, files, {}))  # type: ignore[arg-type]
    request = DrillRequest(DrillRule(name="x", pick="random"))
    now = start + timedelta(days=3)
    drawn = {seed: pick_moment(sources, request, now, seed) for seed in range(200)}
    assert drawn == {seed: pick_moment(sources, request, now, seed) for seed in range(200)}
    moments = [found[0] for found in drawn.values() if found]
    assert len(moments) == 200
    assert all(start <= moment <= start + timedelta(hours=25) for moment in moments)
    stamps = {stamp for item in files for stamp in (item.first_commit_at, item.last_commit_at)} | {start}
    on_edges = sum(moment in stamps or moment - timedelta(milliseconds=1) in stamps for moment in moments)
    assert 60 < on_edges < 140, "about half of the draws"
    narrow = DrillRequest(DrillRule(name="x", pick="random", window=timedelta(days=2, hours=1)))
    late = [found[0] for seed in range(50) if (found := pick_moment(sources, narrow, now, seed))]
    assert min(late) >= now - timedelta(days=2, hours=1)
    oldest = pick_moment(sources, DrillRequest(DrillRule(name="x", pick="oldest")), now, 1)
    assert oldest == (start, 1)
