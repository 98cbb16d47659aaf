"""Verifying the log without a server: one log manifest and the files that it lists, in one store."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from drkit import bucket
from drkit.errors import IntegrityError, KeyUnavailable, StoreMissing
from drkit.keys import KeyFile
from drkit.log_documents import SignedLog
from drkit.model import Finding, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import open_plain
from drkit.operations.log_copying import open_listed
from drkit.operations.stored_log import read_trusted_log
from drkit.reading_plan import StoredCopy
from drkit.stores import ObjectInfo, Store
from drkit.stream import Meter, drain


@dataclass(frozen=True)
class LogReading:
    """What was found of one log manifest and its files; ``sha256`` is that of the manifest, None for a damaged one."""

    sha256: str | None
    repo_id: str | None
    findings: tuple[Finding, ...]
    decrypted: bool


def stored_logs(store: Store, policy: str) -> Iterator[StoredCopy]:
    """Yield each log manifest of a policy in a store, with the bytes of the files between its first and last."""
    infos = list(store.list(bucket.logs_prefix(policy)))
    files = sorted(_files(infos))
    names = [(timeline, name) for timeline, name, _ in files]
    totals = list(accumulate((size for _, _, size in files), initial=0))
    for info in infos:
        place = bucket.parse_log_manifest_key(info.key)
        if place is not None:
            first = bisect_left(names, (place.timeline, place.first[:24]))
            last = bisect_right(names, (place.timeline, place.last[:24]))
            yield StoredCopy(policy, info.key, store.name, totals[last] - totals[first], info.modified_at)


def _files(infos: Iterable[ObjectInfo]) -> Iterator[tuple[int, str, int]]:
    for info in infos:
        parsed = bucket.parse_log_key(info.key)
        if parsed is not None:
            yield parsed[1], parsed[2][:24], info.size_bytes


def verify_log(
    workplace: Workplace, copy: StoredCopy, identities: Sequence[KeyFile], reporter: Reporter
) -> LogReading | None:
    """Read one log manifest and every file that it lists; decrypt and compare, if an identity fits.

    Return None when the manifest is gone since it was listed. Raise StoreError when the store cannot be reached: what
    was not read is not judged.
    """
    store = workplace.stores[copy.store]
    try:
        manifest, data = read_trusted_log(store, workplace.signers, copy.policy, copy.subject, SignedLog)
    except StoreMissing:
        return None
    except IntegrityError as error:
        return LogReading(None, None, (Finding("object-damaged", copy.subject, error.message),), decrypted=False)
    findings: list[Finding] = []
    keys = list(identities)
    with reporter.progress(f"log {copy.subject.rpartition('/')[2][:24]} {store.name}", copy.size_bytes) as progress:
        for record in manifest.files:
            try:
                _read_file(store, manifest, record, keys, Meter(progress.advance))
            except IntegrityError as error:
                findings.append(Finding("object-damaged", record.key, error.message))
    return LogReading(hashlib.sha256(data).hexdigest(), manifest.repo_id, tuple(findings), decrypted=bool(keys))


def _read_file(store: Store, manifest: SignedLog, record: ObjectRecord, keys: list[KeyFile], meter: Meter) -> None:
    """Read one file; ``keys`` are emptied by the first file that none of them opens, which is then read sealed."""
    if keys:
        try:
            with (
                open_listed(manifest, record, store, meter) as sealed,
                open_plain(sealed, record, [key.identity for key in keys]) as plain,
            ):
                drain(plain)
        except KeyUnavailable:
            keys.clear()
        else:
            return
    with open_listed(manifest, record, store) as sealed:
        drain(sealed)
