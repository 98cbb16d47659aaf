"""Logs to plan on: short spellings for hand-made ones, and worlds drawn at random with a slow model of PostgreSQL.

The model knows nothing of `drkit.recovery`: it replays record by record, asking for segments as xlogrecovery.c does.
A world counts in units of a quarter segment; a unit is one record, which may be a commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from hypothesis import strategies as st

from drkit.recovery import BasePoint, LogFile, LogState
from drkit.units import MIB
from drkit.wal import Segment, Switch, history_name, partial_name

SEGMENT = MIB
UNIT = SEGMENT // 4
EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def base(stop_lsn: int, stop_s: float, *, timeline: int = 1, artifact_id: str = "") -> BasePoint:
    name = artifact_id or f"B{timeline}-{stop_lsn // UNIT}"
    return BasePoint(name, timeline, max(stop_lsn - UNIT, 0), stop_lsn, at(stop_s), 1000, 4000)


def segment(number: int, first_s: float | None = None, last_s: float | None = None, *, timeline: int = 1) -> LogFile:
    """Return a whole segment; it was stored with its last commit, or when its number says."""
    place = Segment(timeline, number, SEGMENT)
    first = None if first_s is None else at(first_s)
    last = first if last_s is None else at(last_s)
    made_at = last or at(number * 10)
    return LogFile(place.name, "segment", timeline, place.start_lsn, place.end_lsn, first, last, 100, made_at)


def partial(
    number: int,
    units: int,
    first_s: float | None = None,
    last_s: float | None = None,
    *,
    timeline: int = 1,
    count: int = 1,
) -> LogFile:
    """Return the first ``units`` quarters of a segment."""
    place = Segment(timeline, number, SEGMENT)
    first = None if first_s is None else at(first_s)
    last = first if last_s is None else at(last_s)
    end_lsn = place.start_lsn + units * UNIT
    name = partial_name(place.name, count)
    return LogFile(name, "partial", timeline, place.start_lsn, end_lsn, first, last, 50, last or at(number * 10))


def history(timeline: int) -> LogFile:
    return LogFile(history_name(timeline), "history", timeline, 0, 0, None, None, 10, EPOCH)


def run(numbers: range, *, timeline: int = 1) -> list[LogFile]:
    """Return whole segments of which each has commits from 10 to 19 times its number, in seconds."""
    return [segment(number, number * 10, number * 10 + 9, timeline=timeline) for number in numbers]


def log(
    bases: list[BasePoint], files: list[LogFile], histories: dict[int, tuple[Switch, ...]] | None = None
) -> LogState:
    return LogState(bases, files, histories or {}, segment_bytes=SEGMENT, policy="orders")


@dataclass
class Line:
    """One timeline of a world: the records that were really written, from ``begin`` to ``end`` in units."""

    timeline: int
    parent: Line | None
    begin: int
    end: int
    commits: dict[int, int] = field(default_factory=dict)
    """Unit to stamp, only what was written on this timeline itself."""

    @cached_property
    def path(self) -> list[tuple[Line, int, int | None]]:
        """Return line, begin and end of every leg, oldest first."""
        if self.parent is None:
            return [(self, 0, None)]
        legs = self.parent.path
        return [*legs[:-1], (legs[-1][0], legs[-1][1], self.begin), (self, self.begin, None)]

    def owner(self, unit: int) -> Line:
        return self if self.parent is None or unit >= self.begin else self.parent.owner(unit)

    def stamp(self, unit: int) -> int | None:
        return self.owner(unit).commits.get(unit)

    def clock(self, unit: int) -> int:
        """Return the newest stamp of the records before a unit, along the path."""
        return max((stamp for earlier in range(unit) if (stamp := self.stamp(earlier)) is not None), default=0)


@dataclass
class World:
    lines: dict[int, Line]
    state: LogState

    def replay(self, line: Line, base: BasePoint, files: list[LogFile]) -> Iterator[int]:
        """Return the units that PostgreSQL replays after a base when it is given ``files`` and follows ``line``."""
        stored: dict[tuple[int, int], list[LogFile]] = {}
        for item in files:
            stored.setdefault((item.timeline, item.start_lsn // SEGMENT), []).append(item)
        unit = base.stop_lsn // UNIT
        while True:
            asked = [leg.timeline for leg, begin, _ in line.path if begin // 4 <= unit // 4]
            found = [
                item for timeline in asked for item in stored.get((timeline, unit // 4), ()) if item.kind != "history"
            ]
            if not any(self._has(item, line, unit) for item in found):
                return
            yield unit
            unit += 1

    def _has(self, item: LogFile, line: Line, unit: int) -> bool:
        """Say whether a file holds the very record that lies at ``unit`` on a line."""
        inside = item.start_lsn <= unit * UNIT < item.end_lsn
        return inside and self.lines[item.timeline].owner(unit) is line.owner(unit)

    def bases_on(self, line: Line) -> list[BasePoint]:
        legs = {leg.timeline: (begin, end) for leg, begin, end in line.path}
        on_path = []
        for item in self.state.bases:
            begin, end = legs.get(item.timeline, (1, 0))
            unit = item.stop_lsn // UNIT
            if begin <= unit and (end is None or unit <= end):
                on_path.append(item)
        return on_path

    def reach(self, line: Line, base: BasePoint) -> int:
        """Return the position up to which all that is stored can be replayed after a base."""
        units = list(self.replay(line, base, list(self.state.files)))
        return (units[-1] + 1) * UNIT if units else base.stop_lsn


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Draw a tree of timelines, what was stored of it, what was lost again, and bases."""
    lines: dict[int, Line] = {}
    for timeline in range(1, draw(st.integers(1, 4)) + 1):
        parent = draw(st.sampled_from(list(lines.values()))) if lines else None
        begin = draw(st.integers(parent.begin + 1, parent.end)) if parent else 0
        line = Line(timeline, parent, begin, begin + draw(st.integers(1, 24)))
        clock = (line.clock(begin) + draw(st.integers(2, 40))) if parent else 0
        for unit in range(begin, line.end):
            if wait_s := draw(st.sampled_from([0, 2, 2, 4])):
                clock += wait_s
                line.commits[unit] = clock
        lines[timeline] = line
    files = [item for line in lines.values() for item in _files(draw, line)]
    bases = [
        _base(draw, line, number)
        for number, line in enumerate(draw(st.lists(st.sampled_from(list(lines.values())), max_size=4)))
    ]
    histories = {
        line.timeline: tuple(Switch(leg.timeline, end * UNIT) for leg, _, end in line.path if end is not None)
        for line in lines.values()
        if line.parent is not None
    }
    return World(lines, log(bases, draw(st.permutations(files)), histories))


def _files(draw: st.DrawFn, line: Line) -> Iterator[LogFile]:
    if line.parent is not None:
        yield history(line.timeline)
    for number in range(line.begin // 4, -(-line.end // 4)):
        units = min(line.end - number * 4, 4)
        fate = draw(st.sampled_from(["kept"] * 8 + ["lost", "partial", "both"]))
        if fate in {"kept", "both"} and units == 4:
            yield segment(number, *_stamps(line, number, 4), timeline=line.timeline)
        if fate in {"partial", "both"} or (fate == "kept" and units < 4):
            part = draw(st.integers(1, min(units, 3)))
            for count, reach in enumerate(sorted({part, draw(st.integers(1, part))}), 1):
                yield partial(number, reach, *_stamps(line, number, reach), timeline=line.timeline, count=count)


def _stamps(line: Line, number: int, units: int) -> tuple[int | None, int | None]:
    stamps = [stamp for unit in range(number * 4, number * 4 + units) if (stamp := line.stamp(unit)) is not None]
    return (stamps[0], stamps[-1]) if stamps else (None, None)


def _base(draw: st.DrawFn, line: Line, number: int) -> BasePoint:
    unit = draw(st.integers(line.begin, line.end))
    artifact_id = f"B{number}"
    return base(unit * UNIT, line.clock(unit) + 1, timeline=line.timeline, artifact_id=artifact_id)
