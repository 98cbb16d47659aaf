"""The chain of a policy's log manifests against the tombstones that explain what is missing from it.

Nothing is read here: the same links and tombstones get the same findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drkit.model import Finding
from drkit.retention_documents import LogTombstone

_WHO = "look for it in another store of the policy, and find out who deleted it"


@dataclass(frozen=True)
class LogLink:
    """The place of a log manifest in its chain: the digest of its bytes, and of those of the one before it."""

    key: str
    sha256: str
    previous: str | None


def audit_log_chain(policy: str, links: Sequence[LogLink], graves: Sequence[LogTombstone]) -> Iterator[Finding]:
    """Find where a log manifest, or a stretch that a tombstone names, goes on from one that is gone unexplained.

    ``links`` are those of every store together. What was taken away before a base that nobody needs any more leaves no
    gap in what can be restored, so nothing else would tell of it; nor would a tombstone that was taken away.
    """
    runs = [run for grave in graves for run in grave.runs]
    there = {link.sha256 for link in links} | {run.last_sha256 for run in runs}
    named = [(link.previous, f"log manifest {link.key}") for link in links]
    named += [(run.previous, f"the removed log from {run.first_file} to {run.last_file}") for run in runs]
    for previous, follower in sorted({item for item in named if item[0] is not None and item[0] not in there}):
        message = f"the log manifest before {follower} is gone without a tombstone (sha256:{previous})"
        yield Finding("log-chain-gap", policy, message, _WHO)
