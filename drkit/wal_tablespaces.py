"""Finding in WAL where a tablespace is created: replay would do it again, at the very path of the source.

A record may be split over pages, so page headers are taken out before it is looked for; it may also be split over two
segments, so the ends of neighbours are looked at together (xlogrecord.h, commands/tablespace.h).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from drkit.wal_pages import PAGE_BYTES, Buffer

_LONG_HEADER_BYTES, _SHORT_HEADER_BYTES = 40, 24
_IS_LONG = 0x0002
_RECORD_BYTES = 24
_PIECE_BYTES = 32 * PAGE_BYTES
_REACH_BYTES = 4096
"""More than a record with the longest path takes."""

_TAIL = re.compile(
    rb"\x00\x05\x00\x00"  # info XLOG_TBLSPC_CREATE, resource manager RM_TBLSPC_ID, padding
    rb".{4}"  # the record's checksum
    rb"(?:\xfd.{2})?(?:\xfc.{4})?"  # replication origin, top-level transaction
    rb"(?:\xff(?P<short>.)|\xfe(?P<long>.{4}))"  # length of what follows
    rb"(?P<oid>.{4})(?P<path>/[^\0]{0,1023})\0",
    re.DOTALL,
)
_INFO = b"\x00\x05\x00\x00"
_BEFORE_INFO_BYTES = 16
_ALIGNED_BYTES = 8
_MANAGER = re.compile(rb"\x05")


@dataclass(frozen=True)
class TablespaceCreation:
    """A tablespace that the WAL creates: its number, and the folder on the source."""

    oid: int
    path: str


@dataclass(frozen=True)
class SegmentEnds:
    """The first and last bytes of a segment's payload, for records that cross its borders."""

    head: bytes
    tail: bytes


def find_creations(content: Buffer) -> tuple[list[TablespaceCreation], SegmentEnds]:
    """Return the tablespaces that one segment creates, and its ends for `find_across`."""
    if not _may_create(content):
        return [], _ends(content)
    found: list[TablespaceCreation] = []
    head = tail = b""
    for payload in _payloads(content):
        head = head or payload[:_REACH_BYTES]
        found += (creation for _, end, creation in _found(tail + payload) if end > len(tail))
        tail = (tail + payload)[-_REACH_BYTES:]
    return found, SegmentEnds(head, tail)


def _may_create(content: Buffer) -> bool:
    """Tell whether what such a record has behind its position is anywhere where a record can have it.

    Nearly no segment has it, and looking for it, headers and all, takes a fifth of the time of looking for the record.
    """
    view = memoryview(content)
    for first in range(0, len(content), _PIECE_BYTES):
        piece = bytes(view[first : first + _PIECE_BYTES])
        for candidate in _MANAGER.finditer(piece[1::_ALIGNED_BYTES]):
            if piece.startswith(_INFO, candidate.start() * _ALIGNED_BYTES):
                return True
    return False


def _ends(content: Buffer) -> SegmentEnds:
    last_whole_page = max(len(content) // PAGE_BYTES - 1, 0) * PAGE_BYTES
    head = next(_payloads(content[:PAGE_BYTES]), b"")
    tail = b"".join(_payloads(content[last_whole_page:]))
    return SegmentEnds(head[:_REACH_BYTES], tail[-_REACH_BYTES:])


def find_across(before: SegmentEnds, after: SegmentEnds) -> list[TablespaceCreation]:
    """Return the tablespaces whose records begin in one segment and end in the next."""
    border = len(before.tail)
    return [creation for start, end, creation in _found(before.tail + after.head) if start < border < end]


def _payloads(content: Buffer) -> Iterator[bytes]:
    """Yield what is behind the headers of some pages at a time: a whole segment's would need new memory each time."""
    view = memoryview(content)
    for first in range(0, len(content), _PIECE_BYTES):
        pieces = []
        for start in range(first, min(first + _PIECE_BYTES, len(content)), PAGE_BYTES):
            is_long = view[start + 2] & _IS_LONG if start + 2 < len(content) else 0
            header_bytes = _LONG_HEADER_BYTES if is_long else _SHORT_HEADER_BYTES
            pieces.append(view[start + header_bytes : start + PAGE_BYTES])
        yield b"".join(pieces)


def _found(payload: bytes) -> Iterator[tuple[int, int, TablespaceCreation]]:
    """Yield what is created in a payload, with the beginning and the end of each record.

    Records begin at multiples of eight, page headers are multiples of eight, and so every eighth byte is enough to see
    whether a record of the right manager may be there.
    """
    for candidate in _MANAGER.finditer(payload[1::_ALIGNED_BYTES]):
        position = candidate.start() * _ALIGNED_BYTES
        match = _TAIL.match(payload, position)
        start = position - _BEFORE_INFO_BYTES
        if match is None or start < 0:
            continue
        (total_bytes,) = struct.unpack_from("<I", payload, start)
        long = match["long"]
        data_bytes = struct.unpack("<I", long)[0] if long else match["short"][0]
        path = match["path"]
        if data_bytes == len(path) + 5 and total_bytes == match.end() - start:
            creation = TablespaceCreation(int.from_bytes(match["oid"], "little"), path.decode(errors="surrogateescape"))
            yield start, match.end(), creation
