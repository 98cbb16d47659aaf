"""Restoring into a folder, which becomes a server's data folder: written, replayed, and left stopped in good order."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from drkit.binaries import postgres_binary
from drkit.engines.postgres_recovery import (
    add_missing_config,
    folder_command,
    recovery_settings,
    safe_settings,
    set_places_aside,
    write_recovery,
)
from drkit.errors import RecoveryGap, SourceError
from drkit.operations import Reporter, Workplace
from drkit.operations.base_plan import BasePlan, require_machine
from drkit.operations.data_folder import TargetFolder, claimed, hand_over, inspect_target
from drkit.operations.extraction import Extraction
from drkit.operations.reader_lease import reader_lease
from drkit.operations.replay import TablespaceGuard, check_identity
from drkit.operations.restore_base import (
    CAPTURED_CONFIG,
    TABLESPACES,
    Client,
    Phases,
    Replayed,
    ReplaySite,
    describe_replayed,
    finding_client,
    new_extraction,
    open_replay,
    replay_target,
    superuser_of,
)
from drkit.operations.restore_files import FetchedMember, extract, fetch_base, passed_over
from drkit.operations.running import recorded_run
from drkit.operations.stored_log import LogReader
from drkit.sandboxes.postgres_server import ServerPlace, folder_fits_socket
from drkit.units import format_bytes

LOCAL_WAL = "wal-to-replay"
_SPOOL = "drkit-spool"


@dataclass(frozen=True)
class FolderResult:
    """What came of a restore into a folder; ``replayed`` is None when it was not started."""

    plan: BasePlan
    folder: Path
    replayed: Replayed | None
    phases_s: dict[str, float]
    notes: tuple[str, ...]
    took_s: float
    run_id: str


def restore_into(workplace: Workplace, plan: BasePlan, into: Path, reporter: Reporter, *, start: bool) -> FolderResult:
    """Carry out a plan: fetch and verify, extract, replay, and leave a server that is stopped in good order.

    Without ``start`` the WAL is laid out in the folder, and the server replays it when somebody starts it. Raise before
    the folder is touched when it cannot take the restore or the stored bytes are not right; whatever fails later leaves
    the folder empty.
    """
    require_machine(plan)
    target = inspect_target(into, plan.need_bytes(start=start))
    if start:
        postgres_binary("postgres", plan.major)
    policy = plan.request.policy
    with (
        recorded_run(workplace.catalog, workplace.clock, "restore", policy, alone=f"restore/{target.path}") as running,
        reader_lease(workplace, policy, plan.stores, reporter),
    ):
        clock_s = time.monotonic()
        job = _FolderJob(workplace, plan, target, reporter)
        reporter.line(f"restore {policy}  base {plan.entry.manifest.artifact_id}  into {target.path}")
        replayed = job.run(start=start)
        running.outcome = {"artifact_id": plan.entry.manifest.artifact_id, "folder": str(target.path)}
        took_s = time.monotonic() - clock_s
        return FolderResult(plan, target.path, replayed, job.phases.seconds, tuple(job.notes), took_s, running.run_id)


class _FolderJob:
    """One restore into a folder in progress."""

    def __init__(self, workplace: Workplace, plan: BasePlan, target: TargetFolder, reporter: Reporter) -> None:
        self.workplace = workplace
        self.plan = plan
        self.target = target
        self.reporter = reporter
        self.phases = Phases()
        self.notes: list[str] = []

    @property
    def data(self) -> Path:
        return self.target.path

    def run(self, *, start: bool) -> Replayed | None:
        """Do the steps in order."""
        with self.phases.timed("fetch"):
            fetched = fetch_base(self.workplace, self.plan, self.reporter)
        self.notes += passed_over(fetched)
        self.reporter.line(f"  fetch       {format_bytes(self.plan.stored_bytes)} read, digests equal")
        with claimed(self.target):
            extraction, replayed = self._replay(fetched) if start else (self._lay_out(fetched), None)
            self._finish_config(write_signal=not start)
            with self.phases.timed("sync"):
                extraction.sync()
            return replayed

    def _extract(self, fetched: Sequence[FetchedMember]) -> Extraction:
        extraction = new_extraction(self.data, self.data / TABLESPACES, self.target.owner)
        with self.phases.timed("write"):
            extract(self.plan, fetched, extraction, self.reporter)
            extraction.remap()
        took_s = max(self.phases.seconds["write"], 0.001)
        rate = format_bytes(self.plan.plain_bytes / took_s)
        chain = f"  combined from {len(self.plan.members)} bases" if self.plan.builds_on else ""
        self.reporter.line(f"  write       {format_bytes(self.plan.plain_bytes)}  {rate}/s{chain}")
        return extraction

    def _lay_out(self, fetched: Sequence[FetchedMember]) -> Extraction:
        """Write the files, and put all WAL of the plan into the folder, for a server that somebody else starts."""
        extraction = self._extract(fetched)
        folder = self.data / LOCAL_WAL
        folder.mkdir(mode=0o700)
        self.target.owner.take(folder)
        log = self.plan.replay_log
        reader = LogReader(self.workplace, self.plan.base.identities)
        guard = TablespaceGuard(log.policy)
        with self.phases.timed("fetch WAL"), self.reporter.progress("wal", self.plan.wal_bytes) as progress:
            for name, number in log.asked_names().items():
                content = reader.read(log.files[number], log.segment_bytes)
                check_identity(content, name, log)
                progress.advance(log.segment_bytes)
                try:
                    guard.check(number, name, content)
                except RecoveryGap as error:
                    if not log.has_target:
                        raise
                    self.notes.append(f"{name} is left out, and the target may lie before it: {error.message}")
                else:
                    self._write(folder / name, content.ljust(log.segment_bytes, b"\0"))
            for timeline, content in log.histories.items():
                self._write(folder / f"{timeline:08X}.history", content)
        extraction.write_control_file()
        hand_over(self.target)
        return extraction

    def _write(self, path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            self.target.owner.take(descriptor)
            file.write(content)

    def _replay(self, fetched: Sequence[FetchedMember]) -> tuple[Extraction, Replayed]:
        """Write the files and replay the WAL; what the server needs beside the files is got ready meanwhile."""
        spool = self.data / _SPOOL
        with self._run_folder() as run_folder:
            place = ServerPlace(
                self.data, run_folder, self.plan.major, self.target.user, superuser_of(self.plan.base.details)
            )
            site = ReplaySite(place, spool, self.target.owner)
            with finding_client(site) as client:
                extraction = self._extract(fetched)
            # What ALTER SYSTEM had set on the source comes back after the replay, which must not be bent by it.
            altered = self.data / "postgresql.auto.conf"
            content = altered.read_bytes() if altered.exists() else b""
            spool.mkdir(mode=0o700)
            extraction.write_control_file()
            hand_over(self.target)
            with extraction.syncing(passed_over=("pg_wal", _SPOOL)):
                replayed = self._replay_in(site, client)
        shutil.rmtree(spool)
        altered.unlink(missing_ok=True)
        self._write(altered, content)
        return extraction, replayed

    def _replay_in(self, site: ReplaySite, client: Future[Client]) -> Replayed:
        with ExitStack() as stack:
            with self.phases.timed("replay"):
                lent = open_replay(self.workplace, self.plan, site, client, self.reporter)
                server, replayed = stack.enter_context(lent)
            self.reporter.line(f"  replay      {describe_replayed(replayed)}")
            self.notes += replayed.recovered.doubts
            with self.phases.timed("stop"):
                server.stop()
        return replayed

    @contextmanager
    def _run_folder(self) -> Iterator[Path]:
        """Lend a private folder of the owner's for sockets and settings; its path has to be short.

        It lies beside this process's work folder, under a name by which what a killed process left is found.
        """
        work = self.workplace.work_folder
        outer = Path(tempfile.mkdtemp(prefix=f"{work.name.rpartition('-')[0]}-", dir=work.parent))
        try:
            outer.chmod(0o711)
            folder = outer / "run"
            folder.mkdir(mode=0o700)
            if not folder_fits_socket(folder):
                raise SourceError(
                    f"the path of the temporary folder {folder} is too long for a socket",
                    hints=["name a shorter one: export TMPDIR=/tmp"],
                )
            self.target.owner.take(folder)
            yield folder
        finally:
            shutil.rmtree(outer, ignore_errors=True)

    def _finish_config(self, *, write_signal: bool) -> None:
        """Leave settings with which the folder can be started, and that do nothing to the source's surroundings."""
        recorded = self.plan.facts.get("settings", {})
        settings = safe_settings(self.plan.major)
        if write_signal:
            settings |= recovery_settings(replay_target(self.plan, self.data), folder_command(self.data / LOCAL_WAL))
        removed = write_recovery(self.data, settings, keep=True)
        if not write_signal:
            (self.data / "recovery.signal").unlink()
        if removed:
            self.notes.append(f"taken out of postgresql.auto.conf: {', '.join(removed)}")
        aside = set_places_aside(self.data)
        if aside:
            self.notes.append(f"set aside in postgresql.conf, because it names the source's places: {', '.join(aside)}")
        added = add_missing_config(self.data, recorded)
        if added:
            captured = f"; the source's own are in {CAPTURED_CONFIG}" if (self.data / CAPTURED_CONFIG).exists() else ""
            self.notes.append(f"written because the source kept its own elsewhere: {', '.join(added)}{captured}")
        self.notes.append(
            "archiving and subscriptions are off; when this becomes the server to keep: alter system reset"
            " archive_mode; alter system reset max_logical_replication_workers; and copy its subscriptions' tables anew"
        )
