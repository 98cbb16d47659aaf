"""Replaying a server's log up to a moment: the restored server is started, fed its WAL, and lent promoted.

`base_plan` has decided what is needed, and refused what could be refused, before anything was written.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drkit.engines.postgres_recovery import (
    ReplayTarget,
    explain_failure,
    fetch_command,
    only_known,
    recovery_settings,
    replay_settings,
    write_recovery,
)
from drkit.errors import IntegrityError, SourceError, written
from drkit.operations import Reporter, Workplace
from drkit.operations.base_plan import BasePlan
from drkit.operations.extraction import Extraction, Owner
from drkit.operations.replay import WalServer, open_wal_server
from drkit.operations.stored_log import LogReader
from drkit.process import Command, run
from drkit.sandboxes.machine import core_count, memory_available_bytes
from drkit.sandboxes.postgres_server import RestoredServer, ServerPlace, open_server
from drkit.units import When, format_bytes, format_count
from drkit.wal import format_lsn, parse_lsn, segment_of
from drkit.wal_pages import goes_on

if TYPE_CHECKING:
    from drkit.engines.postgres_recovered import Recovered

TABLESPACES = "tablespaces"
CAPTURED_CONFIG = "captured-config"
_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
_LONGEST_REPLAY_S = 20 * 86400.0


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
    return Extraction(data, tablespaces, data / CAPTURED_CONFIG, owner, to_disk=True)


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
class Client:
    """What the server runs to ask for a file: a Python that its user can run, and the program."""

    python: Path
    program: Path


@dataclass(frozen=True)
class Replayed:
    """What came of a replay."""

    recovered: Recovered
    served: int
    served_bytes: int
    waited: int

    @property
    def local_share(self) -> float:
        """Return the share of the segments that were there before the server asked for them."""
        return 1 - min(self.waited, self.served) / self.served if self.served else 1.0


@contextmanager
def finding_client(site: ReplaySite) -> Iterator[Future[Client]]:
    """Put what a server asks for WAL with into its run folder, while the body does something else."""
    with ThreadPoolExecutor(1, "client") as pool:
        yield pool.submit(_client_for, site)


@contextmanager
def open_replay(
    workplace: Workplace, plan: BasePlan, site: ReplaySite, client: Future[Client], reporter: Reporter
) -> Iterator[tuple[RestoredServer, Replayed]]:
    """Start the restored server, feed it WAL up to the target, and lend it promoted; stop it at the end.

    Raise RecoveryGap when the target is not reached, with the last commit that was; IntegrityError for WAL that is
    damaged; SourceError when the server does not start.
    """
    reader = LogReader(workplace, plan.base.identities)
    with open_server(site.place) as server:
        with reporter.progress("replay", plan.wal_bytes) as progress:
            wal = WalServer(plan.replay_log, reader, site.spool, site.owner, progress.advance)
            with open_wal_server(wal, site.socket):
                settings = _prepare(plan, site, wal, client.result())  # the first segments are fetched meanwhile
                wal.wait_for_first()
                with _loading("drkit.engines.postgres_recovered"):
                    _start(server, settings, wal, plan)
        from drkit.engines.postgres_recovered import read_recovered

        recovered = read_recovered(site.place.url)
        _require_reached(plan, recovered)
        yield server, Replayed(recovered, wal.counts.served, wal.counts.served_bytes, wal.counts.waited)


@contextmanager
def _loading(module: str) -> Iterator[None]:
    """Import a module while the body waits for others."""
    thread = threading.Thread(target=importlib.import_module, args=(module,), name="import")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _prepare(plan: BasePlan, site: ReplaySite, wal: WalServer, client: Client) -> dict[str, str]:
    """Write down where the server gets its WAL and how far it goes; return the settings that it is started with."""
    command = fetch_command(wal.ready, client.python, client.program, site.socket)
    with written(site.place.data):
        write_recovery(site.place.data, recovery_settings(replay_target(plan, site.place.data), command), keep=False)
    recorded = plan.facts.get("settings", {})
    settings = replay_settings(
        recorded, memory_bytes=memory_available_bytes(), cores=core_count(), wal_bytes=plan.wal_bytes
    )
    return only_known(settings, plan.major)


def replay_target(plan: BasePlan, data: Path) -> ReplayTarget:
    """Return where the server is told to stop.

    It stops at ``immediate`` when it meets a record after it (xlogrecovery.c, recoveryStopsBefore). A base of a primary
    ends with a switch of segments; behind one of a standby whose primary was quiet there is none, and it would fail.
    """
    target, facts = plan.target, plan.facts
    if target.when.kind != "immediate" or not plan.base.details["server"].get("standby"):
        return target
    stop_lsn = parse_lsn(facts["stop_lsn"])
    segment = segment_of(stop_lsn, facts["timeline"], facts["segment_bytes"])
    path = data / "pg_wal" / segment.name
    if path.exists() and goes_on(path.read_bytes(), segment.name, stop_lsn, parse_lsn(facts["start_lsn"])):
        return target
    return replace(target, when=When("latest"))


def _start(server: RestoredServer, settings: dict[str, str], wal: WalServer, plan: BasePlan) -> None:
    try:
        server.start(settings, timeout_s=_LONGEST_REPLAY_S)
    except SourceError as error:
        cause = wal.error or wal.withheld
        if cause is not None:
            raise type(cause)(
                f"replay was stopped: {cause.message}", details=cause.details, hints=cause.hints
            ) from error
        raise explain_failure(error, plan.target, server.place.data) from error
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


def _client_for(site: ReplaySite) -> Client:
    """Put the tiny client where the server's user can read it, and find a Python that this user can run."""
    import drkit.wal_client

    program = site.place.run_folder / "wal_client.py"
    with written(site.place.run_folder):
        shutil.copyfile(drkit.wal_client.__file__, program)
        program.chmod(0o644)
    for name in (sys.executable, shutil.which("python3"), *_SYSTEM_PYTHONS):
        if name and _runs(Path(name), site.place.user):
            return Client(Path(name), program)
    raise SourceError(
        f"user {site.place.user or 'of this process'} can run no Python, which restore_command needs",
        details=[f"{sys.executable} cannot be run by that user"],
        hints=["apt install python3"],
    )


def _runs(python: Path, user: str | None) -> bool:
    try:
        done = run(Command([str(python), "-I", "-S", "-c", "import _socket"], cwd=Path("/"), user=user), check=False)
    except SourceError:
        return False
    return done.status == 0


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
        words.append(f"{replayed.local_share:.0%} of them before they were asked for")
    return ", ".join(words)
