"""What a schedule can have done: the one registry of job kinds, and what each does when its time has come.

A kind is one entry of `KINDS`. Its work runs in a process of its own (`drkit.cli.job`), so it may take the main thread,
be ended by a signal, and leak nothing. Work is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from drkit.errors import ConfigError
from drkit.occurrences import MissedRule
from drkit.operations import Reporter, Workplace
from drkit.policy import Policy
from drkit.site_scheduler import SchedulerConfig
from drkit.units import format_utc, parse_utc

if TYPE_CHECKING:
    from drkit.policy import BackupRule


@dataclass(frozen=True)
class Job:
    """One attempt at an occurrence: what to do, and the id under which its run is recorded."""

    kind: str
    policy: str
    what: str
    due_at: datetime
    run_id: str

    def document(self) -> dict[str, str]:
        """Return it for the process that does it."""
        return {**asdict(self), "due_at": format_utc(self.due_at)}

    @classmethod
    def read(cls, document: Mapping[str, str]) -> Job:
        """Read what `document` wrote."""
        return cls(**{**document, "due_at": parse_utc(document["due_at"])})  # type: ignore[arg-type]


NOT_PASSED = "not_passed"
"""The fact of a job that found what should not be, as a sentence; doing the job again would find it again."""

Work = Callable[[Workplace, Policy, Job, Reporter], Mapping[str, Any]]


def _never(config: SchedulerConfig) -> str | None:  # noqa: ARG001 - backups and drills have schedules of their own
    return None


def _always(policy: Policy, locking: AbstractSet[str]) -> bool:  # noqa: ARG001
    return True


@dataclass(frozen=True)
class JobKind:
    """How jobs of one kind are scheduled and done.

    ``run`` raises the error that ended it, and returns facts otherwise. Housekeeping names its time in the site file
    by ``cron``, for the policies for which it is ``wanted``, given the names of the stores that lock. ``reads_source``
    counts it against the limit of the database's host, ``further_stores`` against that of every store of the policy.
    ``can_stall`` is False for what has a time-out of its own.
    """

    run: Work
    cron: Callable[[SchedulerConfig], str | None] = _never
    wanted: Callable[[Policy, AbstractSet[str]], bool] = _always
    missed: MissedRule = "latest_only"
    catch_up: timedelta = timedelta(days=1)
    reads_source: bool = False
    further_stores: bool = True
    can_stall: bool = True


def _back_up(workplace: Workplace, policy: Policy, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    from drkit.operations.backup import back_up

    result = back_up(workplace, policy, rule_named(policy, job.what), reporter)
    return {"artifact_id": result.entry.manifest.artifact_id, "stores": list(result.entry.stores)}


def rule_named(policy: Policy, what: str) -> BackupRule:
    """Return the backup rule that a schedule calls ``what``; raise ConfigError when the policy has it no more."""
    method, _, number = what.partition("-")
    rules = [rule for rule in policy.backups if rule.method == method]
    position = int(number) - 1 if number else 0
    if position >= len(rules):
        raise ConfigError(f"policy {policy.policy} has no backup {what}", hints=[f"drkit policy show {policy.policy}"])
    return rules[position]


def _drill(workplace: Workplace, policy: Policy, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import find_drill, identities_in_reach
    from drkit.operations.drill import run_drill
    from drkit.operations.drill_outcome import DrillRequest

    request = DrillRequest(find_drill(policy, job.what, None))
    outcome = run_drill(workplace, policy, request, identities_in_reach(workplace, (), ask_passphrase), reporter)
    if outcome.verdict == "inconclusive" and outcome.error is not None:
        raise outcome.error
    if outcome.verdict in ("failed", "timed_out", "inconclusive", "cancelled"):
        # Not what the level found: names of tables are in its lines, and this goes to those who are told.
        level = next((f" at level {name}" for name, level in outcome.levels.items() if level.result == "failed"), "")
        return {NOT_PASSED: f"drill {job.what} of {policy.policy}: {outcome.verdict.replace('_', ' ')}{level}"}
    return {"verdict": outcome.verdict, "missed_objectives": outcome.missed_objectives}


def _copy(workplace: Workplace, policy: Policy, job: Job, reporter: Reporter) -> Mapping[str, Any]:  # noqa: ARG001
    from drkit.operations.copying import catch_up

    result = catch_up(workplace, [policy], reporter)
    for failure in result.failed:
        raise failure.error
    return result.facts()


def _verify(workplace: Workplace, policy: Policy, job: Job, reporter: Reporter) -> Mapping[str, Any]:  # noqa: ARG001
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import identities_in_reach
    from drkit.operations.verify_due import verify_due

    result = verify_due(workplace, [policy], identities_in_reach(workplace, (), ask_passphrase), reporter)
    if result.damaged:
        return {NOT_PASSED: f"stored bytes of {policy.policy} are not as they were signed"}
    for failure in result.failed.values():
        raise failure
    return {"copies": len(result.read), "bytes": sum(copy.size_bytes for copy, _ in result.read)}


def _prune(workplace: Workplace, policy: Policy, job: Job, reporter: Reporter) -> Mapping[str, Any]:  # noqa: ARG001
    from drkit.operations.prune import prune

    result = prune(workplace, policy, reporter)
    return {"marked": len(result.marked), "removed": len(result.removed), "blocked": result.blocked}


def _lock(workplace: Workplace, policy: Policy, job: Job, reporter: Reporter) -> Mapping[str, Any]:  # noqa: ARG001
    from drkit.operations.locking import keep_locked

    return keep_locked(workplace, policy)


KINDS: Mapping[str, JobKind] = {
    "backup": JobKind(_back_up, catch_up=timedelta(days=31), reads_source=True),
    "drill": JobKind(_drill, missed="all_within", catch_up=timedelta(days=7), further_stores=False, can_stall=False),
    "prune": JobKind(_prune, cron=lambda config: config.prune, wanted=lambda policy, _: policy.retention is not None),
    "copy": JobKind(_copy, cron=lambda config: config.copy_missing, wanted=lambda policy, _: len(policy.stores) > 1),
    "verify": JobKind(_verify, cron=lambda config: config.verify),
    "lock": JobKind(
        _lock,
        cron=lambda config: config.extend_locks,
        wanted=lambda policy, locking: not locking.isdisjoint(policy.stores),
    ),
}
"""Every kind of job; housekeeping adds a line here, and its time to `drkit.site_scheduler`."""


def run_job(workplace: Workplace, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Do a job under its run id; raise the error that ended it."""
    from drkit.operations.choosing import find_policy
    from drkit.operations.running import planned_run

    with planned_run(job.run_id):
        return KINDS[job.kind].run(workplace, find_policy(workplace, job.policy), job, reporter)
