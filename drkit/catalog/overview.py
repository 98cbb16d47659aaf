"""How every policy stands, by counts and newest moments: quick for half a million artifacts, no document is parsed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from drkit.catalog import rows
from drkit.catalog.tables import Read
from drkit.reading_plan import ReadingFact
from drkit.units import format_utc, parse_utc

if TYPE_CHECKING:
    from drkit.model import Run


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

    def policies(self, policy: str | None, until: datetime, stores: Iterable[str]) -> dict[str, PolicyOverview]:
        """Return how one policy, or each that the catalog knows, stands; what is later than ``until`` is not newest.

        Copies are counted in ``stores``. Raise CatalogError.
        """

    def largest(self, policy: str) -> str:
        """Return the artifact with the most bytes of a policy that has one; raise CatalogError."""

    def last_successes(self, kind: str) -> dict[str, datetime]:
        """Return by policy when a run of that kind last succeeded; raise CatalogError."""


class SqliteOverview(Overview):
    """The questions as SQL; each is one pass over an index, or a look-up for each policy."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def policies(self, policy: str | None, until: datetime, stores: Iterable[str]) -> dict[str, PolicyOverview]:
        """Return how one policy, or each that the catalog knows, stands; what is later than ``until`` is not newest."""
        values = {"policy": policy, "until": format_utc(until)}
        found: dict[str, PolicyOverview] = {}
        largest: dict[str, int] = {}
        for name, method, count, newest, largest_bytes in self._read(_COUNTS, values):
            overview = found.setdefault(name, PolicyOverview(name))
            overview.artifacts += count
            largest[name] = max(largest_bytes, largest.get(name, 0))
            if newest is not None:
                overview.newest[method] = parse_utc(newest)
        wanted = frozenset(stores)
        for row in self._read(_COPIES, values):
            if row["store"] in wanted:
                overview = found[row["policy"]]
                overview.held[row["store"]] = row["artifacts"]
                overview.reading = _merged(overview.reading, row, largest[row["policy"]])
        self._add_newest(found, {**values, "policies": json.dumps(list(found))})
        self._add_proofs(found, values)
        return found

    def largest(self, policy: str) -> str:
        """Return the artifact with the most bytes of a policy that has one; raise CatalogError."""
        return str(self._read(_LARGEST, {"policy": policy})[0]["artifact_id"])

    def last_successes(self, kind: str) -> dict[str, datetime]:
        """Return by policy when a run of that kind last succeeded; raise CatalogError."""
        query = "select policy, succeeded_at from run_sums where kind = :kind and succeeded_at is not null"
        return {policy: datetime.fromisoformat(ended_at) for policy, ended_at in self._read(query, {"kind": kind})}

    def _add_newest(self, found: Mapping[str, PolicyOverview], values: Mapping[str, Any]) -> None:
        for policy, artifact_id, taken_at, parent, stores in self._read(_NEWEST, values):
            names = tuple(sorted((stores or "").split()))
            if parent:
                names = tuple(row["store"] for row in self._read(_HOLDING, {"artifact_id": artifact_id}))
            found[policy].newest_artifact = NewestArtifact(artifact_id, parse_utc(taken_at), names)
        for row in self._read(_LAST_RUNS, values):
            found[row["policy"]].last_run = rows.run_of(row)

    def _add_proofs(self, found: Mapping[str, PolicyOverview], values: Mapping[str, Any]) -> None:
        for name, drill, verdict, ended_at in self._known(found, _DRILLS, values):
            found[name].drills.append(DrillRow(drill, verdict, parse_utc(ended_at)))
        for name, verdict, _ in self._known(found, _VERIFICATIONS, values):
            found[name].verified = verdict
        for name, subject, store in self._known(found, _DAMAGED, values):
            found[name].damaged.append((subject, store))

    def _known(
        self, found: Mapping[str, PolicyOverview], query: str, values: Mapping[str, Any]
    ) -> Iterator[sqlite3.Row]:
        return (row for row in self._read(query, values) if row["policy"] in found)


def _merged(known: ReadingFact | None, row: sqlite3.Row, largest_bytes: int) -> ReadingFact:
    """Add the copies in one store to those in the others."""
    oldest_at, oldest = parse_utc(row["oldest_at"]), f"{row['artifact_id']} in {row['store']}"
    if known is None:
        return ReadingFact(row["stored_bytes"], oldest_at, oldest, largest_bytes, "")
    if known.oldest_at <= oldest_at:
        oldest_at, oldest = known.oldest_at, known.oldest
    return ReadingFact(known.stored_bytes + row["stored_bytes"], oldest_at, oldest, largest_bytes, known.largest)


_COUNTS = """
    select a.policy, a.method, count(*), max(case when a.restorable_to_at <= :until then a.restorable_to_at end),
        max(a.stored_bytes)
    from artifacts a where (:policy is null or a.policy = :policy) group by a.policy, a.method"""
# One pass over an index. The id comes from the row with the least moment (sqlite.org/lang_select.html, bare columns).
_COPIES = """
    select s.policy, s.store, count(*) as artifacts, sum(s.stored_bytes) as stored_bytes, s.artifact_id,
        min(case when s.read_at <= :until then s.read_at
            else (select a.restorable_to_at from artifacts a where a.artifact_id = s.artifact_id) end) as oldest_at
    from artifact_stores s where (:policy is null or s.policy = :policy) group by s.policy, s.store"""
_LARGEST = "select artifact_id from artifacts where policy = :policy order by stored_bytes desc, artifact_id limit 1"
_NEWEST = """
    select a.policy, a.artifact_id, a.restorable_to_at, a.parent,
        (select group_concat(store, ' ') from artifact_stores s where s.artifact_id = a.artifact_id)
    from json_each(:policies) p join artifacts a on a.artifact_id = (
        select n.artifact_id from artifacts n where n.policy = p.value and n.restorable_to_at <= :until
        order by n.restorable_to_at desc, n.artifact_id desc limit 1)"""
_HOLDING = """
    with recursive lineage (artifact_id) as (
        values (:artifact_id) union
        select a.parent from artifacts a join lineage using (artifact_id) where a.parent <> '')
    select s.store from lineage join artifact_stores s using (artifact_id)
    group by s.store having count(*) = (select count(*) from lineage) order by s.store"""
_LAST_RUNS = """
    select r.* from json_each(:policies) p join runs r on r.run_id = (
        select n.run_id from runs n where n.policy = p.value and n.kind = 'backup'
        order by n.started_at desc limit 1)"""
_DRILLS = """
    select a.policy, json_extract(a.record, '$.drill') as drill, a.verdict, max(a.ended_at) from evidence a
    where (:policy is null or a.policy = :policy) and a.kind = 'drill'
        and a.verdict in ('passed', 'passed_with_findings', 'failed') and a.ended_at <= :until
    group by a.policy, drill"""
_VERIFICATIONS = """
    select a.policy, a.verdict, max(a.ended_at) from evidence a
    where (:policy is null or a.policy = :policy) and a.kind = 'verification' and a.ended_at <= :until
    group by a.policy"""
_DAMAGED = """
    select a.policy, a.subject, a.store from verified a
    where (:policy is null or a.policy = :policy) and a.sound = 0 order by a.subject, a.store"""
