"""What a restored server fetches of its log is there until it was fetched, whoever prunes meanwhile."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from drkit import wal_client
from drkit.errors import IntegrityError, StoreError, StoreMissing
from drkit.operations.base_plan import BasePlan
from drkit.operations.extraction import Owner
from drkit.operations.reader_lease import reader_lease
from drkit.operations.replay import ReplayLog, WalServer, open_wal_server
from drkit.operations.stored_log import StoredFile, read_logs
from drkit.stores import ObjectInfo, read_object
from tests.fixtures.pruning import DAY, HOUR, PruneWorld, Silent, prune_world
from tests.fixtures.site import ReadySite
from tests.fixtures.wal_files import CLUSTER
from tests.unit.test_prune_log import SEGMENT, WINDOW, LogWorld


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    """Lend a world whose oldest bases are gone, and whose oldest log is due to be deleted by the next prune."""
    with prune_world(ready_site, tmp_path, retention=WINDOW) as made:
        LogWorld(made).pass_days(10)
        made.prune()
        made.now += 25 * HOUR
        made.prune()
        made.prune()
        made.now += 25 * HOUR
        yield made


@dataclass
class Pruned:
    """Reads segments from one store, where somebody prunes before each."""

    world: PruneWorld
    removed: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def copy(self, stored: StoredFile, target: BinaryIO, limit_bytes: int) -> None:
        with self.lock:
            self.removed += self.world.prune().removed_log
        try:
            read_object(self.world.stores["primary"], stored.key)
        except StoreMissing as error:
            raise IntegrityError(f"{stored.file.name} is gone") from error
        head = struct.pack("<HHIQI", 0xD110, 2, 1, stored.file.start_lsn, 0).ljust(24, b"\0")
        target.write((head + struct.pack("<QII", CLUSTER, limit_bytes, 8192)).ljust(limit_bytes, b"\0"))


def oldest(world: PruneWorld) -> list[StoredFile]:
    found = read_logs(world.workplace, "orders").files
    return [found[name]._replace(stores=("primary",)) for name in sorted(found)[:4]]


def plan_of(files: list[StoredFile], *base_stores: str) -> BasePlan:
    base: Any = SimpleNamespace(entry=SimpleNamespace(stores=base_stores))
    unused: Any = None
    return BasePlan(unused, unused, base, tuple(files), {}, SEGMENT, (), ())


@contextmanager
def serving(folder: Path, files: list[StoredFile], reader: Pruned) -> Iterator[Path]:
    spool = folder / "spool"
    spool.mkdir()
    server = WalServer(ReplayLog(files, {}, SEGMENT), reader, spool, Owner(os.geteuid(), os.getegid()))  # type: ignore[arg-type]
    with open_wal_server(server, folder / "socket"):
        yield folder / "socket"


def fetch_all(folder: Path, files: list[StoredFile], socket: Path) -> list[int]:
    return [wal_client.fetch(item.file.name, str(folder / "fetched"), str(socket), 20) for item in files]


def count_leases(world: PruneWorld) -> int:
    return sum(1 for store in world.stores.values() for item in store.list("leases/read.") if item)


def test_a_prune_between_two_fetches_takes_no_log_that_is_still_to_be_fetched(
    world: PruneWorld, tmp_path: Path
) -> None:
    """The base lies in a store that takes no lease, as for a host that may only read it; the log in another."""

    def refuse(key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        raise StoreError(f"store offsite failed at {key}: AccessDenied")

    writing = world.stores["offsite"].replace
    files, reader = oldest(world), Pruned(world)
    plan = plan_of(files, "offsite")
    assert plan.stores == ("offsite", "primary")
    written = count_leases(world)
    world.stores["offsite"].replace = refuse
    with (
        reader_lease(world.workplace, "orders", plan.stores, Silent()),
        serving(tmp_path, files, reader) as socket,
    ):
        world.stores["offsite"].replace = writing
        assert fetch_all(tmp_path, files, socket) == [0, 0, 0, 0]
    assert reader.removed == []
    assert count_leases(world) <= written + 1, "one lease for all that is fetched"
    world.now += timedelta(hours=1)
    assert world.prune().removed_log != [], "it was due all the time"


def test_without_a_lease_what_is_due_goes_and_the_fetch_aborts_the_recovery(world: PruneWorld, tmp_path: Path) -> None:
    files, reader = oldest(world), Pruned(world)
    with serving(tmp_path, files, reader) as socket:
        assert set(fetch_all(tmp_path, files, socket)) == {255}, "never 1, which would be the end of the log"
    assert reader.removed != []


def test_a_lease_that_nobody_holds_any_more_protects_nothing_for_ever(world: PruneWorld) -> None:
    with reader_lease(world.workplace, "orders", ["primary"], Silent()):
        assert world.prune().removed_log == []
    world.now += DAY
    assert world.prune().removed_log != []
