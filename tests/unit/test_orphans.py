"""Orphans, what a killed backup leaves without a manifest: when they go, and what is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drkit import bucket
from drkit.cli.prune import _lines
from drkit.model import Run
from drkit.operations.prune_reach import reach_of
from drkit.operations.prune_steps import Pruning
from drkit.operations.running import new_id, recorded_run
from drkit.stores.memory import MemoryStore
from tests.fixtures.pruning import DAY, HOUR, Locked, PruneWorld, prune_world
from tests.fixtures.site import ReadySite


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path) as made:
        yield made


def leave(world: PruneWorld, store: str = "primary") -> str:
    """Put what a backup leaves that is killed before its manifest; return its artifact's id."""
    clock = partial(getattr, world, "now")
    with suppress(KeyError), recorded_run(world.catalog, clock, "backup", "orders") as running:
        artifact_id = new_id(running.run.started_at)
        for part in ("globals", "database-1"):
            world.stores[store].put(bucket.part_key("orders", artifact_id, part), [b"half"])
        raise KeyError("killed")
    return artifact_id


def shown(world: PruneWorld, *, dry_run: bool = False) -> list[str]:
    """Prune, and return what the command would print."""
    result = world.prune(dry_run=dry_run)
    return list(_lines(result, *reach_of(world.workplace, result.stored, result.plan)))


def folders(world: PruneWorld, store: str = "primary") -> set[str]:
    return {item.key.split("/")[3] for item in world.stores[store].list("policies/orders/artifacts/")}


def test_what_a_killed_backup_left_goes_after_a_week(world: PruneWorld) -> None:
    left = leave(world)
    for _ in range(6):
        world.back_up()
        world.prune()
        assert left in folders(world)
    world.back_up()
    (orphan,) = world.prune(dry_run=True).stored.orphans
    assert (orphan.artifact_id, orphan.size_bytes, orphan.goes_at) == (left, 8, world.now)
    assert left in folders(world)
    result = world.prune()
    assert left not in folders(world)
    assert folders(world) == folders(world, "offsite")
    (event,) = [item for item in world.catalog.events() if item["name"] == "orphan.removed"]
    assert (event["artifact_id"], event["store"], event["bytes"]) == (left, "primary", 8)
    assert result.removed_bytes >= 8


def test_an_orphan_is_said_and_counted(world: PruneWorld) -> None:
    left = leave(world)
    world.back_up(4)
    (before,) = [line for line in shown(world, dry_run=True) if "left over" in line]
    assert f"left over   2 objects (8 B) of {left} in store primary without a manifest; goes after 20" in before
    world.back_up(4)
    lines = shown(world)
    assert not [line for line in lines if "left over" in line]
    assert "1 unfinished backup cleared away" in lines[-1]


def test_what_may_be_somebodys_is_no_orphan(world: PruneWorld) -> None:
    """A backup that runs, a copy on its way, one whose manifest was changed, and one that the catalog knows."""
    leave(world)
    world.catalog.start_run(Run("r", "backup", "orders", "running", world.now, "db1", 1, world.now))
    copied, changed, known = world.back_up(3, every=HOUR)
    for key in [item.key for item in world.stores["offsite"].list("") if copied.manifest.artifact_id in item.key]:
        if "manifest" in key:
            world.stores["offsite"].delete(key)
    for store in world.stores.values():
        key = bucket.manifest_key("orders", changed.manifest.artifact_id)
        store.delete(key)
        store.put(key, [b"{}"])
        for gone in (key := bucket.manifest_key("orders", known.manifest.artifact_id), bucket.signature_key(key)):
            store.delete(gone)
    for entry in (copied, changed):
        world.catalog.forget_artifact(entry.manifest.artifact_id)
    world.now += 10 * DAY
    assert world.prune(dry_run=True).stored.orphans == ()


def test_what_no_failed_backup_left_stays(world: PruneWorld) -> None:
    """A catalog that was lost does not know an artifact whose manifest was deleted, nor what another host began."""
    deleted, _, _ = world.back_up(3)
    key = bucket.manifest_key("orders", deleted.manifest.artifact_id)
    for store in world.stores.values():
        store.delete(key)
        store.delete(bucket.signature_key(key))
        store.put(bucket.part_key("orders", "README", "notes"), [b"somebody's"])
    world.catalog.forget_artifact(deleted.manifest.artifact_id)
    world.back_up(12)
    result = world.prune()
    assert {item.artifact_id for item in result.stored.orphans} == {deleted.manifest.artifact_id, "README"}
    assert {deleted.manifest.artifact_id, "README"} <= folders(world)
    assert "stays: no failed backup of this host is known to have left it" in "\n".join(shown(world))


def test_what_was_written_to_since_it_was_listed_stays(world: PruneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(world)
    world.back_up(9)
    sweep, key = Pruning._sweep_orphans, bucket.manifest_key("orders", left)

    def late(self: Pruning, reporter: Any) -> None:
        world.stores["primary"].put(key, [b"{}"])
        sweep(self, reporter)

    monkeypatch.setattr(Pruning, "_sweep_orphans", late)
    assert world.prune().removed_orphans == []
    assert left in folders(world)


def test_another_store_of_the_site_is_not_swept(world: PruneWorld) -> None:
    world.stores["archive"] = world.bucket.stores["archive"] = MemoryStore("archive", now=lambda: world.now)
    world.bucket.__post_init__()
    left = leave(world, "archive")
    world.back_up(9, stores=["primary", "offsite"])
    assert world.prune().stored.orphans == ()
    assert left in folders(world, "archive")


def test_an_orphan_that_is_locked_waits_for_its_end(world: PruneWorld) -> None:
    world.stores["offsite"] = world.bucket.stores["offsite"] = Locked("offsite", now=lambda: world.now)
    world.bucket.__post_init__()
    left = leave(world, "offsite")
    world.back_up(9)
    assert world.prune().state == "ok"
    assert left in folders(world, "offsite")
    world.now = Locked.until + HOUR
    world.back_up(1, every=HOUR)
    world.prune()
    assert left not in folders(world, "offsite")
