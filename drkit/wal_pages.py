"""What a WAL file says of itself: whose it is, how far it reaches, and when its first and last commit were.

Only page headers are read, and the few records around the first and the last commit; the layout is that of
xlog_internal.h, xlogrecord.h and xact.h, the same since PostgreSQL 9.5. Little-endian servers only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from drkit.errors import IntegrityError
from drkit.wal import Segment, format_lsn

PAGE_BYTES = 8192

_SHORT_HEADER_BYTES = 24
_LONG_HEADER_BYTES = 40
_SHORT = struct.Struct("<HHIQI")
_LONG = struct.Struct("<QII")
_RECORD = struct.Struct("<IIQBB2xI")
_HEADERS = [
    ("magic", "<u2"),
    ("info", "<u2"),
    ("timeline", "<u4"),
    ("address", "<u8"),
    ("rest", f"V{PAGE_BYTES - 16}"),
]
"""Pages as numpy sees them."""
_CONTINUING = struct.Struct("<16xI4xI4xI")
"""How much of a record a page continues, and the word at 16 in the record's header if 16 or 8 bytes are before it."""
_MAGICS = (0xD0, 0xD1)
_BLOCK_PAGES = 128
_CONTINUED = 0x0001
_IS_LONG = 0x0002

_TRANSACTION = 1
_OPERATION = 0x70
_COMMITS = (0x00, 0x30)
_WORD = struct.Struct("<I")
_TELLING_AT = 16
_TELLING = 0xFFFFFF40
_TOLD = _TRANSACTION << 8
"""What is the same in every commit of the word at 16, which has info, manager and two bytes of padding."""
_ORIGIN, _TOP_TRANSACTION, _LONG_DATA, _SHORT_DATA = 253, 252, 254, 255
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST_MICROSECONDS = 3_155_760_000_000_000  # the year 2100: what is beyond is no stamp

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class WalFacts:
    """What is inside one segment, finished or not. ``end_lsn`` is where its last whole record ends.

    ``system_identifier`` is the cluster's, as PostgreSQL shows it; the stamps are None when there is no commit inside.
    """

    segment: Segment
    system_identifier: str
    end_lsn: int
    first_commit_at: datetime | None
    last_commit_at: datetime | None


def read_identity(first_page: Buffer, name: str) -> tuple[str, int]:
    """Return system identifier and segment size of the cluster that wrote a segment; raise IntegrityError if none did.

    ``name`` is for the message only.
    """
    if len(first_page) < _LONG_HEADER_BYTES:
        raise IntegrityError(f"{name} is too short for a WAL segment")
    magic, info, *_ = _SHORT.unpack_from(first_page)
    system_identifier, segment_bytes, page_bytes = _LONG.unpack_from(first_page, _SHORT_HEADER_BYTES)
    if magic >> 8 not in _MAGICS:
        raise IntegrityError(f"{name} does not begin as a WAL segment does")
    if not info & _IS_LONG or page_bytes != PAGE_BYTES:
        raise IntegrityError(f"{name} does not begin as a WAL segment of {PAGE_BYTES}-byte pages does")
    return str(system_identifier), segment_bytes


def begins_page(header: Buffer, segment: Segment, offset: int) -> bool:
    """Say whether a page of ``segment`` begins at ``offset``; in a file that is used again others do."""
    if len(header) < _SHORT_HEADER_BYTES:
        return False
    magic, _, timeline, address, _ = _SHORT.unpack_from(header)
    return magic >> 8 in _MAGICS and timeline <= segment.timeline and address == segment.start_lsn + offset


class CommitSearch:
    """Looks for the first commit of a segment while it is written, so that `inspect` need not look there again."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._ended = False
        self.quiet_pages = 0
        """In how many pages from the first on no commit begins."""

    def look(self, content: Buffer, finished_bytes: int) -> None:
        """Go on in a segment of which so much is finished; whatever may be a commit is left to `inspect`.

        A page is only looked at once the page behind it is finished too, into which a commit may reach.
        """
        pages = _Pages(content, self._segment, finished_bytes // PAGE_BYTES)
        while not self._ended and self.quiet_pages + _BLOCK_PAGES < pages.count:
            self._ended = bool(pages.suspects(self.quiet_pages))
            self.quiet_pages += 0 if self._ended else _BLOCK_PAGES


def inspect(content: Buffer, name: str, *, quiet_pages: int = 0) -> WalFacts:
    """Read a segment's own account; ``name`` is its segment name, ``quiet_pages`` what a `CommitSearch` has found.

    Raise IntegrityError when it is not a segment, or is another one than its name says.
    """
    system_identifier, segment_bytes = read_identity(content, name)
    try:
        segment = Segment.parse(name, segment_bytes)
    except ValueError as error:
        raise IntegrityError(str(error)) from error
    pages = _Pages(content, segment)
    if pages.count == 0:
        _, _, _, address, _ = _SHORT.unpack_from(content)
        raise IntegrityError(f"{name} holds the log from {format_lsn(address)}, which is not what its name says")
    # Where it ends is asked first, and nothing behind it is looked at: a segment may grow while it is read.
    end_lsn = pages.end_lsn()
    pages.cut(end_lsn)
    blocks = range(quiet_pages, pages.count, _BLOCK_PAGES)
    first = next((found for block in blocks for page in pages.suspects(block) for found in pages.commits(page)), None)
    last = None
    for page in (page for block in reversed(blocks) for page in reversed(pages.suspects(block))) if first else ():
        for last in pages.commits(page):  # noqa: B007 - the last one of the last page that has any
            pass
        if last:
            break
    return WalFacts(segment, system_identifier, end_lsn, first, last)


def goes_on(content: Buffer, name: str, lsn: int, since_lsn: int) -> bool:
    """Tell whether a whole record begins at a position of a segment and follows on one from ``since_lsn`` on.

    A standby writes over segments that it used before, so what is behind its last record may look like one.
    """
    pages = _Pages(content, inspect(content, name).segment)
    page, offset = divmod(lsn - pages.segment.start_lsn, PAGE_BYTES)
    header_bytes = _LONG_HEADER_BYTES if page == 0 else _SHORT_HEADER_BYTES
    record = pages.record(page, max(offset - header_bytes, 0)) if page < pages.count else None
    return record is not None and since_lsn <= _RECORD.unpack_from(record)[2] < lsn


class _Pages:
    """The pages of one segment that were written; the rest of the file is zeros, or what it was before."""

    def __init__(self, content: Buffer, segment: Segment, count: int | None = None) -> None:
        self.content = memoryview(content)
        self.segment = segment
        self.magic = _SHORT.unpack_from(content)[0]
        self.count = self._count() if count is None else count

    def _count(self) -> int:
        import numpy as np

        whole = len(self.content) // PAGE_BYTES
        headers = np.frombuffer(self.content, _HEADERS, whole)
        address = self.segment.start_lsn + PAGE_BYTES * np.arange(whole, dtype=np.uint64)
        written = (headers["magic"] == self.magic) & (headers["address"] == address)
        written &= headers["timeline"] <= self.segment.timeline
        return whole if written.all() else int(written.argmin())

    def cut(self, end_lsn: int) -> None:
        """Forget what is in the segment from a position on."""
        self.content = self.content[: end_lsn - self.segment.start_lsn]
        self.count = -(-len(self.content) // PAGE_BYTES)

    def _payload(self, page: int) -> memoryview:
        start = page * PAGE_BYTES
        return self.content[start + self._header_bytes(page) : start + PAGE_BYTES]

    @staticmethod
    def _header_bytes(page: int) -> int:
        return _SHORT_HEADER_BYTES if page else _LONG_HEADER_BYTES

    def _first_record(self, page: int) -> int:
        """Return where in a page's payload the first record begins that begins there, or the payload's end."""
        _, info, _, _, remaining = _SHORT.unpack_from(self.content, page * PAGE_BYTES)
        start = _aligned(remaining) if info & _CONTINUED else 0
        return min(start, PAGE_BYTES - self._header_bytes(page))

    def commits(self, page: int) -> Iterator[datetime]:
        """Yield the stamps of the commits that begin in a page."""
        for record in self._records(page):
            stamp = _commit_stamp(record)
            if stamp is not None:
                yield stamp

    def suspects(self, block: int) -> list[int]:
        """Return those of the pages from ``block`` on in which a commit can begin, without looking at each record.

        A bulk load fills segments with nothing but rows, and records begin at multiples of 8: so what tells a commit is
        in one of these words, unless the record's header reaches into the next page.
        """
        import numpy as np

        start = block * PAGE_BYTES
        size_bytes = min(_BLOCK_PAGES * PAGE_BYTES, len(self.content) - start)
        words = np.frombuffer(self.content, "<u8", size_bytes // 8, start)
        found = set(self._crossing(block, size_bytes // PAGE_BYTES))
        for place in np.flatnonzero(words & _TELLING == _TOLD).tolist():
            page, position = divmod(8 * place - _TELLING_AT, PAGE_BYTES)
            if block + page not in found and position >= _SHORT_HEADER_BYTES:
                header = start + page * PAGE_BYTES + position
                if _may_be_commit(self.content[header : header + _RECORD.size]):
                    found.add(block + page)
        return sorted(found)

    def _crossing(self, block: int, count: int) -> list[int]:
        """Return which of ``count`` pages end with the beginning of a commit's header that reaches into the next page.

        As much is missing of such a record as the next page says that it continues.
        """
        import numpy as np

        behind = (block + count) * PAGE_BYTES
        pages = np.frombuffer(self.content, f"({PAGE_BYTES // 4},)<u4", count, block * PAGE_BYTES)
        rest, behind_16, behind_8 = pages[1:, 4], pages[1:, 6], pages[1:, 8]
        if len(self.content) >= behind + _CONTINUING.size:
            last = _CONTINUING.unpack_from(self.content, behind)
            rest, behind_16, behind_8 = map(np.append, (rest, behind_16, behind_8), last)
        at_16, at_8 = pages[: len(rest), -4], pages[: len(rest), -2]
        crossing = (at_16 == 16 + rest) & (behind_16 & _TELLING == _TOLD)
        crossing |= (at_8 == 8 + rest) & (behind_8 & _TELLING == _TOLD)
        return [block + page for page in np.flatnonzero(crossing).tolist()]

    def _records(self, page: int) -> Iterator[bytes]:
        """Yield the whole records that begin in a page; one may reach into the next pages."""
        payload = self._payload(page)
        position = self._first_record(page)
        while position < len(payload):
            record = self.record(page, position)
            if record is None:
                return
            yield record
            position = _aligned(position + len(record))

    def record(self, page: int, position: int) -> bytes | None:
        """Return one record, put together over pages; None where none was written, or not yet whole."""
        head = self._bytes_at(page, position, _RECORD.size)
        if len(head) < _RECORD.size:
            return None
        total_bytes = _RECORD.unpack(head)[0]
        if total_bytes < _RECORD.size:
            return None
        record = self._bytes_at(page, position, total_bytes)
        return record if len(record) == total_bytes else None

    def _bytes_at(self, page: int, position: int, size_bytes: int) -> bytes:
        pieces: list[memoryview] = []
        while size_bytes > 0 and page < self.count:
            piece = self._payload(page)[position : position + size_bytes]
            pieces.append(piece)
            size_bytes -= len(piece)
            page, position = page + 1, 0
        return b"".join(pieces)

    def end_lsn(self) -> int:
        """Return where the last whole record ends."""
        for page in reversed(range(self.count)):
            position = self._first_record(page)
            end = None
            for record in self._records(page):
                end = _aligned(position + len(record))
                position = end
            if end is not None:
                return self._lsn(page, end)
            _, info, _, _, remaining = _SHORT.unpack_from(self.content, page * PAGE_BYTES)
            payload_bytes = PAGE_BYTES - self._header_bytes(page)
            if info & _CONTINUED and _aligned(remaining) < payload_bytes:
                return self._lsn(page, _aligned(remaining))
        return self.segment.start_lsn

    def _lsn(self, page: int, position: int) -> int:
        """Return the position in the log of a place in the payload from ``page`` on."""
        while (room := PAGE_BYTES - self._header_bytes(page)) < position:
            position -= room
            page += 1
        return self.segment.start_lsn + page * PAGE_BYTES + self._header_bytes(page) + position


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // 8) * 8


def _may_be_commit(header: Buffer) -> bool:
    """Tell whether the bytes can be the header of a commit."""
    if len(header) < _RECORD.size:
        return False
    total_bytes, _, _, info, _, _ = _RECORD.unpack(header)
    (telling,) = _WORD.unpack_from(header, _TELLING_AT)
    return total_bytes > _RECORD.size and telling & _TELLING == _TOLD and info & _OPERATION in _COMMITS


def _commit_stamp(record: bytes) -> datetime | None:
    _, _, _, info, manager, _ = _RECORD.unpack_from(record)
    if manager != _TRANSACTION or info & _OPERATION not in _COMMITS:
        return None
    position = _RECORD.size
    while position < len(record):
        kind = record[position]
        if kind == _ORIGIN:
            position += 3
        elif kind == _TOP_TRANSACTION:
            position += 5
        elif kind in (_SHORT_DATA, _LONG_DATA):
            position += 2 if kind == _SHORT_DATA else 5
            break
        else:
            return None
    if position + 8 > len(record):
        return None
    (microseconds,) = struct.unpack_from("<q", record, position)
    if not 0 < microseconds < _LATEST_MICROSECONDS:
        return None
    return _EPOCH + timedelta(microseconds=microseconds)
