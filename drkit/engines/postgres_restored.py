"""Looking at what came of a restore: fingerprints of the restored parts, and the policy's questions to them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from psycopg import sql

from drkit.credentials import Secret
from drkit.engines import RestoreOptions
from drkit.engines.postgres_client import connect, parse_url, pinned
from drkit.engines.postgres_fingerprint import Mode, fingerprint_database, fingerprint_globals
from drkit.engines.postgres_places import GLOBALS, open_maintenance, places_of
from drkit.errors import SourceError
from drkit.model import Fingerprint
from drkit.units import format_count

_CHECK_TIMEOUT_S = 600


def read_fingerprints(url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:
    """Take the fingerprint of each restored part, as it was taken at backup time."""
    endpoint = parse_url(url)
    found: dict[str, Fingerprint] = {}
    with open_maintenance(endpoint, options) as connection:
        endpoint = pinned(endpoint, connection)
        if GLOBALS in options.parts:
            found[GLOBALS] = fingerprint_globals(connection)
    for part, place in places_of(parse_url(url), options, frozenset()).items():
        recorded = options.details["parts"][part].get("fingerprint", {})
        with connect(endpoint, place.database) as connection:
            found[part] = fingerprint_database(connection, mode=_mode(recorded))
    return found


def run_check(url: Secret, part: Mapping[str, Any], query: str) -> Any:
    """Run one query against a restored part and return its single value.

    Numbers, booleans and text come as they are, everything else as text. Raise SourceError when the query fails or
    answers with anything but one row of one column.
    """
    label = str(part["label"])
    with connect(parse_url(url), label) as connection:
        for setting in ("search_path", "TimeZone", "row_security"):
            connection.execute(sql.SQL("reset {}").format(sql.Identifier(setting)))
        connection.execute(f"set statement_timeout = '{_CHECK_TIMEOUT_S}s'".encode())
        cursor = connection.execute(query.encode())
        rows = cursor.fetchmany(2) if cursor.description else []
        if len(rows) != 1 or len(rows[0]) != 1:
            columns = len(cursor.description or ())
            shape = f"{'several rows' if len(rows) > 1 else format_count(len(rows), 'row')} of {columns} columns"
            raise SourceError(f"a check of database {label} must answer with one value, not {shape}")
        return _plain(rows[0][0])


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _mode(recorded: Fingerprint) -> Mode:
    digested = any("digest" in facts for facts in recorded.get("table", {}).values())
    return "digests" if digested or not recorded.get("table") else "counts"
