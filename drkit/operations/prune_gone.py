"""What was there and is gone without a tombstone: it may come back, so what it needs is not pruned behind its back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from drkit import bucket
from drkit.model import ArtifactEntry, Manifest, Tombstone
from drkit.operations.inventory import StoreInventory
from drkit.oplog import OplogTs
from drkit.retention_facts import Candidate
from drkit.units import format_moment
from drkit.wal import parse_lsn

_SHOWN_DIGITS = 12


def gone_artifacts(
    remembered: Iterable[ArtifactEntry], inventories: Collection[StoreInventory], graves: Iterable[Tombstone]
) -> Iterator[Candidate]:
    """Yield what the catalog remembers, or a manifest names as its parent, and neither a store nor a tombstone has.

    Of one that is only named nothing is known but that it is older than who names it: it may need any of the log.
    """
    manifests = {item.sha256: item.manifest for inventory in inventories for item in inventory.artifacts}
    explained = {*manifests, *(grave.manifest_sha256 for grave in graves)}
    for entry in remembered:
        key = bucket.manifest_key(entry.manifest.policy, entry.manifest.artifact_id)
        is_there = any(key in inventory.objects for inventory in inventories)  # not believed, perhaps: that is said
        if entry.manifest_sha256 not in explained and not is_there:
            yield _remembered(entry)
        explained.add(entry.manifest_sha256)
    named: dict[str, Manifest] = {}
    for manifest in sorted(manifests.values(), key=lambda item: item.covers.to_at, reverse=True):
        named |= {parent: manifest for parent in manifest.parents if parent not in explained}
    for parent, child in named.items():
        what = f"the manifest sha256:{parent[:_SHOWN_DIGITS]}, which {child.artifact_id} names,"
        doubt = f"{what} is gone without a tombstone"
        yield Candidate(f"sha256:{parent}", "", child.covers.to_at, 0, state="gone", doubt=doubt, span=(0, 0))


def _remembered(entry: ArtifactEntry) -> Candidate:
    manifest = entry.manifest
    where = ", ".join(entry.stores) or "no store"
    doubt = f"artifact {manifest.artifact_id} of {format_moment(manifest.covers.to_at)} was in {where} and is gone"
    return Candidate(
        artifact_id=manifest.artifact_id,
        method=manifest.method,
        at=manifest.covers.to_at,
        size_bytes=manifest.stored_bytes,
        state="gone",
        doubt=f"{doubt} without a tombstone",
        depends_on=manifest.depends_on,
        span=log_span(manifest),
    )


def log_span(manifest: Manifest) -> tuple[int, int] | None:
    """Return from where to where an artifact needs the log, as numbers that its log manifests' keys count in."""
    if manifest.oplog is not None:
        return _oplog_position(manifest.oplog.start_ts), _oplog_position(manifest.oplog.stop_ts)
    position = manifest.position
    return None if position is None else (parse_lsn(position.start_lsn), parse_lsn(position.stop_lsn))


def _oplog_position(text: str) -> int:
    place = OplogTs.parse(text)
    return place.seconds << 32 | place.increment
