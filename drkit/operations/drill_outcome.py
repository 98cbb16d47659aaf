"""What a drill asks and what it found, as values, and how they are said."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

from drkit.errors import DrkitError, KeyUnavailable, RecoveryGap, SourceError, StoreError
from drkit.model import ArtifactEntry, Difference
from drkit.policy import DrillRule, Policy
from drkit.units import format_duration, format_moment, format_utc, say_slow_clock

LEVELS = ("exists", "intact", "loads", "replays", "same-data", "works")
Result = Literal["passed", "failed", "not run", "not applicable"]
_CLOCK_MARGIN = timedelta(seconds=10)
"""How much two clocks may differ before it is told: commits of the first moments of a drill may come back as well."""
Verdict = Literal["passed", "passed_with_findings", "failed", "inconclusive", "timed_out", "cancelled"]


@dataclass(frozen=True)
class DrillRequest:
    """What to drill. ``at`` is the simulated moment of the disaster, ``seed`` makes a random one repeatable."""

    rule: DrillRule
    at: datetime | None = None
    artifact_id: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class HeartbeatProof:
    """What the heartbeats that came back say: how many, the newest one, and how many contradict the moment."""

    count: int
    newest: int
    newest_at: datetime
    contradictions: int

    def document(self) -> dict[str, int | str]:
        """Return it for records and scripts."""
        return {
            "count": self.count,
            "newest": self.newest,
            "newest_at": format_utc(self.newest_at),
            "contradictions": self.contradictions,
        }


@dataclass(frozen=True)
class Recovery:
    """How far a replay got: the timeline that was followed, the position, and the newest commit that came back.

    For MongoDB the position is ``oplog_ts`` and ``lsn`` is empty; ``segments`` are slices.
    """

    timeline: int
    lsn: str
    newest_commit_at: datetime
    restored_to_at: datetime
    segments: int = 0
    wal_bytes: int = 0
    heartbeat: HeartbeatProof | None = None
    oplog_ts: str = ""


@dataclass
class LevelOutcome:
    """How one level ended, with the lines for the screen."""

    result: Result = "not run"
    summary: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass
class DrillOutcome:
    """Everything that a drill found; `drkit.operations.evidence` makes the signed record of it.

    ``ended_in`` is the phase in which a drill was that ran out of its time. ``has_sound_copy``: beside the copy that is
    damaged there is one that is not.
    """

    policy: Policy
    request: DrillRequest
    run_id: str
    started_at: datetime
    seed: int
    disaster_at: datetime
    candidates: int = 0
    entry: ArtifactEntry | None = None
    recovered: Recovery | None = None
    levels: dict[str, LevelOutcome] = field(default_factory=lambda: {level: LevelOutcome() for level in LEVELS})
    phases_s: dict[str, float] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    expected_differences: list[Difference] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    error: DrkitError | None = None
    verdict: Verdict = "inconclusive"
    ended_in: str | None = None
    has_sound_copy: bool = False
    scratch: dict[str, str] = field(default_factory=dict)
    teardown: str = "nothing was made"
    leaked: bool = False
    rto: timedelta | None = None
    ended_at: datetime | None = None
    stored_in: tuple[str, ...] = ()

    @property
    def rpo(self) -> timedelta | None:
        """Return what a disaster at that moment would have lost, as time."""
        newest_at = self.newest_change_at
        return max(self.disaster_at - newest_at, timedelta()) if newest_at else None

    @property
    def newest_change_at(self) -> datetime | None:
        """Return the stamp of the newest change that came back: a dump's snapshot, or the last commit replayed."""
        if self.recovered is not None:
            return self.recovered.newest_commit_at
        if self.entry is None or self.entry.manifest.position is not None:
            return None
        return self.entry.manifest.covers.to_at

    @property
    def restored_to_at(self) -> datetime | None:
        """Return the moment that was restored to; the artifact's own where nothing was replayed."""
        if self.recovered is not None:
            return self.recovered.restored_to_at
        return self.entry.manifest.covers.to_at if self.entry else None

    @property
    def failed_level(self) -> str | None:
        """Return the level that failed, if one did."""
        return next((name for name, level in self.levels.items() if level.result == "failed"), None)

    @property
    def blames(self) -> str | None:
        """Return what a failed drill failed for, where that is not what the artifact holds: its bytes may be sound."""
        if self.verdict == "failed" and self.has_sound_copy:
            return "copy"
        causes = {KeyUnavailable: "key", RecoveryGap: "log", SourceError: "server", StoreError: "store"}
        found = (word for kind, word in causes.items() if isinstance(self.error, kind))
        return next(found, None) if self.verdict == "failed" else None

    @property
    def missed_objectives(self) -> list[str]:
        """Return the objectives that were missed, as words."""
        goals = self.policy.objectives
        measured = {"rpo": (self.rpo, goals.rpo), "rto": (self.rto, goals.rto)}
        return [name for name, (got, goal) in measured.items() if got is not None and goal is not None and got > goal]

    def judge(self) -> None:
        """Turn levels, findings and objectives into the verdict of a drill that went to its end."""
        if self.failed_level:
            self.verdict = "failed"
            return
        if self.leaked:
            self.verdict = "inconclusive"
            return
        self.findings += self._clock_findings()
        goals = {"rpo": (self.rpo, self.policy.objectives.rpo), "rto": (self.rto, self.policy.objectives.rto)}
        for name in self.missed_objectives:
            got, goal = goals[name]
            assert got is not None
            assert goal is not None
            self.findings.append(
                f"{name.upper()} {format_duration(got)} misses its objective of {format_duration(goal)}"
                + (_rpo_advice(self.policy, goal) if name == "rpo" else "")
            )
        self.verdict = "passed_with_findings" if self.findings else "passed"

    def _clock_findings(self) -> list[str]:
        """Say that RPO cannot be right: what came back is dated after the drill had begun."""
        newest_at = self.newest_change_at
        if newest_at is None or newest_at - self.started_at <= _CLOCK_MARGIN:
            return []
        return [say_slow_clock(newest_at - self.started_at)]

    def run_out_of_time(self) -> None:
        """Judge a drill that was ended because its time was over; what had failed before stays failed."""
        rule = self.request.rule
        self.ended_in = self.ended_in or "select"
        self.rto = None
        self.verdict = "failed" if self.failed_level else "timed_out"
        self.error = SourceError(
            f"drill {rule.name} of {self.policy.policy} did not end within {format_duration(rule.timeout)} and was"
            f" stopped in phase {self.ended_in}",
            hints=[
                f"set a longer timeout for drill {rule.name} in {self.policy.path}",
                f"drkit drill {self.policy.policy} --level intact   (needs no server)",
            ],
        )


def _rpo_advice(policy: Policy, goal: timedelta) -> str:
    methods = {rule.method for rule in policy.backups}
    if methods == {"dump"}:
        return f" (dumps alone can meet {format_duration(goal)} only if they are taken that often; add method wal)"
    return ""


def draw_moment(outcome: DrillOutcome, snapshots_at: Sequence[datetime]) -> datetime:
    """Return the moment of the simulated disaster that the drill's rule picks among the artifacts there are.

    ``random`` is uniform over the window, never before its oldest artifact, so that every draw can be drilled. The seed
    and the artifacts alone decide which artifact it is: whoever draws again later comes to the same one. ``oldest`` is
    the moment of the oldest artifact in the window.
    """
    rule, now = outcome.request.rule, outcome.started_at
    earliest = now - rule.window if rule.window else datetime.min.replace(tzinfo=now.tzinfo)
    inside = sorted(moment for moment in snapshots_at if earliest <= moment <= now)
    if rule.pick == "latest" or not inside:
        return now
    if rule.pick == "oldest":
        return inside[0]
    return min(_draw_between(inside, outcome.seed), now)


def _draw_between(snapshots_at: Sequence[datetime], seed: int) -> datetime:
    """Draw a moment until the next artifact would have been due: the newest one stands for a usual interval."""
    intervals = [(later - earlier).total_seconds() for earlier, later in pairwise(snapshots_at)]
    intervals.append(sum(intervals) / len(intervals) if intervals else 1.0)
    drawn = random.Random(seed)  # noqa: S311 - repeatable, not secret
    (place,) = drawn.choices(range(len(intervals)), weights=[max(length, 1e-6) for length in intervals])
    return snapshots_at[place] + timedelta(seconds=drawn.random() * intervals[place])


def describe_pick(outcome: DrillOutcome) -> str:
    """Say which moment was drilled, and by whose choice."""
    rule, request = outcome.request.rule, outcome.request
    if request.artifact_id:
        return f"artifact {request.artifact_id}"
    if request.at:
        return f"disaster at {format_moment(request.at)}"
    window = f" in the last {format_duration(rule.window)}" if rule.window else ""
    if rule.pick == "random":
        return f"random moment{window} (seed {outcome.seed}): {format_moment(outcome.disaster_at)}"
    return f"{rule.pick} artifact{window}"


def describe_outcome(outcome: DrillOutcome) -> str:
    """Say the verdict with the measured objectives, what was found, what is safe and what to do next."""
    lines = [f"  finding     {finding}" for finding in outcome.findings]
    measured = [
        _objective("RTO", outcome.rto, outcome.policy.objectives.rto),
        _objective("RPO", outcome.rpo, outcome.policy.objectives.rpo),
    ]
    verdict = outcome.verdict.replace("_", " ").upper()
    if outcome.verdict == "failed":
        lines += _after_failure(outcome)
    elif outcome.verdict == "timed_out":
        lines += _after_time_out(outcome)
    elif outcome.verdict == "inconclusive":
        assert outcome.error is not None
        lines.append(f"INCONCLUSIVE: the drill itself could not go on: {outcome.error.message}")
        lines += [f"  {line}" for line in outcome.error.details]
        lines.append("  The artifact was not judged.")
        lines += [f"  hint: {hint}" for hint in outcome.error.hints]
    else:
        lines.append("   ".join([verdict, *filter(None, measured)]))
    return "\n".join(lines)


def _objective(word: str, measured: timedelta | None, goal: timedelta | None) -> str:
    if measured is None:
        return ""
    if goal is None:
        return f"{word} {format_duration(measured)} (no objective)"
    return f"{word} {format_duration(measured)} of {format_duration(goal)}{': MISSED' if measured > goal else ''}"


def _after_time_out(outcome: DrillOutcome) -> list[str]:
    assert outcome.error is not None
    proven = [name for name, level in outcome.levels.items() if level.result == "passed"]
    return [
        f"TIMED OUT: {outcome.error.message}",
        f"  Proven until then: {', '.join(proven) or 'nothing'}. The artifact was not judged any further.",
        *(f"  hint: {hint}" for hint in outcome.error.hints),
    ]


def _after_failure(outcome: DrillOutcome) -> list[str]:
    level = outcome.failed_level
    policy = outcome.policy.policy
    lines = [f"FAILED at level {level}." if level else "FAILED."]
    if outcome.error is not None:
        lines.append(f"  {outcome.error.message}")
        lines += [f"  {line}" for line in outcome.error.details]
    safe = "  What is safe: the source was not touched"
    if outcome.entry is not None:
        artifact_id = outcome.entry.manifest.artifact_id
        lines += [f"{safe}; artifact {artifact_id} is not proven."]
        said = f"drkit verify {artifact_id}"
        lines += [f"  hint: {said}"]
    else:
        said = ""
        lines.append(f"{safe}.")
    hints = [*(outcome.error.hints if outcome.error else ()), f"drkit check {policy}"]
    return [*lines, *(f"  hint: {hint}" for hint in dict.fromkeys(hints) if hint != said)]
