"""The chain of a policy's log manifests in one store, oldest first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic

from drkit import bucket
from drkit.errors import IntegrityError, StoreMissing
from drkit.log_documents import LogManifest, LogRecord
from drkit.operations.stored_log import Log, read_trusted_log
from drkit.signing import Signer
from drkit.stores import Store

_READERS = 8


@dataclass(frozen=True)
class TrustedLog(Generic[Log]):
    """A log manifest whose signature is a pinned signer's and whose place is its own; ``sha256`` is of its bytes."""

    key: str
    manifest: Log
    sha256: str


def list_log_manifests(store: Store, policy: str) -> list[str]:
    """Return the keys of a policy's log manifests, oldest first."""
    found = ((bucket.parse_log_manifest_key(item.key), item.key) for item in store.list(bucket.logs_prefix(policy)))
    return [key for _, key in sorted((place.manifest_id, key) for place, key in found if place)]


@dataclass(frozen=True)
class LogScan(Generic[Log]):
    """Some log manifests of one store, in the order asked for, and why others are not believed."""

    trusted: list[TrustedLog[Log]]
    refused: Mapping[str, IntegrityError]


def listed_files(scan: LogScan[LogManifest]) -> Iterator[LogRecord]:
    """Yield every file that some manifests list."""
    for log in scan.trusted:
        yield from log.manifest.files


def read_listed(store: Store, signers: Sequence[Signer], policy: str, keys: Iterable[str]) -> LogScan[LogManifest]:
    """Read and verify some log manifests of PostgreSQL; see `read_logs`."""
    return read_logs(store, signers, policy, keys, LogManifest)


def read_logs(
    store: Store, signers: Sequence[Signer], policy: str, keys: Iterable[str], document: type[Log]
) -> LogScan[Log]:
    """Read and verify some log manifests, several at a time; one that was removed meanwhile is left out."""
    trusted: list[TrustedLog[Log]] = []
    refused: dict[str, IntegrityError] = {}

    def read(key: str) -> TrustedLog[Log] | IntegrityError | None:
        try:
            manifest, data = read_trusted_log(store, signers, policy, key, document)
        except StoreMissing:
            return None
        except IntegrityError as error:
            return error
        return TrustedLog(key, manifest, hashlib.sha256(data).hexdigest())

    wanted = list(keys)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="logs") as pool:
        for key, result in zip(wanted, pool.map(read, wanted), strict=True):
            if isinstance(result, IntegrityError):
                refused[key] = result
            elif result is not None:
                trusted.append(result)
    return LogScan(trusted, refused)
