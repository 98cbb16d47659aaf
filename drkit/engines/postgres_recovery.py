"""What tells a restored PostgreSQL where to replay to, and what keeps it from harming anybody on its way.

Recovery settings go into postgresql.auto.conf, which the server reads last, so that nothing that came with the data
speaks against them; what an earlier restore left there is taken out (manual, 20.5.4 and 20.5.5).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drkit.disks import is_full
from drkit.errors import DrkitError, IntegrityError, NoRoom, RecoveryGap, SourceError, says_full, shell_line
from drkit.units import MIB, When, format_moment

AUTO_CONF = "postgresql.auto.conf"
RECOVERY_SIGNAL = "recovery.signal"
FLOORS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
"""Settings that must not be lower than on the source while WAL is replayed (T25; manual, 27.4.5)."""

_RECOVERY_SETTINGS = re.compile(
    r"restore_command|archive_cleanup_command|recovery_end_command|recovery_target(?:_\w+)?|recovery_min_apply_delay"
    r"|promote_trigger_file|standby_mode|trigger_file"
)
_RISKY: Mapping[str, str] = {
    "archive_mode": "off",
    "archive_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "recovery_end_command": "",
    "archive_cleanup_command": "",
    "max_logical_replication_workers": "0",
}
"""What a restored server must not do by itself: archive into the source's archive, follow it, wait for others (T40), or
take over the source's subscriptions: their publishers' slots are further on, and what lies between would be skipped."""

_RISKY_SINCE: Mapping[str, tuple[int, str]] = {
    "archive_library": (15, ""),
    "sync_replication_slots": (17, "off"),
    "synchronized_standby_slots": (17, ""),
}
_SIGNALS = (RECOVERY_SIGNAL, "standby.signal", "recovery.conf", "recovery.done")
_PLACES = re.compile(rb"^[ \t]*(data_directory|hba_file|ident_file|external_pid_file)\b", re.MULTILINE | re.IGNORECASE)
_SET_ASIDE = b"# set aside by drkit restore: "


@dataclass(frozen=True)
class ReplayTarget:
    """Where replay ends: what the plan says, and the timeline it is pinned to."""

    when: When
    timeline: int
    inclusive: bool = True


def recovery_settings(target: ReplayTarget, restore_command: str) -> dict[str, str]:
    """Return the recovery settings: one target at most, the timeline as a number, promotion at the end (T35, T39)."""
    settings = {"restore_command": restore_command, "recovery_target_timeline": str(target.timeline)}
    when = target.when
    if when.kind == "latest":
        return settings  # an action without a target means nothing
    settings["recovery_target_action"] = "promote"
    if when.kind == "immediate":
        return {**settings, "recovery_target": "immediate"}
    if when.kind == "time":
        assert when.moment is not None
        value = server_time(when.moment)
    else:
        value = when.text
    settings[f"recovery_target_{when.kind}"] = value
    if when.kind != "name":
        settings["recovery_target_inclusive"] = "on" if target.inclusive else "off"
    return settings


def server_time(moment: datetime) -> str:
    """Write a moment for ``recovery_target_time``: UTC, with a numeric offset, because Z is not everywhere taken."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")


def fetch_command(ready: Path, python: Path, client: Path, socket: Path) -> str:
    """Return the ``restore_command`` that takes a file out of ``ready``, or else asks our own process for it.

    Moving a file on the same disk takes a few milliseconds, starting Python ten times that. The exit status tells
    "there is no such file" (1) from "cannot be told" (255), which aborts recovery (T33). A ``%`` in a path is doubled,
    which the server undoes.
    """
    source = shlex.quote(str(ready)).replace("%", "%%")
    ask = shlex.join([str(python), "-I", "-S", str(client), "fetch"]).replace("%", "%%")
    where = shlex.join(["--socket", str(socket)]).replace("%", "%%")
    return f'mv {source}/"%f" "%p" 2>/dev/null || exec {ask} "%f" "%p" {where}'


def folder_command(folder: Path) -> str:
    """Return the ``restore_command`` that takes WAL out of a folder; one that is there and cannot be read aborts."""
    source = shlex.quote(str(folder)).replace("%", "%%")
    return f'if test -e {source}/"%f"; then cp {source}/"%f" "%p" || exit 200; else exit 1; fi'


def replay_settings(recorded: Mapping[str, Any], *, memory_bytes: int, cores: int, wal_bytes: int) -> dict[str, str]:
    """Return the settings of a server that replays and does nothing else, whatever came with the data.

    Its buffers are no larger than what it replays is worth: each of them has to be found and cleared first, which
    takes longer than writing a page of a short log and reading it again, from the system's memory.

    ``recorded`` are the source's settings, of which the floors are kept. There are no readers during replay, so that
    it does not stop where the source's settings were raised later. Nothing is synced: a crash means a new start, and
    whoever keeps the folder syncs it as a whole.
    """
    floors = {name: str(recorded[name]) for name in FLOORS if str(recorded.get(name, "")).isdigit()}
    buffers_bytes = max(32 * MIB, min(wal_bytes // 8, memory_bytes // 8, 4096 * MIB))
    settings = {
        **floors,
        **_RISKY,
        "hot_standby": "off",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "listen_addresses": "",
        "shared_preload_libraries": "",
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_min_messages": "log",
        "log_min_error_statement": "panic",
        "log_statement": "none",
        "log_connections": "off",
        "log_line_prefix": "",
        "lc_messages": "C",
        "log_timezone": "UTC",
        "ssl": "off",
        "restart_after_crash": "off",
        "dynamic_shared_memory_type": "mmap",  # files in the data folder: one that is killed leaves none elsewhere
        "autovacuum": "off",
        "jit": "off",
        "cluster_name": "drkit restore",
        "shared_buffers": f"{buffers_bytes // MIB}MB",
        "max_wal_size": "16GB",
        "checkpoint_timeout": "1h",
        "recovery_prefetch": "try",
        "maintenance_io_concurrency": "64",
        "max_parallel_maintenance_workers": str(max(cores - 1, 1)),
        "wal_compression": "off",
        "wal_recycle": "off",
    }
    settings.pop("archive_command")
    if str(recorded.get("track_commit_timestamp")) == "on":
        settings["track_commit_timestamp"] = "on"
    return settings


def only_known(settings: Mapping[str, str], major: int) -> dict[str, str]:
    """Leave out what a server of that major does not know."""
    since = {"recovery_prefetch": 15}
    return {name: value for name, value in settings.items() if since.get(name, 0) <= major}


def write_recovery(data: Path, settings: Mapping[str, str], *, keep: bool) -> list[str]:
    """Write postgresql.auto.conf and recovery.signal; return the names of the settings that were taken out.

    ``keep`` leaves what ALTER SYSTEM had set on the source, without what belongs to recovery; otherwise it goes, too.
    """
    auto_conf = data / AUTO_CONF
    kept, removed = _sorted_out(auto_conf) if keep else ([], [])
    lines = [*kept, *(f"{name} = '{_quoted(value)}'" for name, value in settings.items())]
    _replace(auto_conf, "\n".join([_HEADER, *lines]) + "\n")
    for name in _SIGNALS:
        (data / name).unlink(missing_ok=True)
    _replace(data / RECOVERY_SIGNAL, "")
    return removed


_HEADER = "# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command."


def safe_settings(major: int) -> dict[str, str]:
    """Return what keeps a restored server from acting as the source would (T40)."""
    later = {name: value for name, (since, value) in _RISKY_SINCE.items() if since <= major}
    risky = {name: value for name, value in _RISKY.items() if not _RECOVERY_SETTINGS.fullmatch(name)}
    return {**risky, **later}


def _sorted_out(auto_conf: Path) -> tuple[list[str], list[str]]:
    """Return the lines to keep and the names of those to leave out."""
    kept, removed = [], []
    text = os.fsdecode(auto_conf.read_bytes()) if auto_conf.exists() else ""
    for line in text.split("\n"):  # a value may hold what else Python takes for the end of a line
        name = line.split("=", 1)[0].strip().lower()
        if not name or name.startswith("#"):
            continue
        if _RECOVERY_SETTINGS.fullmatch(name) or name in _RISKY or name in _RISKY_SINCE:
            removed.append(name)
        else:
            kept.append(line)
    return kept, removed


def _replace(path: Path, text: str) -> None:
    """Write a file anew, with the owner of its folder."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", errors="surrogateescape") as file:
        file.write(text)
        owner = path.parent.stat()
        if owner.st_uid != os.geteuid():
            os.chown(path, owner.st_uid, owner.st_gid)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")


def set_places_aside(data: Path) -> list[str]:
    """Comment out of postgresql.conf what points to places of the source; return the names of those settings.

    A restored postgresql.conf that names the source's data folder would start the source's, not this one (T40).
    """
    path = data / "postgresql.conf"
    if not path.exists():
        return []
    content = path.read_bytes()
    names = [match[1].decode().lower() for match in _PLACES.finditer(content)]
    if names:
        changed = _PLACES.sub(lambda match: _SET_ASIDE + match[0].lstrip(), content)
        _replace(path, changed.decode(errors="surrogateescape"))
    return names


def add_missing_config(data: Path, recorded: Mapping[str, Any]) -> list[str]:
    """Write the configuration files that were not in the data folder (T24), and return their names."""
    floors = [f"{name} = {recorded[name]}\n" for name in FLOORS if str(recorded.get(name, "")).isdigit()]
    missing = {
        "postgresql.conf": "# written by drkit restore: the source kept its own outside of the data folder\n"
        + "".join(floors),
        "pg_hba.conf": "# written by drkit restore\nlocal all all peer\n",
        "pg_ident.conf": "",
    }
    added = [name for name in missing if not (data / name).exists()]
    for name in added:
        _replace(data / name, missing[name])
    return added


def explain_failure(error: SourceError, target: ReplayTarget, data: Path) -> DrkitError:
    """Say in drkit's words why a recovery into ``data`` ended, by the server's log; the error itself if not known."""
    text = "\n".join(error.details)
    if says_full(text) or is_full(data):
        return NoRoom(
            f"replay was stopped: the disk that holds {data} is full",
            details=error.details,
            hints=[shell_line("df", "-h", data), "make room, or choose a folder on a larger disk"],
        )
    if "recovery ended before configured recovery target was reached" in text:
        last = re.search(r"last completed transaction was at log time (\S+ \S+)", text)
        asked = _target_words(target.when)
        known = f"the last commit that was replayed is of {last[1]} UTC" if last else "no commit was replayed"
        hints = ["choose an earlier moment, or latest"]
        return RecoveryGap(
            f"{asked} was not reached: the WAL ends before it; {known}", details=error.details, hints=hints
        )
    if "requested recovery stop point is before consistent recovery point" in text:
        return RecoveryGap(
            f"{_target_words(target.when)} is before the base is consistent",
            details=error.details,
            hints=["choose an older base with --artifact, or a later moment"],
        )
    missing = re.search(r'directory "([^"]+)" does not exist', text)
    if missing:
        return RecoveryGap(
            f"the WAL creates a tablespace in {missing[1]}, which this host does not have",
            details=error.details,
            hints=[f"make it for the server's user, empty: {missing[1]}", "or take a base that has the tablespace"],
        )
    if "requested timeline" in text or "is not a child of" in text:
        return RecoveryGap(f"timeline {target.timeline} does not lead on from this base", details=error.details)
    if "WAL file is from different database system" in text or "incorrect resource manager data checksum" in text:
        return IntegrityError("the WAL does not belong to this base, or is damaged", details=error.details)
    return error


def _target_words(when: When) -> str:
    if when.kind == "time" and when.moment is not None:
        return format_moment(when.moment)
    return f"{when.kind}:{when.text}" if when.text else when.kind
