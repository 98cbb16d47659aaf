"""What a PostgreSQL database holds, in a form that can be compared after a restore.

At backup time this runs inside the dump's own exported snapshot, after a restore in the restored copy; everything that
the spelling of a value depends on is fixed by the session settings of `postgres_client`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import psycopg

from drkit.engines.postgres_inventory import DATABASE_QUERIES, GLOBAL_QUERIES, SUBSCRIPTION_QUERY, read_kind
from drkit.model import Fingerprint

Mode = Literal["digests", "counts"]
Positions = Mapping[str, tuple[int, bool]]
"""Sequence name -> (last_value, is_called)."""

_HASHES_MODULO = 1 << 64


def fingerprint_database(
    connection: psycopg.Connection[Any],
    *,
    mode: Mode = "digests",
    exclude_tables: Sequence[str] = (),
    earlier_positions: Positions | None = None,
) -> Fingerprint:
    """Return kind -> name -> facts of the database that ``connection`` is in, in its transaction's snapshot.

    With ``digests`` every table is read once and gets ``rows`` and ``digest``; with ``counts`` only ``rows``. A
    sequence that is not where it was in ``earlier_positions`` gets the text ``FROM to TO`` for its last_value.
    Psycopg's errors are not translated here: the caller knows the endpoint.
    """
    excluded = excluded_relations(connection, exclude_tables)
    found = {kind: read_kind(connection, query, excluded) for kind, query in DATABASE_QUERIES.items()}
    found["subscription"] = _subscriptions(connection)
    positions = sequence_positions(connection, excluded)
    for name, facts in found["sequence"].items():
        facts |= _position(positions.get(name), (earlier_positions or positions).get(name))
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


def sequence_positions(connection: psycopg.Connection[Any], excluded: Sequence[int]) -> Positions:
    """Return last_value and is_called of every sequence, read with one statement for each batch of them.

    Sequences are outside of transactions, so no snapshot holds them still (T9): reading them before and after pg_dump
    did shows between which values the dump's lie.
    """
    positions: dict[str, tuple[int, bool]] = {}
    for (statement,) in connection.execute(_SEQUENCE_STATEMENTS, {"excluded": list(excluded)}).fetchall():
        with connection.transaction(force_rollback=True):
            positions |= {name: (last, called) for name, last, called in connection.execute(statement)}
    return positions


def _position(now: tuple[int, bool] | None, earlier: tuple[int, bool] | None) -> dict[str, Any]:
    if now is None:
        return {}
    if earlier is None or earlier == now:
        return {"last_value": now[0], "is_called": now[1]}
    return {"last_value": f"{earlier[0]} to {now[0]}", "is_called": now[1] if earlier[1] == now[1] else None}


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
        assert row is not None
        facts = {"count": row[0], "bytes": int(row[1] or 0)}
        return facts if row[0] or mode == "counts" else facts | {"digest": _hex(0)}
    row = connection.execute(_LARGE_OBJECTS if mode == "digests" else _LARGE_OBJECT_SIZES).fetchone()
    assert row is not None
    facts = {"count": row[0], "bytes": int(row[1] or 0)}
    return facts | {"digest": _hex(int(row[2] or 0))} if mode == "digests" else facts


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
    """Count and digest every table that holds rows itself: one scan each, the largest first, small ones by the batch.

    The digest is the sum modulo 2^64 of a 64-bit hash of each row, so it does not depend on the order of rows. Columns
    are joined in the order of their names, because an inherited child may come back with another physical order;
    generated columns are left out, they are computed again. hashtextextended does not change between versions, since
    hash-partitioned tables depend on it. This finds damage and loss; against an attacker there is the signature.

    The leaves of a table that is hash-partitioned by an enum are counted under that table, whose digest is the sum of
    theirs: the hash of an enum's value is that of its oid, so a restore spreads the rows anew (T11).
    """
    roots = dict(connection.execute(_SHUFFLED_LEAVES).fetchall())
    statements = connection.execute(_ROW_STATEMENTS, {"excluded": excluded, "digests": mode == "digests"}).fetchall()
    for (statement,) in statements:
        # Rolled back, so that the locks that scans take on indexes do not add up (T6).
        with connection.transaction(force_rollback=True):
            counted = connection.execute(statement).fetchall()
        for leaf, rows, total in counted:
            facts = tables.get(roots.get(leaf, leaf), {})
            facts["rows"] = facts.get("rows", 0) + rows
            if mode == "digests":
                facts["digest"] = _hex(int(facts.get("digest", "0"), 16) + int(total or 0))


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
select convert_to(string_agg(format('select %%L, count(*), %%s from only %%s', name, total, name), ' union all '),
                  pg_client_encoding())
  from (select format('%%I.%%I', n.nspname, c.relname) as name, pg_relation_size(c.oid) as size_bytes,
               case when %(digests)s
                    then format('sum(hashtextextended(%%s collate "C", 0))::text', coalesce(x.text, quote_literal('')))
                    else 'null' end as total,
               case when pg_relation_size(c.oid) > 8388608 then c.oid::bigint
                    else -(row_number() over (order by c.oid) / 50) end as batch
          from pg_class as c join pg_namespace as n on n.oid = c.relnamespace left join texts as x on x.attrelid = c.oid
         where c.relkind = 'r' and c.oid >= 16384 and c.relpersistence <> 't' and c.oid <> all (%(excluded)s::oid[])
           and ((c.tableoid, c.oid) not in (select classid, objid from pg_depend where deptype = 'e')
                or c.oid in (select unnest(extconfig) from pg_extension))) as tables
 group by batch order by max(size_bytes) desc"""

_SHUFFLED_LEAVES = """
select distinct on (t.relid) t.relid::regclass::text, p.partrelid::regclass::text
  from pg_partitioned_table as p cross join lateral pg_partition_tree(p.partrelid) as t
 where t.isleaf and p.partstrat = 'h'
   and (select o.oid from pg_opclass as o join pg_am as a on a.oid = o.opcmethod
         where o.opcname = 'enum_ops' and o.opcnamespace = 'pg_catalog'::regnamespace and a.amname = 'hash')
       = any (p.partclass)
 order by t.relid, t.level desc"""


def _hex(total: int) -> str:
    return f"{total % _HASHES_MODULO:016x}"
