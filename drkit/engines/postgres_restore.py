"""Loading the parts of a PostgreSQL dump into a server.

The order is that of T2: globals (scratch servers only), database from template0, pre-data, data, post-data,
materialized views, event triggers, ANALYZE. Everything runs with ``--exit-on-error``: a load that went on past an error
is no load.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from drkit.binaries import postgres_binary
from drkit.credentials import Secret
from drkit.engines import LoadResult, RestoreOptions, RestoreSession
from drkit.engines.postgres_archive import Entry, Head, list_entries, read_head
from drkit.engines.postgres_client import Endpoint, connect, parse_url, pinned, tool_environment
from drkit.engines.postgres_load import ArchiveLoad, Loading
from drkit.engines.postgres_places import GLOBALS, Place, open_maintenance, places_of
from drkit.engines.postgres_target import (
    ExtensionNeed,
    Target,
    apply_settings,
    available_extensions,
    bare,
    create_database,
    drop_database,
    extension_needs,
    needed_roles,
    read_target,
    refuse_existing_tables,
    refuse_filled,
    refuse_missing,
    refuse_older,
)
from drkit.errors import SourceError, add_left
from drkit.model import Fingerprint

_MOST_SORT_KB = 1 << 20


@contextmanager
def open_restore(url: Secret, options: RestoreOptions) -> Iterator[RestoreSession]:
    """Connect to the target, check that the load can work, and lend the session; see `Engine.open_restore`."""
    endpoint = parse_url(url)
    with open_maintenance(endpoint, options) as connection:
        target = read_target(connection, pinned(endpoint, connection))
        refuse_older(target, options.details.get("server", {}))
        available = available_extensions(connection)
        tuning = _tuning(connection, options)
    session = _Restore(target, options, places_of(endpoint, options, target.databases), available)
    session.check()
    loading = _with_options(target.endpoint, tuning)
    with (
        tempfile.TemporaryDirectory(prefix="restore-", dir=options.stage_folder or options.work_folder) as folder,
        tool_environment(loading, Path(folder)) as environment,
    ):
        session.prepare(loading, environment, Path(folder))
        yield session


def _tuning(connection: psycopg.Connection[Any], options: RestoreOptions) -> dict[str, str]:
    """Return settings for the loading sessions; a scratch server has its own.

    Commits need not wait for the disk: the last statement of `finish` does, and with it all before. Sorting memory is
    taken in proportion to the shared buffers, which is how much its owner gave the server.
    """
    if options.scratch:
        return {}
    (current_kb, buffers_kb) = connection.execute(
        """select (select setting::bigint from pg_settings where name = 'maintenance_work_mem'),
                  (select setting::bigint * 8 from pg_settings where name = 'shared_buffers')"""
    ).fetchone() or (0, 0)
    sort_kb = max(current_kb, min(buffers_kb // (2 * max(options.jobs, 1)), _MOST_SORT_KB))
    same = {"array_nulls": "on", "quote_all_identifiers": "off"}  # a role's own would change what is stored
    return {"synchronous_commit": "off", "maintenance_work_mem": f"{sort_kb}kB", **same}


def _with_options(endpoint: Endpoint, settings: Mapping[str, str]) -> Endpoint:
    words = [endpoint.parameters.get("options", ""), *(f"-c {name}={value}" for name, value in settings.items())]
    merged = " ".join(word for word in words if word)
    return Endpoint({**endpoint.parameters, "options": merged}, endpoint.password) if merged else endpoint


class _Restore:
    """One load in progress."""

    def __init__(
        self,
        target: Target,
        options: RestoreOptions,
        places: Mapping[str, Place],
        available: Mapping[str, tuple[str, frozenset[str]]],
    ) -> None:
        major = int(options.details.get("server", {}).get("major", target.major))
        self._target = target
        self._options = options
        self._places = places
        self._available = available
        self._tables = [_table_name(text) for text in options.tables]
        self._left_out: set[str] = set()
        self._result = LoadResult()
        self._folder = Path()
        self._loading = Loading(
            target,
            target.endpoint,
            environment={},
            pg_restore=postgres_binary("pg_restore", major),
            psql=postgres_binary("psql", major),
            options=options,
        )

    @property
    def summary(self) -> str:
        """Return one line that names the target."""
        names = ", ".join(place.database for place in self._places.values())
        return f"{self._target.endpoint.server}/{names}, postgres {self._target.version}"

    def prepare(self, endpoint: Endpoint, environment: Mapping[str, str], folder: Path) -> None:
        """Take the endpoint with the settings for loading, the tools' environment and the private folder."""
        self._loading = replace(self._loading, endpoint=endpoint, environment=environment)
        self._folder = folder

    def check(self) -> None:
        """Refuse a target that is in the way, or that lacks extensions or roles; change nothing."""
        source = self._options.details.get("server", {}).get("system_identifier")
        for place in self._places.values():
            if place.exists and not self._options.scratch:
                with connect(self._target.endpoint, place.database) as connection:
                    if self._tables:
                        refuse_existing_tables(connection, self._target, place.database, self._tables)
                    else:
                        refuse_filled(connection, self._target, place.database, source)
        missing = {need.name: need for part in self._places for need in self._missing_extensions(part)}
        if not self._options.scratch:
            refuse_missing(self._target, list(missing.values()), self._missing_roles(self._target.roles, self._places))
        self._left_out = set(missing)
        self._result.warnings += [f"extension {name} left out: not installed here" for name in sorted(missing)]

    def _needs(self, part: str) -> list[ExtensionNeed]:
        return [] if self._tables else extension_needs(self._recorded(part))

    def _missing_extensions(self, part: str) -> list[ExtensionNeed]:
        return [need for need in self._needs(part) if need.name not in self._available]

    def _missing_roles(self, there: frozenset[str], parts: Mapping[str, Place]) -> list[str]:
        needed: set[str] = set()
        for part, place in parts.items():
            needed |= needed_roles({} if place.exists else self._facts(part), self._recorded(part))
        return sorted(needed - there)

    def _facts(self, part: str) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self._options.details["parts"][part].get("database", {})
        return facts

    def _recorded(self, part: str) -> Fingerprint:
        recorded: Fingerprint = self._options.details["parts"][part].get("fingerprint", {})
        if not self._tables:
            return recorded
        tables = {
            name: {"owner": facts.get("owner")}
            for name, facts in recorded.get("table", {}).items()
            if _table_name(name) in self._tables
        }
        return {"table": tables}

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load one part; see `RestoreSession.load`."""
        if part == GLOBALS:
            self._load_globals(b"".join(chunks))
            return
        place = self._places[part]
        with tempfile.TemporaryDirectory(prefix=f"{part}-", dir=self._folder) as name:
            head = read_head(chunks, self._loading.pg_restore, Path(name))
            archive = ArchiveLoad(self._loading, place.database, head, self._chosen(head))
            with self._database(part, place):
                self._create_surroundings(part, place)
                archive.load_objects(self._left_out)
                if not self._tables:
                    archive.refresh_views(self._recorded(part).get("materialized view", {}))
                    archive.load_event_triggers()
                    self._load_properties(part, place, archive)
            self._result.warnings += archive.warnings
        if not self._options.scratch:
            self._result.warnings += [
                f"subscription {name} was restored disabled: alter subscription {name} enable"
                for name in self._recorded(part).get("subscription", {})
            ]
        self._result.loaded[part] = self._target.endpoint.label(place.database)

    def _load_globals(self, script: bytes) -> None:
        """Apply roles and tablespaces to a scratch server; a user's server keeps its own."""
        if not self._options.scratch:
            self._result.loaded[GLOBALS] = "not applied: the target server keeps its own roles"
            return
        script = _for_scratch(script, self._target.role)
        if b"\nCREATE TABLESPACE " in script:
            script = b"set allow_in_place_tablespaces = on;\n" + script
        self._loading.run_script("template1", script)
        self._result.loaded[GLOBALS] = self._target.endpoint.server

    def _chosen(self, head: Head) -> tuple[Entry, ...]:
        """Return the entries to load: all, or those of the tables that were asked for."""
        if not self._tables:
            return head.entries
        chosen: set[str] = set()
        for schema, name in self._tables:
            found = list_entries(head, self._loading.pg_restore, [f"--schema={schema}", f"--table={name}"])
            if not found:
                raise SourceError(f"the backup has no table {schema}.{name}")
            chosen |= {entry.line for entry in found}
            self._result.warnings.append(
                f"table {schema}.{name} came with columns and rows only: indexes, constraints, triggers and grants are"
                " not part of a table restore"
            )
        return tuple(entry for entry in head.entries if entry.line in chosen)

    @contextmanager
    def _database(self, part: str, place: Place) -> Iterator[None]:
        """Make the database; if it is not loaded whole, drop it, or say what is left in one that was there."""
        target, options = self._target, self._options
        if options.scratch:
            self._add_missing_roles(part, place)
            drop_database(target, place.database)  # the scratch server's own `postgres`
        if options.scratch or not place.exists:
            facts = self._facts(part)
            self._result.warnings += create_database(target, place.database, facts, any_locale=options.scratch)
        try:
            yield
        except BaseException as error:
            add_left(error, self._undo(place))
            raise

    def _undo(self, place: Place) -> str:
        """Drop a database that was not loaded whole, if we made it; return what is left, for the error's details."""
        label = self._target.endpoint.label(place.database)
        if place.exists and not self._options.scratch:
            return f"{label} was there before; it is left with a part of the backup"
        try:
            drop_database(self._target, place.database)
        except SourceError as error:
            return f"{label} is left with a part of the backup, because it could not be dropped again: {error.message}"
        return ""

    def _add_missing_roles(self, part: str, place: Place) -> None:
        with connect(self._target.endpoint, "template1") as connection:
            there = frozenset(row[0] for row in connection.execute("select rolname::text from pg_roles"))
            for role in self._missing_roles(there, {part: replace(place, exists=False)}):
                connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))
                self._result.warnings.append(f"role {role} is not in the backup's globals and was made without login")

    def _create_surroundings(self, part: str, place: Place) -> None:
        """Create what has to be there first: extensions of a version, the schemas of single tables.

        Extensions are created in the recorded version where that is not the default (T15), if their schema is one that
        an empty database has; pg_restore makes the others in their default version, which is a warning.
        """
        schemas = dict.fromkeys(schema for schema, _ in self._tables)
        statements = [sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)) for schema in schemas]
        for need in self._needs(part):
            default, versions = self._available.get(need.name, (need.version, frozenset()))
            if default == need.version:
                continue
            if need.version in versions and need.schema in {"public", "pg_catalog"}:
                create = sql.SQL("create extension if not exists {} with schema {} version {}")
                names = sql.Identifier(need.name), sql.Identifier(need.schema), sql.Literal(need.version)
                statements.append(create.format(*names))
            else:
                self._result.warnings.append(
                    f"extension {need.name} is version {default} here and was {need.version} at backup time"
                )
        with connect(self._target.endpoint, place.database) as connection:
            for statement in statements:
                connection.execute(statement)

    def _load_properties(self, part: str, place: Place, archive: ArchiveLoad) -> None:
        """Give a database that we made the settings, grants and comment of the database itself (T1).

        In the archive they are statements with the old name; under another name only the settings can be repeated.
        """
        if place.exists and not self._options.scratch:
            return
        if place.database == self._options.details["parts"][part]["label"]:
            archive.load_properties()
        else:
            settings = self._recorded(part).get("database setting", {})
            self._result.warnings += apply_settings(self._target, place.database, settings)

    def finish(self) -> LoadResult:
        """Analyze what was loaded, make it durable, and return what came of the load.

        Where nobody will ask anything, as in most drills, there is no need of either.
        """
        for place in self._places.values() if self._options.queried else ():
            with connect(self._target.endpoint, place.database) as connection:
                connection.execute("set synchronous_commit = on")
                if self._tables:
                    for table in self._tables:
                        connection.execute(sql.SQL("analyze {}").format(sql.Identifier(*table)))
                else:
                    connection.execute("analyze")
        return self._result


def _table_name(text: str) -> tuple[str, str]:
    """Read ``schema.table`` as stored, or with SQL's double quotes; without a schema it is public."""
    pieces = re.fullmatch(r'(?:("(?:[^"]|"")+"|[^."]+)\.)?("(?:[^"]|"")+"|[^"]+)', text)
    if pieces is None:
        raise SourceError(f"{text} does not name a table; write it like schema.table")
    return bare(pieces[1] or "public"), bare(pieces[2])


def _for_scratch(script: bytes, superuser: str) -> bytes:
    """Leave out the bootstrap role, which is there, and put tablespaces inside the scratch server's own folder.

    In-place tablespaces came with PostgreSQL 15 (and minors of 2022 before it): an empty LOCATION.
    """
    quoted = '"' + superuser.replace('"', '""') + '"'
    there = {f"CREATE ROLE {name};".encode() for name in (superuser, quoted)}
    lines = (line for line in script.split(b"\n") if line not in there)
    return b"\n".join(_TABLESPACE.sub(rb"\1'';", line) for line in lines)


_TABLESPACE = re.compile(rb"^(CREATE TABLESPACE .* LOCATION )'.*';$")
