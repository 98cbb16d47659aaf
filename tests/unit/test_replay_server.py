"""The WAL server of a restore: reads ahead within bounds, tells absent from unreadable, serves again what it served."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from drkit import wal_client
from drkit.errors import DrkitError, IntegrityError, RecoveryGap
from drkit.operations.data_folder import MARKER, claimed, inspect_target
from drkit.operations.extraction import Owner
from drkit.operations.replay import ReplayLog, TablespaceGuard, WalServer, open_wal_server
from drkit.operations.stored_log import StoredFile
from drkit.recovery import LogFile
from drkit.wal import Segment
from tests.fixtures.waiting import wait_until
from tests.unit.test_wal_tablespaces import record, segment

SIZE = 1 << 20
CLUSTER = 7_000_000_000_000_000_001


def content_of(number: int, *, cluster: int = CLUSTER) -> bytes:
    head = struct.pack("<HHIQI", 0xD110, 2, 1, number * SIZE, 0).ljust(24, b"\0")
    return (head + struct.pack("<QII", cluster, SIZE, 8192) + bytes([number % 251]) * 100).ljust(SIZE, b"\0")


def stored(number: int, kind: Any = "segment") -> StoredFile:
    part = Segment(1, number, SIZE)
    name = f"{part.name}.partial-2" if kind == "partial" else part.name
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return StoredFile(LogFile(name, kind, 1, part.start_lsn, part.end_lsn, None, None, 100, at), f"key/{name}", ("s",))


class Reader:
    """Hands out contents by name; may be held back, or fail."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.errors: dict[str, DrkitError] = {}
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def copy(self, stored: StoredFile, target: BinaryIO, limit_bytes: int) -> None:
        self.asked.append(stored.file.name)
        self.gate.wait(10)
        if stored.file.name in self.errors:
            raise self.errors[stored.file.name]
        target.write(self.contents[stored.file.name])


@contextmanager
def serving(
    tmp_path: Path, count: int = 5, prepare: Callable[[Reader], object] = lambda _: None, **changes: Any
) -> Iterator[tuple[WalServer, Reader]]:
    files = [stored(number) for number in range(1, count + 1)]
    last = stored(count + 1, "partial")
    reader = Reader({item.file.name: content_of(number) for number, item in enumerate(files, start=1)})
    reader.contents[last.file.name] = content_of(count + 1)[:3000]
    prepare(reader)
    log = ReplayLog([*files, last], {2: b"1\t0/300000\tx\n"}, SIZE, str(CLUSTER), **changes)
    spool = tmp_path / "spool"
    spool.mkdir()
    server = WalServer(log, reader, spool, Owner(os.geteuid(), os.getegid()))  # type: ignore[arg-type]
    with open_wal_server(server, tmp_path / "socket"):
        yield server, reader


def fetch(tmp_path: Path, name: str) -> tuple[int, bytes]:
    target = tmp_path / "RECOVERYXLOG"
    target.unlink(missing_ok=True)
    status = wal_client.fetch(name, str(target), str(tmp_path / "socket"), 10)
    return status, target.read_bytes() if target.exists() else b""


def name_of(number: int) -> str:
    return Segment(1, number, SIZE).name


def test_files_of_the_plan_are_served_whole_and_others_are_absent(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        for number in (1, 2, 3, 4, 5, 2):
            assert fetch(tmp_path, name_of(number)) == (0, content_of(number))
        assert fetch(tmp_path, name_of(6)) == (0, content_of(6)[:3000].ljust(SIZE, b"\0")), "a partial, filled up"
        assert fetch(tmp_path, "00000002.history") == (0, b"1\t0/300000\tx\n")
        for absent in (name_of(7), "00000003.history", f"{name_of(6)}.partial", "nonsense"):
            assert fetch(tmp_path, absent) == (1, b"")
        assert server.error is None
        wait_until(
            lambda: server.counts.served == 6
        )  # one was asked for twice; counted just after the answer has gone out


def test_what_cannot_be_read_aborts_and_is_remembered(tmp_path: Path) -> None:
    damaged = {name_of(3): IntegrityError("segment three is damaged")}
    with serving(tmp_path, prepare=lambda reader: reader.errors.update(damaged)) as (server, _):
        assert fetch(tmp_path, name_of(2))[0] == 0
        assert fetch(tmp_path, name_of(3)) == (255, b"")
        assert server.error is not None
        assert server.error.message == "segment three is damaged"
    assert fetch(tmp_path, name_of(2)) == (255, b""), "nobody there: never taken for the end"


def test_wal_of_another_cluster_or_size_is_refused(tmp_path: Path) -> None:
    strange = {name_of(5): content_of(5, cluster=9)}
    with serving(tmp_path, prepare=lambda reader: reader.contents.update(strange)) as (server, _):
        assert fetch(tmp_path, name_of(5)) == (255, b"")
        assert server.error is not None
        assert "another cluster" in server.error.message


def test_it_reads_ahead_of_the_server_but_not_without_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drkit.operations.replay.SPOOL_BYTES", 8 * SIZE)
    with serving(tmp_path, count=60) as (server, reader):
        wait_until(lambda: len(list(server.ready.iterdir())) == 8)
        time.sleep(0.1)  # nothing more may be read, so there is nothing to wait for
        assert len(reader.asked) == 8
        for number in range(1, 61):
            wait_until(lambda: reader.asked.count(name_of(number)))  # noqa: B023
            assert fetch(tmp_path, name_of(number))[0] == 0
            assert len(list(server.ready.iterdir())) <= 16
        assert sorted(set(reader.asked)) == sorted(item.file.name for item in server.log.files)
        assert len(reader.asked) == len(set(reader.asked))


def test_the_first_files_are_there_once_they_were_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        server.wait_for_first()
        assert len(list(server.ready.iterdir())) >= 3
    assert server.counts.waited == 0


def test_a_first_file_that_cannot_be_read_is_not_waited_for(tmp_path: Path) -> None:
    def damage(reader: Reader) -> None:
        reader.errors = {stored(number).file.name: IntegrityError("damaged") for number in (1, 2, 3)}

    with serving(tmp_path, prepare=damage) as (server, _):
        server.wait_for_first()
        assert fetch(tmp_path, stored(1).file.name)[0] != 0


def test_a_file_that_was_moved_away_is_counted_and_fetched_again_when_it_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, reader):
        wait_until(lambda: (server.ready / name_of(1)).exists())
        (server.ready / name_of(1)).rename(tmp_path / "pg_wal")
        wait_until(lambda: server.counts.served == 1)
        assert fetch(tmp_path, name_of(1)) == (0, content_of(1)), "a recovery that starts over asks again"
        assert reader.asked.count(name_of(1)) == 2
        assert server.counts.served == 1


def test_the_end_of_recovery_asks_once_more_for_what_was_taken_in_any_way(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        assert fetch(tmp_path, name_of(1))[0] == 0
        wait_until(lambda: (server.ready / name_of(3)).exists())
        for number in (2, 3):
            (server.ready / name_of(number)).rename(tmp_path / "pg_wal")
        assert fetch(tmp_path, name_of(3)) == (0, content_of(3))
        assert fetch(tmp_path, name_of(1)) == (0, content_of(1))


def test_the_last_file_is_there_again_before_the_end_of_recovery_asks_for_it(tmp_path: Path) -> None:
    with serving(tmp_path, count=2) as (server, reader):
        for number in (1, 2, 3):
            wait_until(lambda number=number: (server.ready / name_of(number)).exists())
            (server.ready / name_of(number)).rename(tmp_path / "pg_wal")
        wait_until(lambda: (server.ready / name_of(3)).exists())
        (server.ready / name_of(3)).rename(tmp_path / "pg_wal")
        wait_until(lambda: server.counts.served == 3)
        server.close()
    assert [reader.asked.count(name) for name in (name_of(1), name_of(2))] == [1, 1]
    assert len(reader.asked) == 4, "not for ever"
    assert (server.counts.served, server.counts.waited) == (3, 0)


def test_the_server_cannot_make_us_read_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with serving(tmp_path) as (server, _):
        wait_until(lambda: (server.ready / name_of(1)).exists())
        link = server.ready / "link"
        link.symlink_to(tmp_path / "secret")
        link.replace(server.ready / name_of(1))  # in one step: a file that is gone was taken by the server
        status, content = fetch(tmp_path, name_of(1))
        assert status == 255
        assert b"secret" not in content


def test_what_is_not_there_yet_is_waited_for_and_counted(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, reader):
        wait_until(lambda: len(reader.asked) >= 2)
        assert fetch(tmp_path, name_of(1))[0] == 0
        reader.gate.clear()
        waiting = threading.Thread(target=fetch, args=(tmp_path, name_of(2)))
        waiting.start()
        reader.gate.set()
        waiting.join(10)
        wait_until(lambda: server.counts.served == 2)  # counted just after the answer has gone out


@pytest.mark.parametrize(("has_target", "status"), [(True, 1), (False, 255)])
def test_wal_that_writes_into_this_host_is_withheld(tmp_path: Path, has_target: bool, status: int) -> None:
    (tmp_path / "in use").mkdir()
    (tmp_path / "in use" / "PG_15").touch()
    unsafe = {name_of(5): content_of(5)[:40] + segment(record(16402, str(tmp_path / "in use")))[40:]}
    prepare = lambda reader: reader.contents.update(unsafe)  # noqa: E731
    with serving(tmp_path, prepare=prepare, has_target=has_target) as (server, _):
        assert fetch(tmp_path, name_of(4))[0] == 0
        assert fetch(tmp_path, name_of(5)) == (status, b"")
        assert isinstance(server.withheld, RecoveryGap)
        assert str(tmp_path / "in use") in server.withheld.message


def test_a_tablespace_in_a_folder_that_nobody_uses_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    guard = TablespaceGuard("orders")
    guard.check(1, "one", segment(record(1, str(tmp_path / "empty")), 128))
    guard.check(2, "two", segment(record(1, str(tmp_path / "not there")), 128))


def test_a_folder_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DrkitError, match="has no room"):
        inspect_target(tmp_path / "new", 1 << 60)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("odd", ['a"b', "a$HOME", "a`b", "a\\b", "a\nb"])
def test_a_folder_that_pg_ctl_cannot_name_is_refused(tmp_path: Path, odd: str) -> None:
    with pytest.raises(DrkitError, match="pg_ctl cannot start a server in a folder whose path has"):
        inspect_target(tmp_path / odd, 1)
    with pytest.raises(DrkitError, match="has no room"):
        inspect_target(tmp_path / "it's a %p;", 1 << 60)


def test_a_command_to_type_names_a_folder_with_a_blank_as_one(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / MARKER).write_text('{"process": "another-host/12@x.1", "uid": 1, "gid": 1}')
    with pytest.raises(DrkitError) as failed:
        inspect_target(tmp_path / "a b", 1)
    assert failed.value.hints[0].endswith(f"rm -rf '{tmp_path}/a b'")


def test_a_failed_restore_leaves_the_folder_empty_and_its_owners(tmp_path: Path) -> None:
    target = inspect_target(tmp_path / "new", 1)

    def fail() -> None:
        with claimed(target):
            (target.path / "half").write_text("x")
            assert (target.path / MARKER).exists()
            raise IntegrityError("stop")

    with pytest.raises(IntegrityError):
        fail()
    assert list(target.path.iterdir()) == []
    assert target.path.stat().st_uid == target.owner.uid


def test_a_folder_that_cannot_be_cleared_does_not_hide_what_ended_the_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = inspect_target(tmp_path / "new", 1)

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def fail() -> None:
        with claimed(target):
            (target.path / "half").mkdir()
            monkeypatch.setattr("shutil.rmtree", refuse)
            raise IntegrityError("the object is damaged", details=["one"])

    with pytest.raises(IntegrityError, match="the object is damaged") as failed:
        fail()
    left = f"{target.path} is left with a part of the restore, which the next one into it clears: Input/output error"
    assert [*failed.value.details] == ["one", left]
    monkeypatch.undo()
    marker = target.path / MARKER
    marker.write_text(marker.read_text().replace(f"/{os.getpid()}@", "/999999999@"))
    with claimed(inspect_target(target.path, 1)):
        assert [path.name for path in target.path.iterdir()] == [MARKER]


def test_a_folder_that_another_restore_writes_into_is_busy(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / MARKER).write_text('{"process": "another-host/12@x.1", "uid": 1, "gid": 1}')
    with pytest.raises(DrkitError, match="another restore is writing"):
        inspect_target(folder, 1)
    (folder / MARKER).write_text("cut")
    (folder / "half").write_text("x")
    assert inspect_target_unowned(folder).unfinished


def inspect_target_unowned(folder: Path) -> Any:
    import shutil

    shutil.chown(folder, "postgres", "postgres")
    return inspect_target(folder, 1)
