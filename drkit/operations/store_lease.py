"""Leases in a store, for hosts that share it and no catalog: compare-and-swap, expiring, fenced, never deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from drkit import bucket
from drkit.canonical import canonical_json, parse_json
from drkit.errors import Busy, IntegrityError, StoreError, StoreExists, StoreMissing
from drkit.process_identity import ProcessIdentity
from drkit.stores import Store, read_object
from drkit.units import format_moment, format_utc, parse_utc

LEASE_TTL = timedelta(minutes=10)
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass
class StoreLease:
    """A lease that is held; ``store_now`` is what the store's clock said when ours said ``taken_at``."""

    store: Store
    name: str
    clock: Callable[[], datetime]
    holder: str
    fence: int
    revision: str | None
    expires_at: datetime
    taken_at: datetime
    store_now: datetime

    def keep(self) -> None:
        """Make sure that it is still ours, renewing it in time; raise Busy when somebody else has it by now.

        One that ends later than any can, because our clock went back, holds for nobody else: it is renewed as well.
        """
        now = self.clock()
        if not LEASE_TTL / 2 <= self.expires_at - now <= LEASE_TTL:
            self._write(now + LEASE_TTL)

    def give_back(self) -> None:
        """Let others have it at once; a store that does not answer now lets it expire."""
        with suppress(StoreError, Busy):
            self._write(_EPOCH)

    def _write(self, expires_at: datetime) -> None:
        content = _content(self.holder, self.fence, expires_at)
        try:
            written = self.store.replace(bucket.lease_key(self.name), content, expected=self.revision)
        except StoreExists as error:
            raise Busy(f"the lease {self.name} in store {self.store.name} was taken by somebody else") from error
        self.revision, self.expires_at = written.revision, expires_at


@contextmanager
def store_lease(store: Store, name: str, clock: Callable[[], datetime]) -> Iterator[StoreLease]:
    """Hold the lease ``name`` in a store while the context lasts; raise Busy when another process that may live has it.

    Its expiry is by this host's clock; whoever holds it compares ``store_now`` with its own clock before it trusts it.
    """
    lease = take_lease(store, name, clock)
    try:
        yield lease
    finally:
        lease.give_back()


def take_lease(store: Store, name: str, clock: Callable[[], datetime]) -> StoreLease:
    """Take the lease ``name`` for whoever gives it back; see `store_lease`."""
    key, now = bucket.lease_key(name), clock()
    revision, holder, fence, expires_at = _look(store, key)
    own = str(ProcessIdentity.own())
    # One that ends later than any could is not a lease of ours: whoever can write there could stop us for ever by it.
    if now < expires_at <= now + 2 * LEASE_TTL and holder != own and not ProcessIdentity.parse(holder).is_known_dead():
        raise Busy(
            f"{name} is busy: {holder} holds its lease in store {store.name} until {format_moment(expires_at)}",
            hints=["drkit run list"],
        )
    try:
        written = store.replace(key, _content(own, fence + 1, now + LEASE_TTL), expected=revision)
    except StoreExists as error:
        raise Busy(f"{name} is busy: somebody else has just taken its lease in store {store.name}") from error
    return StoreLease(store, name, clock, own, fence + 1, written.revision, now + LEASE_TTL, now, written.modified_at)


def is_given_back(store: Store, key: str) -> bool:
    """Tell whether a lease was given back, is gone, or cannot be read: then nobody holds it."""
    return _look(store, key)[3] == _EPOCH


def _look(store: Store, key: str) -> tuple[str | None, str, int, datetime]:
    """Return a lease's revision, holder, fence and end; one that cannot be read is nobody's, but keeps its revision."""
    try:
        revision = store.head(key).revision
        document = parse_json(read_object(store, key, limit_bytes=4096), f"{key} in store {store.name}")
        return revision, str(document["holder"]), int(document["fence"]), parse_utc(str(document["expires_at"]))
    except StoreMissing:
        return None, "", 0, _EPOCH
    except (IntegrityError, KeyError, TypeError, ValueError, OverflowError):
        return revision, "", 0, _EPOCH


def _content(holder: str, fence: int, expires_at: datetime) -> bytes:
    lease = {"format": "drkit-lease", "version": 1, "holder": holder, "fence": fence}
    return canonical_json({**lease, "expires_at": format_utc(expires_at)})
