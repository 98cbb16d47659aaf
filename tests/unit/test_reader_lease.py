"""Leases of readers: what another host reads is not deleted under it, and no lease holds up a prune for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from drkit import bucket
from drkit.canonical import canonical_json
from drkit.errors import ConfigError, StoreError
from drkit.operations import reader_lease as leases
from drkit.operations.reader_lease import HELD_UP_AT_MOST, live_reader, reader_lease
from drkit.operations.running import recorded_run
from drkit.operations.store_lease import take_lease
from drkit.stores import ObjectInfo, read_object
from drkit.stores.memory import MemoryStore
from drkit.units import format_utc
from tests.fixtures.pruning import DAY, HOUR, PruneWorld, Silent, prune_world
from tests.fixtures.site import ReadySite

MINUTE = timedelta(minutes=1)


class Said(Silent):
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    """Lend a world in which three artifacts are due to be deleted."""
    with prune_world(ready_site, tmp_path) as made:
        made.back_up(6)
        made.prune()
        made.now += 25 * HOUR
        yield made
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("reader ")] == []


def forge(world: PruneWorld, content: bytes, slot: int = 0, store: str = "offsite") -> None:
    key = bucket.lease_key(bucket.reader_lease_name("orders", slot))
    there = [item.revision for item in world.stores[store].list(key)]
    world.stores[store].replace(key, content, expected=there[0] if there else None)


def lease_of(holder: str, world: PruneWorld, ends_in: timedelta) -> bytes:
    lease = {"format": "drkit-lease", "version": 1, "holder": holder, "fence": 1}
    return canonical_json({**lease, "expires_at": format_utc(world.now + ends_in)})


def test_what_is_read_is_not_deleted_until_the_lease_is_given_back(world: PruneWorld) -> None:
    said = Said()
    with reader_lease(world.workplace, "orders", ["offsite"], said):
        result = world.prune()
        assert (result.removed, result.state, len(world.ids())) == ([], "ok", 6)
        (note,) = result.notes
        assert note.startswith(
            "what is due is not deleted now: the lease leases/read.orders.0.json in store offsite says that it may be"
        )
    assert said.lines == []
    (event,) = [event for event in world.catalog.events() if event["name"] == "prune.held_up"]
    assert (event["store"], event["lease"]) == ("offsite", "leases/read.orders.0.json")
    assert len(world.prune().removed) == 3


def test_a_reader_of_another_policy_holds_up_nothing(world: PruneWorld) -> None:
    with reader_lease(world.workplace, "orders-eu", ["primary"], Silent()):
        assert len(world.prune().removed) == 3


def test_a_killed_reader_is_waited_for_until_its_lease_would_have_been_renewed(world: PruneWorld) -> None:
    take_lease(world.stores["primary"], "read.orders.0", lambda: world.now)
    world.now += 14 * MINUTE
    assert world.prune().removed == []
    world.now += 2 * MINUTE
    assert len(world.prune().removed) == 3


@pytest.mark.parametrize("wrong", [-3 * HOUR, 3 * HOUR])
def test_the_clock_of_a_reader_means_nothing(world: PruneWorld, wrong: timedelta) -> None:
    take_lease(world.stores["primary"], "read.orders.0", lambda: world.now + wrong)
    assert world.prune().removed == []
    world.now += 16 * MINUTE
    assert len(world.prune().removed) == 3


def test_leases_that_somebody_forges_again_and_again_hold_up_a_prune_for_a_bounded_time(world: PruneWorld) -> None:
    """Whoever can write to a store may not fill it for ever; and what is deleted then was due, so nothing is lost."""
    due_at = world.now - HOUR
    world.retention = {"last": 3, "max_removed_percent": 100, "stale_after": "100d"}
    while world.now < due_at + HELD_UP_AT_MOST:
        forge(world, lease_of("elsewhere/1@1", world, 1000 * DAY))
        assert world.prune().removed == []
        world.now += 12 * HOUR
    forge(world, lease_of("elsewhere/1@1", world, 1000 * DAY))
    assert len(world.prune().removed) == 3


def test_runs_that_read_whenever_a_prune_comes_hold_it_up_for_a_bounded_time(world: PruneWorld) -> None:
    """A drill each day at the time of the prune, none of them long: what is due goes after a week all the same."""
    due_at = world.now - HOUR
    world.retention = {"last": 3, "max_removed_percent": 100, "stale_after": "100d"}
    while world.now < due_at + HELD_UP_AT_MOST:
        with recorded_run(world.catalog, lambda: world.now, "drill", "orders"):
            result = world.prune()
            assert result.removed == []
            (note,) = result.notes
            assert note.startswith("what is due is not deleted now: a drill runs since ")
        world.now += DAY
    with recorded_run(world.catalog, lambda: world.now, "drill", "orders"):
        assert len(world.prune().removed) == 3


def test_a_prune_that_comes_once_a_month_waits_for_readers_as_well(world: PruneWorld) -> None:
    world.retention = {"last": 3, "max_removed_percent": 100, "stale_after": "100d"}
    world.now += 30 * DAY
    with reader_lease(world.workplace, "orders", ["offsite"], Silent()):
        assert world.prune().removed == []
    assert len(world.prune().removed) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff" * 5000,
        canonical_json({"holder": None, "fence": None, "expires_at": None}),
        canonical_json({"holder": "here/\u00b2@1", "fence": 1, "expires_at": "9999-12-31T23:59:59Z"}),
    ],
)
def test_whatever_lies_in_the_place_of_a_lease_stops_neither_a_reader_nor_a_prune(
    world: PruneWorld, content: bytes
) -> None:
    said = Said()
    forge(world, content)
    with reader_lease(world.workplace, "orders", ["offsite"], said):
        assert world.prune().removed == []
    assert said.lines == []
    assert len(world.prune().removed) == 3


def test_a_lease_that_cannot_be_read_may_stand_and_fails_nothing(world: PruneWorld) -> None:
    key = bucket.lease_key(bucket.reader_lease_name("orders", 0))
    forge(world, b"sealed with a key of somebody else")
    looking = world.stores["offsite"].head

    def refuse(asked: str, **options: object) -> ObjectInfo:
        if asked == key:
            raise StoreError(f"store offsite failed at {key}: InvalidRequest")
        return looking(asked, **options)

    world.stores["offsite"].head = refuse
    assert world.prune().removed == []
    world.now += 20 * MINUTE
    assert len(world.prune().removed) == 3


class ReadOnly(MemoryStore):
    """A store of which this host may only read."""

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        raise StoreError(f"store {self.name} failed at {key}: AccessDenied")


class NoLeases(MemoryStore):
    traits = replace(MemoryStore.traits, compare_and_swap=False)


def test_who_may_only_read_goes_on_and_says_once_what_protects_the_reading(world: PruneWorld) -> None:
    world.stores["offsite"] = ReadOnly("offsite")
    world.stores["primary"] = NoLeases("primary")
    said = Said()
    with reader_lease(world.workplace, "orders", ["offsite", "primary"], said):
        pass
    offsite, primary = said.lines
    assert "unprotected store offsite takes no lease of this reader" in offsite
    assert "AccessDenied; only the time of grace protects what is read there from a prune" in offsite
    assert "unprotected store primary keeps no leases" in primary


def test_a_store_that_does_not_answer_holds_up_no_reader(world: PruneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    class Slow(MemoryStore):
        def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
            answer.wait(30)
            return super().head(key, version_id=version_id)

    monkeypatch.setattr(leases, "_TAKEN_WITHIN_S", 0.01)
    world.stores["offsite"] = Slow("offsite", now=lambda: world.now)
    said = Said()
    with reader_lease(world.workplace, "orders", ["primary", "offsite"], said):
        assert "store offsite has not taken this reader's lease yet" in said.lines[-1]
        answer.set()


def test_several_readers_have_leases_of_their_own_up_to_a_number(world: PruneWorld) -> None:
    store = world.stores["offsite"]
    for slot in range(16):
        forge(world, lease_of(f"elsewhere/{slot}@1", world, 5 * MINUTE), slot)
        if slot == 2:
            with reader_lease(world.workplace, "orders", ["offsite"], Silent()):
                assert b"elsewhere" not in read_object(store, "leases/read.orders.3.json")
    said = Said()
    with reader_lease(world.workplace, "orders", ["offsite"], said):
        assert "store offsite has 16 readers of the policy already" in said.lines[0]


def test_a_lease_that_somebody_took_is_taken_anew_and_one_in_use_is_renewed(
    world: PruneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[str] = []
    beaten = threading.Condition()
    beat = leases._Reader._beat

    def counted(reader: leases._Reader) -> None:
        beat(reader)
        with beaten:
            beats.append("beat")
            beaten.notify_all()

    def next_beats() -> None:
        with beaten:
            count = len(beats)
            assert beaten.wait_for(lambda: len(beats) >= count + 2, timeout=60)

    monkeypatch.setattr(leases, "_BEAT_S", 0.01)
    monkeypatch.setattr(leases._Reader, "_beat", counted)
    store = world.stores["offsite"]
    with reader_lease(world.workplace, "orders", ["offsite"], Silent()):
        forge(world, lease_of("elsewhere/1@1", world, 15 * MINUTE))
        world.now += 6 * MINUTE
        next_beats()
        assert b"elsewhere" not in read_object(store, "leases/read.orders.1.json")
        world.now += 30 * MINUTE
        next_beats()
        assert live_reader(store, "orders", world.now) == "leases/read.orders.1.json"
    assert live_reader(store, "orders", world.now) == ""


def test_a_reader_that_comes_while_a_prune_deletes_keeps_the_rest(world: PruneWorld) -> None:
    offsite = world.stores["offsite"]
    deleting = offsite.delete

    def come(key: str, **options: object) -> None:
        deleting(key, **options)
        if key.endswith("/manifest.json"):
            take_lease(offsite, "read.orders.0", lambda: world.now)
            offsite.delete = deleting

    offsite.delete = come
    result = world.prune()
    assert (len(result.removed), len(result.notes)) == (1, 1)
    assert world.ids() == world.ids("offsite")
    world.now += 20 * MINUTE
    assert len(world.prune().removed) == 2


def test_a_secret_that_is_missing_is_said_at_once_and_one_that_comes_back_makes_a_reader_hold_its_lease(
    world: PruneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = world.stores["offsite"]
    looking, writing, written = store.head, store.replace, threading.Event()

    def refuse(key: str, **options: object) -> ObjectInfo:
        raise ConfigError("the secret env:OFFSITE_KEY is not set")

    def write(key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        found = writing(key, content, expected=expected)
        written.set()
        return found

    store.head, store.replace = refuse, write
    monkeypatch.setattr(leases, "_BEAT_S", 0.01)
    said = Said()
    with reader_lease(world.workplace, "orders", ["offsite"], said):
        assert "store offsite takes no lease of this reader: the secret env:OFFSITE_KEY is not set" in said.lines[0]
        store.head = looking
        assert written.wait(60)
        assert live_reader(store, "orders", world.now) == "leases/read.orders.0.json"
