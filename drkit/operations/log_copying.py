"""Copies of the log: the files that signed log manifests list, then the manifests, into every store of the policy.

What no signed manifest lists is not copied: nothing says what it should be. `drkit serve` lists it within a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from drkit import bucket
from drkit.errors import DrkitError, IntegrityError, StoreError, StoreMissing
from drkit.log_documents import SignedLog
from drkit.model import ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.copy_result import CopiedLog, CopyResult, NotCopied
from drkit.operations.inventory import read_log_tombstones
from drkit.operations.sealed_copy import copy_sealed
from drkit.operations.stored_log import read_trusted_log
from drkit.retention_documents import BuriedRun
from drkit.stores import Store, read_object
from drkit.stream import Meter, checked


@dataclass(frozen=True)
class _Listing:
    """What one store holds of a policy's log: the size of each file, and the manifests with their signatures."""

    files: Mapping[str, int]
    manifests: Collection[str]


@dataclass(frozen=True)
class _TrustedLog:
    manifest: SignedLog
    data: bytes
    signature: bytes


def copy_logs(workplace: Workplace, policy: str, names: Sequence[str], reporter: Reporter, result: CopyResult) -> None:
    """Bring every listed log file that one of the stores has to the others; raise StoreError when one cannot be listed.

    Only the manifests are read that some store lacks, or lacks a file of. They go in the order in which they were
    made, so that what a cut leaves behind is a log without a gap.
    """
    listings = {name: _list_log(workplace.stores[name], policy) for name in names}
    everything = set().union(*(listing.files for listing in listings.values()))
    lacking = {name: everything - listing.files.keys() for name, listing in listings.items()}
    buried = _buried_runs(workplace, policy, names)
    for key in _in_order(set().union(*(listing.manifests for listing in listings.values()))):
        for name in names:
            lacks = key not in listings[name].manifests or _covers_any(key, lacking[name])
            if lacks and name not in result.given_up and not _is_buried(key, buried):
                _copy_one(workplace, (policy, key, name), listings, reporter, result)


def _list_log(store: Store, policy: str) -> _Listing:
    sizes = {info.key: info.size_bytes for info in store.list(bucket.logs_prefix(policy))}
    manifests = {key for key in sizes if bucket.parse_log_manifest_key(key) and bucket.signature_key(key) in sizes}
    return _Listing({key: size for key, size in sizes.items() if bucket.parse_log_key(key)}, manifests)


def _in_order(keys: Collection[str]) -> list[str]:
    """Return keys of log manifests, oldest first."""
    return sorted(keys, key=lambda key: (_place(key).manifest_id, key))


def _place(key: str) -> bucket.LogManifestKey:
    place = bucket.parse_log_manifest_key(key)
    assert place is not None
    return place


def _buried_runs(workplace: Workplace, policy: str, names: Sequence[str]) -> list[BuriedRun]:
    """Return what tombstones explain: a store that still has it was out of reach when it was removed elsewhere."""
    graves = [
        grave for name in names for grave in read_log_tombstones(workplace.stores[name], workplace.signers, policy)
    ]
    return [run for grave in graves for run in grave.runs]


def _is_buried(manifest_key: str, buried: Sequence[BuriedRun]) -> bool:
    place = _place(manifest_key)
    return any(run.timeline == place.timeline and run.first_id <= place.manifest_id <= run.last_id for run in buried)


def _covers_any(manifest_key: str, files: Collection[str]) -> bool:
    """Tell whether a manifest may list one of these files, by the names in its key."""
    place = _place(manifest_key)
    for key in files:
        stored = bucket.parse_log_key(key)
        if stored and stored[1] == place.timeline and place.first[:24] <= stored[2][:24] <= place.last[:24]:
            return True
    return False


def _copy_one(
    workplace: Workplace,
    named: tuple[str, str, str],
    listings: Mapping[str, _Listing],
    reporter: Reporter,
    result: CopyResult,
) -> None:
    """Complete one manifest in one store; what is wrong becomes a failure by its key, and the next one has its turn."""
    policy, key, name = named
    sources = [workplace.stores[other] for other in listings if other != name]
    try:
        found = _read_sound(workplace, policy, key, [other for other in listings if key in listings[other].manifests])
        is_listed = key in listings[name].manifests
        wanted = [item for item in found.manifest.files if not is_listed or item.key not in listings[name].files]
        if not wanted and is_listed:
            return
        size_bytes = sum(item.stored_bytes for item in wanted)
        with reporter.progress(f"log {key.rpartition('/')[2][:24]} to {name}", size_bytes) as progress:
            _complete(sources, workplace.stores[name], found, wanted, progress.advance)
        if not is_listed:
            workplace.stores[name].put(bucket.signature_key(key), [found.signature])
            workplace.stores[name].put(key, [found.data])
    except (IntegrityError, StoreError) as error:
        result.fail(NotCopied(policy, error, key, name))
    else:
        workplace.catalog.verified.forget(key, name)
        result.logs.append(CopiedLog(policy, key, name, len(wanted), size_bytes))


def _read_sound(workplace: Workplace, policy: str, key: str, holders: Sequence[str]) -> _TrustedLog:
    """Read a log manifest where it is sound; raise the first error when it is nowhere."""
    failure: DrkitError | None = None
    for name in holders:
        store = workplace.stores[name]
        try:
            manifest, data = read_trusted_log(store, workplace.signers, policy, key, SignedLog)
            return _TrustedLog(manifest, data, read_object(store, bucket.signature_key(key)))
        except (IntegrityError, StoreError) as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _complete(
    sources: Sequence[Store],
    target: Store,
    found: _TrustedLog,
    wanted: Sequence[ObjectRecord],
    advance: Callable[[int], object],
) -> None:
    for record in wanted:
        copy_sealed(sources, target, record, partial(open_listed, found.manifest, record), advance)


@contextmanager
def open_listed(
    manifest: SignedLog, record: ObjectRecord, store: Store, meter: Meter | None = None
) -> Iterator[Iterator[bytes]]:
    """Read the stored bytes of a listed file, compared at the end with what was signed.

    Raise IntegrityError, also when the file is missing: a signed manifest names it.
    """
    what = f"log file {record.part} in store {store.name}"
    version_id = record.version_id if store.name == manifest.written_to else None
    try:
        with store.open(record.key, version_id=version_id) as chunks:
            yield checked(
                chunks, meter or Meter(), size_bytes=record.stored_bytes, sha256=record.stored_sha256, what=what
            )
    except StoreMissing as error:
        raise IntegrityError(f"{what} is missing, and a signed log manifest names it") from error
