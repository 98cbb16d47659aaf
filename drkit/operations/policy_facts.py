"""What was found, sorted by policy: what stores hold, what the catalog remembers, what a policy lets one expect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from drkit import bucket
from drkit.catalog import EvidenceEntry
from drkit.catalog.holds import HoldEntry
from drkit.chain import Link
from drkit.model import ArtifactEntry, Manifest, Run
from drkit.operations.check import LogSummary, Observed
from drkit.operations.expectations import Expectation
from drkit.operations.inventory import StoredArtifact, StoredEvidence, StoreInventory
from drkit.reading_plan import ReadingFact

CLOCK_MARGIN = timedelta(minutes=5)
"""How far two clocks may differ before an artifact is of the future."""

Folders = Mapping[str, Mapping[str, str]]
"""Artifact id -> object name -> key of what lies under one policy's artifacts."""

T = TypeVar("T")


@dataclass(frozen=True)
class PolicyFacts:
    """The facts of one policy; ``unread`` names the stores that could not be read, of which nothing is known."""

    policy: str
    now: datetime
    expectation: Expectation | None = None
    last_run: Run | None = None
    log: LogSummary | None = None
    unread: frozenset[str] = frozenset()
    inventories: Sequence[StoreInventory] = ()
    remembered: Mapping[str, ArtifactEntry] = field(default_factory=dict)
    remembered_evidence: Sequence[EvidenceEntry] = ()
    copies: Mapping[str, Sequence[StoredArtifact]] = field(default_factory=dict)
    evidence: Mapping[str, StoredEvidence] = field(default_factory=dict)
    tombstones: Mapping[str, Link] = field(default_factory=dict)
    folders: Mapping[str, Folders] = field(default_factory=dict)
    holds: Sequence[HoldEntry] = ()
    reading: ReadingFact | None = None
    damaged: Sequence[tuple[str, str]] = ()

    @property
    def is_readable(self) -> bool:
        """Tell whether any of the policy's stores could be read."""
        wanted = set(self.expectation.stores) if self.expectation else set()
        return not wanted or bool(wanted - self.unread)

    def dated(self, sound: Sequence[Manifest]) -> list[Manifest]:
        """Return those that are of the past: one of the future must not make everything look punctual until then."""
        return [manifest for manifest in sound if manifest.covers.to_at <= self.now + CLOCK_MARGIN]

    def is_being_copied(self, manifest: Manifest) -> bool:
        """Tell whether the backup that made an artifact still runs: its copies are on their way."""
        run = self.last_run
        return run is not None and run.state == "running" and manifest.ended_at >= run.started_at


def sort_facts(observed: Observed, expectations: Mapping[str, Expectation], now: datetime) -> list[PolicyFacts]:
    """Return the facts of each policy that is expected or was found, in order of names."""
    unread = frozenset(name for name, inventory in observed.inventories.items() if inventory.error is not None)
    inventories = [item for name, item in observed.inventories.items() if name not in unread]
    remembered = _grouped((entry.manifest.policy, entry) for entry in observed.remembered)
    records = _grouped((str(entry.record.get("policy")), entry) for entry in observed.remembered_evidence)
    copies = _grouped((item.manifest.policy, item) for inventory in inventories for item in inventory.artifacts)
    evidence = _grouped((item.policy, item) for inventory in inventories for item in inventory.evidence)
    holds = _grouped((hold.policy, hold) for hold in observed.holds)
    folders = {inventory.name: _folders(inventory) for inventory in inventories}
    return [
        PolicyFacts(
            policy=policy,
            now=now,
            expectation=expectations.get(policy),
            last_run=observed.last_runs.get(policy),
            log=observed.logs.get(policy),
            unread=unread,
            inventories=inventories,
            remembered={entry.manifest.artifact_id: entry for entry in remembered.get(policy, ())},
            remembered_evidence=records.get(policy, ()),
            copies=_grouped((item.manifest.artifact_id, item) for item in copies.get(policy, ())),
            evidence={item.sha256: item for item in evidence.get(policy, ())},
            tombstones={
                stone.artifact_id: stone for inventory in inventories for stone in inventory.tombstones.get(policy, ())
            },
            holds=holds.get(policy, ()),
            reading=observed.readings.get(policy),
            damaged=observed.damaged.get(policy, ()),
            folders={name: found.get(policy, {}) for name, found in folders.items()},
        )
        for policy in sorted({*expectations, *observed.policies})
    ]


def _grouped(items: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    sorted_out: dict[str, list[T]] = {}
    for name, item in items:
        sorted_out.setdefault(name, []).append(item)
    return sorted_out


def _folders(inventory: StoreInventory) -> dict[str, Folders]:
    policies: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for key in inventory.objects:
        parsed = bucket.parse_artifact_key(key)
        if parsed is not None:
            policies[parsed[0]][parsed[1]][parsed[2]] = key
    return {policy: dict(folders) for policy, folders in policies.items()}
