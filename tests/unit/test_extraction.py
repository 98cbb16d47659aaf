"""Making a restored folder durable while a server runs in it already."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from drkit.errors import SourceError
from drkit.operations import folder_sync
from drkit.operations.extraction import Extraction, Owner
from tests.fixtures.waiting import wait_until


def extraction_of(tmp_path: Path) -> Extraction:
    data = tmp_path / "data"
    return Extraction(data, data / "tablespaces", data / "config", Owner(os.geteuid(), os.getegid()))


def made(tmp_path: Path) -> Extraction:
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    for number in range(3):
        (data / "base" / str(number)).write_bytes(b"x" * 100)
    return extraction_of(tmp_path)


def test_all_files_are_synced_beside_the_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    all_done = threading.Event()

    def note(path: Path) -> None:
        synced.append(path.name)
        if set(synced) >= {"0", "1", "2", "base", "data"}:
            all_done.set()

    monkeypatch.setattr(folder_sync, "sync_path", note)
    with made(tmp_path).syncing():
        assert all_done.wait(10)


def test_a_file_that_the_server_removed_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = folder_sync.sync_path

    removed = threading.Event()

    def remove_first(path: Path) -> None:
        if path.name == "1":
            path.unlink()
            removed.set()
        real(path)

    monkeypatch.setattr(folder_sync, "sync_path", remove_first)
    with made(tmp_path).syncing():
        assert removed.wait(10)
    assert not (tmp_path / "data" / "base" / "1").exists()


def test_a_disk_that_does_not_take_a_file_is_said_after_the_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def refuse(path: Path) -> None:
        asked.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(folder_sync, "sync_path", refuse)
    ended = False
    with pytest.raises(SourceError, match=r"cannot write into .*data: Input/output error"), made(tmp_path).syncing():
        ended = asked.wait(10)
    assert ended
    with pytest.raises(SourceError, match=r"cannot write into .*data: Input/output error"):
        extraction_of(tmp_path).sync()


def test_a_body_that_fails_does_not_wait_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    synced: list[Path] = []

    def slow(path: Path) -> None:
        synced.append(path)
        started.set()
        go_on.wait(10)

    monkeypatch.setattr(folder_sync, "sync_path", slow)
    monkeypatch.setattr(folder_sync, "_THREADS", 1)
    made_one = made(tmp_path)

    def fail() -> None:
        with made_one.syncing():
            assert started.wait(10)
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(synced) == 1


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list into which the names of what is synced go from now on."""
    synced: list[str] = []
    real = folder_sync.sync_path

    def note(path: Path) -> None:
        real(path)
        synced.append(path.name)

    monkeypatch.setattr(folder_sync, "sync_path", note)
    return synced


def age(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is in the folder count as written long ago."""
    newest_ns = max(path.lstat().st_ctime_ns for path in folder.rglob("*"))
    monkeypatch.setattr(folder_sync.time, "time_ns", lambda: newest_ns + 10**9)


def test_what_did_not_change_is_not_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = noted(monkeypatch)
    one = made(tmp_path)
    age(tmp_path, monkeypatch)
    one.sync()
    assert sorted(synced) == ["0", "1", "2", "base", "data"]
    synced.clear()
    one.sync()
    assert synced == []
    base = tmp_path / "data" / "base"
    (base / "1").write_bytes(b"y" * 100)  # of the same size
    (base / "3").write_bytes(b"new")
    (base / "2").rename(base / "4")
    one.sync()
    assert sorted(synced) == ["1", "3", "4", "base"]


def test_what_changed_just_before_is_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = noted(monkeypatch)
    one = made(tmp_path)
    newest_ns = max(path.lstat().st_ctime_ns for path in tmp_path.rglob("*"))
    monkeypatch.setattr(folder_sync.time, "time_ns", lambda: newest_ns + 10**7)
    one.sync()
    one.sync()
    assert sorted(synced) == sorted(["0", "1", "2", "base", "data"] * 2)


def test_what_is_passed_over_is_left_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = noted(monkeypatch)
    one = made(tmp_path)
    for folder in (tmp_path / "data" / "pg_wal", tmp_path / "data" / "base" / "pg_wal"):
        folder.mkdir()
        (folder / f"in {folder.parent.name}").write_bytes(b"x")
    with one.syncing(passed_over=("pg_wal",)):
        wait_until(lambda: "in base" in synced)
    assert "in data" not in synced
    one.sync()
    assert "in data" in synced


def test_what_is_written_meanwhile_is_synced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = noted(monkeypatch)
    one = made(tmp_path)
    with one.syncing():
        wait_until(lambda: "base" in synced)
        (tmp_path / "data" / "later").write_bytes(b"x")
        wait_until(lambda: "later" in synced)
