"""Shipping: from the spool into the stores, and into signed log manifests.

What is promised, and kept through kill -9 at any moment:

- a file is sealed once, durably (`drkit.operations.spool`), and put create-only; asked again, a store knows it
- the same name with other content is refused, with both digests
- a manifest goes into a store after the files that it lists (R2 of docs/format.md)
- the spool lets go of a file only when its manifest stands in every store of the policy
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from weakref import WeakValueDictionary

from drkit import bucket
from drkit.errors import DrkitError, IntegrityError, StoreError, StoreExists
from drkit.log_documents import LogRecord
from drkit.operations import Workplace
from drkit.operations.growing import Growing, Stamp, stamp_of
from drkit.operations.lanes import Lane, make_lanes, put_sealed, remove_stranger
from drkit.operations.log_chain import LogChain, next_batch
from drkit.operations.logs import list_log_manifests, listed_files, read_listed
from drkit.operations.sealed_files import SealedDamaged, warm_up
from drkit.operations.spool import Sealed, Spool, read_facts
from drkit.policy import Policy
from drkit.units import CHUNK_BYTES
from drkit.wal import Segment, classify, parse_lsn, partial_name

LIST_AFTER = timedelta(seconds=30)
"""How long a stored file waits for its manifest; 60 s are promised (R12 of docs/format.md)."""

LIST_EVERY = 64
_MOST_COPIES = 4
_MOST_STAMPS = 1024


class Shipper:
    """Ships the files of one policy; its methods may be called from any thread once `recover` has returned."""

    def __init__(
        self, workplace: Workplace, policy: Policy, spool: Spool, *, list_after: timedelta = LIST_AFTER
    ) -> None:
        self._workplace = workplace
        self._policy = policy
        self._spool = spool
        self._list_after = list_after
        self._lanes = make_lanes([workplace.stores[name] for name in policy.stores])
        self._chain = LogChain(workplace, policy, spool, self._lanes)
        self._lock = threading.RLock()
        self._listing = threading.Lock()
        self._working: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._sealed: dict[str, Sealed] = {}
        self._listed: dict[str, str] = {}
        self._partial_ends: dict[str, int] = {}
        self._stamps: dict[str, tuple[str, Stamp]] = {}

    def recover(self) -> None:
        """Find out what an earlier process left and what the first store lists; raise StoreError if it is out."""
        warm_up(self._chain.sealing)
        with self._lock:
            for record in self._chain.recover():
                self._listed[record.part] = record.plain_sha256
                if record.kind == "partial":
                    self._note_partial(record)
            self._sealed = {item.name: item for item in self._spool.load_sealed()}
            waiting = {name for pending in self._chain.pending for name in pending.names}
            for item in list(self._sealed.values()):
                if item.name in waiting:
                    item.listed = True
                    self._listed[item.name] = item.record.plain_sha256
                elif self._listed.get(item.name) == item.record.plain_sha256:
                    self._let_go(item)  # its manifest stands everywhere: the last process was just removing it

    # What is known --------------------------------------------------------------------------------------------------

    def newest(self) -> Segment | None:
        """Return the newest whole segment that is known to be sealed or listed, None before the first."""
        identity = self._spool.identity()
        if identity is None:
            return None
        with self._lock:
            names = [name for name in (*self._listed, *self._sealed) if classify(name) == "segment"]
        segments = (Segment.parse(name, identity.segment_bytes) for name in names)
        return max(segments, key=lambda item: (item.number, item.timeline), default=None)

    def position(self, timeline: int) -> int:
        """Return up to where the log of a timeline is in every store, as far as is known; 0 when nothing is.

        What is behind a segment that is missing counts too: the gap shows elsewhere.
        """
        identity = self._spool.identity()
        if identity is None:
            return 0
        prefix, everywhere = f"{timeline:08X}", {lane.name for lane in self._lanes}
        with self._lock:
            waiting = {name for name, item in self._sealed.items() if item.stored_in < everywhere}
            stored = [name for name in (*self._listed, *self._sealed) if name not in waiting]
            ends = [end for name, end in self._partial_ends.items() if name.startswith(prefix)]
        names = (name for name in stored if name.startswith(prefix) and classify(name) == "segment")
        ends += [Segment.parse(name, identity.segment_bytes).end_lsn for name in names]
        return max(ends, default=0)

    def has(self, name: str) -> bool:
        """Say whether a file of that name is sealed or known to be listed."""
        with self._lock:
            return name in self._sealed or name in self._listed

    def is_listed(self, partial: str) -> bool:
        """Say whether no copy of an unfinished segment waits for its manifest any more."""
        segment_name = partial[:24]
        with self._lock:
            waiting = any(item.name[:24] == segment_name for item in self._sealed.values())
        return segment_name in self._partial_ends and not waiting

    def backlog(self) -> int:
        """Return how many sealed files do not yet stand in every store with their manifest."""
        with self._lock:
            return len(self._sealed)

    def errors(self) -> list[DrkitError]:
        """Return what is wrong with the stores right now."""
        return [lane.error for lane in self._lanes if lane.error is not None]

    # Files ----------------------------------------------------------------------------------------------------------

    def ship(self, path: Path, *, keep_source: bool = False) -> None:
        """Make one finished file durable in every store of the policy; it is success too when it is there already.

        Unless ``keep_source``, the file is removed once its manifest stands. Raise IntegrityError when other content
        has that name already, or the file is not what its name says or of another cluster; StoreError when a store does
        not take it, SourceError when the spool does not.
        """
        name = path.name
        with self._alone(name):
            expected = self._expected(name)
            if expected is not None:
                self._compare(path, name, expected)
            sealed = self._sealed.get(name)
            if sealed is None and expected is None:
                stamp = stamp_of(path)
                sealed = self._spool.seal(path, name, self._chain.sealing, keep_source=keep_source)
                self._keep(sealed, stamp)
            if sealed is not None:
                self._store(sealed)
            elif not keep_source:
                self._remove_source(path)

    def ship_growing(self, growing: Growing) -> None:
        """Do what `ship` does for a segment while the server still writes it, as soon as it is finished.

        Raise as `ship` does, and ReadInVain when it has to be shipped once more; nothing was kept of it then.
        """
        with self._alone(growing.name):
            if self._expected(growing.name) is not None:
                return
            sealed = self._spool.seal_growing(growing, self._chain.sealing)
            self._keep(sealed, growing.stamp)
            self._store(sealed)

    def _keep(self, sealed: Sealed, stamp: Stamp) -> None:
        self._note_read(sealed.name, sealed.record.plain_sha256, stamp)
        with self._lock:
            self._sealed[sealed.name] = sealed

    def ship_partial(self, path: Path) -> bool:
        """Store what there is of an unfinished segment, under a name of its own that is never used again.

        Return False when nothing came to it since the last time. While an earlier copy still waits for a store nothing
        is added either, nor while several are on their way to a further store: they would only wait as well.
        """
        segment_name = path.name.removesuffix(".partial")
        with self._alone(path.name):
            end_lsn = read_facts(path, path.name).end_lsn
            if end_lsn <= self._partial_ends.get(segment_name, 0):
                return False
            with self._lock:
                copies = [item for name, item in self._sealed.items() if name.startswith(f"{segment_name}.partial")]
            waiting = [item for item in copies if not item.listed]
            if len(copies) >= _MOST_COPIES:
                return False
            if not waiting:
                name = partial_name(segment_name, self._next_count(segment_name))
                waiting = [self._spool.seal(path, name, self._chain.sealing, keep_source=True)]
                with self._lock:
                    self._sealed[name] = waiting[0]
            for item in waiting:
                self._store(item)
                self._note_partial(item.record)
            return True

    def _note_partial(self, record: LogRecord) -> None:
        name, end_lsn = record.part[:24], parse_lsn(record.end_lsn or "0/0")
        self._partial_ends[name] = max(end_lsn, self._partial_ends.get(name, 0))

    def retry(self) -> None:
        """Try again what did not reach every store; raise the first error after trying all."""
        with self._lock:
            names = [name for name, item in self._sealed.items() if len(item.stored_in) < len(self._lanes)]
        failure: DrkitError | None = None
        for name in sorted(names):
            with self._alone(name):
                sealed = self._sealed.get(name)
                try:
                    if sealed is not None:
                        self._store(sealed)
                except DrkitError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def _alone(self, name: str) -> threading.Lock:
        """Return the lock of a file, which is there for as long as somebody works at that file."""
        with self._lock:
            return self._working.setdefault(name, threading.Lock())

    def _expected(self, name: str) -> str | None:
        """Return the SHA-256 of the plain content that has this name already."""
        with self._lock:
            sealed = self._sealed.get(name)
            return sealed.record.plain_sha256 if sealed else self._listed.get(name)

    def _compare(self, path: Path, name: str, expected: str) -> None:
        """Raise IntegrityError unless the file is what has its name already; one that was read before is not read."""
        stamp = stamp_of(path)
        if self._stamps.get(name) != (expected, stamp):
            digest = _sha256(path)
            if digest != expected:
                raise _conflict(name, expected, digest)
            self._note_read(name, expected, stamp)

    def _note_read(self, name: str, digest: str, stamp: Stamp) -> None:
        """Remember what was read; of a file that is asked for long after that it is read again."""
        with self._lock:
            self._stamps[name] = (digest, stamp)
            if len(self._stamps) > _MOST_STAMPS:
                del self._stamps[next(iter(self._stamps))]

    def _next_count(self, segment_name: str) -> int:
        """Return a number that no copy of the segment has, in the first store or here.

        A first store that cannot be listed is left alone for a while, as one that takes nothing is.
        """
        prefix = f"{segment_name}.partial-"
        with self._lock:
            names = {name for name in (*self._listed, *self._sealed) if name.startswith(prefix)}
        if not names:
            folder = bucket.timeline_prefix(self._policy.policy, int(segment_name[:8], 16))
            with self._lanes[0].asking() as first:
                listing = list(first.list(folder + prefix))
            names = {stored[2] for item in listing if (stored := bucket.parse_log_key(item.key))}
        counts = [int(name.removeprefix(prefix).partition("-")[0]) for name in names]
        return max(counts, default=0) + 1

    def _store(self, sealed: Sealed) -> None:
        """Put one sealed file into every store; try them all before the first error is raised."""
        failure: DrkitError | None = None
        for lane in self._lanes:
            if lane.name in sealed.stored_in or sealed.name not in self._sealed:
                continue
            try:
                self._put(lane, sealed)
            except (StoreError, IntegrityError) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _put(self, lane: Lane, sealed: Sealed) -> None:
        record = sealed.record
        try:
            info = put_sealed(lane, record, sealed.chunks())
        except StoreExists as error:
            self._settle(lane, sealed, error)
            return
        except SealedDamaged:
            if not sealed.listed:
                self._seal_again(sealed)
                raise
            self._chain.bring(sealed.name, lane)
            with self._lock:
                sealed.stored_in.add(lane.name)
            return
        with self._lock:
            if lane is self._lanes[0] and not sealed.listed:
                found = {"version_id": info.version_id, "checksum": info.checksum, "stored_at": self._workplace.clock()}
                sealed.record = record.model_copy(update=found)
            sealed.stored_in.add(lane.name)

    def _seal_again(self, sealed: Sealed) -> None:
        """Drop a damaged copy, so that the file is sealed anew when its turn comes; one that is listed cannot be."""
        with self._lock:
            self._spool.forget(sealed)
            self._sealed.pop(sealed.name, None)

    def _settle(self, lane: Lane, sealed: Sealed, error: StoreExists) -> None:
        """Decide about a key that is taken by other sealed bytes, which may hold the same content.

        What is listed is known by its plain digest.
        """
        there = self._look_up(lane, sealed.name)
        if there is not None and there.plain_sha256 != sealed.record.plain_sha256:
            raise _conflict(sealed.name, there.plain_sha256, sealed.record.plain_sha256) from error
        if there is not None and lane is self._lanes[0]:
            with self._lock:
                self._listed[sealed.name] = there.plain_sha256
                self._let_go(sealed)
            return
        if there is not None:
            raise IntegrityError(
                f"{sealed.name} is listed in store {lane.name}, and not in store {self._lanes[0].name}",
                hints=[f"drkit check {self._policy.policy}"],
            ) from error
        raise remove_stranger(lane, sealed.record.key, self._workplace.clock()) from error

    def _look_up(self, lane: Lane, name: str) -> LogRecord | None:
        """Find a file in the log manifests of a store, whatever its age."""
        keys = []
        for key in list_log_manifests(lane.store, self._policy.policy):
            place = bucket.parse_log_manifest_key(key)
            if place and place.first[:24] <= name[:24] <= place.last[:24]:
                keys.append(key)
        scan = read_listed(lane.store, self._workplace.signers, self._policy.policy, keys)
        return next((record for record in listed_files(scan) if record.part == name), None)

    # Manifests ------------------------------------------------------------------------------------------------------

    def list_due(self, *, force: bool = False) -> int:
        """Write the log manifests that are due (all that can be, with ``force``) and deliver them; return how many.

        Raise StoreError when a store does not take one; it stays in the spool, and the next call tries again.
        """
        with self._listing:
            count = 0
            while batch := self._batch(force=force):
                self._list(batch)
                count += 1
            with self._lock:
                stored_in = {name: item.stored_in for name, item in self._sealed.items()}
            for pending in self._chain.deliver(stored_in):
                for name in sorted(pending.names):
                    with self._lock:
                        sealed = self._sealed.get(name)
                    if sealed is not None:
                        self._let_go(sealed)
                self._chain.forget(pending)
            return count

    def _list(self, batch: Sequence[Sealed]) -> None:
        identity = self._spool.identity()
        assert identity is not None
        self._chain.write(batch, identity.segment_bytes)
        with self._lock:
            for item in batch:
                item.listed = True
                self._listed[item.name] = item.record.plain_sha256

    def _batch(self, *, force: bool) -> list[Sealed]:
        first, identity = self._lanes[0].name, self._spool.identity()
        with self._lock:
            ready = [item for item in self._sealed.values() if not item.listed and first in item.stored_in]
        if not ready or identity is None:
            return []
        now = self._workplace.clock()
        due = any(now - (item.record.stored_at or now) >= self._list_after for item in ready)
        if not (force or due or len(ready) >= LIST_EVERY):
            return []
        return next_batch(ready, identity.segment_bytes, LIST_EVERY)

    def _let_go(self, sealed: Sealed) -> None:
        """Remove a file whose manifest stands everywhere; what takes long is done before the lock is taken."""
        if sealed.source is not None:
            self._remove_source(sealed.source)
        self._spool.forget(sealed)
        with self._lock:
            self._sealed.pop(sealed.name, None)

    def _remove_source(self, path: Path) -> None:
        """Remove a received file, except the newest: it tells pg_receivewal where to go on."""
        names = [item.name for item in self._spool.received_files() if classify(item.name) in ("segment", "partial")]
        if path.name != max(names, key=lambda name: name[8:], default=""):
            path.unlink(missing_ok=True)


def _conflict(name: str, there: str, here: str) -> IntegrityError:
    return IntegrityError(
        f"{name} was stored before with other content: SHA-256 {there}, and now {here}",
        hints=["two servers write the log of one policy, such as a copy that still archives: give each its own policy"],
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
