"""The recovery plan: from what is stored and the moment asked for, what has to be brought back and replayed.

Planning is a pure function of listings; nothing is read or started. The rules follow PostgreSQL's own
(xlogrecovery.c): a base must have become consistent before the target and on the target's line of timelines, replay
needs every segment in between, and a time is only recognised by a commit after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from drkit.errors import RecoveryGap
from drkit.recovery_lines import choose_path, other_lines_at
from drkit.recovery_path import BasePoint, LogFile, LogIndex, LogState, Path, Stretch, log_file, newest_commit
from drkit.recovery_refusals import before_all_bases, goes_on, in_a_gap, past_the_end, stamp
from drkit.recovery_windows import Gap, Window, find_gaps, find_windows, missing_after
from drkit.units import When
from drkit.wal import format_lsn, parse_lsn

__all__ = [
    "BasePoint",
    "Gap",
    "LogFile",
    "LogState",
    "RecoveryPlan",
    "Window",
    "find_gaps",
    "find_windows",
    "log_file",
    "plan_recovery",
]

_STAMP_DISORDER = timedelta(seconds=1)
"""Commits that run at once are logged a little out of the order of their stamps; a clock set back shows as more."""


@dataclass(frozen=True)
class RecoveryPlan:
    """What to bring back, and what to tell PostgreSQL.

    ``files`` are in the order of replay, the timeline's history file first, and begin where the base's own WAL ends.
    A partial segment can only be the last. They reach one segment further than the target where that is stored: the
    record at the target may cross the border.

    ``target`` is what PostgreSQL is to be told. It is ``latest`` or ``immediate`` when the target asked for is the very
    end of what is planned, because PostgreSQL would wait for something after it. ``target_lsn`` is the position where
    it is known. ``last_commit_at`` is the newest commit that is known to come back, itself included; the last file may
    hold a later one that is still before the target.
    """

    base: BasePoint
    timeline: int
    files: tuple[LogFile, ...]
    target: When
    target_lsn: int | None
    last_commit_at: datetime | None
    inclusive: bool
    warnings: tuple[str, ...] = ()

    @property
    def end_lsn(self) -> int:
        """Return the position up to which the planned files reach."""
        return max((item.end_lsn for item in self.files), default=0) or self.base.stop_lsn

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that have to be fetched."""
        return self.base.stored_bytes + sum(item.stored_bytes for item in self.files)


@dataclass(frozen=True)
class _Request:
    index: LogIndex
    path: Path
    when: When
    inclusive: bool

    def stretch_before(self, reached: Callable[[BasePoint], bool], asked: str) -> Stretch:
        """Return the WAL from the newest base for which ``reached`` holds."""
        newest_first = reversed(self.index.bases_on(self.path))
        newest = next((base for base in newest_first if reached(base)), None)
        if newest is None:
            raise before_all_bases(self.index, self.path, asked)
        return self.index.walk(self.path, newest)

    def is_past(self, base: BasePoint, moment: datetime) -> bool:
        """Say whether a base that is dated before a moment holds a commit from after it: the clock was set back."""
        return any(
            item.last_commit_at is not None and item.last_commit_at > moment and item.end_lsn <= base.stop_lsn
            for leg in self.path
            for item in self.index.full.get(leg.timeline, {}).values()
            if leg.end_lsn is None or item.end_lsn <= leg.end_lsn
        )

    def newest(self) -> Stretch:
        """Return the WAL from the newest base."""
        return self.index.walk(self.path, self.index.bases_on(self.path)[-1])

    def goes_on(self, stretch: Stretch) -> bool:
        return goes_on(self.index, self.path, stretch)

    def refusal(self, stretch: Stretch, asked: str) -> RecoveryGap:
        """Return why a target behind a stretch is out of reach."""
        if self.goes_on(stretch):
            return in_a_gap(self.index, self.path, stretch, asked)
        return past_the_end(self.index, self.path, stretch, asked)

    def plan(self, stretch: Stretch, files: Sequence[LogFile]) -> RecoveryPlan:
        """Make the plan for the target as it was given."""
        timeline = self.path[-1].timeline
        return RecoveryPlan(
            base=stretch.base,
            timeline=timeline,
            files=(*self.history_of(timeline), *files),
            target=self.when,
            target_lsn=None,
            last_commit_at=None,
            inclusive=self.inclusive,
        )

    def plan_to_the_end(self, stretch: Stretch, *warnings: str) -> RecoveryPlan:
        """Make the plan that replays all of a stretch."""
        if self.goes_on(stretch):
            first, reason = missing_after(self.index, self.path, stretch.to_lsn)
            warnings = (*warnings, f"replay ends at {format_lsn(stretch.to_lsn)}, before {first.name}: {reason}")
        plan = self.plan(stretch, stretch.files)
        return replace(plan, target=When("latest"), last_commit_at=stretch.last_commit_at, warnings=warnings)

    def plan_to_the_base(self, base: BasePoint, *warnings: str) -> RecoveryPlan:
        """Make the plan that stops where a base is consistent; it stays on the base's own timeline."""
        plan = self.plan(Stretch(base, base.stop_lsn, ()), ())
        history = self.history_of(base.timeline)
        target = When("immediate")
        return replace(
            plan, timeline=base.timeline, files=history, target=target, target_lsn=base.stop_lsn, warnings=warnings
        )

    def history_of(self, timeline: int) -> tuple[LogFile, ...]:
        """Return the stored history file of a timeline, without which PostgreSQL does not follow it."""
        stored = self.index.history.get(timeline)
        return () if stored is None else (stored,)


def plan_recovery(
    state: LogState, when: When, *, timeline: int | None = None, now: datetime, inclusive: bool = True
) -> RecoveryPlan:
    """Choose the newest base before the target, and the log from there to the target.

    ``timeline`` pins the line to follow; None takes the one that the source is on. ``inclusive`` is for time, xid and
    lsn, as in PostgreSQL. To try another base than the newest, give a state with that base alone.

    Raise RecoveryGap when there is no path: its details have the last good position and the first missing segment. A
    time after the last commit that is stored is refused too, because nothing tells what was committed in between.
    """
    index = LogIndex(state)
    if when.kind == "immediate" and timeline is None and state.bases:
        timeline = max(state.bases, key=lambda base: base.stop_at).timeline
    request = _Request(index, choose_path(index, timeline), when, inclusive)
    if when.kind == "time":
        return _plan_time(request, now)
    planners: dict[str, Callable[[_Request], RecoveryPlan]] = {
        "latest": _plan_latest,
        "immediate": _plan_immediate,
        "lsn": _plan_lsn,
        "name": _plan_unlocated,
        "xid": _plan_unlocated,
    }
    return planners[when.kind](request)


def _plan_latest(request: _Request) -> RecoveryPlan:
    stretch = request.newest()
    if request.goes_on(stretch):
        raise request.refusal(stretch, "the end of the log")
    return request.plan_to_the_end(stretch)


def _plan_immediate(request: _Request) -> RecoveryPlan:
    return request.plan_to_the_base(request.index.bases_on(request.path)[-1])


def _plan_unlocated(request: _Request) -> RecoveryPlan:
    """Plan for a restore point or a transaction: where it lies in the log, a listing does not tell."""
    stretch = request.newest()
    base = stretch.base
    asked = f"{request.when.kind}:{request.when.text}"
    plan = request.plan_to_the_end(
        stretch,
        f"where {asked} lies in the log shows only at replay; all WAL after base {base.artifact_id} is planned",
        f"if {asked} is from before {stamp(base.stop_at)}, choose an older base with --artifact",
    )
    return replace(plan, target=request.when, last_commit_at=None)


def _plan_lsn(request: _Request) -> RecoveryPlan:
    try:
        target_lsn = parse_lsn(request.when.text)
    except ValueError as error:
        raise RecoveryGap(str(error)) from error
    asked = f"position {format_lsn(target_lsn)}"
    stretch = request.stretch_before(lambda base: base.stop_lsn <= target_lsn, asked)
    if target_lsn > stretch.to_lsn:
        raise request.refusal(stretch, asked)
    if target_lsn == stretch.to_lsn:
        plan = request.plan_to_the_end(stretch) if stretch.files else request.plan_to_the_base(stretch.base)
        return replace(plan, target_lsn=target_lsn)
    size = request.index.state.segment_bytes
    wanted = target_lsn // size - stretch.base.stop_lsn // size + 2
    passed = newest_commit(item for item in stretch.stamped[:wanted] if item.end_lsn <= target_lsn)
    return replace(request.plan(stretch, stretch.files[:wanted]), target_lsn=target_lsn, last_commit_at=passed)


def _plan_time(request: _Request, now: datetime) -> RecoveryPlan:
    moment = request.when.moment
    assert moment is not None
    asked = stamp(moment)
    if moment > now:
        raise RecoveryGap(f"{asked} is still to come; it is {stamp(now)}")
    stretch = request.stretch_before(lambda base: base.stop_at <= moment and not request.is_past(base, moment), asked)
    warnings = _aside(request, moment)
    stop = _first_after(stretch.stamped, moment, or_at=not request.inclusive)
    if stop is not None:
        return _plan_to_a_commit(request, stretch, stop, warnings)
    if moment == stretch.last_commit_at:
        return request.plan_to_the_end(stretch, *warnings)
    if moment == stretch.base.stop_at:
        return request.plan_to_the_base(stretch.base, *warnings)
    if _may_hold(stretch, moment) and not request.goes_on(stretch):
        unknown = f"no commit in this WAL is known by its time; whether {asked} is reached shows only at replay"
        return replace(request.plan(stretch, stretch.files), warnings=(*warnings, unknown))
    raise request.refusal(stretch, asked)


def _plan_to_a_commit(request: _Request, stretch: Stretch, stop: int, warnings: Sequence[str]) -> RecoveryPlan:
    """Plan for a moment that a commit in the file at ``stop`` is known to come after."""
    moment = request.when.moment
    assert moment is not None
    stamps = (at for item in stretch.stamped[: stop + 1] for at in (item.first_commit_at, item.last_commit_at) if at)
    kept = max((at for at in stamps if at < moment or (at == moment and request.inclusive)), default=None)
    plan = request.plan(stretch, stretch.files[: stop + 2])
    return replace(plan, last_commit_at=kept, warnings=(*warnings, *_clock_set_back(stretch, stop, moment)))


def _first_after(files: Sequence[LogFile], moment: datetime, *, or_at: bool) -> int | None:
    """Return the place of the first file that is known to hold a commit after the moment, which replay stops at."""
    for position, item in enumerate(files):
        for at in (item.last_commit_at, item.first_commit_at):
            if at is not None and (at > moment or (or_at and at == moment)):
                return position
    return None


def _may_hold(stretch: Stretch, moment: datetime) -> bool:
    """Say whether WAL of which no commit is known may hold one after the moment; it was all written by ``made_at``."""
    return stretch.last_commit_at is None and any(item.made_at >= moment for item in stretch.files)


def _clock_set_back(stretch: Stretch, stop: int, moment: datetime) -> list[str]:
    limit = moment - _STAMP_DISORDER
    for item in stretch.stamped[stop + 1 :]:
        if item.first_commit_at is not None and item.first_commit_at < limit:
            told = f"the server's clock was set back: {item.name} has commits from before {stamp(moment)}"
            return [f"{told}, but replay stops earlier, at the first commit from after it"]
    return []


def _aside(request: _Request, moment: datetime) -> list[str]:
    followed = request.path[-1].timeline
    return [
        f"timeline {timeline} was written to at that moment too, and does not lead to timeline {followed}; "
        f"--timeline {timeline} brings back that one"
        for timeline in other_lines_at(request.index, request.path, moment)
    ]
