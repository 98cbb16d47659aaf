"""Entries of MongoDB's oplog as raw bytes: where one ends, and when it was written. Nothing else of them is decoded.

A place in the oplog is a BSON timestamp: seconds since 1970 and a number within the second, written ``seconds:number``.
Entries have growing timestamps, and no two of one history have the same, but those of a transaction on SecantusDB.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from drkit.bson_elements import LARGEST_DOCUMENT_BYTES, TIMESTAMP, find_value
from drkit.errors import IntegrityError

_SMALLEST_DOCUMENT_BYTES = 5
_MOST = 0xFFFFFFFF
_LENGTH = struct.Struct("<i")
_TIMESTAMP = struct.Struct("<II")
_TS = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")
_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})-([0-9A-F]{8})([0-9A-F]{8})")


class OplogTs(NamedTuple):
    """A place in the oplog; compared like a pair of numbers, which is the order of the entries."""

    seconds: int
    increment: int

    def __str__(self) -> str:
        """Write it as documents and users do: ``1795361400:7``."""
        return f"{self.seconds}:{self.increment}"

    @property
    def moment(self) -> datetime:
        """Return the second in which the entry was written."""
        return datetime.fromtimestamp(self.seconds, UTC)

    @classmethod
    def parse(cls, text: str) -> OplogTs:
        """Read ``seconds:increment``; raise ValueError for anything else."""
        match = _TS.fullmatch(text.strip())
        if match is None or max(int(match[1]), int(match[2])) > _MOST:
            raise ValueError(f'"{text}" is not a place in the oplog; write it like 1795361400:7')
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, timestamp: Any) -> OplogTs:
        """Take over a ``bson.Timestamp``."""
        return cls(timestamp.time, timestamp.inc)


@dataclass(frozen=True)
class Anchor:
    """The entry behind which to go on; ``sha256`` is of its bytes, empty where they were never seen."""

    ts: OplogTs
    sha256: str = ""


def slice_name(from_ts: OplogTs, to_ts: OplogTs) -> str:
    """Return the stored name of the entries after ``from_ts``, up to ``to_ts`` included; names sort like places."""
    return "-".join(f"{ts.seconds:08X}{ts.increment:08X}" for ts in (from_ts, to_ts))


def parse_slice_name(name: str) -> tuple[OplogTs, OplogTs] | None:
    """Return the range that a slice's name says; None when it is no such name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    numbers = [int(part, 16) for part in match.groups()]
    return OplogTs(numbers[0], numbers[1]), OplogTs(numbers[2], numbers[3])


def split_entries(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the documents that follow on each other in ``chunks`` of any size, one by one.

    Raise IntegrityError at the first byte that cannot be right, and at the end when the last document is not whole.
    """
    rest = b""
    for chunk in chunks:
        buffer = rest + chunk if rest else chunk
        position = 0
        for start, end in document_spans(buffer):
            yield buffer[start:end]
            position = end
        rest = buffer[position:]
    if rest:
        raise IntegrityError("the oplog is damaged: it ends in the middle of an entry")


def document_spans(buffer: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield where each whole document in ``buffer`` starts and ends; what is left at the end is not whole yet."""
    available, position = len(buffer), 0
    while available - position >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer, position)
        if not _SMALLEST_DOCUMENT_BYTES <= length <= LARGEST_DOCUMENT_BYTES:
            raise IntegrityError(f"the oplog is damaged: an entry says it has {length:,} bytes")
        end = position + length
        if end > available:
            return
        if buffer[end - 1]:
            raise IntegrityError("the oplog is damaged: an entry has no end")
        yield position, end
        position = end


def read_ts(entry: bytes) -> OplogTs:
    """Return when an entry was written; raise IntegrityError when it does not say."""
    found = find_value(entry, b"ts")
    if found is None or found[0] != TIMESTAMP:
        raise IntegrityError("the oplog is damaged: an entry has no timestamp")
    increment, seconds = _TIMESTAMP.unpack_from(entry, found[1])
    return OplogTs(seconds, increment)


class OplogDisorder(IntegrityError):
    """An entry has an earlier place than the one before it: the log cannot be followed there."""


@dataclass
class OplogSpan:
    """What is known of some entries that follow on each other: how many, and the first and the last of them."""

    entries: int = 0
    first_ts: OplogTs | None = None
    last_ts: OplogTs | None = None
    last_sha256: str = ""

    def add(self, batch: bytes | memoryview) -> None:
        """Take whole entries in their order.

        Raise OplogDisorder where places do not grow or an entry comes twice, IntegrityError for other damage; then none
        of them was taken.
        """
        count, whole, first_ts, last_ts, last = 0, 0, self.first_ts, self.last_ts, b""
        for start, end in document_spans(batch):
            entry = bytes(batch[start:end])
            ts = read_ts(entry)
            if last_ts is not None and ts <= last_ts:
                again = entry == last if count else hashlib.sha256(entry).hexdigest() == self.last_sha256
                if ts < last_ts or again:
                    raise OplogDisorder(f"the oplog is damaged: entry {ts} does not follow on {last_ts}")
            count, whole, first_ts, last_ts, last = count + 1, end, first_ts or ts, ts, entry
        if whole != len(batch):
            raise IntegrityError("the oplog is damaged: it ends in the middle of an entry")
        if count:
            self.entries += count
            self.first_ts, self.last_ts, self.last_sha256 = first_ts, last_ts, hashlib.sha256(last).hexdigest()
