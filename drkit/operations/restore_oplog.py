"""Bringing MongoDB to a moment as `oplog_plan` says.

Every slice is read and compared before the target is touched. A restore that was killed while it replayed goes on by
the same command.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from drkit.credentials import Secret
from drkit.engines import LoadResult
from drkit.engines.mongodb_apply import Replayed
from drkit.engines.mongodb_replay import ReplayRequest, ReplaySession, newest_place, open_replay
from drkit.errors import DrkitError, IntegrityError, RecoveryGap
from drkit.operations import Reporter, Workplace
from drkit.operations.dump_plan import USERS_KIND, RestoreRequest
from drkit.operations.oplog_log import StoredSlice, open_slice
from drkit.operations.oplog_plan import OplogPlan
from drkit.operations.reader_lease import reader_lease
from drkit.operations.replay_words import describe_accounts, describe_doubts
from drkit.operations.restore import FetchedObject, copies_passed_over, fetch, inspect, load_options, load_parts
from drkit.operations.running import recorded_run
from drkit.oplog import OplogSpan, OplogTs, read_ts, split_entries
from drkit.oplog_archive import archived_entries
from drkit.oplog_path import ReplayPath
from drkit.stream import Meter
from drkit.units import format_bytes, format_count, format_moment

_STATE_FOLDER = "restores"


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
        with _open_session(workplace, plan, request, url) as session:
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


def look_at_target(workplace: Workplace, plan: OplogPlan, request: RestoreRequest, url: Secret) -> str:
    """Check a target as `restore_oplog` does and return a line that names it; change nothing.

    Raise SourceError naming what is in the way; an unfinished restore of just that is not.
    """
    with _open_session(workplace, plan, request, url) as session:
        return session.summary


def _open_session(
    workplace: Workplace, plan: OplogPlan, request: RestoreRequest, url: Secret
) -> AbstractContextManager[ReplaySession]:
    asked = replay_request(plan, state_folder(workplace))
    return open_replay(url, load_options(workplace, plan.restore, replace(request, replays=True)), asked)


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
