"""WAL positions, segments, file names and history files: PostgreSQL's arithmetic, as pure functions.

A position (LSN) is an ``int``, the number of bytes since the beginning of all WAL; it is text only where people and
documents see it. The names are those of xlog_internal.h; how long a segment is was fixed when the cluster was made
(``initdb --wal-segsize``), so it is never assumed here.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal, Self

from drkit.errors import IntegrityError
from drkit.units import MIB

DEFAULT_SEGMENT_BYTES = 16 * MIB
MAX_TIMELINE = 0xFFFFFFFF

FileKind = Literal["segment", "partial", "history", "backup"]

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_PARTIAL = re.compile(r"(?P<segment>[0-9A-F]{24})\.partial(?:-(?P<count>[1-9][0-9]{0,9}))?")
_HISTORY = re.compile(r"(?P<timeline>[0-9A-F]{8})\.history")
_BACKUP = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
_ARCHIVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.]{0,63}")
_HISTORY_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s.*)?")


def parse_lsn(text: str) -> int:
    """Read a position as PostgreSQL writes it, ``0/3000028``; raise ValueError for anything else."""
    match = _LSN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'"{text}" is not a WAL position; write it like 0/3000028')
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """Write a position as PostgreSQL does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, order=True)
class Segment:
    """One WAL file: ``number`` counts segments of ``segment_bytes`` from the beginning of all WAL.

    Raise ValueError for a timeline, number or size that PostgreSQL cannot have.
    """

    timeline: int
    number: int
    segment_bytes: int

    def __post_init__(self) -> None:
        check_segment_bytes(self.segment_bytes)
        if not 1 <= self.timeline <= MAX_TIMELINE:
            raise ValueError(f"{self.timeline} is not a timeline")
        if not 0 <= self.number < (1 << 64) // self.segment_bytes:
            raise ValueError(f"{self.number} is not a segment number")

    @property
    def name(self) -> str:
        """Return the file name: timeline, then the number in two halves of which the second counts within 4 GiB."""
        high, low = divmod(self.number, (1 << 32) // self.segment_bytes)
        return f"{self.timeline:08X}{high:08X}{low:08X}"

    @property
    def start_lsn(self) -> int:
        """Return the position of its first byte."""
        return self.number * self.segment_bytes

    @property
    def end_lsn(self) -> int:
        """Return the position after its last byte."""
        return self.start_lsn + self.segment_bytes

    def next(self) -> Segment:
        """Return the segment that follows on the same timeline."""
        return Segment(self.timeline, self.number + 1, self.segment_bytes)

    @classmethod
    def parse(cls, name: str, segment_bytes: int) -> Self:
        """Read a segment's file name; raise ValueError for another kind of name, or one of another segment size."""
        check_segment_bytes(segment_bytes)
        number = segment_number(name, segment_bytes)
        return cls(int(name[:8], 16), number, segment_bytes)


def segment_number(name: str, segment_bytes: int) -> int:
    """Return what `Segment.parse` finds as its number, of a size that is known to be one; a long log asks often."""
    if _SEGMENT.fullmatch(name) is None:
        raise ValueError(f'"{name}" is not the name of a WAL segment')
    high, low = int(name[8:16], 16), int(name[16:24], 16)
    per_4_gib = (1 << 32) // segment_bytes
    if low >= per_4_gib:
        raise ValueError(f'"{name}" cannot be a segment of {segment_bytes // MIB} MiB')
    return high * per_4_gib + low


def check_segment_bytes(segment_bytes: int) -> None:
    """Raise ValueError unless it is a power of two from 1 MiB to 1 GiB, which is all that initdb accepts."""
    if not MIB <= segment_bytes <= 1024 * MIB or segment_bytes & (segment_bytes - 1):
        raise ValueError(f"{segment_bytes} bytes is not a WAL segment size (a power of two from 1 MiB to 1 GiB)")


def segment_of(lsn: int, timeline: int, segment_bytes: int) -> Segment:
    """Return the segment that holds the byte at ``lsn``; a position on a border belongs to the later segment."""
    return Segment(timeline, lsn // segment_bytes, segment_bytes)


def classify(name: str) -> FileKind | None:
    """Say what kind of file an archiver was given; None for a name that PostgreSQL does not use.

    Kept partial segments (``….partial-3``) are partial too. None is no reason to refuse: a name is storable when
    `is_archive_name` says so.
    """
    if _SEGMENT.fullmatch(name):
        return "segment"
    if _PARTIAL.fullmatch(name):
        return "partial"
    if _HISTORY.fullmatch(name):
        return "history"
    if _BACKUP.fullmatch(name):
        return "backup"
    return None


def is_archive_name(name: str) -> bool:
    """Say whether archive_command may give this name: up to 64 ASCII letters, digits and dots.

    That is what the manual promises under "Setting Up WAL Archiving". Anything else (a slash, a leading dot) is not a
    file name to store under, whoever sends it.
    """
    return _ARCHIVE_NAME.fullmatch(name) is not None


def partial_name(segment_name: str, count: int) -> str:
    """Return the name under which the ``count``-th copy (from 1) of an unfinished segment is kept, never reused."""
    return f"{segment_name}.partial-{count}"


def parse_partial_name(name: str, segment_bytes: int) -> tuple[Segment, int]:
    """Read a partial's name as its segment and count, 0 for PostgreSQL's own ``.partial``; ValueError otherwise."""
    match = _PARTIAL.fullmatch(name)
    if match is None:
        raise ValueError(f'"{name}" is not the name of a partial WAL segment')
    return Segment.parse(match["segment"], segment_bytes), int(match["count"] or 0)


def history_name(timeline: int) -> str:
    """Return the name of the file that says where a timeline comes from."""
    return f"{timeline:08X}.history"


def parse_history_name(name: str) -> int:
    """Return the timeline of a history file's name; raise ValueError for another name."""
    match = _HISTORY.fullmatch(name)
    if match is None:
        raise ValueError(f'"{name}" is not the name of a timeline history file')
    return int(match["timeline"], 16)


def timeline_of(name: str) -> int:
    """Return the timeline that any of PostgreSQL's archive names begins with; raise ValueError for other names."""
    if classify(name) is None:
        raise ValueError(f'"{name}" is not the name of a WAL file')
    return int(name[:8], 16)


@dataclass(frozen=True)
class Switch:
    """One ancestor in a timeline's history: the ancestor's number, and the position at which it was left."""

    timeline: int
    at_lsn: int


def parse_history(timeline: int, text: str) -> tuple[Switch, ...]:
    """Read the history file of ``timeline``: its ancestors, oldest first.

    Raise IntegrityError for a line that is no entry, for ancestors or positions that run backwards, and for a file
    without any ancestor: a timeline that comes from nowhere leads to no base.
    """
    switches: list[Switch] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _HISTORY_LINE.fullmatch(line)
        if match is None:
            raise IntegrityError(f"history of timeline {timeline}: not an entry: {line.strip()[:80]!r}")
        switches.append(Switch(int(match[1]), parse_lsn(match[2])))
    numbers = [0, *(switch.timeline for switch in switches), timeline]
    if not switches or any(older >= newer for older, newer in itertools.pairwise(numbers)):
        raise IntegrityError(f"history of timeline {timeline}: its ancestors are not in order: {numbers[1:-1]}")
    places = [switch.at_lsn for switch in switches]
    if places != sorted(places):
        raise IntegrityError(f"history of timeline {timeline}: its positions run backwards")
    return tuple(switches)
