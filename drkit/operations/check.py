"""`drkit check`, the reading half: what the stores, the catalog and the past runs say. `judgement` decides about it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from drkit.catalog import Catalog, EvidenceEntry
from drkit.catalog.holds import HoldEntry
from drkit.model import ArtifactEntry, Finding, Run
from drkit.operations.inventory import StoreInventory, take_inventory
from drkit.operations.log_audit import LogLink
from drkit.reading_plan import ReadingFact
from drkit.signing import Signer
from drkit.stores import Store


@dataclass(frozen=True)
class LogSummary:
    """How the log of one policy stands: its end, what is wrong with it, and for how long some is not stored.

    ``exposed`` is what `drkit serve` on this host saw a moment ago, None when it does not run here. ``links`` are of
    the manifests of every store, None where one could not be read or is not believed: then nothing is known missing.
    """

    restorable_to_at: datetime | None
    findings: tuple[Finding, ...]
    exposed: timedelta | None
    links: Sequence[LogLink] | None = None


@dataclass(frozen=True)
class Observed:
    """What was found: in the stores, in the catalog, the last backup run and the log of each policy.

    ``readings`` sum up when the copies of a policy were read, ``damaged`` are subject and store of those that were not
    sound then.
    """

    inventories: Mapping[str, StoreInventory]
    remembered: Sequence[ArtifactEntry]
    remembered_evidence: Sequence[EvidenceEntry]
    last_runs: Mapping[str, Run]
    logs: Mapping[str, LogSummary] = field(default_factory=dict)
    holds: Sequence[HoldEntry] = ()
    readings: Mapping[str, ReadingFact] = field(default_factory=dict)
    damaged: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @property
    def policies(self) -> set[str]:
        """Return the policies that the stores or the catalog know."""
        return _policies(self.inventories, self.remembered)


def gather(
    stores: Mapping[str, Store], signers: Sequence[Signer], catalog: Catalog, policies: Collection[str] | None = None
) -> Observed:
    """Read what `judge` needs to know of ``policies`` (None: of every policy in the stores or the catalog).

    A store that cannot be reached is part of the result. Raise CatalogError only.
    """
    inventories = take_inventory(stores, signers, policies)
    remembered = [entry for entry in catalog.artifacts() if policies is None or entry.manifest.policy in policies]
    records = [item for item in catalog.evidence_entries() if policies is None or item.record["policy"] in policies]
    last_runs: dict[str, Run] = {}
    for policy in policies if policies is not None else _policies(inventories, remembered):
        for run in catalog.runs(policy=policy, kind="backup", limit=1):
            last_runs[policy] = run
    holds = [hold for hold in catalog.holds.entries() if policies is None or hold.policy in policies]
    asked = policies if policies is not None else _policies(inventories, remembered)
    damaged = {name: found for name in asked if (found := _damaged(catalog, name, inventories))}
    return Observed(inventories, remembered, records, last_runs, holds=holds, damaged=damaged)


def _damaged(catalog: Catalog, policy: str, inventories: Mapping[str, StoreInventory]) -> list[tuple[str, str]]:
    """Return subject and store of the copies whose last reading found damage, of those that are still there."""
    readings = catalog.verified.readings(policy)
    return sorted(place for place, reading in readings.items() if not reading.sound and place[1] in inventories)


def _policies(inventories: Mapping[str, StoreInventory], remembered: Iterable[ArtifactEntry]) -> set[str]:
    keys = (key for inventory in inventories.values() for key in inventory.objects)
    return {key.split("/")[1] for key in keys} | {entry.manifest.policy for entry in remembered}
