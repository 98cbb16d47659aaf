"""The frame around runs: leases, heartbeats, and how the living and the dead end."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.errors import Busy, SourceError
from drkit.model import Run
from drkit.operations import running
from drkit.operations.running import LEASE_TTL, close_lost_runs, planned_run, recorded_run
from drkit.process_identity import ProcessIdentity, start_mark
from tests.fixtures.bucket import NOW
from tests.fixtures.waiting import wait_until

HOST = socket.gethostname()


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqliteCatalog]:
    with contextlib.closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        yield catalog


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Run another process, which may hold leases as far as anybody can tell."""
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        yield process
        process.kill()


def identity(process: subprocess.Popen[bytes]) -> str:
    return str(ProcessIdentity(HOST, process.pid, start_mark(process.pid))) + "#run"


def a_run(pid: int, *, host: str = HOST, heartbeat_at: datetime = NOW) -> Run:
    return Run(f"run-{pid}-{host}", "backup", "shop", "running", NOW, host, pid, heartbeat_at)


class TestHowARunEnds:
    def test_well(self, catalog: SqliteCatalog, clock: Clock) -> None:
        with recorded_run(catalog, clock, "backup", "shop") as frame:
            assert catalog.runs()[0].state == "running"
            frame.outcome = {"artifact_id": "A"}
            clock.now += timedelta(minutes=1)
        (run,) = catalog.runs()
        assert (run.state, run.error, run.outcome) == ("succeeded", None, {"artifact_id": "A"})
        assert run.ended_at == NOW + timedelta(minutes=1)
        assert catalog.lease("backup/shop") is None
        assert catalog.events()[0]["name"] == "run.succeeded"

    @pytest.mark.parametrize(
        ("error", "state", "words"),
        [
            (SourceError("pg_dump failed"), "failed", "pg_dump failed"),
            (ZeroDivisionError(), "failed", "ZeroDivisionError"),
            (KeyboardInterrupt(), "interrupted", "interrupted"),
            (SystemExit(3), "interrupted", "interrupted"),
        ],
    )
    def test_badly(self, catalog: SqliteCatalog, clock: Clock, error: BaseException, state: str, words: str) -> None:
        with pytest.raises(type(error)), recorded_run(catalog, clock, "backup", "shop"):
            raise error
        (run,) = catalog.runs()
        assert (run.state, run.error) == (state, words)
        assert catalog.lease("backup/shop") is None
        assert catalog.events()[0]["name"] == f"run.{state}"

    def test_what_the_command_line_would_say_below_the_error_is_kept(
        self, catalog: SqliteCatalog, clock: Clock
    ) -> None:
        lines = ["cannot reach postgresql://me:hunter2@db/orders"]

        def fail() -> None:
            with recorded_run(catalog, clock, "backup", "shop") as frame:
                frame.outcome = {"method": "dump"}
                raise SourceError("there is no server", details=lines, hints=["pg_isready -h db"])

        with pytest.raises(SourceError, match="there is no server"):
            fail()
        assert catalog.runs()[0].outcome == {
            "method": "dump",
            "details": ["cannot reach postgresql://me:***@db/orders"],
            "hints": ["pg_isready -h db"],
        }

    def test_a_catalog_that_fails_does_not_hide_what_ended_the_run(
        self, catalog: SqliteCatalog, clock: Clock, tmp_path: Path
    ) -> None:
        catalog._connection.execute("pragma busy_timeout = 1")
        with contextlib.closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as intruder:

            def fail() -> None:
                with recorded_run(catalog, clock, "backup", "shop"):
                    intruder.execute("begin immediate")
                    raise SourceError("pg_dump failed")

            with pytest.raises(SourceError, match="pg_dump failed"):
                fail()
        assert catalog.runs()[0].state == "running"


class TestLeases:
    def test_one_at_a_time(self, catalog: SqliteCatalog, clock: Clock, other: subprocess.Popen[bytes]) -> None:
        catalog.acquire_lease("backup/shop", identity(other), LEASE_TTL, NOW)
        with pytest.raises(Busy, match="backup/shop is busy"), recorded_run(catalog, clock, "backup", "shop"):
            pytest.fail("two runs at once")
        assert catalog.runs() == []
        with recorded_run(catalog, clock, "backup", "other"), recorded_run(catalog, clock, "drill", "shop"):
            assert len(catalog.runs()) == 2

    def test_the_dead_hold_nothing(self, catalog: SqliteCatalog, clock: Clock, other: subprocess.Popen[bytes]) -> None:
        held = catalog.acquire_lease("backup/shop", identity(other), timedelta(days=1), NOW)
        other.kill()
        other.wait()
        with recorded_run(catalog, clock, "backup", "shop") as frame:
            assert frame.lease.fence == held.fence + 1

    def test_a_process_with_the_number_of_a_dead_one_is_another(self, catalog: SqliteCatalog, clock: Clock) -> None:
        catalog.acquire_lease("backup/shop", f"{HOST}/{os.getpid()}@earlier#run", timedelta(days=1), NOW)
        with recorded_run(catalog, clock, "backup", "shop"):
            pass
        assert catalog.runs()[0].state == "succeeded"

    def test_of_another_host_only_time_tells(self, catalog: SqliteCatalog, clock: Clock) -> None:
        catalog.acquire_lease("backup/shop", "elsewhere/1@mark#run", LEASE_TTL, NOW)
        with pytest.raises(Busy), recorded_run(catalog, clock, "backup", "shop"):
            pass
        clock.now += LEASE_TTL + timedelta(seconds=1)
        with recorded_run(catalog, clock, "backup", "shop"):
            pass

    def test_a_beating_heart_keeps_it(
        self, catalog: SqliteCatalog, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(running, "HEARTBEAT_S", 0.01)
        with recorded_run(catalog, clock, "backup", "shop") as frame:
            clock.now += timedelta(hours=1)
            wait_until(lambda: catalog.runs()[0].heartbeat_at == clock.now)
            assert frame.lease.expires_at == clock.now + LEASE_TTL
            assert frame.lease.fence == 1

    def test_a_lease_that_was_taken_over_is_left_alone(
        self, catalog: SqliteCatalog, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(running, "HEARTBEAT_S", 0.01)
        with recorded_run(catalog, clock, "backup", "shop") as frame:
            catalog.release_lease(frame.lease)
            taken = catalog.acquire_lease("backup/shop", "elsewhere/1@mark#run", LEASE_TTL, NOW)
        assert catalog.runs()[0].state == "succeeded"
        assert catalog.lease("backup/shop") == taken


class TestLostRuns:
    def test_of_a_dead_process(self, catalog: SqliteCatalog, other: subprocess.Popen[bytes]) -> None:
        catalog.start_run(a_run(other.pid))
        assert close_lost_runs(catalog, NOW) == []
        other.kill()
        other.wait()
        (lost,) = close_lost_runs(catalog, NOW + timedelta(minutes=1))
        assert catalog.runs() == [lost]
        assert (lost.state, lost.error) == ("lost", "its process ended without a word")
        assert close_lost_runs(catalog, NOW) == []

    def test_of_a_number_that_is_used_again(self, catalog: SqliteCatalog) -> None:
        catalog.start_run(a_run(os.getpid(), heartbeat_at=NOW - timedelta(minutes=11)))
        assert [run.state for run in close_lost_runs(catalog, NOW)] == ["lost"]

    def test_a_clock_put_forward_loses_nobody(self, catalog: SqliteCatalog, clock: Clock) -> None:
        with recorded_run(catalog, clock, "backup", "shop"):
            assert close_lost_runs(catalog, NOW + timedelta(days=365)) == []

    def test_another_hosts_are_its_own(self, catalog: SqliteCatalog) -> None:
        catalog.start_run(a_run(2**22 + 1, host="elsewhere", heartbeat_at=NOW - timedelta(days=1)))
        assert close_lost_runs(catalog, NOW) == []

    def test_the_next_run_closes_them(self, catalog: SqliteCatalog, clock: Clock) -> None:
        catalog.start_run(a_run(2**22 + 1))
        with recorded_run(catalog, clock, "drill", "other"):
            pass
        assert sorted(run.state for run in catalog.runs()) == ["lost", "succeeded"]


class TestFencing:
    def test_a_lease_that_was_taken_over_forbids_the_commit(self, catalog: SqliteCatalog, clock: Clock) -> None:
        with recorded_run(catalog, clock, "backup", "shop") as frame:
            frame.require_lease(catalog)
            clock.now += LEASE_TTL * 2
            frame.require_lease(catalog)  # nobody else wanted it
            catalog.acquire_lease("backup/shop", "elsewhere/1@mark#run", LEASE_TTL, clock.now)
            with pytest.raises(Busy, match="was taken over by elsewhere/1@mark#run while this run stood still"):
                frame.require_lease(catalog)

    def test_a_planned_run_has_the_id_that_was_written_down(self, catalog: SqliteCatalog, clock: Clock) -> None:
        with (
            planned_run("01PLANNED"),
            recorded_run(catalog, clock, "copy", "shop") as first,
            recorded_run(catalog, clock, "backup", "shop") as second,
        ):
            assert first.run_id == "01PLANNED"
            assert second.run_id != "01PLANNED"


def test_an_error_that_nobody_foresaw_leaves_no_password_in_the_catalog(catalog: SqliteCatalog, clock: Clock) -> None:
    with pytest.raises(RuntimeError), recorded_run(catalog, clock, "backup", "orders"):
        raise RuntimeError("no answer from postgresql://me:hunter2@db/orders")
    (run,) = catalog.runs()
    (event,) = [item for item in catalog.events() if item["name"] == "run.failed"]
    assert run.error == event["error"] == "no answer from postgresql://me:***@db/orders"


def test_a_lease_that_was_taken_over_and_given_back_is_lost_all_the_same(catalog: SqliteCatalog, clock: Clock) -> None:
    with recorded_run(catalog, clock, "backup", "shop") as slow:
        later = NOW + LEASE_TTL + timedelta(minutes=5)
        other = catalog.acquire_lease("backup/shop", "elsewhere/1@0#run", LEASE_TTL, later)
        assert other.fence > slow.lease.fence
        catalog.release_lease(other)
        with pytest.raises(Busy, match="backup/shop was taken over by a run that has ended since"):
            slow.require_lease(catalog)
