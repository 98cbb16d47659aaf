"""Who does what is due: each process writes that it lives, which shows besides that the catalog can be written."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from drkit.catalog.tables import Tables
from drkit.units import format_utc, parse_utc

_REMEMBERED = timedelta(days=1)


class Workers(Protocol):
    """The processes that work for this catalog; every method may raise CatalogError."""

    def beat(self, holder: str, now: datetime) -> None:
        """Note that a process lives; those that were silent for a day are forgotten."""

    def leave(self, holder: str) -> None:
        """Forget a process that ends."""

    def last_beat(self) -> datetime | None:
        """Return when any of them last showed that it lives; None when there are none."""


class SqliteWorkers(Tables, Workers):
    """The table ``workers`` of a catalog."""

    def beat(self, holder: str, now: datetime) -> None:
        """Note that a process lives; those that were silent for a day are forgotten."""
        with self._transaction() as connection:
            connection.execute(
                "insert or replace into workers (holder, seen_at) values (?, ?)", (holder, format_utc(now))
            )
            connection.execute("delete from workers where seen_at < ?", (format_utc(now - _REMEMBERED),))

    def leave(self, holder: str) -> None:
        """Forget a process that ends."""
        with self._transaction() as connection:
            connection.execute("delete from workers where holder = ?", (holder,))

    def last_beat(self) -> datetime | None:
        """Return when any of them last showed that it lives; None when there are none."""
        found = self._read("select max(seen_at) as at from workers")
        return parse_utc(found[0]["at"]) if found[0]["at"] else None
