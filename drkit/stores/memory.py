"""A store in memory: the same promises as the others, gone with the process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter

from drkit.errors import StoreExists, StoreMissing
from drkit.stores import ObjectInfo, Traits
from drkit.stores.naming import check_key, check_prefix
from drkit.units import CHUNK_BYTES


@dataclass(frozen=True)
class _Stored:
    content: bytes
    modified_at: datetime
    revision: str


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """Objects in a dict; for tests of operations, and for trying things out. Safe to share between threads."""

    traits = Traits(create_only=True, compare_and_swap=True, versions=False, object_lock=False, local=True)

    def __init__(self, name: str, *, url: str = "memory:", now: Callable[[], datetime] = _utc_now) -> None:
        self.name = name
        self.url = url
        self._now = now
        self._objects: dict[str, _Stored] = {}
        self._revisions = itertools.count(1)
        self._lock = threading.Lock()

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        """Create an object (`Store.put`)."""
        check_key(key)
        content = b"".join(chunks)
        with self._lock:
            there = self._objects.get(key)
            if there is None:
                return self._write(key, content)
            if there.content != content:
                raise StoreExists(f"{key} is in store {self.name} already, with other bytes")
            return _describe(key, there)

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        """Write a small object if its revision is still ``expected`` (`Store.replace`)."""
        check_key(key)
        with self._lock:
            there = self._objects.get(key)
            if (there.revision if there else None) != expected:
                raise StoreExists(f"{key} in store {self.name} was changed by somebody else")
            return self._write(key, content)

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:  # noqa: ARG002
        """Read an object (`Store.open`); there are no versions, so ``version_id`` is not looked at."""
        content = self._get(key).content
        yield (content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES))

    def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:  # noqa: ARG002
        """Describe an object (`Store.head`); there are no versions, so ``version_id`` is not looked at."""
        return _describe(key, self._get(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Describe the objects under ``prefix`` as they are now (`Store.list`)."""
        check_prefix(prefix)
        with self._lock:
            found = [
                (key, stored)
                for key, stored in sorted(self._objects.items(), key=itemgetter(0))
                if key.startswith(prefix)
            ]
        return (_describe(key, stored) for key, stored in found)

    def delete(self, key: str, *, version_id: str | None = None) -> None:  # noqa: ARG002
        """Remove an object (`Store.delete`); there are no versions, so ``version_id`` is not looked at."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def extend_lock(self, key: str, until: datetime, *, version_id: str | None = None) -> None:
        """Do nothing: memory has no locks (`Store.extend_lock`)."""

    def abort_leftovers(self, *, older_than: datetime) -> int:  # noqa: ARG002
        """Return 0: an unfinished put leaves nothing behind here."""
        return 0

    def examine(self, key: str) -> Mapping[str, bool]:  # noqa: ARG002
        """Return nothing: there is no server that could be asked (`Store.examine`)."""
        return {}

    def close(self) -> None:
        """Do nothing; the objects stay for whoever else holds this store."""

    def _get(self, key: str) -> _Stored:
        check_key(key)
        with self._lock:
            stored = self._objects.get(key)
        if stored is None:
            raise StoreMissing(f"{key} is not in store {self.name}")
        return stored

    def _write(self, key: str, content: bytes) -> ObjectInfo:
        stored = self._objects[key] = _Stored(bytes(content), self._now(), str(next(self._revisions)))
        return _describe(key, stored)


def _describe(key: str, stored: _Stored) -> ObjectInfo:
    return ObjectInfo(key, len(stored.content), stored.modified_at, revision=stored.revision)
