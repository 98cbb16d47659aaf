"""Finding artifacts and reading them: nothing is used before its signature and its place are right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from drkit import age, bucket
from drkit.canonical import parse_json
from drkit.errors import IntegrityError, KeyUnavailable, RecoveryGap, StoreError, StoreMissing
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Workplace
from drkit.signing import MANIFEST_NAMESPACE, Signer, verify
from drkit.stores import Store, read_object
from drkit.stream import Meter, checked, decompress, prefetch
from drkit.units import format_moment


@dataclass(frozen=True)
class TrustedManifest:
    """A manifest whose signature is a pinned signer's and whose place is its own."""

    manifest: Manifest
    data: bytes
    signature: bytes

    @property
    def sha256(self) -> str:
        """Return the digest that the chain and the catalog know it by."""
        return hashlib.sha256(self.data).hexdigest()


def read_manifest(store: Store, signers: Sequence[Signer], policy: str, artifact_id: str) -> TrustedManifest:
    """Read and verify one manifest.

    Raise StoreMissing when there is none, IntegrityError when it is unsigned, changed, signed by a stranger or lies in
    a place that is not its own.
    """
    key = bucket.manifest_key(policy, artifact_id)
    what = f"the manifest of artifact {artifact_id} in store {store.name}"
    data = read_object(store, key)
    try:
        signature = read_object(store, bucket.signature_key(key))
    except StoreMissing as error:
        raise IntegrityError(f"{what} is not signed") from error
    verify(data, signature, MANIFEST_NAMESPACE, signers, what=what)
    manifest = Manifest.from_bytes(data, what)
    verify(data, signature, MANIFEST_NAMESPACE, signers, what=what, at=manifest.ended_at)
    if (manifest.policy, manifest.artifact_id) != (policy, artifact_id):
        raise IntegrityError(f"{what} is that of artifact {manifest.artifact_id} of policy {manifest.policy}")
    prefix = bucket.artifact_prefix(policy, artifact_id)
    for item in manifest.objects:
        if item.key != bucket.part_key(policy, artifact_id, item.part) or not item.key.startswith(prefix):
            raise IntegrityError(f"{what} names an object that is not its own: {item.key}")
    return TrustedManifest(manifest, data, signature)


@dataclass(frozen=True)
class PolicyArtifacts:
    """What is known of a policy's artifacts.

    ``entries`` are in a reachable store, newest first; ``vanished`` are in the catalog only; ``refused`` says which
    manifests were not believed and why, ``unreachable`` which stores could not be asked.
    """

    entries: list[ArtifactEntry]
    vanished: list[ArtifactEntry]
    refused: list[IntegrityError]
    unreachable: list[StoreError]


def find_artifacts(workplace: Workplace, policy: str) -> PolicyArtifacts:
    """List the stores, believe what the catalog already verified, verify and index what is new.

    Restoring therefore needs no catalog and no policy file. A store that cannot be reached is reported, not fatal, as
    long as another one can be.
    """
    known = {entry.manifest.artifact_id: entry for entry in workplace.catalog.artifacts(policy)}
    found: dict[str, list[str]] = {}
    refused: list[IntegrityError] = []
    unreachable: list[StoreError] = []
    for name, store in workplace.stores.items():
        try:
            keys = [bucket.parse_manifest_key(item.key) for item in store.list(bucket.artifacts_prefix(policy))]
        except StoreError as error:
            unreachable.append(error)
            continue
        for artifact_id in (key[1] for key in keys if key):
            try:
                if artifact_id not in known or name not in known[artifact_id].stores:
                    known[artifact_id] = _index(workplace, store, policy, artifact_id)
            except IntegrityError as error:
                refused.append(error)
            else:
                found.setdefault(artifact_id, []).append(name)
    if unreachable and len(unreachable) == len(workplace.stores):
        raise unreachable[0]
    entries = [entry for artifact_id, entry in known.items() if artifact_id in found]
    vanished = [entry for artifact_id, entry in known.items() if artifact_id not in found]
    return PolicyArtifacts(_newest_first(entries), _newest_first(vanished), refused, unreachable)


def _newest_first(entries: list[ArtifactEntry]) -> list[ArtifactEntry]:
    return sorted(entries, key=lambda entry: (entry.manifest.covers.to_at, entry.manifest.artifact_id), reverse=True)


def _index(workplace: Workplace, store: Store, policy: str, artifact_id: str) -> ArtifactEntry:
    trusted = read_manifest(store, workplace.signers, policy, artifact_id)
    workplace.catalog.index_artifact(ArtifactEntry(trusted.manifest, trusted.sha256, (store.name,)))
    return workplace.catalog.artifact(artifact_id)


def choose_artifact(
    found: PolicyArtifacts, policy: str, *, artifact_id: str | None = None, at: datetime | None = None
) -> ArtifactEntry:
    """Pick one artifact: by the start of its id, the newest not after ``at``, or the newest.

    Raise RecoveryGap when there is none, saying what there is instead.
    """
    entries = found.entries
    if artifact_id is not None:
        matches = [entry for entry in entries if entry.manifest.artifact_id.startswith(artifact_id.upper())]
        if len(matches) == 1:
            return matches[0]
        which = (
            f"no artifact of policy {policy} begins" if not matches else f"{len(matches)} artifacts of {policy} begin"
        )
        raise RecoveryGap(f"{which} with {artifact_id}", details=_refusals(found), hints=[f"drkit list {policy}"])
    if not entries:
        raise RecoveryGap(
            f"policy {policy} has no artifact that can be trusted in {_names(found)}",
            details=_refusals(found),
            hints=[f"drkit check {policy}", f"drkit backup {policy}"],
        )
    if at is None:
        return entries[0]
    earlier = [entry for entry in entries if entry.manifest.covers.to_at <= at]
    if not earlier:
        oldest = format_moment(entries[-1].manifest.covers.to_at)
        raise RecoveryGap(
            f"policy {policy} has no artifact that is not after {format_moment(at)}; the oldest is of {oldest}",
            details=_refusals(found),
            hints=[f"drkit list {policy}"],
        )
    return earlier[0]


def _names(found: PolicyArtifacts) -> str:
    return "any reachable store" if found.unreachable else "any store"


def _refusals(found: PolicyArtifacts) -> list[str]:
    return [f"not believed: {error.message}" for error in found.refused] + [
        f"not reached: {error.message}" for error in found.unreachable
    ]


def open_details(manifest: Manifest, identities: Sequence[KeyFile]) -> dict[str, Any]:
    """Decrypt what only key holders may read; raise KeyUnavailable naming the recipients, or IntegrityError."""
    what = f"the details of artifact {manifest.artifact_id}"
    keys = [key.identity for key in identities]
    try:
        plain = b"".join(age.decrypt([age.dearmor(manifest.details)], keys))
    except KeyUnavailable as error:
        tried = ", ".join(f"{key.name} ({key.fingerprint})" for key in identities) or "none"
        raise KeyUnavailable(
            f"cannot open artifact {manifest.artifact_id}: none of the {len(identities)} identities in reach fits",
            details=[f"it was sealed for {recipient_names(manifest)}", f"in reach: {tried}"],
            hints=["name the file of one of these: --identity FILE"],
        ) from error
    return parse_json(plain, what)


@contextmanager
def open_sealed(
    store: Store, manifest: Manifest, record: ObjectRecord, meter: Meter | None = None
) -> Iterator[Iterator[bytes]]:
    """Read the stored bytes of one object, compared at the end with what its manifest records.

    Raise IntegrityError, also when the object is missing: its manifest says that it is there.
    """
    what = f"object {record.key} in store {store.name}"
    try:
        with store.open(record.key, version_id=recorded_version(store, manifest, record)) as chunks:
            yield checked(
                chunks, meter or Meter(), size_bytes=record.stored_bytes, sha256=record.stored_sha256, what=what
            )
    except StoreMissing as error:
        raise IntegrityError(f"{what} is missing, and the manifest of {manifest.artifact_id} names it") from error


def recorded_version(store: Store, manifest: Manifest, record: ObjectRecord) -> str | None:
    """Return the version to ask for: the manifest records those of the store that it was first written to."""
    return record.version_id if store.name == manifest.written_to else None


@contextmanager
def open_plain(
    sealed: Iterator[bytes], record: ObjectRecord, identities: Sequence[age.Identity]
) -> Iterator[Iterator[bytes]]:
    """Decrypt and decompress one object in threads of its own; the plain bytes are compared at the end as well."""
    what = f"the content of object {record.key}"
    with prefetch(sealed) as ahead, prefetch(age.decrypt(ahead, identities)) as packed:
        yield checked(decompress(packed), Meter(), size_bytes=record.plain_bytes, sha256=record.plain_sha256, what=what)


def recipient_names(manifest: Manifest) -> str:
    """Say for whom an artifact was sealed."""
    return ", ".join(
        f"{item.name} ({item.fingerprint})" if item.name else item.fingerprint
        for item in manifest.encryption.recipients
    )


def store_order(workplace: Workplace, entry: ArtifactEntry) -> Mapping[str, Store]:
    """Return the stores that hold an artifact, in the site's order."""
    return {name: store for name, store in workplace.stores.items() if name in entry.stores}
