"""From a moment to the way there: which dump to load, and which slices of the oplog to replay after it.

A moment is inclusive: what was written at it comes back. A dump and the log are held against it by the seconds of their
places; within a second the server's clock decides, and the replay stops at the first entry that was written later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit.errors import RecoveryGap
from drkit.oplog import OplogTs
from drkit.oplog_windows import DumpPoint, KnownGap, Slice, choose_slices
from drkit.units import format_moment


@dataclass(frozen=True)
class ReplayPath:
    """A dump, the slices after it in their order, and the moment to stop at (None: where they end).

    ``reaches_ts`` is the last entry that they hold; where it ``goes_on``, later ones are stored or known to be lost,
    and the replay must meet one that is after ``until``: else it cannot know that it has them all.
    """

    dump: DumpPoint
    slices: tuple[Slice, ...]
    until: datetime | None
    reaches_ts: OplogTs
    goes_on: bool = False


@dataclass(frozen=True)
class StoredLog:
    """What there is of a policy: dumps that the oplog goes on from, slices, and stretches known to be lost."""

    policy: str
    dumps: Sequence[DumpPoint]
    slices: Sequence[Slice]
    gaps: Sequence[KnownGap] = ()


def find_path(log: StoredLog, until: datetime | None, artifact_id: str | None = None) -> ReplayPath:
    """Return the way to a moment (None: the end of the log), from the newest dump that is not after it.

    With ``artifact_id`` from that dump and no other. Raise RecoveryGap naming the last place that can be reached and
    the first that is missing.
    """
    dumps = _candidates(log, until, artifact_id)
    failures: list[RecoveryGap] = []
    for dump in dumps:
        try:
            return _path_from(log, dump, until)
        except RecoveryGap as error:
            failures.append(error)
    raise failures[0]


def path_to_stop(log: StoredLog, artifact_id: str) -> ReplayPath:
    """Return what makes a dump consistent and nothing more; raise RecoveryGap when that is not stored."""
    dump = next(item for item in log.dumps if item.artifact_id == artifact_id)
    slices = choose_slices(log.slices, dump, dump.stop_ts) if dump.needs_ts < dump.stop_ts else []
    return ReplayPath(dump, tuple(slices), None, dump.stop_ts)


def _candidates(log: StoredLog, until: datetime | None, artifact_id: str | None) -> list[DumpPoint]:
    """Return the dumps to try, best first: those of whole seconds before the moment, then those of its own second."""
    dumps = [item for item in log.dumps if artifact_id in (None, item.artifact_id)]
    newest = sorted(dumps, key=lambda item: (item.timeline, item.stop_ts), reverse=True)
    if until is None:
        found = newest[:1]
    else:
        before = [item for item in newest if item.stop_at + timedelta(seconds=1) <= until]
        found = before[:1] + [item for item in newest if item not in before and item.stop_at <= until][:1]
    if found:
        return found
    if newest and until is not None:
        raise RecoveryGap(
            f"the oldest dump of policy {log.policy} is consistent at {format_moment(newest[-1].stop_at)},"
            f" which is after {format_moment(until)}",
            hints=[f"drkit timeline {log.policy}"],
        )
    raise RecoveryGap(
        f"policy {log.policy} has no dump that the oplog goes on from",
        hints=[f"drkit backup {log.policy} --method dump", f"drkit timeline {log.policy}"],
    )


def _path_from(log: StoredLog, dump: DumpPoint, until: datetime | None) -> ReplayPath:
    try:
        chosen = choose_slices(log.slices, dump)
        reaches_ts = max([item.to_ts for item in chosen], default=dump.stop_ts)
        newest_ts = max((item.to_ts for item in log.slices if item.timeline == dump.timeline), default=reaches_ts)
        if until is None:
            choose_slices(log.slices, dump, newest_ts)
        elif reaches_ts.moment + timedelta(seconds=1) <= until:
            choose_slices(log.slices, dump, OplogTs(int(until.timestamp()), 0))
    except RecoveryGap as error:
        reasons = [item.reason for item in log.gaps if item.timeline == dump.timeline and item.to_ts > dump.needs_ts]
        hints = [f"drkit timeline {log.policy}", f"drkit restore {log.policy} --at latest --to URL --plan"]
        raise RecoveryGap(error.message, details=[*error.details, *reasons], hints=hints) from error
    needed = [item for item in chosen if until is None or item.from_ts.moment <= until]
    goes_on = len(needed) < len(chosen) or _goes_on(log, dump.timeline, reaches_ts)
    return ReplayPath(dump, tuple(needed), until, reaches_ts, goes_on)


def _goes_on(log: StoredLog, timeline: int, reaches_ts: OplogTs) -> bool:
    """Tell whether anything of the timeline lies behind where its entries can be followed to."""
    ends = [(item.timeline, item.to_ts) for item in log.slices] + [(item.timeline, item.to_ts) for item in log.gaps]
    return any(end[0] == timeline and end[1] > reaches_ts for end in ends)
