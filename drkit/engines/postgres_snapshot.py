"""The consistent view that a dump and its fingerprint share: one transaction that locks, exports and stays open.

Locks come before the snapshot: LOCK TABLE needs none (PostgreSQL manual, LOCK), and a table that is truncated or
rewritten between a snapshot and its lock would look empty to that snapshot. The guard holds ACCESS SHARE on every
table, so the fingerprint, which runs on the guard's own connection, never waits for a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from drkit.engines.postgres_client import Endpoint, connect, translated
from drkit.engines.postgres_fingerprint import Positions, sequence_positions
from drkit.engines.postgres_preflight import DatabasePlan
from drkit.errors import SourceError
from drkit.model import Fingerprint

_CANCEL_AGAIN_AFTER_S = 0.2


@dataclass(frozen=True)
class Guard:
    """The open transaction: ``snapshot_id`` for others to import, taken at ``snapshot_at`` by the server's clock."""

    connection: psycopg.Connection[Any]
    snapshot_id: str
    snapshot_at: datetime
    plan: DatabasePlan
    positions: Positions


@contextmanager
def open_guard(
    endpoint: Endpoint, database: str, plan: Callable[[psycopg.Connection[Any]], DatabasePlan], *, lock_timeout_s: float
) -> Iterator[Guard]:
    """Lock what ``plan`` says, export a snapshot and hold both until the context ends.

    Raise SourceError naming who is in the way when a lock does not come within ``lock_timeout_s``.
    """
    with connect(endpoint, database, application="drkit snapshot") as connection:
        connection.execute("select set_config('lock_timeout', %s, false)", [f"{round(lock_timeout_s * 1000)}ms"])
        chosen = plan(connection)
        connection.execute("begin isolation level repeatable read, read only")
        if chosen.lock_statement is not None:
            try:
                connection.execute(chosen.lock_statement)
            except psycopg.errors.LockNotAvailable as error:
                raise blocked(endpoint, database, lock_timeout_s) from error
        row = connection.execute("select pg_export_snapshot(), statement_timestamp()").fetchone()
        assert row is not None
        positions = sequence_positions(connection, chosen.excluded_oids)
        yield Guard(connection, row[0], row[1], chosen, positions)


def blocked(endpoint: Endpoint, database: str, lock_timeout_s: float) -> SourceError:
    """Return the error for a lock that did not come, with everybody who holds or wants one that excludes readers.

    Their queries are not shown: these may hold other people's secrets.
    """
    with connect(endpoint, database) as connection:
        rows = connection.execute(_BLOCKERS).fetchall()
    return SourceError(
        f"database {database}: a table stayed locked for {lock_timeout_s:g} s",
        details=[row[0] for row in rows] or ["whoever held the lock has let go of it in the meantime"],
        hints=[
            "wait for them to end, or end them, then try again",
            *[row[1] for row in rows],
        ],
    )


_BLOCKERS = """
select format('%s %s by %s', l.relation::regclass, case when l.granted then 'is locked' else 'is wanted' end,
              case when x.gid is not null then format('prepared transaction %L', x.gid)
                   else format('pid %s, role %s, application %s, %s since %s', a.pid, coalesce(a.usename, '?'),
                               coalesce(quote_literal(nullif(a.application_name, '')), 'without a name'),
                               coalesce(a.state, 'running'), date_trunc('second', a.xact_start)) end),
       case when x.gid is null then format('select pg_terminate_backend(%s);', a.pid)
            else format('rollback prepared %L;', x.gid) end
  from pg_locks as l left join pg_stat_activity as a on a.pid = l.pid
  left join pg_locks as t
    on l.pid is null and t.locktype = 'transactionid' and t.pid is null and t.virtualtransaction = l.virtualtransaction
  left join pg_prepared_xacts as x on x.transaction = t.transactionid
 where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.relation >= 16384
   and l.database = (select oid from pg_database where datname = current_database())
 order by l.granted desc, a.xact_start limit 10"""


class Background:
    """A fingerprint being taken in a thread, while the dump streams."""

    def __init__(self, guard: Guard, endpoint: Endpoint, take: Callable[[Guard], Fingerprint]) -> None:
        self._guard = guard
        self._endpoint = endpoint
        self._take = take
        self._result: Fingerprint | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="drkit fingerprint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with translated(self._endpoint, self._guard.connection.info.dbname):
                self._result = self._take(self._guard)
        except BaseException as error:  # noqa: BLE001 carried over to the thread that asks for the result
            self._error = error

    def raise_failure(self) -> None:
        """Raise what went wrong so far; return at once in any case."""
        if self._error is not None:
            raise self._error

    def result(self) -> Fingerprint:
        """Wait for the fingerprint; raise what went wrong with it."""
        self._thread.join()
        self.raise_failure()
        assert self._result is not None
        return self._result

    def stop(self) -> None:
        """End it, whatever it is at; the guard's connection is free afterwards."""
        while self._thread.is_alive():
            try:
                self._guard.connection.cancel_safe(timeout=5)
            except psycopg.Error:
                # The server is gone or does not listen: closing our side makes the thread's wait end.
                self._guard.connection.pgconn.finish()
            self._thread.join(_CANCEL_AGAIN_AFTER_S)
