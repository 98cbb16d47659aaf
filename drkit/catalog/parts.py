"""The parts of a SQLite catalog, each imported when it is first asked for: a list needs none of them."""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drkit.catalog import Catalog, files

if TYPE_CHECKING:
    from drkit.catalog.history import SqliteHistory
    from drkit.catalog.holds import SqliteHolds
    from drkit.catalog.measures import SqliteMeasures
    from drkit.catalog.occurrences import OccurrenceLedger
    from drkit.catalog.outbox import SqliteOutbox
    from drkit.catalog.overview import SqliteOverview
    from drkit.catalog.signatures import SqliteSignatures
    from drkit.catalog.verified import SqliteVerified
    from drkit.catalog.workers import SqliteWorkers


class SqliteParts(Catalog):
    """A catalog's parts, over the connection that they share."""

    path: Path

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]: ...

    @abstractmethod
    def _read(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]: ...

    @cached_property
    def occurrences(self) -> OccurrenceLedger:
        """Return the ledger of what was due when."""
        from drkit.catalog.occurrences import OccurrenceLedger

        return OccurrenceLedger(self._transaction, self._read)

    @cached_property
    def history(self) -> SqliteHistory:
        """Return the past, to be trimmed."""
        from drkit.catalog.history import SqliteHistory

        return SqliteHistory(self._transaction, self._read)

    @cached_property
    def holds(self) -> SqliteHolds:
        """Return what is known of holds."""
        from drkit.catalog.holds import SqliteHolds

        return SqliteHolds(self._transaction, self._read)

    @cached_property
    def outbox(self) -> SqliteOutbox:
        """Return what people are to be told."""
        from drkit.catalog.outbox import SqliteOutbox

        return SqliteOutbox(self._transaction, self._read)

    @cached_property
    def measures(self) -> SqliteMeasures:
        """Return what the catalog says in numbers."""
        from drkit.catalog.measures import SqliteMeasures

        return SqliteMeasures(self._read)

    @contextmanager
    def glance(self) -> Iterator[SqliteMeasures]:
        """Lend measures of one moment, over a connection of their own."""
        from drkit.catalog.measures import SqliteMeasures

        with files.translated(self.path), closing(files.connect(self.path)) as connection:
            connection.execute("begin")
            yield SqliteMeasures(lambda query, values=(): connection.execute(query, values).fetchall())

    @cached_property
    def overview(self) -> SqliteOverview:
        """Return what tells how all policies stand."""
        from drkit.catalog.overview import SqliteOverview

        return SqliteOverview(self._read)

    @cached_property
    def signatures(self) -> SqliteSignatures:
        """Return which signatures were verified on this host."""
        from drkit.catalog.signatures import SqliteSignatures

        return SqliteSignatures(self._transaction, self._read)

    @cached_property
    def verified(self) -> SqliteVerified:
        """Return what is known of when copies were read."""
        from drkit.catalog.verified import SqliteVerified

        return SqliteVerified(self._transaction, self._read)

    @cached_property
    def workers(self) -> SqliteWorkers:
        """Return who does what is due."""
        from drkit.catalog.workers import SqliteWorkers

        return SqliteWorkers(self._transaction, self._read)
