"""Planning a restore of a server's files: data, made and printed before anything moves.

Gaps, a base that is later than the target, and whatever is not what was signed are refused here.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from drkit.binaries import postgres_binary
from drkit.engines.postgres_recovery import ReplayTarget
from drkit.errors import IntegrityError, RecoveryGap, SourceError
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.artifacts import open_details
from drkit.operations.dump_plan import RestorePlan, believed_copies
from drkit.operations.lineage import lineage, restorable, why_unrestorable
from drkit.operations.replay import SPOOL_BYTES, ReplayLog
from drkit.operations.selection import PolicyArtifacts, find_artifacts
from drkit.operations.stored_log import (
    LogReader,
    PolicyLogs,
    StoredFile,
    base_points,
    log_state,
    parsed_histories,
    read_histories,
    read_logs,
    with_base,
)
from drkit.recovery import LogState, RecoveryPlan, plan_recovery
from drkit.units import MIB, When, format_count, format_moment
from drkit.wal import parse_lsn

COMBINE_TOOL = "pg_combinebackup"
_SPARE_BYTES = 256 * MIB


@dataclass(frozen=True)
class BaseRequest:
    """What to bring back: where to stop, on which timeline, from which base; None leaves it to the plan."""

    policy: str
    when: When = field(default_factory=lambda: When("latest"))
    artifact_id: str | None = None
    timeline: int | None = None
    inclusive: bool = True
    jobs: int = 2


@dataclass(frozen=True)
class BaseSources:
    """What the stores hold of a policy: artifacts, log, histories."""

    artifacts: PolicyArtifacts
    logs: PolicyLogs
    histories: dict[int, bytes]
    state: LogState


def read_sources(workplace: Workplace, policy: str, identities: Sequence[KeyFile]) -> BaseSources:
    """Read what a recovery can be planned from."""
    found = find_artifacts(workplace, policy)
    logs = read_logs(workplace, policy, {entry.manifest.repo_id for entry in found.entries})
    histories = read_histories(logs, LogReader(workplace, identities))
    state = log_state(logs, base_points(restorable(found)), parsed_histories(histories), policy)
    return BaseSources(found, logs, histories, state)


@dataclass(frozen=True)
class BasePlan:
    """What a restore into a folder will do, as data; made without changing anything."""

    request: BaseRequest
    recovery: RecoveryPlan
    base: RestorePlan
    files: tuple[StoredFile, ...]
    histories: dict[int, bytes]
    segment_bytes: int
    warnings: tuple[str, ...] = ()
    builds_on: tuple[RestorePlan, ...] = ()

    @property
    def entry(self) -> ArtifactEntry:
        """Return the base artifact."""
        return self.base.entry

    @property
    def members(self) -> tuple[RestorePlan, ...]:
        """Return every artifact whose files are needed: the full base first, the one to restore last."""
        return (*self.builds_on, self.base)

    @property
    def stores(self) -> tuple[str, ...]:
        """Return every store that something of it may be read from: the log need not lie where the base does."""
        named = [name for member in self.members for name in member.entry.stores]
        named += [name for stored in self.files for name in stored.stores]
        return tuple(dict.fromkeys(named))

    @property
    def stored_bytes(self) -> int:
        """Return the bytes to fetch."""
        return sum(member.stored_bytes for member in self.members)

    @property
    def plain_bytes(self) -> int:
        """Return the bytes to write."""
        return sum(member.plain_bytes for member in self.members)

    @property
    def major(self) -> int:
        """Return the major version of the server."""
        return int(self.base.details["server"]["major"])

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the base recorded of the server."""
        facts: dict[str, Any] = self.base.details["base"]
        return facts

    @property
    def segments(self) -> list[StoredFile]:
        """Return the WAL to replay, without history files."""
        return [stored for stored in self.files if stored.file.kind != "history"]

    @property
    def wal_bytes(self) -> int:
        """Return the plain bytes of the WAL to replay."""
        return len(self.segments) * self.segment_bytes

    @property
    def target(self) -> ReplayTarget:
        """Return where replay ends."""
        return ReplayTarget(self.recovery.target, self.recovery.timeline, self.recovery.inclusive)

    def need_bytes(self, *, start: bool) -> int:
        """Return the room that the folder needs: the files, and the WAL that lies there at one time.

        What an incremental base is combined from lies there beside the outcome, which is no larger than all of that.
        """
        wal_bytes = min(self.wal_bytes, SPOOL_BYTES) if start else self.wal_bytes
        files_bytes = 2 * self.plain_bytes if self.builds_on else self.plain_bytes
        return files_bytes + wal_bytes + _SPARE_BYTES

    @cached_property
    def replay_log(self) -> ReplayLog:
        """Return what the server may ask for while it replays."""
        identifier = str(self.base.details["server"].get("system_identifier") or "")
        return ReplayLog(
            self.files,
            self.histories,
            self.segment_bytes,
            identifier,
            self.request.policy,
            has_target=self.recovery.target.kind != "latest",
        )


def plan_base_restore(
    workplace: Workplace, request: BaseRequest, identities: Sequence[KeyFile], sources: BaseSources | None = None
) -> BasePlan:
    """Decide how to reach the target; read manifests, histories and details, change nothing.

    Raise RecoveryGap when there is no way, IntegrityError when what should be there is not what was signed,
    KeyUnavailable when nobody in reach can open it.
    """
    sources = sources or read_sources(workplace, request.policy, identities)
    recovery = _recovery(sources, request, workplace.clock())
    chosen = _entry(sources.artifacts, recovery.base.artifact_id)
    entry, passed_over = believed_copies(workplace, chosen)
    details = open_details(entry.manifest, identities)
    if "base" not in details:
        raise IntegrityError(f"artifact {entry.manifest.artifact_id} does not say what a base backup has to say")
    base = RestorePlan(entry, details, entry.manifest.objects, tuple(identities), None, passed_over)
    builds_on = tuple(_member(workplace, item, identities) for item in lineage(sources.artifacts, chosen))
    files = tuple(sources.logs.files[item.name] for item in recovery.files)
    _refuse_doubt(sources.artifacts, recovery, request)
    warnings = (*recovery.warnings, *_warnings(sources, files))
    return BasePlan(request, recovery, base, files, sources.histories, sources.logs.segment_bytes, warnings, builds_on)


def _member(workplace: Workplace, chosen: ArtifactEntry, identities: Sequence[KeyFile]) -> RestorePlan:
    """Plan to fetch what an incremental base builds on; raise as `plan_base_restore` does."""
    entry, passed_over = believed_copies(workplace, chosen)
    details = open_details(entry.manifest, identities)
    return RestorePlan(entry, details, entry.manifest.objects, tuple(identities), None, passed_over)


def _recovery(sources: BaseSources, request: BaseRequest, now: datetime) -> RecoveryPlan:
    state = sources.state
    if request.artifact_id is not None:
        state = with_base(state, _base_by_id(sources, request))
    try:
        return plan_recovery(state, request.when, timeline=request.timeline, now=now, inclusive=request.inclusive)
    except RecoveryGap as error:
        doubts = [
            *(f"not believed: {item.message}" for item in sources.artifacts.refused),
            *filter(None, (why_unrestorable(sources.artifacts, entry) for entry in sources.artifacts.entries)),
            *sources.logs.doubts,
        ]
        raise RecoveryGap(error.message, details=[*error.details, *doubts], hints=error.hints) from error


def _base_by_id(sources: BaseSources, request: BaseRequest) -> str:
    prefix = str(request.artifact_id).upper()
    matches = [base.artifact_id for base in sources.state.bases if base.artifact_id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    for entry in sources.artifacts.entries:
        if entry.manifest.artifact_id.startswith(prefix):
            lineage(sources.artifacts, entry)
    which = "no base" if not matches else f"{len(matches)} bases"
    raise RecoveryGap(
        f"{which} of policy {request.policy} begins with {request.artifact_id}", hints=[f"drkit list {request.policy}"]
    )


def _entry(found: PolicyArtifacts, artifact_id: str) -> ArtifactEntry:
    return next(entry for entry in found.entries if entry.manifest.artifact_id == artifact_id)


def _refuse_doubt(found: PolicyArtifacts, recovery: RecoveryPlan, request: BaseRequest) -> None:
    """Refuse the end of what is there when a base that reached further was there once and is gone."""
    if request.when.kind not in ("latest", "immediate") or request.artifact_id is not None:
        return
    gone = [(entry, f"is gone from {', '.join(entry.stores)}") for entry in [*found.unexplained, *found.out_of_reach]]
    broken = [(entry, why) for entry in found.entries if (why := why_unrestorable(found, entry))]
    for entry, why in [*gone, *broken]:
        position = entry.manifest.position
        if position is not None and parse_lsn(position.stop_lsn) > recovery.end_lsn:
            raise IntegrityError(
                f"base {entry.manifest.artifact_id} of {format_moment(entry.manifest.covers.to_at)} is newer than all"
                f" that can be reached, and {why}",
                hints=[
                    f"drkit check {request.policy}",
                    f"drkit restore {request.policy} --artifact {recovery.base.artifact_id} --into DIR",
                ],
            )


def _warnings(sources: BaseSources, files: Sequence[StoredFile]) -> Iterator[str]:
    unsigned = [stored.file.name for stored in files if stored.record is None]
    if unsigned:
        count = format_count(len(unsigned), "WAL file")
        yield f"{count} from {unsigned[0]} on are used although no signed manifest lists them yet"
    yield from (f"not believed: {item.message}" for item in sources.artifacts.refused)
    yield from sources.logs.doubts


def require_machine(plan: BasePlan) -> None:
    """Raise SourceError where the files fit no server of this machine (T29), or cannot be put together here."""
    recorded = str(plan.base.details["server"].get("machine") or "")
    here = platform.machine()
    if recorded and _same_kind(recorded) != _same_kind(here):
        raise SourceError(
            f"base {plan.entry.manifest.artifact_id} is of a {recorded} machine, and its files do not fit this {here}",
            hints=["restore on a machine of the same kind, or restore a dump"],
        )
    if plan.builds_on:
        postgres_binary(COMBINE_TOOL, plan.major)


def _same_kind(machine: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
