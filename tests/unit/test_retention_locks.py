"""Until when an artifact is locked: no longer than the plan keeps it, if backups come as scheduled or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from drkit.retention import Candidate, Guards, Holdings, Rules, plan_retention
from drkit.retention_locks import LockTerm, closed_over, planned_end
from drkit.schedule import Recurrence

DAY = timedelta(days=1)
NIGHTLY = "0 2 * * *"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def end(at: str, cron: str | None, **rules: object) -> str:
    coming = Recurrence(cron).after(moment(at)) if cron else iter(())
    found = planned_end(moment(at), Rules(**rules), 1, coming)  # type: ignore[arg-type]
    return found.isoformat().removesuffix("+00:00")


@pytest.mark.parametrize(
    ("at", "cron", "rules", "expected"),
    [
        ("2026-03-10T02:00:07", NIGHTLY, {"last": 3}, "2026-03-13T02:00:00"),
        ("2026-03-10T02:00:07", NIGHTLY, {}, "2026-03-11T02:00:00"),
        ("2026-03-10T02:00:07", NIGHTLY, {"daily": 14}, "2026-03-24T00:00:00"),
        ("2026-03-10T02:00:07", NIGHTLY, {"daily": 14, "timezone": "Europe/Berlin"}, "2026-03-23T23:00:00"),
        ("2026-03-10T02:00:07", "0 */6 * * *", {"daily": 14}, "2026-03-10T06:00:00"),
        ("2026-03-10T18:00:07", "0 */6 * * *", {"daily": 14}, "2026-03-24T00:00:00"),
        ("2026-03-10T02:00:07", NIGHTLY, {"weekly": 8}, "2026-03-11T02:00:00"),
        ("2026-03-15T02:00:07", NIGHTLY, {"weekly": 8}, "2026-05-04T00:00:00"),
        ("2026-03-31T02:00:07", NIGHTLY, {"monthly": 12}, "2027-03-01T00:00:00"),
        ("2026-12-31T02:00:07", NIGHTLY, {"monthly": 1, "yearly": 7}, "2033-01-01T00:00:00"),
        ("2026-03-10T02:00:07", NIGHTLY, {"within": 30 * DAY, "recovery_window": 7 * DAY}, "2026-04-09T02:00:07"),
        ("2026-03-10T02:00:07", None, {"last": 9, "daily": 9, "yearly": 9}, "2026-03-10T02:00:07"),
        ("2026-03-10T02:00:07", None, {"within": 9 * DAY}, "2026-03-19T02:00:07"),
        ("2026-12-31T02:00:07", NIGHTLY, {"yearly": 10**9, "weekly": 10**12}, "9999-12-31T00:00:00"),
        ("2026-12-31T02:00:07", "0 * * * *", {"hourly": 10**15}, "9999-12-31T00:00:00"),
        ("2026-12-31T02:00:07", "0 0 29 2 *", {"hourly": 5}, "2028-02-29T00:00:00"),
    ],
)
def test_the_end_that_is_known(at: str, cron: str | None, rules: dict[str, object], expected: str) -> None:
    assert end(at, cron, **rules) == expected


ZONES = ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns"]
CRONS = ["0 2 * * *", "30 1,13 * * *", "0 * * * *", "0 0 * * sun", "15 3 1 * *", "45 23 * * mon-fri"]
COUNTS = some.integers(0, 6)


@settings(max_examples=60, deadline=None)
@given(
    rules=some.builds(
        Rules,
        last=COUNTS,
        hourly=COUNTS,
        daily=COUNTS,
        weekly=COUNTS,
        monthly=COUNTS,
        yearly=some.integers(0, 2),
        within=some.sampled_from([None, DAY / 2, 9 * DAY]),
        recovery_window=some.sampled_from([None, DAY, 20 * DAY]),
        timezone=some.sampled_from(ZONES),
    ),
    cron=some.sampled_from(CRONS),
    zone=some.sampled_from(ZONES),
    begin=some.integers(0, 365 * 24 * 60),
    missed=some.sets(some.integers(0, 200)),
)
def test_what_is_locked_as_planned_is_kept_as_long(
    rules: Rules, cron: str, zone: str, begin: int, missed: set[int]
) -> None:
    schedule = Recurrence(cron, zone)
    guards = Guards(minimum=1)
    due = list(islice(schedule.after(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=begin)), 200))
    taken = [at for place, at in enumerate(due) if place not in missed]
    for at in taken[:6]:
        now = min(planned_end(at, rules, guards.minimum, schedule.after(at)), due[-1]) - timedelta(seconds=1)
        held = [Candidate(f"{item:%Y%m%d%H%M}", "dump", item, 1) for item in taken if item <= max(now, at)]
        plan = plan_retention(Holdings("orders", held), rules, guards, max(now, at))
        decision = next(item for item in plan.artifacts if item.name == f"{at:%Y%m%d%H%M}")
        assert decision.action == "keep", (at, now, decision)


def test_a_store_locks_for_its_least_and_to_the_planned_end_up_to_its_most() -> None:
    now, term = moment("2026-03-10T00:00:00"), LockTerm(30 * DAY, 100 * DAY)
    ends = [now - DAY, now + 40 * DAY, now + 1000 * DAY]
    assert [term.until(item, now) - now for item in ends] == [30 * DAY, 40 * DAY, 100 * DAY]
    assert [term.enough(item, now) - now for item in ends] == [15 * DAY, 40 * DAY, 50 * DAY]
    assert [LockTerm(30 * DAY, 30 * DAY).enough(item, now) - now for item in ends] == [15 * DAY] * 3
    endless = LockTerm(30 * DAY, timedelta.max)
    assert [endless.until(item, now) - now for item in ends] == [30 * DAY, 40 * DAY, 1000 * DAY]
    assert [endless.enough(item, now) - now for item in ends] == [15 * DAY, 40 * DAY, 1000 * DAY]


@pytest.mark.parametrize("most", [30, 31, 400])
@pytest.mark.parametrize("wanted", [0, 20, 100, 1000])
def test_one_look_a_day_leaves_nothing_unlocked_and_seldom_asks_for_more(most: int, wanted: int) -> None:
    term, start = LockTerm(30 * DAY, most * DAY), moment("2026-03-10T00:00:00")
    planned = start + wanted * DAY
    until, asked = start + 30 * DAY, 0
    for day in range(1000):
        now = start + day * DAY
        if until < term.enough(planned, now):
            until, asked = term.until(planned, now), asked + 1
        assert until >= now + 15 * DAY
    assert asked <= 1000 / 14


def test_what_something_builds_on_is_locked_as_long() -> None:
    ends = {name: moment(f"2026-03-{day}T00:00:00") for name, day in (("a", 10), ("b", 12), ("c", 11))}
    closed = closed_over(ends, {"b": ["a"], "c": ["a", "b", "gone"]})
    assert closed == {**ends, "a": ends["b"]}
