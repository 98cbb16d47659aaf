"""What a WAL file says of itself; with real files it is tested by tests/integration/test_wal_stream.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drkit.errors import IntegrityError
from drkit.wal import Segment
from drkit.wal_pages import CommitSearch, _Pages, goes_on, inspect, read_identity
from tests.fixtures.wal_files import CLUSTER, PAGE, commit_record, make_wal, record

MIB = 1 << 20
SEGMENT = Segment(3, 0x1234, MIB)
NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def test_a_whole_segment() -> None:
    facts = inspect(make_wal(SEGMENT, first_at=NOON), SEGMENT.name)
    assert (facts.segment, facts.system_identifier) == (SEGMENT, str(CLUSTER))
    assert facts.end_lsn == SEGMENT.end_lsn
    assert facts.first_commit_at == NOON
    assert facts.last_commit_at == NOON + timedelta(seconds=MIB // PAGE - 1)


@pytest.mark.parametrize("pages", [1, 2, 77])
def test_an_unfinished_segment(pages: int) -> None:
    facts = inspect(make_wal(SEGMENT, pages=pages, first_at=NOON), SEGMENT.name)
    assert facts.end_lsn == SEGMENT.start_lsn + pages * PAGE
    assert facts.last_commit_at == NOON + timedelta(seconds=pages - 1)


def test_a_segment_without_a_commit() -> None:
    facts = inspect(make_wal(SEGMENT), SEGMENT.name)
    assert (facts.first_commit_at, facts.last_commit_at) == (None, None)


def with_records(*records: bytes) -> bytes:
    """Return a segment whose records are these, over as many pages as they take."""
    stream = b"".join(records)
    content = b""
    number = 0
    starts = [0]
    for item in records:
        starts.append(starts[-1] + len(item))
    position = 0
    while position < len(stream):
        header_bytes = 24 if number else 40
        owner = max(start for start in starts if start <= position)
        item = records[starts.index(owner)]
        # The record's own length counts, as in CopyXLogRecordToWAL, not what it is filled up to; zeros have none.
        length = struct.unpack_from("<I", item)[0] or len(item)
        rest = length - (position - owner) if owner < position else 0
        info = (0 if number else 2) | (1 if owner < position else 0)
        header = struct.pack("<HHIQI4x", 0xD110, info, 3, SEGMENT.start_lsn + number * PAGE, rest)
        if not number:
            header += struct.pack("<QII", CLUSTER, MIB, PAGE)
        piece = stream[position : position + PAGE - header_bytes]
        content += (header + piece).ljust(PAGE, b"\0")
        position += len(piece)
        number += 1
    return content.ljust(MIB, b"\0")


@pytest.mark.parametrize("pages", [0, 1], ids=["in the first page", "at the border of pages"])
def test_a_record_goes_on_only_behind_its_own_log(pages: int) -> None:
    last = record(0, 0x20, b"x" * (PAGE - 40 - 24 if pages else 40))
    stop_lsn = SEGMENT.start_lsn + (pages * PAGE or 40 + len(last))

    def follows(prev: int, *, whole: bool = True) -> bool:
        after = bytearray(record(0, 0x20, b"y" * (80 if whole else 2 * MIB)))
        struct.pack_into("<Q", after, 8, prev)
        content = with_records(last, bytes(after))[:MIB]
        return goes_on(content, SEGMENT.name, stop_lsn, SEGMENT.start_lsn)

    assert follows(SEGMENT.start_lsn + 40)
    assert not follows(SEGMENT.start_lsn + 40, whole=False), "the rest of it never came"
    assert not follows(SEGMENT.start_lsn - 5 * MIB), "a page that was used before"
    assert not follows(stop_lsn)
    assert not goes_on(with_records(last), SEGMENT.name, stop_lsn, SEGMENT.start_lsn), "zeros"


def test_records_that_reach_over_pages() -> None:
    long = record(0, 0x20, b"x" * 20_000)
    nearly = record(0, 0x20, b"y" * (3 * PAGE - 40 - 2 * 24 - len(long) - 24 - 24 - 16))
    cut = commit_record(NOON)
    facts = inspect(with_records(long, nearly, cut, commit_record(NOON + timedelta(hours=1))), SEGMENT.name)
    assert facts.first_commit_at == NOON
    assert facts.last_commit_at == NOON + timedelta(hours=1)


def test_a_segment_that_grows_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (commit_record(NOON + timedelta(hours=hour)) for hour in (0, 1))
    content = bytearray(with_records(first))
    look = _Pages.commits

    def look_and_grow(pages: _Pages, page: int) -> Iterator[datetime]:
        found = list(look(pages, page))
        content[:] = with_records(first, second)
        yield from found

    monkeypatch.setattr(_Pages, "commits", look_and_grow)
    facts = inspect(memoryview(content), SEGMENT.name)
    assert facts.end_lsn == SEGMENT.start_lsn + 40 + len(first)
    assert facts.last_commit_at == NOON


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(min_value=0, max_value=2 * PAGE)), min_size=1, max_size=40))
@example([56, 56, 7952, None])  # 16 bytes of the commit's header are in the first page
@example([56, 56, 7960, None])  # 8 bytes
def test_no_commit_is_overlooked_wherever_it_lies(sizes: list[int | None]) -> None:
    records, commits = [], []
    for number, size in enumerate(sizes):
        if size is None:
            commits.append(NOON + timedelta(seconds=number))
            records.append(commit_record(commits[-1]))
        else:
            records.append(record(0, 0x20, b"\x01" * (size // 8 * 8)))
    facts = inspect(with_records(*records), SEGMENT.name)
    assert (facts.first_commit_at, facts.last_commit_at) == ((commits[0], commits[-1]) if commits else (None, None))


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(min_value=0, max_value=3 * PAGE)), min_size=1, max_size=40),
    st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=8),
)
def test_what_was_searched_while_a_segment_grew_need_not_be_searched_again(
    sizes: list[int | None], steps: list[int]
) -> None:
    records = [
        commit_record(NOON + timedelta(seconds=number)) if size is None else record(10, 0, b"\1" * size)
        for number, size in enumerate(sizes)
    ]
    content = with_records(*records)
    search, grown, finished = CommitSearch(SEGMENT), bytearray(MIB), 0
    for step in steps:
        finished = min(finished + step * PAGE, MIB)
        grown[:finished] = content[:finished]
        search.look(grown, finished)
    assert inspect(content, SEGMENT.name, quiet_pages=search.quiet_pages) == inspect(content, SEGMENT.name)


def test_a_segment_without_commits_is_searched_as_it_grows() -> None:
    segment = Segment(3, 0x1234, 4 * MIB)
    search = CommitSearch(segment)
    search.look(make_wal(segment), 4 * MIB)
    assert 3 * MIB <= search.quiet_pages * PAGE < 4 * MIB


def test_the_last_record_counts_only_when_all_of_it_is_there() -> None:
    whole = with_records(record(0, 0x20, b"x" * 200), record(0, 0x20, b"z" * 20_000))
    cut = whole[: 2 * PAGE].ljust(MIB, b"\0")
    assert inspect(cut, SEGMENT.name).end_lsn == SEGMENT.start_lsn + 40 + 224
    assert inspect(whole, SEGMENT.name).end_lsn == SEGMENT.start_lsn + 40 + 2 * 24 + 224 + 20_024


@pytest.mark.parametrize(
    ("info", "before", "counts"),
    [
        (0x00, b"", True),
        (0x80, b"", True),
        (0x30, b"", True),
        (0x20, b"", False),
        (0x10, b"", False),
        (0x00, b"\xfd\x01\x00", True),
        (0x00, b"\xfc\x01\x00\x00\x00", True),
        (0x00, b"\x00", False),
    ],
)
def test_which_records_are_commits(info: int, before: bytes, *, counts: bool) -> None:
    facts = inspect(with_records(commit_record(NOON, info=info, before=before)), SEGMENT.name)
    assert facts.last_commit_at == (NOON if counts else None)


def test_the_stamp_of_another_manager_s_record_is_none() -> None:
    foreign = bytearray(commit_record(NOON))
    foreign[17] = 10
    assert inspect(with_records(bytes(foreign)), SEGMENT.name).last_commit_at is None


def test_nonsense_as_a_stamp_is_none() -> None:
    assert inspect(with_records(record(1, 0, b"\xff\x08" + b"\xff" * 8)), SEGMENT.name).last_commit_at is None
    assert inspect(with_records(record(1, 0, b"\xff\x04" + b"\x01" * 4)), SEGMENT.name).last_commit_at is None


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", SEGMENT.name, "too short"),
        (bytes(MIB), SEGMENT.name, "does not begin as a WAL segment does"),
        (b"\x7fELF" * 4096, SEGMENT.name, "does not begin as a WAL segment does"),
        (make_wal(SEGMENT), SEGMENT.next().name, "not what its name says"),
        (make_wal(SEGMENT), Segment(2, SEGMENT.number, MIB).name, "not what its name says"),
        (make_wal(SEGMENT), "0000000300000001000012FF", "cannot be a segment of 1 MiB"),
    ],
)
def test_what_is_not_the_segment_of_its_name(content: bytes, name: str, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        inspect(content, name)


def test_a_new_timeline_begins_with_pages_of_its_parent() -> None:
    child = Segment(4, SEGMENT.number, MIB)
    assert inspect(make_wal(SEGMENT), child.name).segment == child


def test_the_identity_is_in_the_first_page() -> None:
    assert read_identity(make_wal(SEGMENT)[:PAGE], "x") == (str(CLUSTER), MIB)
