"""Bringing MongoDB to a moment: a dump, its own piece of the oplog, and stored slices behind it.

The way is planned from signed manifests and refused with the place that is missing; every slice is read and compared
before the target is touched. A restore that was killed while it replayed goes on by the same command.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from drkit.credentials import Secret
from drkit.engines import LoadResult
from drkit.engines.mongodb_apply import Replayed
from drkit.engines.mongodb_replay import ReplayRequest, ReplaySession, newest_place, open_replay
from drkit.errors import DrkitError, IntegrityError, RecoveryGap
from drkit.keys import KeyFile
from drkit.operations import Reporter, Workplace
from drkit.operations.dump_plan import USERS_KIND, RestorePlan, RestoreRequest, plan_restore
from drkit.operations.oplog_log import StoredOplog, StoredSlice, dump_points, open_slice, stored_oplog
from drkit.operations.reader_lease import reader_lease
from drkit.operations.replay_words import describe_accounts, describe_doubts
from drkit.operations.restore import FetchedObject, copies_passed_over, fetch, inspect, load_parts, way_of
from drkit.operations.running import recorded_run
from drkit.operations.selection import PolicyArtifacts, find_artifacts
from drkit.oplog import OplogSpan, OplogTs, read_ts, split_entries
from drkit.oplog_archive import archived_entries
from drkit.oplog_path import ReplayPath, StoredLog, find_path, path_to_stop
from drkit.stream import Meter
from drkit.units import format_bytes, format_count, format_moment, format_utc

_STATE_FOLDER = "restores"
_SILENT = "SecantusDB"


@dataclass(frozen=True)
class OplogPlan:
    """What a restore to a moment will do, as data; made without changing anything.

    ``notes`` say what was passed over on the way to it. ``undumped_timeline`` is a newer timeline than all dumps'.
    """

    restore: RestorePlan
    path: ReplayPath
    slices: tuple[StoredSlice, ...]
    notes: tuple[str, ...] = ()
    undumped_timeline: int | None = None

    @property
    def newer_history(self) -> str:
        """Say that the end of the log that is restored is not what the source had last; empty where it is."""
        if self.undumped_timeline is None or self.path.until is not None:
            return ""
        return (
            f"timeline {self.undumped_timeline} of the oplog has no dump yet: what is restored is timeline"
            f" {self.path.dump.timeline}, the history before it"
        )

    @property
    def users_note(self) -> str:
        """Say that users and roles are older than the data; empty where none come, or where the oplog has them."""
        product = str(self.restore.details["server"].get("product", ""))
        if not any(item.kind == USERS_KIND for item in self.restore.objects) or not product.startswith(_SILENT):
            return ""
        return f"users and roles are those of the dump: {product} writes nothing of them into its oplog"

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of the slices in a store."""
        return sum(item.record.stored_bytes for item in self.slices)

    @property
    def plain_bytes(self) -> int:
        """Return the bytes of their entries."""
        return sum(item.record.plain_bytes for item in self.slices)

    def document(self) -> dict[str, Any]:
        """Return the plan for scripts."""
        path, dump = self.path, self.path.dump
        replay = {
            "timeline": dump.timeline,
            "until": format_utc(path.until) if path.until else None,
            "dump": {"start_ts": str(dump.start_ts), "stop_ts": str(dump.stop_ts), "included": dump.included},
            "reaches_ts": str(path.reaches_ts),
            "slices": [
                {
                    "name": item.record.part,
                    "from_ts": item.record.from_ts,
                    "to_ts": item.record.to_ts,
                    "entries": item.record.entries,
                    "stored_bytes": item.record.stored_bytes,
                    "stores": list(item.stores),
                }
                for item in self.slices
            ],
        }
        restores_to = format_utc(path.until or path.reaches_ts.moment)
        return {
            **self.restore.document(),
            "restores_to": restores_to,
            "replay": replay,
            "notes": [note for note in (*self.notes, self.newer_history, self.users_note) if note],
        }

    def describe(self) -> str:
        """Return the plan for people."""
        path, dump = self.path, self.path.dump
        policy = self.restore.entry.manifest.policy
        _, *lines = self.restore.describe().splitlines()
        end = path.until or path.reaches_ts.moment
        lines.insert(0, f"to bring {policy} to {format_moment(end)} (timeline {dump.timeline})")
        entries = format_count(sum(item.record.entries for item in self.slices), "entry", "entries")
        own = "the oplog of the dump's own time" if dump.included else "no oplog in the dump itself"
        slices = format_count(len(self.slices), "slice")
        lines.append(
            f"  replay     {own}; {slices} with {entries}, {format_bytes(self.stored_bytes)} stored,"
            f" up to {path.reaches_ts} ({format_moment(path.reaches_ts.moment)})"
        )
        lines += [f"  note       {note}" for note in (*self.notes, self.newer_history, self.users_note) if note]
        return "\n".join(lines)


def plan_oplog_restore(
    workplace: Workplace, request: RestoreRequest, identities: Sequence[KeyFile], *, to_moment: bool
) -> OplogPlan | None:
    """Decide how to come to a moment; None where the policy's dumps have no place in an oplog: they stand alone.

    With ``to_moment`` the log is followed up to ``request.at``, or as far as it goes; without it only as far as the
    dump needs it to be consistent. Raise RecoveryGap naming the first place that is missing.
    """
    found = find_artifacts(workplace, request.policy)
    if not dump_points(found.entries):
        return None
    oplog = stored_oplog(workplace, request.policy, {entry.manifest.repo_id for entry in found.entries})
    log = _log_of(request.policy, found, oplog)
    if to_moment:
        chosen = _chosen_id(found, request)
        path = find_path(log, request.at, chosen)
    else:
        entry = plan_restore(workplace, request, identities).entry
        if entry.manifest.oplog is None:
            return None
        try:
            path = path_to_stop(log, entry.manifest.artifact_id)
        except RecoveryGap:
            if entry.manifest.oplog.included:
                raise
            # No slices make it consistent: it is restored as any dump of some databases, each at its own moment.
            return None
    request = dataclasses.replace(request, artifact_id=path.dump.artifact_id)
    plan = plan_restore(workplace, request, identities)
    names = {(item.timeline, item.name) for item in path.slices}
    slices = tuple(item for item in oplog.slices if (item.slice.timeline, item.slice.name) in names)
    newest = max(item.timeline for item in log.dumps)
    undumped = oplog.timeline if oplog.timeline > newest else None
    return OplogPlan(plan, path, slices, tuple(_notes(found, oplog)), undumped)


def read_stored_log(workplace: Workplace, policy: str) -> StoredLog:
    """Return the dumps and slices of a policy, as planning looks at them."""
    found = find_artifacts(workplace, policy)
    return _log_of(policy, found, stored_oplog(workplace, policy, {entry.manifest.repo_id for entry in found.entries}))


def _log_of(policy: str, found: PolicyArtifacts, oplog: StoredOplog) -> StoredLog:
    return StoredLog(policy, dump_points(found.entries), [item.slice for item in oplog.slices], oplog.gaps)


def _chosen_id(found: PolicyArtifacts, request: RestoreRequest) -> str | None:
    """Return the whole id of the artifact that is asked for, None where none is."""
    if request.artifact_id is None:
        return None
    prefix = request.artifact_id.upper()
    matches = [entry.manifest for entry in found.entries if entry.manifest.artifact_id.startswith(prefix)]
    if len(matches) == 1 and matches[0].oplog is None:
        raise RecoveryGap(
            f"artifact {matches[0].artifact_id} has no place in the oplog: nothing can be replayed after it"
        )
    return matches[0].artifact_id if len(matches) == 1 else request.artifact_id


def _notes(found: PolicyArtifacts, oplog: StoredOplog) -> Iterator[str]:
    yield from (f"not believed: {refusal.message}" for refusal in found.refused)
    yield from oplog.doubts
    yield from (f"not reached: {error.message}" for error in oplog.unreachable)


@dataclass(frozen=True)
class OplogResult:
    """What came of a restore to a moment."""

    plan: OplogPlan
    loaded: LoadResult
    replayed: Replayed
    took_s: float
    run_id: str


def restore_oplog(
    workplace: Workplace, plan: OplogPlan, request: RestoreRequest, url: Secret, reporter: Reporter
) -> OplogResult:
    """Carry out a plan against a target; the target is checked first, written to last.

    Raise SourceError when the target is not empty, IntegrityError when the dump or a slice is not as it was signed
    (then the target was not touched), or an entry does not fit (then it holds an unfinished restore, marked as such).
    """
    manifest = plan.restore.entry.manifest
    with (
        recorded_run(workplace.catalog, workplace.clock, "restore", manifest.policy, alone=None) as running,
        reader_lease(workplace, manifest.policy, plan.restore.entry.stores, reporter),
    ):
        clock_s = time.monotonic()
        options = request.options(plan.restore.details, tuple(item.part for item in plan.restore.objects))
        options = dataclasses.replace(options, work_folder=workplace.work_folder, via=way_of(workplace, manifest))
        asked = replay_request(plan, state_folder(workplace))
        with open_replay(url, options, asked) as session:
            reporter.line(f"restore {manifest.policy}  artifact {manifest.artifact_id}  to {session.summary}")
            steps = ReplaySteps(workplace, plan, reporter)
            warnings = steps.verify()
            if session.resumes:
                reporter.line("  load        done before; going on with the replay")
                steps.load_users(session)
            else:
                warnings += _leave_timeline(workplace, plan, url)
                steps.load(session)
            replayed = steps.replay(session)
            loaded = session.finish()
        loaded.warnings[:0] = [*warnings, *describe_doubts(plan, replayed), *describe_accounts(replayed)]
        running.outcome = {
            "artifact_id": manifest.artifact_id,
            "loaded": loaded.loaded,
            "last_ts": str(replayed.last_ts),
        }
        return OplogResult(plan, loaded, replayed, time.monotonic() - clock_s, running.run_id)


def state_folder(workplace: Workplace) -> Path:
    """Return where restores in progress keep how far they are; it outlives the process."""
    return workplace.site.folder / _STATE_FOLDER


def replay_request(plan: OplogPlan, folder: Path) -> ReplayRequest:
    """Return what the engine is told of a plan."""
    dump = plan.path.dump
    return ReplayRequest(dump.artifact_id, dump.stop_ts, plan.path.until, folder)


@dataclass
class ReplaySteps:
    """The steps of a restore to a moment, one after another; a drill takes the same ones."""

    workplace: Workplace
    plan: OplogPlan
    reporter: Reporter

    def __post_init__(self) -> None:
        self.fetched: list[FetchedObject] = []

    def verify(self) -> list[str]:
        """Read everything that the plan names and compare it with what was signed; return what was passed over."""
        plan = self.plan.restore
        self.fetched = fetch(self.workplace, plan, self.workplace.work_folder, self.reporter)
        notes = [*copies_passed_over(plan, self.fetched), *inspect(plan, self.fetched, self.reporter)]
        with self.reporter.progress("slices", self.plan.plain_bytes) as progress:
            for stored in self.plan.slices:
                span, content = OplogSpan(), b"".join(open_slice(self.workplace, plan.identities, stored))
                try:
                    span.add(content)
                except IntegrityError as error:
                    raise IntegrityError(f"oplog slice {stored.record.part}: {error.message}") from error
                progress.advance(len(content))
                _require_as_signed(stored, span)
        total_bytes = plan.stored_bytes + self.plan.stored_bytes
        self.reporter.line(f"  fetch       {format_bytes(total_bytes)} read, digests equal")
        return notes

    def load(self, session: ReplaySession) -> None:
        """Load the dump's documents."""
        session.begin()
        load_parts(self.plan.restore, self.fetched, session, self.reporter)

    def load_users(self, session: ReplaySession) -> None:
        """Read users and roles once more, where they were asked for: they are made at the very end."""
        load_parts(self.plan.restore, self._users, session, self.reporter)

    @property
    def _users(self) -> list[FetchedObject]:
        return [item for item in self.fetched if item.record.kind == USERS_KIND]

    def replay(self, session: ReplaySession) -> Replayed:
        """Replay the dump's own piece of the oplog, and the slices behind it."""
        with self.reporter.progress("replay", self.plan.plain_bytes) as progress:
            replayed = session.replay(self._entries(progress.advance))
        at = f", the last of {format_moment(replayed.last_at)}" if replayed.last_at else ""
        self.reporter.line(
            f"  replay      {format_count(replayed.entries, 'entry', 'entries')} read,"
            f" {format_count(replayed.operations, 'operation')} done{at}"
        )
        return replayed

    def _entries(self, advance: Any) -> Iterator[bytes]:
        """Yield the entries in their order, none twice, up to where the way goes."""
        for raw in self._joined():
            advance(len(raw))
            yield raw

    def _joined(self) -> Iterator[bytes]:
        path, plan = self.plan.path, self.plan.restore
        reached_ts: OplogTs | None = None
        if path.dump.included:
            for item in (item for item in self.fetched if item not in self._users):
                with item.open(plan, Meter()) as chunks:
                    yield from archived_entries(chunks)
            reached_ts = path.dump.stop_ts
        for stored in self.plan.slices:
            entries = split_entries(open_slice(self.workplace, plan.identities, stored))
            yield from _between(entries, reached_ts, path)
            reached_ts = max(reached_ts or stored.slice.to_ts, stored.slice.to_ts)
        if path.until is not None and path.goes_on:
            raise RecoveryGap(
                f"no oplog entry up to {reached_ts or path.dump.stop_ts} is later than {format_moment(path.until)}, and"
                " the log goes on behind it: what was written until then may be missing",
                hints=[f"choose an earlier moment: drkit timeline {plan.entry.manifest.policy}"],
            )


def _between(entries: Iterator[bytes], reached_ts: OplogTs | None, path: ReplayPath) -> Iterator[bytes]:
    """Leave out what was replayed before, what the dump needs not, and what is behind the end of the way."""
    for raw in entries:
        ts = read_ts(raw)
        if ts > path.reaches_ts:
            return
        if ts > reached_ts if reached_ts is not None else ts >= path.dump.start_ts:
            yield raw


def _require_as_signed(stored: StoredSlice, span: OplogSpan) -> None:
    """Raise IntegrityError unless a slice holds the entries that its manifest says."""
    record = stored.record
    held = (span.entries, span.last_sha256, span.last_ts, str(span.first_ts))
    begins_late = span.first_ts is not None and span.first_ts > stored.slice.from_ts
    if held != (record.entries, record.last_sha256, stored.slice.to_ts, record.first_ts) or not begins_late:
        raise IntegrityError(f"oplog slice {record.part} does not hold the entries that its manifest says")


def _leave_timeline(workplace: Workplace, plan: OplogPlan, url: Secret) -> list[str]:
    """Begin a new timeline when the target is the source itself; return a warning where that could not be done."""
    from drkit.operations.oplog_branch import start_timeline

    manifest = plan.restore.entry.manifest
    newest_ts = newest_place(url, str(plan.restore.details["server"].get("address", "")))
    if newest_ts is None:
        return []
    policy = workplace.policies.get(manifest.policy)
    until: datetime = plan.path.until or plan.path.reaches_ts.moment
    reason = f"policy {manifest.policy} was restored to {format_moment(until)}"
    if policy is None:
        return [f"no new timeline was begun, because this site has no policy {manifest.policy}: take a dump now"]
    try:
        timeline = start_timeline(workplace, policy, newest_ts, reason)
    except DrkitError as error:
        return [f"no new timeline was begun: {error.message}; take a dump now: drkit backup {manifest.policy}"]
    return [f"timeline {timeline} of the oplog begins here; take a dump now: drkit backup {manifest.policy}"]
