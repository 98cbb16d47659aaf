"""What the catalog says in numbers, for metrics and for those who look out for what is late."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from drkit.catalog.outbox import CatalogEvent, event_of
from drkit.catalog.sums import DURATION_BUCKETS_S
from drkit.units import format_utc, parse_utc

SIZES = 21
"""Of how many artifacts the sizes are told: the newest, and those that it is compared with."""


class NewestArtifact(NamedTuple):
    """The newest artifact of one policy and method, in which stores it is, and the moment of the oldest.

    ``sizes`` are the stored bytes of the newest `SIZES`, newest first.
    """

    policy: str
    method: str
    artifact_id: str
    restorable_to_at: datetime
    stored_bytes: int
    plain_bytes: int
    stores: tuple[str, ...]
    oldest_at: datetime
    sizes: tuple[int, ...]


class LastRuns(NamedTuple):
    """When runs of one policy and kind last succeeded, and how the newest one that ended did."""

    policy: str
    kind: str
    succeeded_at: datetime | None
    last_state: str
    last_duration_s: float


class Durations(NamedTuple):
    """How long backups of one policy took: how many within each of `DURATION_BUCKETS_S`, and in all."""

    policy: str
    within: tuple[int, ...]
    many: int
    sum_s: float


class LastDrill(NamedTuple):
    """The newest record of one drill of a policy; ``levels`` counts those that it has, by their result."""

    policy: str
    drill: str
    level: str
    verdict: str
    ended_at: datetime
    rto_s: float | None
    levels: Mapping[str, int]


class Measures(Protocol):
    """Reads only; what is of the future counts for nothing, because a clock was wrong."""

    def newest_artifacts(self, now: datetime, policies: Collection[str]) -> list[NewestArtifact]:
        """Return the newest artifact of every method of these policies."""

    def last_runs(self) -> list[LastRuns]:
        """Return every policy and kind of run."""

    def durations(self) -> list[Durations]:
        """Return how long the backups of every policy took."""

    def last_drills(self, policies: Collection[str]) -> list[LastDrill]:
        """Return the newest record of every drill of these policies."""

    def damaged_copies(self, policies: Collection[str]) -> list[tuple[str, str, str]]:
        """Return policy, subject and store of every copy that was damaged when it was read last."""

    def oldest_readings(self, until: datetime, policies: Collection[str]) -> dict[str, datetime]:
        """Return by policy when the copy that was read the longest ago was read, or made if it never was."""

    def proven(self, policies: Collection[str]) -> dict[str, datetime]:
        """Return by policy up to which moment a drill has shown that it can be restored."""

    def sealed_for(self) -> list[tuple[str, frozenset[str], int]]:
        """Return by policy and set of recipients, as fingerprints, how many artifacts are sealed for them."""

    def oldest_heartbeat(self) -> datetime | None:
        """Return when the most silent of the runs that go on showed that it lives; None when nothing runs."""

    def totals(self, subject: str) -> dict[str, int]:
        """Return how many there ever were, also of what was trimmed.

        Of subject ``occurrence`` by state (how many moments of schedules are, or were, in each), of ``event`` by name.
        """

    def waiting(self, now: datetime) -> tuple[int, datetime | None]:
        """Return how many occurrences wait that could run now, and since when the first of them does."""

    def newest_event_id(self) -> int:
        """Return the number of the newest event, 0 when there is none."""

    def events_after(self, event_id: int, limit: int) -> list[CatalogEvent]:
        """Return the events after that one, oldest first."""


# Each pair is found by one look into the index, and what is asked of it by another: no artifact in between is read.
_NEWEST = """
    with recursive pairs (policy, method) as (
        select value, (select min(a.method) from artifacts a where a.policy = p.value) from json_each(:policies) p
        union all
        select policy, (select min(a.method) from artifacts a where a.policy = p.policy and a.method > p.method)
        from pairs p where method is not null)
    select p.policy, p.method, n.artifact_id, n.restorable_to_at, n.stored_bytes, n.plain_bytes,
        (select group_concat(store, ' ') from artifact_stores s where s.artifact_id = n.artifact_id) as stores,
        (select min(o.restorable_to_at) from artifacts o where o.policy = p.policy and o.method = p.method) as oldest,
        (select group_concat(stored_bytes, ' ') from (select z.stored_bytes from artifacts z
            where z.policy = p.policy and z.method = p.method and z.restorable_to_at <= :now
            order by z.restorable_to_at desc limit :sizes)) as sizes
    from pairs p join artifacts n on n.rowid = (
        select a.rowid from artifacts a where a.policy = p.policy and a.method = p.method and a.restorable_to_at <= :now
        order by a.restorable_to_at desc limit 1)
    where p.method is not null"""
_LAST_RUNS = "select policy, kind, succeeded_at, newest_state, newest_s from run_sums"
_DURATIONS = """
    select s.policy, s.sum_s, d.within_s, d.many from run_sums s join backup_durations d using (policy)
    where s.kind = 'backup'"""
_DRILLS = """
    with recursive drills (policy, drill) as (
        select value, (select min(e.drill) from evidence e where e.policy = p.value and e.drill is not null)
        from json_each(:policies) p
        union all
        select policy, (select min(e.drill) from evidence e where e.policy = d.policy and e.drill > d.drill)
        from drills d where drill is not null)
    select d.policy, d.drill, e.level, e.verdict, e.ended_at, json_extract(e.record, '$.rto_ms') as rto_ms,
        json_extract(e.record, '$.levels') as levels
    from drills d join evidence e on e.sha256 = (
        select n.sha256 from evidence n where n.policy = d.policy and n.drill = d.drill
        order by n.ended_at desc limit 1)
    where d.drill is not null"""
_PROVEN = """
    select value, (select max(e.proves_to) from evidence e where e.policy = p.value and e.proves_to is not null)
        as proven
    from json_each(:policies) p"""
# A reading of the future counts as none, because a clock was wrong.
_OLDEST_READING = """
    with recursive held (policy, store) as (
        select value, (select min(s.store) from artifact_stores s where s.policy = p.value) from json_each(:policies) p
        union all
        select policy, (select min(s.store) from artifact_stores s where s.policy = h.policy and s.store > h.store)
        from held h where store is not null)
    select policy,
        (select min(s.read_at) from artifact_stores s
            where s.policy = h.policy and s.store = h.store and s.read_at <= :until),
        (select min(a.restorable_to_at) from artifact_stores s join artifacts a using (artifact_id)
            where s.policy = h.policy and s.store = h.store and s.read_at > :until)
    from held h where store is not null"""


class SqliteMeasures(Measures):
    """Measures of a SQLite catalog."""

    def __init__(self, read: Callable[..., list[sqlite3.Row]]) -> None:
        self._read = read

    def newest_artifacts(self, now: datetime, policies: Collection[str]) -> list[NewestArtifact]:
        """Return the newest artifact of every method of these policies."""
        return [
            NewestArtifact(
                *(policy, method, artifact_id, datetime.fromisoformat(at), stored_bytes, plain_bytes, _names(stores)),
                oldest_at=datetime.fromisoformat(oldest),
                sizes=tuple(map(int, str(sizes).split())),
            )
            for policy, method, artifact_id, at, stored_bytes, plain_bytes, stores, oldest, sizes in self._read(
                _NEWEST, {"now": format_utc(now), "policies": json.dumps(list(policies)), "sizes": SIZES}
            )
        ]

    def last_runs(self) -> list[LastRuns]:
        """Return every policy and kind of run."""
        return [
            LastRuns(policy, kind, datetime.fromisoformat(succeeded_at) if succeeded_at else None, state, took_s)
            for policy, kind, succeeded_at, state, took_s in self._read(_LAST_RUNS)
        ]

    def durations(self) -> list[Durations]:
        """Return how long the backups of every policy took."""
        found: dict[str, tuple[float, dict[int, int]]] = {}
        for policy, sum_s, within_s, many in self._read(_DURATIONS):
            found.setdefault(policy, (sum_s, {}))[1][within_s] = many
        return [
            Durations(
                *(policy, tuple(accumulate(counts.get(bound, 0) for bound in DURATION_BUCKETS_S))),
                *(sum(counts.values()), sum_s),
            )
            for policy, (sum_s, counts) in found.items()
        ]

    def last_drills(self, policies: Collection[str]) -> list[LastDrill]:
        """Return the newest record of every drill of these policies."""
        return [
            LastDrill(
                *(row["policy"], row["drill"], row["level"], row["verdict"], parse_utc(row["ended_at"])),
                rto_s=None if row["rto_ms"] is None else row["rto_ms"] / 1000,
                levels=Counter(json.loads(row["levels"] or "{}").values()),
            )
            for row in self._read(_DRILLS, {"policies": json.dumps(list(policies))})
        ]

    def damaged_copies(self, policies: Collection[str]) -> list[tuple[str, str, str]]:
        """Return policy, subject and store of every copy that was damaged when it was read last."""
        found = self._read(
            "select policy, subject, store from verified where not sound"
            " and policy in (select value from json_each(?)) order by policy, subject, store",
            (json.dumps(list(policies)),),
        )
        return [(row["policy"], row["subject"], row["store"]) for row in found]

    def oldest_readings(self, until: datetime, policies: Collection[str]) -> dict[str, datetime]:
        """Return by policy when the copy that was read the longest ago was read, or made if it never was."""
        values = {"until": format_utc(until), "policies": json.dumps(list(policies))}
        oldest: dict[str, str] = {}
        for policy, *moments in self._read(_OLDEST_READING, values):
            oldest[policy] = min(at for at in (oldest.get(policy), *moments) if at)
        return {policy: datetime.fromisoformat(at) for policy, at in oldest.items()}

    def proven(self, policies: Collection[str]) -> dict[str, datetime]:
        """Return by policy up to which moment a drill has shown that it can be restored."""
        found = self._read(_PROVEN, {"policies": json.dumps(list(policies))})
        return {policy: parse_utc(proven) for policy, proven in found if proven}

    def sealed_for(self) -> list[tuple[str, frozenset[str], int]]:
        """Return by policy and set of recipients, as fingerprints, how many artifacts are sealed for them."""
        rows = self._read("select policy, recipients, many from sealed_for where many > 0")
        return [(policy, frozenset(recipients.split()), many) for policy, recipients, many in rows]

    def oldest_heartbeat(self) -> datetime | None:
        """Return when the most silent of the runs that go on showed that it lives; None when nothing runs."""
        found = self._read("select min(heartbeat_at) as at from runs where state = 'running'")
        return parse_utc(found[0]["at"]) if found[0]["at"] else None

    def totals(self, subject: str) -> dict[str, int]:
        """Return how many there ever were, also of what was trimmed."""
        found = self._read("select name, many from totals where subject = ?", (subject,))
        return {row["name"]: row["many"] for row in found}

    def waiting(self, now: datetime) -> tuple[int, datetime | None]:
        """Return how many occurrences wait that could run now, and since when the first of them does."""
        found = self._read(
            "select count(*), min(not_before_at) from occurrences where state = 'due' and not_before_at <= ?",
            (format_utc(now),),
        )
        count, since = found[0]
        return count, parse_utc(since) if since else None

    def newest_event_id(self) -> int:
        """Return the number of the newest event, 0 when there is none."""
        return int(self._read("select coalesce(max(event_id), 0) as n from events")[0]["n"])

    def events_after(self, event_id: int, limit: int) -> list[CatalogEvent]:
        """Return the events after that one, oldest first."""
        found = self._read(
            "select event_id, at, name, facts from events where event_id > ? order by event_id limit ?",
            (event_id, limit),
        )
        return [event_of(row) for row in found]


@cache
def _names(joined: str | None) -> tuple[str, ...]:
    return tuple(sorted((joined or "").split()))
