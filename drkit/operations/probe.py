"""Find out what a store really does (R10): some that speak S3 accept a condition and then ignore it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from drkit.errors import StoreError, StoreExists, StoreMissing
from drkit.stores import Store, read_object
from drkit.units import CHUNK_BYTES, format_duration

MOST_CLOCK_OFFSET = timedelta(minutes=5)
_LARGE_CHUNKS = 9
_ROUNDS = 4
_WRITERS = 4
_PASSES = 5
_NEEDED = {"reads what was written", "lists what was written", "create-only", "create-only, large", "deletes"}

Verdict = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Ability:
    """One thing that a store does or does not do; ``needed`` says that drkit cannot keep its promises without it."""

    name: str
    verdict: Verdict
    detail: str = ""

    @property
    def needed(self) -> bool:
        """Say whether drkit's promises rest on it."""
        return self.name in _NEEDED


@dataclass(frozen=True)
class StoreProbe:
    """What was found out about one store; ``clock_offset`` is the store's clock minus ours."""

    store: str
    url: str
    at: datetime
    abilities: Sequence[Ability]
    clock_offset: timedelta
    left_behind: Sequence[str]

    @property
    def problems(self) -> list[str]:
        """Say what is wrong, one sentence each."""
        found = [f"the store cannot be relied on: {item.name}: {item.detail or item.verdict}" for item in self._failed]
        if abs(self.clock_offset) > MOST_CLOCK_OFFSET:
            offset = format_duration(abs(self.clock_offset))
            found.append(f"the clocks of the store and of this host differ by {offset}; nothing is deleted meanwhile")
        if self.left_behind:
            found.append(f"the probe could not remove what it wrote: {', '.join(self.left_behind)}")
        return found

    @property
    def _failed(self) -> list[Ability]:
        return [item for item in self.abilities if item.needed and item.verdict != "yes"]


def probe_store(store: Store, clock: Callable[[], datetime]) -> StoreProbe:
    """Write, read, race and remove a few objects under ``probe/``; about 20 MB go over the wire.

    Raise StoreError when the store cannot even be written to. What was written is removed on every path.
    """
    prefix = f"probe/{secrets.token_hex(8)}/"
    with _cleaned(store, prefix) as left_behind:
        before_at = clock()
        written = store.put(f"{prefix}first", [b"drkit probe"])
        now_at = before_at + (clock() - before_at) / 2
        abilities = [
            _reads(store, f"{prefix}first"),
            _lists(store, prefix, f"{prefix}first"),
            _create_only(store, "create-only", f"{prefix}second", [b"one"], [b"two"]),
            _create_only(store, "create-only, large", f"{prefix}large", _large(b"1"), _large(b"2")),
            _race("create-only, raced", _put_race(store, prefix)),
            _compare_and_swap(store, f"{prefix}lease"),
            _race("compare-and-swap, raced", _swap_race(store, prefix)),
            *[Ability(name, _verdict(found)) for name, found in store.examine(f"{prefix}first").items()],
            Ability("versions", _verdict(store.traits.versions)),
            Ability("object lock", _verdict(store.traits.object_lock)),
            _deletes(store, f"{prefix}second"),
        ]
    offset = written.modified_at - now_at
    return StoreProbe(store.name, store.url, before_at, abilities, offset, tuple(left_behind))


@contextmanager
def _cleaned(store: Store, prefix: str) -> Iterator[list[str]]:
    """Remove everything under ``prefix`` in the end; the list then names what could not be removed.

    Where versions are kept, removing one brings the one before it to light: hence the passes.
    """
    left_behind: list[str] = []
    try:
        yield left_behind
    finally:
        for _ in range(_PASSES):
            left_behind[:] = [found.key for found in store.list(prefix)]
            for key in left_behind:
                _remove(store, key)


def _remove(store: Store, key: str) -> None:
    with suppress(StoreError):
        store.delete(key, version_id=store.head(key).version_id)


def _verdict(found: bool) -> Verdict:
    return "yes" if found else "no"


def _reads(store: Store, key: str) -> Ability:
    return Ability("reads what was written", _verdict(read_object(store, key) == b"drkit probe"))


def _lists(store: Store, prefix: str, key: str) -> Ability:
    listed = [found.key for found in store.list(prefix)]
    return Ability("lists what was written", _verdict(listed == [key]), "" if key in listed else "not at once")


def _large(content: bytes) -> list[bytes]:
    """Return an object that needs a multipart upload where there are such."""
    return [content * CHUNK_BYTES] * _LARGE_CHUNKS


def _create_only(store: Store, name: str, key: str, first: list[bytes], second: list[bytes]) -> Ability:
    store.put(key, first)
    try:
        store.put(key, second)
    except StoreExists:
        kept = read_object(store, key) == b"".join(first)
        return Ability(name, _verdict(kept), "" if kept else "it says so, and yet the object has changed")
    return Ability(name, "no", "a second write of other bytes was accepted")


def _compare_and_swap(store: Store, key: str) -> Ability:
    name = "compare-and-swap"
    try:
        store.replace(f"{key}-never", b"1", expected='"00000000000000000000000000000000"')
    except StoreExists:
        pass
    else:
        return Ability(name, "no", "a condition on an object that is not there was taken as met")
    first = store.replace(key, b"1", expected=None)
    store.replace(key, b"2", expected=first.revision)
    try:
        store.replace(key, b"3", expected=first.revision)
    except StoreExists:
        return Ability(name, "yes")
    return Ability(name, "no", "an old revision was taken for the present one")


def _race(name: str, rounds: Iterator[list[Callable[[], object]]]) -> Ability:
    """Let several writers want the same thing at once, a few times; exactly one of them may get it."""
    most, errors = 0, []
    with ThreadPoolExecutor(_WRITERS) as pool:
        for writers in rounds:
            outcomes = list(pool.map(_outcome, writers))
            most = max(most, outcomes.count("won"))
            errors += [outcome for outcome in outcomes if outcome not in {"won", "lost"}]
    if most > 1:
        return Ability(name, "no", f"{most} of {_WRITERS} writers at once were told that they had won")
    if errors or not most:
        return Ability(name, "unclear", errors[0] if errors else "nobody won")
    return Ability(name, "yes")


def _outcome(write: Callable[[], object]) -> str:
    """Return ``won``, ``lost``, or what else the store said."""
    try:
        write()
    except StoreExists:
        return "lost"
    except StoreError as error:
        return error.message
    return "won"


def _put_race(store: Store, prefix: str) -> Iterator[list[Callable[[], object]]]:
    for number in range(_ROUNDS):
        yield [_putting(store, f"{prefix}race-{number}", writer) for writer in range(_WRITERS)]


def _putting(store: Store, key: str, writer: int) -> Callable[[], object]:
    return lambda: store.put(key, [b"writer %d" % writer])


def _swap_race(store: Store, prefix: str) -> Iterator[list[Callable[[], object]]]:
    for number in range(_ROUNDS):
        key = f"{prefix}swap-{number}"
        revision = store.replace(key, b"nobody", expected=None).revision
        yield [_swapping(store, key, writer, revision) for writer in range(_WRITERS)]


def _swapping(store: Store, key: str, writer: int, revision: str | None) -> Callable[[], object]:
    return lambda: store.replace(key, b"writer %d" % writer, expected=revision)


def _deletes(store: Store, key: str) -> Ability:
    try:
        store.delete(key, version_id=store.head(key).version_id)
    except StoreError as error:
        return Ability("deletes", "no", error.message)
    try:
        store.head(key)
    except StoreMissing:
        return Ability("deletes", "yes")
    return Ability("deletes", "no", "the object is still there")
