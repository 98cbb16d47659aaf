"""Reading artifacts: nothing is used before its signature and its place are right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from drkit import age, bucket
from drkit.canonical import parse_json
from drkit.errors import IntegrityError, KeyUnavailable, StoreMissing
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Workplace
from drkit.operations.repository import find_repo_id
from drkit.operations.signed import Form, read_signed
from drkit.signing import Signer
from drkit.stores import Store
from drkit.stream import Marks, Meter, checked, decompress, prefetch


class ForeignManifest(IntegrityError):
    """A manifest is of another repository than the store in which it lies says it is."""


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
    form = Form(Manifest.from_bytes, lambda manifest: manifest.ended_at)
    manifest, data, signature = read_signed(store, signers, key, what, form)
    if (manifest.policy, manifest.artifact_id) != (policy, artifact_id):
        raise IntegrityError(f"{what} is that of artifact {manifest.artifact_id} of policy {manifest.policy}")
    prefix = bucket.artifact_prefix(policy, artifact_id)
    for item in manifest.objects:
        if item.key != bucket.part_key(policy, artifact_id, item.part) or not item.key.startswith(prefix):
            raise IntegrityError(f"{what} names an object that is not its own: {item.key}")
    return TrustedManifest(manifest, data, signature)


def read_recorded(store: Store, signers: Sequence[Signer], entry: ArtifactEntry) -> TrustedManifest:
    """Read the manifest of a known artifact again, with all that `read_manifest` asks of it.

    Raise IntegrityError also when it is gone, is another one than was seen before, or is of another repository.
    """
    artifact_id = entry.manifest.artifact_id
    what = f"the manifest of artifact {artifact_id}"
    try:
        trusted = read_manifest(store, signers, entry.manifest.policy, artifact_id)
    except StoreMissing as error:
        raise IntegrityError(f"{what} is missing from store {store.name}") from error
    if trusted.sha256 != entry.manifest_sha256:
        raise IntegrityError(
            f"{what} in store {store.name} is not the one that was seen before:"
            f" {trusted.sha256[:12]}… instead of {entry.manifest_sha256[:12]}…"
        )
    require_repository(store, trusted.manifest, find_repo_id(store))
    return trusted


def require_repository(store: Store, manifest: Manifest, repo_id: str | None) -> None:
    """Raise ForeignManifest when a manifest is of another repository than the store it lies in (None: not known)."""
    if repo_id is not None and manifest.repo_id != repo_id:
        raise ForeignManifest(
            f"the manifest of artifact {manifest.artifact_id} in store {store.name} belongs to repository"
            f" {manifest.repo_id}, and {bucket.REPO_KEY} there says {repo_id}",
            hints=[f"drkit check {manifest.policy}   (somebody changed one of the two: compare with another store)"],
        )


def open_details(manifest: Manifest, identities: Sequence[KeyFile]) -> dict[str, Any]:
    """Decrypt what only key holders may read; raise KeyUnavailable naming the recipients, or IntegrityError."""
    what = f"the details of artifact {manifest.artifact_id}"
    keys = [key.identity for key in identities]
    try:
        plain = b"".join(age.decrypt([age.dearmor(manifest.details)], keys))
    except KeyUnavailable as error:
        tried = ", ".join(f"{key.name} ({key.fingerprint})" for key in identities) or "none"
        several = f"none of the {len(identities)} identities in reach fits"
        fits = several if len(identities) != 1 else "the only identity in reach does not fit"
        raise KeyUnavailable(
            f"cannot open artifact {manifest.artifact_id}: {fits}",
            details=[f"it was sealed for {recipient_names(manifest)}", f"in reach: {tried}"],
            hints=["name the file of one of these: --identity FILE"],
        ) from error
    except IntegrityError as error:
        raise IntegrityError(f"{what} cannot be read: {error.message}") from error
    return parse_json(plain, what)


@contextmanager
def open_sealed(
    store: Store, manifest: Manifest, record: ObjectRecord, meter: Meter | None = None
) -> Iterator[Iterator[bytes]]:
    """Read the stored bytes of one object, compared at the end with what its manifest records.

    Raise IntegrityError, also when the object is missing: its manifest says that it is there.
    """
    what = f"object {record.key} in store {store.name}"
    with _open_recorded(store, manifest, record, what) as chunks:
        yield checked(chunks, meter or Meter(), size_bytes=record.stored_bytes, sha256=record.stored_sha256, what=what)


@contextmanager
def reopen_sealed(store: Store, manifest: Manifest, record: ObjectRecord, marks: Marks) -> Iterator[Iterator[bytes]]:
    """Read an object again that `open_sealed` found right and ``marks`` noted: no byte passes that is another."""
    what = f"object {record.key} in store {store.name}"
    with _open_recorded(store, manifest, record, what) as chunks:
        yield marks.recall(chunks, what)


@contextmanager
def _open_recorded(store: Store, manifest: Manifest, record: ObjectRecord, what: str) -> Iterator[Iterator[bytes]]:
    try:
        with store.open(record.key, version_id=recorded_version(store, manifest, record)) as chunks:
            yield chunks
    except StoreMissing as error:
        raise IntegrityError(f"{what} is missing, and the manifest of {manifest.artifact_id} names it") from error


def recorded_version(store: Store, manifest: Manifest, record: ObjectRecord) -> str | None:
    """Return the version to ask for: the manifest records those of the store that it was first written to."""
    return record.version_id if store.name == manifest.written_to else None


@contextmanager
def open_plain(
    sealed: Iterator[bytes],
    record: ObjectRecord,
    identities: Sequence[age.Identity],
    meter: Meter | None = None,
    *,
    in_threads: bool = True,
) -> Iterator[Iterator[bytes]]:
    """Decrypt and decompress one object in a thread of its own; the plain bytes are compared at the end as well.

    Decryption takes next to no time, decompression and the digest about as much each: they are in two threads. Without
    ``in_threads`` all of it is in the reader's, which is less work where several objects are read at once.
    """
    what = f"the content of object {record.key}"
    ahead_of = prefetch if in_threads else nullcontext
    with ahead_of(sealed) as ahead, ahead_of(_named(decompress(age.decrypt(ahead, identities)), what)) as plain:
        yield checked(plain, meter or Meter(), size_bytes=record.plain_bytes, sha256=record.plain_sha256, what=what)


def _named(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Say of which object decryption and decompression speak."""
    try:
        yield from chunks
    except (IntegrityError, KeyUnavailable) as error:
        raise type(error)(f"{what} cannot be read: {error.message}") from error


def recipient_names(manifest: Manifest) -> str:
    """Say for whom an artifact was sealed."""
    return ", ".join(
        f"{item.name} ({item.fingerprint})" if item.name else item.fingerprint
        for item in manifest.encryption.recipients
    )


def store_order(workplace: Workplace, entry: ArtifactEntry) -> Mapping[str, Store]:
    """Return the stores that hold an artifact, in the site's order."""
    return {name: store for name, store in workplace.stores.items() if name in entry.stores}
