"""Stores keep immutable named byte objects: a folder, an S3 bucket, memory for tests.

This file is the contract; tests/contract/test_stores.py holds every implementation to it. A store knows nothing of
manifests, encryption or compression. Keys are relative, ``/``-separated, of ``A-Z a-z 0-9 . _ - /`` without empty,
``.`` or ``..`` segments; anything else is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from drkit.errors import IntegrityError
from drkit.model import Checksum
from drkit.units import MIB

LARGEST_DOCUMENT_BYTES = 64 * MIB
"""Whoever reads a document holds it in memory; the manifest of a dump has about a kilobyte for each table."""


@dataclass(frozen=True)
class Traits:
    """What a store can do; optional abilities are data, so that nobody asks for them by ``hasattr``.

    ``local`` says that reading an object twice costs no more than reading a file twice.
    """

    create_only: bool
    compare_and_swap: bool
    versions: bool
    object_lock: bool
    local: bool = False


class ObjectInfo(NamedTuple):
    """What a store says of one object without reading it. ``revision`` is opaque: what `Store.replace` compares.

    A tuple, because a listing makes hundreds of thousands, each in a third of the time of a frozen dataclass.
    ``locked_until`` is from `Store.head` only, and None as well where the store does not let us see it; a lock that
    has no end (S3's legal hold) has that of the calendar.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    version_id: str | None = None
    revision: str | None = None
    checksum: Checksum | None = None
    locked_until: datetime | None = None


class Store(Protocol):
    """Every method may raise StoreUnavailable (worth a retry) or StoreError (not), both naming the store."""

    @property
    def name(self) -> str:
        """Return the name that the site gives the store, for messages."""

    @property
    def url(self) -> str:
        """Return where it is, without credentials."""

    @property
    def traits(self) -> Traits:
        """Return what the store can do."""

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        """Create ``key`` from ``chunks``, durably, and return what the store then says of it.

        ``chunks`` is consumed once, from the caller's thread. When it raises, or anything else fails, no object of that
        name exists afterwards and no upload is left behind. Raise StoreExists when the key is there already with other
        bytes; the same bytes (our own earlier try) are success.
        """

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        """Write a small object if its revision is still ``expected`` (None: it must not exist), atomically.

        For leases only: everything else is written once. Raise StoreExists when the revision is another by now.
        """

    def open(self, key: str, *, version_id: str | None = None) -> AbstractContextManager[Iterator[bytes]]:
        """Read an object as chunks of up to a mebibyte, all of it or an error: a short body is StoreUnavailable.

        Raise StoreMissing, on entering, when it is not there.
        """

    def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """Describe one object; raise StoreMissing when it is not there."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Describe every object whose key starts with ``prefix``, in order of keys. ``checksum`` may be absent."""

    def delete(self, key: str, *, version_id: str | None = None) -> None:
        """Remove one object; it is no error when it is not there."""

    def extend_lock(self, key: str, until: datetime, *, version_id: str | None = None) -> None:
        """Lock an object until then, if it is not locked for longer; a store that locks nothing does nothing.

        Raise StoreMissing when it is not there.
        """

    def abort_leftovers(self, *, older_than: datetime) -> int:
        """Remove what unfinished puts left before that moment (temporary files, uploads); return how many."""

    def examine(self, key: str) -> Mapping[str, bool]:
        """Try abilities that only this kind of store has, on the object ``key`` of three bytes or more; for the probe.

        Return each ability's name and whether it is there; leave nothing behind.
        """

    def close(self) -> None:
        """Give back connections; the store is not used afterwards."""


def read_object(store: Store, key: str, *, limit_bytes: int = LARGEST_DOCUMENT_BYTES) -> bytes:
    """Read a small object whole; raise StoreMissing, or IntegrityError when it is larger than ``limit_bytes``."""
    content = bytearray()
    with store.open(key) as chunks:
        for chunk in chunks:
            content += chunk
            if len(content) > limit_bytes:
                raise IntegrityError(f"{key} in store {store.name} is larger than {limit_bytes:,} bytes")
    return bytes(content)
