"""A store that tries again: the same interface, around any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime

from drkit.errors import StoreUnavailable
from drkit.stores import ObjectInfo, Store, Traits
from drkit.stores.backoff import Backoff


class RetryingStore:
    """Repeat what failed with StoreUnavailable, and nothing else.

    A stream can be read only once, so `put` is repeated only for a list or tuple of chunks; a generator gets one try,
    and the store itself must be patient with its pieces. A read is repeated until its first chunk is asked for; going
    on from the middle is the store's own work.
    """

    def __init__(self, store: Store, backoff: Backoff | None = None) -> None:
        self._store = store
        self._backoff = backoff or Backoff(attempts=3)

    @property
    def name(self) -> str:
        """Return the name of the store inside."""
        return self._store.name

    @property
    def url(self) -> str:
        """Return the URL of the store inside."""
        return self._store.url

    @property
    def traits(self) -> Traits:
        """Return the traits of the store inside."""
        return self._backoff.retry(lambda: self._store.traits)

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        """Create an object (`Store.put`); repeated only when ``chunks`` is a list or a tuple."""
        if isinstance(chunks, list | tuple):
            return self._backoff.retry(lambda: self._store.put(key, chunks))
        return self._store.put(key, chunks)

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        """Write a small object if its revision is still ``expected`` (`Store.replace`)."""
        return self._backoff.retry(lambda: self._store.replace(key, content, expected=expected))

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:
        """Read an object (`Store.open`)."""
        with ExitStack() as stack:
            yield self._backoff.retry(lambda: stack.enter_context(self._store.open(key, version_id=version_id)))

    def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """Describe an object (`Store.head`)."""
        return self._backoff.retry(lambda: self._store.head(key, version_id=version_id))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Describe the objects under ``prefix`` (`Store.list`); a break is taken up behind the last key."""
        return self._resume_list(prefix, self._backoff.retry(lambda: self._store.list(prefix)))

    def _resume_list(self, prefix: str, listing: Iterator[ObjectInfo] | None) -> Iterator[ObjectInfo]:
        last = ""
        delays_s = self._backoff.delays_s()
        while True:
            try:
                # Inside, because a store may fail already when it is asked for the listing.
                for found in self._store.list(prefix) if listing is None else listing:
                    if found.key > last:
                        last = found.key
                        delays_s = self._backoff.delays_s()
                        yield found
            except StoreUnavailable:
                delay_s = next(delays_s, None)
                if delay_s is None:
                    raise
                self._backoff.sleep(delay_s)
                listing = None
            else:
                return

    def delete(self, key: str, *, version_id: str | None = None) -> None:
        """Remove an object (`Store.delete`)."""
        self._backoff.retry(lambda: self._store.delete(key, version_id=version_id))

    def extend_lock(self, key: str, until: datetime, *, version_id: str | None = None) -> None:
        """Lock an object for longer (`Store.extend_lock`)."""
        self._backoff.retry(lambda: self._store.extend_lock(key, until, version_id=version_id))

    def abort_leftovers(self, *, older_than: datetime) -> int:
        """Remove what unfinished puts left (`Store.abort_leftovers`)."""
        return self._backoff.retry(lambda: self._store.abort_leftovers(older_than=older_than))

    def examine(self, key: str) -> Mapping[str, bool]:
        """Try abilities that only this kind of store has (`Store.examine`)."""
        return self._backoff.retry(lambda: self._store.examine(key))

    def close(self) -> None:
        """Close the store inside."""
        self._store.close()
