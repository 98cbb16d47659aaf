"""The promise that every stored byte is read in time: what is read next, and when it cannot be kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.reading_plan import ReadingPromise, StoredCopy, plan_reading

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
MONTH = ReadingPromise(30 * DAY)


def copy(name: str, size_bytes: int = 10, *, stored: float = 10, read: float | None = None) -> StoredCopy:
    """Return a copy that was stored, and perhaps read, so many days ago."""
    verified_at = None if read is None else NOW - read * DAY
    return StoredCopy("orders", name, "primary", size_bytes, NOW - stored * DAY, verified_at)


def chosen(*copies: StoredCopy, promise: ReadingPromise = MONTH) -> list[str]:
    return [item.subject for item in plan_reading(copies, promise, NOW).chosen]


def test_what_was_read_longest_ago_comes_first() -> None:
    assert chosen(copy("a", stored=40, read=8), copy("b", stored=12), copy("c", stored=20, read=9))[:1] == ["b"]


def test_nothing_is_read_that_was_read_a_few_days_ago() -> None:
    assert chosen(copy("a", stored=40, read=5), copy("b", stored=5)) == []


def test_a_day_reads_its_share_and_not_all_at_once() -> None:
    copies = [copy(f"{number:02}", stored=10) for number in range(48)]
    assert chosen(*copies) == ["00", "01"]


def test_what_was_read_today_counts() -> None:
    copies = [copy(f"{number:02}", stored=10) for number in range(48)]
    copies[0] = copy("00", stored=10, read=0.1)
    assert chosen(*copies) == ["01"]
    copies[1] = copy("01", stored=10, read=0.1)
    assert chosen(*copies) == []


def test_what_is_overdue_may_take_more_than_a_share_but_not_everything() -> None:
    copies = [copy(f"{number:02}", stored=100) for number in range(48)]
    assert len(chosen(*copies)) == 6
    assert len(plan_reading(copies, MONTH, NOW).overdue) == 48


def test_after_a_large_copy_the_next_days_read_less() -> None:
    large = [copy(f"{number}", 1000, stored=20) for number in range(4)]
    assert chosen(*large) == ["0"]
    large[0] = copy("0", 1000, stored=20, read=1.5)
    assert chosen(*large) == []


def test_the_limit_of_a_day_is_kept_and_a_larger_copy_is_named() -> None:
    promise = ReadingPromise(30 * DAY, max_bytes_per_day=100)
    copies = [copy("huge", 101, stored=100), *(copy(f"{number}", 60, stored=100) for number in range(3))]
    plan = plan_reading(copies, promise, NOW)
    assert [item.subject for item in plan.chosen] == ["0"]
    assert [item.subject for item in plan.too_large] == ["huge"]
    assert not plan.is_beyond(promise)


def test_a_limit_that_cannot_be_enough_is_said() -> None:
    promise = ReadingPromise(10 * DAY, max_bytes_per_day=100)
    plan = plan_reading([copy(f"{number}", 50) for number in range(30)], promise, NOW)
    assert plan.needed_bytes == 150
    assert plan.is_beyond(promise)


def test_nothing_stored_is_nothing_to_read() -> None:
    assert plan_reading([], MONTH, NOW).chosen == ()


@dataclass
class World:
    """Days go by: artifacts come, runs read what they are told to read, and some runs do not happen."""

    promise: ReadingPromise
    copies: dict[str, StoredCopy] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    oldest: timedelta = timedelta()

    def day(self, number: int, size_bytes: int, *, runs: bool) -> None:
        now = NOW + number * DAY
        name = f"{number:04}"
        self.copies[name] = StoredCopy("orders", name, "primary", size_bytes, now)
        self.copies.pop(f"{number - 40:04}", None)
        if runs:
            for item in plan_reading(self.copies.values(), self.promise, now).chosen:
                self.copies[item.subject] = item._replace(verified_at=now)
                self.read[number] += item.size_bytes
        self.oldest = max(self.oldest, *(now - item.since for item in self.copies.values()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=90, max_size=90), st.lists(st.integers(0, 9), min_size=9, max_size=9))
def test_months_go_by_and_every_copy_is_read_in_time(sizes: list[int], missed: list[int]) -> None:
    """Sizes differ by a hundred, and in every ten days one run does not happen."""
    world = World(ReadingPromise(20 * DAY, max_bytes_per_day=500))
    for number, size_bytes in enumerate(sizes):
        world.day(number, size_bytes, runs=number % 10 != missed[number // 10])
    assert world.oldest <= 20 * DAY
    assert max(world.read.values()) <= 500
