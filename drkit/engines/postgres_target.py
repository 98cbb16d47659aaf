"""What must be true of a server before anything is loaded into it, and the databases that a load makes there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from drkit.engines.postgres_client import Endpoint, connect
from drkit.errors import SourceError
from drkit.model import Fingerprint
from drkit.units import format_count


@dataclass(frozen=True)
class Target:
    """The server to load into, as found on connecting."""

    endpoint: Endpoint
    maintenance: str
    version: str
    version_number: int
    superuser: bool
    role: str
    system_identifier: str | None
    databases: frozenset[str]
    roles: frozenset[str]

    @property
    def major(self) -> int:
        """Return the major version."""
        return self.version_number // 10000


def read_target(connection: psycopg.Connection[Any], endpoint: Endpoint) -> Target:
    """Read the server's facts over a connection that is pinned to it."""
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    version, number, superuser, role, reads_control = row
    control = None
    if reads_control:
        control = connection.execute("select system_identifier::text from pg_control_system()").fetchone()
    return Target(
        endpoint=endpoint,
        maintenance=connection.info.dbname,
        version=version.split(" ")[0],
        version_number=number,
        superuser=superuser,
        role=role,
        system_identifier=control[0] if control else None,
        databases=frozenset(row[0] for row in connection.execute("select datname::text from pg_database")),
        roles=frozenset(row[0] for row in connection.execute("select rolname::text from pg_roles")),
    )


_SERVER = """
select current_setting('server_version'), current_setting('server_version_num')::int, r.rolsuper, r.rolname::text,
       has_function_privilege('pg_control_system()', 'execute')
  from pg_roles as r where r.rolname = current_user"""


def refuse_older(target: Target, server: Mapping[str, Any]) -> None:
    """Raise SourceError when the archive comes from a newer major: older servers do not understand it (T3)."""
    major = int(server.get("major", 0))
    if target.major < major:
        raise SourceError(
            f"refused: {target.endpoint.server} runs PostgreSQL {target.version}, the backup is of {server['version']}",
            details=["a dump may be loaded into the same or a newer major version, not into an older one"],
            hints=[f"restore into a server of PostgreSQL {major} or newer"],
        )


def refuse_filled(
    connection: psycopg.Connection[Any], target: Target, database: str, source_identifier: str | None
) -> None:
    """Raise SourceError unless the database is empty; say how full it is, and whether its server is the source."""
    (tables,) = connection.execute(_TABLES).fetchone() or (0,)
    others = [row[0] for row in connection.execute(_OTHER_OBJECTS).fetchall()]
    if not tables and not others:
        return
    held = format_count(tables, "table") if tables else ", ".join(others)
    message = f"refused: the target {target.endpoint.label(database)} is not empty ({held})"
    if source_identifier is not None and source_identifier == target.system_identifier:
        message += f", and its server is the source of this backup (system identifier …{source_identifier[-4:]})"
    raise SourceError(message, hints=[f"restore beside it: {_beside(target, database)}"])


def refuse_existing_tables(
    connection: psycopg.Connection[Any], target: Target, database: str, tables: Sequence[tuple[str, str]]
) -> None:
    """Raise SourceError when a relation of a name to be restored is there already."""
    names = [schema for schema, _ in tables], [name for _, name in tables]
    there = [row[0] for row in connection.execute(_EXISTING, names).fetchall()]
    if there:
        raise SourceError(
            f"refused: {', '.join(there)} is already there in the target {target.endpoint.label(database)}",
            hints=[f"restore beside it: {_beside(target, database)}"],
        )


def _beside(target: Target, database: str) -> str:
    host = target.endpoint.parameters.get("host", "")
    if not host or host.startswith(("/", "@")):
        return (
            f'--to "postgresql:///{database}_restored?host={host}&port={target.endpoint.parameters.get("port", 5432)}"'
        )
    return f"--to postgresql://{target.endpoint.server}/{database}_restored"


_TABLES = b"""
select count(*) from pg_class as o
 where o.oid >= 16384 and o.relkind in ('r', 'p', 'f', 'm') and o.relpersistence <> 't'
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')"""

_OTHER_OBJECTS = b"""
select o.kind || ' ' || o.name
  from (select tableoid, oid, 'schema' as kind, quote_ident(nspname) as name from pg_namespace
         where nspname !~ '^pg_(toast_)?temp' and nspname <> 'public'
        union all
        select tableoid, oid, case relkind when 'v' then 'view' when 'S' then 'sequence' else 'type' end,
               oid::regclass::text from pg_class where relkind in ('v', 'S', 'c') and relpersistence <> 't'
        union all
        select tableoid, oid, 'function', oid::regprocedure::text from pg_proc
        union all
        select tableoid, oid, 'type', oid::regtype::text from pg_type where typtype in ('e', 'd', 'r')
        union all
        select tableoid, oid, 'large object', oid::text from pg_largeobject_metadata) as o
 where (o.oid >= 16384 or o.kind = 'large object')
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')
 limit 5"""

_EXISTING = """
select format('%%I.%%I', n.nspname, c.relname)
  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
  join unnest(%s::text[], %s::text[]) as w(schema, name) on w.schema = n.nspname and w.name = c.relname"""


@dataclass(frozen=True)
class ExtensionNeed:
    """An extension as the backup recorded it."""

    name: str
    version: str
    schema: str


def extension_needs(fingerprint: Fingerprint) -> list[ExtensionNeed]:
    """Return the extensions that a part needs; plpgsql is in every server."""
    found = fingerprint.get("extension", {})
    return [
        ExtensionNeed(bare(name), str(facts.get("version", "")), bare(str(facts.get("schema", ""))))
        for name, facts in found.items()
        if name != "plpgsql"
    ]


def available_extensions(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, frozenset[str]]]:
    """Return extension -> (default version, all versions) of what this server can create."""
    rows = connection.execute(
        """select e.name::text, e.default_version, array_agg(v.version)
             from pg_available_extensions as e join pg_available_extension_versions as v using (name)
            group by 1, 2"""
    )
    return {name: (default, frozenset(versions)) for name, default, versions in rows}


def needed_roles(facts: Mapping[str, Any], fingerprint: Fingerprint) -> set[str]:
    """Return the roles that own something in a part or were granted something."""
    roles = {str(facts["owner"])} if facts.get("owner") else set()
    for kind, items in fingerprint.items():
        for name, item in items.items():
            if isinstance(item.get("owner"), str):
                roles.add(item["owner"])
            for fact in ("acl", "column_acl"):
                roles |= set(_grantees(str(item.get(fact) or "")))
            if kind == "policy":
                roles |= {role for role in str(item.get("roles") or "").split(", ") if role != "public"}
            if kind == "default privileges":
                roles.add(name.rpartition(" in ")[0])
    return {role for role in roles if role and not role.startswith("pg_")}


_ACL_ITEM = re.compile(r'("(?:[^"]|"")*"|[^\s="]*)=[a-zA-Z*]*/(?:"(?:[^"]|"")*"|\S+)')


def _grantees(acl: str) -> Iterable[str]:
    """Read the grantees of an access list printed as text; PUBLIC is an empty name (aclitemout)."""
    return (bare(match[1]) for match in _ACL_ITEM.finditer(acl) if match[1])


def bare(name: str) -> str:
    """Return a name as it is stored: without the quotes of SQL, if it has any."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def refuse_missing(target: Target, extensions: Sequence[ExtensionNeed], roles: Sequence[str]) -> None:
    """Raise SourceError that lists every missing extension and role with the command that makes it."""
    if not extensions and not roles:
        return
    missing = [f"extension {need.name} {need.version}" for need in extensions] + [f"role {role}" for role in roles]
    hints = [f"install {need.name} {need.version} on the host of {target.endpoint.server}" for need in extensions]
    hints += [f"create role {_quoted(role)};" for role in roles]
    raise SourceError(
        f"refused: {target.endpoint.server} lacks what the backup needs: {format_count(len(missing), 'thing')}",
        details=missing,
        hints=hints,
    )


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_$]*", name) else '"' + name.replace('"', '""') + '"'


def create_database(target: Target, name: str, facts: Mapping[str, Any], *, any_locale: bool) -> list[str]:
    """Create an empty database with the recorded encoding, locale and owner; return warnings.

    With ``any_locale`` a locale that this host does not have gives way to C, which fits every encoding; otherwise it is
    an error.
    """
    with connect(target.endpoint, target.maintenance) as connection:
        try:
            connection.execute(_create_statement(target, name, facts))
        except (psycopg.errors.WrongObjectType, psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject):
            if not any_locale:
                raise
        else:
            return []
        connection.execute(
            _create_statement(target, name, {"encoding": facts["encoding"], "owner": facts.get("owner")})
        )
    collate = facts.get("icu_locale") or facts.get("collate")
    return [f"database {name}: locale {collate} is not on this host, so it was loaded with locale C"]


def _create_statement(target: Target, name: str, facts: Mapping[str, Any]) -> sql.Composed:
    options: list[sql.Composable] = [sql.SQL("template template0")]
    for keyword, fact, default in (
        ("encoding", "encoding", "UTF8"),
        ("lc_collate", "collate", "C"),
        ("lc_ctype", "ctype", "C"),
    ):
        options.append(sql.SQL(keyword + " {}").format(sql.Literal(facts.get(fact) or default)))
    provider = facts.get("locale_provider") or "c"
    if target.major >= 15:
        options.append(
            sql.SQL({"c": "locale_provider libc", "i": "locale_provider icu"}.get(provider, "locale_provider builtin"))
        )
    if provider in {"i", "b"} and facts.get("icu_locale"):
        word = "icu_locale {}" if provider == "i" else "builtin_locale {}"
        options.append(sql.SQL(word).format(sql.Literal(facts["icu_locale"])))
    if provider == "i" and facts.get("icu_rules"):
        options.append(sql.SQL("icu_rules {}").format(sql.Literal(facts["icu_rules"])))
    if facts.get("owner"):
        options.append(sql.SQL("owner {}").format(sql.Identifier(str(facts["owner"]))))
    return sql.SQL("create database {} {}").format(sql.Identifier(name), sql.SQL(" ").join(options))


def drop_database(target: Target, name: str) -> None:
    """Drop a database, whoever is connected to it."""
    force = sql.SQL(" with (force)" if target.major >= 13 else "")
    with connect(target.endpoint, target.maintenance) as connection:
        connection.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(name)) + force)


def apply_settings(target: Target, database: str, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Repeat ALTER DATABASE SET and ALTER ROLE IN DATABASE SET; return a warning for each that the server refused.

    A value goes through set_config and SET FROM CURRENT, because the catalog keeps lists as they would be written. It
    ends with its transaction: the next one must not be read-only, or another role's, because of it.
    """
    warnings = []
    with connect(target.endpoint, database) as connection:
        for who, facts in settings.items():
            for setting in str(facts.get("settings") or "").splitlines():
                name, _, value = setting.partition("=")
                try:
                    with connection.transaction():
                        connection.execute("select set_config(%s, %s, true)", (name, value))
                        connection.execute(_setting_statement(database, who, name))
                except psycopg.Error as error:
                    words = error.diag.message_primary or "not accepted"
                    warnings.append(f"database {database}: setting {name} for {who} was left out: {words}")
    return warnings


def _setting_statement(database: str, who: str, name: str) -> sql.Composed:
    parameter = sql.SQL(".").join(sql.Identifier(piece) for piece in name.split("."))
    if who == "every role":
        start = sql.SQL("alter database {} set ").format(sql.Identifier(database))
    else:
        role = sql.Identifier(bare(who))
        start = sql.SQL("alter role {} in database {} set ").format(role, sql.Identifier(database))
    return start + parameter + sql.SQL(" from current")
