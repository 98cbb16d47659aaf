"""Pruning logs: by whole manifests, never what a base that is there needs, and so that the chain stays explained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.errors import IntegrityError
from drkit.log_documents import (
    LogManifest,
    OplogManifest,
    SliceRecord,
)
from drkit.model import OplogPosition
from drkit.operations.check import gather
from drkit.operations.judgement import judge
from drkit.operations.locking import keep_locked
from drkit.operations.log_check import summarize_wal
from drkit.operations.prune import PruneResult
from drkit.operations.prune_reach import reach_of
from drkit.oplog import OplogTs, slice_name
from drkit.policy import Policy
from drkit.retention_documents import LogTombstone
from drkit.stores import read_object
from tests.fixtures.log_world import SEALED, SEGMENT, LogWorld, log_facts, log_record, new_manifest_key, put_log
from tests.fixtures.pruning import DAY, HOUR, PruneWorld, prune_world
from tests.fixtures.site import ReadySite

WINDOW = {"recovery_window": "3d", "minimum": 1, "max_removed_percent": 100}


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path, retention=WINDOW) as made:
        yield made


@pytest.fixture
def logs(world: PruneWorld) -> LogWorld:
    made = LogWorld(world)
    made.pass_days(10)
    return made


def settle(world: PruneWorld) -> PruneResult:
    """Prune until all that goes has gone: bases are marked and deleted, and then their log."""
    world.prune()
    world.now += 25 * HOUR
    world.prune()
    world.prune()
    world.now += 25 * HOUR
    return world.prune()


def test_log_goes_after_the_bases_that_needed_it_and_not_before(logs: LogWorld) -> None:
    world = logs.world
    before = logs.stored()
    first = world.prune()
    assert len(first.marked) == 2
    assert first.plan.removed_log == [], "the marked bases can still be taken back, with their log"
    world.now += 25 * HOUR
    second = world.prune()
    assert len(second.removed) == 2
    assert logs.stored() == before
    third = world.prune()
    assert len(third.marked_log) == 4
    assert logs.stored() == before
    world.now += 25 * HOUR
    fourth = world.prune()
    assert len(fourth.removed_log) == 4
    assert logs.stored() == logs.stored("offsite") == before[8:]
    assert fourth.removed_bytes == 4 * 2 * 2 * len(SEALED)
    (event,) = [item for item in world.catalog.events() if item["name"] == "log.removed"]
    assert event["manifests"] == 4


def test_the_chain_of_log_manifests_can_be_followed_through_what_is_gone(logs: LogWorld) -> None:
    world = logs.world
    settle(world)
    keys = [item.key for item in world.stores["offsite"].list(bucket.log_tombstones_prefix("orders"))]
    (stone,) = [
        LogTombstone.from_bytes(read_object(world.stores["offsite"], key), key) for key in keys if key.endswith(".json")
    ]
    (run,) = stone.runs
    assert (run.count, run.previous, run.timeline) == (4, None, 1)
    oldest = LogManifest.from_bytes(
        read_object(world.stores["offsite"], min(logs.listed(), key=lambda key: key[-31:])), ""
    )
    assert oldest.previous == run.last_sha256


def test_a_base_that_is_kept_for_a_month_keeps_its_own_stretch_alone(world: PruneWorld) -> None:
    world.retention = {**WINDOW, "monthly": 12}
    logs = LogWorld(world)
    logs.pass_days(40)
    settle(world)
    kept = {item.name for item in world.prune(dry_run=True).plan.artifacts if item.action == "keep"}
    standing = [entry for entry in logs.bases if entry.manifest.artifact_id in kept]
    assert len(standing) >= 3
    oldest = standing[0].manifest.position
    assert oldest is not None
    needed = int(oldest.start_lsn.split("/")[1], 16) // SEGMENT
    assert f"{1:08X}{0:08X}{needed:08X}" in logs.stored()
    assert len(logs.stored()) < 24


def test_windows_before_and_after(logs: LogWorld) -> None:
    world = logs.world
    world.prune()
    world.now += 25 * HOUR
    world.prune()
    result = world.prune()
    before, after = reach_of(world.workplace, result.stored, result.plan)
    assert len(before.windows) == len(after.windows) == 1
    assert (before.windows[0].from_at, before.windows[0].to_at) == (after.windows[0].from_at, after.windows[0].to_at)
    newest = max(entry.manifest.covers.to_at for entry in logs.bases)
    assert after.windows[0].from_at <= newest - 3 * DAY


def test_a_log_manifest_that_is_not_believed_stays_and_so_do_its_files(logs: LogWorld) -> None:
    world = logs.world
    key = logs.manifests[0][0]
    for store in world.stores.values():
        store.delete(bucket.signature_key(key))
    world.prune()
    world.now += 25 * HOUR
    world.prune()
    result = world.prune()
    assert "1 log manifests are not believed, and stay" in result.notes
    world.now += 25 * HOUR
    world.prune()
    assert key in logs.listed()
    assert logs.stored()[:2] == [record.part for record in logs.manifests[0][1].files]


@pytest.mark.parametrize("way", ["one bit", "a signer less"])
def test_log_stays_while_a_base_that_is_there_is_not_believed(world: PruneWorld, way: str) -> None:
    """It may need any of it: a bit that falls over, or a signer taken off the list, must not cost its log."""
    world.retention = {**WINDOW, "recovery_window": "30d"}
    logs = LogWorld(world)
    own = world.bucket.key
    if way == "a signer less":
        world.bucket.key = Ed25519PrivateKey.generate()
    logs.take_base()
    world.bucket.key = own
    if way == "one bit":
        for store in world.stores.values():
            key = bucket.manifest_key("orders", logs.bases[0].manifest.artifact_id)
            data = read_object(store, key)
            store.delete(key)
            store.put(key, [data.replace(b'"seq":1', b'"seq":0')])
    logs.ship(4)
    logs.pass_days(10)
    before = logs.stored()
    result = settle(world)
    assert "is not believed, so what it needs is not known" in result.plan.suspended[0]
    assert logs.stored() == before


@pytest.mark.parametrize("known", ["known to the catalog", "named by the chain alone"])
@pytest.mark.parametrize("rules", [WINDOW, {"last": 2, "minimum": 1, "max_removed_percent": 100}])
def test_log_stays_while_a_base_is_gone_that_no_tombstone_explains(
    world: PruneWorld, known: str, rules: dict[str, object]
) -> None:
    """Whoever deletes the oldest base of the window outright must not have its log pruned for him: it may come back."""
    world.retention = rules
    logs = LogWorld(world)
    logs.pass_days(10)
    settle(world)
    oldest = next(entry for entry in logs.bases if entry.manifest.artifact_id in world.ids())
    before = logs.stored()
    assert before[0] == f"{1:08X}{0:08X}{logs.bases.index(oldest) * 4:08X}", "all that is not needed is gone"
    world.bucket.remove(oldest)
    if known != "known to the catalog":
        world.catalog.forget_artifact(oldest.manifest.artifact_id)
    result = settle(world)
    assert "gone without a tombstone: what it needs stays" in result.plan.suspended[0]
    assert (result.state, logs.stored()) == ("suspended", before)
    logs.pass_days(12)
    assert settle(world).plan.suspended == (), "what no rule would want any more holds up nothing"
    assert before[0] not in logs.stored()


def test_a_damaged_base_that_begins_the_window_keeps_its_log(logs: LogWorld) -> None:
    """Its data may come back from another version or a tape; the log could not."""
    world = logs.world
    damaged = logs.bases[3]
    for store in world.stores.values():
        store.delete(damaged.manifest.objects[0].key)
    for entry in logs.bases[:3]:
        world.bucket.remove(entry)
        world.bucket.bury(entry)
    settle(world)
    assert f"{1:08X}{0:08X}{12:08X}" in logs.stored()


def log_findings(world: PruneWorld) -> list[str]:
    """Return what `drkit check` says of the log."""
    observed = gather(world.stores, world.bucket.signers, world.catalog, {"orders"})
    logs = {"orders": summarize_wal(world.workplace, "orders")}
    (verdict,) = judge(replace(observed, logs=logs), {}, world.now).policies
    return [item.message for item in verdict.findings if item.code.startswith("log-")]


def test_what_was_pruned_is_explained_and_what_was_taken_away_beside_it_is_not(logs: LogWorld) -> None:
    """What goes before the first base leaves no gap in what can be restored: nothing else would tell of it."""
    world = logs.world
    settle(world)
    assert log_findings(world) == []
    first, second = sorted(logs.listed(), key=lambda key: key[-31:])[:2]
    kept = {(name, key): read_object(store, key) for name, store in world.stores.items() for key in (first,)}
    for store in world.stores.values():
        store.delete(first)
    (said,) = log_findings(world)
    assert f"the log manifest before log manifest {second} is gone without a tombstone" in said
    for (name, key), data in kept.items():
        world.stores[name].put(key, [data])
    assert log_findings(world) == []
    for store in world.stores.values():
        for item in list(store.list(bucket.log_tombstones_prefix("orders"))):
            store.delete(item.key)
    (said,) = log_findings(world)
    assert f"before log manifest {first} is gone" in said, "a tombstone is missed as well"


def test_no_log_is_missed_while_a_store_is_out_of_reach_or_something_is_not_believed(logs: LogWorld) -> None:
    world = logs.world
    first = sorted(logs.listed(), key=lambda key: key[-31:])[0]
    world.stores["primary"].delete(first)
    assert log_findings(world) == [], "the other store has it"
    world.stores["offsite"].delete(bucket.signature_key(first))
    (said,) = log_findings(world)
    assert "is not signed" in said


def test_what_a_crash_left_of_the_log_is_swept_away(logs: LogWorld) -> None:
    world = logs.world
    world.prune()
    world.now += 25 * HOUR
    world.prune()
    world.prune()
    world.now += 25 * HOUR
    key, manifest = logs.manifests[2]
    for store in world.stores.values():
        store.delete(key)
        store.delete(bucket.signature_key(key))
    before = logs.stored()
    world.prune()
    assert logs.stored() == before[8:]
    assert manifest.files[0].part not in logs.stored("offsite")


def test_fresh_log_at_old_positions_is_not_swept_away(logs: LogWorld) -> None:
    """A new cluster under the old policy begins at low positions again."""
    world = logs.world
    settle(world)
    fresh = bucket.log_key("orders", 1, f"{1:08X}{0:08X}{1:08X}")
    world.stores["primary"].put(fresh, [b"new"])
    world.now += 25 * HOUR
    world.prune()
    assert world.stores["primary"].head(fresh)


def test_log_that_is_kept_stays_locked_and_what_goes_runs_out(world: PruneWorld) -> None:
    locking = world.lock_offsite(lock_for=4 * DAY)
    logs = LogWorld(world)
    for _ in range(8):
        logs.pass_days(2)
        keep_locked(world.workplace, world.policy)
        world.prune()
        plan = world.prune(dry_run=True).plan
        kept = [item.name for item in plan.log if item.action == "keep" and not item.is_marked]
        files = {key: [file.key for file in manifest.files] for key, manifest in logs.manifests}
        for key in kept:
            for name in (key, bucket.signature_key(key), *files[key]):
                until = locking.head(name).locked_until
                assert until is not None
                assert until >= world.now + 2 * DAY, name
    assert {item.action for item in plan.log} > {"keep"}, "the oldest runs out"
    gone = [item.name for item in plan.log if item.action != "keep"]
    assert all(locking.locks.get(name, world.now) <= world.now + 4 * DAY for name in gone)


def test_log_of_a_window_is_locked_to_its_end_where_the_store_allows_it(world: PruneWorld) -> None:
    world.retention = {**WINDOW, "recovery_window": "60d"}
    locking = world.lock_offsite(lock_at_most=400 * DAY)
    logs = LogWorld(world)
    logs.pass_days(2)
    shipped_at = world.now - DAY
    keep_locked(world.workplace, world.policy)
    (first, manifest), _ = logs.manifests
    for name in (first, bucket.signature_key(first), manifest.files[0].key):
        assert locking.head(name).locked_until == shipped_at + 60 * DAY


def test_a_log_manifest_that_is_not_believed_is_told_of_and_hinders_no_other(logs: LogWorld) -> None:
    world = logs.world
    locking = world.lock_offsite()
    logs.pass_days(4)
    key = logs.listed("offsite")[0]
    locking.delete(bucket.signature_key(key))
    locking.put(bucket.signature_key(key), [b"nobody's"])
    world.now += 20 * DAY
    world.retention = {"within": "1000d"}
    with pytest.raises(IntegrityError, match="1 log manifest was not locked anew"):
        keep_locked(world.workplace, world.policy)
    others = {name for name in logs.listed("offsite") if name != key}
    assert {name for name in locking.asked if bucket.parse_log_manifest_key(name)} == others


class TestOplog:
    """The same for slices of MongoDB's oplog."""

    def test_slices_before_the_window_go(self, world: PruneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = world.policy.model_dump(by_alias=True, exclude_none=True, mode="json")
        policy["target"] = {"engine": "mongodb", "url": "env:ORDERS_URL"}
        policy["backups"] = [{"method": "dump", "schedule": "0 2 * * *"}, {"method": "oplog"}]
        monkeypatch.setattr(PruneWorld, "policy", property(lambda self: Policy.model_validate(policy)))
        previous, keys = None, []
        for _ in range(10):
            world.now += DAY
            now = int(world.now.timestamp())
            place = OplogPosition(timeline=1, start_ts=f"{now - 7300}:1", stop_ts=f"{now - 7200}:1", included=False)
            entry = world.bucket.add(at=world.now - 2 * HOUR, method="dump", engine="mongodb", oplog=place)
            world.catalog.index_artifact(entry)
            ends = OplogTs(now - 86400, 1), OplogTs(now, 1)
            previous = self._ship(world, ends, previous, keys)
        settle(world)
        plan = world.prune(dry_run=True).plan
        kept = [item for item in plan.artifacts if item.action == "keep"]
        left = [item.key for item in world.stores["primary"].list(bucket.logs_prefix("orders"))]
        gone = [key for key in keys if key not in left]
        assert len(kept) < 10
        assert gone == keys[: len(gone)]
        assert len(gone) >= 4
        starts = min(int(item.oplog.start_ts.partition(":")[0]) for item in self._manifests(world))
        first = bucket.parse_log_manifest_key(keys[len(gone)])
        assert first is not None
        assert int(first.first[:8], 16) <= starts < int(first.last[:8], 16)
        data = [key for key in left if bucket.parse_log_key(key)]
        assert len(data) == len(keys) - len(gone)
        result = world.prune(dry_run=True)
        before, after = reach_of(world.workplace, result.stored, result.plan)
        assert len(before.windows) == len(after.windows) == 1

    def test_slices_that_are_kept_stay_locked(self, world: PruneWorld) -> None:
        policy = world.policy.model_dump(by_alias=True, exclude_none=True, mode="json")
        policy["target"] = {"engine": "mongodb", "url": "env:ORDERS_URL"}
        policy["backups"] = [{"method": "dump"}, {"method": "oplog"}]
        del policy["retention"]
        locking, keys = world.lock_offsite(), list[str]()
        now = int(world.now.timestamp())
        self._ship(world, (OplogTs(now - 86400, 1), OplogTs(now, 1)), None, keys)
        world.now += 20 * DAY
        facts = keep_locked(world.workplace, Policy.model_validate(policy))
        assert facts == {"artifacts": 0, "log_manifests": 1}
        stored = {item.key for item in locking.list(bucket.logs_prefix("orders"))}
        assert {key for key in locking.asked if key.startswith("policies/")} == stored
        assert len(stored) == 3

    def _ship(self, world: PruneWorld, ends: tuple[OplogTs, OplogTs], previous: str | None, keys: list[str]) -> str:
        facts = {"from_ts": str(ends[0]), "to_ts": str(ends[1])}
        name = slice_name(*ends)
        record = log_record(
            SliceRecord,
            name,
            kind="slice",
            entries=3,
            first_ts=str(ends[1]),
            last_sha256=hashlib.sha256(b"").hexdigest(),
            **facts,
        )
        manifest = OplogManifest(**log_facts(world, previous), engine="mongodb", files=(record,), **facts)
        first, last = name.split("-")
        keys.append(new_manifest_key(world, first, last))
        return put_log(world, keys[-1], manifest)

    def _manifests(self, world: PruneWorld) -> Sequence[object]:
        return [entry.manifest for entry in world.catalog.artifacts("orders")]


def test_a_manifest_of_a_history_file_alone_stays_and_holds_nothing_up(world: PruneWorld) -> None:
    logs = LogWorld(world)
    logs.pass_days(4)
    key = logs.fork(at_segment=logs.segments)
    logs.timeline = 1
    logs.pass_days(6)
    before = logs.listed()
    settle(world)
    assert key in logs.listed()
    assert len(logs.listed()) < len(before), "what nothing needs goes"
