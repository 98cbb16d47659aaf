"""Dumps and slices put together: windows, gaps and what to replay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.errors import RecoveryGap
from drkit.oplog import OplogTs
from drkit.oplog_windows import DumpPoint, KnownGap, Slice, choose_slices, find_gaps, find_windows


def at(seconds: int) -> OplogTs:
    """Return a place."""
    return OplogTs(seconds, 1)


def slices(*ranges: tuple[int, int], timeline: int = 1) -> list[Slice]:
    """Return slices of one timeline."""
    return [Slice(timeline, at(start), at(end)) for start, end in ranges]


def dump(start: int, stop: int, *, included: bool = True, timeline: int = 1) -> DumpPoint:
    """Return a dump."""
    return DumpPoint(f"{start}-{stop}", timeline, at(start), at(stop), included)


def spans(dumps: Sequence[DumpPoint], stored: Sequence[Slice]) -> list[tuple[int, int, int]]:
    """Return windows as numbers."""
    return [(item.timeline, item.from_ts.seconds, item.to_ts.seconds) for item in find_windows(dumps, stored)]


def test_a_window_goes_from_where_a_dump_is_consistent_to_where_the_slices_end() -> None:
    assert spans([dump(5, 8)], slices((1, 6), (6, 20), (20, 30))) == [(1, 8, 30)]
    assert spans([dump(5, 8)], slices((9, 20))) == [(1, 8, 8)]
    assert spans([dump(5, 8), dump(15, 18)], slices((1, 20), (20, 30))) == [(1, 8, 30)]
    assert spans([dump(5, 8), dump(40, 42)], slices((1, 20), (30, 50))) == [(1, 8, 20), (1, 42, 50)]


def test_a_dump_without_its_own_oplog_needs_slices_from_its_start_to_its_stop() -> None:
    assert spans([dump(5, 8, included=False)], slices((1, 6), (6, 20))) == [(1, 8, 20)]
    assert spans([dump(5, 8, included=False)], slices((6, 20))) == []
    assert spans([dump(5, 8, included=False)], slices((1, 7))) == []
    assert spans([dump(5, 8, included=False)], []) == []


def test_no_slice_of_one_timeline_continues_another() -> None:
    stored = [*slices((1, 10)), *slices((10, 20), timeline=2)]
    assert spans([dump(5, 8)], stored) == [(1, 8, 10)]
    assert spans([dump(5, 8), dump(12, 13, timeline=2)], stored) == [(1, 8, 10), (2, 13, 20)]


def test_a_gap_is_the_exact_stretch_that_is_lost() -> None:
    stored = slices((1, 20), (30, 50))
    (gap,) = find_gaps(find_windows([dump(5, 8)], stored), stored, [KnownGap(1, at(20), at(30), "overrun")])
    assert (gap.from_ts, gap.to_ts, gap.missing_ts, gap.reason) == (at(20), None, at(30), "overrun")
    (gap,) = find_gaps(find_windows([dump(5, 8), dump(40, 42)], stored), stored)
    assert (gap.from_ts, gap.to_ts, gap.missing_ts) == (at(20), at(42), at(30))
    assert gap.reason == "the oplog from 20:1 to 30:1 is not stored"


def test_dumps_without_any_slices_promise_nothing_in_between() -> None:
    assert find_gaps(find_windows([dump(5, 8), dump(40, 42)], []), []) == []


def test_a_log_that_just_ends_is_no_gap_until_a_later_dump_shows_it() -> None:
    stored = slices((1, 20))
    assert find_gaps(find_windows([dump(5, 8)], stored), stored) == []
    (gap,) = find_gaps(find_windows([dump(5, 8), dump(40, 42)], stored), stored)
    assert (gap.from_ts, gap.to_ts, gap.missing_ts) == (at(20), at(42), None)


def test_what_is_replayed_follows_without_a_gap_and_goes_no_further_than_asked() -> None:
    stored = slices((1, 6), (6, 20), (20, 30), (30, 40))
    assert choose_slices(stored, dump(5, 8)) == stored[1:]
    assert choose_slices(stored, dump(5, 8), at(20)) == stored[1:2]
    assert choose_slices(stored, dump(5, 8), at(21)) == stored[1:3]
    assert choose_slices(stored, dump(5, 8, included=False), at(8)) == stored[:2]
    assert choose_slices([], dump(5, 8)) == []
    with pytest.raises(RecoveryGap, match=r"goes up to 20:1 .* and 35:1 is wanted; they go on after 25:1"):
        choose_slices(slices((1, 20), (25, 40)), dump(5, 8), at(35))
    with pytest.raises(RecoveryGap, match=r"goes up to 5:1 .* and 8:1 is wanted"):
        choose_slices(slices((7, 20)), dump(5, 8, included=False))


numbers = st.integers(0, 40)


@given(st.lists(st.tuples(numbers, st.integers(1, 8)), max_size=12), numbers, st.integers(0, 5), st.booleans())
def test_a_place_is_in_a_window_just_if_all_entries_up_to_it_are_there(
    pieces: list[tuple[int, int]], start: int, length: int, included: bool
) -> None:
    point = dump(start, start + length, included=included)
    stored = slices(*((first, first + size) for first, size in pieces))
    held = {number for first, size in pieces for number in range(first + 1, first + size + 1)}
    inside = {
        number
        for item in find_windows([point], stored)
        for number in range(item.from_ts.seconds, item.to_ts.seconds + 1)
    }
    for target in range(50):
        needed = set(range(point.needs_ts.seconds + 1, max(target, point.stop_ts.seconds) + 1))
        possible = target >= point.stop_ts.seconds and needed <= held
        assert (target in inside) == possible
        if possible:
            chosen = choose_slices(stored, point, at(target))
            assert needed <= {n for item in chosen for n in range(item.from_ts.seconds + 1, item.to_ts.seconds + 1)}
