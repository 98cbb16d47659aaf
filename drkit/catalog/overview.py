"""How every policy stands, by counts and newest moments: quick for half a million artifacts, no document is parsed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from drkit.catalog import rows
from drkit.reading_plan import ReadingFact
from drkit.units import format_utc, parse_utc

if TYPE_CHECKING:
    from drkit.model import Run

Read = Callable[[str, Mapping[str, Any]], list[sqlite3.Row]]


class NewestArtifact(NamedTuple):
    """The newest artifact of a policy; ``stores`` have it and all that it builds on."""

    artifact_id: str
    taken_at: datetime
    stores: tuple[str, ...]


class DrillRow(NamedTuple):
    """The newest drill of a name that came to a conclusion."""

    name: str
    verdict: str
    ended_at: datetime


@dataclass
class PolicyOverview:
    """What the catalog knows of one policy; ``newest`` is by method, ``held`` counts artifacts by store.

    ``damaged`` are subject and store of copies whose last reading found damage, ``verified`` the verdict of the newest
    verification. Nothing of the future counts as newest.
    """

    policy: str
    artifacts: int = 0
    newest: dict[str, datetime] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    newest_artifact: NewestArtifact | None = None
    last_run: Run | None = None
    drills: list[DrillRow] = field(default_factory=list)
    verified: str | None = None
    reading: ReadingFact | None = None
    damaged: list[tuple[str, str]] = field(default_factory=list)


class Overview(Protocol):
    """Questions about many policies at once."""

    def policies(self, policy: str | None, until: datetime) -> dict[str, PolicyOverview]:
        """Return how one policy, or each that the catalog knows, stands; what is later than ``until`` is not newest.

        Raise CatalogError.
        """


class SqliteOverview(Overview):
    """The questions as SQL; each is one pass over an index, or one look-up for each policy."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def policies(self, policy: str | None, until: datetime) -> dict[str, PolicyOverview]:
        """Return how one policy, or each that the catalog knows, stands; what is later than ``until`` is not newest."""
        values = {"policy": policy, "until": format_utc(until)}
        found: dict[str, PolicyOverview] = {}
        for name, method, count, newest in self._read(_COUNTS, values):
            overview = found.setdefault(name, PolicyOverview(name))
            overview.artifacts += count
            if newest is not None:
                overview.newest[method] = parse_utc(newest)
        for name, store, count in self._read(_HELD, values):
            found[name].held[store] = count
        for overview in found.values():
            overview.newest_artifact = self._newest(overview.policy, values["until"])
            overview.last_run = self._last_run(overview.policy)
        self._add_proofs(found, values)
        return found

    def _newest(self, policy: str, until: str | None) -> NewestArtifact | None:
        for artifact_id, taken_at in self._read(_NEWEST, {"policy": policy, "until": until}):
            stores = tuple(row["store"] for row in self._read(_HOLDING, {"artifact_id": artifact_id}))
            return NewestArtifact(artifact_id, parse_utc(taken_at), stores)
        return None

    def _last_run(self, policy: str) -> Run | None:
        found = self._read(_LAST_RUN, {"policy": policy})
        return rows.run_of(found[0]) if found else None

    def _add_proofs(self, found: Mapping[str, PolicyOverview], values: Mapping[str, Any]) -> None:
        for name, drill, verdict, ended_at in self._known(found, _DRILLS, values):
            found[name].drills.append(DrillRow(drill, verdict, parse_utc(ended_at)))
        for name, verdict, _ in self._known(found, _VERIFICATIONS, values):
            found[name].verified = verdict
        for name, subject, store in self._known(found, _DAMAGED, values):
            found[name].damaged.append((subject, store))
        largest = {name: (size, item) for name, size, item in self._read(_LARGEST, values)}
        for name, stored_bytes, oldest_at, oldest, store in self._known(found, _READINGS, values):
            size, item = largest[name]
            found[name].reading = ReadingFact(stored_bytes, parse_utc(oldest_at), f"{oldest} in {store}", size, item)

    def _known(
        self, found: Mapping[str, PolicyOverview], query: str, values: Mapping[str, Any]
    ) -> Iterator[sqlite3.Row]:
        return (row for row in self._read(query, values) if row["policy"] in found)


_COUNTS = """
    select a.policy, a.method, count(*), max(case when a.restorable_to_at <= :until then a.restorable_to_at end)
    from artifacts a where (:policy is null or a.policy = :policy) group by a.policy, a.method"""
_HELD = """
    select a.policy, s.store, count(*) from artifacts a join artifact_stores s using (artifact_id)
    where (:policy is null or a.policy = :policy) group by a.policy, s.store"""
_NEWEST = """
    select artifact_id, restorable_to_at from artifacts where policy = :policy and restorable_to_at <= :until
    order by restorable_to_at desc, artifact_id desc limit 1"""
_HOLDING = """
    with recursive lineage (artifact_id) as (
        values (:artifact_id) union
        select a.parent from artifacts a join lineage using (artifact_id) where a.parent <> '')
    select s.store from lineage join artifact_stores s using (artifact_id)
    group by s.store having count(*) = (select count(*) from lineage) order by s.store"""
_LAST_RUN = "select * from runs where policy = :policy and kind = 'backup' order by started_at desc limit 1"
_DRILLS = """
    select a.policy, json_extract(a.record, '$.drill') as drill, a.verdict, max(a.ended_at) from evidence a
    where (:policy is null or a.policy = :policy) and a.kind = 'drill'
        and a.verdict in ('passed', 'passed_with_findings', 'failed')
    group by a.policy, drill"""
_VERIFICATIONS = """
    select a.policy, a.verdict, max(a.ended_at) from evidence a
    where (:policy is null or a.policy = :policy) and a.kind = 'verification' group by a.policy"""
_DAMAGED = """
    select a.policy, a.subject, a.store from verified a
    where (:policy is null or a.policy = :policy) and a.sound = 0 order by a.subject, a.store"""
# The other columns come from the row with the least or largest value (sqlite.org/lang_select.html, bare columns).
_LARGEST = """
    select a.policy, max(a.stored_bytes), a.artifact_id from artifacts a
    where (:policy is null or a.policy = :policy) group by a.policy"""
_READINGS = """
    select a.policy, sum(a.stored_bytes), min(coalesce(v.at, a.restorable_to_at)), a.artifact_id, s.store
    from artifacts a join artifact_stores s using (artifact_id)
    left join verified v on v.subject = a.artifact_id and v.store = s.store
    where (:policy is null or a.policy = :policy) group by a.policy"""
