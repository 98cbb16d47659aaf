"""What tells nobody by itself is seen: a key that is gone, a disk that fills, a store that takes nothing, lateness."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from drkit import bucket
from drkit.errors import StoreError
from drkit.operations.lookout import Lookout, full_disks
from drkit.stores import ObjectInfo
from drkit.stores.memory import MemoryStore
from tests.fixtures.bucket import NOW, entry_of, make_manifest
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import Telling, telling

PLENTY = (500 << 30, 1000 << 30)


class FrozenStore(MemoryStore):
    """A store that somebody can make read-only."""

    frozen = False

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        if self.frozen:
            raise StoreError(f"store {self.name} may not be used: read-only file system")
        return super().replace(key, content, expected=expected)


@pytest.fixture
def store() -> FrozenStore:
    return FrozenStore("primary")


@pytest.fixture
def told(ready_site: ReadySite, store: FrozenStore) -> Iterator[Telling]:
    with telling(ready_site, stores={"primary": store}) as lent:
        yield lent


@pytest.fixture
def room() -> dict[str, tuple[int, int]]:
    """Return what every disk has; a test may change it."""
    return {"all": PLENTY}


@pytest.fixture
def lookout(told: Telling, room: dict[str, tuple[int, int]]) -> Lookout:
    return Lookout(told.workplace, lambda _: None, lambda _: room["all"])


def look(told: Telling, lookout: Lookout, **step: float) -> None:
    told.clock.forward(**step)
    lookout.round()
    told.notifier.round()


def test_all_is_well(told: Telling, lookout: Lookout) -> None:
    for _ in range(3):
        look(told, lookout, minutes=6)
    assert told.receiver.requests == []


def test_a_key_file_that_vanishes_is_told_once_and_its_return_once(told: Telling, lookout: Lookout) -> None:
    look(told, lookout)
    away = told.site.signing_key.rename(told.site.folder / "away")
    for _ in range(3):
        look(told, lookout, seconds=15)
    assert told.receiver.titles() == ["the signing key signing cannot be read"]
    away.rename(told.site.signing_key)
    for _ in range(3):
        look(told, lookout, seconds=15)
    assert told.receiver.titles()[1:] == ["resolved: the signing key signing cannot be read"]


def test_what_righted_itself_while_nobody_looked_is_resolved(told: Telling, lookout: Lookout) -> None:
    away = told.site.signing_key.rename(told.site.folder / "away")
    look(told, lookout)
    away.rename(told.site.signing_key)
    look(told, Lookout(told.workplace, lambda _: None, lambda _: PLENTY))
    assert [state for state, _ in told.receiver.states()] == ["opened", "resolved"]


def test_a_disk_that_fills_is_told_once(told: Telling, lookout: Lookout, room: dict[str, tuple[int, int]]) -> None:
    look(told, lookout)
    room["all"] = (500 << 20, 1000 << 30)
    for _ in range(3):
        look(told, lookout, seconds=15)
    identities = sorted(identity for _, identity in told.receiver.states())
    assert identities == [f"condition/disk-full/{what}" for what in ("catalog", "scratch", "spool", "store primary")]
    room["all"] = PLENTY
    look(told, lookout, seconds=15)
    assert len(told.receiver.requests) == 8


@pytest.mark.parametrize(
    ("free", "size", "full"),
    [
        (1 << 40, 1 << 41, False),
        (30 << 30, 10 << 40, False),  # little of a large disk, and still plenty
        (10 << 30, 1 << 40, True),
        (2 << 30, 4 << 30, False),
        (1 << 29, 4 << 30, False),
        (100 << 20, 4 << 30, True),
    ],
)
def test_when_a_disk_is_nearly_full(free: int, size: int, *, full: bool) -> None:
    found = list(full_disks({"spool": Path("/spool")}, lambda _: (free, size)))
    assert bool(found) is full


def test_a_store_that_turns_read_only_is_told_by_a_lease_it_refuses(
    told: Telling, lookout: Lookout, store: FrozenStore
) -> None:
    look(told, lookout)
    store.frozen = True
    look(told, lookout, minutes=1)
    assert told.receiver.requests == []
    for _ in range(2):
        look(told, lookout, minutes=5)
    assert told.receiver.titles() == ["store primary takes nothing"]
    assert "read-only file system" in told.receiver.requests[0].json["text"]
    store.frozen = False
    look(told, lookout, minutes=5)
    assert told.receiver.titles()[1:] == ["resolved: store primary takes nothing"]


def test_a_real_folder_that_is_gone_is_told(ready_site: ReadySite) -> None:
    from drkit.app import open_stores

    with open_stores(ready_site.load()) as stores, telling(ready_site, stores=stores) as told:
        lookout = Lookout(told.workplace, lambda _: None, lambda _: PLENTY)
        look(told, lookout)
        moved = ready_site.store_folder.rename(ready_site.folder / "unmounted")
        look(told, lookout, minutes=5)
        assert told.receiver.titles() == ["store primary takes nothing"]
        moved.rename(ready_site.store_folder)
        look(told, lookout, minutes=5)
        assert [state for state, _ in told.receiver.states()] == ["opened", "resolved"]


def test_the_lease_says_who_lives_and_until_when(told: Telling, lookout: Lookout, store: FrozenStore) -> None:
    look(told, lookout)
    look(told, lookout, minutes=5)
    (item,) = store.list(bucket.LEASES_PREFIX)
    with store.open(item.key) as chunks:
        lease = json.loads(b"".join(chunks))
    assert lease["renewed_at"] == "2026-11-22T12:05:00.000000+00:00"
    assert lease["expires_at"] == "2026-11-22T12:20:00.000000+00:00"


def test_a_clock_that_was_put_back_does_not_let_the_lease_run_out(
    told: Telling, lookout: Lookout, store: FrozenStore
) -> None:
    look(told, lookout)
    look(told, lookout, days=-1)
    (item,) = store.list(bucket.LEASES_PREFIX)
    with store.open(item.key) as chunks:
        lease = json.loads(b"".join(chunks))
    assert lease["renewed_at"] == "2026-11-21T12:00:00.000000+00:00"


class TestLate:
    @pytest.fixture
    def told(self, ready_site: ReadySite, store: FrozenStore) -> Iterator[Telling]:
        path = ready_site.write_policy(
            "orders", more="objectives: {rpo: 26h}\ndrills: [{name: w, schedule: '0 4 * * *'}]\n"
        )
        path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 2 * * *"}'))
        os.utime(path, (NOW.timestamp() - 60 * 86400,) * 2)
        with telling(ready_site, stores={"primary": store}) as lent:
            yield lent

    def back_up(self, told: Telling) -> None:
        told.catalog.index_artifact(entry_of(make_manifest(at=told.clock().replace(hour=2, minute=0))))

    def test_a_backup_that_is_late_is_told_and_resolved_by_the_next(self, told: Telling, lookout: Lookout) -> None:
        self.back_up(told)
        look(told, lookout)
        late = ("condition/backup-late/orders/dump", "condition/rpo-missed/orders")
        assert not [identity for _, identity in told.receiver.states() if identity in late]
        look(told, lookout, hours=15, minutes=10)
        assert ("opened", late[0]) in told.receiver.states()
        look(told, lookout, hours=2)
        assert ("opened", late[1]) in told.receiver.states()
        self.back_up(told)
        look(told, lookout, minutes=1)
        assert ("resolved", late[0]) in told.receiver.states()
        assert ("resolved", late[1]) in told.receiver.states()
        assert len(set(told.receiver.states())) == len(told.receiver.states())

    def test_an_artifact_of_the_future_makes_nothing_punctual(self, told: Telling, lookout: Lookout) -> None:
        told.catalog.index_artifact(entry_of(make_manifest(at=NOW + timedelta(days=30))))
        look(told, lookout)
        assert ("opened", "condition/backup-late/orders/dump") in told.receiver.states()

    def test_what_was_due_before_the_policy_was_written_is_not_late(self, told: Telling, lookout: Lookout) -> None:
        os.utime(told.site.folder / "policies" / "orders.yaml", (NOW.timestamp(),) * 2)
        look(told, lookout)
        assert told.receiver.requests == []
        look(told, lookout, days=1)
        assert ("opened", "condition/backup-late/orders/dump") in told.receiver.states()

    def test_a_drill_that_is_late_is_told(self, told: Telling, lookout: Lookout) -> None:
        look(told, lookout)
        assert ("opened", "condition/drill-late/orders/w") in told.receiver.states()
        told.catalog.index_evidence(
            {"kind": "drill", "policy": "orders", "drill": "w", "verdict": "passed", "run_id": "D", "level": "loads"}
            | {"ended_at": "2026-11-22T04:30:00.000000+00:00", "artifact_id": "A"},
            "0" * 64,
            ["primary"],
        )
        look(told, lookout, minutes=1)
        assert ("resolved", "condition/drill-late/orders/w") in told.receiver.states()

    def test_a_copy_that_was_found_damaged_is_told_until_it_is_mended(self, told: Telling, lookout: Lookout) -> None:
        record = {"kind": "verification", "policy": "orders", "run_id": "V", "ended_at": NOW.isoformat()}
        told.catalog.index_evidence(record, "1" * 64, ["primary"])
        with told.catalog._transaction() as connection:
            connection.execute(
                "insert into verified (subject, store, policy, at, size_bytes, sound, sha256)"
                " values ('A1', 'primary', 'orders', ?, 1, 0, ?)",
                (NOW.isoformat(), "1" * 64),
            )
        look(told, lookout)
        look(told, lookout, minutes=1)
        told.catalog.verified.mend("A1", "primary")
        look(told, lookout, minutes=1)
        identity = "condition/copy-damaged/orders/A1@primary"
        assert [state for state, name in told.receiver.states() if name == identity] == ["opened", "resolved"]
