"""Reading a segment while it is written: what counts as finished, and what makes the reading worth nothing."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from drkit import folder_events as folder_events_module
from drkit.app import open_app
from drkit.errors import DrkitError, IntegrityError, SourceError
from drkit.folder_events import folder_events
from drkit.operations import ahead as ahead_module
from drkit.operations import ship as ship_module
from drkit.operations.ahead import looking_ahead
from drkit.operations.growing import Growing, ReadInVain
from drkit.operations.ship import Shipper
from drkit.operations.spool import Identity, Spool, spool_folder
from drkit.wal import Segment
from tests.fixtures.shipping import LogSite
from tests.fixtures.site import ReadySite
from tests.fixtures.waiting import wait_until
from tests.fixtures.wal_files import CLUSTER, PAGE, make_wal

MIB = 1 << 20
SEGMENT = Segment(1, 7, MIB)
CHUNK = MIB // 4
BEFORE = make_wal(Segment(1, 3, MIB))
"""What is in the file beforehand: the server uses its segments again."""


class Server:
    """Writes a segment in order, as PostgreSQL does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SEGMENT.name
        self.content = make_wal(SEGMENT)
        self.path.write_bytes(BEFORE)

    def write(self, start: int, end: int, content: bytes | None = None) -> None:
        with self.path.open("r+b") as file:
            file.seek(start)
            file.write((content or self.content)[start:end])


class Reading:
    """What was read so far of a segment that grows, by a thread that ends with the context."""

    def __init__(self, growing: Growing) -> None:
        self.growing = growing
        self.chunks: list[bytes] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for chunk in self.growing.chunks():
                with self._changed:
                    self.chunks.append(chunk)
                    self._changed.notify_all()
            self.growing.confirm()
        except (DrkitError, OSError) as error:
            self.error = error

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.chunks) >= count, timeout=20), len(self.chunks)

    def end(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@contextmanager
def reading(server: Server) -> Iterator[Reading]:
    growing = Growing(server.path, SEGMENT)
    begun = Reading(growing)
    try:
        yield begun
    finally:
        growing.give_up()
        begun.end()


def test_what_lies_before_a_page_that_was_begun_is_read_and_the_rest_once_it_is_finished(server: Server) -> None:
    with reading(server) as read:
        server.write(0, 2 * CHUNK)  # the next page is still one of before
        read.wait_for(1)
        with server.path.open("rb") as file:
            assert not read.growing._is_finished(file.fileno())
        server.write(2 * CHUNK, 2 * CHUNK + PAGE)
        read.wait_for(2)
        server.write(2 * CHUNK + PAGE, MIB)
        read.wait_for(3)
        read.growing.finish()
        read.end()
        assert (b"".join(read.chunks), read.error) == (server.content, None)
        assert read.growing.stamp[1] == MIB


def test_a_segment_that_was_written_over_after_it_was_read_is_not_taken_for_what_it_was(server: Server) -> None:
    with reading(server) as read:
        server.write(0, 3 * CHUNK)
        read.wait_for(2)
        server.write(0, MIB, make_wal(SEGMENT, seed=1))
        read.growing.finish()
        read.end()
        assert isinstance(read.error, ReadInVain)
        assert "written anew" in str(read.error)


def test_another_file_of_the_same_name_is_not_taken_for_the_one_that_was_read(server: Server) -> None:
    with reading(server) as read:
        server.write(0, 3 * CHUNK)
        read.wait_for(2)
        other = server.path.with_name("other")
        other.write_bytes(server.content)
        other.rename(server.path)
        read.growing.finish()
        read.end()
        assert isinstance(read.error, ReadInVain)


@pytest.mark.parametrize("how", ["given up", "removed"])
def test_a_segment_that_never_gets_finished_is_let_go_of(server: Server, how: str) -> None:
    with reading(server) as read:
        server.write(0, 2 * CHUNK)
        read.wait_for(1)
        if how == "given up":
            read.growing.give_up()
        else:
            server.path.unlink()
            read.growing.finish()
        read.end()
        assert isinstance(read.error, ReadInVain if how == "given up" else FileNotFoundError)


@pytest.fixture
def source(ready_site: ReadySite) -> LogSite:
    site = LogSite(ready_site)
    site.write_policy("env:NOWHERE", "receive: archive")
    Spool(spool_folder(ready_site.load(), "orders")).keep_identity(Identity(str(CLUSTER), MIB))
    return site


@contextmanager
def shipping(source: LogSite) -> Iterator[tuple[Shipper, Spool]]:
    with open_app(source.site.site_file) as workplace:
        spool = Spool(spool_folder(workplace.site, "orders"))
        shipper = Shipper(workplace, workplace.policies["orders"], spool, list_after=timedelta())
        shipper.recover()
        yield shipper, spool


def test_a_segment_shipped_while_it_grew_is_stored_as_it_is_and_known_when_it_is_handed_over(
    source: LogSite, server: Server
) -> None:
    server.write(0, MIB)
    with shipping(source) as (shipper, spool):
        growing = Growing(server.path, SEGMENT)
        growing.finish()
        shipper.ship_growing(growing)
        sealed = (spool.sealed / SEGMENT.name).read_bytes()
        shipper.ship(server.path, keep_source=True)
        assert (spool.sealed / SEGMENT.name).read_bytes() == sealed
        server.write(0, MIB, make_wal(SEGMENT, seed=1))
        with pytest.raises(IntegrityError, match="stored before with other content"):
            shipper.ship(server.path, keep_source=True)
        shipper.list_due(force=True)
    assert source.plain(source.check_log().files[SEGMENT.name]) == server.content


def test_a_segment_is_stored_as_it_is_alone_and_beside_others_that_are_sealed(source: LogSite, server: Server) -> None:
    second = server.path.with_name(SEGMENT.next().name)
    second.write_bytes(make_wal(SEGMENT.next(), seed=2))
    server.write(0, MIB)
    with shipping(source) as (shipper, spool):
        shipper.ship(server.path, keep_source=True)
        with spool._one_more():
            shipper.ship(second, keep_source=True)
        shipper.list_due(force=True)
    log = source.check_log()
    assert [source.plain(log.files[path.name]) for path in (server.path, second)] == [
        server.content,
        second.read_bytes(),
    ]


def test_nothing_is_kept_of_what_was_read_in_vain(source: LogSite, server: Server) -> None:
    with shipping(source) as (shipper, spool):
        for cluster, finish, error in ((CLUSTER, False, ReadInVain), (CLUSTER + 1, True, IntegrityError)):
            server.write(0, MIB, make_wal(SEGMENT, cluster=cluster))
            growing = Growing(server.path, SEGMENT)
            (growing.finish if finish else growing.give_up)()
            with pytest.raises(error):
                shipper.ship_growing(growing)
        server.path.rename(server.path.with_name("away"))
        with pytest.raises(SourceError):
            shipper.ship_growing(Growing(server.path, SEGMENT))
        server.path.with_name("away").rename(server.path)
        assert (list(spool.sealed.iterdir()), shipper.has(SEGMENT.name), source.stored_names()) == ([], False, set())
        server.write(0, MIB)
        shipper.ship(server.path, keep_source=True)
        assert source.stored_names() == {SEGMENT.name}


def test_what_was_written_over_is_found_out_after_it_was_sealed_and_before_it_counts(
    source: LogSite, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison goes on while the rest is sealed: here it begins only once that is done."""
    sealed, compared, compare = threading.Event(), threading.Event(), Growing._compare

    def late(growing: Growing, early: memoryview, descriptor: int) -> None:
        assert sealed.wait(20)
        compared.set()
        compare(growing, early, descriptor)

    monkeypatch.setattr(Growing, "_compare", late)
    server.write(0, 3 * CHUNK)
    with shipping(source) as (shipper, spool):
        growing = Growing(server.path, SEGMENT)
        has_more = growing._has_more

        def one_chunk(descriptor: int) -> bool:
            if not growing.size_bytes:
                return has_more(descriptor)
            server.write(0, MIB, make_wal(SEGMENT, seed=1))
            return False

        monkeypatch.setattr(growing, "_has_more", one_chunk)
        monkeypatch.setattr(
            spool, "note", lambda *args, note=spool.note, **options: (sealed.set(), note(*args, **options))
        )
        with pytest.raises(ReadInVain, match="written anew"):
            shipper.ship_growing(growing)
        assert compared.is_set()
        assert (list(spool.sealed.iterdir()), shipper.has(SEGMENT.name), source.stored_names()) == ([], False, set())
        shipper.ship(server.path, keep_source=True)
        assert source.stored_names() == {SEGMENT.name}


@pytest.mark.parametrize("size_bytes", [0, PAGE, MIB - PAGE, MIB + PAGE])
def test_a_segment_of_another_length_is_refused_however_it_was_read(
    source: LogSite, server: Server, size_bytes: int
) -> None:
    server.path.write_bytes(server.content.ljust(size_bytes, b"x")[:size_bytes])
    with shipping(source) as (shipper, spool):
        growing = Growing(server.path, SEGMENT)
        growing.finish()
        for ship in (lambda: shipper.ship_growing(growing), lambda: shipper.ship(server.path, keep_source=True)):
            with pytest.raises(IntegrityError, match=f"has {size_bytes:,} bytes|is empty|does not begin"):
                ship()
        assert (list(spool.sealed.iterdir()), shipper.has(SEGMENT.name), source.stored_names()) == ([], False, set())


@pytest.mark.parametrize("early", [False, True])
def test_a_disk_that_does_not_give_a_segment_is_said(source: LogSite, server: Server, early: bool) -> None:
    server.path.unlink()
    server.path.symlink_to("/proc/self/mem")  # reading its first bytes fails as a broken disk does
    with shipping(source) as (shipper, spool):
        growing = Growing(server.path, SEGMENT)
        growing.finish()
        with pytest.raises(SourceError, match=f"{server.path} cannot be read: Input/output error") as raised:
            shipper.ship_growing(growing) if early else shipper.ship(server.path, keep_source=True)
        assert raised.value.hints == (f"ls -l {server.path}",)
        assert (list(spool.sealed.iterdir()), shipper.has(SEGMENT.name), source.stored_names()) == ([], False, set())


@pytest.mark.parametrize("which", [SEGMENT.name, f"{SEGMENT.name}.json.new"])
def test_what_the_disk_does_not_keep_never_counts(
    source: LogSite, server: Server, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    server.write(0, MIB)
    plain, failed = os.fdatasync, []

    def fail(descriptor: int) -> None:
        if not failed and Path(f"/proc/self/fd/{descriptor}").readlink().name == which:
            failed.append(which)
            raise OSError(errno.EIO, "Input/output error")
        plain(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail)
    with shipping(source) as (shipper, spool):
        growing = Growing(server.path, SEGMENT)
        growing.finish()
        with pytest.raises(SourceError, match="Input/output error"):
            shipper.ship_growing(growing)
        assert (spool.load_sealed(), shipper.has(SEGMENT.name), source.stored_names()) == ([], False, set())
        shipper.ship(server.path, keep_source=True)
        assert source.stored_names() == {SEGMENT.name}


def test_only_the_latest_files_are_known_without_reading_them_again(
    source: LogSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = ship_module._sha256

    def noted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(ship_module, "_MOST_STAMPS", 2)
    monkeypatch.setattr(ship_module, "_sha256", noted)
    names = [Segment(1, number, MIB).name for number in range(3, 7)]
    for number, name in enumerate(names, start=3):
        (tmp_path / name).write_bytes(make_wal(Segment(1, number, MIB)))
    with shipping(source) as (shipper, _):
        for name in (*names, *reversed(names)):
            shipper.ship(tmp_path / name, keep_source=True)
        assert read == [names[1], names[0]]
        assert not shipper._working, "and of one that nobody works at there is no lock"


def test_a_segment_that_another_server_hands_over_is_not_taken_for_the_one_that_grows(
    source: LogSite, server: Server, tmp_path: Path
) -> None:
    """A standby that archives as well, say: its segment is not finished because the primary's is."""
    before, other = Segment(1, 6, MIB), tmp_path / "other"
    for folder in (tmp_path, other):
        (folder / "archive_status").mkdir(parents=True)
        (folder / before.name).write_bytes(make_wal(before))
    server.write(0, 3 * CHUNK)
    (other / SEGMENT.name).write_bytes(server.content)

    with shipping(source) as (shipper, spool), looking_ahead(shipper, spool) as ahead:
        for path in (tmp_path / before.name, other / SEGMENT.name):
            with ahead.handed_over(path):
                shipper.ship(path, keep_source=True)
            ahead.taken(path)
            wait_until(lambda: path != tmp_path / before.name or ahead._growing is not None)  # noqa: B023
        shipper.list_due(force=True)
    assert source.plain(source.check_log().files[SEGMENT.name]) == server.content


@pytest.mark.parametrize("what", ["thread", "memory"])
def test_a_thread_and_memory_that_are_not_to_be_had_are_done_without(
    source: LogSite, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "archive_status").mkdir()
    before = tmp_path / Segment(1, 6, MIB).name
    before.write_bytes(make_wal(Segment(1, 6, MIB)))
    start = threading.Thread.start
    refused = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "growing":
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    def refuse_memory(*asked: object) -> Growing:
        refused.append(asked)
        raise MemoryError

    if what == "thread":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(ahead_module, "Growing", refuse_memory)
    with shipping(source) as (shipper, spool), looking_ahead(shipper, spool) as ahead:
        with ahead.handed_over(before):
            shipper.ship(before, keep_source=True)
        ahead.taken(before)
        server.write(0, MIB)
        with ahead.handed_over(server.path):
            shipper.ship(server.path, keep_source=True)
        ahead.taken(server.path)
        assert (ahead._growing, ahead._ahead) == (None, set())
    assert refused
    assert SEGMENT.name in source.stored_names()


@pytest.mark.parametrize("told", [True, False])
def test_a_folder_says_when_something_is_made_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, told: bool
) -> None:
    if not told:
        monkeypatch.setattr(folder_events_module, "_listen", lambda _: None)
    (tmp_path / "inside").mkdir()
    with folder_events(tmp_path, tmp_path / "inside") as events:
        assert isinstance(events, folder_events_module._Told) == told
        events.wait(0)
        (tmp_path / "inside" / "new").touch()
        begun_s = time.monotonic()
        events.wait(60)
        (tmp_path / "other").touch()
        (tmp_path / "other").rename(tmp_path / "moved")
        events.wait(60)
        assert time.monotonic() - begun_s < 60, "it was not told, but gave up waiting"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), folder_events(tmp_path / "nowhere"):
        pass
