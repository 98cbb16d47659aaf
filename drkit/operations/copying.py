"""Copies in further stores: the sealed bytes move, the database is not read again and nothing is decrypted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drkit import bucket
from drkit.errors import DrkitError, IntegrityError
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import find_artifacts, open_sealed, read_manifest
from drkit.operations.repository import ensure_repository
from drkit.operations.running import recorded_run
from drkit.policy import Policy
from drkit.stores import Store
from drkit.stream import prefetch


def copy_artifact(
    workplace: Workplace, entry: ArtifactEntry, store_name: str, advance: Callable[[int], object]
) -> ArtifactEntry:
    """Copy one artifact into another store, in write order, and return it with that store among its own.

    The bytes are compared with the manifest while they move, so damage is not copied on: the next store is tried, and
    the IntegrityError raised when none is left. What an interrupted copy left is found to be the same and kept.
    """
    target = workplace.stores[store_name]
    sources = [workplace.stores[name] for name in entry.stores if name != store_name]
    policy, artifact_id = entry.manifest.policy, entry.manifest.artifact_id
    trusted = read_manifest(sources[0], workplace.signers, policy, artifact_id)
    for item in entry.manifest.objects:
        _copy_object(sources, target, entry.manifest, item, advance)
    key = bucket.manifest_key(policy, artifact_id)
    target.put(bucket.signature_key(key), [trusted.signature])
    target.put(key, [trusted.data])
    copied = dataclasses.replace(entry, stores=(*entry.stores, store_name))
    workplace.catalog.index_artifact(copied)
    return copied


def _copy_object(
    sources: Sequence[Store],
    target: Store,
    manifest: Manifest,
    item: ObjectRecord,
    advance: Callable[[int], object],
) -> None:
    damage: IntegrityError | None = None
    for source in sources:
        try:
            with open_sealed(source, manifest, item) as chunks, prefetch(chunks) as ahead:
                target.put(item.key, _counted(ahead, advance))
        except IntegrityError as error:
            damage = damage or error
        else:
            return
    assert damage is not None
    raise damage


def _counted(chunks: Iterable[bytes], advance: Callable[[int], object]) -> Iterator[bytes]:
    for chunk in chunks:
        advance(len(chunk))
        yield chunk


@dataclass
class CopyResult:
    """What a catch-up did: ``copied`` and ``failed`` are (artifact id, store name), the latter with its error."""

    copied: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, DrkitError]] = field(default_factory=list)
    complete: int = 0


def catch_up(workplace: Workplace, policies: Sequence[Policy], reporter: Reporter) -> CopyResult:
    """Make every copy that the policies promise and that is missing; go on after a failure, and report it."""
    result = CopyResult()
    for policy in policies:
        with recorded_run(workplace.catalog, workplace.clock, "copy", policy.policy) as running:
            before = len(result.copied)
            ensure_repository(workplace, policy.stores)
            for entry in find_artifacts(workplace, policy.policy).entries:
                _complete(workplace, policy, entry, reporter, result)
            running.outcome = {"copied": len(result.copied) - before}
    return result


def _complete(
    workplace: Workplace, policy: Policy, entry: ArtifactEntry, reporter: Reporter, result: CopyResult
) -> None:
    artifact_id = entry.manifest.artifact_id
    missing = [name for name in policy.stores if name not in entry.stores]
    for name in missing:
        try:
            with reporter.progress(f"{artifact_id[:10]} to {name}", entry.manifest.stored_bytes) as progress:
                entry = copy_artifact(workplace, entry, name, progress.advance)
        except DrkitError as error:
            result.failed.append((artifact_id, name, error))
        else:
            result.copied.append((artifact_id, name))
    result.complete += not missing
