"""Which moments the dumps and the stored oplog of a policy can bring back together, and which stretches they cannot.

A slice holds the entries after ``from_ts`` up to ``to_ts``, so slices follow on each other where one's start is not
after the other's end; they may overlap, because two hosts may have written. A dump is consistent at its ``stop_ts`` and
needs the oplog from ``needs_ts`` on: that is its start, unless it holds its own piece of the oplog. Timelines are
histories of their own: no slice of one continues another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from drkit.errors import RecoveryGap
from drkit.oplog import OplogTs
from drkit.units import format_moment


@dataclass(frozen=True)
class Slice:
    """The entries of a timeline after ``from_ts``, up to ``to_ts`` included."""

    timeline: int
    from_ts: OplogTs
    to_ts: OplogTs
    name: str = ""


@dataclass(frozen=True)
class DumpPoint:
    """A dump from which the oplog can be replayed; ``included`` says that it holds the oplog of its own time."""

    artifact_id: str
    timeline: int
    start_ts: OplogTs
    stop_ts: OplogTs
    included: bool

    @property
    def needs_ts(self) -> OplogTs:
        """Return the place from which on stored slices are needed."""
        return self.stop_ts if self.included else self.start_ts

    @property
    def stop_at(self) -> datetime:
        """Return the first moment that it brings back."""
        return self.stop_ts.moment


@dataclass(frozen=True)
class KnownGap:
    """A stretch that the tailing itself found to be lost, and why."""

    timeline: int
    from_ts: OplogTs
    to_ts: OplogTs
    reason: str


@dataclass(frozen=True)
class OplogWindow:
    """A stretch of one timeline of which every place can be restored, both ends included."""

    timeline: int
    from_ts: OplogTs
    to_ts: OplogTs

    @property
    def from_at(self) -> datetime:
        """Return its first moment."""
        return self.from_ts.moment

    @property
    def to_at(self) -> datetime:
        """Return its last moment."""
        return self.to_ts.moment


@dataclass(frozen=True)
class OplogGap:
    """A stretch that cannot be restored: after ``from_ts``, before ``to_ts``, where the next dump is consistent.

    ``to_ts`` is None while no dump ends it. ``missing_ts`` is where entries are there again, None where they are not.
    """

    timeline: int
    from_ts: OplogTs
    to_ts: OplogTs | None
    missing_ts: OplogTs | None
    reason: str

    @property
    def from_at(self) -> datetime:
        """Return the last moment before it."""
        return self.from_ts.moment

    @property
    def to_at(self) -> datetime | None:
        """Return the first moment after it, None while there is none."""
        return self.to_ts.moment if self.to_ts else None


def find_windows(dumps: Iterable[DumpPoint], slices: Iterable[Slice]) -> list[OplogWindow]:
    """Return what can be restored, by timeline and place; a dump alone is a window of one place."""
    stretches = list(_stretches(slices))
    windows: list[OplogWindow] = []
    for dump in sorted(dumps, key=lambda item: (item.timeline, item.stop_ts)):
        reached_ts = _reached(stretches, dump)
        if reached_ts is None:
            continue
        last = windows[-1] if windows else None
        if last is None or last.timeline != dump.timeline or dump.stop_ts > last.to_ts:
            windows.append(OplogWindow(dump.timeline, dump.stop_ts, reached_ts))
        elif reached_ts > last.to_ts:
            windows[-1] = OplogWindow(last.timeline, last.from_ts, reached_ts)
    return windows


def find_gaps(
    windows: Sequence[OplogWindow], slices: Iterable[Slice], known: Sequence[KnownGap] = ()
) -> list[OplogGap]:
    """Return what cannot be restored although an earlier place of the same timeline can, by timeline and place."""
    gaps: list[OplogGap] = []
    stored = sorted(slices, key=lambda item: (item.timeline, item.from_ts))
    for position, window in enumerate(windows):
        following = windows[position + 1] if position + 1 < len(windows) else None
        ends_ts = following.from_ts if following and following.timeline == window.timeline else None
        mine = [item for item in stored if item.timeline == window.timeline]
        behind = [item for item in mine if item.from_ts > window.to_ts and (not ends_ts or item.from_ts < ends_ts)]
        named = [item for item in known if (item.timeline, item.from_ts) == (window.timeline, window.to_ts)]
        log_ended = ends_ts is not None and any(item.to_ts == window.to_ts for item in mine)
        if not (behind or named or log_ended):
            continue
        missing_ts = behind[0].from_ts if behind else named[0].to_ts if named else None
        if named:
            reason = named[0].reason
        elif behind:
            reason = f"the oplog from {window.to_ts} to {missing_ts} is not stored"
        else:
            reason = "no slice of the oplog is stored from there on"
        gaps.append(OplogGap(window.timeline, window.to_ts, ends_ts, missing_ts, reason))
    return gaps


def choose_slices(slices: Iterable[Slice], dump: DumpPoint, until: OplogTs | None = None) -> list[Slice]:
    """Return the slices to replay after ``dump``, in order, as far as ``until`` (None: as far as they go).

    Raise RecoveryGap with the last good place and the first missing one when they do not go so far.
    """
    chosen: list[Slice] = []
    reached_ts = dump.needs_ts
    candidates = sorted((item for item in slices if item.timeline == dump.timeline), key=lambda item: item.from_ts)
    for item in candidates:
        if item.from_ts > reached_ts or (until is not None and reached_ts >= until):
            break
        if item.to_ts > reached_ts:
            chosen.append(item)
            reached_ts = item.to_ts
    wanted_ts = max(dump.stop_ts, until) if until else dump.stop_ts
    if reached_ts < wanted_ts:
        following = next((item.from_ts for item in candidates if item.from_ts > reached_ts), None)
        behind = f"; they go on after {following}" if following else ""
        raise RecoveryGap(
            f"the stored oplog goes up to {reached_ts} ({format_moment(reached_ts.moment)}) after dump"
            f" {dump.artifact_id}, and {wanted_ts} is wanted{behind}",
            hints=["choose an earlier moment, or a later dump: drkit timeline shows what there is"],
        )
    return chosen


def _stretches(slices: Iterable[Slice]) -> Iterable[Slice]:
    """Join slices that follow on each other or overlap."""
    joined: Slice | None = None
    for item in sorted(slices, key=lambda item: (item.timeline, item.from_ts)):
        if joined is not None and item.timeline == joined.timeline and item.from_ts <= joined.to_ts:
            joined = Slice(joined.timeline, joined.from_ts, max(joined.to_ts, item.to_ts))
            continue
        if joined is not None:
            yield joined
        joined = item
    if joined is not None:
        yield joined


def _reached(stretches: Iterable[Slice], dump: DumpPoint) -> OplogTs | None:
    """Return how far the oplog can be replayed after a dump; None when it does not even become consistent."""
    for item in stretches:
        if item.timeline == dump.timeline and item.from_ts <= dump.needs_ts <= item.to_ts:
            return max(item.to_ts, dump.stop_ts) if dump.included or item.to_ts >= dump.stop_ts else None
    return dump.stop_ts if dump.needs_ts == dump.stop_ts else None
