"""What the catalog says in numbers, for metrics and for those who look out for what is late."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from drkit.catalog.outbox import CatalogEvent, event_of
from drkit.units import format_utc, parse_utc

DURATION_BUCKETS_S = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True)
class NewestArtifact:
    """The newest artifact of one policy and method, how many there are, and in which stores it is."""

    policy: str
    method: str
    artifact_id: str
    restorable_to_at: datetime
    stored_bytes: int
    plain_bytes: int
    stores: tuple[str, ...]


@dataclass(frozen=True)
class LastRuns:
    """When runs of one policy and kind last succeeded, and how the newest one that ended did."""

    policy: str
    kind: str
    succeeded_at: datetime | None
    last_state: str
    last_duration_s: float


@dataclass(frozen=True)
class Durations:
    """How long backups of one policy took: how many within each of `DURATION_BUCKETS_S`, and in all."""

    policy: str
    within: tuple[int, ...]
    count: int
    sum_s: float


@dataclass(frozen=True)
class LastDrill:
    """The newest record of one drill of a policy."""

    policy: str
    drill: str
    level: str
    verdict: str
    ended_at: datetime
    rto_s: float | None


@dataclass(frozen=True)
class Restorable:
    """From which moment on a policy can be restored by an artifact, and up to which a drill has shown it."""

    policy: str
    from_at: datetime
    proven_to_at: datetime | None


class Measures(Protocol):
    """Reads only; what is of the future counts for nothing, because a clock was wrong."""

    def newest_artifacts(self, now: datetime, policies: Collection[str]) -> list[NewestArtifact]:
        """Return the newest artifact of every method of these policies."""

    def stored_sizes(self, policy: str, method: str, limit: int) -> list[int]:
        """Return the stored bytes of the newest artifacts, newest first."""

    def last_runs(self) -> list[LastRuns]:
        """Return every policy and kind of run."""

    def durations(self) -> list[Durations]:
        """Return how long the backups of every policy took."""

    def last_drills(self, policies: Collection[str]) -> list[LastDrill]:
        """Return the newest record of every drill of these policies."""

    def damaged_copies(self, policies: Collection[str]) -> list[tuple[str, str, str]]:
        """Return policy, subject and store of every copy that was damaged when it was read last."""

    def oldest_readings(self, until: datetime) -> dict[str, datetime]:
        """Return by policy when the copy that was read the longest ago was read, or made if it never was."""

    def restorable(self) -> list[Restorable]:
        """Return every policy that has artifacts."""

    def newest_heartbeat(self) -> datetime | None:
        """Return when a running run was last seen alive; None when nothing runs."""

    def occurrences(self) -> dict[str, int]:
        """Return how many moments of schedules are in each state of the ledger, or were before it was trimmed."""

    def waiting_since(self, now: datetime) -> list[datetime]:
        """Return since when each occurrence waits that could run now, oldest first."""

    def newest_event_id(self) -> int:
        """Return the number of the newest event, 0 when there is none."""

    def events_after(self, event_id: int, limit: int) -> list[CatalogEvent]:
        """Return the events after that one, oldest first."""


_NEWEST = """
    select a.policy, a.method, a.artifact_id, a.stored_bytes, a.plain_bytes, g.newest,
        (select group_concat(store, ' ') from artifact_stores s where s.artifact_id = a.artifact_id) as stores
    from (select policy, method, max(restorable_to_at) as newest from artifacts
            where restorable_to_at <= :now and policy in (select value from json_each(:policies))
            group by policy, method) g
        join artifacts a on a.policy = g.policy and a.method = g.method and a.restorable_to_at = g.newest
    order by a.artifact_id"""
_LAST_RUN = "select policy, kind, state, max(started_at)"
_SECONDS = "(julianday(ended_at) - julianday(started_at)) * 86400.0"
_WITHIN = ", ".join(f"sum({_SECONDS} <= {bound}) as within_{bound}" for bound in DURATION_BUCKETS_S)
_POLICY_SUMS = "select policy, count(*) as n"
_FROM_RUNS = "from runs where kind = 'backup' and state = 'succeeded' group by policy"
_DRILLS = """
    select policy, json_extract(record, '$.drill') as drill, level, verdict,
        json_extract(record, '$.rto_ms') as rto_ms, max(ended_at) as ended
    from evidence where kind = 'drill' and policy in (select value from json_each(:policies))
    group by policy, json_extract(record, '$.drill')"""
# A reading of the future counts as none, because a clock was wrong.
_OLDEST_READING = """
    select s.policy, min(case when s.read_at <= :until then s.read_at
        else (select a.restorable_to_at from artifacts a where a.artifact_id = s.artifact_id) end) as at
    from artifact_stores s group by s.policy"""
_RESTORABLE = """
    select a.policy, min(a.restorable_to_at) as first,
        (select max(json_extract(e.record, '$.restored_to_at')) from evidence e where e.policy = a.policy
            and e.kind = 'drill' and e.verdict like 'passed%' and e.level <> 'intact') as proven
    from artifacts a group by a.policy"""


class SqliteMeasures(Measures):
    """Measures of a SQLite catalog. In SQLite the bare columns beside one max() are those of its row."""

    def __init__(self, read: Callable[..., list[sqlite3.Row]]) -> None:
        self._read = read

    def newest_artifacts(self, now: datetime, policies: Collection[str]) -> list[NewestArtifact]:
        """Return the newest artifact of every method of these policies."""
        values = {"now": format_utc(now), "policies": json.dumps(list(policies))}
        newest = {(row["policy"], row["method"]): row for row in self._read(_NEWEST, values)}
        return [
            NewestArtifact(
                *(row["policy"], row["method"], row["artifact_id"], parse_utc(row["newest"])),
                *(row["stored_bytes"], row["plain_bytes"], tuple(sorted((row["stores"] or "").split()))),
            )
            for row in newest.values()
        ]

    def stored_sizes(self, policy: str, method: str, limit: int) -> list[int]:
        """Return the stored bytes of the newest artifacts, newest first."""
        found = self._read(
            "select stored_bytes from artifacts where policy = ? and method = ? order by restorable_to_at desc limit ?",
            (policy, method, limit),
        )
        return [row["stored_bytes"] for row in found]

    def last_runs(self) -> list[LastRuns]:
        """Return every policy and kind of run."""
        succeeded = {
            (row["policy"], row["kind"]): row["at"]
            for row in self._read(
                "select policy, kind, max(ended_at) as at from runs where state = 'succeeded' group by policy, kind"
            )
        }
        found = self._read(
            f"{_LAST_RUN}, {_SECONDS} as took from runs where ended_at is not null group by policy, kind"
        )
        return [
            LastRuns(
                row["policy"],
                row["kind"],
                parse_utc(at) if (at := succeeded.get((row["policy"], row["kind"]))) else None,
                row["state"],
                max(row["took"], 0.0),
            )
            for row in found
        ]

    def durations(self) -> list[Durations]:
        """Return how long the backups of every policy took."""
        return [
            Durations(
                row["policy"],
                tuple(row[f"within_{bound}"] for bound in DURATION_BUCKETS_S),
                row["n"],
                max(row["total"], 0.0),
            )
            for row in self._read(f"{_POLICY_SUMS}, sum({_SECONDS}) as total, {_WITHIN} {_FROM_RUNS}")
        ]

    def last_drills(self, policies: Collection[str]) -> list[LastDrill]:
        """Return the newest record of every drill of these policies."""
        return [
            LastDrill(
                *(row["policy"], row["drill"] or "", row["level"], row["verdict"], parse_utc(row["ended"])),
                rto_s=None if row["rto_ms"] is None else row["rto_ms"] / 1000,
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

    def oldest_readings(self, until: datetime) -> dict[str, datetime]:
        """Return by policy when the copy that was read the longest ago was read, or made if it never was."""
        found = self._read(_OLDEST_READING, {"until": format_utc(until)})
        return {row["policy"]: parse_utc(row["at"]) for row in found}

    def restorable(self) -> list[Restorable]:
        """Return every policy that has artifacts."""
        return [
            Restorable(row["policy"], parse_utc(row["first"]), parse_utc(row["proven"]) if row["proven"] else None)
            for row in self._read(_RESTORABLE)
        ]

    def newest_heartbeat(self) -> datetime | None:
        """Return when a running run was last seen alive; None when nothing runs."""
        found = self._read("select max(heartbeat_at) as at from runs where state = 'running'")
        return parse_utc(found[0]["at"]) if found[0]["at"] else None

    def occurrences(self) -> dict[str, int]:
        """Return how many moments of schedules are in each state of the ledger."""
        found = self._read(
            "select state, sum(n) as n from (select state, count(*) as n from occurrences group by state"
            " union all select state, many from former_occurrences) group by state"
        )
        return {row["state"]: row["n"] for row in found}

    def waiting_since(self, now: datetime) -> list[datetime]:
        """Return since when each occurrence waits that could run now, oldest first."""
        found = self._read(
            "select not_before_at from occurrences where state = 'due' and not_before_at <= ? order by not_before_at",
            (format_utc(now),),
        )
        return [parse_utc(row["not_before_at"]) for row in found]

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
