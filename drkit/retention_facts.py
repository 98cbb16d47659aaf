"""What a plan of a prune is made of, and what it is: plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from drkit.canonical import canonical_json

State = Literal["verified", "failed", "doubted", "unverified", "suspect", "gone"]
Action = Literal["keep", "defer", "remove"]

CLOCK_SKEW = timedelta(minutes=5)
"""How far two clocks may differ; kopia refuses to delete beyond the same (repo/maintenance/maintenance_run.go)."""


@dataclass(frozen=True)
class Guards:
    """What holds whatever the rules say; ``stale_after`` is per method, and a method without one never goes stale."""

    minimum: int = 2
    failed_keep: timedelta = timedelta(days=3)
    stale_after: Mapping[str, timedelta] = field(default_factory=dict)
    max_removed_percent: int = 30
    grace: timedelta = timedelta(days=1)


@dataclass(frozen=True)
class Candidate:
    """One stored artifact.

    Only ``verified`` ones count; ``doubt`` says why another does not. ``span`` are the positions in the log from which
    it needs it and where it is consistent, None where nothing can be replayed from it. ``head``: no other manifest
    names it as a parent yet. ``hold`` is the reason of a hold, ``marked_at`` when its time of grace began. ``stores``
    are those of the policy's that have it whole, with all that it builds on.
    """

    artifact_id: str
    method: str
    at: datetime
    size_bytes: int
    state: State = "verified"
    doubt: str = ""
    depends_on: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    drilled: bool = False
    head: bool = False
    hold: str = ""
    locked_until: datetime | None = None
    marked_at: datetime | None = None
    stores: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogPiece:
    """A stretch of log that goes as a whole: the files of one log manifest."""

    piece_id: str
    from_position: int
    to_position: int
    size_bytes: int
    locked_until: datetime | None = None
    marked_at: datetime | None = None


@dataclass(frozen=True)
class Holdings:
    """Everything that is stored of a policy.

    ``obstacles`` are reasons for which nothing may be removed at all, such as a store that cannot be reached. ``gone``
    are artifacts that were there, and are not, without a tombstone that explains it; ``doubt`` says so. Where nothing
    more is known of one than that another names it, its method is empty and it needs the log from the beginning.
    ``lines`` has the timeline in use, or each that may be, with the ids of the bases that lead to it.
    """

    policy: str
    artifacts: Sequence[Candidate]
    log: Sequence[LogPiece] = ()
    obstacles: Sequence[str] = ()
    gone: Sequence[Candidate] = ()
    lines: Mapping[int, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What happens to an artifact or a piece of log, with all reasons; ``defer``: only a lock keeps it.

    ``delete_after`` is when its time of grace ends, None for one that is not marked yet, or that something builds on
    whose end is not known.
    """

    name: str
    action: Action
    reasons: tuple[str, ...]
    size_bytes: int
    delete_after: datetime | None = None
    is_marked: bool = False


@dataclass(frozen=True)
class Plan:
    """Decisions, artifacts newest first and log oldest first.

    ``suspended`` says why nothing is removed (of one method or at all). ``excess`` is set when so much would be marked
    that somebody has to confirm it by the plan's digest.
    """

    policy: str
    artifacts: tuple[Decision, ...]
    log: tuple[Decision, ...]
    suspended: tuple[str, ...]
    excess: str = ""

    @property
    def removed(self) -> list[Decision]:
        """Return the artifacts that go."""
        return [item for item in self.artifacts if item.action == "remove"]

    @property
    def removed_log(self) -> list[Decision]:
        """Return the pieces of log that go."""
        return [item for item in self.log if item.action == "remove"]

    @property
    def digest(self) -> str:
        """Return what two equal plans have in common: every decision with its reasons, and no clock."""
        document = {
            "policy": self.policy,
            "artifacts": [[item.name, item.action, list(item.reasons)] for item in self.artifacts],
            "log": [[item.name, item.action, list(item.reasons)] for item in self.log],
        }
        return hashlib.sha256(canonical_json(document)).hexdigest()
