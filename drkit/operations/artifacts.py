"""Finding artifacts and reading them: nothing is used before its signature and its place are right."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from ulid import ULID

from drkit import age, bucket
from drkit.canonical import parse_json
from drkit.errors import IntegrityError, KeyUnavailable, RecoveryGap, StoreError, StoreMissing, StoreUnavailable
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Workplace
from drkit.operations.inventory import read_tombstones
from drkit.operations.repository import find_repo_id
from drkit.signing import MANIFEST_NAMESPACE, Signer, verify
from drkit.stores import Store, read_object
from drkit.stream import Marks, Meter, checked, decompress, prefetch
from drkit.units import format_moment

_SHOWN_DOUBTS = 5


class ForeignManifest(IntegrityError):
    """A manifest is of another repository than the store in which it lies says it is."""


DUMP = "dump"
"""The method of artifacts that are loaded into a database; those of other methods become servers of their own."""


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


@dataclass(frozen=True)
class Refusal:
    """A manifest that was not believed: in whose place it lies, and why."""

    artifact_id: str
    store: str
    error: IntegrityError

    @property
    def message(self) -> str:
        """Return the reason."""
        return self.error.message


@dataclass(frozen=True)
class PolicyArtifacts:
    """What is known of a policy's artifacts.

    ``entries`` are in a reachable store, newest first, and their ``stores`` are where the manifest is right now;
    ``lost`` names the stores that had a copy of an entry once. ``vanished`` are in the catalog only. ``out_of_reach``
    are in stores that could not be asked, and ``unreachable`` says why not. ``refused`` are the manifests that were not
    believed.
    """

    entries: list[ArtifactEntry]
    vanished: list[ArtifactEntry]
    refused: list[Refusal]
    unreachable: list[StoreError]
    lost: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    out_of_reach: list[ArtifactEntry] = field(default_factory=list)
    read_tombstones: Callable[[], frozenset[str]] = frozenset

    @cached_property
    def buried(self) -> frozenset[str]:
        """Return the digests of the manifests that a signed tombstone explains; read only when somebody asks."""
        return self.read_tombstones()

    @property
    def unexplained(self) -> list[ArtifactEntry]:
        """Return the vanished ones that no tombstone explains."""
        return [entry for entry in self.vanished if entry.manifest_sha256 not in self.buried]


def find_artifacts(workplace: Workplace, policy: str) -> PolicyArtifacts:
    """List the stores, believe what the catalog already verified, verify and index what is new.

    Restoring therefore needs no catalog and no policy file. A store that cannot be reached is reported, not fatal, as
    long as another one can be.
    """
    known = {entry.manifest.artifact_id: entry for entry in workplace.catalog.artifacts(policy)}
    found: dict[str, list[str]] = {}
    refused: list[Refusal] = []
    unreachable: dict[str, StoreError] = {}
    for name, store in workplace.stores.items():
        try:
            keys = [bucket.parse_manifest_key(item.key) for item in store.list(bucket.artifacts_prefix(policy))]
            ids = [key[1] for key in keys if key]
            refused += _believe(workplace, store, policy, ids, known)
        except StoreError as error:
            unreachable[name] = error
            continue
        strange = {item.artifact_id for item in refused if item.store == name}
        for artifact_id in ids:
            if artifact_id not in strange:
                found.setdefault(artifact_id, []).append(name)
    if unreachable and len(unreachable) == len(workplace.stores):
        raise next(iter(unreachable.values()))
    result = _sorted_out(workplace, known, found, refused, unreachable)
    stores = [store for name, store in workplace.stores.items() if name not in unreachable]
    return dataclasses.replace(result, read_tombstones=lambda: _tombstones(stores, workplace.signers, policy))


def _sorted_out(
    workplace: Workplace,
    known: Mapping[str, ArtifactEntry],
    found: Mapping[str, list[str]],
    refused: list[Refusal],
    unreachable: Mapping[str, StoreError],
) -> PolicyArtifacts:
    entries, vanished, out_of_reach = [], [], []
    lost: dict[str, tuple[str, ...]] = {}
    refused_at = {(item.artifact_id, item.store) for item in refused}
    for artifact_id, entry in known.items():
        present = {*found.get(artifact_id, ()), *(set(entry.stores) & set(unreachable))}
        here = dataclasses.replace(entry, stores=tuple(name for name in entry.stores if name in present))
        if artifact_id in found:
            entries.append(here)
            gone = (set(entry.stores) & set(workplace.stores)) - present
            lost[artifact_id] = tuple(sorted(name for name in gone if (artifact_id, name) not in refused_at))
        elif present:
            out_of_reach.append(here)
        elif artifact_id not in {item.artifact_id for item in refused}:
            vanished.append(entry)
    return PolicyArtifacts(
        entries=_newest_first(entries),
        vanished=_newest_first(vanished),
        refused=refused,
        unreachable=list(unreachable.values()),
        lost={artifact_id: names for artifact_id, names in lost.items() if names},
        out_of_reach=_newest_first(out_of_reach),
    )


def _newest_first(entries: list[ArtifactEntry]) -> list[ArtifactEntry]:
    """Sort by moment, as far as clocks can be trusted: what names another as its parent was taken after it.

    Otherwise an artifact of a day on which a clock was a year ahead would be the newest one for a year.
    """
    not_after: dict[str, datetime] = {}

    def age(entry: ArtifactEntry) -> tuple[datetime, int, str]:
        manifest = entry.manifest
        at = min(manifest.covers.to_at, not_after.get(entry.manifest_sha256, manifest.covers.to_at))
        return at, manifest.seq, manifest.artifact_id

    for entry in sorted(entries, key=lambda entry: entry.manifest.seq, reverse=True):
        at = age(entry)[0]
        for parent in entry.manifest.parents:
            not_after[parent] = min(at, not_after.get(parent, at))
    return sorted(entries, key=age, reverse=True)


def _tombstones(stores: Sequence[Store], signers: Sequence[Signer], policy: str) -> frozenset[str]:
    return frozenset(link.sha256 for store in stores for link in read_tombstones(store, signers, policy))


def _believe(
    workplace: Workplace, store: Store, policy: str, ids: Sequence[str], known: dict[str, ArtifactEntry]
) -> list[Refusal]:
    """Verify and index the manifests of one store that are new to ``known``; return those that are not believed."""
    refused: list[Refusal] = []
    repository: str | None = None
    strange: IntegrityError | None = None
    try:
        repository = find_repo_id(store)
    except IntegrityError as error:
        strange = error
    for artifact_id in ids:
        try:
            if strange is not None:
                raise strange
            if artifact_id in known and store.name in known[artifact_id].stores:
                require_repository(store, known[artifact_id].manifest, repository)
            else:
                trusted = read_manifest(store, workplace.signers, policy, artifact_id)
                require_repository(store, trusted.manifest, repository)
                workplace.catalog.index_artifact(ArtifactEntry(trusted.manifest, trusted.sha256, (store.name,)))
                known[artifact_id] = workplace.catalog.artifact(artifact_id)
        except IntegrityError as error:
            refused.append(Refusal(artifact_id, store.name, error))
        else:
            # Where the bucket does not say which repository it is, its oldest manifest does.
            repository = repository or known[artifact_id].manifest.repo_id
    return refused


def require_repository(store: Store, manifest: Manifest, repo_id: str | None) -> None:
    """Raise ForeignManifest when a manifest is of another repository than the store it lies in (None: not known)."""
    if repo_id is not None and manifest.repo_id != repo_id:
        raise ForeignManifest(
            f"the manifest of artifact {manifest.artifact_id} in store {store.name} belongs to repository"
            f" {manifest.repo_id}, and {bucket.REPO_KEY} there says {repo_id}",
            hints=[f"drkit check {manifest.policy}   (somebody changed one of the two: compare with another store)"],
        )


def choose_artifact(
    found: PolicyArtifacts,
    policy: str,
    *,
    artifact_id: str | None = None,
    at: datetime | None = None,
    method: str | None = None,
) -> ArtifactEntry:
    """Pick one artifact: by the start of its id, the newest not after ``at``, or the newest.

    Without an id only those of ``method`` count, if it is given.

    Never an older one in silence: when a newer one is damaged or was deleted, raise IntegrityError, and the older one
    must be asked for by its id. Raise RecoveryGap when there is none, saying what there is instead.
    """
    if artifact_id is not None:
        return _choose_by_id(found, policy, artifact_id)
    candidates = [entry for entry in found.entries if method in (None, entry.manifest.method)]
    entries = [entry for entry in candidates if at is None or entry.manifest.covers.to_at <= at]
    chosen = entries[0] if entries else None
    _refuse_in_doubt(found, policy, chosen, at, method)
    if chosen is not None:
        return chosen
    if at is not None and candidates:
        oldest = format_moment(candidates[-1].manifest.covers.to_at)
        raise RecoveryGap(
            f"policy {policy} has no artifact that is not after {format_moment(at)}; the oldest is of {oldest}",
            details=_refusals(found),
            hints=[f"drkit list {policy}"],
        )
    _refuse_unread(found, policy)
    raise RecoveryGap(
        f"policy {policy} has no artifact that can be trusted in any store",
        details=_refusals(found),
        hints=[f"drkit check {policy}", f"drkit backup {policy}"],
    )


def _choose_by_id(found: PolicyArtifacts, policy: str, artifact_id: str) -> ArtifactEntry:
    prefix = artifact_id.upper()
    matches = [entry for entry in found.entries if entry.manifest.artifact_id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        _refuse_by_id(found, policy, prefix)
        _refuse_unread(found, policy)
    which = f"no artifact of policy {policy} begins" if not matches else f"{len(matches)} artifacts of {policy} begin"
    raise RecoveryGap(f"{which} with {artifact_id}", details=_refusals(found), hints=[f"drkit list {policy}"])


def _refuse_by_id(found: PolicyArtifacts, policy: str, prefix: str) -> None:
    """Raise when the artifact that is meant is there or was, and cannot be used."""
    hints = [f"drkit check {policy}", f"drkit list {policy}"]
    for refusal in found.refused:
        if refusal.artifact_id.startswith(prefix):
            raise IntegrityError(refusal.message, details=refusal.error.details, hints=hints) from refusal.error
    for entry in found.unexplained:
        if entry.manifest.artifact_id.startswith(prefix):
            raise IntegrityError(_gone(entry), hints=hints)
    for entry in found.out_of_reach:
        if entry.manifest.artifact_id.startswith(prefix):
            raise _out_of_reach(found, entry)


def _refuse_in_doubt(
    found: PolicyArtifacts, policy: str, chosen: ArtifactEntry | None, at: datetime | None, method: str | None
) -> None:
    """Raise when a newer artifact than ``chosen``, and not after ``at``, is or was there and cannot be used.

    Of what was not believed or is unknown the method is not known either, so it counts for every method.
    """
    vanished = (_gone(entry) for entry in found.unexplained if _is_newer(entry, chosen, at, method))
    doubts = [*_newer_refused(found, chosen, at), *vanished, *_gaps(found, chosen, at)]
    if doubts:
        newer = "the artifact of that moment" if at else "the newest artifact"
        raise IntegrityError(
            f"{newer} of policy {policy} cannot be used: {doubts[0]}",
            details=[*_shortened(doubts[1:]), *(f"not reached: {error.message}" for error in found.unreachable)],
            hints=[f"drkit check {policy}", *_older(policy, chosen)],
        )
    for entry in found.out_of_reach:
        if _is_newer(entry, chosen, at, method):
            raise _out_of_reach(found, entry, _older(policy, chosen))


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN_DOUBTS
    return [*lines[:_SHOWN_DOUBTS], *([f"and {more} more, older ones"] if more > 0 else [])]


def _older(policy: str, chosen: ArtifactEntry | None) -> list[str]:
    if chosen is None:
        return []
    manifest = chosen.manifest
    moment = format_moment(manifest.covers.to_at)
    return [f"drkit restore {policy} --artifact {manifest.artifact_id}   (the newest that is sound, of {moment})"]


def _newer_refused(found: PolicyArtifacts, chosen: ArtifactEntry | None, at: datetime | None) -> Iterator[str]:
    usable = {entry.manifest.artifact_id for entry in found.entries}
    for refusal in sorted(found.refused, key=lambda item: item.artifact_id, reverse=True):
        started_at = _moment_of(refusal.artifact_id)
        newer = chosen is None or refusal.artifact_id > chosen.manifest.artifact_id
        not_after = at is None or started_at is None or started_at <= at
        if refusal.artifact_id not in usable and newer and not_after:
            yield refusal.message


def _moment_of(artifact_id: str) -> datetime | None:
    """Return the moment that an artifact's id begins with; None for what is no id of ours."""
    try:
        return ULID.from_str(artifact_id).datetime
    except ValueError:
        return None


def _gone(entry: ArtifactEntry) -> str:
    manifest = entry.manifest
    return (
        f"artifact {manifest.artifact_id} of {format_moment(manifest.covers.to_at)} was in {', '.join(entry.stores)}"
        " and is gone without a tombstone"
    )


def _is_newer(entry: ArtifactEntry, chosen: ArtifactEntry | None, at: datetime | None, method: str | None) -> bool:
    if method not in (None, entry.manifest.method):
        return False
    to_at = entry.manifest.covers.to_at
    return (chosen is None or to_at > chosen.manifest.covers.to_at) and (at is None or to_at <= at)


def _out_of_reach(found: PolicyArtifacts, entry: ArtifactEntry, hints: Sequence[str] = ()) -> StoreError:
    names = ", ".join(entry.stores)
    return StoreUnavailable(
        f"artifact {entry.manifest.artifact_id} is in {names} only, which cannot be reached",
        details=[error.message for error in found.unreachable],
        hints=[*(f"drkit store probe {name}" for name in entry.stores), *hints],
    )


def _gaps(found: PolicyArtifacts, chosen: ArtifactEntry | None, at: datetime | None) -> Iterator[str]:
    """Find, between ``chosen`` and the artifacts after ``at``, a manifest that the chain names and nobody knows.

    The newest one can vanish without leaving a hole; only a catalog remembers that.
    """
    if at is None:
        return
    everything = [*found.entries, *found.vanished, *found.out_of_reach]
    known = {entry.manifest_sha256 for entry in everything}
    lowest = chosen.manifest.seq if chosen else 0
    for entry in found.entries:
        manifest = entry.manifest
        missing = set(manifest.parents) - known
        if missing and manifest.covers.to_at > at and manifest.seq > lowest + 1 and not missing <= found.buried:
            yield (
                f"an artifact before {manifest.artifact_id} of {format_moment(manifest.covers.to_at)} is gone:"
                " its chain names a manifest that no store has"
            )


def _refuse_unread(found: PolicyArtifacts, policy: str) -> None:
    """Raise StoreUnavailable when what is not found may be in a store that could not be read."""
    if found.unreachable:
        raise StoreUnavailable(
            f"policy {policy} has no such artifact in the stores that can be read, and not all of them can",
            details=_refusals(found),
            hints=[hint for error in found.unreachable for hint in error.hints] or ["drkit check"],
        )


def _refusals(found: PolicyArtifacts) -> list[str]:
    return [f"not believed: {refusal.message}" for refusal in found.refused] + [
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
    sealed: Iterator[bytes], record: ObjectRecord, identities: Sequence[age.Identity]
) -> Iterator[Iterator[bytes]]:
    """Decrypt and decompress one object in threads of its own; the plain bytes are compared at the end as well."""
    what = f"the content of object {record.key}"
    with prefetch(sealed) as ahead, prefetch(age.decrypt(ahead, identities)) as packed:
        plain = _named(decompress(packed), what)
        yield checked(plain, Meter(), size_bytes=record.plain_bytes, sha256=record.plain_sha256, what=what)


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
