"""Collations whose version is another one on this host than in the restored databases.

Files that come back on another system keep the order of their indexes while the C library or ICU sorts by newer rules:
such an index finds too little, and nothing says so (T48; manual, ALTER COLLATION, notes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psycopg

from drkit.engines.postgres_client import Endpoint, connect
from drkit.errors import SourceError

_OLDEST_WITH_DATABASES = 150000

_DATABASES = """
select datname::text, datcollversion, pg_database_collation_actual_version(oid)
  from pg_database
 where datname = any (%s) and datcollversion <> pg_database_collation_actual_version(oid)
 order by 1"""

_INDEXED = """
select quote_ident(collname), collversion, pg_collation_actual_version(c.oid)
  from pg_collation as c
 where collversion <> pg_collation_actual_version(c.oid)
   and exists (select from pg_index as i where c.oid = any (i.indcollation))
 order by 1"""


def changed_collations(
    connection: psycopg.Connection[Any], endpoint: Endpoint, databases: Iterable[str]
) -> Iterator[str]:
    """Say of each database which of its collations sorted by another version when its indexes were built."""
    names = list(databases)
    defaults: dict[str, tuple[str, str]] = {}
    if connection.info.server_version >= _OLDEST_WITH_DATABASES:
        found = connection.execute(_DATABASES, [names]).fetchall()
        defaults = {name: (recorded, here) for name, recorded, here in found}
    for name in names:
        changed = {"the default": defaults[name]} if name in defaults else {}
        try:
            with connect(endpoint, name) as own:
                changed |= {item: (recorded, here) for item, recorded, here in own.execute(_INDEXED).fetchall()}
        except SourceError as error:
            yield f"database {name} came back, but nobody can use it on this host: {error.message}"
            continue
        if changed:
            yield _described(name, changed)


def _described(name: str, changed: Mapping[str, tuple[str, str]]) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    versions = ", ".join(f"{item} ({recorded} there, {here} here)" for item, (recorded, here) in changed.items())
    settled = [
        f"alter database {quoted} refresh collation version;"
        if item == "the default"
        else f"alter collation {item} refresh version;"
        for item in changed
    ]
    return (
        f"database {name} has indexes on text that may be in the wrong order on this host, because collations have"
        f" another version: {versions}; rebuild them: reindex database {quoted}; and then {' '.join(settled)}"
    )
