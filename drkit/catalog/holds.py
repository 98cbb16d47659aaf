"""What the catalog remembers of holds, and of artifacts that are on their way out.

Holds are in the stores, signed. That they are remembered here as well is what makes it show when somebody takes one
away, and lets a prune go by it all the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from drkit.catalog.tables import Tables
from drkit.units import format_utc, parse_utc


@dataclass(frozen=True)
class HoldEntry:
    """One hold; ``released_at`` is None while it stands."""

    hold_id: str
    policy: str
    artifact_id: str
    kind: str
    reason: str
    placed_at: datetime
    released_at: datetime | None = None


class Holds(Protocol):
    """Safe to use from several threads and processes, as the catalog is."""

    def remember(self, entries: Sequence[HoldEntry]) -> None:
        """Record holds; one that is known to be released stays released."""

    def entries(self, *, policy: str | None = None, artifact_id: str | None = None) -> list[HoldEntry]:
        """Return holds, oldest first, the released ones too."""

    def mark(self, policy: str, leaving: Mapping[str, datetime | None]) -> None:
        """Record which artifacts of a policy are marked, and when each goes; those not named are not marked."""

    def leaving(self, policy: str | None = None) -> dict[str, datetime | None]:
        """Return the artifacts that are marked, and when each goes where that is known."""


class SqliteHolds(Tables, Holds):
    """The same over a SQLite catalog's connection."""

    def remember(self, entries: Sequence[HoldEntry]) -> None:
        """Record holds; one that is known to be released stays released."""
        with self._transaction() as connection:
            connection.executemany(
                "insert into holds (hold_id, policy, artifact_id, kind, reason, placed_at, released_at)"
                " values (?, ?, ?, ?, ?, ?, ?)"
                " on conflict (hold_id) do update set released_at = coalesce(released_at, excluded.released_at)",
                [
                    (
                        *(entry.hold_id, entry.policy, entry.artifact_id, entry.kind, entry.reason),
                        format_utc(entry.placed_at),
                        None if entry.released_at is None else format_utc(entry.released_at),
                    )
                    for entry in entries
                ],
            )

    def entries(self, *, policy: str | None = None, artifact_id: str | None = None) -> list[HoldEntry]:
        """Return holds, oldest first, the released ones too."""
        found = self._read(
            "select hold_id, policy, artifact_id, kind, reason, placed_at, released_at from holds"
            " where (:policy is null or policy = :policy) and (:artifact_id is null or artifact_id = :artifact_id)"
            " order by hold_id",
            {"policy": policy, "artifact_id": artifact_id},
        )
        return [_entry_of(row) for row in found]

    def mark(self, policy: str, leaving: Mapping[str, datetime | None]) -> None:
        """Record which artifacts of a policy are marked, and when each goes; those not named are not marked."""
        with self._transaction() as connection:
            connection.execute("delete from marks where policy = ?", (policy,))
            connection.executemany(
                "insert into marks (artifact_id, policy, delete_after) values (?, ?, ?)",
                [(name, policy, None if at is None else format_utc(at)) for name, at in leaving.items()],
            )

    def leaving(self, policy: str | None = None) -> dict[str, datetime | None]:
        """Return the artifacts that are marked, and when each goes where that is known."""
        found = self._read(
            "select artifact_id, delete_after from marks where :policy is null or policy = :policy", {"policy": policy}
        )
        return {row["artifact_id"]: _moment(row["delete_after"]) for row in found}


def _entry_of(row: sqlite3.Row) -> HoldEntry:
    values = dict(row)
    placed_at = parse_utc(values.pop("placed_at"))
    return HoldEntry(**{**values, "released_at": _moment(values["released_at"])}, placed_at=placed_at)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else parse_utc(text)
