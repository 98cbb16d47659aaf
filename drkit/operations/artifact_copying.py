"""Copying one artifact's sealed bytes into other stores, compared with its signed digests while they move."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from drkit import bucket
from drkit.errors import DrkitError, IntegrityError, StoreError
from drkit.model import ArtifactEntry, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import TrustedManifest, open_sealed, read_recorded
from drkit.operations.prune_locks import lock_as_planned
from drkit.operations.repository import join_repository
from drkit.operations.sealed_copy import copy_sealed
from drkit.stores import Store


def copy_to_all(
    workplace: Workplace, entry: ArtifactEntry, store_names: Sequence[str], reporter: Reporter
) -> tuple[ArtifactEntry, dict[str, float]]:
    """Copy an artifact to every store named; return it with those, and the seconds at which each copy was there.

    All are tried before the first failure is raised, with the stores that do have the artifact by then.
    """
    failures: list[StoreError | IntegrityError] = []
    took_s, began_s = dict[str, float](), time.monotonic()
    first = workplace.stores[entry.stores[0]]
    for name in store_names:
        try:
            join_repository(first, workplace.stores[name])
            with reporter.progress(f"copy {name}", entry.manifest.stored_bytes) as progress:
                entry = copy_artifact(workplace, entry, name, progress.advance)
        except (StoreError, IntegrityError) as error:
            failures.append(error)
        else:
            took_s[name] = time.monotonic() - began_s
    if failures:
        raise type(failures[0])(
            f"artifact {entry.manifest.artifact_id} is committed in {', '.join(entry.stores)}, but a copy failed:"
            f" {failures[0].message}",
            details=failures[0].details,
            hints=["drkit store copy"],
        )
    return entry, took_s


def copy_artifact(
    workplace: Workplace, entry: ArtifactEntry, store_name: str, advance: Callable[[int], object]
) -> ArtifactEntry:
    """Copy one artifact into another store, in write order, and return it with that store among its own.

    The bytes are compared with the signed digests while they move, so damage is not copied on: the next store is tried,
    and the first error raised when none is left. The manifest comes last: it stands for what is there.
    """
    target = workplace.stores[store_name]
    sources = [workplace.stores[name] for name in entry.stores if name != store_name]
    trusted = _read_manifest(workplace, sources, entry)
    for item in entry.manifest.objects:
        opening = partial(_open_object, trusted, item)
        copy_sealed(sources, target, item, opening, advance)
    key = bucket.manifest_key(entry.manifest.policy, entry.manifest.artifact_id)
    target.put(bucket.signature_key(key), [trusted.signature])
    target.put(key, [trusted.data])
    lock_as_planned(workplace, workplace.policies.get(entry.manifest.policy), entry.manifest, store_name)
    copied = dataclasses.replace(entry, stores=tuple(dict.fromkeys((*entry.stores, store_name))))
    workplace.catalog.index_artifact(copied)
    workplace.catalog.verified.forget(entry.manifest.artifact_id, store_name)
    return copied


def _open_object(trusted: TrustedManifest, item: ObjectRecord, store: Store) -> AbstractContextManager[Iterator[bytes]]:
    return open_sealed(store, trusted.manifest, item)


def _read_manifest(workplace: Workplace, sources: Sequence[Store], entry: ArtifactEntry) -> TrustedManifest:
    failure: DrkitError | None = None
    for source in sources:
        try:
            return read_recorded(source, workplace.signers, entry)
        except (IntegrityError, StoreError) as error:
            failure = failure or error
    assert failure is not None
    raise failure
