"""A drill: the production restore into a throw-away server, compared with what the manifest recorded, never with live.

Every level is recorded by itself; one that was not run is ``not run``, never ``passed``. The record is signed, chained
and stored beside the artifacts; if it cannot be stored, the drill has not passed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

from drkit.engines import Engine, LoadResult, RestoreOptions
from drkit.engines.registry import find_engine
from drkit.errors import Busy, ConfigError, IntegrityError, KeyUnavailable, RecoveryGap, SourceError, StoreError
from drkit.fingerprint import compare_fingerprints, count_kinds, data_words, describe_difference
from drkit.keys import KeyFile
from drkit.model import Fingerprint
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import open_details
from drkit.operations.drill_deadline import OutOfTime, deadline
from drkit.operations.drill_frame import DrillFrame
from drkit.operations.drill_outcome import DrillOutcome, DrillRequest, LevelOutcome, describe_pick, draw_moment
from drkit.operations.drill_replay import ReplayDrill, is_replayed
from drkit.operations.drill_scratch import open_scratch
from drkit.operations.dump_plan import RestorePlan, data_objects
from drkit.operations.evidence import record_drill
from drkit.operations.reader_lease import reader_lease
from drkit.operations.restore import copies_passed_over, fetch, inspect, load, way_of
from drkit.operations.running import RunningRun, recorded_run
from drkit.operations.selection import DUMP, choose_artifact, find_artifacts
from drkit.operations.signing_key import load_site_signing_key
from drkit.policy import Policy
from drkit.sandboxes import ScratchServer
from drkit.units import format_bytes, format_count, format_duration, format_moment

if TYPE_CHECKING:
    from drkit.operations.drill_oplog import OplogDrill

_MOST_AT_ONCE = 4
"""How many drills of one policy may run at once, on all hosts that share a catalog."""
_SHOWN_KINDS = (
    ("sequence", "sequences"),
    ("index", "indexes"),
    ("constraint", "constraints"),
    ("view", "views"),
    ("role", "roles"),
)


def run_drill(
    workplace: Workplace, policy: Policy, request: DrillRequest, identities: Sequence[KeyFile], reporter: Reporter
) -> DrillOutcome:
    """Drill one policy and return what was found; only a drill that could not be begun raises, and is not recorded.

    Whatever stops the drill on its way becomes its verdict: a damaged artifact or a load that fails is ``failed``, a
    store out of reach or a scratch server that does not start is ``inconclusive``. A drill that outlives its rule's
    time-out is ended and ``timed_out``; only the main thread can be, so it must be called there.
    """
    if request.rule.level == "replays" and not {"base", "oplog"} & {rule.method for rule in policy.backups}:
        raise ConfigError(
            f"drill {request.rule.name} of {policy.policy} asks for level replays, and a dump has nothing to replay",
            hints=[f"drkit drill {policy.policy} --level same-data"],
        )
    load_site_signing_key(workplace.site)  # what cannot be signed in the end is not worth the hours before
    _refuse_unknown(workplace, policy, request)
    with ExitStack() as stack:
        running = _begin(workplace, policy, stack)
        stack.enter_context(reader_lease(workplace, policy.policy, policy.stores, reporter))
        now = running.run.started_at
        seed = secrets.randbelow(1 << 31) if request.seed is None else request.seed
        outcome = DrillOutcome(policy, request, running.run_id, now, seed, request.at or now)
        try:
            with deadline(request.rule.timeout):
                _kind_of(workplace, policy, request)(workplace, outcome, identities, reporter).run()
        except OutOfTime:
            outcome.run_out_of_time()
        except (IntegrityError, KeyUnavailable, RecoveryGap) as error:
            outcome.error, outcome.verdict = error, "failed"
        except (StoreError, SourceError) as error:
            outcome.error = error
            outcome.verdict = "failed" if outcome.failed_level else "inconclusive"
        outcome.ended_at = workplace.clock()
        record_drill(workplace, outcome, reporter)
        running.outcome = {"verdict": outcome.verdict, "level": request.rule.level}
        _tell(workplace, outcome)
        return outcome


def _kind_of(workplace: Workplace, policy: Policy, request: DrillRequest) -> type[ReplayDrill | OplogDrill | _Drill]:
    if is_replayed(workplace, policy, request):
        return ReplayDrill
    if not _is_rolled_forward(policy, request):
        return _Drill
    # With it come pymongo and numpy, the larger half of what a drill imports; those of PostgreSQL do without.
    from drkit.operations.drill_oplog import OplogDrill

    return OplogDrill


def _is_rolled_forward(policy: Policy, request: DrillRequest) -> bool:
    """Tell whether a drill is one of dump and oplog: the policy keeps it, and the level goes as far."""
    return policy.rule("oplog") is not None and request.rule.level in ("replays", "same-data", "works")


def _tell(workplace: Workplace, outcome: DrillOutcome) -> None:
    facts = {
        "run_id": outcome.run_id,
        "policy": outcome.policy.policy,
        "drill": outcome.request.rule.name,
        "level": outcome.request.rule.level,
        "verdict": outcome.verdict,
        "missed": outcome.missed_objectives,
        "error": outcome.error.message if outcome.error else None,
    }
    workplace.catalog.add_event("drill.ended", outcome.ended_at or workplace.clock(), facts)


def _refuse_unknown(workplace: Workplace, policy: Policy, request: DrillRequest) -> None:
    """Raise RecoveryGap for an id that no artifact has: a slip of the hand is no verdict on a backup.

    What is there and cannot be used, or cannot be reached, is for the drill to judge.
    """
    if request.artifact_id is not None:
        with contextlib.suppress(IntegrityError, StoreError):
            choose_artifact(find_artifacts(workplace, policy.policy), policy.policy, artifact_id=request.artifact_id)


def _begin(workplace: Workplace, policy: Policy, stack: ExitStack) -> RunningRun:
    """Begin a run under a lease that is free: drills do not disturb each other, but a host has its limits."""
    slots = [f"drill/{policy.policy}/{number}" for number in range(1, _MOST_AT_ONCE + 1)]
    for slot in slots[:-1]:
        with contextlib.suppress(Busy):
            return stack.enter_context(
                recorded_run(workplace.catalog, workplace.clock, "drill", policy.policy, alone=slot)
            )
    return stack.enter_context(
        recorded_run(workplace.catalog, workplace.clock, "drill", policy.policy, alone=slots[-1])
    )


class _Drill(DrillFrame):
    """One drill of a dump in progress; its methods are the phases of docs/architecture.md, section 7."""

    def run(self) -> None:
        """Go up the levels until the one asked for, or the first that fails."""
        with self.phase("select"):
            plan = self._select()
        self._exists()
        if "loads" in self.wanted:
            self._restore(plan)
        else:
            self._read_all(plan)
        self.outcome.rto = timedelta(seconds=time.monotonic() - self.began_s)
        self.outcome.judge()

    def _select(self) -> RestorePlan:
        """Choose the moment and the artifact, and open its details."""
        outcome, request = self.outcome, self.outcome.request
        found = find_artifacts(self.workplace, self.policy.policy)
        outcome.candidates = len(found.entries)
        outcome.findings += [f"not believed: {error.message}" for error in found.refused]
        at = request.at
        if request.artifact_id is None and at is None:
            dumps = [item.manifest.covers.to_at for item in found.entries if item.manifest.method == DUMP]
            outcome.disaster_at = draw_moment(outcome, dumps)
            # The latest is the latest, also where somebody's clock is ahead.
            at = None if request.rule.pick == "latest" else outcome.disaster_at
        with self.blame("exists"):
            entry = choose_artifact(found, self.policy.policy, artifact_id=request.artifact_id, at=at, method=DUMP)
        outcome.entry = entry
        for name in found.lost.get(entry.manifest.artifact_id, ()):
            outcome.findings.append(f"the copy in store {name} is gone")
        manifest = entry.manifest
        self.reporter.line(
            f"drill {request.rule.name} of {manifest.policy}   {describe_pick(outcome)}   level {request.rule.level}"
        )
        with self.blame("intact"):
            details = open_details(manifest, self.identities)
        age = format_duration(outcome.started_at - manifest.covers.to_at)
        opens = ", ".join(sorted({key.name for key in self.identities}))
        self.reporter.line(
            f"  artifact {manifest.artifact_id}  {manifest.method} of {format_moment(manifest.covers.to_at)},"
            f" {age} old, opened by {opens}"
        )
        return RestorePlan(entry, details, data_objects(manifest), tuple(self.identities))

    def _exists(self) -> None:
        entry = self.outcome.entry
        assert entry is not None
        with self.level("exists") as level:
            self.verify_copies(entry)
            objects = format_count(len(entry.manifest.objects), "object")
            level.summary = f"{objects} in {' and '.join(entry.stores)}, signature, sizes and checksums verified"

    def _read_all(self, plan: RestorePlan) -> None:
        """Prove level intact alone: read, decrypt and compare every byte."""
        with self.level("intact") as level, self.phase("fetch"):
            fetched = fetch(self.workplace, plan, self.workplace.work_folder, self.reporter)
            self.outcome.findings += copies_passed_over(plan, fetched)
            self.outcome.findings += inspect(plan, fetched, self.reporter, read_all=True)
            level.summary = f"{format_bytes(plan.stored_bytes)} read, decrypted, digests equal"

    def _restore(self, plan: RestorePlan) -> None:
        """Restore as in production, into a server that is lent for it, and compare there."""
        engine = find_engine(plan.entry.manifest.engine, plan.entry.manifest.method)
        with self.level("intact") as intact, self.phase("fetch"):
            fetched = fetch(self.workplace, plan, self.workplace.work_folder, self.reporter)
            self.outcome.findings += copies_passed_over(plan, fetched)
            self.outcome.findings += inspect(plan, fetched, self.reporter)
            intact.summary = f"{format_bytes(plan.stored_bytes)} read, digests equal; decrypted while it was loaded"
        with open_scratch(self, plan) as server:
            asks = "works" in self.wanted and bool(self.outcome.request.rule.checks)
            options = _restore_options(self.workplace, plan, server, queried=asks)
            with self.level("loads") as level, self.phase("load"):
                with engine.open_restore(server.url, options) as session:
                    loaded = load(plan, fetched, session, self.reporter)
                level.summary = f"scratch {self.policy.target.engine} {server.version}" + _warned(loaded)
                self.outcome.findings += loaded.warnings
            if "same-data" in self.wanted:
                with self.level("same-data") as level, self.phase("compare"):
                    self._compare(plan, engine, engine.fingerprint(server.url, options), level)
            if "works" in self.wanted:
                with self.level("works") as level, self.phase("checks"):
                    self.run_checks(plan.details["parts"], engine, server.url, level)
            self.outcome.rto = timedelta(seconds=time.monotonic() - self.began_s)

    def _compare(
        self, plan: RestorePlan, engine: Engine, restored: Mapping[str, Fingerprint], level: LevelOutcome
    ) -> None:
        """Compare every part's fingerprint with the recorded one; list what differs by name."""
        recorded = {item.part: plan.details["parts"][item.part].get("fingerprint") for item in plan.objects}
        bare = [plan.label(part) for part, fingerprint in recorded.items() if not fingerprint]
        if bare:
            raise IntegrityError(f"artifact {plan.entry.manifest.artifact_id} has no fingerprint of {', '.join(bare)}")
        for part, fingerprint in recorded.items():
            found = compare_fingerprints(fingerprint, restored.get(part, {}), engine.expected)
            if len(recorded) > 2:  # more than the globals and one database: say which
                found = [dataclasses.replace(item, name=f"{plan.label(part)}: {item.name}") for item in found]
            self.outcome.differences += [item for item in found if not item.expected_by]
            self.outcome.expected_differences += [item for item in found if item.expected_by]
        level.lines = [describe_difference(item) for item in self.outcome.differences]
        level.summary = _equal(list(recorded.values()))
        if level.lines:
            level.result = "failed"
            level.summary = format_count(len(level.lines), "difference")


def _restore_options(
    workplace: Workplace, plan: RestorePlan, server: ScratchServer, *, queried: bool
) -> RestoreOptions:
    return RestoreOptions(
        via=way_of(workplace, plan.entry.manifest),
        details=plan.details,
        parts=tuple(item.part for item in plan.objects),
        scratch=True,
        queried=queried,
        stage_folder=server.stage_folder,
        work_folder=workplace.work_folder,
    )


def _warned(loaded: LoadResult) -> str:
    return f", {format_count(len(loaded.warnings), 'warning')}" if loaded.warnings else ""


def _equal(fingerprints: Sequence[Fingerprint]) -> str:
    """Say how much was compared and found equal, tables or collections first."""
    holder, _ = data_words(fingerprints)
    totals: Counter[str] = Counter()
    for fingerprint in fingerprints:
        totals.update(count_kinds(fingerprint))
    tables = [facts for fingerprint in fingerprints for facts in fingerprint.get(holder, {}).values()]
    digested = any("digest" in facts for facts in tables)
    others = sum(totals.values()) - totals[holder]
    counted = [format_count(totals[kind], kind, plural) for kind, plural in _SHOWN_KINDS if totals[kind]]
    return (
        f"{totals[holder]} of {format_count(totals[holder], holder)} equal in"
        f" {'count and digest' if digested else 'count, no digests recorded'},"
        f" {others} other objects equal: {', '.join(counted)}, …"
    )
