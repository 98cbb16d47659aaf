"""What a PostgreSQL database holds, in a form that can be compared after a restore.

At backup time this runs inside the dump's own exported snapshot, after a restore in the restored copy; everything that
the spelling of a value depends on is fixed by the session settings of `postgres_client`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import psycopg

from drkit.engines.postgres_inventory import DATABASE_QUERIES, GLOBAL_QUERIES, SUBSCRIPTION_QUERY, read_kind
from drkit.model import Fingerprint

Mode = Literal["digests", "counts"]

_HASHES_MODULO = 1 << 64


def fingerprint_database(
    connection: psycopg.Connection[Any], *, mode: Mode = "digests", exclude_tables: Sequence[str] = ()
) -> Fingerprint:
    """Return kind -> name -> facts of the database that ``connection`` is in, in its transaction's snapshot.

    With ``digests`` every table is read once and gets ``rows`` and ``digest``; with ``counts`` only ``rows``. Psycopg's
    errors are not translated here: the caller knows the endpoint.
    """
    excluded = excluded_relations(connection, exclude_tables)
    found = {kind: read_kind(connection, query, excluded) for kind, query in DATABASE_QUERIES.items()}
    found["subscription"] = _subscriptions(connection)
    _add_sequence_positions(connection, found["sequence"], excluded)
    found["large object"] = {"all": large_objects(connection, mode=mode)}
    _add_rows(connection, found["table"], excluded, mode)
    return {kind: items for kind, items in found.items() if items}


def fingerprint_globals(connection: psycopg.Connection[Any]) -> Fingerprint:
    """Return the roles, memberships, per-role settings and tablespaces of a server."""
    found = {kind: read_kind(connection, query, []) for kind, query in GLOBAL_QUERIES.items()}
    return {kind: items for kind, items in found.items() if items}


def excluded_relations(connection: psycopg.Connection[Any], patterns: Sequence[str]) -> list[int]:
    """Return the oids of the relations that ``patterns`` name, and of the identity sequences that go with them.

    A pattern is ``schema.table``, or ``table`` for one in schema public; ``*`` and ``?`` stand for any text and any
    character. Names are compared as they are stored, without quotes.
    """
    if not patterns:
        return []
    full = [pattern if "." in pattern else f"public.{pattern}" for pattern in patterns]
    rows = connection.execute(_RELATIONS).fetchall()
    tables = [oid for oid, schema, name in rows if any(fnmatchcase(f"{schema}.{name}", one) for one in full)]
    return tables + [oid for (oid,) in connection.execute(_IDENTITY_SEQUENCES, [tables])]


_RELATIONS = """
select c.oid, n.nspname, c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'f', 'v', 'm') and c.oid >= 16384 and c.relpersistence <> 't'"""

_IDENTITY_SEQUENCES = """
select objid from pg_depend
 where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and deptype = 'i' and refobjsubid > 0
   and refobjid = any (%s::oid[]) and objid in (select seqrelid from pg_sequence)"""


def _subscriptions(connection: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    (superuser,) = connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() or (
        False,
    )
    return read_kind(connection, SUBSCRIPTION_QUERY, []) if superuser else {}


def _add_sequence_positions(
    connection: psycopg.Connection[Any], sequences: dict[str, dict[str, Any]], excluded: list[int]
) -> None:
    """Add last_value and is_called, read in batches of one statement each.

    They are not part of the snapshot: sequences are outside transactions, so the dump may hold a later value (T9).
    """
    for (statement,) in connection.execute(_SEQUENCE_STATEMENTS, {"excluded": excluded}).fetchall():
        for name, last_value, is_called in connection.execute(statement):
            if name in sequences:
                sequences[name] |= {"last_value": last_value, "is_called": is_called}


_SEQUENCE_STATEMENTS = b"""
select convert_to(string_agg(format('select %%L as name, last_value, is_called from %%I.%%I',
                                    format('%%I.%%I', s.nspname, s.relname), s.nspname, s.relname), ' union all '),
                  pg_client_encoding())
  from (select n.nspname, c.relname, row_number() over (order by c.oid) / 200 as batch
          from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
         where c.relkind = 'S' and c.oid >= 16384 and c.relpersistence <> 't' and c.oid <> all (%(excluded)s::oid[])
           and (c.tableoid, c.oid) not in (select classid, objid from pg_depend where deptype = 'e')) as s
 group by s.batch"""


def large_objects(connection: psycopg.Connection[Any], *, mode: Mode) -> dict[str, Any]:
    """Return the number of large objects, their bytes and, for superusers, a digest of their content.

    Pages of zeros at the end of a page are left out of the digest, because a sparse large object comes back filled.
    """
    (readable,) = connection.execute("select has_table_privilege('pg_largeobject', 'select')").fetchone() or (False,)
    if not readable:
        row = connection.execute(_LARGE_OBJECTS_BY_SEEKING).fetchone()
        return {"count": row[0], "bytes": int(row[1] or 0)} if row else {}
    row = connection.execute(_LARGE_OBJECTS if mode == "digests" else _LARGE_OBJECT_SIZES).fetchone()
    assert row is not None
    facts = {"count": row[0], "bytes": int(row[1] or 0)}
    return facts | {"digest": _hex(row[2])} if mode == "digests" else facts


_LARGE_OBJECT_SIZES = """
select (select count(*) from pg_largeobject_metadata), sum(size)
  from (select max(pageno::bigint * (current_setting('block_size')::int / 4) + octet_length(data)) as size
          from pg_largeobject group by loid) as o"""

_LARGE_OBJECTS = """
select (select count(*) from pg_largeobject_metadata), sum(size), sum(hash)::text
  from (select max(pageno::bigint * (current_setting('block_size')::int / 4) + octet_length(data)) as size,
               sum(case when btrim(data, '\\x00'::bytea) <> ''::bytea then
                 hashtextextended(concat(loid, chr(31), pageno, chr(31),
                                         encode(btrim('\\x01'::bytea || data, '\\x00'::bytea), 'hex')) collate "C", 0)
                   end) as hash
          from pg_largeobject group by loid) as o"""

_LARGE_OBJECTS_BY_SEEKING = """
select count(*), sum(lo_lseek64(lo_open(oid, 262144), 0, 2)) from pg_largeobject_metadata"""


def _add_rows(
    connection: psycopg.Connection[Any], tables: dict[str, dict[str, Any]], excluded: list[int], mode: Mode
) -> None:
    """Count and digest every table that holds rows itself, the largest first, one scan each.

    The digest is the sum modulo 2^64 of a 64-bit hash of each row, so it does not depend on the order of rows. Columns
    are joined in the order of their names, because an inherited child may come back with another physical order;
    generated columns are left out, they are computed again. hashtextextended does not change between versions, since
    hash-partitioned tables depend on it. This finds damage and loss; against an attacker there is the signature.
    """
    statements = connection.execute(_ROW_STATEMENTS, {"excluded": excluded, "digests": mode == "digests"}).fetchall()
    for name, statement in statements:
        if name in tables:
            # Rolled back, so that the locks that a scan takes on the indexes do not add up (T6).
            with connection.transaction(force_rollback=True):
                row = connection.execute(statement).fetchone()
            assert row is not None
            tables[name] |= {"rows": row[0], "digest": _hex(row[1])} if mode == "digests" else {"rows": row[0]}


_ROW_STATEMENTS = b"""
with columns as (
  select a.attrelid, (row_number() over (partition by a.attrelid order by a.attname collate "C") - 1) / 30 as block,
         a.attname,
         format('chr(31), %%I', a.attname)
         || case when not a.attnotnull and t.typcategory not in ('N', 'B', 'D', 'T', 'A', 'R', 'I', 'G', 'C')
                 then format(', %%I is null', a.attname) else '' end as arguments
    from pg_attribute as a join pg_type as t on t.oid = a.atttypid
   where a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attrelid >= 16384 and %(digests)s
), blocks as (
  select attrelid, block, 'concat(' || string_agg(arguments, ', ' order by attname collate "C") || ')' as part
    from columns group by attrelid, block
), texts as (
  select attrelid, 'concat(' || string_agg(part, ', ' order by block) || ')' as text from blocks group by attrelid
)
select format('%%I.%%I', n.nspname, c.relname),
       convert_to(case when %(digests)s
                  then format('select count(*), sum(hashtextextended(%%s collate "C", 0))::text from only %%I.%%I',
                              coalesce(x.text, ''''''), n.nspname, c.relname)
                  else format('select count(*) from only %%I.%%I', n.nspname, c.relname) end, pg_client_encoding())
  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace left join texts as x on x.attrelid = c.oid
 where c.relkind = 'r' and c.oid >= 16384 and c.relpersistence <> 't' and c.oid <> all (%(excluded)s::oid[])
 order by pg_relation_size(c.oid) desc"""


def _hex(total: str | None) -> str:
    return f"{int(total or 0) % _HASHES_MODULO:016x}"
