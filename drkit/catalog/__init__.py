"""The catalog: an index of runs, artifacts and events. A cache: all that matters can be rebuilt from the stores.

This file is the contract; `sqlite` implements it for one host. Every method may raise CatalogError.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # pydantic costs a list command a quarter of its time, and a list builds no documents
    from drkit.catalog.history import History
    from drkit.catalog.holds import Holds
    from drkit.catalog.measures import Measures
    from drkit.catalog.occurrences import OccurrenceLedger
    from drkit.catalog.outbox import Outbox
    from drkit.catalog.overview import Overview
    from drkit.catalog.signatures import Signatures
    from drkit.catalog.verified import Verified
    from drkit.catalog.workers import Workers
    from drkit.model import ArtifactEntry, Lease, Run, Scratch


class ArtifactRow(NamedTuple):
    """What a list shows of an artifact; ``verdict`` and ``level`` are of its newest drill, empty without one.

    ``degraded`` says that the source was found to be damaged when the artifact was taken. ``parent`` is the artifact
    that an incremental one holds the changes since, empty for a full one. ``held``: a hold keeps it; ``leaving``: a
    prune has marked it, and nothing holds it.
    """

    artifact_id: str
    policy: str
    engine: str
    method: str
    seq: int
    restorable_to_at: datetime
    stored_bytes: int
    plain_bytes: int
    stores: tuple[str, ...]
    verdict: str
    level: str
    degraded: bool = False
    parent: str = ""
    held: bool = False
    leaving: bool = False


@dataclass(frozen=True)
class EvidenceEntry:
    """A drill or verification record, the SHA-256 of its stored bytes, and the stores in which it was seen."""

    record: Mapping[str, Any]
    sha256: str
    stores: tuple[str, ...]


class Catalog(Protocol):
    """Safe to use from several threads of one process and from several processes at once."""

    @property
    def history(self) -> History:
        """Return the past, to be trimmed."""

    @property
    def holds(self) -> Holds:
        """Return what is known of holds."""

    @property
    def outbox(self) -> Outbox:
        """Return what people are to be told."""

    @property
    def measures(self) -> Measures:
        """Return what the catalog says in numbers."""

    def glance(self) -> AbstractContextManager[Measures]:
        """Lend measures of one moment, whatever is written meanwhile; nobody waits for who reads them."""

    @property
    def overview(self) -> Overview:
        """Return what tells how all policies stand."""

    @property
    def signatures(self) -> Signatures:
        """Return which signatures were verified on this host."""

    @property
    def verified(self) -> Verified:
        """Return what is known of when copies were read."""

    @property
    def workers(self) -> Workers:
        """Return who does what is due."""

    def start_run(self, run: Run) -> None:
        """Record a run before it does anything."""

    def beat(self, run_id: str, now: datetime) -> None:
        """Record that a run is alive."""

    def note_outcome(self, run_id: str, outcome: Mapping[str, Any]) -> None:
        """Record what is known so far of a run that goes on; no error when its start is not here."""

    def finish_run(self, run: Run) -> None:
        """Record how a run ended."""

    def runs(
        self, *, policy: str | None = None, kind: str | None = None, state: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Return runs, newest first."""

    def add_event(self, name: str, at: datetime, facts: Mapping[str, Any]) -> None:
        """Record one state change."""

    def acquire_lease(self, name: str, holder: str, ttl: timedelta, now: datetime) -> Lease:
        """Take a lease that is free, expired or already ours; raise Busy with its holder otherwise."""

    def renew_lease(self, lease: Lease, ttl: timedelta, now: datetime) -> Lease:
        """Extend a lease; raise Busy when somebody else took it meanwhile."""

    def lease(self, name: str) -> Lease | None:
        """Return who holds a lease, expired or not; None when nobody does."""

    def lease_of_run(self, run_id: str) -> Lease | None:
        """Return the lease that a run holds, expired or not; None when it holds none."""

    def release_lease(self, lease: Lease) -> None:
        """Give a lease back; no error when it is no longer ours. The fence number is kept."""

    def index_artifact(self, entry: ArtifactEntry) -> None:
        """Record an artifact, or add what is new about a known one (its stores, its details)."""

    def forget_artifact(self, artifact_id: str) -> None:
        """Remove an artifact from the index."""

    def artifacts(self, policy: str | None = None) -> list[ArtifactEntry]:
        """Return artifacts, newest first, without their details."""

    def artifact_rows(self, policy: str | None = None) -> list[ArtifactRow]:
        """Return what a list shows of artifacts, newest first; quick for ten thousand of them."""

    def artifact(self, prefix: str) -> ArtifactEntry:
        """Return the artifact whose id starts with ``prefix``, with details; raise CatalogError for none or many."""

    def index_evidence(self, record: Mapping[str, Any], sha256: str, stores: Sequence[str]) -> None:
        """Record a drill or verification record that is stored."""

    def evidence(self, *, policy: str | None = None, artifact_id: str | None = None) -> list[dict[str, Any]]:
        """Return evidence records, newest first."""

    def evidence_entries(self, *, policy: str | None = None) -> list[EvidenceEntry]:
        """Return evidence records with their digests and stores, newest first."""

    def replace_index(
        self, artifacts: Iterable[ArtifactEntry], evidence: Iterable[EvidenceEntry], forget: Collection[str]
    ) -> None:
        """Make artifacts and evidence what the stores say, in one step; all or nothing.

        What is given replaces what was known of it, its stores too; ``details`` that are known and not given are kept
        as long as the manifest is the same. ``forget`` names the artifact ids and evidence digests that no store has.
        What is in neither (another process has just indexed it) stays.
        """

    def add_scratch(self, scratch: Scratch) -> None:
        """Record a throw-away thing before it is made."""

    def remove_scratch(self, scratch_id: str) -> None:
        """Forget a throw-away thing that is gone."""

    def scratches(self) -> list[Scratch]:
        """Return throw-away things that are not yet gone."""

    def export(self) -> bytes:
        """Return what the stores say, canonically: artifacts and evidence, the same on every host."""

    @property
    def occurrences(self) -> OccurrenceLedger:
        """Return the ledger of what was due when."""

    def close(self) -> None:
        """Close the database."""
