"""The steps that load one archive into one database, each a run of pg_restore or of psql.

The table of contents is kept in a file, so definitions need no stream: they come before the rows, and with several
jobs after them. The rows are loaded while they stream by, through one connection or several.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from drkit.engines import RestoreOptions
from drkit.engines.postgres_archive import Entry, Head, list_entries, write_list
from drkit.engines.postgres_client import Endpoint, connect, tool_database
from drkit.engines.postgres_rows import RowsLoad
from drkit.engines.postgres_target import Target
from drkit.errors import NoRoom, SourceError, says_full
from drkit.process import LARGE_BUFFER_BYTES, Command, Consumer, open_consumer, run

_LONGEST_LOAD_S = 7 * 86400.0


@dataclass(frozen=True)
class Loading:
    """What a session's loads share; ``endpoint`` has the settings for loading, ``environment`` leads tools to it."""

    target: Target
    endpoint: Endpoint
    environment: Mapping[str, str]
    pg_restore: Path
    psql: Path
    options: RestoreOptions

    def run_script(self, database: str, script: bytes) -> None:
        """Run a psql script up to its first error, which raises SourceError."""
        argv = [str(self.psql), "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
        argv.append(f"--dbname={tool_database(database)}")
        run(Command(argv, env=self.environment), stdin=script, timeout_s=self.options.idle_timeout_s)


class ArchiveLoad:
    """One archive on its way into one database; ``warnings`` grow from step to step."""

    def __init__(self, loading: Loading, database: str, head: Head, entries: Sequence[Entry]) -> None:
        self._loading = loading
        self._database = database
        self._head = head
        self._entries = entries
        self.warnings: list[str] = []

    def load_objects(self, left_out: Collection[str]) -> None:
        """Load all but materialized views' rows, event triggers and the extensions ``left_out``.

        Large objects have no rows to share out and go through pg_restore's own single connection, with all the rest.
        """
        first = [entry for entry in self._entries if _is_first(entry, left_out)]
        jobs = self._loading.options.jobs
        if jobs < 2 or self._head.has_large_objects:
            wanted = self._list("first", first)
            self._stream(wanted)
            sections = ["--section=post-data"]
        else:
            wanted = self._list("rest", [entry for entry in first if not entry.is_a("TABLE DATA")])
            self._run(wanted, ["--section=pre-data"])
            self._share_out(self._list("rows", [entry for entry in first if entry.is_a("TABLE DATA")]))
            sections = ["--section=data", "--section=post-data"]
        self._run(wanted, [*sections, f"--jobs={jobs}"])

    def load_event_triggers(self) -> None:
        """Load what would fire on the load itself, when all else is there (T14)."""
        last = [entry for entry in self._entries if _is_event_trigger(entry)]
        if last:
            self._run(self._list("last", last), [])

    def refresh_views(self, recorded: Mapping[str, Mapping[str, Any]]) -> None:
        """Fill materialized views in the order in which they can be; one that cannot is a warning by name (T12)."""
        with connect(self._loading.endpoint, self._database) as connection:
            waiting = [
                (schema, name)
                for schema, name, quoted in connection.execute(_UNPOPULATED).fetchall()
                if recorded.get(quoted, {}).get("populated", True)
            ]
            failures: dict[tuple[str, str], str] = {}
            while waiting:
                failures = _refresh(connection, waiting)
                if len(failures) == len(waiting):
                    break
                waiting = list(failures)
        self.warnings += [
            f"materialized view {schema}.{name} could not be refreshed and is empty: {words}"
            for (schema, name), words in failures.items()
        ]

    def load_properties(self) -> None:
        """Give the database the settings, grants and comment of the database itself; what fails is a warning."""
        entries = list_entries(self._head, self._loading.pg_restore, ["--create"])
        wanted = self._list("properties", [entry for entry in entries if _is_property(entry)])
        argv = [str(self._loading.pg_restore), "--create", f"--use-list={wanted}", "--file=-", str(self._head.file)]
        try:
            self._loading.run_script(self._database, _after_connect(run(Command(argv)).stdout))
        except SourceError as error:
            words = next((line for line in error.details if "ERROR:" in line), error.message)
            self.warnings.append(f"database {self._database}: its own settings and grants are not whole: {words}")

    def _list(self, name: str, entries: Sequence[Entry]) -> Path:
        return write_list(self._head.file.with_name(f"{name}.list"), entries)

    def _arguments(self) -> list[str]:
        dbname = f"--dbname={tool_database(self._database)}"
        return [str(self._loading.pg_restore), "--exit-on-error", "--no-password", dbname]

    def _run(self, wanted: Path, arguments: Sequence[str]) -> None:
        """Load what needs no rows, from the head."""
        argv = [*self._arguments(), *arguments, f"--use-list={wanted}", str(self._head.file)]
        with self._explained():
            done = run(Command(argv, env=self._loading.environment), timeout_s=_LONGEST_LOAD_S)
        self._note(done.stderr.splitlines())

    def _stream(self, wanted: Path) -> None:
        """Load definitions and data through one connection."""
        argv = [*self._arguments(), "--section=pre-data", "--section=data", f"--use-list={wanted}"]
        with self._explained(), self._consumer(argv) as consumer:
            _feed(consumer, self._head.chunks)
            self._note(consumer.stderr_lines)

    def _share_out(self, wanted: Path) -> None:
        """Load rows through several connections: as many as were asked for, or in a scratch server twice that.

        Those that load one table wait for each other while its file grows, two of them a sixth of the time (measured
        with PostgreSQL 15, which extends a file by a few pages), and nobody else wants a scratch server's processors.
        """
        options = self._loading.options
        rows = RowsLoad(self._connect_for_rows, options.jobs * 2 if options.scratch else options.jobs)
        argv = [str(self._loading.pg_restore), "--section=data", f"--use-list={wanted}", "--file=-"]
        logged = self._unlogged() if options.scratch else nullcontext()
        with self._explained(), logged, rows.running(), self._consumer(argv, output=rows.output) as consumer:
            rows.given()
            try:
                _feed(consumer, self._head.chunks)
            except SourceError:
                rows.raise_failure()
                raise
            rows.finish()

    @contextmanager
    def _consumer(self, argv: Sequence[str], output: int = subprocess.DEVNULL) -> Iterator[Consumer]:
        command = Command(argv, env=self._loading.environment, buffer_bytes=LARGE_BUFFER_BYTES)
        idle_timeout_s = self._loading.options.idle_timeout_s
        with open_consumer(command, idle_timeout_s=idle_timeout_s, output=output) as consumer:
            yield consumer

    @contextmanager
    def _unlogged(self) -> Iterator[None]:
        """Let the database's tables, which have no indexes yet, take rows without a log while the context lasts.

        The log is for a restart after a crash, and a scratch server is never started again. It cannot be turned off for
        several connections into one table in any other way: `alter table set logged` would write every row once more.
        Afterwards the catalog says what the archive said, before anything asks: publications and foreign keys do. After
        an error it need not, since the database is dropped.
        """
        with connect(self._loading.endpoint, self._database) as connection:
            connection.execute("set allow_system_table_mods = on")
            changed = [oid for (oid,) in connection.execute(_UNLOG).fetchall()]
            yield
            connection.execute("update pg_class set relpersistence = 'p' where oid = any (%s)", [changed])

    @contextmanager
    def _connect_for_rows(self) -> Iterator[psycopg.Connection[Any]]:
        with connect(self._loading.endpoint, self._database) as connection:
            connection.execute("reset lc_monetary")  # pg_dump wrote money as the source's server shows it
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say which database could not be loaded, and the first error that pg_restore or the server had."""
        failed = f"{self._loading.endpoint.label(self._database)} could not be loaded"
        try:
            yield
        except SourceError as error:
            words = next((line.partition("error: ")[2] for line in error.details if "error: " in line), error.message)
            kind = NoRoom if says_full("\n".join(error.details)) else SourceError
            raise kind(f"{failed}: {words}", details=error.details) from error
        except psycopg.Error as error:
            kind = NoRoom if isinstance(error, psycopg.errors.DiskFull) else SourceError
            raise kind(f"{failed}: {error.diag.message_primary or error}") from error

    def _note(self, lines: Sequence[str]) -> None:
        self.warnings += [line for line in lines if "warning:" in line.lower()]


_UNLOG = """
update pg_class set relpersistence = 'u' from (
  select unnest(array[c.oid, c.reltoastrelid, i.indexrelid]) as part
    from pg_class as c left join pg_index as i on i.indrelid = c.reltoastrelid
   where c.relkind = 'r' and c.relpersistence = 'p' and c.oid >= 16384) as tables
 where oid = part returning oid"""
"""Users' tables with their TOAST tables and those tables' indexes (transam.h, FirstNormalObjectId)."""

_UNPOPULATED = b"""
select n.nspname::text, c.relname::text, format('%I.%I', n.nspname, c.relname)
  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
 where c.relkind = 'm' and not c.relispopulated order by c.oid"""


def _refresh(connection: psycopg.Connection[Any], views: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Refresh each view and return those that failed, with the server's words."""
    failures = {}
    for view in views:
        try:
            connection.execute(sql.SQL("refresh materialized view {}").format(sql.Identifier(*view)))
        except psycopg.errors.DiskFull:
            raise
        except psycopg.Error as error:
            failures[view] = error.diag.message_primary or str(error)
    return failures


def _feed(consumer: Consumer, chunks: Iterator[bytes]) -> None:
    """Feed pg_restore; when it has all it needs before the end, still read the rest, so that digests are compared."""
    try:
        consumer.feed(chunks)
    except SourceError:
        if consumer.status != 0:
            raise
        for _ in chunks:
            pass


def _is_first(entry: Entry, left_out: Collection[str]) -> bool:
    if entry.is_a("EXTENSION") and entry.text.split(" ")[2] in left_out:
        return False
    # The comment of an extension comes with the extension, and only its owner may set it.
    return not (entry.is_a("MATERIALIZED VIEW DATA") or entry.is_a("COMMENT - EXTENSION") or _is_event_trigger(entry))


def _is_event_trigger(entry: Entry) -> bool:
    return entry.is_a("EVENT TRIGGER") or entry.is_a("COMMENT - EVENT TRIGGER")


def _is_property(entry: Entry) -> bool:
    return entry.text.startswith(
        ("DATABASE PROPERTIES ", "ACL - DATABASE ", "COMMENT - DATABASE ", "SECURITY LABEL - DATABASE ")
    )


def _after_connect(script: bytes) -> bytes:
    """Return what follows the change into the new database: pg_restore lists CREATE DATABASE whatever was chosen."""
    _, _, rest = script.partition(b"\n\\connect ")
    return rest.partition(b"\n")[2]
