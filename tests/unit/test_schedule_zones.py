"""The moments that cron expressions mean, in every time zone there is."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.schedule import Recurrence, spread
from tests.unit.zones import TIMES, days_around_changes, violations, zones

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def local(cron: str, zone: str, day: str, days: int = 3, **more: str) -> list[str]:
    """Return the moments of some days as a clock of the zone shows them."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) - timedelta(seconds=1)
    found = Recurrence(cron, zone, **more).between(start, start + timedelta(days=days))
    return [moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M%z") for moment in found]


def test_every_zone_has_one_moment_a_day_around_every_change_of_clocks() -> None:
    assert sum(map(len, zones())) > 590
    spans = [(names[0], span) for names in zones() for span in days_around_changes(ZoneInfo(names[0]))]
    assert len(spans) > 1000
    assert [problem for name, span in spans for at in TIMES for problem in violations(name, at, *span)] == []


@pytest.mark.parametrize("shift", [timedelta(hours=1), timedelta(minutes=-1), timedelta(days=1)])
def test_a_wrong_moment_would_be_seen(shift: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Recurrence.between
    monkeypatch.setattr(Recurrence, "between", lambda *given: [moment + shift for moment in found(*given)])
    assert list(violations("Europe/Berlin", "02:30", date(2026, 3, 27), date(2026, 3, 31)))


@pytest.mark.parametrize(
    ("cron", "zone", "day", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28", ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24", ["24 02:30+0200", "25 02:30+0200", "26 02:30+0100"]),
        # APScheduler's trigger loses the 30th: the day after the change (measured with 3.11.3).
        ("0 0 * * *", "Europe/Berlin", "2026-03-29", ["29 00:00+0100", "30 00:00+0200", "31 00:00+0200"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03", ["03 02:15+1030", "04 02:30+1100", "05 02:15+1100"]),
        ("59 23 * * *", "America/Nuuk", "2026-03-28", ["29 00:00-0100", "29 23:59-0100", "30 23:59-0100"]),
        ("0 2 * * *", "Pacific/Apia", "2011-12-29", ["29 02:00-1000", "31 02:00+1400", "01 02:00+1400"]),
        ("0 3 * * *", "Africa/Casablanca", "2026-02-14", ["14 03:00+0100", "15 03:00+0000", "16 03:00+0000"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29", ["29 03:00+0200", "30 02:00+0200", "30 03:00+0200"]),
    ],
)
def test_changes_of_clocks(cron: str, zone: str, day: str, expected: list[str]) -> None:
    assert local(cron, zone, day)[:3] == expected


def test_what_counts_real_time_goes_on_through_both_changes() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        start = datetime.fromisoformat(day).replace(tzinfo=UTC)
        found = Recurrence("*/30 * * * *", "Europe/Berlin").between(start, start + timedelta(hours=6))
        assert {later - earlier for earlier, later in itertools.pairwise(found)} == {timedelta(minutes=30)}


def test_utc_is_a_day_apart_always() -> None:
    assert local("30 2 * * *", "Europe/Berlin", "2026-03-28", dst="utc")[:3] == [
        "28 03:30+0100",
        "29 04:30+0200",
        "30 04:30+0200",
    ]


def test_from_within_the_repeated_hour_nothing_comes_again() -> None:
    second = datetime(2026, 10, 25, 1, 15, tzinfo=UTC)  # 02:15 for the second time
    assert next(Recurrence("30 2 * * *", "Europe/Berlin").after(second)).day == 26


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 */3 * * *", "0,30 1-3 * * *", "0 6 1 */3 *", "0 3 * * sun"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Nuuk", "Africa/Cairo"]),
    st.integers(0, 2 * 525_600).map(lambda minutes: datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)),
    st.integers(0, 100_000),
)
def test_it_does_not_matter_in_which_pieces_time_is_asked_for(
    cron: str, zone: str, start: datetime, seconds: int
) -> None:
    rule = Recurrence(cron, zone, offset=timedelta(seconds=seconds % 3000))
    end, middle = start + timedelta(days=3), start + timedelta(seconds=seconds * 2)
    whole = rule.between(start, end)
    assert whole == sorted(set(whole))
    assert rule.between(start, middle) + rule.between(middle, end) == whole
    assert rule.newest(start, end, 5) == whole[-5:]
    assert rule.newest(start, end, 10_000) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["*/20 * * * *", "30 2 * * *", "0 */3 * * *", "0,30 1-3 * * *", "45 23 * * *", "0 3 * * sun"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Nuuk", "UTC"]),
    st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 4000)), min_size=1, max_size=12),
)
def test_what_comes_next_is_the_same_in_whatever_order_it_is_asked_for(
    cron: str, zone: str, asked: list[tuple[int, int]]
) -> None:
    change = datetime(2026, 10, 23, tzinfo=UTC)
    for minutes, offset_s in asked:
        rule, moment = Recurrence(cron, zone, offset=timedelta(seconds=offset_s)), change + timedelta(minutes=minutes)
        for _ in range(3):
            assert rule.next_after(moment) == next(rule.after(moment))
            moment = rule.next_after(moment)


@pytest.mark.parametrize("cron", ["30 0 * * *", "59 23 * * *", "0 12 * * *", "15 0,6 * * *"])
@pytest.mark.parametrize("zone", ["Pacific/Apia", "America/Juneau", "Asia/Manila", "Pacific/Kwajalein"])
def test_backwards_over_days_that_are_missing_or_come_twice(cron: str, zone: str) -> None:
    for change in ((2011, 12, 27), (1867, 10, 14), (1844, 12, 28), (1969, 9, 26), (1993, 8, 18)):
        start = datetime(*change, tzinfo=UTC)
        end = start + timedelta(days=8)
        whole = Recurrence(cron, zone).between(start, end)
        assert Recurrence(cron, zone).newest(start, end, 100) == whole
        for hours in range(0, 192, 5):
            until = start + timedelta(hours=hours)
            assert Recurrence(cron, zone).newest(start, until, 100) == [due_at for due_at in whole if due_at <= until]


def test_the_newest_of_ten_years_are_found_at_once() -> None:
    found = Recurrence("* * * * *", "Europe/Berlin").newest(NOON - timedelta(days=3650), NOON, 100)
    assert found[-1] == NOON
    assert len(found) == 100


def test_the_spread_is_the_same_always_and_even() -> None:
    within = timedelta(minutes=30)
    offsets = [spread(f"backup/p{number}/dump", within) for number in range(3000)]
    assert offsets == [spread(f"backup/p{number}/dump", within) for number in range(3000)]
    assert max(offsets) < within
    assert max(Counter(int(item.total_seconds()) // 300 for item in offsets).values()) < 700
    assert spread("backup/orders/dump", timedelta(hours=1)) == timedelta(seconds=spread_seconds())
    assert spread("x", None) == timedelta()


def spread_seconds() -> int:
    """Return what the spread of one name is on every host and in every version: it must never change."""
    import hashlib

    return int(hashlib.sha256(b"backup/orders/dump").hexdigest()[:16], 16) % 3600
