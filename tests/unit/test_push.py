"""Which files are shipped before PostgreSQL asks for them, with a shipper that does as it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drkit import wal_client
from drkit.errors import DrkitError, StoreUnavailable
from drkit.operations import ahead as ahead_module
from drkit.operations import push as push_module
from drkit.operations.ahead import _WORKERS, LOOK_AHEAD, LookAhead, looking_ahead, ready_names
from drkit.operations.growing import Growing
from drkit.operations.push import PushServer
from drkit.operations.ship import Shipper
from drkit.operations.spool import Identity
from drkit.wal import Segment
from tests.fixtures.waiting import wait_until
from tests.fixtures.wal_files import make_wal

MIB = 1 << 20
FIRST = Segment(1, 7, 16 * MIB)


class ScriptedShipper:
    """Notes what it is told to ship; waits where it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: set[str] = set()
        self.changed = threading.Condition()
        self.held: set[str] = set()
        self.failures: list[DrkitError] = []
        self.read = b""
        self.told: list[tuple[str, ...]] = []
        self.stop: Callable[[], None] = lambda: None

    def ship(self, path: Path, *, keep_source: bool) -> None:
        assert keep_source
        with self.changed:
            self.begun.append(path.name)
            self.changed.notify_all()
            self.changed.wait_for(lambda: path.name not in self.held)
            if self.failures:
                raise self.failures[0]
            self.done.add(path.name)
            self.changed.notify_all()

    def ship_growing(self, growing: Growing) -> None:
        self.begun.append(growing.name)
        for chunk in growing.chunks():
            with self.changed:
                self.read += chunk
                self.changed.notify_all()
        with self.changed:
            self.done.add(growing.name)
            self.changed.notify_all()

    def has(self, name: str) -> bool:
        return name in self.done

    def errors(self) -> list[DrkitError]:
        return self.failures

    def wait_for(self, *names: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.done >= set(names), timeout=20), self.begun

    def wait_until_read(self, size_bytes: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.read) >= size_bytes, timeout=20), len(self.read)

    def release(self, name: str) -> None:
        with self.changed:
            self.held.discard(name)
            self.changed.notify_all()


@pytest.fixture
def shipper() -> ScriptedShipper:
    return ScriptedShipper()


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """Lend a folder like pg_wal with some segments that are ready."""
    folder = tmp_path / "pg_wal"
    (folder / "archive_status").mkdir(parents=True)
    return folder


def make_ready(wal: Path, *numbers: int) -> list[str]:
    names = [Segment(1, number, FIRST.segment_bytes).name for number in numbers]
    for name in names:
        (wal / "archive_status" / f"{name}.ready").touch()
    return names


@contextmanager
def answering(folder: Path, shipper: ScriptedShipper) -> Iterator[Path]:
    """Run the duty; lend its socket."""
    set_already = threading.Event()
    set_already.set()
    spool = SimpleNamespace(socket=folder / "socket", identity=lambda: Identity("1", FIRST.segment_bytes))
    told = threading.Event()
    shipper.told = []

    def tell(*words: str) -> None:
        shipper.told.append(words)
        if words[1] == "listening":
            told.set()

    setting: Any = SimpleNamespace(
        shipper=shipper,
        spool=spool,
        met=set_already,
        recovered=set_already,
        owner_uid=os.geteuid,
        tell=tell,
    )
    stopping = threading.Event()
    server = PushServer(setting)
    thread = threading.Thread(target=server.run, args=(stopping,), name="duty")
    thread.start()
    shipper.stop = stopping.set
    try:
        assert told.wait(20)
        yield folder / "socket"
    finally:
        stopping.set()
        thread.join()


@contextmanager
def asking(wal: Path, socket: Path, shipper: ScriptedShipper) -> Iterator[list[int]]:
    """Push the first segment, and wait until it is being shipped; lend where its status will be."""
    answers: list[int] = []
    asked = threading.Thread(target=lambda: answers.append(wal_client.push(str(wal / FIRST.name), str(socket))))
    asked.start()
    with shipper.changed:
        assert shipper.changed.wait_for(lambda: shipper.begun, timeout=20)
    yield answers
    asked.join()


def test_who_asked_before_a_stop_is_answered_and_who_asks_after_it_is_not_taken(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path
) -> None:
    shipper.held.add(FIRST.name)
    with answering(tmp_path, shipper) as socket, asking(wal, socket, shipper) as answers:
        shipper.stop()
        wait_until(lambda: not socket.exists())
        assert answers == [], "it is not stored yet"
        assert wal_client.push(str(wal / FIRST.next().name), str(socket)) != 0
        shipper.release(FIRST.name)
    assert answers == [0]
    assert shipper.begun == [FIRST.name]
    assert [words[1] for words in shipper.told] == ["listening"] * 2


def test_a_stop_waits_for_answers_within_a_bound_and_says_so(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "ANSWERED_WITHIN_S", 0.05)
    shipper.held.add(FIRST.name)
    with answering(tmp_path, shipper) as socket, asking(wal, socket, shipper):
        shipper.stop()
        wait_until(lambda: shipper.told[-1][1] == "stuck")
        assert "1 file is not stored yet" in shipper.told[-1][2]
        shipper.release(FIRST.name)


def test_the_next_segments_are_asked_for_by_name_and_history_is_not(wal: Path) -> None:
    names = make_ready(wal, 8, 9, 11, 15, 16)
    (wal / "archive_status" / "00000002.history.ready").touch()
    assert ready_names(wal / FIRST.name, FIRST.segment_bytes) == names[:4]
    assert ready_names(wal / "00000002.history", FIRST.segment_bytes) == []
    assert LOOK_AHEAD == 8


def test_what_is_ready_is_shipped_ahead_once_and_only_after_the_first_was_taken(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path
) -> None:
    ahead = make_ready(wal, 8, 9, 10)
    shipper.held.add(FIRST.name)
    with answering(tmp_path, shipper) as socket:
        asking = threading.Thread(target=wal_client.push, args=(str(wal / FIRST.name), str(socket)))
        asking.start()
        with shipper.changed:
            assert shipper.changed.wait_for(lambda: shipper.begun, timeout=20)
        assert shipper.begun == [FIRST.name]
        shipper.release(FIRST.name)
        asking.join()
        shipper.wait_for(FIRST.name, *ahead)
        assert sorted(shipper.begun) == [FIRST.name, *ahead]
        assert wal_client.push(str(wal / ahead[0]), str(socket)) == 0
        assert shipper.begun.count(ahead[1]) == 1


def test_nothing_is_shipped_ahead_of_one_that_was_not_taken(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path
) -> None:
    make_ready(wal, 8, 9)
    shipper.failures.append(StoreUnavailable("away"))
    with answering(tmp_path, shipper) as socket:
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 1
    assert shipper.begun == [FIRST.name]


def test_a_segment_under_way_is_waited_for_and_not_taken_for_done(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path
) -> None:
    (second,) = make_ready(wal, 8)
    shipper.held.add(second)
    with answering(tmp_path, shipper) as socket:
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        assert wal_client.push(str(wal / second), str(socket), timeout_s=0.2) == 2
        shipper.release(second)
        assert wal_client.push(str(wal / second), str(socket)) == 0


def test_what_gets_ready_later_is_shipped_before_anybody_asks(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path
) -> None:
    with answering(tmp_path, shipper) as socket:
        make_ready(wal, 6)  # nothing was handed over yet, so nothing is looked at
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        later = make_ready(wal, 8, 9)
        shipper.wait_for(*later)
        assert sorted(shipper.begun) == [FIRST.name, *later]


@pytest.mark.parametrize("trouble", ["no folder", "nobody tells"])
def test_pushing_goes_on_and_looks_ahead_where_nobody_watches(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "no folder":
        (wal / "archive_status").rmdir()
    else:
        (second,) = make_ready(wal, 8)
        monkeypatch.setattr(ahead_module, "folder_events", lambda *_: (_ for _ in ()).throw(OSError("no more watches")))
    with answering(tmp_path, shipper) as socket:
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        if trouble == "nobody tells":
            shipper.wait_for(second)
        assert wal_client.push(str(wal / FIRST.next().name), str(socket)) == 0


def test_a_ready_segment_that_vanishes_is_nobodys_trouble(wal: Path, shipper: ScriptedShipper, tmp_path: Path) -> None:
    plain = shipper.ship

    def vanish(path: Path, *, keep_source: bool) -> None:
        if path.name != FIRST.name:
            with shipper.changed:
                shipper.begun.append(path.name)
                shipper.changed.notify_all()
            raise FileNotFoundError(path)
        plain(path, keep_source=keep_source)

    shipper.ship = vanish  # type: ignore[method-assign]
    with answering(tmp_path, shipper) as socket:
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        (gone,) = make_ready(wal, 8)
        with shipper.changed:
            assert shipper.changed.wait_for(lambda: gone in shipper.begun, timeout=20)
        (wal / "archive_status" / f"{gone}.ready").unlink()
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        assert wal_client.push(str(wal / gone), str(socket)) == 1


@pytest.mark.parametrize("how", ["ready", "handed over", "left behind"])
def test_the_next_segment_is_read_while_it_grows(wal: Path, shipper: ScriptedShipper, tmp_path: Path, how: str) -> None:
    content = make_wal(FIRST.next())
    path = wal / FIRST.next().name
    path.write_bytes(content[: 12 * MIB].ljust(16 * MIB, b"\0"))
    with answering(tmp_path, shipper) as socket:
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        shipper.wait_until_read(11 * MIB)
        assert path.name not in shipper.done
        if how == "left behind":
            far = Segment(2, 40, FIRST.segment_bytes)
            (wal / far.next().name).write_bytes(make_wal(far.next()))
            assert wal_client.push(str(wal / far.name), str(socket)) == 0
            shipper.wait_until_read(27 * MIB)
            assert path.name not in shipper.done
            return
        with path.open("r+b") as file:  # a server never makes it shorter in between
            file.write(content)
        if how == "ready":
            make_ready(wal, 8)
            shipper.wait_for(path.name)
        assert wal_client.push(str(path), str(socket)) == 0
        shipper.wait_for(path.name)
        shipper.wait_until_read(16 * MIB)
        assert shipper.read == content


def test_nobody_seals_what_grows_any_more_once_the_duty_has_ended(
    wal: Path, shipper: ScriptedShipper, tmp_path: Path
) -> None:
    """Else two would write one file of the spool when the duty begins anew."""
    path = wal / FIRST.next().name
    path.write_bytes(make_wal(FIRST.next()))
    plain, waited = shipper.ship_growing, []

    def linger(growing: Growing) -> None:
        (duty,) = [thread for thread in threading.enumerate() if thread.name == "duty"]
        try:
            plain(growing)
        finally:
            duty.join(0.5)
            waited.append(duty.is_alive())

    shipper.ship_growing = linger  # type: ignore[method-assign]
    with answering(tmp_path, shipper) as socket:
        assert wal_client.push(str(wal / FIRST.name), str(socket)) == 0
        shipper.wait_until_read(MIB)
    assert waited == [True]


def test_an_answer_that_comes_after_the_end_begins_nothing_more(wal: Path, shipper: ScriptedShipper) -> None:
    (wal / FIRST.next().name).write_bytes(make_wal(FIRST.next()))
    spool: Any = SimpleNamespace(identity=lambda: Identity("1", FIRST.segment_bytes))
    with looking_ahead(cast("Shipper", shipper), spool) as ahead:
        pass
    try:
        ahead.taken(wal / FIRST.name)
        assert "growing" not in [thread.name for thread in threading.enumerate()]
    finally:
        ahead.end()


def test_files_are_begun_one_after_the_other_so_that_they_are_ready_one_after_the_other(
    shipper: ScriptedShipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(ahead_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    with ThreadPoolExecutor(1) as pool:
        ahead = LookAhead(cast("Shipper", shipper), cast("Any", None), pool)
        assert [ahead._turn_s(), ahead._turn_s()] == [0, 0], "nobody knows how long one takes"
        ahead._took_s = 0.04
        waits_s = [ahead._turn_s() for _ in range(3)]
        apart_s = 0.8 * 0.04 / _WORKERS
        assert waits_s == pytest.approx([0, apart_s, 2 * apart_s])
        now_s += 1
        assert ahead._turn_s() == 0, "a worker that was busy waits for nobody"
        ahead._took_s = 60.0
        ahead._turn_s()
        assert ahead._turn_s() <= 0.2, "a slow store makes nobody wait for long"
