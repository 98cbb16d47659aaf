"""Restoring a server's files into a folder, and replaying its log up to a moment.

The plan is data, made and printed before anything moves. Everything that can be refused is refused before the folder is
touched: gaps, a base that is later than the target, a server in the folder, an owner who cannot run one, too little
room, stored bytes that are not what was signed.
"""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from drkit.binaries import postgres_binary
from drkit.engines.postgres_recovery import (
    Recovered,
    ReplayTarget,
    explain_failure,
    fetch_command,
    only_known,
    read_recovered,
    recovery_settings,
    replay_settings,
    write_recovery,
)
from drkit.errors import IntegrityError, RecoveryGap, SourceError
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import open_details
from drkit.operations.extraction import Extraction, Owner
from drkit.operations.lineage import lineage, restorable, why_unrestorable
from drkit.operations.replay import (
    SPOOL_BYTES,
    ReplayLog,
    WalServer,
    open_wal_server,
)
from drkit.operations.restore import RestorePlan, believed_copies
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
from drkit.process import Command, run
from drkit.recovery import LogState, RecoveryPlan, plan_recovery
from drkit.sandboxes.machine import core_count, memory_available_bytes
from drkit.sandboxes.postgres_server import RestoredServer, ServerPlace, open_server
from drkit.units import MIB, When, format_bytes, format_count, format_moment
from drkit.wal import format_lsn, parse_lsn

TABLESPACES = "tablespaces"
CAPTURED_CONFIG = "captured-config"
COMBINE_TOOL = "pg_combinebackup"
_SPARE_BYTES = 256 * MIB
_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
_LONGEST_REPLAY_S = 20 * 86400.0


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


# The folder -----------------------------------------------------------------------------------------------------------


@dataclass
class Phases:
    """Seconds by phase, by a clock that only goes forward."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the body's time to a phase."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began_s


def new_extraction(data: Path, tablespaces: Path, owner: Owner) -> Extraction:
    """Return what writes into ``data``; configuration that lay elsewhere goes into a folder of its own there."""
    return Extraction(data, tablespaces, data / CAPTURED_CONFIG, owner)


@dataclass(frozen=True)
class ReplaySite:
    """Where a replay happens: the server, the socket that it asks for WAL, the spool that is read ahead."""

    place: ServerPlace
    spool: Path
    owner: Owner

    @property
    def socket(self) -> Path:
        """Return the socket of the WAL server."""
        return self.place.run_folder / "wal"


@dataclass(frozen=True)
class Replayed:
    """What came of a replay."""

    recovered: Recovered
    served: int
    served_bytes: int
    waited: int


@contextmanager
def open_replay(
    workplace: Workplace, plan: BasePlan, site: ReplaySite, reporter: Reporter
) -> Iterator[tuple[RestoredServer, Replayed]]:
    """Start the restored server, feed it WAL up to the target, and lend it promoted; stop it at the end.

    Raise RecoveryGap when the target is not reached, with the last commit that was; IntegrityError for WAL that is
    damaged; SourceError when the server does not start.
    """
    reader = LogReader(workplace, plan.base.identities)
    client = _client_for(site)
    settings = replay_settings(
        plan.facts.get("settings", {}), memory_bytes=memory_available_bytes(), cores=core_count()
    )
    with open_server(site.place) as server:
        with reporter.progress("replay", plan.wal_bytes) as progress:
            wal = WalServer(plan.replay_log, reader, site.spool, site.owner, progress.advance)
            command = fetch_command(wal.ready, client.python, client.program, site.socket)
            write_recovery(site.place.data, recovery_settings(plan.target, command), keep=False)
            with open_wal_server(wal, site.socket):
                _start(server, only_known(settings, plan.major), wal, plan)
        recovered = read_recovered(site.place.url)
        _require_reached(plan, recovered)
        yield server, Replayed(recovered, wal.counts.served, wal.counts.served_bytes, wal.counts.waited)


def _start(server: RestoredServer, settings: dict[str, str], wal: WalServer, plan: BasePlan) -> None:
    try:
        server.start(settings, timeout_s=_LONGEST_REPLAY_S)
    except SourceError as error:
        cause = wal.error or wal.withheld
        if cause is not None:
            raise type(cause)(
                f"replay was stopped: {cause.message}", details=cause.details, hints=cause.hints
            ) from error
        raise explain_failure(error, plan.target) from error
    if wal.error is not None:
        raise wal.error


def _require_reached(plan: BasePlan, recovered: Recovered) -> None:
    """Raise IntegrityError when the server promoted itself before the end of the WAL that it was to replay."""
    whole = [stored.file for stored in plan.segments if stored.file.kind == "segment"]
    if plan.recovery.target.kind != "latest" or not whole or recovered.lsn is None:
        return
    expected_lsn = max(item.start_lsn for item in whole)
    if parse_lsn(recovered.lsn) <= expected_lsn:
        raise IntegrityError(
            f"replay ended at {recovered.lsn}, and the WAL goes on to {format_lsn(plan.recovery.end_lsn)}",
            details=["a segment in between is not what the server expects"],
        )


@dataclass(frozen=True)
class _Client:
    python: Path
    program: Path


def _client_for(site: ReplaySite) -> _Client:
    """Put the tiny client where the server's user can read it, and find a Python that this user can run."""
    import drkit.wal_client

    program = site.place.run_folder / "wal_client.py"
    shutil.copyfile(drkit.wal_client.__file__, program)
    program.chmod(0o644)
    for name in (sys.executable, shutil.which("python3"), *_SYSTEM_PYTHONS):
        if name and _runs(Path(name), site.place.user):
            return _Client(Path(name), program)
    raise SourceError(
        f"user {site.place.user or 'of this process'} can run no Python, which restore_command needs",
        details=[f"{sys.executable} cannot be run by that user"],
        hints=["apt install python3"],
    )


def _runs(python: Path, user: str | None) -> bool:
    try:
        done = run(Command([str(python), "-I", "-S", "-c", "import socket"], cwd=Path("/"), user=user), check=False)
    except SourceError:
        return False
    return done.status == 0


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


def superuser_of(details: dict[str, Any]) -> str:
    """Return the bootstrap superuser's name as the base recorded it."""
    return str(details["server"].get("superuser") or "postgres")


def describe_replayed(replayed: Replayed) -> str:
    """Say how far a replay got."""
    recovered = replayed.recovered
    words = [f"to {recovered.lsn}" if recovered.lsn else "to the base's own end"]
    words[0] += f", promoted to timeline {recovered.timeline}"
    if recovered.last_commit_at is not None:
        words.append(f"last commit {recovered.last_commit_at.astimezone().isoformat(sep=' ')}")
    if replayed.served:
        words.append(f"{format_count(replayed.served, 'segment')}, {format_bytes(replayed.served_bytes)}")
    return ", ".join(words)
