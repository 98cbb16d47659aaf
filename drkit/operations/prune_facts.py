"""What a prune decides about: taken from a fresh listing of the stores and their signed manifests, not the catalog.

The catalog is asked for what the stores may have lost: holds that it remembers count although no store has them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property

from drkit import bucket
from drkit.catalog.holds import HoldEntry
from drkit.model import ArtifactEntry, Manifest, Tombstone
from drkit.operations import Workplace
from drkit.operations.holds import known_holds
from drkit.operations.inventory import StoredArtifact, StoreInventory, take_inventory
from drkit.operations.orphans import Orphan, find_orphans, folders_of
from drkit.operations.prune_doubts import clock_doubts, hold_doubts, manifest_doubts, strange_places, unread_stores
from drkit.operations.prune_gone import gone_artifacts, log_span
from drkit.operations.prune_log_pieces import log_pieces
from drkit.operations.prune_verdicts import Dated, dated_records, drill_verdicts, found_damaged
from drkit.policy import Policy
from drkit.retention_documents import BuriedRun, LogTombstone
from drkit.retention_facts import CLOCK_SKEW, Candidate, Holdings, State

_MOST_RUNS = 10_000
_STRANGE_DATE = timedelta(hours=24)
"""How far the moment in a manifest may be from when its store took it; more, and one of two clocks was wrong."""

_DRILLED: Mapping[str, tuple[State, str]] = {
    "failed": ("failed", "its last drill failed"),
    # These make no other superfluous, but a wrong key on the host of the drills must not cost them either.
    "doubted": ("doubted", "its last drill failed for something else than what it holds"),
    "misread": ("doubted", "its last drill failed as it read a copy, and none was read since that is sound"),
}


@dataclass(frozen=True)
class Stored:
    """What is stored of one policy, and what was decided over it before.

    ``copies`` are the trusted manifests of each artifact. ``graves`` are their tombstones, ``log_graves`` those of the
    log, oldest first. ``known_holds`` are all that were ever placed, the released ones too. ``folders`` are the keys by
    store and artifact id. ``records`` are the signed ones of drills and verifications. ``lines`` are those of
    `Holdings`, empty until a plan is made. ``orphans`` are what lies in its stores without a manifest.
    """

    policy: Policy
    now: datetime
    inventories: Mapping[str, StoreInventory]
    copies: Mapping[str, Sequence[StoredArtifact]]
    graves: Mapping[str, Tombstone]
    log_graves: Sequence[LogTombstone]
    known_holds: Sequence[HoldEntry]
    folders: Mapping[str, Mapping[str, Sequence[str]]]
    obstacles: tuple[str, ...] = ()
    locks: Mapping[str, datetime] = field(default_factory=dict)
    gone: tuple[Candidate, ...] = ()
    records: Sequence[Dated] = ()
    lines: Mapping[int, Collection[str]] = field(default_factory=dict)
    orphans: Sequence[Orphan] = ()

    @cached_property
    def entries(self) -> list[ArtifactEntry]:
        """Return the artifacts, without saying where they are."""
        return [ArtifactEntry(copies[0].manifest, copies[0].sha256, ()) for copies in self.copies.values()]

    @cached_property
    def holds(self) -> list[HoldEntry]:
        """Return the holds that stand."""
        return [hold for hold in self.known_holds if hold.released_at is None]

    @cached_property
    def hold_ends(self) -> Mapping[str, datetime]:
        """Return when the last hold of an artifact was released."""
        return _ends(self.known_holds)

    def manifest(self, artifact_id: str) -> Manifest:
        """Return an artifact's manifest."""
        return self.copies[artifact_id][0].manifest

    def holders(self, artifact_id: str) -> list[str]:
        """Return the stores that have an artifact's manifest."""
        return [copy.store for copy in self.copies.get(artifact_id, ())]

    @cached_property
    def log_manifests(self) -> Mapping[str, list[str]]:
        """Return the key of each log manifest, and the stores that have it."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, inventory in self.inventories.items():
            for key in inventory.objects:
                if bucket.parse_log_manifest_key(key) is not None:
                    found[key].append(name)
        return dict(found)

    def with_locks(self, locks: Mapping[str, datetime]) -> Stored:
        """Return the same with what was found out about locks, by artifact id or log manifest key."""
        return replace(self, locks={**self.locks, **locks})

    def held(self, artifact_id: str, *, kind: str | None = None) -> list[HoldEntry]:
        """Return the standing holds of an artifact, of one kind or of any."""
        return [hold for hold in self.holds if hold.artifact_id == artifact_id and kind in (None, hold.kind)]

    def marked_at(self, artifact_id: str) -> datetime | None:
        """Return since when an artifact's time of grace runs: its tombstone's moment, or the end of a later hold.

        A tombstone says when it was made by its signer's clock, and was stored by the store's: the later one counts.
        """
        grave = self.graves.get(artifact_id)
        if grave is None or self.held(artifact_id):
            return None
        key = bucket.tombstone_key(self.policy.policy, artifact_id)
        moments = [grave.removed_at, *self._first_stored(key)]
        return max([*moments, self.hold_ends.get(artifact_id, grave.removed_at)])

    def _first_stored(self, key: str) -> list[datetime]:
        stored = [item.objects[key].modified_at for item in self.inventories.values() if key in item.objects]
        return [min(stored)] if stored else []

    def log_marked_at(self, key: str) -> datetime | None:
        """Return since when a log manifest's time of grace runs."""
        place = bucket.parse_log_manifest_key(key)
        runs, ids = self._runs
        if place is None:
            return None
        for run, moment in reversed(runs[: bisect_right(ids, place.manifest_id)]):
            if run.timeline == place.timeline and place.manifest_id <= run.last_id:
                return moment
            if run.last_id < place.manifest_id and run.timeline == place.timeline:
                return None
        return None

    @cached_property
    def _runs(self) -> tuple[list[tuple[BuriedRun, datetime]], list[str]]:
        runs = [(run, self.grave_made_at(grave)) for grave in self.log_graves for run in grave.runs]
        runs.sort(key=lambda item: item[0].first_id)
        return runs, [run.first_id for run, _ in runs]

    def grave_made_at(self, grave: LogTombstone) -> datetime:
        """Return since when a tombstone of the log stands, by the later of the two clocks."""
        stored = self._first_stored(bucket.log_tombstone_key(self.policy.policy, grave.tombstone_id))
        return max([grave.removed_at, *stored])

    def holdings(self) -> Holdings:
        """Return what the plan is made of."""
        states = dict(_states(self))
        whole = _whole_in(self)
        named = {parent for copies in self.copies.values() for parent in copies[0].manifest.parents}
        named |= {parent for grave in self.graves.values() for parent in grave.parents}
        drills = drill_verdicts(self.records, self.copies, self.now)
        artifacts = [
            Candidate(
                artifact_id=artifact_id,
                method=manifest.method,
                at=manifest.covers.to_at,
                size_bytes=manifest.stored_bytes,
                state=states[artifact_id][0],
                doubt=states[artifact_id][1],
                depends_on=manifest.depends_on,
                span=log_span(manifest),
                drilled=drills.get(artifact_id) == "verified",
                head=self.copies[artifact_id][0].sha256 not in named,
                hold="; ".join(hold.reason for hold in self.held(artifact_id, kind="hold")),
                locked_until=self.locks.get(artifact_id),
                marked_at=self.marked_at(artifact_id),
                stores=tuple(sorted(whole[artifact_id])),
            )
            for artifact_id, manifest in ((name, self.manifest(name)) for name in self.copies)
        ]
        return Holdings(self.policy.policy, artifacts, tuple(log_pieces(self)), self.obstacles, self.gone, self.lines)


def take_stock(workplace: Workplace, policy: Policy, obstacles: Sequence[str] = ()) -> Stored:
    """List every store of the site and verify what lies there of a policy; nothing is written.

    A store that cannot be reached, and is the policy's or had an artifact of it, is an obstacle: a hold may be in it.
    """
    name = policy.policy
    # Both before the listing: what is committed meanwhile is not gone, and what is begun meanwhile is no orphan.
    known = workplace.catalog.artifacts(name)
    runs = workplace.catalog.runs(policy=name, kind="backup", limit=_MOST_RUNS)
    inventories = take_inventory(workplace.stores, workplace.signers, {name})
    remembered = {store for entry in known for store in entry.stores}
    known_ids = {entry.manifest.artifact_id for entry in known}
    read = {key: item for key, item in inventories.items() if item.error is None}
    folders = {key: folders_of(item) for key, item in read.items()}
    copies: dict[str, list[StoredArtifact]] = defaultdict(list)
    for inventory in read.values():
        for copy in inventory.artifacts:
            copies[copy.manifest.artifact_id].append(copy)
    holds = [hold for item in read.values() for hold in item.holds.get(name, ())]
    releases = [release for item in read.values() for release in item.releases.get(name, ())]
    entries = known_holds(holds, releases, workplace.catalog.holds.entries(policy=name))
    held = {entry.artifact_id for entry in entries if entry.released_at is None}
    graves = {grave.artifact_id: grave for item in read.values() for grave in item.graves.get(name, ())}
    log_graves = {grave.tombstone_id: grave for item in read.values() for grave in item.log_graves.get(name, ())}
    orphans = find_orphans(read, folders, {*known_ids, *graves, *held}, runs, workplace.clock())
    return Stored(
        policy=policy,
        now=workplace.clock(),
        inventories=read,
        copies=dict(copies),
        graves=graves,
        log_graves=[log_graves[tombstone_id] for tombstone_id in sorted(log_graves)],
        gone=tuple(gone_artifacts(known, read.values(), [graves[name] for name in graves.keys() - held])),
        known_holds=entries,
        folders=folders,
        orphans=tuple(item for item in orphans if item.store in policy.stores),
        records=list(dated_records(read.values(), workplace.catalog.evidence_entries(policy=name))),
        obstacles=(
            *obstacles,
            *unread_stores(policy, inventories.values(), remembered),
            *hold_doubts(read.values(), name),
            *manifest_doubts(read.values(), {*copies, *(graves.keys() - held)}),
            *strange_places(policy, read, copies, remembered),
            *clock_doubts(read.values(), workplace.clock()),
        ),
    )


def _ends(entries: Iterable[HoldEntry]) -> dict[str, datetime]:
    ends: dict[str, datetime] = {}
    for entry in entries:
        if entry.released_at is not None:
            ends[entry.artifact_id] = max(entry.released_at, ends.get(entry.artifact_id, entry.released_at))
    return ends


def _states(stored: Stored) -> Iterator[tuple[str, tuple[State, str]]]:
    """Yield what each artifact is worth: only a sound one, whose parents are sound, may make another superfluous."""
    verdicts = drill_verdicts(stored.records, stored.copies, stored.now)
    dates, damaged = _misdated(stored), found_damaged(stored.records, stored.now)
    whole: set[str] = set()
    for artifact_id in sorted(stored.copies, key=lambda name: (len(stored.manifest(name).depends_on), name)):
        copies = stored.copies[artifact_id]
        manifest = stored.manifest(artifact_id)
        missing = [
            _first_missing(stored.inventories[copy.store], copy.manifest, damaged.get((artifact_id, copy.store)))
            for copy in copies
        ]
        broken = [parent for parent in manifest.depends_on if parent not in whole]
        state: tuple[State, str] = ("verified", "")
        if len({copy.sha256 for copy in copies}) > 1:
            state = "suspect", "its stores have different manifests"
        elif artifact_id in stored.graves and stored.graves[artifact_id].manifest_sha256 != copies[0].sha256:
            state = "suspect", "its tombstone is for another manifest"
        elif artifact_id in dates:
            state = "suspect", dates[artifact_id]
        elif all(missing):
            state = "unverified", str(missing[0])
        elif broken:
            state = "unverified", f"it builds on {broken[0]}, which is not whole"
        else:
            state = _DRILLED.get(verdicts.get(artifact_id, ""), state)
        if not all(missing) and not broken:
            whole.add(artifact_id)
        yield artifact_id, state


def _whole_in(stored: Stored) -> dict[str, set[str]]:
    """Return in which of the policy's stores each artifact is whole, with all that it builds on."""
    damaged = found_damaged(stored.records, stored.now)
    own = {
        artifact_id: {
            copy.store
            for copy in copies
            if copy.store in stored.policy.stores
            and not _first_missing(
                stored.inventories[copy.store], copy.manifest, damaged.get((artifact_id, copy.store))
            )
        }
        for artifact_id, copies in stored.copies.items()
    }
    return {
        artifact_id: here.intersection(*(own.get(parent, set()) for parent in stored.manifest(artifact_id).depends_on))
        for artifact_id, here in own.items()
    }


def _first_missing(inventory: StoreInventory, manifest: Manifest, damaged_at: datetime | None) -> str:
    """Say what is wrong with a copy; one that was read and found damaged is right again when it was written since."""
    for item in manifest.objects:
        stored = inventory.objects.get(item.key)
        if stored is None:
            return f"{item.key} is missing from store {inventory.name}"
        if stored.size_bytes != item.stored_bytes:
            return f"{item.key} in store {inventory.name} has another size than was signed"
        if damaged_at is not None and stored.modified_at < damaged_at:
            return f"its copy in store {inventory.name} was read and is damaged"
    return ""


def _misdated(stored: Stored) -> dict[str, str]:
    """Return the artifacts whose date cannot be right, and why.

    One that says that it was ended after a store had it, or after another was that names it as a parent, is of the
    future. One that was stored long after it says, and after what it names itself, is of the past; storing late alone
    proves nothing, because copies are.
    """
    ends = {copies[0].sha256: copies[0].manifest.ended_at for copies in stored.copies.values()}
    strange: dict[str, str] = {}
    before: dict[str, datetime] = {}
    for artifact_id in sorted(stored.copies, key=lambda name: stored.manifest(name).seq, reverse=True):
        manifest, sha256 = stored.manifest(artifact_id), stored.copies[artifact_id][0].sha256
        ended_at = max(manifest.ended_at, manifest.covers.to_at)
        taken = _taken_by(stored, artifact_id)
        earlier = max((ends[parent] for parent in manifest.parents if parent in ends), default=ended_at)
        written_at = taken.get(manifest.written_to)
        late = written_at is not None and written_at - ended_at > _STRANGE_DATE
        if taken and ended_at - min(taken.values()) > _STRANGE_DATE:
            strange[artifact_id] = "it is dated after its store took it"
        elif late and ended_at < earlier - CLOCK_SKEW:
            strange[artifact_id] = "it is dated before what it was taken after"
        elif ended_at > before.get(sha256, ended_at) + CLOCK_SKEW:
            strange[artifact_id] = "it is dated after what was taken after it"
        own = [] if artifact_id in strange else [manifest.ended_at]
        bounds = [*own, *([before[sha256]] if sha256 in before else [])]
        for parent in manifest.parents if bounds else ():
            before[parent] = min([*bounds, before.get(parent, bounds[0])])
    return strange


def _taken_by(stored: Stored, artifact_id: str) -> dict[str, datetime]:
    key = bucket.manifest_key(stored.policy.policy, artifact_id)
    return {name: stored.inventories[name].objects[key].modified_at for name in stored.holders(artifact_id)}
