"""Orphans: what lies in the folder of an artifact that has no manifest.

A backup that was killed leaves one, and one that still runs has one. Whoever deletes a manifest makes one too, so a
prune takes away only what a run of this host's catalog left that ended without success, and not before a week.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit import bucket
from drkit.model import Run
from drkit.operations.inventory import StoreInventory
from drkit.operations.running import moment_of_id
from drkit.units import format_bytes, format_count

ORPHAN_MARGIN = timedelta(hours=24)
"""Data without a manifest that is younger than this may be a backup in progress, on any host."""

ORPHAN_KEPT = timedelta(days=7)
"""How long after its last object an orphan is kept, to be looked at."""

_APART = timedelta(milliseconds=2)
"""How far the moment in an artifact's id may be from the start of its run, whose clock is finer."""


@dataclass(frozen=True)
class Orphan:
    """The objects of one folder in one store, of which the newest was written at ``newest_at``.

    ``goes_at`` is when a prune may take it away, None where no run is known to have left it.
    """

    store: str
    artifact_id: str
    keys: tuple[str, ...]
    size_bytes: int
    newest_at: datetime
    goes_at: datetime | None

    def __str__(self) -> str:
        size = format_bytes(self.size_bytes)
        return f"{format_count(len(self.keys), 'object')} ({size}) of {self.artifact_id} in store {self.store}"


def find_orphans(
    inventories: Mapping[str, StoreInventory],
    folders: Mapping[str, Mapping[str, Collection[str]]],
    known: Collection[str],
    runs: Iterable[Run],
    now: datetime,
) -> Iterator[Orphan]:
    """Yield the orphans among ``folders``, the keys by store and artifact id.

    An artifact that is ``known``, has a manifest in any store, believed or not, or may be that of a backup among
    ``runs`` that still runs has none.
    """
    every = [item for found in folders.values() for item in found.items()]
    visible = {artifact_id for artifact_id, keys in every if any(map(bucket.parse_manifest_key, keys))}
    backups = [run for run in runs if run.kind == "backup"]
    for store, found in folders.items():
        for artifact_id in sorted(found.keys() - visible - set(known)):
            objects = [inventories[store].objects[key] for key in found[artifact_id]]
            newest_at = max(item.modified_at for item in objects)
            begun_at = moment_of_id(artifact_id)
            if newest_at > now - ORPHAN_MARGIN or _may_be_written(begun_at, backups):
                continue
            size_bytes = sum(item.size_bytes for item in objects)
            goes_at = newest_at + ORPHAN_KEPT if _was_left(begun_at, backups) else None
            yield Orphan(store, artifact_id, tuple(sorted(found[artifact_id])), size_bytes, newest_at, goes_at)


def folders_of(inventory: StoreInventory) -> dict[str, list[str]]:
    """Return artifact id -> the keys in its folder, of a store that was listed for one policy."""
    folders: dict[str, list[str]] = defaultdict(list)
    for key in inventory.objects:
        place = bucket.parse_artifact_key(key)
        if place is not None:
            folders[place[1]].append(key)
    return dict(folders)


def _may_be_written(begun_at: datetime | None, backups: Iterable[Run]) -> bool:
    """Tell whether an artifact may be that of a backup that runs: one of its parts can take longer than any margin."""
    running = (run for run in backups if run.state == "running")
    return begun_at is not None and any(begun_at >= run.started_at - _APART for run in running)


def _was_left(begun_at: datetime | None, backups: Iterable[Run]) -> bool:
    """Tell whether a backup that ended without success began the artifact."""
    ended = (run for run in backups if run.state not in ("running", "succeeded"))
    return begun_at is not None and any(abs(begun_at - run.started_at) < _APART for run in ended)
