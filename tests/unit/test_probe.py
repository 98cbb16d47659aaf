"""The probe finds what a store promises and does not do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drkit.errors import StoreError, StoreExists, StoreUnavailable
from drkit.operations.probe import StoreProbe, probe_store
from drkit.stores import ObjectInfo, Store
from drkit.stores.file import FileStore
from drkit.stores.memory import MemoryStore
from tests.fixtures.s3 import S3Server


def now() -> datetime:
    return datetime.now(UTC)


def verdicts(found: StoreProbe) -> dict[str, str]:
    return {item.name: item.verdict for item in found.abilities}


class Overwriting(MemoryStore):
    """Takes a second put for the first."""

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        self.delete(key)
        return super().put(key, chunks)


class OverwritingLarge(MemoryStore):
    """Ignores the condition at the end of a multipart upload only."""

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        content = b"".join(chunks)
        if len(content) > 1 << 20:
            self.delete(key)
        return super().put(key, [content])


class Saying(MemoryStore):
    """Says that an object exists, and overwrites it all the same."""

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        content = b"".join(chunks)
        try:
            return super().put(key, [content])
        except StoreExists:
            self.delete(key)
            super().put(key, [content])
            raise


class Swapping(MemoryStore):
    """Ignores the revision."""

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        self.delete(key)
        return super().replace(key, content, expected=None)


class Believing(MemoryStore):
    """Takes a condition on an object that is not there as met (minio/minio#21526)."""

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        there = [found.key for found in self.list(key)]
        return super().replace(key, content, expected=expected if there else None)


class Forgetful(MemoryStore):
    """Lists nothing yet."""

    lists = 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.lists += 1
        return iter(()) if self.lists == 1 else super().list(prefix)


class Keeping(MemoryStore):
    """Removes nothing, as a bucket with a default retention does."""

    def delete(self, key: str, *, version_id: str | None = None) -> None:
        raise StoreError(f"{key} is locked")


def test_a_folder_does_all_that_is_needed(tmp_path: Path) -> None:
    store = FileStore("folder", tmp_path)
    found = probe_store(store, now)
    assert found.problems == []
    assert set(verdicts(found).values()) == {"yes", "no"}
    assert [name for name, verdict in verdicts(found).items() if verdict == "no"] == ["versions", "object lock"]
    assert [path.name for path in tmp_path.iterdir()] == ["~lock"]


@pytest.mark.parametrize(
    ("store", "ability"),
    [
        (Overwriting("liar"), "create-only"),
        (OverwritingLarge("liar"), "create-only, large"),
        (Saying("liar"), "create-only"),
        (Forgetful("liar"), "lists what was written"),
        (Keeping("liar"), "deletes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MemoryStore) else value,
)
def test_a_liar_is_found(store: Store, ability: str) -> None:
    found = probe_store(store, now)
    assert verdicts(found)[ability] == "no"
    assert any(ability in problem for problem in found.problems)


@pytest.mark.parametrize("store", [Swapping("liar"), Believing("liar")], ids=lambda store: type(store).__name__)
def test_a_swap_that_does_not_compare_is_found(store: Store) -> None:
    found = probe_store(store, now)
    assert verdicts(found)["compare-and-swap"] == "no"
    assert found.problems == []


def test_a_race_that_two_can_win_is_found() -> None:
    assert verdicts(probe_store(Swapping("liar"), now))["compare-and-swap, raced"] == "no"
    assert verdicts(probe_store(Overwriting("liar"), now))["create-only, raced"] == "no"


@pytest.mark.parametrize("offset", [timedelta(minutes=-6), timedelta(minutes=6)], ids=str)
def test_a_wrong_clock_is_found(offset: timedelta) -> None:
    found = probe_store(MemoryStore("late", now=lambda: now() + offset), now)
    assert abs(found.clock_offset - offset) < timedelta(seconds=5)
    assert "clocks" in found.problems[0]


def test_what_cannot_be_removed_is_named() -> None:
    found = probe_store(Keeping("locked"), now)
    assert any(name.endswith("/first") for name in found.left_behind)
    assert any("could not remove" in problem for problem in found.problems)


def test_a_probe_that_breaks_cleans_up() -> None:
    class Breaking(MemoryStore):
        def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
            raise StoreUnavailable("gone for a while")

    store = Breaking("breaking")
    with pytest.raises(StoreUnavailable):
        probe_store(store, now)
    assert list(store.list("")) == []


@pytest.mark.parametrize("kind", ["moto", "versitygw"])
def test_what_s3_servers_do_is_found(request: pytest.FixtureRequest, kind: str) -> None:
    server: S3Server = request.getfixturevalue(f"{kind}_server")
    bucket = server.bucket(object_lock=kind == "moto", versions=True)
    found = probe_store(server.store(bucket), now)
    said = verdicts(found)
    assert said["reads ranges"] == "yes"
    assert said["versions"] == "yes"
    assert said["object lock"] == ("yes" if kind == "moto" else "no")
    assert said["refuses damaged bytes"] == ("no" if kind == "moto" else "yes")
    assert said["create-only"] == said["create-only, large"] == said["compare-and-swap"] == "yes"
    assert found.left_behind == ()
    assert "Versions" not in server.client().list_object_versions(Bucket=bucket)
