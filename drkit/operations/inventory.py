"""What the stores really hold: objects listed, documents read and verified. `rebuild` and `check` start from it.

Nothing here fails because of what is in a store: whatever is unsigned, damaged or strange becomes a finding, and only
what passed every check is handed on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from drkit import bucket
from drkit.canonical import parse_json
from drkit.chain import Link, manifest_link, tombstone_link
from drkit.errors import IntegrityError, StoreError, StoreMissing
from drkit.model import Finding, Manifest, Tombstone
from drkit.operations.repository import find_repo_id
from drkit.retention_documents import Hold, LogTombstone, Release, standing
from drkit.signing import (
    EVIDENCE_NAMESPACE,
    MANIFEST_NAMESPACE,
    TOMBSTONE_NAMESPACE,
    Signer,
    Trust,
    verify,
    verify_moment,
)
from drkit.stores import ObjectInfo, Store, read_object
from drkit.units import parse_utc

_READERS = 8
"""Documents are small and far away: what counts is the number of requests in flight."""


@dataclass(frozen=True)
class StoredArtifact:
    """A verified manifest in one store, in its own place."""

    store: str
    manifest: Manifest
    sha256: str


@dataclass(frozen=True)
class StoredEvidence:
    """A verified evidence record in one store."""

    store: str
    policy: str
    record: Mapping[str, Any]
    sha256: str


@dataclass
class StoreInventory:
    """What one store holds of the policies asked for; ``findings`` are per policy, ``""`` for the store as a whole.

    ``error`` is set when the store could not be listed: then nothing is known of it, and nothing may be concluded from
    what it lacks. ``links`` and ``tombstones`` are of the chain, per policy; ``graves`` are the tombstones' documents,
    also those that explain nothing because their artifact is held.
    """

    name: str
    repo_id: str | None = None
    error: StoreError | None = None
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    artifacts: list[StoredArtifact] = field(default_factory=list)
    evidence: list[StoredEvidence] = field(default_factory=list)
    links: dict[str, list[Link]] = field(default_factory=dict)
    tombstones: dict[str, list[Link]] = field(default_factory=dict)
    graves: dict[str, list[Tombstone]] = field(default_factory=dict)
    log_graves: dict[str, list[LogTombstone]] = field(default_factory=dict)
    holds: dict[str, list[Hold]] = field(default_factory=dict)
    releases: dict[str, list[Release]] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)

    def decisions(self, policy: str) -> list[str]:
        """Return the keys of the trusted documents over keeping and removing."""
        return [
            *(bucket.tombstone_key(policy, item.artifact_id) for item in self.graves.get(policy, ())),
            *(bucket.hold_key(policy, item.hold_id) for item in self.holds.get(policy, ())),
            *(bucket.release_key(policy, item.hold_id) for item in self.releases.get(policy, ())),
            *(bucket.log_tombstone_key(policy, item.tombstone_id) for item in self.log_graves.get(policy, ())),
        ]

    def report(self, policy: str, finding: Finding) -> None:
        """Note a finding."""
        self.findings.setdefault(policy, []).append(finding)


def take_inventory(
    stores: Mapping[str, Store], signers: Sequence[Signer], policies: Collection[str] | None = None
) -> dict[str, StoreInventory]:
    """List the stores and read every manifest, tombstone and evidence record of ``policies`` (None: of all)."""
    inventories = {name: _inventory(store, signers, policies) for name, store in stores.items()}
    _spare_the_held(list(inventories.values()))
    return inventories


def _spare_the_held(inventories: Sequence[StoreInventory]) -> None:
    """Leave out the tombstones of what is held in any store: it has to be there, so nothing explains that it is not."""
    held: dict[str, set[str]] = defaultdict(set)
    for policy in {policy for inventory in inventories for policy in inventory.holds}:
        holds = (hold for inventory in inventories for hold in inventory.holds.get(policy, ()))
        releases = [item for inventory in inventories for item in inventory.releases.get(policy, ())]
        held[policy] = {hold.artifact_id for hold in standing(holds, releases)}
    for inventory in inventories:
        for policy, links in inventory.tombstones.items():
            inventory.tombstones[policy] = [link for link in links if link.artifact_id not in held[policy]]


def _inventory(store: Store, signers: Sequence[Signer], policies: Collection[str] | None) -> StoreInventory:
    inventory = StoreInventory(store.name)
    try:
        inventory.repo_id = _repo_id(store, inventory)
        prefixes = [bucket.POLICIES_PREFIX] if policies is None else [f"{bucket.POLICIES_PREFIX}{p}/" for p in policies]
        for prefix in prefixes:
            inventory.objects.update((item.key, item) for item in store.list(prefix))
        _read_documents(store, signers, inventory)
        _check_recovery(store, signers, inventory)
        _check_trust(store, signers, inventory)
    except StoreError as error:
        return StoreInventory(store.name, error=error)
    return inventory


def _check_recovery(store: Store, signers: Sequence[Signer], inventory: StoreInventory) -> None:
    """Report a changed RECOVERY.md: people type what it says, on a bad day and in a hurry."""
    where = f"{bucket.RECOVERY_KEY} in store {store.name}"
    try:
        _signed(store, bucket.RECOVERY_KEY, where, MANIFEST_NAMESPACE, signers)
    except StoreMissing:
        if inventory.repo_id is not None:
            message = f"{where} is missing"
            inventory.report("", Finding("recovery-untrusted", where, message, "copy it back from another store"))
    except IntegrityError as error:
        inventory.report("", Finding("recovery-untrusted", where, error.message, "do not follow it; " + _ASK_WHO_WROTE))


def _check_trust(store: Store, signers: Sequence[Signer], inventory: StoreInventory) -> None:
    """Report a trust document that names a signer whom the site does not know: it decides nothing, but misleads."""
    pinned = {signer.key_id for signer in signers}
    for item in store.list(bucket.TRUST_PREFIX):
        where = f"{item.key} in store {store.name}"
        try:
            document = Trust.from_bytes(read_object(store, item.key), where)
        except StoreMissing:
            continue
        except IntegrityError as error:
            inventory.report("", Finding("trust-strange", where, error.message, _ASK_WHO_WROTE))
            continue
        if document.kind == "signer" and document.key_id not in pinned:
            message = f"{where} names a signer that is not in the list of allowed signers: {document.key_id}"
            inventory.report("", Finding("trust-strange", where, message, _ASK_WHO_WROTE))


def read_tombstones(store: Store, signers: Sequence[Signer], policy: str) -> list[Link]:
    """Read a policy's tombstones; one that is not believed explains nothing and is left out."""
    inventory = StoreInventory(store.name)
    for prefix in (bucket.tombstones_prefix(policy), bucket.holds_prefix(policy)):
        inventory.objects.update((item.key, item) for item in store.list(prefix))
    _read_documents(store, signers, inventory)
    _spare_the_held([inventory])
    return inventory.tombstones.get(policy, [])


def read_holds(store: Store, signers: Sequence[Signer], policy: str) -> tuple[list[Hold], list[Release]]:
    """Read a policy's holds and their releases; what is not believed holds nothing and ends nothing."""
    inventory = StoreInventory(store.name)
    inventory.objects.update((item.key, item) for item in store.list(bucket.holds_prefix(policy)))
    _read_documents(store, signers, inventory)
    return inventory.holds.get(policy, []), inventory.releases.get(policy, [])


def read_log_tombstones(store: Store, signers: Sequence[Signer], policy: str) -> list[LogTombstone]:
    """Read the tombstones of a policy's log; one that is not believed explains nothing and is left out."""
    inventory = StoreInventory(store.name)
    inventory.objects.update((item.key, item) for item in store.list(bucket.log_tombstones_prefix(policy)))
    _read_documents(store, signers, inventory)
    return inventory.log_graves.get(policy, [])


def _repo_id(store: Store, inventory: StoreInventory) -> str | None:
    try:
        # An empty store is what the first backup finds; one with backups in it and without this file is odd.
        return find_repo_id(store)
    except IntegrityError as error:
        where = f"{bucket.REPO_KEY} in store {store.name}"
        inventory.report("", Finding("repo-strange", where, error.message, _ASK_WHO_WROTE))
        return None


def _read_documents(store: Store, signers: Sequence[Signer], inventory: StoreInventory) -> None:
    """Read and verify the documents, several at a time; the results are taken in the order of their keys."""
    readers = [(key, reader) for key in sorted(inventory.objects) if (reader := _reader_of(key))]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="inventory") as pool:

        def read(item: tuple[str, _Reader]) -> tuple[str, Any]:
            key, reader = item
            what = f"{key} in store {store.name}"
            try:
                return key, reader.parse(_signed(store, key, what, reader.namespace, signers), what, signers)
            except StoreMissing:
                return key, None  # removed since the listing, as prune does
            except IntegrityError as error:
                return key, error

        for (key, reader), (_, value) in zip(readers, pool.map(read, readers), strict=True):
            policy = key.split("/")[1]
            if isinstance(value, IntegrityError):
                place = bucket.parse_manifest_key(key)
                hint = f"drkit verify {place[1]}" if place else _COMPARE
                finding = Finding(reader.code, f"{key} in store {store.name}", value.message, hint)
                inventory.report(policy, finding)
            elif value is not None:
                reader.keep(inventory, policy, key, value)


@dataclass(frozen=True)
class _Signed:
    data: bytes
    signer: Signer


@dataclass(frozen=True)
class _Reader:
    """How one kind of document is verified, parsed and kept."""

    code: str
    namespace: str
    parse: Callable[[_Signed, str, Sequence[Signer]], Any]
    keep: Callable[[StoreInventory, str, str, Any], None]


def _signed(store: Store, key: str, what: str, namespace: str, signers: Sequence[Signer]) -> _Signed:
    data = read_object(store, key)
    try:
        signature = read_object(store, bucket.signature_key(key))
    except StoreMissing:
        raise IntegrityError(f"{what} is not signed") from None
    return _Signed(data, verify(data, signature, namespace, signers, what=what))


def _parse_manifest(signed: _Signed, what: str, signers: Sequence[Signer]) -> tuple[Manifest, bytes]:
    manifest = Manifest.from_bytes(signed.data, what)
    verify_moment(signed.signer, MANIFEST_NAMESPACE, signers, what=what, at=manifest.ended_at)
    return manifest, signed.data


def _keep_manifest(inventory: StoreInventory, policy: str, key: str, value: tuple[Manifest, bytes]) -> None:
    manifest, data = value
    place = bucket.parse_manifest_key(key)
    where = f"{key} in store {inventory.name}"
    # A store that does not say which repository it is has at least to be one only.
    repo_id = inventory.repo_id or next((item.manifest.repo_id for item in inventory.artifacts), manifest.repo_id)
    if manifest.policy != policy:
        message = f"{where} is the manifest of another policy, {manifest.policy}"
    elif manifest.repo_id != repo_id:
        message = f"{where} belongs to another repository, {manifest.repo_id}; this one is {repo_id}"
    elif place != (policy, manifest.artifact_id):
        message = f"{where} is the manifest of another artifact, {manifest.artifact_id}"
    else:
        link = manifest_link(manifest, data, found_under=manifest.artifact_id)
        inventory.links.setdefault(policy, []).append(link)
        inventory.artifacts.append(StoredArtifact(inventory.name, manifest, link.sha256))
        return
    inventory.report(policy, Finding("manifest-misplaced", where, message, _ASK_WHO_WROTE))


def _parse_tombstone(signed: _Signed, what: str, signers: Sequence[Signer]) -> Tombstone:
    tombstone = Tombstone.from_bytes(signed.data, what)
    verify_moment(signed.signer, TOMBSTONE_NAMESPACE, signers, what=what, at=tombstone.removed_at)
    return tombstone


def _keep_tombstone(inventory: StoreInventory, policy: str, key: str, tombstone: Tombstone) -> None:
    where = f"{key} in store {inventory.name}"
    foreign = inventory.repo_id is not None and tombstone.repo_id != inventory.repo_id
    if tombstone.policy != policy or key != bucket.tombstone_key(policy, tombstone.artifact_id) or foreign:
        message = f"{where} is the tombstone of artifact {tombstone.artifact_id} of policy {tombstone.policy}"
        inventory.report(policy, Finding("tombstone-misplaced", where, message, _ASK_WHO_WROTE))
        return
    inventory.tombstones.setdefault(policy, []).append(tombstone_link(tombstone))
    inventory.graves.setdefault(policy, []).append(tombstone)


_Sparing = Hold | Release | LogTombstone


def _parse_hold(signed: _Signed, what: str, signers: Sequence[Signer]) -> _Sparing:
    kind = parse_json(signed.data, what).get("format")
    document: _Sparing
    if kind == "drkit-release":
        document = Release.from_bytes(signed.data, what)
        at = document.released_at
    else:
        document = Hold.from_bytes(signed.data, what)
        at = document.placed_at
    verify_moment(signed.signer, TOMBSTONE_NAMESPACE, signers, what=what, at=at)
    return document


def _parse_log_tombstone(signed: _Signed, what: str, signers: Sequence[Signer]) -> _Sparing:
    document = LogTombstone.from_bytes(signed.data, what)
    verify_moment(signed.signer, TOMBSTONE_NAMESPACE, signers, what=what, at=document.removed_at)
    return document


def _keep_sparing(inventory: StoreInventory, policy: str, key: str, document: _Sparing) -> None:
    """Keep a hold, a release or a tombstone of the log that lies in its own place."""
    if isinstance(document, Hold):
        place = bucket.hold_key(policy, document.hold_id)
        inventory_of: dict[str, list[Any]] = inventory.holds
    elif isinstance(document, Release):
        place = bucket.release_key(policy, document.hold_id)
        inventory_of = inventory.releases
    else:
        place = bucket.log_tombstone_key(policy, document.tombstone_id)
        inventory_of = inventory.log_graves
    foreign = inventory.repo_id is not None and document.repo_id != inventory.repo_id
    if document.policy != policy or key != place or foreign:
        message = f"{key} in store {inventory.name} was made for {place} of policy {document.policy}"
        inventory.report(policy, Finding("hold-misplaced", key, message, _ASK_WHO_WROTE))
        return
    inventory_of.setdefault(policy, []).append(document)


def _parse_evidence(signed: _Signed, what: str, signers: Sequence[Signer]) -> tuple[dict[str, Any], bytes]:
    record = parse_json(signed.data, what)
    try:
        ended_at: datetime = parse_utc(str(record["ended_at"]))
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{what}: field ended_at is missing or no moment") from error
    verify_moment(signed.signer, EVIDENCE_NAMESPACE, signers, what=what, at=ended_at)
    return record, signed.data


def _keep_evidence(inventory: StoreInventory, policy: str, key: str, value: tuple[dict[str, Any], bytes]) -> None:
    record, data = value
    where = f"{key} in store {inventory.name}"
    foreign = inventory.repo_id is not None and record.get("repo_id") not in (None, inventory.repo_id)
    if record.get("policy") != policy or key != bucket.evidence_key(policy, str(record.get("run_id"))) or foreign:
        message = f"{where} is the record of run {record.get('run_id')} of policy {record.get('policy')}"
        inventory.report(policy, Finding("evidence-misplaced", where, message, _ASK_WHO_WROTE))
        return
    digest = hashlib.sha256(data).hexdigest()
    inventory.evidence.append(StoredEvidence(inventory.name, policy, record, digest))


_MANIFEST = _Reader("manifest-untrusted", MANIFEST_NAMESPACE, _parse_manifest, _keep_manifest)
_TOMBSTONE = _Reader("tombstone-untrusted", TOMBSTONE_NAMESPACE, _parse_tombstone, _keep_tombstone)
_EVIDENCE = _Reader("evidence-untrusted", EVIDENCE_NAMESPACE, _parse_evidence, _keep_evidence)
_HOLD = _Reader("hold-untrusted", TOMBSTONE_NAMESPACE, _parse_hold, _keep_sparing)
_LOG_TOMBSTONE = _Reader("tombstone-untrusted", TOMBSTONE_NAMESPACE, _parse_log_tombstone, _keep_sparing)
_FOLDERS = {"tombstones": _TOMBSTONE, "holds": _HOLD, "log-tombstones": _LOG_TOMBSTONE}
_COMPARE = "compare it with the other stores before you trust this one"
_ASK_WHO_WROTE = "somebody put it there who is not drkit: compare with another store before you trust this one"


def _reader_of(key: str) -> _Reader | None:
    if bucket.parse_manifest_key(key):
        return _MANIFEST
    if bucket.parse_evidence_key(key):
        return _EVIDENCE
    segments = key.split("/")
    if len(segments) == 4 and key.endswith(".json"):
        return _FOLDERS.get(segments[2])
    return None
