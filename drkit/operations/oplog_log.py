"""What a policy's stores hold of MongoDB's oplog: slices that signed manifests list, lost stretches, timelines.

A slice counts when a manifest that is believed lists it and a store has it in the size that was signed. One that no
manifest lists is not used at all: anybody who knows the recipients could have sealed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drkit import age, bucket
from drkit.errors import IntegrityError, KeyUnavailable, StoreError, StoreMissing
from drkit.keys import KeyFile
from drkit.log_documents import OplogManifest, SliceRecord
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.log_audit import LogLink
from drkit.operations.logs import list_log_manifests, read_logs
from drkit.operations.stored_log import named
from drkit.oplog import OplogTs
from drkit.oplog_windows import DumpPoint, KnownGap, Slice
from drkit.signing import Signer
from drkit.stores import Store
from drkit.stream import Meter, checked, decompress

FIRST_TIMELINE = 1
_AT_ONCE = 8


@dataclass(frozen=True)
class StoredSlice:
    """One listed slice and the stores that have it; ``written_to`` is the one that its version id belongs to."""

    slice: Slice
    record: SliceRecord
    stores: tuple[str, ...]
    written_to: str


@dataclass(frozen=True)
class Branch:
    """Where a timeline begins, which one it came from, and why."""

    timeline: int
    from_timeline: int
    at_ts: OplogTs
    reason: str


@dataclass
class StoredOplog:
    """Everything that is stored of a policy's oplog, slices by timeline and place.

    ``doubts`` say what was not believed or is gone, ``unreachable`` which stores could not be asked.
    """

    slices: list[StoredSlice] = field(default_factory=list)
    gaps: list[KnownGap] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unreachable: list[StoreError] = field(default_factory=list)
    links: list[LogLink] = field(default_factory=list)

    @property
    def timeline(self) -> int:
        """Return the newest timeline."""
        known = [item.slice.timeline for item in self.slices] + [item.timeline for item in self.branches]
        return max(known, default=FIRST_TIMELINE)


def stored_oplog(workplace: Workplace, policy: str, repo_ids: Iterable[str] = ()) -> StoredOplog:
    """Read every store's signed oplog manifests; ``repo_ids`` are those of the policy's artifacts, if known.

    A store that cannot be reached is reported, not fatal. Needs no identity.
    """
    found, allowed = StoredOplog(), frozenset(repo_ids)
    manifests: dict[str, OplogManifest] = {}
    places: dict[str, dict[str, int]] = {}
    for name, store in workplace.stores.items():
        try:
            for item in store.list(bucket.logs_prefix(policy)):
                places.setdefault(item.key, {})[name] = item.size_bytes
            keys = [key for key in list_log_manifests(store, policy) if key not in manifests]
            scan = read_logs(store, workplace.signers, policy, keys, OplogManifest)
        except StoreError as error:
            found.unreachable.append(error)
            continue
        found.doubts += [f"not believed: {error.message}" for error in scan.refused.values()]
        for log in scan.trusted:
            if allowed and log.manifest.repo_id not in allowed:
                other = log.manifest.repo_id
                found.doubts.append(f"not believed: a log manifest of repository {other} lies in this one")
            else:
                manifests[log.key] = log.manifest
                found.links.append(LogLink(log.key, log.sha256, log.manifest.previous))
    for manifest in manifests.values():
        _note(found, manifest, places)
    found.slices.sort(key=lambda item: (item.slice.timeline, item.slice.from_ts, item.slice.to_ts))
    return found


def _note(found: StoredOplog, manifest: OplogManifest, places: dict[str, dict[str, int]]) -> None:
    """Take over what one manifest says."""
    from_ts, to_ts = OplogTs.parse(manifest.from_ts), OplogTs.parse(manifest.to_ts)
    reason = manifest.reason or ""
    if manifest.branched_from is not None:
        found.branches.append(Branch(manifest.timeline, manifest.branched_from, from_ts, reason))
    elif manifest.lost:
        found.gaps.append(KnownGap(manifest.timeline, from_ts, to_ts, reason))
    for record in manifest.files:
        sizes = places.get(record.key, {})
        whole = tuple(store for store, size_bytes in sizes.items() if size_bytes == record.stored_bytes)
        if len(whole) < len(sizes):
            cut = ", ".join(store for store in sizes if store not in whole)
            found.doubts.append(f"{record.part} has another size than was signed in {cut}")
        if not whole:
            found.doubts.append(f"{record.part} is gone from every store that can be reached, and a manifest lists it")
            continue
        ends = OplogTs.parse(record.from_ts), OplogTs.parse(record.to_ts)
        piece = Slice(manifest.timeline, *ends, record.part)
        if any(item.slice == piece and item.record.plain_sha256 == record.plain_sha256 for item in found.slices):
            continue
        found.slices.append(StoredSlice(piece, record, whole, manifest.written_to))


def newest_timeline(store: Store, signers: Sequence[Signer], policy: str, *, after: int = 0) -> int:
    """Return the newest timeline of which a store has a signed manifest; only later ones than ``after`` are looked for.

    Return ``after``, or the first timeline, when there is none. What is not signed makes no timeline.
    """
    keys: dict[int, list[str]] = {}
    prefix = bucket.timeline_prefix(policy, after + 1) if after else bucket.logs_prefix(policy)
    for item in store.list(prefix):
        place = bucket.parse_log_manifest_key(item.key)
        if place is not None:
            keys.setdefault(place.timeline, []).append(item.key)
    for timeline in sorted(keys, reverse=True):
        groups = (keys[timeline][start : start + _AT_ONCE] for start in range(0, len(keys[timeline]), _AT_ONCE))
        if any(read_logs(store, signers, policy, group, OplogManifest).trusted for group in groups):
            return newest_timeline(store, signers, policy, after=timeline) if after else timeline
    return max(after, FIRST_TIMELINE)


def dump_points(entries: Iterable[ArtifactEntry]) -> list[DumpPoint]:
    """Return the artifacts from which the oplog can be replayed."""
    return [
        DumpPoint(
            manifest.artifact_id,
            manifest.oplog.timeline,
            OplogTs.parse(manifest.oplog.start_ts),
            OplogTs.parse(manifest.oplog.stop_ts),
            manifest.oplog.included,
        )
        for manifest in (entry.manifest for entry in entries)
        if manifest.oplog is not None
    ]


def open_slice(workplace: Workplace, identities: Sequence[KeyFile], stored: StoredSlice) -> Iterator[bytes]:
    """Return the raw BSON entries of a slice, chunks of any size, every digest compared before the first is given out.

    `drkit.oplog.split_entries` makes entries of them. What a slice holds stays in memory meanwhile (`slice_size` of
    the policy). Raise the first store's error when no store has a sound copy.
    """
    failures: list[IntegrityError | StoreError | KeyUnavailable] = []
    for name in stored.stores:
        try:
            return iter(_read(workplace.stores[name], identities, stored))
        except (IntegrityError, StoreError, KeyUnavailable) as error:
            failures.append(error)
    raise failures[0]


def _read(store: Store, identities: Sequence[KeyFile], stored: StoredSlice) -> list[bytes]:
    record = stored.record
    what = f"oplog slice {record.part} in store {store.name}"
    version = record.version_id if store.name == stored.written_to else None
    try:
        with store.open(record.key, version_id=version) as chunks:
            sealed = checked(chunks, Meter(), size_bytes=record.stored_bytes, sha256=record.stored_sha256, what=what)
            plain = named(decompress(age.decrypt(sealed, [key.identity for key in identities])), what)
            whole = checked(plain, Meter(), size_bytes=record.plain_bytes, sha256=record.plain_sha256, what=what)
            return list(whole)
    except StoreMissing as error:
        raise IntegrityError(f"{what} is gone") from error
