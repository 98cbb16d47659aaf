"""The worker: claims what is due, has it done by a process of its own, and writes down how that ended.

A job is a child of `drkit serve` (`drkit.cli.job`): it can be ended, cannot grow this process, and ends when this
process does. What a process that is gone had claimed is taken up again by any other on its host.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from drkit.catalog.occurrences import CANCELLED, Claim, Ending, facts_of
from drkit.credentials import resolve
from drkit.errors import CatalogError, DrkitError, SourceError
from drkit.jobs import KINDS, Job
from drkit.model import Run
from drkit.occurrences import Occurrence, next_attempt, tell_attempts
from drkit.operations import Reporter, Workplace
from drkit.operations.health import Health
from drkit.operations.running import close_lost_runs, new_id
from drkit.operations.serve import Duty
from drkit.partner import Partner
from drkit.policy import Policy, portable
from drkit.process import Command, end_orphan
from drkit.process_identity import ProcessIdentity
from drkit.scheduler import Planner, Ticker, schedules_of
from drkit.units import format_bytes, format_duration

# -P: the folder of a site is no place to import from.
JOB_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "drkit.cli.job")
LOOK_S = 0.5
_RECLAIM_S = 5.0
_BEAT_S = 15.0
_LATE = timedelta(minutes=10)
_SILENT_FOR = timedelta(minutes=2)
_FOREIGN_SILENT_FOR = timedelta(minutes=10)
_CLOCKS_APART = timedelta(hours=1)
_HARD_AFTER_S = 5.0
_STOPPING = "stopping"
_NEWEST = 5
_PASSED = ("passed", "passed_with_findings", None)
_EXTRA_MOOT = timedelta(days=1)


@dataclass
class _Doing:
    """A job in progress. ``asked`` is why it was told to end, empty while it was not."""

    item: Occurrence
    partner: Partner
    moved_bytes: int = 0
    heard_s: float = field(default_factory=time.monotonic)
    ended: Mapping[str, Any] | None = None
    asked: str = ""
    asked_s: float = 0.0


class Worker:
    """The duty that runs what is due."""

    name = "worker"

    def __init__(
        self,
        workplace: Workplace,
        planner: Planner,
        policies: Sequence[Policy],
        reporter: Reporter,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._workplace = workplace
        self._ledger = workplace.catalog.occurrences
        self._planner = planner
        self._policies = {policy.policy: policy for policy in policies}
        self._reporter = reporter
        self._clock = clock or workplace.clock
        self._config = workplace.site.scheduler
        self._holder = str(ProcessIdentity.own())
        self._doing: list[_Doing] = []
        self._reclaimed_s = 0.0
        self._beat_s = -_BEAT_S
        self.health = Health(self._clock, {})
        self._hosts: dict[str, str] = {}

    def replace(self, policies: Sequence[Policy]) -> None:
        """Work for these policies from now on; what runs goes on."""
        self._policies, self._hosts = {policy.policy: policy for policy in policies}, {}

    def run(self, stopping: threading.Event) -> None:
        """Work until ``stopping``; then let what runs go on for a while, end it, and leave it to the next process."""
        try:
            wait_s = LOOK_S
            while not stopping.wait(wait_s):
                try:
                    self._look()
                    wait_s = LOOK_S
                except CatalogError as error:  # it is asked again; what was done is written down then
                    self.health.note_catalog(error.message)
                    self._reporter.line(f"worker  waiting: {error.message}")
                    wait_s = _RECLAIM_S
        finally:
            self._stop()

    def _show_life(self) -> None:
        """Say that the worker goes round; in the catalog as well, which shows that it can be written."""
        if time.monotonic() - self._beat_s > _BEAT_S:
            self._workplace.catalog.workers.beat(self._holder, self._workplace.clock())
            self._beat_s = time.monotonic()
        self.health.note_catalog()
        self.health.tick(self.name)

    def _look(self) -> None:
        self._collect()
        self._watch()
        if time.monotonic() - self._reclaimed_s > _RECLAIM_S:
            self._reclaim()
            self._reclaimed_s = time.monotonic()
        held = self._ledger.held()
        if held["site"] < self._config.limits.runs:  # thousands may wait, and none can begin
            for item in self._ledger.waiting(self._clock()):
                self._begin(item, held)
        self._show_life()

    # Beginning

    def _begin(self, item: Occurrence, held: Counter[str]) -> None:
        """Claim and start what is due, where ``held`` leaves room: a claim that cannot succeed is not asked for."""
        if held["site"] >= self._config.limits.runs:
            return
        policy = self._policies.get(item.policy)
        if policy is None or item.kind not in KINDS:
            self._leave(item)
            return
        now = self._clock()
        run_id = new_id(self._workplace.clock())
        limits = self._limits(item, policy)
        if any(held[thing] >= most for thing, most in limits.items()):
            return
        if not self._ledger.claim(Claim(item.occurrence_id, self._holder, run_id, limits), now):
            return
        held.update(limits.keys())
        claimed = replace(item, run_id=run_id, holder=self._holder, attempts=item.attempts + 1)
        if claimed.attempts == 1 and now - item.due_at > _LATE:
            facts = {**facts_of(item), "late_s": (now - item.due_at).total_seconds(), "reason": item.reason}
            self._workplace.catalog.add_event("occurrence.late", now, facts)
        self._start(claimed)

    def _leave(self, item: Occurrence) -> None:
        """Skip what no policy wants any more; a policy that is elsewhere, or cannot be read now, is waited for."""
        known = item.policy in self._workplace.policies
        if not known and not self._workplace.policy_problems and item.kind in KINDS:
            self._ledger.give_up(item, "skipped", f"there is no policy {item.policy} any more", self._clock())

    def _limits(self, item: Occurrence, policy: Policy) -> dict[str, int]:
        """Return what the job counts against, and how many may at once."""
        kind, most = KINDS[item.kind], self._config.limits
        stores = policy.stores if kind.further_stores else policy.stores[:1]
        limits = {"site": most.runs, f"schedule {item.schedule}": 1, f"{item.kind} of {item.policy}": 1}
        limits |= {f"store {name}": most.per_store for name in stores}
        host = self._source_host(policy) if kind.reads_source else ""
        return {**limits, f"host {host}": most.per_host} if host else limits

    def _source_host(self, policy: Policy) -> str:
        """Return the host of a policy's database; empty when it cannot be told: then the job itself says why."""
        if policy.policy not in self._hosts:
            try:
                url = resolve(policy.target.url, folder=self._workplace.site.folder).reveal()
                self._hosts[policy.policy] = urlsplit(url).hostname or "local"
            except (DrkitError, ValueError):
                self._hosts[policy.policy] = ""
        return self._hosts[policy.policy]

    def _start(self, item: Occurrence) -> None:
        job = Job(item.kind, item.policy, item.what, item.due_at, item.run_id)
        task = {"site": str(self._workplace.site.path.absolute()), "job": job.document()}
        if item.policy in self._workplace.kept_policies:  # its file cannot be read now
            task["policy"] = portable(self._policies[item.policy])
        command = Command(JOB_COMMAND, env=dict(os.environ))
        self._say(item, f"begins, attempt {item.attempts}, run {item.run_id}")
        doing: list[_Doing] = []
        ready = threading.Event()

        def hear(line: bytes) -> None:
            ready.wait()
            self._hear(doing[0], line)

        try:
            partner = Partner(command, json.dumps(task).encode(), hear)
        except SourceError as error:
            self._finish(item, "transient", error.message)
            return
        doing.append(_Doing(item, partner))
        self._doing.append(doing[0])
        ready.set()

    def _hear(self, doing: _Doing, line: bytes) -> None:
        doing.heard_s = time.monotonic()
        with suppress(ValueError):
            told = json.loads(line)
            doing.moved_bytes = told.get("moved_bytes", doing.moved_bytes)
            if "said" in told:
                self._say(doing.item, str(told["said"]).strip())
            if "ended" in told:
                doing.ended = told["ended"]

    # Watching

    def _watch(self) -> None:
        """End what has not moved for too long: a job that lives and does nothing helps nobody."""
        now_s = time.monotonic()
        for doing in self._doing:
            still_s = now_s - doing.heard_s
            told = doing.asked or doing.ended is not None
            if told and still_s > _HARD_AFTER_S and now_s - doing.asked_s > _HARD_AFTER_S:
                doing.partner.close(0)
            elif not told and KINDS[doing.item.kind].can_stall and still_s > self._config.stalled_after.total_seconds():
                still = format_duration(timedelta(seconds=still_s))
                doing.asked = f"stalled after {format_bytes(doing.moved_bytes)}: no byte and no word for {still}"
                doing.asked_s = now_s
                doing.partner.ask_to_end()

    def _collect(self) -> None:
        for doing in list(self._doing):
            if doing.partner.ended() is not None:
                self._end(doing)

    def _end(self, doing: _Doing) -> None:
        doing.partner.close(0)  # it has ended, or was asked to long enough ago
        ended = doing.ended or {}
        said = ended.get("error") or doing.partner.last_words()
        if ended and not ended["failure"]:
            self._finish(doing.item, "", "")
        elif doing.asked == _STOPPING:
            self._finish(doing.item, "interrupted", "drkit serve was stopped")
        elif doing.asked:
            self._finish(doing.item, "transient", doing.asked)
        elif ended.get("failure") == "interrupted":
            cancelled = self._ledger.is_cancelled(doing.item.run_id)
            self._finish(doing.item, *(("cancelled", CANCELLED) if cancelled else ("lost", "it was interrupted")))
        else:
            self._finish(doing.item, ended.get("failure", "lost"), said)
            for hint in ended.get("hints", ()):
                self._say(doing.item, f"hint: {hint}")
        self._doing.remove(doing)

    def _finish(self, item: Occurrence, failure: str, error: str) -> None:
        now = self._clock()
        ending = self._ending(item, failure, error, now)
        if self._ledger.finish(item, ending, now):
            again = f", again at {ending.not_before_at:%H:%M:%S} UTC" if ending.state == "due" else ""
            self._say(item, f"{ending.state if not again else failure}{f': {error}' if error else ''}{again}")

    def _ending(self, item: Occurrence, failure: str, error: str, now: datetime) -> Ending:
        if not failure:
            return Ending("done", item.reason)
        if failure == "cancelled":
            return Ending("failed", error, failure, error)
        stands_in = self._committed(item)
        if stands_in is not None:
            return self._ending_of_committed(item, stands_in, error)
        policy = self._policies.get(item.policy)
        # What came due while this one ran was skipped because of it, so only the one after now makes it moot.
        moot_at = self._planner.next_due(item.schedule, now) or now + _EXTRA_MOOT
        rpo = policy.objectives.rpo if policy else None
        again_at = next_attempt(failure, item.attempts, now, moot_at=moot_at, rpo=rpo)  # type: ignore[arg-type]
        if again_at is not None:
            return Ending("due", f"attempt {item.attempts} ended ({failure}): {error}", failure, error, again_at)
        tried = tell_attempts(item.attempts)
        moot = f"; after {tried}, and the next is due" if failure not in ("auth", "data") else f"; {tried}"
        return Ending("failed", f"{failure}: {error}{moot}", failure, error)

    def _committed(self, item: Occurrence) -> Sequence[str] | None:
        """Return the stores of the artifact that the attempt committed before it failed; None where it did not."""
        catalog = self._workplace.catalog
        if item.kind == "backup":
            for row in catalog.artifact_rows(item.policy)[:_NEWEST]:
                if catalog.artifact(row.artifact_id).manifest.run_id == item.run_id:
                    return row.stores
        return None

    def _ending_of_committed(self, item: Occurrence, stores: Sequence[str], error: str) -> Ending:
        """Leave to the job that makes copies what only lacks some: the database is not read again for them."""
        policy = self._policies.get(item.policy)
        if policy is None or set(policy.stores) <= set(stores):
            return Ending("done", item.reason)
        reason = f"incomplete: it stands in {', '.join(stores)}, and the copies are made later: {error}"
        return Ending("failed", reason, "incomplete", error)

    # Taking up what the dead left

    def _reclaim(self) -> None:
        mine = {doing.item.occurrence_id for doing in self._doing}
        others = [item for item in self._ledger.dispatched() if item.occurrence_id not in mine]
        if all(self._is_at_work(item.holder) for item in others):
            return
        close_lost_runs(self._workplace.catalog, self._workplace.clock())
        for item in others:
            holder, run = ProcessIdentity.parse(item.holder), self._run_of(item)
            if item.holder == self._holder or holder.is_known_dead():
                self._take_up(item, run)
            elif not holder.is_known_alive() and self._is_silent(item, run):
                self._finish(item, "lost", f"nothing was heard of {item.holder} any more")

    def _is_at_work(self, holder: str) -> bool:
        """Tell whether another process of this host holds it; what we hold and do not do was lost on the way."""
        return holder != self._holder and ProcessIdentity.parse(holder).is_known_alive()

    def _run_of(self, item: Occurrence) -> Run | None:
        runs = self._workplace.catalog.runs(policy=item.policy, limit=500)
        return next((run for run in runs if run.run_id == item.run_id), None)

    def _is_silent(self, item: Occurrence, run: Run | None) -> bool:
        """Tell whether a holder of another host is gone, as far as time can tell; its lease has expired by then.

        In a container every restart is another host. One that comes back all the same finds its lease taken over, and
        commits nothing. A word from further ahead than clocks are apart counts for none: that clock was wrong.
        """
        silent_for = self._clock() - item.decided_at if run is None else self._workplace.clock() - run.heartbeat_at
        return not -_CLOCKS_APART <= silent_for <= _FOREIGN_SILENT_FOR

    def _take_up(self, item: Occurrence, run: Run | None) -> None:
        """Write down how the attempt of a dead process ended; a child of it that still lives is waited for."""
        if run is None or run.state in ("lost", "failed", "interrupted"):
            self._finish(item, "lost", "drkit serve ended while it ran")
        elif run.state == "succeeded":
            verdict = (run.outcome or {}).get("verdict")
            passed = verdict in _PASSED
            self._finish(item, "" if passed else "data", "" if passed else f"drill {item.what}: {verdict}")
        elif self._workplace.clock() - run.heartbeat_at > _SILENT_FOR:
            lease = self._workplace.catalog.lease_of_run(run.run_id)
            if lease is not None:
                end_orphan(ProcessIdentity.parse(lease.holder.partition("#")[0]))

    # Stopping

    def _stop(self) -> None:
        """Give what runs its time, then end it; what could not end is left to whoever comes next."""
        until_s = time.monotonic() + self._config.stop_within.total_seconds()
        while self._doing and time.monotonic() < until_s:
            with suppress(CatalogError):
                self._collect()
            time.sleep(0.1)
        for doing in self._doing:
            doing.asked = doing.asked or _STOPPING
            doing.partner.ask_to_end()
        until_s = time.monotonic() + _HARD_AFTER_S
        for doing in list(self._doing):
            doing.partner.wait(max(until_s - time.monotonic(), 0))
            with suppress(CatalogError):
                self._end(doing)
        with suppress(CatalogError):
            self._workplace.catalog.workers.leave(self._holder)

    def _say(self, item: Occurrence, text: str) -> None:
        what = f" {item.what}" if item.what else ""
        self._reporter.line(f"{item.policy}  {item.kind}{what}  {text}")


def scheduler_duties(
    workplace: Workplace, policies: Sequence[Policy], reporter: Reporter, health: Health
) -> tuple[list[Duty], Callable[[Sequence[Policy]], None]]:
    """Return the duties that plan what the policies want and do it, and how they are told of other policies.

    ``health`` is told of their rounds.
    """
    site = workplace.site
    planner = Planner(workplace.catalog.occurrences, schedules_of(policies, site.scheduler, site.locking_stores))
    worker = Worker(workplace, planner, policies, reporter)
    worker.health = health

    def replace(policies: Sequence[Policy]) -> None:
        worker.replace(policies)
        planner.replace(schedules_of(policies, site.scheduler, site.locking_stores))

    return [Ticker(planner, workplace.clock, reporter, ticked=health.tick), worker], replace


def has_schedules(workplace: Workplace, policies: Sequence[Policy]) -> bool:
    """Tell whether anything of the policies comes round by itself."""
    return bool(schedules_of(policies, workplace.site.scheduler, workplace.site.locking_stores))
