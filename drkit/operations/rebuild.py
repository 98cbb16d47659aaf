"""`drkit catalog rebuild`: the catalog again, from the stores alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from drkit.catalog import EvidenceEntry, files
from drkit.catalog.holds import HoldEntry
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.errors import EXIT_PROBLEMS, CatalogError, IntegrityError, KeyUnavailable, StoreError
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Finding, Manifest
from drkit.operations.artifacts import open_details
from drkit.operations.holds import known_holds
from drkit.operations.inventory import StoredArtifact, StoreInventory, take_inventory
from drkit.signing import Signer
from drkit.stores import Store


@dataclass
class Rebuilt:
    """What a rebuild found; ``findings`` are per policy, ``""`` for a whole store or the catalog's file.

    ``opened`` counts the artifacts whose details an identity opened. ``forgotten`` are artifacts that the catalog knew
    and no store has. ``moved_aside`` is where the old file went, None when it was sound and was updated in place.
    """

    artifacts: int = 0
    evidence: int = 0
    opened: int = 0
    forgotten: tuple[str, ...] = ()
    moved_aside: Path | None = None
    findings: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))

    @property
    def exit_code(self) -> int:
        """Return 0, 8 when something in a store was not believed or is gone, 12 when something was left out."""
        codes = {finding.code for findings in self.findings.values() for finding in findings}
        if codes - {"store-unread", "catalog-lost"}:
            return IntegrityError.exit_code
        return EXIT_PROBLEMS if codes else 0


@dataclass(frozen=True)
class _Index:
    artifacts: Sequence[ArtifactEntry]
    evidence: Sequence[EvidenceEntry]
    holds: Sequence[HoldEntry]


def rebuild_catalog(
    path: Path,
    stores: Mapping[str, Store],
    signers: Sequence[Signer],
    now: datetime,
    *,
    identities: Sequence[KeyFile] = (),
) -> Rebuilt:
    """Index every verified manifest and evidence record of the stores; with identities, open their details too.

    A sound catalog is updated in one transaction, so processes that use it notice nothing, and its runs, leases and
    scratches stay. Any other file is moved aside, and only once the new one is complete. A store that cannot be read is
    a finding; what the catalog knew of it is kept. Raise StoreError when no store can be read: nothing is changed then.
    """
    rebuilt = Rebuilt()
    sound = files.is_usable(path)
    known = _known(path) if sound else {}
    inventories = take_inventory(stores, signers)
    unread = _note_unread(inventories, rebuilt)
    index = _index(inventories, rebuilt, identities)
    if sound:
        _update(path, index, known, unread, rebuilt)
    else:
        _replace(path, index, now, rebuilt)
    rebuilt.artifacts, rebuilt.evidence = len(index.artifacts), len(index.evidence)
    return rebuilt


def _known(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the artifacts and records known before the stores were listed, with their stores.

    Only these may be forgotten: what is indexed after the listing may be younger than it.
    """
    catalog = open_catalog(path)
    try:
        known = {row.artifact_id: row.stores for row in catalog.artifact_rows()}
        return known | {entry.sha256: entry.stores for entry in catalog.evidence_entries()}
    finally:
        catalog.close()


def _note_unread(inventories: Mapping[str, StoreInventory], rebuilt: Rebuilt) -> frozenset[str]:
    unread = {name: inventory.error for name, inventory in inventories.items() if inventory.error is not None}
    for name, error in unread.items():
        finding = Finding("store-unread", f"store {name}", error.message, f"drkit store probe {name}")
        rebuilt.findings[""].append(finding)
    if unread and len(unread) == len(inventories):
        first = next(iter(unread.values()))
        raise StoreError(
            "no store can be read, so there is nothing to rebuild the catalog from; it was not changed",
            details=[error.message for error in unread.values()],
            hints=first.hints or [f"drkit store probe {next(iter(unread))}"],
        ) from first
    return frozenset(unread)


def _index(inventories: Mapping[str, StoreInventory], rebuilt: Rebuilt, identities: Sequence[KeyFile]) -> _Index:
    stored: dict[str, list[StoredArtifact]] = defaultdict(list)
    evidence: dict[str, EvidenceEntry] = {}
    for inventory in inventories.values():
        for policy, findings in inventory.findings.items():
            rebuilt.findings[policy].extend(findings)
        for item in inventory.artifacts:
            stored[item.manifest.artifact_id].append(item)
        for record in inventory.evidence:
            seen = evidence.get(record.sha256, EvidenceEntry(record.record, record.sha256, ()))
            evidence[record.sha256] = replace(seen, stores=(*seen.stores, inventory.name))
    entries = [_entry(copies, rebuilt, identities) for _, copies in sorted(stored.items())]
    holds = [hold for inventory in inventories.values() for item in inventory.holds.values() for hold in item]
    releases = [
        release for inventory in inventories.values() for item in inventory.releases.values() for release in item
    ]
    return _Index(entries, [evidence[sha256] for sha256 in sorted(evidence)], known_holds(holds, releases, ()))


def _entry(copies: Sequence[StoredArtifact], rebuilt: Rebuilt, identities: Sequence[KeyFile]) -> ArtifactEntry:
    # Two signed manifests of one id should not be; which one is indexed must at least be the same on every host.
    chosen = min(copies, key=lambda item: item.sha256)
    manifest = chosen.manifest
    others = sorted({item.store for item in copies if item.sha256 != chosen.sha256})
    if others:
        message = f"artifact {manifest.artifact_id} has another manifest in {', '.join(others)} than in {chosen.store}"
        finding = Finding("chain-replay", manifest.artifact_id, message, f"drkit check {manifest.policy}")
        rebuilt.findings[manifest.policy].append(finding)
    details = _open_details(manifest, rebuilt, identities) if identities else None
    stores = tuple(sorted(item.store for item in copies if item.sha256 == chosen.sha256))
    return ArtifactEntry(manifest, chosen.sha256, stores, details)


def _open_details(manifest: Manifest, rebuilt: Rebuilt, identities: Sequence[KeyFile]) -> Mapping[str, Any] | None:
    try:
        details = open_details(manifest, identities)
    except KeyUnavailable:
        return None
    except IntegrityError as error:
        message = f"the details of artifact {manifest.artifact_id} cannot be opened: {error.message}"
        finding = Finding("details-damaged", manifest.artifact_id, message, f"drkit verify {manifest.artifact_id}")
        rebuilt.findings[manifest.policy].append(finding)
        return None
    rebuilt.opened += 1
    return details


def _update(
    path: Path, index: _Index, known: Mapping[str, tuple[str, ...]], unread: Collection[str], rebuilt: Rebuilt
) -> None:
    found = {entry.manifest.artifact_id for entry in index.artifacts} | {entry.sha256 for entry in index.evidence}
    gone = {name for name, stores in known.items() if name not in found and not set(stores) & set(unread)}
    artifacts = [_with_unread(entry, known.get(entry.manifest.artifact_id, ()), unread) for entry in index.artifacts]
    evidence = [_with_unread(entry, known.get(entry.sha256, ()), unread) for entry in index.evidence]
    catalog = open_catalog(path)
    try:
        policies = {row.artifact_id: row.policy for row in catalog.artifact_rows()}
        catalog.replace_index(artifacts, evidence, gone)
        catalog.holds.remember(index.holds)
    finally:
        catalog.close()
    rebuilt.forgotten = tuple(sorted(gone & set(policies)))
    for artifact_id in rebuilt.forgotten:
        policy = policies[artifact_id]
        message = f"artifact {artifact_id} was in the catalog and no store has it"
        rebuilt.findings[policy].append(Finding("artifact-gone", artifact_id, message, f"drkit check {policy}"))


def _with_unread(entry: Any, known: Iterable[str], unread: Collection[str]) -> Any:
    return replace(entry, stores=tuple(sorted({*entry.stores, *(set(known) & set(unread))})))


def _replace(path: Path, index: _Index, now: datetime, rebuilt: Rebuilt) -> None:
    with files.translated(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = files.draft_beside(path)
    try:
        catalog = SqliteCatalog(draft, files.connect(draft))
        try:
            catalog.replace_index(index.artifacts, index.evidence, ())
            catalog.holds.remember(index.holds)
        finally:
            catalog.close()
        lost = files.salvage(path, draft) if path.exists() else []
        rebuilt.moved_aside = files.move_aside(path, now)
        files.put_in_place(draft, path)
    except CatalogError:
        files.remove(draft)
        raise
    if lost:
        message = f"{', '.join(lost)} could not be read from the old catalog, which is kept as {rebuilt.moved_aside}"
        rebuilt.findings[""].append(Finding("catalog-lost", "the catalog", message, "drkit run list"))
