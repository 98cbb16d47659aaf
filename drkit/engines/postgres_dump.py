"""Engine `postgres`, method `dump`: pg_dump in an exported snapshot, and the fingerprint in the same one.

For each database one connection (the guard) takes the locks, exports its snapshot and stays open until the dump has
ended. pg_dump and the fingerprint both import that snapshot, so what is recorded is exactly what is dumped (T4). Locks
are taken before the snapshot: a table that is truncated or rewritten in between would otherwise look empty to it.
Two databases never share a snapshot; each part's details say when its own was taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg

from drkit.binaries import postgres_binary, postgres_version
from drkit.credentials import Secret
from drkit.engines import BackupOptions, BackupSession, Part, Preflight, RestoreOptions, RestoreSession
from drkit.engines.logical_dump import LogicalDump
from drkit.engines.postgres_client import Endpoint, connect, parse_url, pinned, tool_database, tool_environment
from drkit.engines.postgres_expected import expected_after_dump
from drkit.engines.postgres_fingerprint import fingerprint_database, fingerprint_globals
from drkit.engines.postgres_preflight import DatabaseFacts, DatabasePlan, ServerFacts, check_database, check_server
from drkit.engines.postgres_snapshot import Background, Guard, blocked, open_guard
from drkit.errors import SourceError
from drkit.model import ChildRecord, Difference, Fingerprint
from drkit.process import LARGE_BUFFER_BYTES, Command, open_producer
from drkit.units import format_bytes, format_count, format_utc

_LOCK_ATTEMPTS = 5
_DUMP_LOCK_WAIT_S = 3.0
_LOCKS_PER_S = 2000
_GLOBALS_TAIL_BYTES = 4096
_GLOBALS_END = b"-- PostgreSQL database cluster dump complete"
_ARCHIVE_MAGIC = b"PGDMP"
_ARCHIVE_END = b"\0\0\0\0\0"
_LEAST_ARCHIVE_BYTES = 100


class PostgresDump:
    """The engine that the registry holds; stateless."""

    name = "postgres"
    method = "dump"

    @contextmanager
    def open_backup(self, url: Secret, options: BackupOptions) -> Iterator[BackupSession]:
        """Connect, run the preflight and lend the session; see `Engine.open_backup`."""
        endpoint = parse_url(url)
        maintenance = endpoint.database or (options.databases[0] if options.databases else "postgres")
        with ExitStack() as stack:
            connection = stack.enter_context(connect(endpoint, maintenance))
            endpoint = pinned(endpoint, connection)
            server = check_server(connection, endpoint, options.databases)
            environment = stack.enter_context(tool_environment(endpoint, options.work_folder))
            session = _DumpSession(endpoint, options, server, environment)
            session.check(connection)
            yield session

    def open_restore(self, url: Secret, options: RestoreOptions) -> AbstractContextManager[RestoreSession]:
        """Connect to the target and check that the load can work."""
        from drkit.engines import postgres_restore

        return postgres_restore.open_restore(url, options)

    def fingerprint(self, url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:
        """Take the fingerprint of restored parts."""
        from drkit.engines import postgres_restored

        return postgres_restored.read_fingerprints(url, options)

    def expected(self, difference: Difference) -> str:
        """Return why a difference is to be expected of a logical dump, or the empty string."""
        return expected_after_dump(difference)

    def run_check(self, url: Secret, part: Mapping[str, Any], query: str) -> Any:
        """Run one check of a policy against a restored part."""
        from drkit.engines import postgres_restored

        return postgres_restored.run_check(url, part, query)


class _DumpSession(LogicalDump):
    """One backup in progress."""

    def __init__(
        self, endpoint: Endpoint, options: BackupOptions, server: ServerFacts, environment: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._options = options
        self._server = server
        self._environment = environment
        self._pg_dump = postgres_binary("pg_dump", server.major)
        self._pg_dumpall = postgres_binary("pg_dumpall", server.major)
        self._databases = {f"database-{number}": facts for number, facts in enumerate(server.databases, 1)}
        self._plans: dict[str, DatabasePlan] = {}
        self._part_details: dict[str, dict[str, Any]] = {}

    def check(self, connection: psycopg.Connection[Any]) -> None:
        """Check every database, and read the globals' fingerprint."""
        self._part_details["globals"] = {
            "label": "globals",
            "kind": "globals",
            "role_passwords": self._server.reads_passwords,
            "fingerprint": fingerprint_globals(connection),
        }
        warnings = list(self._server.warnings)
        if not self._server.reads_passwords:
            warnings.append(f"role {self._server.role} may not read pg_authid: roles are kept without their passwords")
        for part, facts in self._databases.items():
            with connect(self._endpoint, facts.name) as database:
                self._plans[part] = check_database(database, self._server, facts.name, self._options.exclude_tables)
            warnings += self._plans[part].warnings
        if self._options.exclude_tables and not any(plan.excluded for plan in self._plans.values()):
            warnings.append(f"target.exclude_tables matches no table: {', '.join(self._options.exclude_tables)}")
        self._preflight = Preflight(self._summary(), self._tools(), self._parts(), warnings)

    def _summary(self) -> str:
        size_bytes = sum(facts.size_bytes for facts in self._databases.values())
        tables = sum(plan.tables for plan in self._plans.values())
        return ", ".join(
            [
                f"postgres {self._server.version} at {self._endpoint.server}",
                f"pg_dump {self._version(self._pg_dump)}",
                format_count(len(self._databases), "database"),
                format_bytes(size_bytes),
                format_count(tables, "table"),
                "can read all rows",
            ]
        )

    def _tools(self) -> dict[str, str]:
        return {
            "postgres": self._server.version,
            "pg_dump": self._version(self._pg_dump),
            "pg_dumpall": self._version(self._pg_dumpall),
        }

    @staticmethod
    def _version(path: Path) -> str:
        return ".".join(str(number) for number in postgres_version(path))

    def _parts(self) -> list[Part]:
        parts = [Part("globals", "globals", "globals")]
        return parts + [Part(name, "database", facts.name, facts.size_bytes) for name, facts in self._databases.items()]

    def details(self) -> dict[str, Any]:
        """Return what only key holders may read."""
        server = {
            "version": self._server.version,
            "major": self._server.major,
            "system_identifier": self._server.system_identifier,
            "standby": self._server.in_recovery,
            "address": self._endpoint.server,
            "one_snapshot": False,
        }
        return {"server": server, "parts": self._part_details}

    @contextmanager
    def open_part(self, part: Part) -> Iterator[Iterator[bytes]]:
        """Stream the globals or one database; see `BackupSession.open_part`."""
        if part.name == "globals":
            with self._open_globals() as chunks:
                yield chunks
        else:
            with self._open_database(part) as chunks:
                yield chunks

    @contextmanager
    def _open_globals(self) -> Iterator[Iterator[bytes]]:
        argv = [str(self._pg_dumpall), "--globals-only", "--no-password"]
        argv.append(f"--database={tool_database(self._endpoint.database or 'postgres')}")
        if not self._server.reads_passwords:
            argv.append("--no-role-passwords")
        with connect(self._endpoint) as connection:
            (now,) = connection.execute("select clock_timestamp()").fetchone() or (datetime.now(UTC),)
            argv.append(f"--encoding={connection.info.parameter_status('server_encoding')}")
        self._snapshots.append(now)
        with self._producing("globals", argv) as chunks:
            yield whole_globals(chunks)

    @contextmanager
    def _open_database(self, part: Part) -> Iterator[Iterator[bytes]]:
        facts = self._databases[part.name]
        with ExitStack() as stack:
            guard, first, chunks = self._start(part.name, facts, stack)
            self._snapshots.append(guard.snapshot_at)
            background = Background(guard, self._endpoint, self._take_fingerprint)
            stack.callback(background.stop)
            yield whole_archive(watched(chain([first], chunks), background), facts.name)
            self._part_details[part.name] = {
                "label": facts.name,
                "kind": "database",
                "snapshot_at": format_utc(guard.snapshot_at),
                "size_bytes": facts.size_bytes,
                "database": {"owner": facts.owner, "encoding": facts.encoding, **facts.settings},
                "excluded": list(self._plans[part.name].excluded),
                "fingerprint": background.result(),
            }

    def _start(self, part: str, facts: DatabaseFacts, stack: ExitStack) -> tuple[Guard, bytes, Iterator[bytes]]:
        """Lock, export and start pg_dump; return once its first bytes are there.

        pg_dump takes its own locks beside the guard's. When somebody asks for an exclusive lock in just that moment,
        they wait for the guard and pg_dump waits for them: only letting go of the guard helps, so that is done and all
        is started again (T5).
        """
        for attempt in range(1, _LOCK_ATTEMPTS + 1):
            with ExitStack() as attempt_stack:
                guard = attempt_stack.enter_context(
                    open_guard(
                        self._endpoint, facts.name, self._planner(facts), lock_timeout_s=self._options.lock_timeout_s
                    )
                )
                self._plans[part] = guard.plan
                chunks = attempt_stack.enter_context(self._producing(part, self._dump_argv(facts, guard)))
                try:
                    first = next(chunks, b"")
                except SourceError as error:
                    if not any("canceling statement due to" in line for line in error.details):
                        raise
                    if attempt == _LOCK_ATTEMPTS:
                        raise blocked(self._endpoint, facts.name, self._options.lock_timeout_s) from error
                    continue
                stack.push(attempt_stack.pop_all())
                return guard, first, chunks
        raise AssertionError("unreachable")

    def _planner(self, facts: DatabaseFacts) -> Callable[[psycopg.Connection[Any]], DatabasePlan]:
        return lambda connection: check_database(connection, self._server, facts.name, self._options.exclude_tables)

    def _take_fingerprint(self, guard: Guard) -> Fingerprint:
        if self._options.fingerprint == "counts":
            # Counting ends long before the dump does; a second process would only take a core from it.
            guard.connection.execute("set max_parallel_workers_per_gather = 0")
        return fingerprint_database(
            guard.connection,
            mode=self._options.fingerprint,
            exclude_tables=self._options.exclude_tables,
            earlier_positions=guard.positions,
        )

    def _dump_argv(self, facts: DatabaseFacts, guard: Guard) -> list[str]:
        # The guard holds every lock already: pg_dump only waits behind somebody who waits for us, and waits in vain.
        wait_s = min(self._options.lock_timeout_s, _DUMP_LOCK_WAIT_S + guard.plan.tables / _LOCKS_PER_S)
        return [
            str(self._pg_dump),
            "--format=custom",
            "--compress=0",
            "--no-password",
            f"--encoding={facts.encoding}",  # a role may have another set, which does not know every character
            f"--snapshot={guard.snapshot_id}",
            f"--lock-wait-timeout={round(wait_s * 1000)}",
            *[f"--exclude-table={name}" for name in guard.plan.excluded],
            f"--dbname={tool_database(facts.name)}",
        ]

    @contextmanager
    def _producing(self, part: str, argv: Sequence[str]) -> Iterator[Iterator[bytes]]:
        command = Command(argv, env=self._environment, buffer_bytes=LARGE_BUFFER_BYTES)
        with open_producer(command, idle_timeout_s=self._options.idle_timeout_s) as producer:
            chunks = _relay(producer.chunks())
            try:
                yield chunks
            finally:
                producer.kill()
                with contextlib.suppress(ValueError):  # another thread is in it, and the child's end wakes that
                    chunks.close()
                status = -1 if producer.status is None else producer.status
                self._children.append(ChildRecord(tool=command.tool, part=part, exit_status=status))


def _relay(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    yield from chunks


def watched(chunks: Iterator[bytes], background: Background) -> Iterator[bytes]:
    """Yield ``chunks``, and stop with the fingerprint's error as soon as there is one."""
    for chunk in chunks:
        background.raise_failure()
        yield chunk


def whole_archive(chunks: Iterator[bytes], database: str) -> Iterator[bytes]:
    """Yield ``chunks`` and raise SourceError at their end unless they are a whole archive of pg_dump's custom format.

    An archive begins with PGDMP and, written to a pipe, ends with a zero 32-bit length in five bytes: the end of the
    last table's data, or the position of the last entry when there is none (pg_backup_custom.c).
    """
    head, tail, size_bytes = b"", b"", 0
    for chunk in chunks:
        head = head if len(head) >= len(_ARCHIVE_MAGIC) else head + chunk[: len(_ARCHIVE_MAGIC)]
        tail = (tail + chunk[-len(_ARCHIVE_END) :])[-len(_ARCHIVE_END) :]
        size_bytes += len(chunk)
        yield chunk
    if size_bytes == 0:
        raise SourceError(f"database {database}: pg_dump ended without an error and without a byte of output")
    if not head.startswith(_ARCHIVE_MAGIC) or size_bytes < _LEAST_ARCHIVE_BYTES:
        raise SourceError(f"database {database}: what pg_dump wrote is not an archive ({format_bytes(size_bytes)})")
    if tail != _ARCHIVE_END:
        raise SourceError(
            f"database {database}: the archive that pg_dump wrote has no end ({format_bytes(size_bytes)})"
        )


def whole_globals(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield ``chunks`` and raise SourceError at their end unless pg_dumpall's closing line was among them."""
    tail = b""
    for chunk in chunks:
        tail = (tail + chunk)[-_GLOBALS_TAIL_BYTES:]
        yield chunk
    if _GLOBALS_END not in tail:
        raise SourceError("what pg_dumpall wrote for the globals has no end: its closing line is missing")
