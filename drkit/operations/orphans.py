"""Orphans: what lies in the folder of an artifact that has no manifest.

A backup that was killed leaves one, and one that still runs has one. Whoever deletes a manifest makes one too, so it is
looked at for a week before a prune takes it away.
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
"""How long after its last object an orphan is kept: nobody's backup takes so long for one part."""


@dataclass(frozen=True)
class Orphan:
    """The objects of one folder in one store, of which the newest was written at ``newest_at``."""

    store: str
    artifact_id: str
    keys: tuple[str, ...]
    size_bytes: int
    newest_at: datetime

    @property
    def goes_at(self) -> datetime:
        """Return when a prune may take it away."""
        return self.newest_at + ORPHAN_KEPT

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
    ``runs`` that is still running has none.
    """
    every = [item for found in folders.values() for item in found.items()]
    visible = {artifact_id for artifact_id, keys in every if any(map(bucket.parse_manifest_key, keys))}
    running = [run for run in runs if run.kind == "backup" and run.state == "running"]
    for store, found in folders.items():
        for artifact_id in sorted(found.keys() - visible - set(known)):
            objects = [inventories[store].objects[key] for key in found[artifact_id]]
            newest_at = max(item.modified_at for item in objects)
            if newest_at <= now - ORPHAN_MARGIN and not _is_of(artifact_id, running):
                size_bytes = sum(item.size_bytes for item in objects)
                yield Orphan(store, artifact_id, tuple(sorted(found[artifact_id])), size_bytes, newest_at)


def folders_of(inventory: StoreInventory) -> dict[str, list[str]]:
    """Return artifact id -> the keys in its folder, of a store that was listed for one policy."""
    folders: dict[str, list[str]] = defaultdict(list)
    for key in inventory.objects:
        place = bucket.parse_artifact_key(key)
        if place is not None:
            folders[place[1]].append(key)
    return dict(folders)


def _is_of(artifact_id: str, running: Iterable[Run]) -> bool:
    """Tell whether an artifact was begun by a backup that runs: one of its parts can take longer than any margin."""
    begun_at = moment_of_id(artifact_id)
    # The id has milliseconds, the run a finer clock.
    return begun_at is not None and any(begun_at >= run.started_at - timedelta(seconds=1) for run in running)
