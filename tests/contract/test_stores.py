"""The contract of drkit/stores/__init__.py, held against every store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drkit.errors import IntegrityError, StoreExists, StoreMissing
from drkit.stores import Store, read_object
from drkit.stores.file import FileStore
from drkit.stores.memory import MemoryStore
from drkit.stores.retrying import RetryingStore
from tests.fixtures.s3 import SMALLEST_PART_BYTES

MIB = 1 << 20
LARGE = SMALLEST_PART_BYTES + 12_345
LATER = datetime.now(UTC) + timedelta(days=1)


@dataclass
class Lent:
    """A store under test, and a look behind it: everything that is there, leftovers included."""

    store: Store
    leftovers: Callable[[], list[str]]
    atomic: bool = True


def _lend_file(folder: Path) -> Lent:
    root = folder / "store"
    root.mkdir()
    return Lent(FileStore("folder", root), lambda: [path.name for path in root.rglob("~put-*")])


def _lend_s3(request: pytest.FixtureRequest, server: str, *, versions: bool) -> Lent:
    s3 = request.getfixturevalue(f"{server}_server")
    bucket = s3.bucket(versions=versions)
    client = s3.client()
    return Lent(
        s3.store(bucket),
        lambda: [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())],
        atomic=False,
    )


@pytest.fixture(
    params=["memory", "file", "retrying", "moto", "moto with versions", "versitygw", "versitygw with versions"]
)
def lent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lent]:
    kind = request.param
    if kind == "memory":
        lent = Lent(MemoryStore("memory"), list)
    elif kind == "file":
        lent = _lend_file(tmp_path)
    elif kind == "retrying":
        lent = Lent(RetryingStore(MemoryStore("memory")), list)
    else:
        lent = _lend_s3(request, kind.split()[0], versions=kind.endswith("with versions"))
    yield lent
    lent.store.close()


@pytest.fixture
def store(lent: Lent) -> Store:
    return lent.store


def pattern(size_bytes: int, seed: int = 1) -> Iterator[bytes]:
    """Yield a stream in odd chunks, so that parts never fall on their ends."""
    block = bytes((seed + index * 31) % 256 for index in range(65_521))
    while size_bytes > 0:
        chunk = (block * 12)[: min(size_bytes, 700_001)]
        size_bytes -= len(chunk)
        yield chunk


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, MIB + 1, SMALLEST_PART_BYTES, LARGE], ids=str)
def test_what_is_put_is_read_back(store: Store, size_bytes: int) -> None:
    started_at = datetime.now(UTC)
    created = store.put("policies/orders/a.zst.age", pattern(size_bytes))
    with store.open("policies/orders/a.zst.age", version_id=created.version_id) as chunks:
        pieces = list(chunks)
    assert b"".join(pieces) == b"".join(pattern(size_bytes))
    assert all(0 < len(piece) <= MIB for piece in pieces)
    assert (created.key, created.size_bytes) == ("policies/orders/a.zst.age", size_bytes)
    assert created.modified_at.utcoffset() == timedelta(0)
    assert abs(created.modified_at - started_at) < timedelta(minutes=1)


@pytest.mark.parametrize("size_bytes", [0, 10, LARGE], ids=str)
def test_head_says_what_put_said(store: Store, size_bytes: int) -> None:
    created = store.put("a", pattern(size_bytes))
    found = store.head("a", version_id=created.version_id)
    assert (found.size_bytes, found.revision, found.version_id) == (size_bytes, created.revision, created.version_id)
    assert (found.version_id is not None) == store.traits.versions
    if found.checksum and created.checksum:
        assert (found.checksum.kind, found.checksum.value) == (created.checksum.kind, created.checksum.value)


@pytest.mark.parametrize("size_bytes", [10, LARGE], ids=str)
def test_a_name_is_given_once(lent: Lent, size_bytes: int) -> None:
    lent.store.put("a/b", pattern(size_bytes))
    with pytest.raises(StoreExists, match=r"a/b"):
        lent.store.put("a/b", pattern(size_bytes, seed=2))
    with pytest.raises(StoreExists):
        lent.store.put("a/b", pattern(size_bytes + 1))
    assert b"".join(pattern(size_bytes)) == read_object(lent.store, "a/b")
    assert lent.leftovers() == []


@pytest.mark.parametrize("size_bytes", [0, 10, LARGE], ids=str)
def test_the_same_bytes_again_are_success(lent: Lent, size_bytes: int) -> None:
    first = lent.store.put("a/b", pattern(size_bytes))
    again = lent.store.put("a/b", pattern(size_bytes))
    assert again == first
    assert lent.leftovers() == []


@pytest.mark.parametrize("size_bytes", [10, LARGE], ids=str)
def test_a_source_that_fails_leaves_nothing(lent: Lent, size_bytes: int) -> None:
    def broken() -> Iterator[bytes]:
        yield from pattern(size_bytes)
        raise OSError("the producer failed after its last byte")

    with pytest.raises(OSError, match="the producer failed"):
        lent.store.put("a/b", broken())
    with pytest.raises(StoreMissing):
        lent.store.head("a/b")
    assert list(lent.store.list("")) == []
    assert lent.leftovers() == []


@pytest.fixture
def atomic_store(lent: Lent) -> Store:
    if not lent.atomic:
        pytest.skip(
            "moto and versitygw look and write in two steps, so two writers at once may both win; S3 promises more"
        )
    return lent.store


def test_one_of_many_writers_wins(atomic_store: Store) -> None:
    store = atomic_store
    outcomes: list[str] = []

    def write(seed: int) -> None:
        try:
            store.put("contested", [bytes([seed]) * 1000])
            outcomes.append("won")
        except StoreExists:
            outcomes.append("lost")

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
    assert len(read_object(store, "contested")) == 1000


def test_what_is_not_there_is_missing(store: Store) -> None:
    for ask in (store.head, lambda key: read_object(store, key)):
        with pytest.raises(StoreMissing, match=r"no/such"):
            ask("no/such")
    store.delete("no/such")
    assert list(store.list("no/")) == []


def test_delete_removes_one_object(store: Store) -> None:
    created = store.put("a/b", [b"1"])
    store.put("a/c", [b"2"])
    store.delete("a/b", version_id=created.version_id)
    assert [found.key for found in store.list("")] == ["a/c"]
    with pytest.raises(StoreMissing):
        store.head("a/b")
    store.put("a/b", [b"other"])
    assert read_object(store, "a/b") == b"other"


def test_list_is_in_order_of_keys_and_by_prefix(store: Store) -> None:
    keys = ["a", "a-b/x", "a.b", "b/1/z", "b/10", "b/2", "b/a.json", "b/a.json.sig", "c"]
    for key in reversed(keys):
        store.put(key, [key.encode()])
    assert [found.key for found in store.list("")] == sorted(keys)
    assert [found.key for found in store.list("b/")] == [key for key in sorted(keys) if key.startswith("b/")]
    assert [found.key for found in store.list("b/1")] == ["b/1/z", "b/10"]
    assert [found.key for found in store.list("b/a.json")] == ["b/a.json", "b/a.json.sig"]
    assert [(found.key, found.size_bytes) for found in store.list("a.")] == [("a.b", 3)]
    assert list(store.list("bb")) == []


def test_replace_compares_and_swaps(store: Store) -> None:
    first = store.replace("leases/orders.json", b"holder 1", expected=None)
    assert first.revision == store.head("leases/orders.json").revision
    with pytest.raises(StoreExists):
        store.replace("leases/orders.json", b"holder 2", expected=None)
    second = store.replace("leases/orders.json", b"holder 2", expected=first.revision)
    with pytest.raises(StoreExists):
        store.replace("leases/orders.json", b"holder 3", expected=first.revision)
    assert read_object(store, "leases/orders.json") == b"holder 2"
    assert second.revision != first.revision
    assert [found.key for found in store.list("")] == ["leases/orders.json"]


def test_replace_of_what_is_gone_is_refused(store: Store) -> None:
    first = store.replace("leases/orders.json", b"holder 1", expected=None)
    store.delete("leases/orders.json", version_id=first.version_id)
    with pytest.raises(StoreExists):
        store.replace("leases/orders.json", b"holder 2", expected=first.revision)


def test_one_of_many_swaps_wins(atomic_store: Store) -> None:
    store = atomic_store
    first = store.replace("lease", b"0", expected=None)
    outcomes: list[str] = []

    def swap(number: int) -> None:
        try:
            store.replace("lease", str(number).encode(), expected=first.revision)
            outcomes.append("won")
        except StoreExists:
            outcomes.append("lost")

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 4 + ["won"]


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a b", "a~b", "ä", "a\nb", "a" * 901]
)
def test_odd_keys_are_refused(store: Store, key: str) -> None:
    for ask in (store.head, store.delete, lambda key: store.put(key, [b""]), lambda key: read_object(store, key)):
        with pytest.raises(ValueError, match="key"):
            ask(key)
    with pytest.raises(ValueError, match="key"):
        store.replace(key, b"", expected=None)


@pytest.mark.parametrize("prefix", ["/a", "../a", "a/../b", "a b", "a~"])
def test_odd_prefixes_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="beginning"):
        store.list(prefix)


def test_reading_can_stop_in_the_middle(store: Store) -> None:
    store.put("a", pattern(LARGE))
    with store.open("a") as chunks:
        assert next(chunks)
    assert len(read_object(store, "a")) == LARGE


def test_read_object_has_a_limit(store: Store) -> None:
    store.put("a", pattern(1001))
    with pytest.raises(IntegrityError, match="larger than 1,000 bytes"):
        read_object(store, "a", limit_bytes=1000)


def test_no_leftovers_without_accidents(store: Store) -> None:
    store.put("a", pattern(LARGE))
    store.replace("lease", b"1", expected=None)
    assert store.abort_leftovers(older_than=LATER) == 0
    assert [found.key for found in store.list("")] == ["a", "lease"]


def test_the_url_names_the_place_without_secrets(store: Store) -> None:
    assert store.url.partition(":")[0] in {"file", "s3", "memory"}
    assert "secret" not in store.url
    assert store.traits.create_only
