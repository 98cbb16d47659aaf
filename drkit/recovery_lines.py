"""Which line of timelines a recovery follows.

PostgreSQL's ``recovery_target_timeline = latest`` takes the newest history file that it can find, and a stray clone may
have written that one. So drkit always names a timeline, checks that a base leads there, and asks when two lines were
written to at the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta

from drkit.errors import RecoveryGap
from drkit.recovery_path import LogIndex, LogState, Path
from drkit.units import format_moment
from drkit.wal import format_lsn, history_name

_OVERLAP = timedelta(minutes=1)
"""How long the last files of an old timeline may still arrive after the first of the new one."""


def choose_path(index: LogIndex, timeline: int | None) -> Path:
    """Return the path to ``timeline``, or to the one that is in use when it is None; at least one base lies on it.

    Raise RecoveryGap when there is no base, no such timeline, no base that leads there, or no way to tell which of
    several timelines is in use.
    """
    policy = index.state.policy
    if not index.state.bases:
        raise RecoveryGap(f"{policy} has no base backup to replay WAL on", hints=[f"drkit backup {policy}"])
    chosen = timeline_in_use(index) if timeline is None else timeline
    if chosen not in index.timelines() and chosen not in index.state.histories:
        raise RecoveryGap(f"{policy} has no timeline {chosen}; stored are {_numbers(index.timelines())}")
    path = index.path_to(chosen)
    ways_out = [*_pins(index, without=chosen), *(_new_base(index) if timeline is None else ())]
    if path is None:
        raise RecoveryGap(
            f"nothing says where timeline {chosen} of {policy} comes from: {history_name(chosen)} is not stored",
            hints=ways_out,
        )
    if not index.bases_on(path):
        raise RecoveryGap(
            f"no base of {policy} leads to timeline {chosen}",
            details=list(_why_unreachable(index, path)),
            hints=ways_out,
        )
    return path


def why_refused(state: LogState) -> RecoveryGap | None:
    """Return why a recovery that names no timeline is refused although there are bases; None where it is not."""
    if not state.bases:
        return None
    try:
        choose_path(LogIndex(state), None)
    except RecoveryGap as error:
        return error
    return None


def leading_bases(state: LogState) -> dict[int, frozenset[str]]:
    """Return the timeline in use with the ids of the bases that lead to it; every one, while nothing tells which it is.

    None leads to a timeline whose history is not stored.
    """
    if not state.bases:
        return {}
    index = LogIndex(state)
    try:
        timelines = [timeline_in_use(index)]
    except RecoveryGap:
        timelines = index.timelines()
    if len(timelines) == 1 and index.path_to(timelines[0]) is None:
        timelines = index.timelines()
    paths = {timeline: index.path_to(timeline) for timeline in timelines}
    return {
        timeline: frozenset(base.artifact_id for base in index.bases_on(path))
        for timeline, path in paths.items()
        if path is not None
    }


def timeline_in_use(index: LogIndex) -> int:
    """Return the timeline that the source is on, as far as the stores can tell; raise RecoveryGap when they cannot.

    That is the timeline written to last, when the others had ended by the time it began. Failing that it is the one of
    the newest base, when nothing of another timeline is newer: drkit takes bases from the source itself.
    """
    written: dict[int, list[datetime]] = defaultdict(list)
    for timeline, at in _writings(index):
        written[timeline].append(at)
    spans = {timeline: (min(moments), max(moments)) for timeline, moments in written.items()}
    newest = max(spans, key=lambda timeline: (spans[timeline][1], timeline))
    others = [timeline for timeline in spans if timeline != newest]
    alive = [timeline for timeline in others if spans[timeline][1] > spans[newest][0] + _OVERLAP]
    if not alive:
        return newest
    base = max(index.state.bases, key=lambda item: item.stop_at)
    if all(spans[timeline][1] <= base.stop_at for timeline in spans if timeline != base.timeline):
        return base.timeline
    policy = index.state.policy
    raise RecoveryGap(
        f"timelines {_numbers(sorted([*alive, newest]))} of {policy} were written to at the same time; say which one",
        details=[
            f"timeline {timeline}  {format_moment(spans[timeline][0])} .. {format_moment(spans[timeline][1])}"
            for timeline in sorted(spans)
        ],
        hints=[*_pins(index), *_new_base(index)],
    )


def other_lines_at(index: LogIndex, path: Path, moment: datetime) -> list[int]:
    """Return the timelines that hold commits before and after ``moment`` which are not on the path."""
    size = index.state.segment_bytes
    left_at = {leg.timeline: leg.end_lsn for leg in path}
    found: list[int] = []
    for timeline, table in index.full.items():
        end_lsn = left_at.get(timeline, 0)
        if end_lsn is None:
            continue
        aside = [item for number, item in table.items() if timeline not in left_at or number > end_lsn // size]
        firsts = [item.first_commit_at for item in aside if item.first_commit_at is not None]
        lasts = [item.last_commit_at for item in aside if item.last_commit_at is not None]
        if firsts and lasts and min(firsts) <= moment <= max(lasts):
            found.append(timeline)
    return sorted(found)


def _writings(index: LogIndex) -> Iterator[tuple[int, datetime]]:
    for table in (index.full, index.partial):
        for timeline, files in table.items():
            for item in files.values():
                yield timeline, item.made_at
    for base in index.state.bases:
        yield base.timeline, base.stop_at


def _why_unreachable(index: LogIndex, path: Path) -> Iterator[str]:
    for leg in path[:-1]:
        later = [base for base in index.state.bases if base.timeline == leg.timeline]
        if later and leg.end_lsn is not None:
            oldest = min(later, key=lambda base: base.stop_lsn)
            yield (
                f"it left timeline {leg.timeline} at {format_lsn(leg.end_lsn)}, before the oldest base there, "
                f"{oldest.artifact_id}, was consistent at {format_lsn(oldest.stop_lsn)}"
            )
            return
    lines = " and ".join(str(leg.timeline) for leg in path)
    bases = _numbers({base.timeline for base in index.state.bases})
    yield f"it runs over timeline {lines}, and the bases are on {bases}"


def _new_base(index: LogIndex) -> list[str]:
    """Return the command that makes a base of the server itself, while there is one: it is on the timeline in use."""
    return [f"drkit backup {index.state.policy} --method base"]


def _pins(index: LogIndex, without: int = 0) -> list[str]:
    """Return the commands that choose each timeline to which a base leads."""
    reachable = []
    for timeline in index.timelines():
        path = index.path_to(timeline)
        if timeline != without and path is not None and index.bases_on(path):
            reachable.append(timeline)
    return [f"drkit restore {index.state.policy} --timeline {timeline} --into DIR" for timeline in reachable]


def _numbers(timelines: list[int] | set[int]) -> str:
    return ", ".join(str(timeline) for timeline in sorted(timelines)) or "none"
