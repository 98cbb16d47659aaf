"""The catalog: an index of runs, artifacts and events. A cache: all that matters can be rebuilt from the stores.

This file is the contract; `sqlite` implements it for one host. Every method may raise CatalogError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from drkit.model import ArtifactEntry, Lease, Run, Scratch


class Catalog(Protocol):
    """Safe to use from several threads of one process and from several processes at once."""

    def start_run(self, run: Run) -> None:
        """Record a run before it does anything."""

    def beat(self, run_id: str, now: datetime) -> None:
        """Record that a run is alive."""

    def finish_run(self, run: Run) -> None:
        """Record how a run ended."""

    def runs(self, *, policy: str | None = None, kind: str | None = None, limit: int = 100) -> list[Run]:
        """Return runs, newest first."""

    def add_event(self, name: str, at: datetime, facts: Mapping[str, Any]) -> None:
        """Record one state change."""

    def acquire_lease(self, name: str, holder: str, ttl: timedelta, now: datetime) -> Lease:
        """Take a lease that is free, expired or already ours; raise Busy with its holder otherwise."""

    def renew_lease(self, lease: Lease, ttl: timedelta, now: datetime) -> Lease:
        """Extend a lease; raise Busy when somebody else took it meanwhile."""

    def release_lease(self, lease: Lease) -> None:
        """Give a lease back; no error when it is no longer ours. The fence number is kept."""

    def index_artifact(self, entry: ArtifactEntry) -> None:
        """Record an artifact, or add what is new about a known one (its stores, its details)."""

    def forget_artifact(self, artifact_id: str) -> None:
        """Remove an artifact from the index."""

    def artifacts(self, policy: str | None = None) -> list[ArtifactEntry]:
        """Return artifacts, newest first, without their details."""

    def artifact(self, prefix: str) -> ArtifactEntry:
        """Return the one artifact whose id starts with ``prefix``, with details; raise CatalogError for none or many."""

    def index_evidence(self, record: Mapping[str, Any], sha256: str, stores: Sequence[str]) -> None:
        """Record a drill or verification record that is stored."""

    def evidence(self, *, policy: str | None = None, artifact_id: str | None = None) -> list[dict[str, Any]]:
        """Return evidence records, newest first."""

    def add_scratch(self, scratch: Scratch) -> None:
        """Record a throw-away thing before it is made."""

    def remove_scratch(self, scratch_id: str) -> None:
        """Forget a throw-away thing that is gone."""

    def scratches(self) -> list[Scratch]:
        """Return throw-away things that are not yet gone."""

    def export(self) -> bytes:
        """Return what the stores say, canonically: artifacts and evidence, the same on every host."""

    def close(self) -> None:
        """Close the database."""
