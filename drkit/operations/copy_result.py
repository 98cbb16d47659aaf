"""What a catch-up of copies did, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drkit.errors import DrkitError, StoreUnavailable


@dataclass(frozen=True)
class Copied:
    """One copy of an artifact that was made."""

    policy: str
    artifact_id: str
    store: str
    size_bytes: int


@dataclass(frozen=True)
class CopiedRecord:
    """A signed document that was copied with its signature.

    ``kind`` is record (of a drill or a verification), tombstone, log tombstone, hold or release; ``name`` is its own.
    """

    policy: str
    kind: str
    name: str
    store: str


@dataclass(frozen=True)
class CopiedLog:
    """A signed log manifest that was copied, after the files that it lists and the store lacked."""

    policy: str
    key: str
    store: str
    files: int
    size_bytes: int


@dataclass(frozen=True)
class NotCopied:
    """A copy that could not be made; ``subject`` is an artifact, or the key of a signed document or log manifest.

    Without a subject the whole store failed, without a store the whole policy.
    """

    policy: str
    error: DrkitError
    subject: str = ""
    store: str = ""


@dataclass
class CopyResult:
    """What a catch-up did; ``complete`` counts the artifacts that lacked no copy.

    ``given_up`` are the stores that stopped answering: they are left alone for the rest, and the next catch-up asks
    again.
    """

    copied: list[Copied] = field(default_factory=list)
    records: list[CopiedRecord] = field(default_factory=list)
    logs: list[CopiedLog] = field(default_factory=list)
    failed: list[NotCopied] = field(default_factory=list)
    complete: int = 0
    given_up: set[str] = field(default_factory=set)

    def fail(self, failure: NotCopied) -> None:
        """Note a failure."""
        self.failed.append(failure)
        if isinstance(failure.error, StoreUnavailable) and failure.store:
            self.given_up.add(failure.store)

    @property
    def made(self) -> int:
        """Return how many copies of any kind were made."""
        return len(self.copied) + len(self.records) + len(self.logs)

    def facts(self) -> dict[str, Any]:
        """Return the counts, for the record of the run."""
        return {
            "copied": len(self.copied),
            "records": len(self.records),
            "logs": len(self.logs),
            "failed": len(self.failed),
            "bytes": sum(item.size_bytes for item in self.copied) + sum(item.size_bytes for item in self.logs),
        }

    def add(self, other: CopyResult) -> None:
        """Take up what was done for another policy."""
        self.copied += other.copied
        self.records += other.records
        self.logs += other.logs
        self.failed += other.failed
        self.complete += other.complete
