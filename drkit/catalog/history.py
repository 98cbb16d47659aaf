"""What of the past is taken out of the catalog: events that were read, runs and moments of schedules that are over.

Artifacts, evidence, holds and the readings of copies are never touched here: what matters is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from drkit.catalog.occurrences import Book
from drkit.catalog.tables import Tables
from drkit.units import format_utc, parse_utc

_AT_ONCE = 500
_JUMP = timedelta(days=60)


class History(Protocol):
    """The past; every method may raise CatalogError."""

    def trimmed_at(self) -> datetime | None:
        """Return when the past was last trimmed; None when it never was."""

    def trim(self, before: datetime, now: datetime) -> dict[str, int]:
        """Remove what was over before that moment; return how much of what, and keep it as an event.

        In small steps, so that nobody waits for it. When the past was last trimmed two months ago or more, or never,
        nothing is removed yet: a clock that is ahead for some hours must cost nothing.
        """


class SqliteHistory(Tables, History):
    """The past in the tables of the catalog."""

    def trimmed_at(self) -> datetime | None:
        """Return when the past was last trimmed; None when it never was."""
        found = self._read("select at from events where name = 'history.trimmed' order by event_id desc limit 1")
        return parse_utc(found[0]["at"]) if found else None

    def trim(self, before: datetime, now: datetime) -> dict[str, int]:
        """Remove what was over before that moment; return how much of what, and keep it as an event."""
        last = self.trimmed_at()
        removed = dict.fromkeys(_OLD, 0)
        if last is not None and timedelta() <= now - last < _JUMP:
            removed = {what: self._remove(*statements, format_utc(before)) for what, statements in _OLD.items()}
        with self._transaction() as connection:
            Book(connection).add_event("history.trimmed", now, {"before": format_utc(before), **removed})
        return removed

    def _remove(self, old: str, steps: Sequence[str], before: str) -> int:
        removed = 0
        while True:
            # Looked for without keeping others from writing; what another process removes meanwhile is not there twice.
            found = [tuple(row) for row in self._read(old, {"before": before, "most": _AT_ONCE})]
            with self._transaction() as connection:
                for step in steps:
                    connection.executemany(step, found)
            removed += len(found)
            if len(found) < _AT_ONCE:
                return removed


# Numbers are given again from the largest that is there, and readers go by them: the newest event stays in any case.
_EVENTS = """
    select event_id from events where at < :before and event_id < (select max(event_id) from events)
        and event_id <= coalesce((select event_id from event_readers where reader = 'notify'), 0)
        and event_id <= coalesce((select event_id from event_readers where reader = 'scheduler'), 0)
    order by event_id limit :most"""
# The newest two of each policy, kind and state are looked at by metrics and by the next prune; backups stay.
_RUNS = """
    select run_id from runs r where started_at < :before and ended_at < :before
        and not (kind = 'backup' and state = 'succeeded')
        and (select count(*) from (select 1 from runs n where n.policy = r.policy and n.kind = r.kind
            and n.state = r.state and n.started_at > r.started_at limit 2)) = 2
    order by started_at limit :most"""
_OCCURRENCES = """
    select occurrence_id from occurrences
    where due_at < :before and decided_at < :before and state not in ('due', 'dispatched')
    order by due_at limit :most"""
_OLD = {
    "events": (_EVENTS, ["delete from events where event_id = ?"]),
    "runs": (_RUNS, ["delete from runs where run_id = ?"]),
    "occurrences": (_OCCURRENCES, ["delete from occurrences where occurrence_id = ?"]),
}
