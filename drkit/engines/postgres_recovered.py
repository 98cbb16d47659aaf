"""Asking a restored server how its recovery ended.

Apart from `postgres_recovery`, because it loads what connects to a server, which a restore has time for only later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from drkit.credentials import Secret
from drkit.engines.postgres_client import connect, parse_url
from drkit.engines.postgres_collations import changed_collations
from drkit.errors import SourceError


@dataclass(frozen=True)
class Recovered:
    """How far a recovery got, as the server says after it; ``doubts`` are what may be wrong with it on this host."""

    timeline: int
    lsn: str | None
    last_commit_at: datetime | None
    checksums: bool
    databases: Sequence[str]
    doubts: Sequence[str] = ()


def read_recovered(url: Secret) -> Recovered:
    """Ask a server how its recovery ended; raise SourceError while it is still in recovery (T36)."""
    endpoint = parse_url(url)
    with connect(endpoint) as connection:
        row = connection.execute("select pg_is_in_recovery()").fetchone()
        if row is None or row[0]:
            raise SourceError("the restored server is still in recovery: it was not promoted")
        row = connection.execute(_RECOVERED).fetchone()
        assert row is not None
        timeline, lsn, last_commit_at, checksums, databases = row
        doubts = tuple(changed_collations(connection, endpoint, databases))
        return Recovered(timeline, lsn, last_commit_at, checksums, databases, doubts)


_RECOVERED = """
select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint, pg_last_wal_replay_lsn()::text,
       pg_last_xact_replay_timestamp(), current_setting('data_checksums') = 'on',
       array(select datname::text from pg_database where datallowconn and not datistemplate order by 1)"""
