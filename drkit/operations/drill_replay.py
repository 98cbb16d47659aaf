"""A drill of base and WAL: the production restore into a scratch folder, replayed to a moment, and proven there.

Nothing is compared with counts of the moment of the backup: replay goes on to another moment. What is proven instead is
the structure of every file, page and index, the position that was reached, and the policy's own checks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from drkit.engines.postgres_heartbeat import describe_heartbeats, judge_heartbeats, read_heartbeats
from drkit.engines.registry import find_engine
from drkit.operations import Workplace
from drkit.operations.base_plan import (
    BasePlan,
    BaseRequest,
    BaseSources,
    plan_base_restore,
    read_sources,
    require_machine,
)
from drkit.operations.drill_frame import DrillFrame
from drkit.operations.drill_outcome import DrillRequest, HeartbeatProof, LevelOutcome, Recovery, describe_pick
from drkit.operations.extraction import Extraction, Owner
from drkit.operations.restore_base import (
    Replayed,
    ReplaySite,
    describe_replayed,
    finding_client,
    open_replay,
    superuser_of,
)
from drkit.operations.restore_files import extract, fetch_base, passed_over
from drkit.operations.sandboxing import sandbox_for, scratch_folder
from drkit.operations.stored_log import LogReader
from drkit.policy import Policy
from drkit.recovery import find_windows
from drkit.sandboxes import SandboxRequest, ScratchFolder
from drkit.sandboxes.postgres_proof import check_pages, check_structure, verify_files
from drkit.sandboxes.postgres_server import RestoredServer, ServerPlace
from drkit.stream import Meter, drain
from drkit.units import When, format_bytes, format_count, format_duration, format_moment

BASE = "base"
_PROOFS = ("verify files", "heartbeats", "amcheck", "checksums")
"""Phases in which something is proven that a restore in earnest would not wait for; they do not count for RTO."""
_EDGE_SHARE = 0.5
_JUST_AFTER = timedelta(milliseconds=1)


def is_replayed(workplace: Workplace, policy: Policy, request: DrillRequest) -> bool:
    """Tell whether a drill is one of base and WAL: by its artifact, or because the policy takes bases.

    Of a policy that has both, levels up to loads are those of the newest dump.
    """
    methods = {rule.method for rule in policy.backups}
    if request.artifact_id is not None:
        prefix = request.artifact_id.upper()
        known = [entry.manifest for entry in workplace.catalog.artifacts(policy.policy)]
        chosen = [manifest.method for manifest in known if manifest.artifact_id.startswith(prefix)]
        if chosen:
            return chosen[0] == BASE
    if BASE not in methods:
        return False
    return request.rule.level in ("replays", "same-data", "works") or methods <= {BASE, "wal"}


class ReplayDrill(DrillFrame):
    """One drill of base and WAL in progress."""

    def run(self) -> None:
        """Go up the levels until the one asked for, or the first that fails."""
        with self.phase("select"):
            plan = self._select()
        self._exists(plan)
        if "loads" in self.wanted:
            self._restore(plan)
        else:
            self._read_all(plan)
            self._stamp_rto()
        self.outcome.judge()

    def _stamp_rto(self) -> None:
        proofs_s = sum(self.outcome.phases_s.get(name, 0.0) for name in _PROOFS)
        self.outcome.rto = timedelta(seconds=time.monotonic() - self.began_s - proofs_s)

    def _select(self) -> BasePlan:
        """Choose the moment, and plan the way to it."""
        outcome, request = self.outcome, self.outcome.request
        with self.blame("exists"):
            sources = read_sources(self.workplace, self.policy.policy, self.identities)
            outcome.candidates = len(sources.state.bases)
            when, timeline = self._target(sources)
            base_request = BaseRequest(self.policy.policy, when, request.artifact_id, timeline)
            plan = plan_base_restore(self.workplace, base_request, self.identities, sources)
        outcome.entry = plan.entry
        require_machine(plan)
        outcome.findings += plan.warnings
        manifest = plan.entry.manifest
        self.reporter.line(
            f"drill {request.rule.name} of {manifest.policy}   {describe_pick(outcome)}   level {request.rule.level}"
        )
        age = format_duration(outcome.started_at - manifest.covers.to_at)
        self.reporter.line(
            f"  base        {manifest.artifact_id}  of {format_moment(manifest.covers.to_at)}, {age} old;"
            f" {format_count(len(plan.segments), 'WAL segment')} on timeline {plan.recovery.timeline}"
        )
        return plan

    def _target(self, sources: BaseSources) -> tuple[When, int | None]:
        """Return what the request asks for, or a moment that the drill's rule picks, and its timeline."""
        outcome, request = self.outcome, self.outcome.request
        if request.at is not None:
            return When("time", request.at), None
        if request.artifact_id is not None or request.rule.pick == "latest":
            return When("latest"), None
        picked = pick_moment(sources, request, outcome.started_at, outcome.seed)
        if picked is None:
            return When("latest"), None
        outcome.disaster_at, timeline = picked
        return When("time", outcome.disaster_at), timeline

    def _exists(self, plan: BasePlan) -> None:
        with self.level("exists") as level:
            for member in plan.members:
                self.verify_copies(member.entry)
            objects = format_count(sum(len(member.objects) for member in plan.members), "object")
            wal = format_count(len(plan.segments), "WAL segment")
            level.summary = f"{objects} and {wal} in {' and '.join(plan.entry.stores)}, signatures and sizes verified"

    def _read_all(self, plan: BasePlan) -> None:
        """Prove level intact alone: read, decrypt and compare every byte, of the WAL as well."""
        with self.level("intact") as level, self.phase("fetch"):
            fetched = fetch_base(self.workplace, plan, self.reporter)
            self.outcome.findings += passed_over(fetched)
            for member in fetched:
                for item in member.objects:
                    with item.open(member.plan, Meter()) as chunks:
                        drain(chunks)
            reader = LogReader(self.workplace, self.identities)
            for stored in plan.segments:
                reader.read(stored, plan.segment_bytes)
            stored_bytes = plan.stored_bytes + sum(stored.file.stored_bytes for stored in plan.segments)
            level.summary = f"{format_bytes(stored_bytes)} read, decrypted, digests equal"

    def _restore(self, plan: BasePlan) -> None:
        """Restore as in production, into a folder that is lent for it, and prove it there."""
        with self.level("intact") as intact, self.phase("fetch"):
            fetched = fetch_base(self.workplace, plan, self.reporter)
            self.outcome.findings += passed_over(fetched)
            intact.summary = f"{format_bytes(plan.stored_bytes)} read, digests equal; decrypted while written"
        with self._scratch(plan) as folder:
            place = ServerPlace(folder.data, folder.folder, plan.major, folder.user, superuser_of(plan.base.details))
            with self.level("loads") as level:
                owner = Owner(folder.uid, folder.gid)
                folder.data.mkdir(mode=0o700)
                owner.take(folder.data)
                extraction = Extraction(folder.data, folder.folder / "tablespaces", folder.folder / "config", owner)
                with self.phase("write"):
                    extract(plan, fetched, extraction, self.reporter)
                    extraction.write_control_file()
                folder.hand_over()
                with self.phase("verify files"):
                    verified = verify_files(place)
                chain = f"combined from {len(plan.members)} bases, " if plan.builds_on else ""
                level.summary = f"{format_bytes(plan.plain_bytes)} written, {chain}{verified}"
            if "replays" in self.wanted:
                extraction.remap()
                self._prove(plan, ReplaySite(place, self._spool(folder), owner))
            else:
                self._stamp_rto()

    def _spool(self, folder: ScratchFolder) -> Path:
        spool = folder.folder / "spool"
        spool.mkdir(mode=0o700)
        return spool

    def _prove(self, plan: BasePlan, site: ReplaySite) -> None:
        """Replay, then look into the promoted server."""
        with ExitStack() as stack:
            with self.level("replays") as level:
                with self.phase("replay"):
                    client = stack.enter_context(finding_client(site))
                    lent = open_replay(self.workplace, plan, site, client, self.reporter)
                    server, replayed = stack.enter_context(lent)
                self.outcome.recovered = _recovery(plan, replayed)
                self.outcome.scratch["version"] = site.place.version
                self.outcome.findings += replayed.recovered.doubts
                level.summary = f"postgres {site.place.version}, {describe_replayed(replayed)}"
                self._prove_heartbeats(replayed, site, level)
            self._stamp_rto()
            if "same-data" in self.wanted:
                self._same_data(server, replayed)
            if "works" in self.wanted:
                with self.level("works") as works, self.phase("checks"):
                    engine = find_engine(plan.entry.manifest.engine, plan.entry.manifest.method)
                    self.run_checks(_databases(replayed), engine, site.place.url, works)
                self._stamp_rto()

    def _prove_heartbeats(self, replayed: Replayed, site: ReplaySite, level: LevelOutcome) -> None:
        """Prove the moment to the row, where the policy has heartbeats written."""
        rule, recovery = self.policy.rule("wal"), self.outcome.recovered
        if rule is None or rule.heartbeat is None or recovery is None:
            return
        moment = recovery.restored_to_at
        with self.phase("heartbeats"):
            found = read_heartbeats(site.place.url, replayed.recovered.databases, self.policy.policy, moment)
        if found is None:
            self.outcome.findings.append(
                f"the moment is not proven to the row: no table drkit.heartbeat came back of {format_moment(moment)};"
                " heartbeats began later, or the table was dropped"
            )
            return
        level.lines += judge_heartbeats(found, moment)
        level.summary += f"; {describe_heartbeats(found)}"
        if level.lines:
            level.result = "failed"
        proof = HeartbeatProof(found.count, found.newest, found.newest_at, len(level.lines))
        self.outcome.recovered = replace(recovery, heartbeat=proof)

    def _same_data(self, server: RestoredServer, replayed: Replayed) -> None:
        """Prove that no page and no index is broken: counts of the moment that was replayed to are nowhere recorded."""
        with self.level("same-data") as level:
            said: list[str] = []
            with self.phase("amcheck"):
                structure = check_structure(server.place)
            level.lines += structure.damage
            said.append(structure.summary)
            if replayed.recovered.checksums:
                with self.phase("checksums"):
                    pages = check_pages(server)
                level.lines += pages.damage
                said.append(pages.summary)
            level.summary = ", ".join(said)
            if level.lines:
                level.result = "failed"
            elif not structure.ran and not replayed.recovered.checksums:
                level.result = "not applicable"

    @contextmanager
    def _scratch(self, plan: BasePlan) -> Iterator[ScratchFolder]:
        """Lend a folder; whether it was taken away again is a result of its own."""
        request = SandboxRequest(
            major=plan.major, need_bytes=plan.need_bytes(start=True), folder=scratch_folder(self.workplace)
        )
        sandbox = sandbox_for(plan.entry.manifest.engine)
        with ExitStack() as lent:  # an interrupt at any point in here takes the server away as well
            with self.phase("provision"):
                folder = lent.enter_context(sandbox.open_folder(request, self.workplace.catalog))
            self.outcome.scratch = {"kind": sandbox.kind}
            try:
                yield folder
            finally:
                with self.phase("tear down"):
                    self.tear_down(lent)


def _recovery(plan: BasePlan, replayed: Replayed) -> Recovery:
    recovered, base = replayed.recovered, plan.recovery.base
    newest = max(filter(None, (recovered.last_commit_at, base.stop_at)))
    target = plan.request.when
    restored_to = target.moment if target.kind == "time" and target.moment is not None else newest
    lsn = recovered.lsn or plan.facts["stop_lsn"]
    return Recovery(plan.recovery.timeline, lsn, newest, restored_to, replayed.served, replayed.served_bytes)


def _databases(replayed: Replayed) -> Mapping[str, Mapping[str, Any]]:
    """Return the databases that a check may ask: the policy's, or all that were restored but postgres itself."""
    names = list(replayed.recovered.databases)
    others = [name for name in names if name != "postgres"]
    return {name: {"kind": "database", "label": name} for name in others or names}


def pick_moment(sources: BaseSources, request: DrillRequest, now: datetime, seed: int) -> tuple[datetime, int] | None:
    """Return the moment that a drill's rule picks among those that can be restored, and its timeline.

    ``random`` is seeded. Half of the draws are uniform over the windows; the other half is taken from where recovery is
    most likely to go wrong: just after a base, at the borders of segments, at a change of timeline, and the oldest
    moment that is promised. None when there is nothing to choose from.
    """
    earliest = now - request.rule.window if request.rule.window else None
    spans = [
        (max(window.from_at, earliest) if earliest else window.from_at, min(window.to_at, now), window.timeline)
        for window in find_windows(sources.state)
    ]
    spans = [span for span in spans if span[0] <= span[1]]
    if not spans:
        return None
    if request.rule.pick == "oldest":
        oldest = min(spans)
        return oldest[0], oldest[2]
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    if chance.random() < _EDGE_SHARE:
        return chance.choice(_edges(sources, spans))
    return draw_uniform(chance, spans)


def draw_uniform(chance: random.Random, spans: Sequence[tuple[datetime, datetime, int]]) -> tuple[datetime, int]:
    """Return a moment of one of the spans, every moment as likely as any other, and the span's timeline."""
    lengths = [(end - start).total_seconds() for start, end, _ in spans]
    start, end, timeline = chance.choices(spans, lengths if any(lengths) else None)[0]
    return start + chance.random() * (end - start), timeline


def _edges(sources: BaseSources, spans: Sequence[tuple[datetime, datetime, int]]) -> list[tuple[datetime, int]]:
    """Return the moments at which something changes, each on the timeline of a window that holds it."""
    moments = [base.stop_at + _JUST_AFTER for base in sources.state.bases]
    for item in sources.state.files:
        moments += filter(None, (item.first_commit_at, item.last_commit_at))
    edges = {(start, timeline) for start, _, timeline in spans}
    for moment in moments:
        edges |= {(moment, timeline) for start, end, timeline in spans if start <= moment <= end}
    return sorted(edges)
