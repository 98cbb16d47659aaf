"""Which moments can be restored, and which stretches in between cannot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from drkit.recovery_path import LogIndex, LogState, Path, Stretch, newest_commit
from drkit.units import format_count
from drkit.wal import Segment


@dataclass(frozen=True)
class Window:
    """A stretch of one timeline in which every moment and every position can be restored, both ends included."""

    timeline: int
    from_lsn: int
    to_lsn: int
    from_at: datetime
    to_at: datetime


@dataclass(frozen=True)
class Gap:
    """A stretch of one timeline that cannot be restored, from the last good position to the next base.

    ``to_at`` is None while no base ends the gap; ``to_lsn`` is then the end of what is stored behind it.
    ``first_missing`` is the segment that replay would ask for in vain; ``reason`` says in words how much is missing.
    """

    timeline: int
    from_lsn: int
    to_lsn: int
    from_at: datetime
    to_at: datetime | None
    first_missing: str
    reason: str


def find_windows(state: LogState) -> list[Window]:
    """Return what can be restored, by timeline and position; what a timeline shares with its parent is the parent's."""
    index = LogIndex(state)
    windows: list[Window] = []
    for timeline in index.timelines():
        path = index.path_to(timeline)
        if path is not None:
            found = (_window(path, stretch) for stretch in stretches(index, path))
            windows.extend(window for window in found if window is not None)
    return windows


def find_gaps(state: LogState) -> list[Gap]:
    """Return what cannot be restored although an earlier moment can, by timeline and position.

    A state without any log has no gaps: its bases are moments, and nothing was promised in between.
    """
    index = LogIndex(state)
    gaps: list[Gap] = []
    for timeline in index.timelines():
        path = index.path_to(timeline)
        if path is not None:
            gaps.extend(gap for gap in _gaps(index, path) if gap.to_lsn > path[-1].begin_lsn)
    return gaps


def stretches(index: LogIndex, path: Path) -> list[Stretch]:
    """Return the WAL along a path that can be replayed, each stretch from the oldest base that it can start from."""
    found: list[Stretch] = []
    for base in index.bases_on(path):
        if not found or base.stop_lsn > found[-1].to_lsn:
            found.append(index.walk(path, base))
    return found


def missing_after(index: LogIndex, path: Path, lsn: int, until_lsn: int | None = None) -> tuple[Segment, str]:
    """Return the segment that replay asks for in vain at ``lsn``, and how much is missing before ``until_lsn``."""
    first = index.segment_at(path, lsn)
    resume = index.next_stored(path, lsn)
    if resume is None or (until_lsn is not None and resume * first.segment_bytes >= until_lsn):
        return first, f"no WAL is stored from {first.name} on"
    count = resume - first.number
    partly = " (only its beginning is there)" if lsn > first.start_lsn else ""
    if count <= 1:
        return first, f"segment {first.name} is missing{partly}"
    last = index.segment_at(path, resume * first.segment_bytes - 1)
    return first, f"{format_count(count, 'segment')} are missing, {first.name}{partly} .. {last.name}"


def _window(path: Path, stretch: Stretch) -> Window | None:
    leg = path[-1]
    if stretch.to_lsn < leg.begin_lsn or (stretch.to_lsn == leg.begin_lsn and not leg.holds(stretch.base)):
        return None
    from_lsn, from_at = stretch.base.stop_lsn, stretch.base.stop_at
    if from_lsn < leg.begin_lsn:
        from_lsn = leg.begin_lsn
        before = newest_commit(item for item in stretch.stamped if item.end_lsn <= leg.begin_lsn)
        from_at = max(from_at, before or from_at)
    return Window(leg.timeline, from_lsn, stretch.to_lsn, from_at, stretch.end_at)


def _gaps(index: LogIndex, path: Path) -> list[Gap]:
    found = stretches(index, path)
    gaps: list[Gap] = []
    for position, stretch in enumerate(found):
        resume = index.next_stored(path, stretch.to_lsn)
        until = found[position + 1].base if position + 1 < len(found) else None
        stored_behind = resume is not None and (until is None or resume * index.state.segment_bytes < until.stop_lsn)
        if not stored_behind and (until is None or not stretch.files):
            continue
        segment, reason = missing_after(index, path, stretch.to_lsn, until.stop_lsn if until else None)
        gaps.append(
            Gap(
                timeline=path[-1].timeline,
                from_lsn=stretch.to_lsn,
                to_lsn=until.stop_lsn if until else index.stored_end(path),
                from_at=stretch.end_at,
                to_at=until.stop_at if until else None,
                first_missing=segment.name,
                reason=reason,
            )
        )
    return gaps
