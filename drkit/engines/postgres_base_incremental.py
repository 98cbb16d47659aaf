"""Incremental base backups: what changed since another base (PostgreSQL 17 and newer).

A restore of one needs all that it builds on, so what would make it worthless is refused by name before a byte is read.
Where only a full base is right, because the server's history or pages are others now, a full one is taken (T28, T30).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drkit.engines import ParentBase
from drkit.engines.postgres_base_facts import BaseFacts
from drkit.engines.postgres_client import Endpoint
from drkit.errors import SourceError
from drkit.units import CHUNK_BYTES

OLDEST_INCREMENTAL_MAJOR = 17
NOT_READY = "55000"
"""SQLSTATE object_not_in_prerequisite_state: what the server says of summaries that are missing or late."""

_FULL_BASE = "drkit backup POLICY --method base   (a full one)"


def check_incremental_server(endpoint: Endpoint, facts: BaseFacts) -> None:
    """Raise SourceError for a server that takes no incremental base backups."""
    if facts.major < OLDEST_INCREMENTAL_MAJOR:
        raise SourceError(
            f"PostgreSQL {facts.version} at {endpoint.server} takes no incremental base backups: they came with"
            f" {OLDEST_INCREMENTAL_MAJOR}",
            hints=[_FULL_BASE],
        )
    if facts.settings.get("summarize_wal") != "on":
        raise SourceError(
            f"{endpoint.server} runs with summarize_wal = off, so it does not know what changed since the last base",
            hints=["alter system set summarize_wal = on;  then: select pg_reload_conf();", f"then {_FULL_BASE}"],
        )


def check_same_cluster(endpoint: Endpoint, parent: ParentBase, system_identifier: str) -> None:
    """Raise SourceError when the parent is of another cluster."""
    if parent.system_identifier != system_identifier:
        raise SourceError(
            f"base {parent.artifact_id} is of another cluster than the one at {endpoint.server}",
            details=[
                f"its system identifier is {parent.system_identifier}, the server's is {system_identifier}",
            ],
            hints=["check the policy's target.url", f"if the server was made anew: {_FULL_BASE}"],
        )


def reason_for_full(facts: BaseFacts, parent: ParentBase, timeline: int) -> str:
    """Return why nothing can be built on the parent although it is sound, or the empty string."""
    if parent.timeline != timeline:
        # Summaries of a timeline that was left can cover WAL that never was replayed (T30).
        return f"the server is on timeline {timeline} now, base {parent.artifact_id} is of {parent.timeline}"
    if parent.checksums != facts.checksums:
        now, then = ("on", "off") if facts.checksums else ("off", "on")
        return f"page checksums are {now} now and were {then} in base {parent.artifact_id}"
    if parent.degraded:
        return f"base {parent.artifact_id} holds damaged pages"
    return ""


def not_ready(endpoint: Endpoint, parent: ParentBase, words: str) -> SourceError:
    """Explain why the server cannot say what changed since the parent."""
    return SourceError(
        f"{endpoint.server} cannot tell what changed since base {parent.artifact_id}",
        details=[words],
        hints=[
            _FULL_BASE,
            "raise wal_summary_keep_time above the time between two bases, and keep summarize_wal on",
            "on a standby: wait for its next restartpoint",
        ],
    )


def read_manifest(path: Path) -> Iterator[bytes]:
    """Yield the parent's backup manifest."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
