"""The documents that decide over keeping and removing: holds, their releases, and tombstones of the log.

All are signed in the namespace of tombstones: whoever may bury may also spare, and the ``format`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from drkit.model import Count, Document, Moment, Sha256


class Hold(Document):
    """An artifact stays, whatever the rules say, until a release names this hold.

    ``kind`` is ``hold`` for one that a person placed. ``revived`` ones are placed by a prune whose plan came to want an
    artifact again that was marked already: the tombstone explains nothing while a hold stands.
    """

    format: Literal["drkit-hold"] = "drkit-hold"
    version: Literal[1] = 1
    repo_id: str
    policy: str
    artifact_id: str
    hold_id: str
    kind: Literal["hold", "revived"] = "hold"
    reason: str
    placed_at: Moment


class Release(Document):
    """A hold ends; it names the very hold, so that an old release never ends a new hold."""

    format: Literal["drkit-release"] = "drkit-release"
    version: Literal[1] = 1
    repo_id: str
    policy: str
    artifact_id: str
    hold_id: str
    released_at: Moment


class BuriedRun(Document):
    """Log manifests of one timeline that followed on each other in the chain and are removed together.

    ``first_id`` to ``last_id`` are their ids, ``first_file`` and ``last_file`` segments that they list;
    ``previous`` is what the first one named, and ``last_sha256`` is what the
    manifest after the last one names: so the chain can be followed through what is gone.
    """

    timeline: int
    first_id: str
    last_id: str
    count: Count
    first_file: str
    last_file: str
    previous: Sha256 | None
    last_sha256: Sha256


class LogTombstone(Document):
    """The signed explanation of log manifests that are removed."""

    format: Literal["drkit-log-tombstone"] = "drkit-log-tombstone"
    version: Literal[1] = 1
    repo_id: str
    policy: str
    tombstone_id: str
    runs: tuple[BuriedRun, ...]
    reason: str
    removed_at: Moment


def standing(holds: Iterable[Hold], releases: Iterable[Release]) -> list[Hold]:
    """Return the holds that no release names, oldest first."""
    ended = {(item.policy, item.artifact_id, item.hold_id) for item in releases}
    open_holds = {hold.hold_id: hold for hold in holds if (hold.policy, hold.artifact_id, hold.hold_id) not in ended}
    return [open_holds[hold_id] for hold_id in sorted(open_holds)]
