"""Copies in further stores: the sealed bytes move, the database is not read again and nothing is decrypted.

Records of drills are copied as well, with their signatures: an auditor who is given one store must find them all there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drkit import bucket
from drkit.errors import Busy, DrkitError, IntegrityError, StoreError
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import TrustedManifest, open_sealed, read_manifest
from drkit.operations.evidence import StoredRecord, read_record
from drkit.operations.repository import ensure_repository, join_repository
from drkit.operations.running import recorded_run
from drkit.operations.selection import find_artifacts
from drkit.policy import Policy
from drkit.stores import Store
from drkit.stream import prefetch


def copy_artifact(
    workplace: Workplace, entry: ArtifactEntry, store_name: str, advance: Callable[[int], object]
) -> ArtifactEntry:
    """Copy one artifact into another store, in write order, and return it with that store among its own.

    The bytes are compared with the manifest while they move, so damage is not copied on: the next store is tried, and
    the first error raised when none is left. What an interrupted copy left is found to be the same and kept.
    """
    target = workplace.stores[store_name]
    sources = [workplace.stores[name] for name in entry.stores if name != store_name]
    trusted = _read_manifest(workplace, sources, entry.manifest)
    for item in entry.manifest.objects:
        _copy_object(sources, target, entry.manifest, item, advance)
    key = bucket.manifest_key(entry.manifest.policy, entry.manifest.artifact_id)
    target.put(bucket.signature_key(key), [trusted.signature])
    target.put(key, [trusted.data])
    copied = dataclasses.replace(entry, stores=tuple(dict.fromkeys((*entry.stores, store_name))))
    workplace.catalog.index_artifact(copied)
    return copied


def _read_manifest(workplace: Workplace, sources: Sequence[Store], manifest: Manifest) -> TrustedManifest:
    failure: DrkitError | None = None
    for source in sources:
        try:
            return read_manifest(source, workplace.signers, manifest.policy, manifest.artifact_id)
        except (IntegrityError, StoreError) as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _copy_object(
    sources: Sequence[Store],
    target: Store,
    manifest: Manifest,
    item: ObjectRecord,
    advance: Callable[[int], object],
) -> None:
    failure: DrkitError | None = None
    for source in sources:
        reading = _Reading(advance)
        try:
            with open_sealed(source, manifest, item) as chunks, prefetch(chunks) as ahead:
                target.put(item.key, reading.watch(ahead))
        except (IntegrityError, StoreError) as error:
            if reading.is_fine:
                raise
            failure = failure or error
        else:
            return
    assert failure is not None
    raise failure


class _Reading:
    """Tells whether an error came from reading, which another store may do better, or from writing."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance
        self.is_fine = False

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.is_fine = True
            self._advance(len(chunk))
            yield chunk
            self.is_fine = False
        self.is_fine = True


@dataclass(frozen=True)
class Copied:
    """One copy that was made."""

    policy: str
    artifact_id: str
    store: str
    size_bytes: int


@dataclass(frozen=True)
class CopiedRecord:
    """A drill's record that was copied, with its signature."""

    policy: str
    run_id: str
    store: str


@dataclass(frozen=True)
class NotCopied:
    """A copy that could not be made, of an artifact or of the record of a run.

    Without either the whole store failed, without a store the whole policy.
    """

    policy: str
    error: DrkitError
    artifact_id: str = ""
    store: str = ""
    run_id: str = ""


@dataclass
class CopyResult:
    """What a catch-up did; ``complete`` counts the artifacts that lacked no copy."""

    copied: list[Copied] = field(default_factory=list)
    records: list[CopiedRecord] = field(default_factory=list)
    failed: list[NotCopied] = field(default_factory=list)
    complete: int = 0


def catch_up(workplace: Workplace, policies: Sequence[Policy], reporter: Reporter) -> CopyResult:
    """Make every copy that the policies promise and that is missing; go on after a failure, and report it."""
    result = CopyResult()
    for policy in policies:
        if len(policy.stores) < 2:
            continue
        try:
            _catch_up(workplace, policy, reporter, result)
        except (StoreError, IntegrityError, Busy) as error:
            if all(item.error is not error for item in result.failed):
                result.failed.append(NotCopied(policy.policy, error))
    return result


def _catch_up(workplace: Workplace, policy: Policy, reporter: Reporter, result: CopyResult) -> None:
    """Complete one policy; raise the first failure once all was tried, so that the run is recorded as failed."""
    copied, failed = len(result.copied), len(result.failed)
    with recorded_run(workplace.catalog, workplace.clock, "copy", policy.policy) as running:
        ensure_repository(workplace, policy.stores)
        usable = [policy.stores[0], *_joined(workplace, policy, result)]
        found = find_artifacts(workplace, policy.policy)
        for entry in reversed(found.entries):
            missing = [name for name in usable if name not in entry.stores]
            if missing and entry.manifest_sha256 not in found.buried:
                _complete(workplace, entry, missing, reporter, result)
            else:
                result.complete += 1
        _copy_records(workplace, policy, usable, result)
        running.outcome = {"copied": len(result.copied) - copied, "failed": len(result.failed) - failed}
        for failure in result.failed[failed:]:
            raise failure.error


def _joined(workplace: Workplace, policy: Policy, result: CopyResult) -> Iterator[str]:
    """Yield the further stores that can be used; public keys go both ways, because the first may be the new one."""
    first = workplace.stores[policy.stores[0]]
    for name in policy.stores[1:]:
        try:
            join_repository(first, workplace.stores[name])
            join_repository(workplace.stores[name], first)
        except (StoreError, IntegrityError) as error:
            result.failed.append(NotCopied(policy.policy, error, store=name))
        else:
            yield name


def _complete(
    workplace: Workplace, entry: ArtifactEntry, missing: Sequence[str], reporter: Reporter, result: CopyResult
) -> None:
    manifest = entry.manifest
    for name in missing:
        try:
            with reporter.progress(f"{manifest.artifact_id[:10]} to {name}", manifest.stored_bytes) as progress:
                entry = copy_artifact(workplace, entry, name, progress.advance)
        except (StoreError, IntegrityError) as error:
            result.failed.append(NotCopied(manifest.policy, error, manifest.artifact_id, name))
        else:
            result.copied.append(Copied(manifest.policy, manifest.artifact_id, name, manifest.stored_bytes))


def _copy_records(workplace: Workplace, policy: Policy, names: Sequence[str], result: CopyResult) -> None:
    """Bring every record of a drill that one of the stores has to the others."""
    held = {name: _records_in(workplace.stores[name], policy.policy) for name in names}
    for run_id in sorted(set().union(*held.values())):
        holders = [name for name in names if run_id in held[name]]
        missing = [name for name in names if run_id not in held[name]]
        if missing:
            _copy_record(workplace, (policy.policy, run_id), holders, missing, result)


def _records_in(store: Store, policy: str) -> set[str]:
    """Return the runs whose record is there with its signature."""
    keys = {found.key for found in store.list(bucket.evidence_prefix(policy))}
    whole = (bucket.parse_evidence_key(key) for key in keys if bucket.signature_key(key) in keys)
    return {named[1] for named in whole if named is not None}


def _copy_record(
    workplace: Workplace, named: tuple[str, str], holders: Sequence[str], missing: Sequence[str], result: CopyResult
) -> None:
    policy, run_id = named
    try:
        found = _read_record(workplace, named, holders)
    except (IntegrityError, StoreError) as error:
        result.failed += [NotCopied(policy, error, store=name, run_id=run_id) for name in missing]
        return
    key = bucket.evidence_key(policy, run_id)
    copied = []
    for name in missing:
        try:
            workplace.stores[name].put(bucket.signature_key(key), [found.signature])
            workplace.stores[name].put(key, [found.data])
        except StoreError as error:
            result.failed.append(NotCopied(policy, error, store=name, run_id=run_id))
        else:
            copied.append(name)
    result.records += [CopiedRecord(policy, run_id, name) for name in copied]
    digest = hashlib.sha256(found.data).hexdigest()
    workplace.catalog.index_evidence(found.record, digest, copied)


def _read_record(workplace: Workplace, named: tuple[str, str], holders: Sequence[str]) -> StoredRecord:
    """Read a record where it is sound; raise the first error when it is nowhere."""
    failure: DrkitError | None = None
    for name in holders:
        try:
            return read_record(workplace.stores[name], workplace.signers, *named)
        except (IntegrityError, StoreError) as error:
            failure = failure or error
    assert failure is not None
    raise failure
