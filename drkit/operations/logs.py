"""Finding and believing the log manifests of a policy in one store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from drkit import bucket
from drkit.errors import IntegrityError
from drkit.model import LogManifest, LogRecord
from drkit.operations.stored_log import read_trusted_log
from drkit.signing import Signer
from drkit.stores import Store


@dataclass(frozen=True)
class TrustedLog:
    """A log manifest whose signature is a pinned signer's, with its very bytes."""

    manifest: LogManifest
    data: bytes

    @property
    def sha256(self) -> str:
        """Return the digest that the next manifest names it by."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class LogScan:
    """Manifests in the order of their ids, and those that were not believed."""

    trusted: list[TrustedLog] = field(default_factory=list)
    refused: list[IntegrityError] = field(default_factory=list)

    def records(self) -> Iterator[tuple[LogManifest, LogRecord]]:
        """Yield every file that is listed, with its manifest."""
        for item in self.trusted:
            for record in item.manifest.files:
                yield item.manifest, record


def list_log_manifests(store: Store, policy: str) -> list[str]:
    """Return the keys of a policy's log manifests, oldest first."""
    keys = [
        (found.manifest_id, item.key)
        for item in store.list(bucket.logs_prefix(policy))
        if (found := bucket.parse_log_manifest_key(item.key))
    ]
    return [key for _, key in sorted(keys)]


def read_listed(store: Store, signers: Sequence[Signer], keys: Sequence[str]) -> LogScan:
    """Read and verify manifests; one that is not believed is kept apart."""
    scan = LogScan()
    for key in keys:
        parsed = bucket.parse_log_manifest_key(key)
        assert parsed is not None
        try:
            manifest, data = read_trusted_log(store, signers, parsed.policy, key)
        except IntegrityError as error:
            scan.refused.append(error)
        else:
            scan.trusted.append(TrustedLog(manifest, data))
    return scan
