"""Leases of readers: a prune on any host leaves alone what a restore, drill, verification or copy is reading.

Nobody signs a lease, so one can only hold up a deletion, and not for ever (`HELD_UP_AT_MOST`). How long one holds is
counted by the store's clock, which the prune has compared with its own; what a reader's clock says means nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import Self

from drkit import bucket
from drkit.errors import Busy, ConfigError, StoreError
from drkit.operations import Reporter, Workplace
from drkit.operations.store_lease import LEASE_TTL, StoreLease, is_given_back, take_lease
from drkit.retention_facts import CLOCK_SKEW
from drkit.stores import Store

HELD_UP_AT_MOST = timedelta(days=7)
"""What a prune found due so long ago is deleted whatever leases say: whoever can write to a store cannot fill it."""

_SLOTS = 16
_MOST_LOOKED_AT = 4 * _SLOTS  # whoever writes thousands there makes each look no longer
_BEAT_S = 60.0
_TAKEN_WITHIN_S = 10.0
_GIVEN_BACK_WITHIN_S = 10.0


@contextmanager
def reader_lease(workplace: Workplace, policy: str, stores: Collection[str], reporter: Reporter) -> Iterator[None]:
    """Hold a reader's lease on a policy in each of these stores while the context lasts.

    A store that takes none, because this host may only read it, stops nothing: it is said once that only the time of
    grace protects what is read there. Neither does one that does not answer in time; it may take the lease later.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(workplace, workplace.stores[name], policy)) for name in stores]
        for refusal in filter(None, [reader.wait() for reader in readers]):
            reporter.line(f"  unprotected {refusal}; only the time of grace protects what is read there from a prune")
        yield


class _Reader:
    """One reader's lease in one store, taken and kept in a thread of its own: a slow store holds up nobody."""

    def __init__(self, workplace: Workplace, store: Store, policy: str) -> None:
        self._workplace = workplace
        self._store = store
        self._policy = policy
        self._lease: StoreLease | None = None
        self._refusal = ""
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reader {store.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lease back; one that a store does not take back now ends by itself."""
        self._stopping.set()
        self._thread.join(_GIVEN_BACK_WITHIN_S)

    def wait(self) -> str:
        """Return why there is no lease, empty when there is one."""
        if not self._tried.wait(_TAKEN_WITHIN_S):
            return f"store {self._store.name} has not taken this reader's lease yet"
        return self._refusal

    def _run(self) -> None:
        self._beat()
        self._tried.set()
        while not self._stopping.wait(_BEAT_S):
            self._beat()
        if self._lease is not None:
            self._lease.give_back()

    def _beat(self) -> None:
        """Renew the lease in time, or take one, also anew where somebody else has ours by now."""
        try:
            if self._lease is not None:
                self._lease.keep()
                return
        except Busy:
            self._lease = None
        except (ConfigError, StoreError):
            return
        try:
            self._lease = self._take()
        except (ConfigError, StoreError) as error:  # a secret may be missing
            self._refusal = f"store {self._store.name} takes no lease of this reader: {error.message}"

    def _take(self) -> StoreLease | None:
        if not self._store.traits.compare_and_swap:
            self._refusal = f"store {self._store.name} keeps no leases"
            return None
        for slot in range(_SLOTS):
            try:
                return take_lease(self._store, bucket.reader_lease_name(self._policy, slot), self._workplace.clock)
            except Busy:
                continue
        self._refusal = f"store {self._store.name} has {_SLOTS} readers of the policy already"
        return None


def live_reader(store: Store, policy: str, now: datetime) -> str:
    """Return the key of a lease by which something of a policy is being read, empty where there is none.

    One that was given back has ended, and so has one that was not renewed in its time and the skew of two clocks.
    """
    for item in islice(store.list(bucket.reader_leases_prefix(policy)), _MOST_LOOKED_AT):
        if now < item.modified_at + LEASE_TTL + CLOCK_SKEW and not _is_given_back(store, item.key):
            return item.key
    return ""


def _is_given_back(store: Store, key: str) -> bool:
    """Tell whether a lease has ended; one that the store does not let us read may stand, and fails no prune."""
    try:
        return is_given_back(store, key)
    except StoreError:
        return False
