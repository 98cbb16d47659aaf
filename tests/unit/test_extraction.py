"""Making a restored folder durable while a server runs in it already."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from drkit.errors import SourceError
from drkit.operations import extraction
from drkit.operations.extraction import Extraction, Owner


def made(tmp_path: Path) -> Extraction:
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    for number in range(3):
        (data / "base" / str(number)).write_bytes(b"x" * 100)
    return Extraction(data, data / "tablespaces", data / "config", Owner(os.geteuid(), os.getegid()))


def test_all_files_are_synced_beside_the_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    all_done = threading.Event()

    def note(path: Path) -> None:
        synced.append(path.name)
        if set(synced) >= {"0", "1", "2", "base", "data"}:
            all_done.set()

    monkeypatch.setattr(extraction, "sync_path", note)
    with made(tmp_path).syncing():
        assert all_done.wait(10)


def test_a_file_that_the_server_removed_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = extraction.sync_path

    def remove_first(path: Path) -> None:
        if path.name == "1":
            path.unlink()
        real(path)

    monkeypatch.setattr(extraction, "sync_path", remove_first)
    with made(tmp_path).syncing():
        pass
    assert not (tmp_path / "data" / "base" / "1").exists()


def test_a_disk_that_does_not_take_a_file_is_said_after_the_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(extraction, "sync_path", refuse)
    ended = False
    with pytest.raises(SourceError, match=r"cannot write into .*data: Input/output error"), made(tmp_path).syncing():
        ended = True
    assert ended


def test_a_body_that_fails_does_not_wait_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    synced: list[Path] = []

    def slow(path: Path) -> None:
        synced.append(path)
        started.set()
        go_on.wait(10)

    monkeypatch.setattr(extraction, "sync_path", slow)
    monkeypatch.setattr(extraction, "_SYNC_THREADS", 1)
    made_one = made(tmp_path)

    def fail() -> None:
        with made_one.syncing():
            assert started.wait(10)
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(synced) == 1
