"""A drill of a dump and the oplog behind it: the production restore to a moment, on a server that is lent for it.

What is compared is not the dump's record, which no longer applies, but what the replay kept of it: count and digest of
every collection, brought forward with each document that an entry changed, against the restored copy read anew.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from drkit.credentials import Secret
from drkit.engines import RestoreOptions
from drkit.engines.mongodb_apply import Replayed
from drkit.engines.mongodb_replay import ReplaySession, open_replay
from drkit.engines.mongodb_replay_proof import comparable
from drkit.engines.registry import find_engine
from drkit.errors import RecoveryGap
from drkit.fingerprint import compare_fingerprints, describe_difference
from drkit.model import Fingerprint
from drkit.operations.drill_frame import DrillFrame
from drkit.operations.drill_outcome import Recovery, describe_pick
from drkit.operations.drill_replay import draw_uniform
from drkit.operations.drill_scratch import open_scratch
from drkit.operations.dump_plan import RestoreRequest
from drkit.operations.oplog_plan import OplogPlan, plan_oplog_restore, read_stored_log
from drkit.operations.replay_words import describe_doubts
from drkit.operations.restore import way_of
from drkit.operations.restore_oplog import ReplaySteps, replay_request
from drkit.oplog_windows import find_windows
from drkit.sandboxes import ScratchServer
from drkit.units import format_bytes, format_count, format_duration, format_moment


class OplogDrill(DrillFrame):
    """One drill of dump and oplog in progress."""

    def run(self) -> None:
        """Go up the levels until the one asked for, or the first that fails."""
        with self.phase("select"):
            plan = self._select()
        self._exists(plan)
        steps = ReplaySteps(self.workplace, plan, self.reporter)
        with self.level("intact") as level, self.phase("fetch"):
            self.outcome.findings += steps.verify()
            read = format_bytes(plan.restore.stored_bytes + plan.stored_bytes)
            level.summary = f"{read} read, digests equal; slices decrypted, the dump while it was loaded"
        with open_scratch(self, plan.restore, plan.plain_bytes) as server:
            self._restore(plan, steps, server)
        self.outcome.judge()

    def _stamp_rto(self) -> None:
        took_s = time.monotonic() - self.began_s - self.outcome.phases_s.get("compare", 0.0)
        self.outcome.rto = timedelta(seconds=took_s)

    def _select(self) -> OplogPlan:
        """Choose the moment, and plan the way to it."""
        outcome, request = self.outcome, self.outcome.request
        with self.blame("exists"):
            until = request.at or self._pick()
            asked = RestoreRequest(self.policy.policy, request.artifact_id, until)
            plan = plan_oplog_restore(self.workplace, asked, self.identities, to_moment=True)
            if plan is None:
                raise RecoveryGap(
                    f"policy {self.policy.policy} has no dump that the oplog goes on from",
                    hints=[f"drkit backup {self.policy.policy} --method dump"],
                )
        outcome.entry = plan.restore.entry
        outcome.findings += list(plan.notes)
        dump = plan.path.dump
        self.reporter.line(
            f"drill {request.rule.name} of {self.policy.policy}   {describe_pick(outcome)}   level {request.rule.level}"
        )
        self.reporter.line(
            f"  artifact {dump.artifact_id}  dump of {format_moment(dump.stop_at)},"
            f" {format_duration(outcome.started_at - dump.stop_at)} old;"
            f" {format_count(len(plan.slices), 'slice')} of the oplog on timeline {dump.timeline}"
        )
        return plan

    def _pick(self) -> datetime | None:
        """Return the moment that the rule picks among those that can be restored; None for the end of the log."""
        request, now = self.outcome.request, self.outcome.started_at
        log = read_stored_log(self.workplace, self.policy.policy)
        self.outcome.candidates = len(log.dumps)
        if request.artifact_id is not None or request.rule.pick == "latest":
            return None
        earliest = now - request.rule.window if request.rule.window else None
        # In the second of its own last entry a dump may be ahead of the moment already.
        windows = [(window, window.from_at + timedelta(seconds=1)) for window in find_windows(log.dumps, log.slices)]
        spans = [
            (max(from_at, earliest) if earliest else from_at, min(window.to_at, now), window.timeline)
            for window, from_at in windows
        ]
        spans = [span for span in spans if span[0] <= span[1]]
        if not spans:
            return None
        if request.rule.pick == "oldest":
            self.outcome.disaster_at = min(spans)[0]
        else:
            chance = random.Random(self.outcome.seed)  # noqa: S311 - repeatable, not secret
            self.outcome.disaster_at, _ = draw_uniform(chance, spans)
        return self.outcome.disaster_at

    def _exists(self, plan: OplogPlan) -> None:
        entry = plan.restore.entry
        with self.level("exists") as level:
            self.verify_copies(entry)
            objects = format_count(len(entry.manifest.objects), "object")
            slices = format_count(len(plan.slices), "slice")
            level.summary = f"{objects} and {slices} in {' and '.join(entry.stores)}, signatures and sizes verified"

    def _restore(self, plan: OplogPlan, steps: ReplaySteps, server: ScratchServer) -> None:
        """Restore as in production, and prove it there."""
        manifest = plan.restore.entry.manifest
        options = RestoreOptions(
            via=way_of(self.workplace, manifest),
            details=plan.restore.details,
            parts=tuple(item.part for item in plan.restore.objects),
            scratch=True,
            stage_folder=server.stage_folder,
            work_folder=self.workplace.work_folder,
        )
        assert server.stage_folder is not None
        with open_replay(server.url, options, replay_request(plan, server.stage_folder / "restores")) as session:
            with self.level("loads") as level, self.phase("load"):
                steps.load(session)
                level.summary = f"scratch {self.policy.target.engine} {server.version}"
            with self.level("replays") as level:
                with self.phase("replay"):
                    replayed = steps.replay(session)
                with self.phase("indexes"):
                    self.outcome.findings += session.finish().warnings
                self.outcome.findings += describe_doubts(plan, replayed)[len(plan.notes) :]
                self.outcome.recovered = _recovery(plan, replayed)
                level.summary = describe_replay(replayed)
            self._stamp_rto()
            if "same-data" in self.wanted:
                self._compare(session, replayed, options, server.url)
        if "works" in self.wanted:
            with self.level("works") as level, self.phase("checks"):
                engine = find_engine(manifest.engine, manifest.method)
                self.run_checks(plan.restore.details["parts"], engine, server.url, level)
            self._stamp_rto()

    def _compare(self, session: ReplaySession, replayed: Replayed, options: RestoreOptions, url: Secret) -> None:
        """Compare the restored copy with what the replay should have left."""
        with self.level("same-data") as level, self.phase("compare"):
            expected = session.expected(replayed)
            engine = find_engine("mongodb", "dump")
            restored = engine.fingerprint(url, dataclasses.replace(options, details=_with_databases(options, expected)))
            merged: dict[str, dict[str, Any]] = {}
            for fingerprint in restored.values():
                for kind, items in fingerprint.items():
                    merged.setdefault(kind, {}).update(items)
            self.outcome.differences = compare_fingerprints(expected, comparable(merged, expected), lambda _: "")
            level.lines = [describe_difference(item) for item in self.outcome.differences]
            collections = expected["collection"]
            digested = sum("digest" in facts for facts in collections.values())
            level.summary = (
                f"{format_count(len(collections), 'collection')} as the replay left them, {digested} by digest;"
                f" {format_count(len(expected['index']), 'index', 'indexes')},"
                f" {format_count(len(expected['view']), 'view')} by definition or name"
            )
            if level.lines:
                level.result = "failed"
                level.summary = format_count(len(level.lines), "difference")


def _with_databases(options: RestoreOptions, expected: Fingerprint) -> Mapping[str, Any]:
    """Return the details with the databases that came after the dump, so that they are read as well."""
    names = {name.partition(".")[0] for kind in ("collection", "view") for name in expected[kind]}
    details: dict[str, Any] = {**options.details, "parts": dict(options.details["parts"])}
    for part in options.parts:
        facts = options.details["parts"][part]
        if "databases" in facts:
            details["parts"][part] = {**facts, "databases": sorted({*facts["databases"], *names})}
    return details


def _recovery(plan: OplogPlan, replayed: Replayed) -> Recovery:
    dump = plan.path.dump
    newest_at = max(filter(None, (replayed.last_at, dump.stop_at)))
    oplog_ts = str(replayed.last_ts or dump.stop_ts)
    size_bytes = plan.plain_bytes
    restored_to_at = plan.path.until or newest_at
    return Recovery(dump.timeline, "", newest_at, restored_to_at, len(plan.slices), size_bytes, oplog_ts=oplog_ts)


def describe_replay(replayed: Replayed) -> str:
    """Say how far a replay got."""
    last = f", the last of {format_moment(replayed.last_at)} ({replayed.last_ts})" if replayed.last_at else ""
    return (
        f"{format_count(replayed.entries, 'entry', 'entries')} read,"
        f" {format_count(replayed.operations, 'operation')} done{last}"
    )
