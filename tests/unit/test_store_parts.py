"""Cutting, retrying and opening: the parts that stores are made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import botocore.utils
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.credentials import Secret
from drkit.errors import ConfigError, StoreExists, StoreUnavailable
from drkit.stores.backoff import Backoff
from drkit.stores.file import FileStore
from drkit.stores.memory import MemoryStore
from drkit.stores.opening import open_store
from drkit.stores.retrying import RetryingStore
from drkit.stores.s3_connection import parse_moment
from drkit.stores.s3_content import cut, part_size_bytes
from tests.fixtures.s3 import S3Server


@given(st.lists(st.binary(max_size=40), max_size=12), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_parts_are_the_stream_cut_exactly(chunks: list[bytes], sizes: list[int]) -> None:
    def size_of(index: int) -> int:
        return sizes[min(index, len(sizes) - 1)]

    parts = list(cut(chunks, size_of))
    assert b"".join(parts) == b"".join(chunks)
    assert all(len(part) == size_of(index) for index, part in enumerate(parts[:-1]))
    assert len(parts[-1]) <= size_of(len(parts) - 1)
    assert parts == [b""] or all(parts)


def test_ten_thousand_parts_hold_the_largest_object() -> None:
    sizes = [part_size_bytes(index) for index in range(10_000)]
    assert sum(sizes) > 5 << 40
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 5 << 30
    assert set(sizes[:5000]) == {8 << 20}


class Shaky(MemoryStore):
    """Is unavailable at certain tries, whatever they are for; at the first few, when a number is given."""

    def __init__(self, failing: int | set[int]) -> None:
        super().__init__("shaky")
        self.failing = set(range(1, failing + 1)) if isinstance(failing, int) else failing
        self.tries = 0

    def _fail(self) -> None:
        self.tries += 1
        if self.tries in self.failing:
            raise StoreUnavailable("not now")

    def put(self, key, chunks):
        content = b"".join(chunks)
        self._fail()
        return super().put(key, [content])

    def head(self, key, *, version_id=None):
        self._fail()
        return super().head(key)

    def list(self, prefix):
        for found in super().list(prefix):
            self._fail()
            yield found


def retrying(store: MemoryStore, attempts: int = 4) -> tuple[RetryingStore, list[float]]:
    waits: list[float] = []
    return RetryingStore(store, Backoff(attempts, 1.0, 3.0, sleep=waits.append, jitter=lambda: 1.0)), waits


def test_waits_grow_and_have_a_limit() -> None:
    store, waits = retrying(Shaky(3))
    store.put("a", [b"1"])
    assert waits == [1.0, 2.0, 3.0]


def test_the_last_error_is_the_answer() -> None:
    inner = Shaky(10)
    store, waits = retrying(inner)
    with pytest.raises(StoreUnavailable, match="not now"):
        store.put("a", [b"1"])
    assert (inner.tries, len(waits)) == (4, 3)


def test_a_stream_is_not_read_twice() -> None:
    inner = Shaky(1)
    store, waits = retrying(inner)
    with pytest.raises(StoreUnavailable):
        store.put("a", iter([b"1"]))
    assert (inner.tries, waits) == (1, [])


def test_only_what_may_pass_is_tried_again() -> None:
    inner = Shaky(0)
    store, waits = retrying(inner)
    store.put("a", [b"1"])
    with pytest.raises(StoreExists):
        store.put("a", [b"2"])
    assert (inner.tries, waits) == (2, [])


def test_a_listing_goes_on_behind_its_last_key() -> None:
    inner = Shaky({3, 4, 10})
    for key in "abcdef":
        MemoryStore.put(inner, key, [b"1"])
    store, waits = retrying(inner)
    assert [found.key for found in store.list("")] == list("abcdef")
    assert waits == [1.0, 2.0, 1.0]


class Reluctant(Shaky):
    """Is unavailable already when it is asked for a listing, as a folder may be."""

    def list(self, prefix):
        self._fail()
        return super().list(prefix)


def test_a_listing_that_cannot_be_begun_again_at_once_is_begun_later() -> None:
    inner = Reluctant({3, 4, 5})
    for key in "abc":
        MemoryStore.put(inner, key, [b"1"])
    store, waits = retrying(inner)
    assert [found.key for found in store.list("")] == list("abc")
    assert waits == [1.0, 2.0, 3.0]


def test_jitter_stays_within_half_and_whole() -> None:
    delays = list(Backoff(attempts=50, first_s=1.0, longest_s=1.0).delays_s())
    assert all(0.5 <= delay_s <= 1.0 for delay_s in delays)
    assert len(set(delays)) > 1


def test_nothing_is_begun_again_once_its_time_is_over() -> None:
    inner = Shaky(10)
    store = RetryingStore(inner, Backoff(attempts=5, give_up_after_s=0.0, sleep=lambda delay_s: None))
    with pytest.raises(StoreUnavailable, match="not now"):
        store.head("a")
    assert inner.tries == 1


@dataclass
class Settings:
    url: str
    region: str | None = "eu-west-1"
    endpoint: str | None = None
    path_style: bool = False
    ca_bundle: Path | None = None
    object_lock: str | None = None
    lock_for: timedelta | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None


def opened(url: str, folder: Path, **more: object):
    return open_store("primary", Settings(url, **more), folder, lambda reference: Secret(reference))


def test_a_relative_folder_counts_from_the_site(tmp_path: Path) -> None:
    (tmp_path / "backups dir").mkdir()
    store = opened("file:backups%20dir", tmp_path)
    assert isinstance(store, FileStore)
    store.put("a", [b"1"])
    assert (tmp_path / "backups dir" / "a").read_bytes() == b"1"
    assert opened(f"file://{tmp_path}", tmp_path).url == f"file://{tmp_path}"
    assert opened("file://localhost/srv/x", tmp_path).url == "file:///srv/x"


def test_memory_is_shared_by_url(tmp_path: Path) -> None:
    opened("memory:one", tmp_path).put("a", [b"1"])
    assert opened("memory:one", tmp_path).head("a").size_bytes == 1
    assert list(opened("memory:two", tmp_path).list("")) == []


def test_a_bucket_is_opened_without_asking_it(tmp_path: Path) -> None:
    store = opened("s3://acme-dr/prod/", tmp_path, access_key="env:K", secret_key="env:S")
    assert isinstance(store, RetryingStore)
    assert (store.name, store.url) == ("primary", "s3://acme-dr/prod")
    store.close()


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("ftp://host/x", {}, "is not a store; the schemes are file:, s3: and memory:"),
        ("file://srv/backups", {}, "names the host srv"),
        ("file:", {}, "names no folder"),
        ("s3:///x", {}, "is not a bucket"),
        ("s3://key:secret@bucket/x", {}, "is not a bucket"),
        ("s3://bucket/a b", {}, "has other characters"),
        ("s3://bucket", {"access_key": "env:K"}, "belong together"),
        ("s3://bucket", {"ca_bundle": Path("no-such.pem")}, "ca_bundle .*no-such.pem does not exist"),
    ],
)
def test_what_is_no_store_is_refused(tmp_path: Path, url: str, more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(url, tmp_path, **more)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T12:00:00.000Z",
        "2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00.123456Z",
        "2026-01-31T12:00:00.1234567Z",
        "2026-01-31T12:00:00+02:00",
        "Sat, 31 Jan 2026 12:00:00 GMT",
        "1769860800",
        1769860800,
        1769860800.5,
    ],
)
def test_a_moment_is_read_as_botocore_reads_it(text: str | float) -> None:
    expected: datetime = botocore.utils.parse_timestamp(text)
    found = parse_moment(text)
    assert (found, found.utcoffset()) == (expected, expected.utcoffset())


def test_a_listing_guesses_at_no_moment(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = moto_server.store(moto_server.bucket())
    put = store.put("a/b", [b"x"])
    store.close()

    def guess(text: object) -> datetime:
        raise AssertionError(f"{text} is guessed at")

    monkeypatch.setattr("drkit.stores.s3_connection.parse_timestamp", guess)
    (listed,) = store.list("a/")
    assert abs(listed.modified_at - put.modified_at) < timedelta(seconds=2)
