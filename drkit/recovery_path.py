"""What is stored of a PostgreSQL log, and how far replay gets along one line of timelines.

A *path* is the line that leads to a timeline: its ancestors, each up to the position at which it was left, then the
timeline itself without an end. Replay needs every byte along the path from a base's stop position on. Around a switch
PostgreSQL asks for the newest timeline's copy of the segment first and falls back to older ones (xlog.c,
XLogFileReadAnyTLI); that copy begins with the parent's bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from drkit.log_documents import LogManifest, LogRecord
from drkit.wal import (
    DEFAULT_SEGMENT_BYTES,
    Segment,
    Switch,
    parse_history_name,
    parse_lsn,
    parse_partial_name,
    segment_number,
    segment_of,
)


@dataclass(frozen=True)
class BasePoint:
    """A base backup, which is consistent at ``stop_lsn`` and brings the WAL up to there along."""

    artifact_id: str
    timeline: int
    start_lsn: int
    stop_lsn: int
    stop_at: datetime
    stored_bytes: int
    plain_bytes: int


class LogFile(NamedTuple):
    """A stored file of the log; ``name`` as stored, positions 0 for a history file.

    A partial segment reaches to ``end_lsn``, less than a whole segment. The stamps are those of the first and last
    commit inside, None when there is none or when they are not known. ``made_at``: everything inside was written to the
    log before it.
    """

    name: str
    kind: Literal["segment", "partial", "history"]
    timeline: int
    start_lsn: int
    end_lsn: int
    first_commit_at: datetime | None
    last_commit_at: datetime | None
    stored_bytes: int
    made_at: datetime


@dataclass(frozen=True)
class LogState:
    """All that planning looks at: bases, stored files in any order, and the histories that were read.

    A file that is no whole segment of ``segment_bytes`` is never taken for one. ``policy`` is for hints only.
    """

    bases: Sequence[BasePoint]
    files: Sequence[LogFile]
    histories: Mapping[int, tuple[Switch, ...]]
    segment_bytes: int = DEFAULT_SEGMENT_BYTES
    policy: str = "POLICY"


@dataclass(frozen=True)
class Leg:
    """The part of a path that lies on one timeline; ``end_lsn`` is None for the last."""

    timeline: int
    begin_lsn: int
    end_lsn: int | None

    def holds(self, base: BasePoint) -> bool:
        """Say whether the path goes through the place where a base became consistent."""
        if base.timeline != self.timeline or base.stop_lsn < self.begin_lsn:
            return False
        return self.end_lsn is None or base.stop_lsn <= self.end_lsn


Path = tuple[Leg, ...]


@dataclass(frozen=True)
class Stretch:
    """WAL without a gap along a path, from where a base became consistent.

    ``clipped``: the last file goes on beyond ``to_lsn`` on a timeline that the path has left, so its stamps tell
    nothing about the path.
    """

    base: BasePoint
    to_lsn: int
    files: Sequence[LogFile]
    clipped: bool = False

    @property
    def stamped(self) -> Sequence[LogFile]:
        """Return the files whose stamps count."""
        return self.files[:-1] if self.clipped else self.files

    @property
    def last_commit_at(self) -> datetime | None:
        """Return the newest commit stamp that is known."""
        return newest_commit(self.stamped)

    @property
    def end_at(self) -> datetime:
        """Return the last moment that the stretch is known to hold."""
        last = self.last_commit_at
        return self.base.stop_at if last is None else max(self.base.stop_at, last)


def newest_commit(files: Iterable[LogFile]) -> datetime | None:
    """Return the newest commit stamp of some files; stamps may run backwards when a server's clock did."""
    return max((item.last_commit_at for item in files if item.last_commit_at is not None), default=None)


@dataclass
class LogIndex:
    """A `LogState` in tables by timeline and segment number."""

    state: LogState
    full: dict[int, dict[int, LogFile]] = field(default_factory=lambda: defaultdict(dict))
    partial: dict[int, dict[int, LogFile]] = field(default_factory=lambda: defaultdict(dict))
    history: dict[int, LogFile] = field(default_factory=dict)
    _stored_on: dict[Path, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.state.segment_bytes
        for item in self.state.files:
            number, offset = divmod(item.start_lsn, size)
            if item.kind == "history":
                self.history[item.timeline] = item
            elif offset:
                continue
            elif item.kind == "segment" and item.end_lsn - item.start_lsn == size:
                self.full[item.timeline][number] = item
            elif item.kind == "partial" and item.start_lsn < item.end_lsn <= item.start_lsn + size:
                known = self.partial[item.timeline].get(number)
                if known is None or known.end_lsn < item.end_lsn:
                    self.partial[item.timeline][number] = item

    def timelines(self) -> list[int]:
        """Return the timelines of which WAL or a base is stored, lowest first."""
        stored = {line for table in (self.full, self.partial) for line, files in table.items() if files}
        return sorted(stored | {base.timeline for base in self.state.bases})

    def path_to(self, timeline: int) -> Path | None:
        """Return the path to a timeline; None when its history is not stored and no base was taken on it."""
        switches = self.state.histories.get(timeline, ())
        if not switches and timeline != 1 and all(base.timeline != timeline for base in self.state.bases):
            return None
        begins = [0, *(switch.at_lsn for switch in switches)]
        legs = [Leg(switch.timeline, begin, switch.at_lsn) for begin, switch in zip(begins, switches, strict=False)]
        return (*legs, Leg(timeline, begins[-1], None))

    def bases_on(self, path: Path) -> list[BasePoint]:
        """Return the bases that the path goes through, in its order."""
        found = [base for base in self.state.bases if any(leg.holds(base) for leg in path)]
        return sorted(found, key=lambda base: (base.stop_lsn, base.stop_at, base.artifact_id))

    def owned(self, path: Path) -> Iterator[tuple[int, int, int | None]]:
        """Return timeline, first and last segment number (None: no last) of each leg that has segments of its own.

        The segment in which a timeline begins is that timeline's, not its parent's.
        """
        size = self.state.segment_bytes
        firsts = [leg.begin_lsn // size for leg in path]
        for position, leg in enumerate(path):
            last = firsts[position + 1] - 1 if position + 1 < len(path) else None
            if last is None or firsts[position] <= last:
                yield leg.timeline, firsts[position], last

    def segment_at(self, path: Path, lsn: int) -> Segment:
        """Return the segment that replay along the path asks for first when it needs the byte at ``lsn``."""
        number = lsn // self.state.segment_bytes
        owner = next(
            line for line, first, last in self.owned(path) if first <= number and (last is None or number <= last)
        )
        return segment_of(lsn, owner, self.state.segment_bytes)

    def walk(self, path: Path, base: BasePoint) -> Stretch:
        """Follow the path from a base until WAL is missing."""
        files: list[LogFile] = []
        number = base.stop_lsn // self.state.segment_bytes
        for timeline, _, last in self.owned(path):
            table = self.full.get(timeline, {})
            while (last is None or number <= last) and (item := table.get(number)) is not None:
                files.append(item)
                number += 1
            if last is None or number <= last:
                break
        to_lsn = max(base.stop_lsn, number * self.state.segment_bytes if files else 0)
        item, end_lsn = self._piece(path, number)
        if item is None or end_lsn <= to_lsn:
            return Stretch(base, to_lsn, files)
        return Stretch(base, end_lsn, [*files, item], clipped=end_lsn < item.end_lsn)

    def _piece(self, path: Path, number: int) -> tuple[LogFile | None, int]:
        """Return what else there is of a segment that is not there whole, and how far it goes.

        A partial segment, or a segment of a timeline that the path leaves inside of it: both can only be the last.
        """
        best: tuple[LogFile | None, int] = (None, 0)
        for leg in path:
            if leg.begin_lsn // self.state.segment_bytes > number:
                continue
            for table in (self.full, self.partial):
                item = table.get(leg.timeline, {}).get(number)
                if item is not None:
                    end_lsn = item.end_lsn if leg.end_lsn is None else min(item.end_lsn, leg.end_lsn)
                    best = max(best, (item, end_lsn), key=lambda piece: piece[1])
        return best

    def next_stored(self, path: Path, lsn: int) -> int | None:
        """Return the number of the first segment, partial or not, that is stored on the path at or after ``lsn``."""
        numbers = self._stored(path)
        position = bisect_left(numbers, -(-lsn // self.state.segment_bytes))
        return numbers[position] if position < len(numbers) else None

    def stored_end(self, path: Path) -> int:
        """Return the position up to which anything is stored on the path, 0 for nothing."""
        numbers = self._stored(path)
        return self._piece(path, numbers[-1])[1] if numbers else 0

    def _stored(self, path: Path) -> list[int]:
        if path not in self._stored_on:
            numbers: set[int] = set()
            for timeline, first, last in self.owned(path):
                for table in (self.full, self.partial):
                    stored = table.get(timeline, ())
                    numbers.update(item for item in stored if first <= item and (last is None or item <= last))
            self._stored_on[path] = sorted(numbers)
        return self._stored_on[path]


def log_file(record: LogRecord, manifest: LogManifest) -> LogFile:
    """Make a `LogFile` of an entry of a log manifest; raise ValueError when its name is not one of its kind.

    A backup history file is not one that recovery asks for.
    """
    if record.kind == "backup":
        raise ValueError(f'"{record.part}" is not part of the log itself')
    start_lsn, end_lsn = _span(record.part, record.kind, manifest.segment_bytes)
    # By place, which takes half the time: a long log has a hundred thousand.
    return LogFile(
        record.part,
        record.kind,
        manifest.timeline,
        start_lsn,
        parse_lsn(record.end_lsn) if record.end_lsn else end_lsn,
        record.first_commit_at,
        record.last_commit_at,
        record.stored_bytes,
        record.stored_at or manifest.made_at,
    )


def _span(name: str, kind: str, segment_bytes: int) -> tuple[int, int]:
    if kind == "history":
        parse_history_name(name)
        return 0, 0
    if kind == "segment":
        start_lsn = segment_number(name, segment_bytes) * segment_bytes
        return start_lsn, start_lsn + segment_bytes
    segment, _ = parse_partial_name(name, segment_bytes)
    return segment.start_lsn, segment.start_lsn
