"""What becomes of moments that came due, and of attempts that failed: pure rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.attempts import classify
from drkit.errors import (
    Busy,
    CatalogError,
    ConfigError,
    DrkitError,
    IntegrityError,
    KeyUnavailable,
    NoRoom,
    RecoveryGap,
    SourceError,
    StoreError,
    StoreExists,
    StoreMissing,
    StoreUnavailable,
)
from drkit.occurrences import Occurrence, Schedule, decide, next_attempt, summarise
from drkit.schedule import Recurrence

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAILY = Schedule("backup/orders/dump", "backup", "orders", "dump", Recurrence("0 2 * * *"))
DRILL = replace(DAILY, name="drill/orders/weekly", kind="drill", missed="all_within", catch_up=timedelta(days=7))
LOG = replace(DAILY, missed="resume", catch_up=HOUR)


def row(due_at: datetime, state: str) -> Occurrence:
    return Occurrence(1, DAILY.name, "backup", "orders", "dump", due_at, state, "", due_at, due_at)  # type: ignore[arg-type]


def states(schedule: Schedule, *hours_ago: float, unfinished: tuple[Occurrence, ...] = (), leapt: bool = False) -> str:
    moments = [NOW - HOUR * ago for ago in hours_ago]
    return " ".join(item.state for item in decide(schedule, moments, NOW, unfinished, leapt=leapt))


@pytest.mark.parametrize(
    ("schedule", "hours_ago", "expected"),
    [
        (DAILY, (0,), "due"),
        (DAILY, (48, 24, 0), "coalesced coalesced due"),
        (DAILY, (24 * 40, 24 * 32), "missed missed"),
        (DAILY, (24 * 40, 24 * 30), "coalesced due"),
        (LOG, (24 * 400, 24 * 300), "coalesced due"),
        (DRILL, (24 * 8, 24 * 6, 24), "missed due due"),
        (DRILL, (), ""),
        (replace(DAILY, catch_up=timedelta(seconds=1)), (0.01,), "due"),
        (replace(DAILY, catch_up=timedelta(seconds=1)), (0.02,), "missed"),
    ],
)
def test_what_nobody_saw(schedule: Schedule, hours_ago: tuple[float, ...], expected: str) -> None:
    assert states(schedule, *hours_ago) == expected


def test_nothing_of_it_is_without_a_reason() -> None:
    for schedule in (DAILY, LOG, DRILL):
        for decision in decide(schedule, [NOW - HOUR * 24 * ago for ago in (40, 8, 3, 1)], NOW, ()):
            assert "no drkit serve was running" in decision.reason
    assert decide(DAILY, [NOW], NOW, ())[0].reason == ""


def test_one_that_still_runs_is_not_run_twice() -> None:
    running = row(NOW - HOUR, "dispatched")
    assert states(DAILY, 0, unfinished=(running,)) == "skipped"
    (decision,) = decide(DAILY, [NOW], NOW, [running])
    assert decision.reason == "overlap: the one due at 2026-11-22T11:00:00+00:00 has not ended"
    assert states(DRILL, 0, unfinished=(running,)) == "due"


def test_one_that_waits_is_taken_over_by_the_next() -> None:
    waiting = row(NOW - HOUR, "due")
    earlier, newest = decide(DAILY, [NOW], NOW, [waiting])
    assert (earlier.due_at, earlier.state, earlier.is_new) == (waiting.due_at, "coalesced", False)
    assert newest.state == "due"


def test_a_clock_put_forward_floods_nothing() -> None:
    assert states(DRILL, 72, 48, 24, 0, leapt=True) == "coalesced coalesced coalesced due"


def test_a_summary_says_from_where_to_where() -> None:
    decision = summarise(NOW - timedelta(days=30), NOW)
    assert (decision.due_at, decision.state) == (NOW - timedelta(seconds=1), "missed")
    assert "for 30 d: one row for everything between 2026-10-23T12:00:00+00:00" in decision.reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Busy("held"), "conflict"),
        (StoreExists("there"), "conflict"),
        (ConfigError("wrong"), "auth"),
        (KeyUnavailable("no key"), "auth"),
        (StoreMissing("no bucket"), "auth"),
        (IntegrityError("digest"), "data"),
        (RecoveryGap("gap"), "data"),
        (CatalogError("locked"), "transient"),
        (NoRoom("the disk that holds /x is full"), "capacity"),
        (StoreUnavailable("gone"), "transient"),
        (StoreError("store offsite: AccessDenied"), "auth"),
        (StoreError("store primary: no space left on device"), "capacity"),
        (SourceError("the server is gone"), "transient"),
        (SourceError("cannot connect", details=['FATAL:  password authentication failed for user "x"']), "auth"),
        (SourceError("cannot connect", details=["FATAL:  sorry, too many clients already"]), "capacity"),
        (SourceError("role drkit at db1:5432 may not take a base backup: it lacks the attribute REPLICATION"), "auth"),
        (StoreUnavailable("somebody may not answer"), "transient"),
        (ZeroDivisionError(), "transient"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_every_error_has_its_class(error: BaseException, expected: str) -> None:
    assert classify(error) == expected


def test_every_kind_of_error_is_classified() -> None:
    assert {classify(kind("x")) for kind in DrkitError.__subclasses__()} >= {"conflict", "auth", "data", "transient"}


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (psycopg.errors.InsufficientPrivilege("x"), "auth"),
        (psycopg.errors.InvalidPassword("x"), "auth"),
        (psycopg.errors.DiskFull("x"), "capacity"),
        (psycopg.errors.AdminShutdown("x"), "transient"),
        (OSError(28, "No space left on device"), "capacity"),
    ],
)
def test_the_cause_decides_where_the_error_does_not(cause: Exception, expected: str) -> None:
    error = SourceError("the dump failed")
    error.__cause__ = cause
    assert classify(error) == expected


def wait_s(
    failure: str, attempts: int, *, rpo: timedelta | None = None, left: timedelta = timedelta(days=1)
) -> float | None:
    at = next_attempt(failure, attempts, NOW, moot_at=NOW + left, rpo=rpo)  # type: ignore[arg-type]
    return None if at is None else (at - NOW).total_seconds()


def test_waits_double_within_the_rpo() -> None:
    assert [wait_s("transient", number) for number in (1, 2, 3, 20)] == [30, 60, 120, 3600]
    assert [wait_s("transient", number, rpo=timedelta(minutes=4)) for number in (1, 2, 3, 9)] == [30, 60, 60, 60]
    assert [wait_s("capacity", 1), wait_s("conflict", 1), wait_s("interrupted", 3)] == [300, 60, 0]


def test_what_waiting_does_not_mend_is_not_tried_again() -> None:
    assert wait_s("auth", 1) is None
    assert wait_s("data", 1) is None
    assert wait_s("transient", 1, left=timedelta(seconds=20)) is None


@given(
    st.sampled_from(["transient", "capacity", "conflict", "lost"]),
    st.integers(1, 10_000),
    st.integers(1, 10_000_000).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_a_wait_is_bounded_by_the_rpo_always(failure: str, attempts: int, rpo: timedelta) -> None:
    waited_s = wait_s(failure, attempts, rpo=rpo)
    assert waited_s is not None
    assert waited_s <= max(30, min(3600, rpo.total_seconds() / 4))
