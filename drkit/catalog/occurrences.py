"""The occurrence ledger: one row for each moment of a schedule, whatever became of it.

Any number of processes plan and run from one ledger. A moment is planned once because UNIQUE(schedule, due_at) lets
one of them write it, and dispatched once because a claim changes its state and checks the limits in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from drkit.catalog.rows import json_text
from drkit.catalog.tables import Tables
from drkit.occurrences import AttemptClass, Decision, Occurrence, Schedule, State
from drkit.units import format_utc, parse_utc

_MOMENTS = ("due_at", "decided_at", "not_before_at")
_LONGEST_WAIT = timedelta(hours=2)
CANCELLED = "it was cancelled by hand"
_AHEAD = timedelta(minutes=5)
"""How far the clocks of hosts that share a catalog may differ without anything being done about it."""
_ROWS = "select * from occurrences "
_HELD = "select thing, count(*) as many from claims group by thing"
_OF_RUN = """
    select * from occurrences where occurrence_id in (select occurrence_id from attempts where run_id = ?)"""
_PLAN = """
    insert into occurrences (schedule, due_at, kind, policy, what, state, reason, decided_at, not_before_at, seen)
    values (:schedule, :due_at, :kind, :policy, :what, :state, :reason, :now, :now, :seen)
    on conflict (schedule, due_at) do update set
        state = excluded.state, reason = excluded.reason, decided_at = excluded.decided_at,
        not_before_at = excluded.not_before_at, seen = excluded.seen
    -- Decided while the clock was ahead, and never run: it is decided again now that its time has really come.
    where occurrences.state in ('missed', 'coalesced', 'skipped') and occurrences.decided_at > :ahead"""


@dataclass(frozen=True)
class Claim:
    """The wish to run a due occurrence: by whom, as which run, and how many may hold each thing it needs."""

    occurrence_id: int
    holder: str
    run_id: str
    limits: Mapping[str, int]


@dataclass(frozen=True)
class Attempt:
    """One try at an occurrence; ``failure`` is its class, empty while it runs and when it went well."""

    number: int
    run_id: str
    started_at: datetime
    ended_at: datetime | None
    failure: str
    error: str


class Book:
    """The ledger inside one transaction, for who plans."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def cursor(self, schedule: str) -> datetime | None:
        """Return up to when the moments of a schedule are in the ledger; None for one that was never seen."""
        row = self._connection.execute("select cursor_at from schedules where schedule = ?", (schedule,)).fetchone()
        return parse_utc(row[0]) if row else None

    def move(self, schedule: str, cursor_at: datetime) -> None:
        """Note that the moments of a schedule up to ``cursor_at`` are in the ledger."""
        self._connection.execute(
            "insert or replace into schedules (schedule, cursor_at) values (?, ?)", (schedule, format_utc(cursor_at))
        )

    def begin(self, schedules: Sequence[str], now: datetime) -> dict[str, datetime]:
        """Return up to when the moments of these are in the ledger; those of one that was never seen, to ``now``."""
        names = json.dumps(list(schedules))
        self._connection.execute(
            "insert or ignore into schedules (schedule, cursor_at) select value, ? from json_each(?)",
            (format_utc(now), names),
        )
        found = self._connection.execute(
            "select * from schedules where schedule in (select value from json_each(?))", (names,)
        )
        return {row["schedule"]: parse_utc(row["cursor_at"]) for row in found}

    def unfinished(self, schedule: str) -> list[Occurrence]:
        """Return what is due or dispatched of a schedule, oldest first."""
        found = self._connection.execute(
            "select * from occurrences where schedule = ? and state in ('due', 'dispatched') order by due_at",
            (schedule,),
        )
        return [_occurrence(row) for row in found]

    def write(self, schedule: Schedule, decisions: Sequence[Decision], now: datetime) -> list[Decision]:
        """Write down what was decided; return what was news: another process may have been first."""
        news: list[Decision] = []
        ahead = format_utc(now + _AHEAD)
        for item in decisions:
            values = {"schedule": schedule.name, "due_at": format_utc(item.due_at), "now": format_utc(now)}
            values |= {"state": item.state, "reason": item.reason}
            if item.is_new:
                names = {"kind": schedule.kind, "policy": schedule.policy, "what": schedule.what}
                done = self._connection.execute(_PLAN, {**values, **names, "seen": item.seen, "ahead": ahead})
            else:
                done = self._connection.execute(
                    "update occurrences set state = :state, reason = :reason, decided_at = :now"
                    " where schedule = :schedule and due_at = :due_at and state = 'due'",
                    values,
                )
            if done.rowcount:
                news.append(item)
        return news

    def turn_back(self, now: datetime) -> None:
        """Follow a clock that was put back: what comes after ``now`` is still to come.

        Rows stay, so nothing that was run is run again.
        """
        ahead, moment = format_utc(now + _AHEAD), format_utc(now)
        self._connection.execute("update schedules set cursor_at = ? where cursor_at > ?", (moment, ahead))
        self._connection.execute(
            "update occurrences set not_before_at = ? where state = 'due' and not_before_at > ?",
            (moment, format_utc(now + _LONGEST_WAIT)),
        )

    def add_event(self, name: str, at: datetime, facts: Mapping[str, Any]) -> None:
        """Record one state change together with what is written here, or neither."""
        self._connection.execute(
            "insert into events (at, name, facts) values (?, ?, ?)", (format_utc(at), name, json_text(facts))
        )

    def read_events(self, reader: str, names: Sequence[str]) -> list[tuple[str, datetime, str]]:
        """Return name, moment and facts (JSON) of the events that ``reader`` has not read yet, oldest first."""
        row = self._connection.execute("select event_id from event_readers where reader = ?", (reader,)).fetchone()
        last = self._connection.execute("select coalesce(max(event_id), 0) from events").fetchone()[0]
        read = row[0] if row else 0
        if last == read:
            return []
        found = self._connection.execute(
            "select name, at, facts from events where event_id > ?"
            " and name in (select value from json_each(?)) order by event_id",
            (read, json.dumps(list(names))),
        ).fetchall()
        self._connection.execute(
            "insert or replace into event_readers (reader, event_id) values (?, ?)", (reader, last)
        )
        return [(item["name"], parse_utc(item["at"]), item["facts"]) for item in found]


class OccurrenceLedger(Tables):
    """The ledger over the catalog's connection; every method may raise CatalogError."""

    @contextmanager
    def planning(self) -> Iterator[Book]:
        """Open the ledger for planning, alone; all that was written is kept at the end, or nothing."""
        with self._transaction() as connection:
            yield Book(connection)

    def waiting(self, now: datetime, limit: int = 2000) -> list[Occurrence]:
        """Return what is due and may begin, the oldest first."""
        return self._found(
            _ROWS + "where state = 'due' and not_before_at <= ? order by due_at, schedule limit ?",
            (format_utc(now), limit),
        )

    def held(self) -> Counter[str]:
        """Return how many jobs hold each thing that limits count."""
        return Counter({row["thing"]: row["many"] for row in self._read(_HELD)})

    def dispatched(self) -> list[Occurrence]:
        """Return what somebody runs."""
        return self._found(_ROWS + "where state = 'dispatched' order by due_at")

    def history(self, policy: str | None = None, limit: int = 1000) -> list[Occurrence]:
        """Return rows of a policy, or of all, the newest first."""
        return self._found(
            _ROWS + "where :policy is null or policy = :policy order by due_at desc, schedule limit :limit",
            {"policy": policy, "limit": limit},
        )

    def of_run(self, run_id: str) -> Occurrence | None:
        """Return the occurrence that a run is, or was, an attempt at."""
        found = self._found(_OF_RUN, (run_id,))
        return found[0] if found else None

    def attempts(self, occurrence_id: int) -> list[Attempt]:
        """Return the tries at an occurrence, in order."""
        found = self._read("select * from attempts where occurrence_id = ? order by number", (occurrence_id,))
        return [
            Attempt(
                row["number"],
                row["run_id"],
                parse_utc(row["started_at"]),
                None if row["ended_at"] is None else parse_utc(row["ended_at"]),
                row["failure"],
                row["error"],
            )
            for row in found
        ]

    def _found(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Occurrence]:
        return [_occurrence(row) for row in self._read(query, values)]

    def claim(self, claim: Claim, now: datetime) -> bool:
        """Take a due occurrence to run it; False when it is not due any more, or a limit is reached.

        A fence besides: `finish` by a run that is not the claim's changes nothing.
        """
        with self._transaction() as connection:
            for thing, most in claim.limits.items():
                if connection.execute("select count(*) from claims where thing = ?", (thing,)).fetchone()[0] >= most:
                    return False
            changed = connection.execute(
                "update occurrences set state = 'dispatched', holder = ?, run_id = ?, attempts = attempts + 1,"
                " decided_at = ? where occurrence_id = ? and state = 'due'",
                (claim.holder, claim.run_id, format_utc(now), claim.occurrence_id),
            ).rowcount
            if not changed:
                return False
            connection.executemany(
                "insert into claims (occurrence_id, thing) values (?, ?)",
                [(claim.occurrence_id, thing) for thing in claim.limits],
            )
            connection.execute(
                "insert into attempts (occurrence_id, number, run_id, started_at, failure, error)"
                " select occurrence_id, attempts, run_id, ?, '', '' from occurrences where occurrence_id = ?",
                (format_utc(now), claim.occurrence_id),
            )
        return True

    def finish(self, item: Occurrence, ending: Ending, now: datetime) -> bool:
        """Write down how the attempt of ``item`` ended; False, with nothing changed, when the row is another's."""
        with self._transaction() as connection:
            changed = connection.execute(
                "update occurrences set state = ?, reason = ?, decided_at = ?, not_before_at = ?, holder = ''"
                " where occurrence_id = ? and state = 'dispatched' and run_id = ?",
                (
                    *(ending.state, ending.reason, format_utc(now), format_utc(ending.not_before_at or now)),
                    *(item.occurrence_id, item.run_id),
                ),
            ).rowcount
            if not changed:
                return False
            connection.execute("delete from claims where occurrence_id = ?", (item.occurrence_id,))
            connection.execute(
                "update attempts set ended_at = ?, failure = ?, error = ? where occurrence_id = ? and run_id = ?",
                (format_utc(now), ending.failure, ending.error, item.occurrence_id, item.run_id),
            )
            facts = {**facts_of(item), "run_id": item.run_id, "attempts": item.attempts}
            if ending.state == "done":
                Book(connection).add_event("occurrence.done", now, facts)
            elif ending.state == "failed":
                facts |= {"class": ending.failure, "error": ending.error, "reason": ending.reason}
                Book(connection).add_event("occurrence.failed", now, facts)
        return True

    def cancel(self, run_id: str) -> None:
        """Note that somebody wants a run ended for good; no error when it is not an attempt at anything."""
        with self._transaction() as connection:
            connection.execute(
                "update occurrences set reason = ? where run_id = ? and state = 'dispatched'", (CANCELLED, run_id)
            )

    def is_cancelled(self, run_id: str) -> bool:
        """Tell whether somebody wanted the run ended for good."""
        return bool(self._read("select 1 from occurrences where run_id = ? and reason = ?", (run_id, CANCELLED)))

    def give_up(self, item: Occurrence, state: State, reason: str, now: datetime) -> bool:
        """End a due occurrence that nobody will run; False when it is not due any more."""
        with self._transaction() as connection:
            changed = connection.execute(
                "update occurrences set state = ?, reason = ?, decided_at = ?"
                " where occurrence_id = ? and state = 'due'",
                (state, reason, format_utc(now), item.occurrence_id),
            ).rowcount
            if changed:
                facts = {**facts_of(item), "state": state, "reason": reason, "count": 1}
                Book(connection).add_event("occurrence.missed", now, facts)
        return bool(changed)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and what becomes of its occurrence; due again from ``not_before_at`` on, or over."""

    state: State
    reason: str = ""
    failure: AttemptClass | str = ""
    error: str = ""
    not_before_at: datetime | None = None


def _occurrence(row: sqlite3.Row) -> Occurrence:
    values = dict(row)
    for name in _MOMENTS:
        values[name] = parse_utc(values[name])
    return Occurrence(**values)


def facts_of(item: Occurrence) -> dict[str, Any]:
    """Return what events say of an occurrence."""
    return {
        "schedule": item.schedule,
        "kind": item.kind,
        "policy": item.policy,
        "what": item.what or item.kind,
        "due_at": format_utc(item.due_at),
    }
