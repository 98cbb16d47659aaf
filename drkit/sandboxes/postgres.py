"""A throw-away PostgreSQL server: private folder, socket only, tuned for loading, and gone afterwards.

Three things take it away. Leaving the context does, and checks that nothing is left. If drkit dies first, a watcher
that holds the other end of a pipe stops the server within moments. What then is left in the folder, the next command
reaps with the help of the ledger's row, which was written before anything else.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from ulid import ULID

from drkit.binaries import postgres_binary
from drkit.credentials import Secret
from drkit.errors import SourceError
from drkit.model import Scratch
from drkit.process import Command, open_consumer, run
from drkit.sandboxes import SandboxRequest, ScratchFolder, ScratchLedger, ScratchServer
from drkit.sandboxes.machine import core_count, memory_available_bytes
from drkit.sandboxes.postgres_interlock import remove_interlock
from drkit.sandboxes.postgres_server import WATCH
from drkit.sandboxes.scratch import STOP_TIMEOUT_S, check_room, folder_name, recorded, take_away
from drkit.units import MIB, format_bytes

_GIB = 1 << 30
_CLUSTER = "data"
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_LIMIT = 107  # sockaddr_un.sun_path on Linux, without its final zero (unix(7))
_CLUSTER_BYTES = 64 * MIB  # an empty cluster of PostgreSQL 14 to 18 takes 40 to 50 MB
_LEAST_MEMORY_BYTES = 192 * MIB
_START_TIMEOUT_S = 60
_SERVER_PROGRAMS = ("postgres", "initdb", "pg_ctl", "pg_combinebackup", "sh")


class PostgresSandbox:
    """Lends PostgreSQL servers of the majors whose server binaries are installed here."""

    kind = "postgres"

    @contextmanager
    def open(self, request: SandboxRequest, ledger: ScratchLedger) -> Iterator[ScratchServer]:
        """Lend an empty server; on leaving stop it and remove every file, or raise SourceError naming what is left."""
        plan = _plan(request)
        with self._recorded(plan, request, ledger), _running(plan, request) as server:
            yield server

    @contextmanager
    def open_folder(self, request: SandboxRequest, ledger: ScratchLedger) -> Iterator[ScratchFolder]:
        """Lend a folder for a server that is restored as files; on leaving stop what runs in it and remove it."""
        plan = _plan(request)
        with self._recorded(plan, request, ledger):
            plan.folder.mkdir(mode=0o700)
            account = pwd.getpwnam(plan.user) if plan.user else pwd.getpwuid(os.geteuid())
            yield ScratchFolder(plan.folder, plan.user, account.pw_uid, account.pw_gid)

    def _recorded(self, plan: _Plan, request: SandboxRequest, ledger: ScratchLedger) -> AbstractContextManager[None]:
        return recorded(plan.scratch_id, plan.folder, request, ledger, kind=self.kind, reap=self.reap)

    def reap(self, scratch: Scratch) -> None:
        """Take away the processes and files of a scratch; raise SourceError naming what is left of it."""
        take_away(scratch, _SERVER_PROGRAMS, lambda folder: remove_interlock(folder / _CLUSTER))


@dataclass(frozen=True)
class _Plan:
    """What will be made, where, and as whom; nothing exists yet."""

    scratch_id: str
    folder: Path
    user: str | None
    initdb: Path
    pg_ctl: Path
    memory_bytes: int

    @property
    def cluster(self) -> Path:
        return self.folder / _CLUSTER

    @property
    def stage(self) -> Path:
        return self.folder / "stage"


def _plan(request: SandboxRequest) -> _Plan:
    """Check binaries, memory and room; raise SourceError with what is short before anything is made."""
    initdb, pg_ctl = postgres_binary("initdb", request.major), postgres_binary("pg_ctl", request.major)
    postgres_binary("postgres", request.major)
    memory_bytes = memory_available_bytes()
    if memory_bytes < _LEAST_MEMORY_BYTES:
        raise SourceError(
            f"a scratch server needs {format_bytes(_LEAST_MEMORY_BYTES)} of memory, "
            f"{format_bytes(memory_bytes)} are available",
        )
    user = _server_user()
    scratch_id = str(ULID())
    parent = _parent_folder(request, user, folder_name(scratch_id))
    check_room(parent, request.need_bytes + _CLUSTER_BYTES)
    return _Plan(scratch_id, parent / folder_name(scratch_id), user, initdb, pg_ctl, memory_bytes)


def _server_user() -> str | None:
    """Return whom the server runs as, because PostgreSQL refuses root; None is ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise SourceError("a scratch server cannot run as root, and there is neither a user postgres nor nobody")


def _parent_folder(request: SandboxRequest, user: str | None, name: str) -> Path:
    """Return the folder asked for, or the system's temporary one if that path is too long or closed to ``user``."""
    wanted = request.folder.absolute()
    socket_path = wanted / name / _SOCKET_NAME
    if len(os.fsencode(socket_path)) <= _SOCKET_PATH_LIMIT and (user is None or _is_open_to_all(wanted)):
        wanted.mkdir(mode=0o711, parents=True, exist_ok=True)
        return wanted
    return Path(tempfile.gettempdir())


def _is_open_to_all(folder: Path) -> bool:
    """Tell whether everybody may pass through ``folder``, or through its parents where it is not yet made."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents) if part.exists())


@contextmanager
def _running(plan: _Plan, request: SandboxRequest) -> Iterator[ScratchServer]:
    plan.folder.mkdir(mode=0o700)
    plan.stage.mkdir(mode=0o700)
    if plan.user:
        account = pwd.getpwnam(plan.user)
        os.chown(plan.folder, account.pw_uid, account.pw_gid)
    _initialise(plan, request)
    watch = ["/bin/sh", "-c", WATCH, str(plan.pg_ctl), str(plan.cluster)]
    with open_consumer(_as_server(plan, watch), idle_timeout_s=STOP_TIMEOUT_S) as watcher:
        _start(plan)
        try:
            yield ScratchServer(_url(plan, request), _version(plan), plan.folder, plan.stage)
        finally:
            with contextlib.suppress(SourceError):  # it died before; `reap` looks for what is left in any case
                watcher.feed([b"stop\n"])


def _url(plan: _Plan, request: SandboxRequest) -> Secret:
    """Return where the server is; what a restored role or database has set does not rule the sessions that load it.

    Our superuser often has the name of a role of the backup, and so its settings.
    """
    options = "".join(f" -c {setting}" for setting in _NOT_RESTORED).lstrip()
    if request.major >= 17:
        options += " -c event_triggers=off"
    parameters = urlencode({"host": plan.folder, "port": 5432, "options": options}, quote_via=quote)
    return Secret(f"postgresql://{quote(request.superuser, safe='')}@/postgres?{parameters}")


_NOT_RESTORED = (
    "session_preload_libraries=",
    "local_preload_libraries=",
    "role=none",
    "session_replication_role=origin",
    "default_transaction_read_only=off",
    "default_transaction_isolation=read\\ committed",
    "array_nulls=on",
    "quote_all_identifiers=off",  # the server's own spelling of search_path in `alter database set` depends on it
)


_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Let the system give the memory for sorting in large pages where it can: a tenth of an index's time went into asking
for small ones. Other C libraries ignore it."""


def _as_server(plan: _Plan, argv: list[str]) -> Command:
    return Command(argv, env=_LARGE_PAGES, cwd=plan.folder, user=plan.user)


def _initialise(plan: _Plan, request: SandboxRequest) -> None:
    argv = [str(plan.initdb), "-D", str(plan.cluster), "-U", request.superuser, "--auth=peer", "--encoding=UTF8"]
    argv += ["--locale=C", "--no-sync", "--no-instructions"]
    if request.major >= 18:
        argv.append("--no-data-checksums")
    run(_as_server(plan, argv), timeout_s=_START_TIMEOUT_S)
    settings = {**_tuning(plan), **_neutral(plan)}
    lines = [f"{name} = '{value}'\n" for name, value in _with_floors(settings, request.settings).items()]
    _append(plan.cluster / "postgresql.conf", "".join(lines))
    # Only the operating system's user that runs drkit may connect; there is no password to keep or to lose.
    (plan.cluster / "pg_hba.conf").write_text("local all all peer map=drkit\n")
    me = pwd.getpwuid(os.geteuid()).pw_name
    (plan.cluster / "pg_ident.conf").write_text(f'drkit "{me}" "{request.superuser}"\n')


def _append(file: Path, text: str) -> None:
    with file.open("a") as config:
        config.write(text)


def _tuning(plan: _Plan) -> dict[str, str]:
    """Return settings for a load at full speed; durability is worth nothing in a server that is thrown away.

    The log, in which rows of tables have no part (`postgres_load`), stays short, so that its files are used again while
    the system still has them in memory, and is written by its own process, out of large buffers of its own. The shared
    buffers are small: loading and reading whole tables
    only pass through a few, and each page of more would have to be found and cleared first. 128 MB instead of 3 GB took
    7 % off a load.
    """
    cores = core_count()
    sort_bytes = _between(64 * MIB, plan.memory_bytes // 16, _GIB)
    return {
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "wal_compression": "off",
        "wal_init_zero": "off",
        "checkpoint_timeout": "1d",
        "max_wal_size": "256MB",
        "wal_buffers": f"{_between(4 * MIB, plan.memory_bytes // 64, 64 * MIB) // MIB}MB",
        "wal_writer_delay": "5ms",
        "wal_writer_flush_after": "0",
        "shared_buffers": f"{_between(32 * MIB, plan.memory_bytes // 8, 128 * MIB) // MIB}MB",
        "maintenance_work_mem": f"{sort_bytes // MIB}MB",
        "max_parallel_maintenance_workers": str(max(cores - 1, 1)),
        "max_worker_processes": str(max(cores * 2, 4)),
        "max_parallel_workers": str(max(cores, 2)),
        "max_connections": str(16 + 4 * cores),
        "max_locks_per_transaction": "256",
        "autovacuum": "off",
        "jit": "off",
        "bgwriter_lru_maxpages": "0",
    }


def _neutral(plan: _Plan) -> dict[str, str]:
    """Return settings that keep a restored database from acting on anything outside (T40, T49)."""
    return {
        "listen_addresses": "",
        "unix_socket_directories": str(plan.folder),
        "port": "5432",
        "archive_mode": "off",
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": "",
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "logging_collector": "off",
        "log_min_messages": "fatal",
        "log_min_error_statement": "panic",
        "ssl": "off",
        "restart_after_crash": "off",
        "dynamic_shared_memory_type": "mmap",  # files in the data folder, which go when it goes
        "cluster_name": "drkit scratch",
    }


def _with_floors(settings: Mapping[str, str], floors: Mapping[str, str]) -> dict[str, str]:
    """Return ``settings`` with numbers raised to the floors, and with what else the restore needs added."""
    merged = dict(settings)
    for name, floor in floors.items():
        ours = merged.get(name)
        if ours is None or (floor.isdigit() and ours.isdigit() and int(floor) > int(ours)):
            merged[name] = floor
    return merged


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(wanted, most))


def _start(plan: _Plan) -> None:
    log = plan.folder / "server.log"
    argv = [str(plan.pg_ctl), "-D", str(plan.cluster), "-l", str(log), "-w", "-t", str(_START_TIMEOUT_S), "-s", "start"]
    try:
        run(_as_server(plan, argv), timeout_s=_START_TIMEOUT_S + 10)
    except SourceError as error:
        lines = log.read_text(errors="replace").splitlines()[-10:] if log.exists() else []
        raise SourceError("the scratch server did not start", details=[*error.details, *lines]) from error


def _version(plan: _Plan) -> str:
    done = run(_as_server(plan, [str(plan.pg_ctl.with_name("postgres")), "--version"]))
    return done.stdout.decode().split()[2]
