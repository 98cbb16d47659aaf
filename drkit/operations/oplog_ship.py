"""Shipping oplog slices: from the spool into the stores, and into signed oplog manifests.

What is promised, and kept through kill -9 at any moment:

- a slice begins behind the very entry with which the one before ended, or a named gap lies in between
- a slice is sealed once, durably, and put create-only; asked again, a store knows it
- a manifest goes into a store after the slices that it lists (R2 of docs/format.md)
- the spool lets go of a slice only when its manifest stands in every store of the policy
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from drkit import bucket
from drkit.errors import DrkitError, IntegrityError, StoreError, StoreExists
from drkit.log_documents import OplogManifest
from drkit.operations import Workplace
from drkit.operations.lanes import Lane, make_lanes, put_sealed, remove_stranger
from drkit.operations.log_chain import ManifestChain
from drkit.operations.logs import LogScan, list_log_manifests, read_logs
from drkit.operations.oplog_log import FIRST_TIMELINE, newest_timeline
from drkit.operations.oplog_spool import OplogSpool, Position, SealedSlice
from drkit.operations.sealed_files import SealedDamaged
from drkit.oplog import Anchor, OplogSpan, OplogTs, slice_name
from drkit.policy import Policy

LIST_EVERY = 64


class OplogChain(ManifestChain[OplogManifest]):
    """The chain of the manifests of MongoDB's oplog."""

    def ends(self, manifest: OplogManifest) -> tuple[str, str]:
        """Return both places, as in the names of slices."""
        first, last = slice_name(OplogTs.parse(manifest.from_ts), OplogTs.parse(manifest.to_ts)).split("-")
        return first, last

    def write(self, batch: Sequence[SealedSlice]) -> None:
        """Sign a manifest of slices that follow on each other, and keep it in the spool."""
        files = tuple(item.record for item in batch)
        self._append(batch[0].timeline, files[0].from_ts, files[-1].to_ts, files=files)

    def write_lost(self, timeline: int, from_ts: OplogTs, to_ts: OplogTs, reason: str) -> None:
        """Sign that the entries between two places are lost."""
        self._append(timeline, str(from_ts), str(to_ts), lost=True, reason=reason)

    def write_branch(self, timeline: int, from_timeline: int, at_ts: OplogTs, reason: str) -> None:
        """Sign that a timeline begins."""
        self._append(timeline, str(at_ts), str(at_ts), branched_from=from_timeline, reason=reason)

    def _append(self, timeline: int, from_ts: str, to_ts: str, **more: Any) -> None:
        ends = {"timeline": timeline, "from_ts": from_ts, "to_ts": to_ts}
        self.append(OplogManifest.model_validate({**self.common(), "files": (), **ends, **more}))


class OplogShipper:
    """Ships the slices of one policy; its methods may be called from any thread once `recover` has returned."""

    def __init__(self, workplace: Workplace, policy: Policy, spool: OplogSpool) -> None:
        self._workplace = workplace
        self._policy = policy
        self._spool = spool
        self._lanes = make_lanes([workplace.stores[name] for name in policy.stores])
        self._chain = OplogChain(workplace, policy, spool.manifests, self._lanes, OplogManifest)
        self._lock = threading.RLock()
        self._storing = threading.Lock()
        self._sealed = {item.name: item for item in spool.load_sealed()}
        self._position = spool.position()

    def recover(self) -> None:
        """Find out what the first store lists; raise StoreError if it is out of reach.

        Another host may have gone further, or begun a new timeline: then reading goes on behind that.
        """
        with self._storing:
            scan = self._chain.take_up()
            first, signers = self._lanes[0].store, self._workplace.signers
            after = self._position.timeline if self._position else 0
            newest = newest_timeline(first, signers, self._policy.policy, after=after)
            with self._lock:
                signed = [log.manifest for log in scan.trusted] + [item.manifest for item in self._chain.pending]
                newest = max([newest, *(item.timeline for item in signed)])
                ends = [_end_of(item) for item in signed if item.timeline == newest]
                self._move(max([*ends, *([self._position] if self._position else [])], key=_order, default=None))
                self._compare(scan)

    def _compare(self, scan: LogScan[OplogManifest]) -> None:
        """Let go of slices whose manifest stands in every store: the last process was just removing them."""
        listed = {item.plain_sha256 for log in scan.trusted for item in log.manifest.files}
        waiting = {name for pending in self._chain.pending for name in pending.names}
        for item in list(self._sealed.values()):
            item.listed = item.name in waiting
            if item.record.plain_sha256 in listed and not item.listed:
                self._let_go(item)

    def _move(self, position: Position | None) -> None:
        if position is not None and position != self._position:
            self._spool.keep_position(position)
            self._position = position

    # What is known --------------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position | None:
        """Return the entry behind which the next slice begins, None when nothing was ever read."""
        return self._position

    def backlog(self) -> int:
        """Return how many slices do not yet stand in every store with their manifest."""
        with self._lock:
            return len(self._sealed)

    def oldest_unstored_ts(self) -> OplogTs | None:
        """Return the oldest entry that is not in every store, None when all are that were sealed."""
        everywhere = {lane.name for lane in self._lanes}
        with self._lock:
            waiting = [item.record.first_ts for item in self._sealed.values() if item.stored_in < everywhere]
        return min(map(OplogTs.parse, waiting), default=None)

    def errors(self) -> list[DrkitError]:
        """Return what is wrong with the stores right now."""
        return [lane.error for lane in self._lanes if lane.error is not None]

    # What was read --------------------------------------------------------------------------------------------------

    def seal(self, position: Position, span: OplogSpan, content: Sequence[bytes]) -> Position:
        """Make a slice of what was read behind ``position``, durably; return the new position.

        Raise SourceError when the spool cannot hold it.
        """
        item = self._spool.seal(position.timeline, position.end.ts, span, content, self._chain.sealing)
        with self._lock:
            self._sealed[item.name] = item
            if position == self._position:
                self._move(Position(item.timeline, item.end))
        return Position(item.timeline, item.end)

    def begin(self, at: Anchor) -> None:
        """Take the first place ever: the log goes on behind it."""
        with self._lock:
            self._move(Position(FIRST_TIMELINE, at))

    def note_lost(self, to: Anchor, reason: str) -> None:
        """Sign that what is behind the position was lost, and go on behind ``to``."""
        with self._storing, self._lock:
            assert self._position is not None
            timeline, end = self._position.timeline, self._position.end
            self._chain.write_lost(timeline, end.ts, to.ts, reason)
            self._move(Position(timeline, to))

    def branch(self, at: Anchor, reason: str) -> None:
        """Begin a new timeline at ``at``; what was sealed belongs to the old one."""
        with self._storing, self._lock:
            assert self._position is not None
            timeline = self._position.timeline
            self._chain.write_branch(timeline + 1, timeline, at.ts, reason)
            self._move(Position(timeline + 1, at))

    def has_newer(self) -> bool:
        """Tell whether somebody else began a newer timeline in the first store; `recover` goes over to it."""
        timeline = self._position.timeline if self._position else FIRST_TIMELINE
        store = self._lanes[0].store
        return newest_timeline(store, self._workplace.signers, self._policy.policy, after=timeline) > timeline

    # Into the stores ------------------------------------------------------------------------------------------------

    def ship(self) -> None:
        """Put what is sealed into the stores that lack it, and list it; raise the first error after trying all."""
        failure: DrkitError | None = None
        with self._storing:
            with self._lock:
                waiting = sorted(self._sealed.values(), key=lambda item: (item.timeline, item.from_ts))
            for lane in self._lanes:
                for item in waiting:
                    if lane.name in item.stored_in or item.name not in self._sealed:
                        continue
                    try:
                        self._put(lane, item)
                    except StoreError as error:
                        failure = failure or error
                        break
                    except IntegrityError as error:  # of this one; those behind it have their turn
                        failure = failure or error
            self._list()
            self._deliver()
        if failure is not None:
            raise failure

    def _put(self, lane: Lane, item: SealedSlice) -> None:
        record = item.record
        try:
            info = put_sealed(lane, record, item.chunks())
        except StoreExists as error:
            self._settle(lane, item, error)
            return
        except SealedDamaged:
            if not item.listed:
                self._read_again(item)
                raise
            self._chain.bring(item.name, lane)
            with self._lock:
                item.stored_in.add(lane.name)
            return
        with self._lock:
            if lane is self._lanes[0] and not item.listed:
                found = {"version_id": info.version_id, "checksum": info.checksum, "stored_at": self._workplace.clock()}
                item.record = record.model_copy(update=found)
            item.stored_in.add(lane.name)

    def _settle(self, lane: Lane, item: SealedSlice, error: StoreExists) -> None:
        """Decide about a key that is taken by other sealed bytes.

        A listed slice of the same range makes ours superfluous.
        """
        if self._is_listed(lane, item):
            with self._lock:
                item.stored_in.add(lane.name)
                if lane is self._lanes[0]:
                    self._let_go(item)
            return
        raise remove_stranger(lane, item.record.key, self._workplace.clock()) from error

    def _is_listed(self, lane: Lane, item: SealedSlice) -> bool:
        first, last = item.name.split("-")
        keys = [
            key
            for key in list_log_manifests(lane.store, self._policy.policy)
            if (place := bucket.parse_log_manifest_key(key)) and place.first <= first and last <= place.last
        ]
        scan = read_logs(lane.store, self._workplace.signers, self._policy.policy, keys, OplogManifest)
        return any(record.key == item.record.key for log in scan.trusted for record in log.manifest.files)

    def _read_again(self, item: SealedSlice) -> None:
        """Drop a damaged slice and go back to where it begins: the server may have it still; a listed one cannot be."""
        with self._lock:
            self._let_go(item)
            if self._position is not None and self._position.timeline == item.timeline:
                self._move(Position(item.timeline, Anchor(item.from_ts)))

    def _list(self) -> None:
        """Write manifests of what is in the first store."""
        first = self._lanes[0].name
        with self._lock:
            while batch := self._batch(first):
                self._chain.write(batch)
                for item in batch:
                    item.listed = True

    def _batch(self, first: str) -> list[SealedSlice]:
        ready = [item for item in self._sealed.values() if not item.listed and first in item.stored_in]
        batch: list[SealedSlice] = []
        for item in sorted(ready, key=lambda item: (item.timeline, item.from_ts)):
            if batch and (item.timeline, item.from_ts) != (batch[-1].timeline, batch[-1].end.ts):
                break
            batch.append(item)
        return batch[:LIST_EVERY]

    def _deliver(self) -> None:
        with self._lock:
            stored_in = {name: item.stored_in for name, item in self._sealed.items()}
        for pending in self._chain.deliver(stored_in):
            with self._lock:
                for name in sorted(pending.names & self._sealed.keys()):
                    self._let_go(self._sealed[name])
            self._chain.forget(pending)

    def _let_go(self, item: SealedSlice) -> None:
        self._spool.forget(item)
        self._sealed.pop(item.name, None)


def _end_of(manifest: OplogManifest) -> Position:
    """Return where reading goes on behind a manifest."""
    last_sha256 = manifest.files[-1].last_sha256 if manifest.files else ""
    return Position(manifest.timeline, Anchor(OplogTs.parse(manifest.to_ts), last_sha256))


def _order(position: Position) -> tuple[int, OplogTs, str]:
    return position.timeline, position.end.ts, position.end.sha256
