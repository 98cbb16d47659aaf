"""SIGKILL at every request to a store and at every change of the spool while a log is shipped.

After each kill, and with nothing done in between, must hold: every segment is still in the spool or listed in both
stores; what is listed is there, as listed, and chained. The next process then finishes the work, without unlocking.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from drkit.app import open_app
from drkit.errors import DrkitError, StoreError, StoreExists, StoreUnavailable
from drkit.operations import lanes
from drkit.operations.log_chain import LogChain
from drkit.operations.sealed_files import SealedDamaged, SpoolFull
from drkit.operations.serve import SpoolShipping
from drkit.operations.ship import Shipper
from drkit.operations.spool import Identity, Spool, spool_folder
from drkit.stores.memory import MemoryStore
from drkit.wal import Segment
from tests.faults.injection import Trigger, WatchedStore
from tests.fixtures.shipping import LogSite
from tests.fixtures.site import ReadySite
from tests.fixtures.wal_files import CLUSTER, make_wal

if TYPE_CHECKING:
    from drkit.operations.receive import Setting

MIB = 1 << 20
COUNT = 1
STORES = ("primary", "second")
FIRST = Segment(1, 7, MIB)


@pytest.fixture
def source(ready_site: ReadySite) -> LogSite:
    """Lend a site with two stores and some received segments, and an unfinished one."""
    ready_site.add_store("second").mkdir()
    site = LogSite(ready_site)
    site.write_policy("env:NOWHERE", stores=STORES)
    spool = Spool(spool_folder(ready_site.load(), "orders"))
    spool.keep_identity(Identity(str(CLUSTER), MIB))
    return site


def fill(spool: Spool, first: Segment) -> dict[str, bytes]:
    """Receive some segments and an unfinished one; return the whole ones by name."""
    for path in spool.received_files():
        path.unlink()
    segments = [Segment(1, first.number + step, MIB) for step in range(COUNT)]
    contents = {item.name: make_wal(item, seed=item.number) for item in segments}
    for name, content in contents.items():
        (spool.received / name).write_bytes(content)
    end = segments[-1].next()
    (spool.received / f"{end.name}.partial").write_bytes(make_wal(end, pages=3))
    return contents


@contextmanager
def shipper_of(site: LogSite, trigger: Trigger | None = None) -> Iterator[tuple[Shipper, Spool]]:
    """Lend what ships; every request to a store passes by the trigger."""
    with open_app(site.site.site_file) as workplace:
        policy = workplace.policies["orders"]
        spool = Spool(spool_folder(workplace.site, "orders"))
        shipper = Shipper(workplace, policy, spool, list_after=timedelta())
        if trigger is not None:
            for lane in shipper._lanes:
                lane.store = WatchedStore(lane.store, trigger)
        shipper.recover()
        yield shipper, spool


def ship_everything(site: LogSite, trigger: Trigger | None = None) -> None:
    """Do one after the other what the threads of `drkit serve` do."""
    with shipper_of(site, trigger) as (shipper, spool):
        for path in spool.waiting_files():
            if path.name.endswith(".partial"):
                shipper.ship_partial(path)
            else:
                shipper.ship(path)
        shipper.retry()
        shipper.list_due(force=True)


def in_child(body: Callable[[Trigger], None], trace: Path, count: int) -> int:
    """Run the body in a child that kills itself at the ``count``-th point; return its status."""
    child = os.fork()
    if child == 0:
        try:
            log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            body(CountedTrigger(log, count))
        except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
            os._exit(70)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class CountedTrigger(Trigger):
    """Kill at the n-th point whatever it is: names of manifests are never the same twice."""

    def __init__(self, trace: int, count: int) -> None:
        super().__init__(trace, "", signal.SIGKILL)
        self.left = count
        watch_files(self)

    def pass_by(self, point: str) -> None:
        os.write(self.trace, f"{point}\n".encode())
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def watch_files(trigger: Trigger) -> None:
    """Pass by the trigger before and after every change of a name in the spool."""
    for name in ("replace", "unlink", "rename"):
        plain = getattr(Path, name)

        def watched(
            self: Path, *arguments: object, plain: Callable[..., object] = plain, name: str = name, **how: object
        ) -> object:
            inside = "/var/wal/" in str(self) or "/var/oplog/" in str(self)
            if inside:
                trigger.pass_by(f"before {name} {self.name}")
            result = plain(self, *arguments, **how)
            if inside:
                trigger.pass_by(f"after {name} {self.name}")
            return result

        setattr(Path, name, watched)


def check_invariants(site: LogSite, wanted: dict[str, bytes]) -> set[str]:
    """Assert that nothing is lost and the chains are whole; return the names that are listed in both stores."""
    logs = [site.shipped(store) for store in STORES]
    for log in logs:
        assert [item.previous for item in log.manifests] == [None, *log.digests[:-1]][: len(log.manifests)]
    listed = set(logs[0].files) & set(logs[1].files)
    for name, content in wanted.items():
        received = site.spool / "received" / name
        assert name in listed or received.read_bytes() == content, name
        for store, log in zip(STORES, logs, strict=True):
            assert name not in log.files or site.plain(log.files[name], store) == content
    return listed


POINTS = 108
SHARD = 12


@pytest.mark.parametrize("start", range(0, POINTS, SHARD))
def test_killed_at_every_point_of_a_clean_run(source: LogSite, tmp_path: Path, start: int) -> None:
    spool = Spool(source.spool)
    for step in range(SHARD):
        first = Segment(1, 7 + step * COUNT, MIB)
        wanted = fill(spool, first)
        status = in_child(lambda trigger: ship_everything(source, trigger), tmp_path / "trace", start + step + 1)
        check_invariants(source, wanted)
        ship_everything(source)
        assert set(wanted) <= check_invariants(source, wanted)
        assert (list(spool.sealed.iterdir()), list(spool.manifests.iterdir())) == ([], [])
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            break
    for store in STORES:
        source.check_log(store)


def test_those_were_all_points(source: LogSite, tmp_path: Path) -> None:
    fill(Spool(source.spool), FIRST)
    assert in_child(lambda trigger: ship_everything(source, trigger), tmp_path / "trace", 0) == 0
    assert len((tmp_path / "trace").read_text().splitlines()) < POINTS


def test_a_full_disk_loses_nothing_and_needs_no_help(source: LogSite, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fill(Spool(source.spool), FIRST)
    write = os.write
    left = [200_000]

    def scarce(descriptor: int, content: bytes) -> int:
        if "/var/wal/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= len(content)
        return write(descriptor, content)

    for room in (0, 100, 700):
        left[0] = room
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", scarce)
            with shipper_of(source) as (shipper, spool):
                failures = []
                for path in spool.waiting_files():
                    try:
                        shipper.ship_partial(path) if path.name.endswith(".partial") else shipper.ship(path)
                    except DrkitError as error:
                        failures.append(error)
                try:
                    shipper.list_due(force=True)
                except DrkitError as error:
                    failures.append(error)
        assert any("No space left" in error.message for error in failures)
        check_invariants(source, wanted)
        assert not list(source.spool.rglob("*.new"))
    ship_everything(source)
    assert set(wanted) <= check_invariants(source, wanted)


@pytest.fixture
def small_disk(source: LogSite) -> Iterator[Path]:
    """Lend the spool's folder as a disk of 12 MiB."""
    with source.small_spool("12m") as folder:
        yield folder


def test_a_disk_without_a_byte_left_is_emptied_by_shipping_all_the_same(source: LogSite, small_disk: Path) -> None:
    Spool(small_disk).keep_identity(Identity(str(CLUSTER), MIB))
    wanted = fill(Spool(small_disk), FIRST)
    with shipper_of(source) as (shipper, spool), ThreadPoolExecutor(2) as pool:
        rule = shipper._policy.continuous_rule
        setting = SimpleNamespace(spool=spool, shipper=shipper, rule=rule)
        shipping = SpoolShipping(cast("Setting", setting))
        spool.hold_ballast()
        other = small_disk / "of another program"
        with pytest.raises(OSError, match="No space left"):
            other.write_bytes(b"x" * (12 << 20))
        assert spool.free_bytes() == 0
        with pytest.raises(SpoolFull, match="No space left on device"), spool._one_more():
            shipping._round(pool, last=True)
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(small_disk) in line]
        assert mapped == [], "what is mapped keeps its room when it is removed"
        shipping._round(pool, last=True)
        assert set(wanted) <= check_invariants(source, wanted)
        assert not (small_disk / "ballast").exists()
        other.unlink()
        shipping._round(pool, last=True)
        assert (small_disk / "ballast").stat().st_size > 2 * MIB


def test_what_a_lost_spool_left_in_the_store_is_taken_over_after_a_while(
    source: LogSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(Spool(source.spool), FIRST)
    with shipper_of(source) as (shipper, spool):
        shipper.ship(spool.received / FIRST.name)
    for folder in ("sealed", "manifests"):
        for path in (source.spool / folder).iterdir():
            path.unlink()
    with (
        shipper_of(source) as (shipper, spool),
        pytest.raises(DrkitError, match="by somebody else and is not listed yet"),
    ):
        shipper.ship(spool.received / FIRST.name)
    monkeypatch.setattr("drkit.operations.lanes._STRANGER_FOR", timedelta())
    with shipper_of(source) as (shipper, spool):
        with pytest.raises(DrkitError):
            shipper.retry()
        shipper.retry()
    ship_everything(source)
    assert set(wanted) <= check_invariants(source, wanted)


def test_a_damaged_sealed_file_is_not_stored_as_something_else(source: LogSite) -> None:
    wanted = fill(Spool(source.spool), FIRST)
    with shipper_of(source) as (shipper, spool):
        for lane in shipper._lanes:
            with suppress(StoreUnavailable), lane.asking():
                raise StoreUnavailable("away for now")
        with pytest.raises(StoreUnavailable):
            shipper.ship(spool.received / FIRST.name)
    sealed = source.spool / "sealed" / FIRST.name
    content = bytearray(sealed.read_bytes())
    content[-1] ^= 1
    sealed.write_bytes(content)
    with shipper_of(source) as (shipper, _), pytest.raises(SealedDamaged):
        shipper.retry()
    ship_everything(source)
    assert set(wanted) <= check_invariants(source, wanted)


def test_a_store_that_goes_away_between_a_file_and_its_manifest_is_asked_again(
    source: LogSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(Spool(source.spool), FIRST)
    now_s = [1000.0]
    monkeypatch.setattr("drkit.operations.lanes.time.monotonic", lambda: now_s[0])
    folder, away = source.site.store_folder, source.site.folder / "away"
    with shipper_of(source) as (shipper, spool):
        shipper.ship(spool.received / FIRST.name)
        folder.rename(away)
        with pytest.raises(DrkitError, match="of store primary does not exist"):
            shipper.list_due(force=True)
        away.rename(folder)
        for _ in range(20):  # it is still left alone: to ask does not lengthen that
            now_s[0] += 0.04
            with pytest.raises(DrkitError, match="of store primary does not exist"):
                shipper.list_due(force=True)
        now_s[0] += 0.5
        shipper.list_due(force=True)
        assert shipper.errors() == []
    assert set(wanted) <= check_invariants(source, wanted)


def test_a_damaged_copy_of_what_is_listed_is_brought_from_the_store_that_has_it(source: LogSite) -> None:
    """It cannot be sealed anew, because its manifest stands; and all that is behind it waits for its turn."""
    wanted = fill(Spool(source.spool), FIRST)
    second, away = source.site.folder / "second", source.site.folder / "away"
    second.rename(away)
    with shipper_of(source) as (shipper, spool):
        with pytest.raises(DrkitError, match="of store second does not exist"):
            shipper.ship(spool.received / FIRST.name)
        shipper.list_due(force=True)
    assert FIRST.name in source.shipped().files
    sealed = source.spool / "sealed" / FIRST.name
    sealed.write_bytes(sealed.read_bytes()[:-1] + b"?")
    away.rename(second)
    ship_everything(source)
    assert set(wanted) <= check_invariants(source, wanted)
    assert [list((source.spool / name).iterdir()) for name in ("sealed", "manifests")] == [[], []]


def test_a_damaged_unfinished_segment_holds_up_no_other(source: LogSite) -> None:
    fill(Spool(source.spool), FIRST)
    damaged = source.spool / "left" / f"{Segment(1, 3, MIB).name}.partial"
    damaged.write_bytes(b"?" * MIB)
    told: list[tuple[str, ...]] = []
    stopping = threading.Event()
    stopping.set()
    with shipper_of(source) as (shipper, spool):
        rule = SimpleNamespace(max_unshipped=timedelta(minutes=1))
        setting: Any = SimpleNamespace(
            shipper=shipper, spool=spool, rule=rule, recovered=stopping, tell=lambda *words: told.append(words)
        )
        SpoolShipping(setting).run(stopping)
    ((duty, state, message),) = told
    assert (duty, state, damaged.name[:24] in message) == ("shipper", "failed", True)
    assert f"{FIRST.next().name}.partial-1" in {name[:34] for name in source.shipped().files}


def test_a_store_that_answers_that_a_key_is_taken_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("drkit.operations.lanes.time.monotonic", lambda: now_s[0])
    lane = lanes.Lane(MemoryStore("primary"), None)
    for failure in (StoreUnavailable("away for now"), StoreExists("taken")):
        with pytest.raises(type(failure)), lane.asking():
            raise failure
        now_s[0] += 60
    assert lane.error is None


def test_a_store_whose_secret_is_missing_keeps_nothing_from_the_next_one(source: LogSite) -> None:
    wanted = fill(Spool(source.spool), FIRST)
    keys = ['access_key: "env:NO_SUCH_KEY"', 'secret_key: "env:NO_SUCH_SECRET"']
    source.site.add_store("cloud", "s3://nowhere/site", 'region: "us-east-1"', *keys)
    source.write_policy("env:NOWHERE", stores=("primary", "cloud", "second"))
    with shipper_of(source) as (shipper, spool):
        with pytest.raises(StoreError, match="NO_SUCH_KEY"):
            shipper.ship(spool.received / FIRST.name)
        shipper.list_due(force=True)
        assert [error.message for error in shipper.errors()] != []
    assert set(wanted) <= check_invariants(source, wanted)


def test_two_chains_never_grow_from_one_process(source: LogSite) -> None:
    fill(Spool(source.spool), FIRST)
    ship_everything(source)
    with open_app(source.site.site_file) as workplace:
        policy = workplace.policies["orders"]
        spool = Spool(source.spool)
        with shipper_of(source) as (shipper, _):
            chain = LogChain(workplace, policy, spool, shipper._lanes)
            chain.recover()
            assert chain._head == source.shipped().digests[-1]
