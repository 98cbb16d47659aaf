"""What is found out about a server before a base backup of it is taken, and once more when it has ended.

What would make the backup fail late, or worthless, is refused here by name; what it does not carry becomes a warning.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import psycopg

from drkit.engines.postgres_client import Endpoint
from drkit.errors import SourceError

OLDEST_MAJOR = 14
SYSTEM_TAIL_DIGITS = 6

RECORDED_SETTINGS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_replication_slots",
    "wal_level",
    "wal_segment_size",
    "block_size",
    "wal_block_size",
    "data_checksums",
    "summarize_wal",
    "fsync",
    "full_page_writes",
    "track_commit_timestamp",
    "archive_mode",
    "TimeZone",
    "server_encoding",
    "shared_preload_libraries",
)
"""Settings a restore has to know. Replay on a hot standby stops when one of the first five is lower than it was on the
source (T25), and ``shared_preload_libraries`` names what has to be installed; only some roles may see that one."""

_CONFIG_SETTINGS = ("config_file", "hba_file", "ident_file")


@dataclass(frozen=True)
class DatabaseRecord:
    """One database of the server, with what a restore compares its collations by (T48)."""

    name: str
    oid: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ConfigFiles:
    """The configuration files outside of the data folder (T24): those that could be read, and why not the others."""

    locations: Mapping[str, str]
    contents: Mapping[str, bytes]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class BaseFacts:
    """The server, the role that connects, and what is recorded of both.

    ``superuser`` is the role that initdb made, which is there whatever else is; ``machine`` the kind of processor, as
    the server's version names it.
    """

    version: str
    major: int
    machine: str
    role: str
    superuser: str
    in_recovery: bool
    settings: Mapping[str, str]
    tablespaces: Mapping[int, str]
    databases: Sequence[DatabaseRecord]
    config: ConfigFiles
    warnings: Sequence[str]

    @property
    def segment_bytes(self) -> int:
        """Return the size of a WAL segment."""
        return int(self.settings["wal_segment_size"])

    @property
    def checksums(self) -> bool:
        """Tell whether the server's pages have checksums."""
        return self.settings["data_checksums"] == "on"

    def describe(self, tablespace: int | None) -> tuple[str, str]:
        """Return kind and label of a part with files of that tablespace, or of the data folder."""
        if tablespace is None:
            return "data", "base"
        return "tablespace", self.tablespaces.get(tablespace, f"tablespace {tablespace}")


def check_base_server(connection: psycopg.Connection[Any], endpoint: Endpoint) -> BaseFacts:
    """Read the server's facts; raise SourceError for one that cannot give a base backup to this role."""
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    number, version, role, is_superuser, replicates, in_recovery, slots, superuser, machine = row
    if number // 10000 < OLDEST_MAJOR:
        raise SourceError(
            f"PostgreSQL {version} at {endpoint.server} is too old for method base: it takes {OLDEST_MAJOR} or newer",
            hints=["use method dump for it"],
        )
    settings = dict(connection.execute(_SETTINGS, {"names": list(RECORDED_SETTINGS)}).fetchall())
    _refuse_settings(endpoint, settings, slots)
    if not (is_superuser or replicates):
        raise SourceError(
            f"role {role} at {endpoint.server} may not take a base backup: it lacks the attribute REPLICATION",
            hints=[f'alter role "{role}" replication;'],
        )
    config = _config_files(connection, number // 10000)
    return BaseFacts(
        version=version,
        major=number // 10000,
        machine=machine or "",
        role=role,
        superuser=superuser,
        in_recovery=in_recovery,
        settings=settings,
        tablespaces=_named_tablespaces(connection),
        databases=[DatabaseRecord(*record) for record in connection.execute(_DATABASES).fetchall()],
        config=config,
        warnings=[*_doubts(settings), *_missing_config(config, role)],
    )


_SERVER = """
select current_setting('server_version_num')::int, split_part(current_setting('server_version'), ' ', 1),
       current_user::text, r.rolsuper, r.rolreplication, pg_is_in_recovery(),
       (select count(*) from pg_replication_slots),
       (select rolname::text from pg_roles where oid = 10), substring(version() from ' on ([^ -]+)-')
  from pg_roles as r where r.rolname = current_user"""

_SETTINGS = "select name, setting from pg_settings where name = any (%(names)s)"

_TABLESPACES = """
select oid::bigint, spcname::text, starts_with(pg_tablespace_location(oid), 'pg_tblspc/')
  from pg_tablespace where spcname not in ('pg_default', 'pg_global')
   and pg_tablespace_location(oid) is not null order by oid"""

_DATABASES = """
select datname::text, oid::bigint,
       jsonb_build_object(
         'encoding', pg_encoding_to_char(encoding), 'collate', datcollate, 'ctype', datctype,
         'locale_provider', coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
         'icu_locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
         'collation_version', to_jsonb(d) ->> 'datcollversion',
         'accepts_connections', datallowconn, 'is_template', datistemplate)
  from pg_database as d order by 1"""


def _named_tablespaces(connection: psycopg.Connection[Any]) -> dict[int, str]:
    """Return name by oid; raise SourceError for one inside the data folder: with no link there, no backup has it."""
    rows = connection.execute(_TABLESPACES).fetchall()
    inside = [name for _, name, is_inside in rows if is_inside]
    if inside:
        raise SourceError(
            f"tablespace {inside[0]} is inside the data folder itself (allow_in_place_tablespaces, a developer's"
            " setting), and a base backup cannot bring it back",
            hints=["move its tables to another tablespace and drop it, or use method dump"],
        )
    return {oid: name for oid, name, _ in rows}


def _refuse_settings(endpoint: Endpoint, settings: Mapping[str, str], slots: int) -> None:
    if settings["wal_level"] == "minimal":
        raise SourceError(
            f"{endpoint.server} runs with wal_level = minimal, which cannot give a base backup",
            hints=["set wal_level = replica and max_wal_senders = 10 in postgresql.conf and restart the server"],
        )
    for name in ("max_wal_senders", "max_replication_slots"):
        if settings[name] == "0":
            raise SourceError(
                f"{endpoint.server} runs with {name} = 0, and a base backup needs one of them",
                hints=[f"set {name} = 10 in postgresql.conf and restart the server"],
            )
    if slots >= int(settings["max_replication_slots"]):
        raise SourceError(
            f"{endpoint.server} has no free replication slot, which a base backup keeps its WAL by",
            hints=["drop a slot that nobody uses, or raise max_replication_slots and restart the server"],
        )


def _doubts(settings: Mapping[str, str]) -> list[str]:
    """Return what makes the source itself untrustworthy (T45)."""
    if settings["fsync"] == "off":
        return ["fsync is off: a crash of the server's machine can corrupt the data, and with it every later backup"]
    return []


@dataclass(frozen=True)
class EndFacts:
    """The server when the last byte had come: the moment that the backup shows, and what was made meanwhile."""

    stop_at: datetime
    behind_s: float
    databases: Mapping[int, str]
    tablespaces: Mapping[int, str]


def read_end(connection: psycopg.Connection[Any]) -> EndFacts:
    """Ask the server's clock for the moment that the backup shows: not before its last commit, and barely after it.

    On a standby that is behind (or has lost its primary) that is the stamp of the last commit it has replayed; it is
    never before that, however slow the standby's clock is: a base that is dated too early would be restored for moments
    that it is past already, and replay cannot go back.
    """
    row = connection.execute(_END).fetchone()
    assert row is not None
    databases = {record[1]: record[0] for record in connection.execute(_DATABASES).fetchall()}
    return EndFacts(row[0], row[1], databases, _named_tablespaces(connection))


_END = """
select stop_at, extract(epoch from clock_timestamp() - stop_at)::float
  from (select case when pg_is_in_recovery()
                     and (pg_last_wal_receive_lsn() is distinct from pg_last_wal_replay_lsn()
                          or not exists (select from pg_stat_wal_receiver))
                    then coalesce(pg_last_xact_replay_timestamp(), clock_timestamp())
                    else greatest(clock_timestamp(), pg_last_xact_replay_timestamp()) end as stop_at) as e"""


def changes(facts: BaseFacts, end: EndFacts) -> list[str]:
    """Name the databases (T46) and tablespaces (T26) that were created while the backup ran."""
    before = {database.oid for database in facts.databases}
    new = [name for oid, name in end.databases.items() if oid not in before]
    warnings = [f"database {name} was created while the backup ran: check it after a restore" for name in new]
    return warnings + [
        f"tablespace {name} was created while the backup ran: replay would write to its folder; take another backup"
        for oid, name in end.tablespaces.items()
        if oid not in facts.tablespaces
    ]


def _config_files(connection: psycopg.Connection[Any], major: int) -> ConfigFiles:
    names = [*_CONFIG_SETTINGS, "data_directory"]
    locations = dict(connection.execute(_SETTINGS, {"names": names}).fetchall())
    if "data_directory" not in locations:
        return ConfigFiles({}, {}, {})
    paths = {locations[name] for name in _CONFIG_SETTINGS if locations.get(name)}
    for function, query, since in _INCLUDED:
        if major >= since and _may_run(connection, function):
            paths |= {path for (path,) in connection.execute(query).fetchall()}
    folder = PurePosixPath(locations["data_directory"])
    outside = sorted(path for path in paths if not PurePosixPath(path).is_relative_to(folder))
    contents: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    readable = _may_run(connection, "pg_read_binary_file(text)")
    for path in outside:
        try:
            if readable:
                (contents[path],) = connection.execute("select pg_read_binary_file(%s)", [path]).fetchone() or (b"",)
            else:
                missing[path] = "not allowed to read it"
        except psycopg.Error as error:
            missing[path] = error.diag.message_primary or "cannot be read"
    return ConfigFiles(locations, contents, missing)


_INCLUDED = (
    ("pg_show_all_file_settings()", "select distinct sourcefile from pg_file_settings", 14),
    ("pg_hba_file_rules()", "select distinct file_name from pg_hba_file_rules where file_name is not null", 16),
    (
        "pg_ident_file_mappings()",
        "select distinct file_name from pg_ident_file_mappings where file_name is not null",
        16,
    ),
)


def _may_run(connection: psycopg.Connection[Any], function: str) -> bool:
    row = connection.execute("select has_function_privilege(%s, 'execute')", [function]).fetchone()
    return bool(row and row[0])


def _missing_config(config: ConfigFiles, role: str) -> list[str]:
    if not config.locations:
        unseen = f"role {role} may not see where the configuration files are; those outside of the data folder are left"
        return [f'{unseen} out: grant pg_read_all_settings to "{role}";']
    rights = f'grant execute on function pg_read_binary_file(text) to "{role}"; grant pg_read_server_files to "{role}";'
    return [f"{path} is not in the backup: {reason}: {rights}" for path, reason in config.missing.items()]


def config_archive(config: ConfigFiles) -> bytes:
    """Return a tar of the configuration files, under their own paths."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, content in config.contents.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
