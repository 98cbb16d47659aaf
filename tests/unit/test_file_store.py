"""What is particular to a folder as a store: permissions, durability, what the operating system refuses."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drkit.errors import StoreError, StoreMissing, StoreUnavailable
from drkit.stores import read_object
from drkit.stores.file import FileStore

KEY = "policies/orders/artifacts/1/data.zst.age"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    root = tmp_path / "store"
    root.mkdir()
    return FileStore("primary", root)


def root_of(store: FileStore) -> Path:
    return Path(store.url.removeprefix("file://"))


def test_nobody_else_can_read_it(store: FileStore) -> None:
    before = os.umask(0)
    try:
        store.put(KEY, [b"1"])
        store.replace("leases/orders.json", b"1", expected=None)
    finally:
        os.umask(before)
    for path in root_of(store).rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_file_and_folders_are_made_durable_before_put_returns(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.put("a/b/c", [b"1"])
    root = str(root_of(store))
    assert [path.removeprefix(root) for path in synced if "~put-" not in path] == ["", "/a", "/a/b"]
    assert sum("~put-" in path for path in synced) == 1
    assert "~put-" in synced[-2]


@pytest.mark.parametrize("ask", ["put", "replace", "head", "open", "list", "delete", "abort_leftovers"])
def test_a_missing_root_is_refused_and_not_made(tmp_path: Path, ask: str) -> None:
    store = FileStore("primary", tmp_path / "disk" / "backups")
    with pytest.raises(StoreError, match=r"the folder .*/disk/backups of store primary does not exist") as caught:
        {
            "put": lambda: store.put(KEY, [b"1"]),
            "replace": lambda: store.replace(KEY, b"1", expected=None),
            "head": lambda: store.head(KEY),
            "open": lambda: read_object(store, KEY),
            "list": lambda: list(store.list("policies/")),
            "delete": lambda: store.delete(KEY),
            "abort_leftovers": lambda: store.abort_leftovers(older_than=datetime.now(UTC)),
        }[ask]()
    assert not isinstance(caught.value, StoreMissing | StoreUnavailable)
    assert "mkdir -p -m 700" in caught.value.hints[0]
    assert list(tmp_path.iterdir()) == []


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)


def test_a_disk_that_fills_up_fails_and_leaves_nothing(store: FileStore) -> None:
    with largest_file(1 << 20), pytest.raises(StoreError, match="store primary is full") as caught:
        store.put(KEY, iter([b"x" * 700_000] * 3))
    assert caught.value.hints == (f"df -h {root_of(store)}",)
    assert [path.name for path in root_of(store).rglob("*") if path.is_file()] == []
    store.put(KEY, [b"1"])


@pytest.fixture
def nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_named(store: FileStore, request: pytest.FixtureRequest) -> None:
    root = root_of(store)
    for folder in root.parents:
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    root.chmod(0o500)
    request.getfixturevalue("nobody")
    with pytest.raises(StoreError, match="store primary may not be used: Permission denied") as caught:
        store.put(KEY, [b"1"])
    assert "ls -ld" in caught.value.hints[0]


def test_what_a_killed_put_leaves_is_found_later(store: FileStore) -> None:
    script = f"""
import os, signal
from pathlib import Path
from drkit.stores.file import FileStore
def chunks():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
FileStore("primary", Path({str(root_of(store))!r})).put({KEY!r}, chunks())
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert list(store.list("")) == []
    assert len(list(root_of(store).rglob("~put-*"))) == 1
    assert store.abort_leftovers(older_than=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.abort_leftovers(older_than=datetime.now(UTC) + timedelta(hours=1)) == 1
    assert list(root_of(store).rglob("~put-*")) == []
    store.put(KEY, [b"whole"])


def test_an_object_that_shrinks_while_it_is_read_is_an_error(store: FileStore) -> None:
    store.put(KEY, [b"x" * (3 << 20)])
    with store.open(KEY) as chunks:
        next(chunks)
        os.truncate(root_of(store) / KEY, 2 << 20)
        with pytest.raises(StoreUnavailable, match="ended after"):
            list(chunks)


def test_deleting_takes_empty_folders_along(store: FileStore) -> None:
    store.put("a/b/c", [b"1"])
    store.put("a/d", [b"2"])
    store.delete("a/b/c")
    assert sorted(path.name for path in root_of(store).rglob("*")) == ["a", "d"]
    store.delete("a/d")
    assert list(root_of(store).iterdir()) == []


def test_foreign_files_are_not_listed(store: FileStore) -> None:
    store.put("a", [b"1"])
    (root_of(store) / "lost+found").mkdir()
    (root_of(store) / "notes (old).txt").write_text("not ours")
    assert [found.key for found in store.list("")] == ["a"]


def test_nothing_can_be_put_under_an_object(store: FileStore) -> None:
    store.put("a", [b"1"])
    with pytest.raises(StoreError, match="is an object, so nothing can be put under it"):
        store.put("a/b", [b"2"])
