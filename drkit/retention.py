"""The plan of a prune: which artifacts and which log stay, and why. A pure function of what is stored and a moment.

Rules say what is wanted (`retention_rules`). Guards say what must never happen, whatever is wanted: they exist because
of fifteen ways in which others lost backups, each of which is a test (tests/unit/test_retention_bugs.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from drkit.retention_facts import (
    CLOCK_SKEW,
    Action,
    Candidate,
    Decision,
    Guards,
    Holdings,
    LogPiece,
    Plan,
)
from drkit.retention_rules import Rules, in_window, wanted
from drkit.units import format_count, format_utc

__all__ = ["CLOCK_SKEW", "Candidate", "Decision", "Guards", "Holdings", "LogPiece", "Plan", "Rules", "plan_retention"]

_ALWAYS_ALLOWED = 3
"""So many may go in one run however few there are: otherwise a small site would ask for a confirmation every day."""

_NAMED = 3
"""So many of those that are gone are named; who deletes hundreds is told of once."""

_SHRUNK_TO = 10
_SHRUNK_FOR = timedelta(days=30)
"""The last artifact before the size fell to a tenth stays so long: an emptied database looks like a good backup."""


_MAY_MEND = frozenset({"doubted", "unverified"})


def plan_retention(held: Holdings, rules: Rules, guards: Guards, now: datetime) -> Plan:
    """Decide about everything in ``held``. Nothing that a kept artifact needs is removed, nor anything in doubt."""
    return _Planner(held, rules, guards, now).plan()


class _Planner:
    """One plan in the making; each method adds reasons to keep."""

    def __init__(self, held: Holdings, rules: Rules, guards: Guards, now: datetime) -> None:
        self.held = held
        self.rules = rules
        self.guards = guards
        self.now = now
        self.order = sorted(held.artifacts, key=_age, reverse=True)
        self.known = {item.artifact_id: item for item in self.order}
        self.reasons: dict[str, list[str]] = defaultdict(list)
        self.series: dict[str, list[Candidate]] = defaultdict(list)
        self.doubtful: list[Candidate] = []
        self.missed: dict[str, Candidate] = {}
        self.suspended = list(held.obstacles)
        self.stopped: set[str] = set()
        self.leading: set[str] = set()
        for item in self.order:
            if self._counts(item):
                self.series[item.method].append(item)
            else:
                self.doubtful.append(item)

    def plan(self) -> Plan:
        for method in sorted({item.method for item in self.order}):
            self._rules_and_guards(method)
        self._newest_drilled()
        self._newest_of_lines()
        self._heads_and_holds()
        self._doubtful()
        self._missed()
        self._suspend()
        kept = set(self.reasons)
        locked = {item.artifact_id for item in self.order if self._is_locked(item.locked_until)} - kept
        self._close_over([self.known[name] for name in kept | locked] + list(self.missed.values()))
        artifacts = self._decisions(locked)
        unmarked = [item for item in artifacts if item.action == "remove" and not item.is_marked]
        log = tuple(self._log({item.name for item in artifacts if item.action == "remove"}))
        return Plan(self.held.policy, artifacts, log, tuple(self.suspended), self._excess(len(unmarked)))

    def _counts(self, item: Candidate) -> bool:
        return (
            item.state == "verified"
            and item.at <= self.now + CLOCK_SKEW
            and all(parent in self.known for parent in item.depends_on)
        )

    def _keep(self, artifact_id: str, reason: str) -> None:
        if reason not in self.reasons[artifact_id]:
            self.reasons[artifact_id].append(reason)

    def _newest_at(self, series: Sequence[Candidate]) -> datetime:
        """Return from when periods count back: a clock that ran ahead, or backups that stopped, make nothing old."""
        return min(self.now, series[0].at)

    def _rules_and_guards(self, method: str) -> None:
        series = self.series[method]
        if not series:
            self.suspended.append(f"no {method} is sound, so none is removed")
            self._keep_all(method)
            return
        for artifact_id, reason in wanted(series, self.rules, self._newest_at(series)):
            self._keep(artifact_id, reason)
        doubted = [item for item in self.doubtful if item.state in _MAY_MEND and item.method == method]
        both = sorted([*series, *doubted], key=_age, reverse=True) if doubted else []
        for artifact_id, reason in self._wanted(both, series):
            item = self.known[artifact_id]
            if item.state in _MAY_MEND:
                unless = f"{self._word(item)}: it does not count, and would be wanted if it did"
                self._keep(artifact_id, reason if item.state == "doubted" else unless)
        self._keep(series[0].artifact_id, f"newest {method}")
        self._minimum(series, f"minimum of {self.guards.minimum}")
        for store in sorted({store for item in series for store in item.stores}):
            there = [item for item in series if store in item.stores]
            if there[0].artifact_id not in self.reasons:
                self._keep(there[0].artifact_id, f"newest {method} in store {store}")
            self._minimum(there, f"minimum of {self.guards.minimum} in store {store}")
        fall = _before_the_fall(series)
        if fall is not None and self.now - fall[1] < _SHRUNK_FOR:
            self._keep(fall[0].artifact_id, f"last before the size of a {method} fell to a tenth")
        stale_after = self.guards.stale_after.get(method)
        if stale_after is not None and self.now - series[0].at > stale_after:
            self.suspended.append(
                f"the newest sound {method} is of {format_utc(series[0].at)}, and backups should not be older than"
                f" {_duration(stale_after)}: no {method} is removed until there is a new one"
            )
            self._keep_all(method)

    def _minimum(self, series: Sequence[Candidate], reason: str) -> None:
        """Keep so many of a series; what a store that gets no copies has is not driven out by what it never had."""
        short = self.guards.minimum - sum(item.artifact_id in self.reasons for item in series)
        for item in [item for item in series if item.artifact_id not in self.reasons][: max(short, 0)]:
            self._keep(item.artifact_id, reason)

    def _keep_all(self, method: str) -> None:
        self.stopped.add(method)
        for item in self.order:
            if item.method == method:
                self._keep(item.artifact_id, "removal is suspended")

    def _newest_drilled(self) -> None:
        drilled = [item for item in self.order if item.drilled and self._counts(item)]
        if drilled:
            self._keep(drilled[0].artifact_id, "newest that a drill has proven")

    def _newest_of_lines(self) -> None:
        """Keep a way to the timeline in use: after a failover the newest bases may all be of the line that was left."""
        for timeline, line in self.held.lines.items():
            leading = next((item for item in self.order if item.artifact_id in line and self._counts(item)), None)
            if leading is not None:
                self.leading.add(leading.artifact_id)
                self._keep(leading.artifact_id, f"newest {leading.method} that leads to timeline {timeline}")

    def _heads_and_holds(self) -> None:
        for item in self.order:
            if item.hold:
                self._keep(item.artifact_id, f"held: {item.hold}")
            if item.head:
                self._keep(item.artifact_id, "the chain goes on from it")

    def _doubtful(self) -> None:
        """Keep what does not count, apart from what nobody can want any more.

        What failed goes after some days, once something newer is sound; what is doubted, when no rule would want it
        either if it counted; and so does what is damaged, when it is older than all that is kept: somebody may still
        mend it from another version or a tape. An impossible date is never removed: it may be later than it says.
        """
        for item in self.doubtful:
            newer = [other for other in self.series[item.method] if other.at > item.at]
            kept_sound = [other.at for other in self.series[item.method] if other.artifact_id in self.reasons]
            outlived = item.state in {"failed", "doubted"} and newer and self.now - item.at > self.guards.failed_keep
            buried = item.state == "unverified" and kept_sound and item.at < min(kept_sound)
            if not (outlived or buried):
                self._keep(item.artifact_id, f"{self._word(item)}: it does not count, and is kept to be looked at")

    def _word(self, item: Candidate) -> str:
        if item.state != "verified":
            return f"{item.state} ({item.doubt})" if item.doubt else item.state
        missing = [parent for parent in item.depends_on if parent not in self.known]
        return f"it builds on {missing[0]}, which is gone" if missing else "of the future"

    def _missed(self) -> None:
        """Find what is gone unexplained and would be wanted: what it needs stays, because it may come back.

        Another version of its manifest may be in the bucket, or a copy on a tape. Time ends this: what no rule would
        want any more needs nothing.
        """
        for item in self.held.gone:
            methods = [item.method] if item.method else sorted(self.series)
            for series in (self.series[method] for method in methods):
                both = sorted([*series, item], key=_age, reverse=True)
                if not series or any(name == item.artifact_id for name, _ in self._wanted(both, series)):
                    self.missed[item.artifact_id] = item
        for item in list(self.missed.values())[:_NAMED]:
            self.suspended.append(f"{item.doubt}: what it needs stays as long as a rule would want it")
        if len(self.missed) > _NAMED:
            self.suspended.append(f"{len(self.missed) - _NAMED} more are gone like that")

    def _wanted(self, both: Sequence[Candidate], series: Sequence[Candidate]) -> Iterator[tuple[str, str]]:
        return wanted(both, self.rules, self._newest_at(series) if series else self.now)

    def _suspend(self) -> None:
        """Remove nothing when the clock cannot be right, or something outside of the plan forbids it."""
        ahead = [item for item in self.order if item.at > self.now + CLOCK_SKEW and item.state != "suspect"]
        if ahead:
            self.suspended.append(
                f"artifact {ahead[-1].artifact_id} is of {format_utc(ahead[-1].at)}, which is still to come: this"
                " host's clock is behind, or the clock was ahead then"
            )
        if ahead or self.held.obstacles:
            for method in {item.method for item in self.order}:
                self._keep_all(method)

    def _is_locked(self, until: datetime | None) -> bool:
        return until is not None and until > self.now

    def _close_over(self, staying: Iterable[Candidate]) -> None:
        """Keep what the staying ones build on, and what that builds on."""
        waiting = sorted(staying, key=lambda item: item.artifact_id)
        while waiting:
            child = waiting.pop()
            for parent in child.depends_on:
                if parent in self.known:
                    if parent not in self.reasons:
                        waiting.append(self.known[parent])
                    self._keep(parent, f"{child.artifact_id} builds on it")

    def _decisions(self, locked: set[str]) -> tuple[Decision, ...]:
        ends: dict[str, datetime | None] = {}
        children: dict[str, list[str]] = defaultdict(list)
        for item in self.order:
            for parent in item.depends_on:
                children[parent].append(item.artifact_id)
        decisions = []
        for item in sorted(self.order, key=lambda item: len(item.depends_on), reverse=True):
            own = item.marked_at + self.guards.grace if item.marked_at else None
            later = [own, *(ends.get(child) for child in children[item.artifact_id])]
            known = [end for end in later if end is not None]
            ends[item.artifact_id] = max(known) if len(known) == len(later) else None
            decisions.append(self._decision(item, locked, ends[item.artifact_id]))
        places = {item.artifact_id: place for place, item in enumerate(self.order)}
        return tuple(sorted(decisions, key=lambda item: places[item.name]))

    def _decision(self, item: Candidate, locked: set[str], end: datetime | None) -> Decision:
        kept, marked = self.reasons.get(item.artifact_id), item.marked_at is not None
        if kept:
            return Decision(item.artifact_id, "keep", tuple(kept), item.size_bytes, is_marked=marked)
        if item.artifact_id in locked:
            assert item.locked_until is not None
            reason = f"no rule wants it; locked until {format_utc(item.locked_until)}"
            return Decision(item.artifact_id, "defer", (reason,), item.size_bytes, is_marked=marked)
        reason = "no rule wants it" if self._counts(item) else f"{self._word(item)}, and no longer wanted"
        return Decision(item.artifact_id, "remove", (reason,), item.size_bytes, end, marked)

    def _excess(self, unmarked: int) -> str:
        limit = max(_ALWAYS_ALLOWED, len(self.order) * self.guards.max_removed_percent // 100)
        if unmarked <= limit:
            return ""
        return (
            f"{unmarked} of {format_count(len(self.order), 'artifact')} would go, and"
            f" {self.guards.max_removed_percent} % at once is the most that goes without a confirmation"
        )

    def _log(self, removed: set[str]) -> Iterator[Decision]:
        """Decide about the log: what any base that is still there needs stays until after the base is gone."""
        bases = [item for item in [*self.order, *self.missed.values()] if item.span is not None]
        anchors = self._anchors(bases, removed)
        stopped = self.held.obstacles or self.stopped & {item.method for item in bases}
        suspended = stopped or not anchors or not any(self._counts(item) for item in bases)
        first = min((base.span[0] for base in anchors if base.span), default=0)
        for piece in sorted(self.held.log, key=lambda piece: (piece.from_position, piece.piece_id)):
            marked, end = piece.marked_at is not None, None
            action: Action = "keep"
            if suspended:
                reason = "removal is suspended"
            elif piece.to_position > first:
                reason = "replay needs it"
            elif needing := [base for base in bases if _needs(base, piece)]:
                reason = f"base {needing[-1].artifact_id} is not consistent without it"
            elif self._is_locked(piece.locked_until):
                assert piece.locked_until is not None
                action, reason = "defer", f"nothing needs it; locked until {format_utc(piece.locked_until)}"
            else:
                action, reason = "remove", "nothing kept needs it"
                end = piece.marked_at + self.guards.grace if piece.marked_at else None
            yield Decision(piece.piece_id, action, (reason,), piece.size_bytes, end, marked)

    def _anchors(self, bases: Sequence[Candidate], removed: set[str]) -> list[Candidate]:
        """Return the bases that log is kept behind: those of the recovery window, and those that are about to go.

        Without a window every base is one. One that only a rule such as monthly keeps needs its own stretch alone. The
        window begins with a sound base, or with a younger one that is damaged or gone: it may be mended or come back.
        The way to the timeline in use begins with the newest base that leads there, however old.
        """
        if self.rules.recovery_window is None:
            return list(bases)
        sound = [item for item in bases if self._counts(item)]
        if not sound:
            return []
        since = self._newest_at(sound) - self.rules.recovery_window
        every = sorted(bases, key=_age, reverse=True)
        oldest = min(list(in_window(series, since))[-1].at for series in (sound, every))
        there = removed | self.leading
        return [item for item in bases if item.at >= oldest or item.artifact_id in there]


def _age(item: Candidate) -> tuple[datetime, str]:
    return item.at, item.artifact_id


def _needs(base: Candidate, piece: LogPiece) -> bool:
    """Say whether a piece is part of what a base needs to become consistent (wal-g/wal-g#1869)."""
    return base.span is not None and piece.from_position <= base.span[1] and piece.to_position > base.span[0]


def _before_the_fall(series: Sequence[Candidate]) -> tuple[Candidate, datetime] | None:
    """Return the newest full artifact that is ten times as large as every one after it, and when that began."""
    largest = 0
    full = [item for item in series if not item.depends_on]
    for place, item in enumerate(full):
        if place and item.size_bytes > _SHRUNK_TO * largest:
            return item, full[place - 1].at
        largest = max(largest, item.size_bytes)
    return None


def _duration(duration: timedelta) -> str:
    hours = duration.total_seconds() / 3600
    return f"{hours / 24:g} d" if hours >= 48 else f"{hours:g} h"
