"""Heartbeats: numbered rows, one every few seconds, by which a replay shows to the row how far it came (T37).

The numbers of a policy have no holes: only its oldest rows are ever deleted. So a restored copy by itself shows
whether a row between its oldest and its newest is missing, and whether its end is the moment that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from drkit.credentials import Secret
from drkit.engines.postgres_client import connect, parse_url, translated
from drkit.errors import IntegrityError, SourceError
from drkit.units import format_count, format_duration, format_moment

_KEPT = 10_000
_TIMEOUT_S = 30
_LATE_FACTOR = 3
_SLACK = timedelta(seconds=5)
_SHOWN_GAPS = 50
_TABLE = "drkit.heartbeat"
_IS_THERE = """
select exists (select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                where n.nspname = 'drkit' and c.relname = 'heartbeat' and c.relkind = 'r')
"""
SETUP = (
    "create schema if not exists drkit",
    (
        "create table drkit.heartbeat (policy text, number bigint, beat_at timestamptz not null,"
        " every_ms bigint not null, primary key (policy, number))"
    ),
)
_BEAT = """
insert into drkit.heartbeat (policy, number, beat_at, every_ms)
select %(policy)s, coalesce(max(number), 0) + 1, pg_catalog.clock_timestamp(), %(every_ms)s
  from drkit.heartbeat where policy = %(policy)s
returning number
"""
_FORGET = "delete from drkit.heartbeat where policy = %s and number <= %s"
_NEWEST = """
select number, beat_at, every_ms, count(*) over () from only drkit.heartbeat
 where policy = %s order by number desc limit 1
"""
_GAPS = """
select number + 1, following - 1
  from (select number, lead(number) over (order by number) as following
          from only drkit.heartbeat where policy = %s) as numbered
 where following > number + 1 order by 1
"""
_AFTER = "select number, beat_at from only drkit.heartbeat where policy = %s and beat_at > %s order by number"


@dataclass(frozen=True)
class Heartbeats:
    """What a restored server has of a policy's heartbeats; ``gaps`` are the first and last number of what is missing.

    ``after`` are those that must not be there, because they are younger than the moment that was restored to.
    """

    database: str
    count: int
    newest: int
    newest_at: datetime
    every: timedelta
    gaps: Sequence[tuple[int, int]]
    after: Sequence[tuple[int, datetime]]


def write_heartbeat(url: Secret, policy: str, every: timedelta) -> int:
    """Write the next heartbeat into the database that the URL names, and return its number.

    The table is made when it is missing. Raise SourceError when the server does not take the row, with what to type
    where the role may not make the table.
    """
    with connect(parse_url(url), autocommit=False) as connection:
        connection.execute("select pg_catalog.set_config('statement_timeout', %s, true)", [f"{_TIMEOUT_S}s"])
        _ensure_table(connection)
        facts = {"policy": policy, "every_ms": round(every.total_seconds() * 1000)}
        row = connection.execute(_BEAT, facts).fetchone()
        assert row is not None
        number: int = row[0]
        connection.execute(_FORGET, [policy, number - _KEPT])
        connection.commit()
        return number


def _ensure_table(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    row = connection.execute(_IS_THERE).fetchone()
    if row and row[0]:
        return
    try:
        for statement in SETUP:
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        role = connection.info.user
        raise SourceError(
            f"role {role} may not make the table {_TABLE} in database {connection.info.dbname}",
            hints=[
                *(f"{statement};" for statement in SETUP),
                f'grant usage on schema drkit to "{role}";',
                f'grant select, insert, delete on {_TABLE} to "{role}";',
            ],
        ) from error


def read_heartbeats(url: Secret, databases: Sequence[str], policy: str, restored_to_at: datetime) -> Heartbeats | None:
    """Return the heartbeats of a restored server; None when no database has the table.

    Raise IntegrityError when the table is there and has no row of the policy, SourceError when it cannot be read.
    """
    endpoint = parse_url(url)
    seen: list[str] = []
    for database in databases:
        with connect(endpoint, database) as connection, translated(endpoint, database):
            row = connection.execute(_IS_THERE).fetchone()
            if not row or not row[0]:
                continue
            seen.append(database)
            newest = connection.execute(_NEWEST, [policy]).fetchone()
            if newest is None:
                continue
            number, newest_at, every_ms, count = newest
            return Heartbeats(
                database,
                count,
                number,
                newest_at,
                timedelta(milliseconds=every_ms),
                connection.execute(_GAPS, [policy]).fetchall(),
                connection.execute(_AFTER, [policy, restored_to_at]).fetchall(),
            )
    if seen:
        raise IntegrityError(f"{_TABLE} of database {seen[0]} came back without any heartbeat of policy {policy}")
    return None


def judge_heartbeats(found: Heartbeats, restored_to_at: datetime) -> list[str]:
    """Return what contradicts that the copy shows that moment, one line each; nothing when it does.

    A heartbeat counts as missing at the end when three intervals have passed without one: the writer may have been
    held up for a while, and each one commits a little later than its own stamp.
    """
    lines = [
        f"heartbeat {number} is of {format_moment(moment)}, after the moment restored to"
        for number, moment in found.after[:_SHOWN_GAPS]
    ]
    lines += [
        f"heartbeat {first} is missing" if first == last else f"heartbeats {first} to {last} are missing"
        for first, last in found.gaps[:_SHOWN_GAPS]
    ]
    silence = restored_to_at - found.newest_at
    if silence > _LATE_FACTOR * found.every + _SLACK:
        lines.append(
            f"the newest heartbeat, {found.newest}, is {format_duration(silence)} older than the moment restored to:"
            f" those after it are missing, one every {format_duration(found.every)}, or drkit serve did not run then"
        )
    return lines


def describe_heartbeats(found: Heartbeats) -> str:
    """Say which heartbeats are there."""
    return f"{format_count(found.count, 'heartbeat')}, the newest, {found.newest}, of {format_moment(found.newest_at)}"
