"""Everything that would make a dump fail late, short or filtered, found before anything is read.

Each check is one set-based query. A check that ends in a refusal says what is in the way, lists the objects by name and
gives the exact statement to type; what a dump merely does not carry becomes a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from drkit.engines.postgres_client import Endpoint
from drkit.engines.postgres_fingerprint import excluded_relations
from drkit.errors import SourceError
from drkit.units import format_count

OLDEST_MAJOR = 12
_LISTED = 20
_LOCK_TABLE_SLACK = 2


@dataclass(frozen=True)
class DatabaseFacts:
    """One database of the server, as pg_database has it."""

    name: str
    oid: int
    owner: str
    size_bytes: int
    encoding: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class ServerFacts:
    """The server, the role that connects, and which databases are to be dumped."""

    version: str
    major: int
    role: str
    superuser: bool
    in_recovery: bool
    reads_passwords: bool
    system_identifier: str | None
    databases: tuple[DatabaseFacts, ...]
    warnings: tuple[str, ...]


def check_server(connection: psycopg.Connection[Any], endpoint: Endpoint, databases: Sequence[str]) -> ServerFacts:
    """Read the server's facts and choose the databases; no names means all that accept connections.

    Raise SourceError for a server that is too old, a database that is not there, accepts no connections or is the
    invalid remainder of an interrupted DROP DATABASE.
    """
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    version_number, version, role, superuser, in_recovery, reads_passwords, reads_control = row
    if version_number // 10000 < OLDEST_MAJOR:
        raise SourceError(f"PostgreSQL {version} at {endpoint.server} is too old: drkit reads {OLDEST_MAJOR} and newer")
    control = (
        connection.execute("select system_identifier::text from pg_control_system()").fetchone()
        if reads_control
        else None
    )
    chosen, warnings = _choose(connection, endpoint, databases)
    if in_recovery:
        warnings.append(
            "the server is a standby: a long dump may be cancelled by a recovery conflict (hot_standby_feedback, "
            "max_standby_streaming_delay)"
        )
    return ServerFacts(
        version,
        version_number // 10000,
        role,
        superuser,
        in_recovery,
        reads_passwords,
        control[0] if control else None,
        tuple(chosen),
        tuple(warnings),
    )


_SERVER = """
select current_setting('server_version_num')::int, split_part(current_setting('server_version'), ' ', 1),
       current_user::text, r.rolsuper, pg_is_in_recovery(), has_table_privilege('pg_authid', 'select'),
       has_function_privilege('pg_control_system()', 'execute')
  from pg_roles as r where r.rolname = current_user"""


def _choose(
    connection: psycopg.Connection[Any], endpoint: Endpoint, wanted: Sequence[str]
) -> tuple[list[DatabaseFacts], list[str]]:
    found = {row[0]: row for row in connection.execute(_DATABASES).fetchall()}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SourceError(
            f"there is no database {', '.join(missing)} at {endpoint.server}",
            details=[f"there are: {', '.join(sorted(found))}"],
            hints=["correct target.databases in the policy"],
        )
    chosen, warnings = [], []
    for name in wanted or sorted(found):
        _, oid, owner, size_bytes, encoding, connectable, usable, template, privileged, settings = found[name]
        if not wanted and template and name in {"template0", "template1"}:
            continue
        problem = ""
        if not usable:
            problem = "is invalid: a DROP DATABASE of it was interrupted; drop it"
        elif not connectable:
            problem = "accepts no connections (datallowconn is false)"
        elif not privileged:
            problem = f'may not be connected to: grant connect on database "{name}" to "{endpoint.user}";'
        if not problem:
            chosen.append(DatabaseFacts(name, oid, owner, size_bytes or 0, encoding, settings))
        elif wanted:
            raise SourceError(f"database {name} at {endpoint.server} {problem}")
        else:
            warnings.append(f"database {name} is left out: it {problem}")
    if not chosen:
        raise SourceError(f"there is no database to back up at {endpoint.server}")
    return chosen, warnings


_DATABASES = """
select datname, oid::bigint, pg_get_userbyid(datdba)::text,
       case when has_database_privilege(oid, 'connect') or pg_has_role('pg_read_all_stats', 'usage')
            then pg_database_size(oid) end,
       pg_encoding_to_char(encoding), datallowconn, datconnlimit <> -2, datistemplate,
       has_database_privilege(oid, 'connect'),
       jsonb_build_object(
         'collate', datcollate, 'ctype', datctype, 'locale_provider', coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
         'icu_locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
         'icu_rules', to_jsonb(d) ->> 'daticurules', 'collation_version', to_jsonb(d) ->> 'datcollversion',
         'connection_limit', datconnlimit, 'is_template', datistemplate)
  from pg_database as d"""


@dataclass(frozen=True)
class DatabasePlan:
    """How one database is dumped.

    ``excluded`` are quoted and have their schema; ``lock_statement`` locks all others, None when there are none.
    """

    excluded: tuple[str, ...]
    excluded_oids: tuple[int, ...]
    tables: int
    lock_statement: bytes | None
    warnings: tuple[str, ...]


def check_database(
    connection: psycopg.Connection[Any], server: ServerFacts, database: str, exclude_tables: Sequence[str]
) -> DatabasePlan:
    """Check one database; raise SourceError naming every object that is in the way of a whole dump."""
    arguments = {"excluded": excluded_relations(connection, exclude_tables)}
    for check in _REFUSALS:
        if check.superuser_too or not server.superuser:
            _refuse(connection.execute(check.query, arguments).fetchall(), check, server, database)
    warnings = _check_locks(connection, database, arguments)
    warnings += [
        f"{database}: {message}: {_listed([row[0] for row in rows])}"
        for message, query in _NOT_CARRIED.items()
        if (rows := connection.execute(query, arguments).fetchall())
    ]
    lock_statement, tables = connection.execute(_LOCKED, arguments).fetchone() or (None, 0)
    excluded = [row[0] for row in connection.execute(_NAMES, arguments).fetchall()]
    return DatabasePlan(tuple(excluded), tuple(arguments["excluded"]), tables, lock_statement, tuple(warnings))


@dataclass(frozen=True)
class _Refusal:
    """A query for (object, statement to type) pairs, and the sentence for when it finds some."""

    message: str
    query: str
    hint: str = ""
    superuser_too: bool = False


def _refuse(rows: Sequence[Sequence[str]], check: _Refusal, server: ServerFacts, database: str) -> None:
    if not rows:
        return
    statements = [row[1] for row in rows[:_LISTED] if row[1]]
    if len(rows) > len(statements) and statements:
        statements.append(f"and so on for {format_count(len(rows) - len(statements), 'further object')}")
    names = {"role": server.role, "database": database, "count": format_count(len(rows), "object")}
    raise SourceError(
        check.message.format(**names),
        details=[row[0] for row in rows[:_LISTED]],
        hints=[*dict.fromkeys(statements), *([check.hint.format(**names)] if check.hint else [])],
    )


def _check_locks(connection: psycopg.Connection[Any], database: str, arguments: dict[str, Any]) -> list[str]:
    """Refuse when the dump surely needs more locks than the server can hold, and warn when it may (T6).

    The lock table can grow into spare shared memory: with room for 4,160 by its settings, 6,000 relations could be
    dumped and 12,000 could not (measured with PostgreSQL 15).
    """
    row = connection.execute(_LOCK_CAPACITY, arguments).fetchone()
    assert row is not None
    needed, per_transaction, sessions = row
    room = per_transaction * sessions
    if needed <= room:
        return []
    message = f"{format_count(needed, 'relation')} to lock, and the server's lock table is made for {room:,}"
    hint = f"set max_locks_per_transaction = {needed // sessions + 64} in postgresql.conf and restart the server"
    if needed > room * _LOCK_TABLE_SLACK:
        raise SourceError(f"database {database} has {message}", hints=[hint])
    return [f"{database}: {message}: {hint}"]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest


_REFUSALS = (
    _Refusal(
        "database {database}: extension timescaledb needs calls around a load that drkit does not make",
        "select 'extension ' || extname, null from pg_extension where extname = 'timescaledb'",
        "leave {database} out of target.databases, and back it up with TimescaleDB's own tools",
        superuser_too=True,
    ),
    _Refusal(
        "role {role} sees only some rows in database {database}: row-level security applies to it",
        """
select format('%%I.%%I', n.nspname, c.relname), format('alter role %%I bypassrls;', current_user)
  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and c.relrowsecurity and row_security_active(c.oid) and c.oid >= 16384
   and c.oid <> all (%(excluded)s::oid[]) order by 1""",
        "or leave these tables out with target.exclude_tables",
    ),
    _Refusal(
        "role {role} may not read {count} in database {database}",
        """
with relations as (
  select c.oid, c.relkind, n.nspname, c.relname
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p', 'S') and c.oid >= 16384 and c.relpersistence <> 't'
     and c.oid <> all (%(excluded)s::oid[])
     and ((c.tableoid, c.oid) not in (select classid, objid from pg_depend where deptype = 'e')
          or c.oid in (select unnest(extconfig) from pg_extension)))
select format('schema %%I', nspname), format('grant usage on schema %%I to %%I;', nspname, current_user)
  from (select distinct nspname from relations) as s where not has_schema_privilege(nspname, 'usage')
union all
select format('table %%I.%%I', nspname, relname),
       format('grant select on table %%I.%%I to %%I;', nspname, relname, current_user)
  from relations where relkind <> 'S' and not has_table_privilege(oid, 'select')
union all
select format('sequence %%I.%%I', nspname, relname),
       format('grant select on sequence %%I.%%I to %%I;', nspname, relname, current_user)
  from relations where relkind = 'S' and not has_table_privilege(oid, 'select')""",
        "or, from PostgreSQL 14 on, everything at once (password hashes too): grant pg_read_all_data to {role};",
    ),
    _Refusal(
        "role {role} may not read {count} of the large objects in database {database}",
        """
select format('large object %%s', o.oid), format('grant select on large object %%s to %%I;', o.oid, current_user)
  from pg_largeobject_metadata as o
 where not pg_has_role(o.lomowner, 'usage') and current_setting('lo_compat_privileges') = 'off'
   and not exists (
     select from aclexplode(o.lomacl) as a
      where a.privilege_type = 'SELECT' and (a.grantee = 0 or pg_has_role(a.grantee, 'usage'))) order by o.oid""",
    ),
    _Refusal(
        "unlogged tables of database {database} are empty on a standby, so it cannot be dumped whole from here",
        """
select format('%%I.%%I', n.nspname, c.relname), ''
  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
 where c.relkind in ('r', 'S') and c.relpersistence = 'u' and c.oid <> all (%(excluded)s::oid[])
   and pg_is_in_recovery() order by 1""",
        "take this backup from the primary, or leave these tables out with target.exclude_tables",
        superuser_too=True,
    ),
    _Refusal(
        "target.exclude_tables leaves out tables that the rest of database {database} needs",
        """
select format('%%s needs %%s', pg_describe_object(d.classid, d.objid, 0), d.refobjid::regclass), ''
  from pg_depend as d
  left join pg_constraint as k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
  left join pg_rewrite as w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
 where d.refclassid = 'pg_class'::regclass and d.refobjid = any (%(excluded)s::oid[]) and d.deptype = 'n'
   and (k.contype = 'f' or w.oid is not null or d.classid = 'pg_class'::regclass)
   and coalesce(k.conrelid, w.ev_class, d.objid) <> all (%(excluded)s::oid[])
 group by 1 order by 1""",
        "leave these out too, or take the tables back in",
        superuser_too=True,
    ),
)

_NOT_CARRIED = {
    "invalid indexes are not carried by a dump": """
select i.indexrelid::regclass::text from pg_index as i join pg_class as c on c.oid = i.indexrelid
 where not i.indisvalid and c.relkind = 'i' and i.indexrelid >= 16384 order by 1""",
    "foreign tables are carried without rows": """
select c.oid::regclass::text from pg_class as c
 where c.relkind = 'f' and c.oid <> all (%(excluded)s::oid[]) order by 1""",
    "rows in tables of extensions that do not ask for it are not carried": """
select c.oid::regclass::text from pg_class as c
 where c.relkind = 'r' and c.oid >= 16384 and c.relpages > 0
   and (c.tableoid, c.oid) in (select classid, objid from pg_depend where deptype = 'e')
   and c.oid not in (select unnest(coalesce(extconfig, '{}')) from pg_extension) order by 1""",
    "only a superuser can dump subscriptions; left out": """
select subname::text from pg_subscription
 where subdbid = (select oid from pg_database where datname = current_database())
   and not (select rolsuper from pg_roles where rolname = current_user) order by 1""",
    "options of user mappings that this role may not see are left out": """
select srvname || ' for ' || usename from pg_user_mappings
 where umoptions is null and not (select rolsuper from pg_roles where rolname = current_user) order by 1""",
}

_NAMES = """
select format('%%I.%%I', n.nspname, c.relname) from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
 where c.oid = any (%(excluded)s::oid[]) and c.relkind <> 'S' order by 1"""

_LOCKED = """
select convert_to('lock table ' || string_agg(name, ', ' order by oid) || ' in access share mode',
                  pg_client_encoding()), count(*)
  from (select c.oid, format('only %%I.%%I', n.nspname, c.relname) as name
          from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
         where c.relkind in ('r', 'p') and c.oid >= 16384 and c.relpersistence <> 't'
           and c.oid <> all (%(excluded)s::oid[])
           and ((c.tableoid, c.oid) not in (select classid, objid from pg_depend where deptype = 'e')
                or c.oid in (select unnest(extconfig) from pg_extension))) as tables"""

_LOCK_CAPACITY = """
select (select count(*) from pg_class
         where relkind in ('r', 'p', 'S', 'v', 'm') and oid >= 16384 and oid <> all (%(excluded)s::oid[])),
       current_setting('max_locks_per_transaction')::int,
       current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int"""
