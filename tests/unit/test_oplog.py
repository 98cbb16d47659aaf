"""Raw oplog entries: split at any place, damaged anywhere, and where they lie in time."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from drkit.errors import IntegrityError
from drkit.oplog import OplogDisorder, OplogSpan, OplogTs, parse_slice_name, read_ts, slice_name, split_entries


def entry(seconds: int, increment: int = 1, **more: Any) -> bytes:
    """Return an entry with its timestamp behind what it says, as servers write it."""
    return bson.encode({"op": "i", "ns": "shop.a", "o": {"_id": 1}, **more, "ts": Timestamp(seconds, increment)})


ENTRIES = [entry(10), entry(10, 2, extra="x" * 300), entry(12)]


@given(st.lists(st.integers(1, 60), max_size=20))
def test_entries_come_out_whole_wherever_the_chunks_are_cut(sizes: list[int]) -> None:
    data, chunks, position = b"".join(ENTRIES), [], 0
    for size in sizes:
        chunks.append(data[position : position + size])
        position += size
    assert list(split_entries([*chunks, data[position:]])) == ENTRIES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"".join(ENTRIES)[:-1], "ends in the middle"),
        (b"\x04\0\0\0" + ENTRIES[0], "says it has 4 bytes"),
        (b"\xff\xff\xff\x7f" + ENTRIES[0], "says it has 2,147,483,647 bytes"),
        (ENTRIES[0][:-1] + b"\1", "has no end"),
    ],
)
def test_damage_is_said(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        list(split_entries([data]))


def test_places_are_ordered_and_written_so_that_names_sort_like_them() -> None:
    places = [OplogTs(1795361400, 2), OplogTs(1795361400, 10), OplogTs(1795361401, 1)]
    assert [OplogTs.parse(str(place)) for place in places] == sorted(places) == places
    name = slice_name(places[0], places[1])
    assert name == "6B030A7800000002-6B030A780000000A"
    assert parse_slice_name(name) == (places[0], places[1])
    assert parse_slice_name("000000010000000000000001") is None
    with pytest.raises(ValueError, match="is not a place in the oplog"):
        OplogTs.parse("4294967296:1")


def test_a_span_knows_its_ends_and_takes_nothing_that_does_not_follow() -> None:
    span = OplogSpan()
    span.add(b"")
    span.add(b"".join(ENTRIES[:2]))
    span.add(ENTRIES[2])
    assert (span.entries, span.first_ts, span.last_ts) == (3, OplogTs(10, 1), OplogTs(12, 1))
    with pytest.raises(IntegrityError, match="12:1 does not follow on 12:1"):
        span.add(ENTRIES[2])
    with pytest.raises(IntegrityError, match="in the middle"):
        span.add(entry(13)[:-2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([entry(13), entry(12, 9), entry(14)], "entry 12:9 does not follow on 13:1"),
        ([entry(13), entry(13)], "entry 13:1 does not follow on 13:1"),
        ([entry(11, 7), entry(14)], "entry 11:7 does not follow on 12:1"),
    ],
)
def test_places_that_run_backwards_are_found_wherever_they_do(more: list[bytes], message: str) -> None:
    span = OplogSpan()
    span.add(b"".join(ENTRIES))
    with pytest.raises(OplogDisorder, match=message):
        span.add(b"".join(more))
    assert (span.entries, span.last_ts) == (3, OplogTs(12, 1))
    span.add(entry(13) + entry(13, note="of the same transaction"))
    assert span.entries == 5


@pytest.mark.parametrize("document", [{"op": "n"}, {"ts": 5}, {"o": {"ts": Timestamp(1, 1)}}, {"ts2": Timestamp(1, 1)}])
def test_an_entry_without_a_timestamp_is_none(document: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="no timestamp"):
        read_ts(bson.encode(document))
