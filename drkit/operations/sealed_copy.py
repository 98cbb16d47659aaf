"""Moving the sealed bytes of one object from store to store, compared with what was signed while they move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from drkit.errors import DrkitError, IntegrityError, StoreError, StoreMissing
from drkit.model import ObjectRecord
from drkit.stores import Store
from drkit.stream import Meter, checked, drain, prefetch

OpenSealed = Callable[[Store], AbstractContextManager[Iterator[bytes]]]
"""Opens an object in a store; its chunks raise IntegrityError at their end unless they are what was signed."""


def copy_sealed(
    sources: Sequence[Store],
    target: Store,
    record: ObjectRecord,
    open_sealed: OpenSealed,
    advance: Callable[[int], object],
) -> None:
    """Put one object into ``target`` from the first source that has it sound; raise the first error when none has.

    An object that is there already (an earlier copy was cut off after it) is compared with its signed digest and kept,
    without reading a source. Raise IntegrityError when it is another one: it is left for somebody to look at.
    """
    if holds(target, record):
        advance(record.stored_bytes)
        return
    failure: DrkitError | None = None
    for source in sources:
        reading = _Reading(advance)
        try:
            with open_sealed(source) as chunks, prefetch(chunks) as ahead:
                info = target.put(record.key, reading.watch(ahead))
        except (IntegrityError, StoreError) as error:
            if reading.is_fine:
                raise
            failure = failure or error
        else:
            if info.size_bytes != record.stored_bytes:
                raise IntegrityError(f"store {target.name} does not have {record.key} as it was written")
            return
    assert failure is not None
    raise failure


def holds(store: Store, record: ObjectRecord) -> bool:
    """Tell whether a store has an object with the bytes that were signed.

    The store's own checksum is enough where it is the signed one; else the object is read. Raise IntegrityError when
    there are other bytes under its key.
    """
    what = f"object {record.key} in store {store.name}"
    hints = [f"compare it with another store; then take it out of store {store.name}, and: drkit store copy"]
    try:
        info = store.head(record.key)
        if info.size_bytes == record.stored_bytes and info.checksum and record.checksum:
            one, other = info.checksum, record.checksum
            if (one.algorithm, one.kind, one.value) == (other.algorithm, other.kind, other.value):
                return True
        with store.open(record.key, version_id=info.version_id) as chunks:
            drain(checked(chunks, Meter(), size_bytes=record.stored_bytes, sha256=record.stored_sha256, what=what))
    except StoreMissing:
        return False
    except IntegrityError as error:
        raise IntegrityError(f"{error.message}: it is not the one that was signed", hints=hints) from error
    return True


class _Reading:
    """Tells whether an error came from reading, which another store may do better, or from writing."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance
        self.is_fine = False

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.is_fine = True
            self._advance(len(chunk))
            yield chunk
            self.is_fine = False
        self.is_fine = True
