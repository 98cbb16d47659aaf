"""Which copies there are, and when each was last read: what the promise to read everything is planned by."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple, Protocol

from drkit.catalog.tables import Tables
from drkit.reading_plan import StoredCopy
from drkit.units import parse_utc


class Reading(NamedTuple):
    """When a copy was last read, and whether it was sound then."""

    at: datetime
    sound: bool


class Verified(Protocol):
    """What was read when; every method may raise CatalogError."""

    def copies(self, policies: Collection[str]) -> list[StoredCopy]:
        """Return every copy of an artifact of these policies that a store has, with the moment of its last reading."""

    def readings(self, policy: str) -> dict[tuple[str, str], Reading]:
        """Return the last reading of each copy by subject and store, also of what is gone by now and of logs."""

    def forget(self, subject: str, store: str) -> None:
        """Forget when a copy was read: it is another one now, made anew."""

    def mend(self, subject: str, store: str) -> None:
        """Forget that a copy was damaged when it was read last: it was found sound since, which nobody signed."""


class SqliteVerified(Tables, Verified):
    """The table ``verified`` of a catalog."""

    def copies(self, policies: Collection[str]) -> list[StoredCopy]:
        """Return every copy of an artifact of these policies that a store has, with the moment of its last reading."""
        found = self._read(
            """select a.policy, a.artifact_id, s.store, a.stored_bytes, a.restorable_to_at, v.at
            from artifacts a join artifact_stores s using (artifact_id)
            left join verified v on v.subject = a.artifact_id and v.store = s.store
            where a.policy in (select value from json_each(?))""",
            (json.dumps(sorted(policies)),),
        )
        return [
            StoredCopy(policy, subject, store, size, parse_utc(stored_at), parse_utc(at) if at else None)
            for policy, subject, store, size, stored_at, at in found
        ]

    def readings(self, policy: str) -> dict[tuple[str, str], Reading]:
        """Return the last reading of each copy by subject and store, also of what is gone by now and of logs."""
        found = self._read("select subject, store, at, sound from verified where policy = ?", (policy,))
        return {(subject, store): Reading(parse_utc(at), bool(sound)) for subject, store, at, sound in found}

    def forget(self, subject: str, store: str) -> None:
        """Forget when a copy was read: it is another one now, made anew."""
        with self._transaction() as connection:
            connection.execute("delete from verified where subject = ? and store = ?", (subject, store))

    def mend(self, subject: str, store: str) -> None:
        """Forget that a copy was damaged when it was read last: it was found sound since, which nobody signed."""
        with self._transaction() as connection:
            connection.execute("delete from verified where subject = ? and store = ? and not sound", (subject, store))
