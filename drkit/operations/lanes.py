"""The stores of one policy as shipping sees them: one that fails is left alone for a while, the others go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from drkit.errors import ConfigError, DrkitError, IntegrityError, StoreError, StoreExists, StoreUnavailable
from drkit.model import ObjectRecord
from drkit.operations.repository import join_repository
from drkit.stores import ObjectInfo, Store
from drkit.units import MIB, format_duration

_STRANGER_FOR = timedelta(minutes=10)
_IN_MEMORY_BYTES = 64 * MIB
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0


class Lane:
    """One store, and how it has been behaving; ``first`` is the policy's first store, None when this is it."""

    def __init__(self, store: Store, first: Store | None) -> None:
        self.store = store
        self.first = first
        self.error: DrkitError | None = None
        self._joined = first is None
        self._wait_s = 0.0
        self._until_s = 0.0

    @property
    def name(self) -> str:
        """Return the store's name."""
        return self.store.name

    @contextmanager
    def asking(self) -> Iterator[Store]:
        """Lend the store; while it is left alone raise its last error, and never for longer because somebody asked.

        What fails leaves it alone for a while, longer each time. That a key is taken, StoreExists, is an answer.
        """
        if self.error is not None and time.monotonic() < self._until_s:
            raise self.error
        try:
            if not self._joined and self.first is not None:
                join_repository(self.first, self.store)
                self._joined = True
            yield self.store
        except StoreExists:
            self._is_well()
            raise
        except StoreError as error:
            self._rest(error)
            raise
        except ConfigError as error:  # a secret that is missing is this store's trouble, and no other's
            refused = StoreError(error.message, details=error.details, hints=error.hints)
            self._rest(refused)
            raise refused from error
        self._is_well()

    def _is_well(self) -> None:
        self.error, self._wait_s = None, 0.0

    def _rest(self, error: StoreError) -> None:
        self.error = error
        self._wait_s = min(max(2 * self._wait_s, _FIRST_WAIT_S), _LONGEST_WAIT_S)
        self._until_s = time.monotonic() + self._wait_s


def put_sealed(lane: Lane, record: ObjectRecord, chunks: Iterator[bytes]) -> ObjectInfo:
    """Put a sealed file into a store; raise StoreExists, which is no failing of the store, for a key that is taken."""
    with lane.asking() as store:
        # A list can be sent again by the store itself, a stream cannot.
        content = list(chunks) if record.stored_bytes <= _IN_MEMORY_BYTES else chunks
        info = store.put(record.key, content)
    if info.size_bytes != record.stored_bytes:
        raise IntegrityError(f"store {lane.name} does not have {record.key} as it was written")
    return info


def remove_stranger(lane: Lane, key: str, now: datetime) -> StoreUnavailable:
    """Remove what somebody else wrote to ``key`` and never listed; return why the key cannot be written to yet.

    What nobody has listed is no backup; it may be about to be one, written by another host, so only after some minutes
    is it taken for what a lost spool left.
    """
    age = now - lane.store.head(key).modified_at
    if age >= _STRANGER_FOR:
        lane.store.delete(key)
    return StoreUnavailable(
        f"{key} was written to store {lane.name} {format_duration(age)} ago by somebody else and is not listed yet;"
        f" after {format_duration(_STRANGER_FOR)} it is taken for an unfinished write"
    )


def make_lanes(stores: Sequence[Store]) -> list[Lane]:
    """Return a lane for each of a policy's stores, in its order."""
    return [Lane(store, stores[0] if position else None) for position, store in enumerate(stores)]
