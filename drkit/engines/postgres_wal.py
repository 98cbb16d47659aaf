"""Engine `postgres`, method `wal`: receive the log by PostgreSQL's own pg_receivewal, and ask how far the server is.

pg_receivewal writes whole segments under their names, durably, and the unfinished one as ``….partial``; it follows a
timeline switch and fetches the history file. Where it starts is decided by the newest file in its folder, else by the
slot. What goes wrong is told apart by what the server and the tool say, because what is safe to do about it differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from drkit.binaries import postgres_binary
from drkit.credentials import Secret
from drkit.engines.postgres_client import Endpoint, connect, parse_url, pinned, tool_environment
from drkit.engines.postgres_replication import open_replication
from drkit.errors import SourceError
from drkit.process import Command, Resident, end_orphan, open_resident
from drkit.process_identity import ProcessIdentity
from drkit.wal import Segment, parse_lsn

ReceiverTrouble = Literal[
    "server-gone", "slot-missing", "slot-lost", "slot-busy", "log-removed", "diverged", "disk-full", "refused"
]
"""Why receiving ended. After ``slot-lost``, ``log-removed`` and ``diverged`` it cannot go on where it was."""

_STATUS_INTERVAL_S = 5
_REPLICATION_IDLE_S = 30.0
_STOP_S = 5.0

_SIGNS: Sequence[tuple[str, ReceiverTrouble]] = (
    (r"No space left on device|Disk quota exceeded|File too large", "disk-full"),
    (r"replication slot \".*\" is active for PID", "slot-busy"),
    (r"replication slot \".*\" does not exist", "slot-missing"),
    (
        r"has been invalidated|cannot read from (physical )?replication slot|can no longer (be accessed|get)",
        "slot-lost",
    ),
    (r"requested WAL segment \S+ has already been removed", "log-removed"),
    (r"is not in this server's history|is ahead of the WAL flush position", "diverged"),
    (
        r"pg_hba\.conf|authentication failed|no password supplied|permission denied|must be superuser|does not exist",
        "refused",
    ),
)

_POSITION = """
select (select system_identifier from pg_catalog.pg_control_system())::text,
       pg_catalog.current_setting('server_version_num')::int / 10000,
       pg_catalog.pg_is_in_recovery(),
       case when pg_catalog.pg_is_in_recovery()
            then coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())
            else pg_catalog.pg_current_wal_flush_lsn() end::text,
       case when pg_catalog.pg_is_in_recovery()
            then (select timeline_id from pg_catalog.pg_control_checkpoint())
            else ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int
            end,
       (select setting::bigint from pg_catalog.pg_settings where name = 'wal_segment_size'),
       pg_catalog.now()
"""
_SETTINGS = """
select name, setting from pg_catalog.pg_settings
 where name = any (array['archive_mode', 'archive_command', 'archive_library', 'archive_timeout', 'data_directory',
                         'max_slot_wal_keep_size', 'synchronous_commit', 'wal_level'])
"""
_WAITS = """
select exists (select from pg_catalog.pg_stat_replication
                where application_name = %s and sync_state in ('sync', 'quorum'))
"""
_ARCHIVER = """
select archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, last_failed_time
  from pg_catalog.pg_stat_archiver
"""
_SLOT = """
select slot_type, active, restart_lsn::text, wal_status, safe_wal_size
  from pg_catalog.pg_replication_slots where slot_name = %s
"""


@dataclass(frozen=True)
class SlotFacts:
    """A replication slot as the server sees it; ``safe_wal_bytes`` is what may be written before it can be lost."""

    kind: str
    active: bool
    restart_lsn: int | None
    wal_status: str | None
    safe_wal_bytes: int | None


@dataclass(frozen=True)
class ArchiverFacts:
    """What the server believes of its archiver (pg_stat_archiver)."""

    archived_count: int
    last_archived: str | None
    last_archived_at: datetime | None
    failed_count: int
    last_failed: str | None
    last_failed_at: datetime | None


@dataclass(frozen=True)
class ServerPosition:
    """Where a server's log is: everything before ``flushed_lsn`` is on its disk. ``settings`` as pg_settings has them.

    A setting that the role may not see is left out. ``waits`` says that commits wait for who receives by the slot.
    """

    server: str
    system_identifier: str
    major: int
    in_recovery: bool
    timeline: int
    flushed_lsn: int
    segment_bytes: int
    now_at: datetime
    slot: SlotFacts | None
    archiver: ArchiverFacts
    settings: Mapping[str, str]
    waits: bool = False

    @property
    def segment(self) -> Segment:
        """Return the segment that is being written."""
        return Segment(self.timeline, self.flushed_lsn // self.segment_bytes, self.segment_bytes)


def read_position(url: Secret, slot: str | None) -> ServerPosition:
    """Ask a server where it is; raise SourceError when it does not answer."""
    endpoint = parse_url(url)
    with connect(endpoint) as connection:
        row = connection.execute(_POSITION).fetchone()
        assert row is not None
        identifier, major, in_recovery, flushed, timeline, segment_bytes, now_at = row
        if flushed is None:
            raise SourceError(f"{endpoint.server} is a standby that has not received any log yet")
        return ServerPosition(
            server=endpoint.server,
            system_identifier=identifier,
            major=major,
            in_recovery=in_recovery,
            timeline=timeline,
            flushed_lsn=parse_lsn(flushed),
            segment_bytes=segment_bytes,
            now_at=now_at,
            slot=_slot(connection.execute(_SLOT, (slot,)).fetchone()) if slot else None,
            archiver=ArchiverFacts(*_only(connection.execute(_ARCHIVER).fetchone())),
            settings=dict(connection.execute(_SETTINGS).fetchall()),
            waits=bool(slot) and bool(_only(connection.execute(_WAITS, (slot,)).fetchone())[0]),
        )


def _only(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert row is not None
    return row


def _slot(row: tuple[Any, ...] | None) -> SlotFacts | None:
    if row is None:
        return None
    kind, active, restart, wal_status, safe_bytes = row
    return SlotFacts(kind, active, parse_lsn(restart) if restart else None, wal_status, safe_bytes)


_MAY_RECEIVE = "select rolname, rolsuper or rolreplication from pg_catalog.pg_roles where rolname = current_user"


def make_slot(url: Secret, slot: str) -> None:
    """Make a physical replication slot that keeps the log from now on; raise SourceError when it cannot be made."""
    endpoint = parse_url(url)
    with connect(endpoint) as connection:
        role, may_receive = connection.execute(_MAY_RECEIVE).fetchone() or ("", False)
        if not may_receive:
            raise SourceError(
                f"role {role} at {endpoint.server} may not receive log: it lacks the attribute REPLICATION",
                hints=[f'alter role "{role}" replication;'],
            )
        connection.execute("select pg_catalog.pg_create_physical_replication_slot(%s, true)", (slot,))


def drop_slot(url: Secret, slot: str) -> None:
    """Drop a replication slot of ours; raise SourceError when it is in use."""
    with connect(parse_url(url)) as connection:
        connection.execute("select pg_catalog.pg_drop_replication_slot(%s)", (slot,))


def read_history(url: Secret, timeline: int, major: int) -> str:
    """Return the history file of a timeline from the server; raise SourceError when it has none."""
    with open_replication(parse_url(url), major=major, idle_timeout_s=_REPLICATION_IDLE_S) as replication:
        return replication.rows(f"TIMELINE_HISTORY {timeline:d}")[0][1] or ""


@dataclass(frozen=True)
class ReceiveOptions:
    """How to receive: into which private folder, through which slot; ``work_folder`` is for the tool's secrets.

    In ``pid_file`` is which process receives, for whoever comes after a kill.
    """

    folder: Path
    pid_file: Path
    slot: str
    synchronous: bool
    work_folder: Path


class Receiving:
    """A running pg_receivewal."""

    def __init__(self, child: Resident) -> None:
        self._child = child

    def ended(self) -> bool:
        """Say whether it has ended by itself, which is never wanted."""
        return self._child.ended() is not None

    def trouble(self) -> tuple[ReceiverTrouble, SourceError]:
        """Say why it ended."""
        lines = self._child.stderr_lines
        text = "\n".join(lines)
        trouble: ReceiverTrouble = next((kind for pattern, kind in _SIGNS if re.search(pattern, text)), "server-gone")
        errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
        # The last word is mostly "disconnected", which is what follows from the one before.
        said = next((words for words in reversed(errors) if words != "disconnected"), "".join(errors[:1]))
        return trouble, SourceError(f"pg_receivewal ended: {said or 'without a word'}", details=lines)

    def stop(self) -> None:
        """End it in good order."""
        self._child.interrupt(_STOP_S)


@contextmanager
def open_receiver(url: Secret, options: ReceiveOptions, position: ServerPosition) -> Iterator[Receiving]:
    """Run pg_receivewal until the context ends; ``position`` is what the server said of itself just now."""
    endpoint = _endpoint(url)
    program = postgres_binary("pg_receivewal", position.major)
    argv = [str(program), "--directory", str(options.folder), "--slot", options.slot, "--no-loop", "--no-password"]
    argv += [f"--status-interval={_STATUS_INTERVAL_S}", *(["--synchronous"] if options.synchronous else [])]
    with tool_environment(endpoint, options.work_folder) as environment:
        command = Command(argv, {**environment, "PGAPPNAME": options.slot})
        _end_orphan(options.pid_file)
        with open_resident(command) as child:
            options.pid_file.write_text(str(child.identity))
            receiving = Receiving(child)
            try:
                yield receiving
            finally:
                receiving.stop()
                options.pid_file.unlink(missing_ok=True)


def _end_orphan(pid_file: Path) -> None:
    """End the pg_receivewal of a process that was killed: it would hold the slot for ever."""
    try:
        identity = ProcessIdentity.parse(pid_file.read_text())
    except FileNotFoundError:
        return
    end_orphan(identity)
    pid_file.unlink(missing_ok=True)


def _endpoint(url: Secret) -> Endpoint:
    """Return where the URL leads right now, so that the tool and our questions go to the same server."""
    endpoint = parse_url(url)
    with connect(endpoint) as connection:
        return pinned(endpoint, connection)
