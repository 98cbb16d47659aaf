"""`drkit prune` on stores in memory: marks, grace, order of deletion, holds, and everything that forbids it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.canonical import canonical_json
from drkit.errors import Busy, CatalogError, ConfigError, StoreUnavailable
from drkit.model import ArtifactEntry
from drkit.operations.check import gather
from drkit.operations.holds import hold_artifact, release_artifact
from drkit.operations.inventory import take_inventory
from drkit.operations.judgement import judge
from drkit.operations.prune import PruneResult, prune
from drkit.operations.retention_settings import guards_of
from drkit.operations.running import recorded_run
from drkit.operations.selection import find_artifacts
from drkit.operations.store_lease import store_lease
from drkit.retention import Decision
from drkit.retention_documents import Hold
from drkit.signing import EVIDENCE_NAMESPACE, TOMBSTONE_NAMESPACE
from drkit.stores import ObjectInfo, read_object
from drkit.stores.memory import MemoryStore
from drkit.units import format_utc
from tests.fixtures.pruning import DAY, HOUR, Locked, Locking, PruneWorld, Silent, prune_world
from tests.fixtures.site import ReadySite


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path) as made:
        yield made


def names(entries: Sequence[ArtifactEntry]) -> list[str]:
    return [entry.manifest.artifact_id for entry in entries]


def test_what_goes_is_marked_first_and_deleted_after_its_grace(world: PruneWorld) -> None:
    entries = world.back_up(6)
    first = world.prune()
    assert sorted(first.marked) == names(entries)[:3]
    assert (first.removed, first.state) == ([], "ok")
    assert world.ids() == set(names(entries))
    world.now += 23 * HOUR
    assert world.prune().removed == []
    world.now += 2 * HOUR
    second = world.prune()
    assert sorted(second.removed) == names(entries)[:3]
    assert world.ids() == world.ids("offsite") == set(names(entries)[3:])
    assert not any(
        name in key
        for keys in world.keys().values()
        for key in keys
        for name in names(entries)[:3]
        if "/artifacts/" in key
    )
    third = world.prune()
    assert (third.marked, third.removed, third.plan.removed) == ([], [], [])


def marked_ids(world: PruneWorld) -> set[str]:
    keys = [item.key for item in world.stores["primary"].list(bucket.tombstones_prefix("orders"))]
    return {Path(key).stem for key in keys if key.endswith(".json")}


def find(result: PruneResult, name: str) -> Decision:
    return next(item for item in result.plan.artifacts if item.name == name)


# The plan and its number.


def test_a_dry_run_writes_nothing_and_has_the_number_of_the_run_after_it(world: PruneWorld) -> None:
    world.back_up(6)
    before, events = world.keys(), len(world.catalog.events())
    dry = world.prune(dry_run=True)
    assert (world.keys(), len(world.catalog.events()), world.catalog.runs()) == (before, events, [])
    world.now += HOUR
    assert world.prune(confirmed=dry.plan.digest[:16]).plan.digest == dry.plan.digest
    assert len(marked_ids(world)) == 3


def test_a_plan_that_is_another_by_now_is_not_carried_out(world: PruneWorld) -> None:
    world.back_up(6)
    dry = world.prune(dry_run=True)
    world.back_up(1)
    result = world.prune(confirmed=dry.plan.digest)
    assert result.blocked.startswith("the plan is another by now")
    assert marked_ids(world) == set()
    assert [item["state"] for item in world.catalog.events() if item["name"] == "prune.state"] == ["blocked"]


def test_much_at_once_needs_a_confirmation(world: PruneWorld) -> None:
    world.retention = {"last": 3}
    world.back_up(8)
    result = world.prune()
    assert result.blocked == "5 of 8 artifacts would go, and 30 % at once is the most that goes without a confirmation"
    assert marked_ids(world) == set()
    assert len(world.prune(confirmed=result.plan.digest).marked) == 5
    world.now += 25 * HOUR
    assert len(world.prune().removed) == 5, "what was confirmed and marked goes without asking again"


def test_without_retention_everything_stays(world: PruneWorld) -> None:
    world.back_up(2)
    policy = world.policy.model_copy(update={"retention": None})
    with pytest.raises(ConfigError, match="has no retention, so everything stays"):
        prune(world.workplace, policy, Silent())


@pytest.mark.parametrize(
    ("schedule", "days"),
    [("0 2 * * *", 3), ("*/15 * * * *", 2), ("*/15 9-17 * * mon-fri", 7.90625), ("0 3 * * sun", 21), ("0 0 1 * *", 93)],
)
def test_a_method_is_stale_after_three_of_its_longest_waits(world: PruneWorld, schedule: str, days: float) -> None:
    rule = world.policy.backups[0].model_copy(update={"schedule": schedule})
    policy = world.policy.model_copy(update={"backups": (rule,)})
    assert policy.retention is not None
    assert guards_of(policy, policy.retention).stale_after == {"dump": days * DAY}


# What forbids it.


class Down(MemoryStore):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise StoreUnavailable(f"store {self.name} does not answer")


def test_a_store_out_of_reach_may_hold_a_hold(world: PruneWorld) -> None:
    world.back_up(6)
    world.stores["offsite"] = Down("offsite", now=lambda: world.now)
    result = world.prune()
    assert "store offsite cannot be read, and a hold may be in it" in result.plan.suspended[0]
    assert (result.plan.removed, marked_ids(world)) == ([], set())


class Refusing(MemoryStore):
    """One that takes no lease, and everything else."""

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        raise StoreUnavailable(f"store {self.name} does not answer")


def test_nothing_goes_without_the_lease_of_each_store(world: PruneWorld) -> None:
    """A prune on another host may hold the one that could not be asked for."""
    world.stores["offsite"] = world.bucket.stores["offsite"] = Refusing("offsite", now=lambda: world.now)
    world.back_up(6)
    result = world.prune()
    assert "the lease of this prune could not be taken in store offsite" in result.plan.suspended[0]
    assert (result.plan.removed, marked_ids(world)) == ([], set())


def test_an_empty_folder_where_a_store_was_stops_everything(world: PruneWorld) -> None:
    """A disk that is not mounted lists nothing, and raises nothing."""
    world.back_up(6)
    world.stores["offsite"] = MemoryStore("offsite", now=lambda: world.now)
    result = world.prune()
    assert "store offsite has no artifact of the policy any more" in result.plan.suspended[0]
    assert (result.plan.removed, marked_ids(world)) == ([], set())


def test_the_bucket_of_another_repository_is_not_pruned_by_this_one(world: PruneWorld) -> None:
    """A site that was copied: the newer backups of the one would make those of the other go."""
    entries = world.back_up(6)
    strangers = MemoryStore("offsite", now=lambda: world.now)
    world.stores["offsite"] = world.bucket.stores["offsite"] = strangers
    world.bucket.heads.clear()
    others = [world.bucket.add(at=world.now - days * DAY, stores=["offsite"], repo_id="repo-2") for days in range(6)]
    result = world.prune()
    assert "the stores hold artifacts of different repositories: repo-1, repo-2" in result.plan.suspended
    world.now += 25 * HOUR
    world.prune()
    assert (world.ids(), world.ids("offsite")) == (set(names(entries)), set(names(others)))


@pytest.mark.parametrize("copied", ["not copied", "copied without what it builds on"])
def test_a_store_that_gets_no_copies_any_more_is_not_emptied(world: PruneWorld, copied: str) -> None:
    """The newer ones that drive out the older are in another store: when that one burns, nothing is left."""
    both = world.back_up(4)
    alone = world.back_up(8, stores=["primary"])
    if copied != "not copied":
        builds = {"depends_on": (names(alone)[-1],)}
        world.back_up(3, **builds)
    for _ in range(8):
        world.prune()
        world.now += 13 * HOUR
    assert set(names(both)[2:]) <= world.ids("offsite")
    assert world.ids("offsite") & set(names(both)) == set(names(both)[2:])
    result = world.prune()
    assert "newest dump in store offsite" in find(result, names(both)[3]).reasons
    assert "minimum of 2 in store offsite" in find(result, names(both)[2]).reasons


def test_what_the_catalog_does_not_know_counts_and_what_only_it_knows_does_not(world: PruneWorld) -> None:
    entries = world.back_up(4)
    for entry in entries[1:]:
        world.catalog.forget_artifact(entry.manifest.artifact_id)
    ghost = world.bucket.add(at=world.now, stores=())
    world.catalog.index_artifact(ghost)
    result = world.prune()
    assert [item.name for item in result.plan.removed] == [entries[0].manifest.artifact_id]
    assert ghost.manifest.artifact_id not in {item.name for item in result.plan.artifacts}


def test_a_clock_that_went_back_and_one_that_is_apart_from_the_stores(world: PruneWorld) -> None:
    world.back_up(6)
    world.now -= 3 * DAY
    result = world.prune()
    assert any("ahead of this host's clock" in reason for reason in result.plan.suspended)
    assert result.plan.removed == []
    world.now += 3 * DAY
    ours = world.now
    world.stores["offsite"]._now = lambda: ours + HOUR
    result = world.prune()
    assert result.plan.suspended[0] == "the clocks of this host and of store offsite are 1:00:00 apart"
    assert marked_ids(world) == set()


def test_a_clock_that_jumped_ahead_ends_no_grace_by_itself(world: PruneWorld) -> None:
    world.back_up(6)
    world.prune()
    world.now += 10 * DAY
    result = world.prune()
    assert (result.removed, result.state) == ([], "suspended")
    assert len(world.ids()) == 6


@pytest.mark.parametrize("kind", ["restore", "drill"])
def test_what_is_being_read_is_not_deleted(world: PruneWorld, kind: str) -> None:
    world.back_up(6)
    world.prune()
    world.now += 25 * HOUR
    with recorded_run(world.catalog, lambda: world.now, kind, "orders"):
        result = world.prune()
        assert result.removed == []
        assert f"a {kind} runs since" in result.notes[0]
    assert len(world.prune().removed) == 3


def test_another_prune_holds_the_lease(world: PruneWorld) -> None:
    world.back_up(6)
    with recorded_run(world.catalog, lambda: world.now, "prune", "orders"), pytest.raises(Busy):
        world.prune()
    other = canonical_json(
        {
            "format": "drkit-lease",
            "version": 1,
            "holder": "elsewhere/1@1",
            "fence": 7,
            "expires_at": format_utc(world.now + HOUR / 10),
        }
    )
    world.stores["primary"].replace(bucket.lease_key("prune-orders"), other, expected=None)
    with pytest.raises(Busy, match="elsewhere/1@1 holds its lease in store primary"):
        world.prune()
    world.now += HOUR
    assert len(world.prune().marked) == 3, "it expired"


def test_a_lease_that_is_lost_ends_the_deleting(world: PruneWorld) -> None:
    world.back_up(6)
    world.prune()
    world.now += 25 * HOUR
    offsite = world.stores["offsite"]
    deleting = offsite.delete

    def steal(key: str, **options: object) -> None:
        deleting(key, **options)
        lease = world.catalog.lease("prune/orders")
        assert lease is not None
        world.catalog.release_lease(lease)
        world.catalog.acquire_lease("prune/orders", "somebody", HOUR, world.now)
        offsite.delete = deleting

    offsite.delete = steal
    with pytest.raises(Busy, match="the lease prune/orders was lost, so nothing more is deleted"):
        world.prune()
    assert len(world.ids()) == 5


def test_what_is_locked_is_deferred_with_all_that_it_builds_on_and_is_no_error(world: PruneWorld) -> None:
    world.stores["offsite"] = world.bucket.stores["offsite"] = Locked("offsite", now=lambda: world.now)
    world.bucket.__post_init__()
    (full,) = world.back_up()
    world.back_up(1, depends_on=(full.manifest.artifact_id,))
    world.back_up(4)
    result = world.prune()
    assert (result.marked, result.state) == ([], "ok")
    assert {item.action for item in result.plan.artifacts} == {"keep", "defer"}
    assert "locked until 2026-12-12" in find(result, full.manifest.artifact_id).reasons[0] or "builds on it" in str(
        find(result, full.manifest.artifact_id).reasons
    )
    world.now = Locked.until + HOUR
    world.back_up(1, every=HOUR)
    assert len(world.prune().marked) == 4
    world.now += 25 * HOUR
    assert len(world.prune().removed) == 4


@pytest.fixture
def locking(world: PruneWorld) -> Locking:
    """Lend a world's offsite store that locks, as the site says."""
    return world.lock_offsite()


def test_what_is_kept_stays_locked_and_what_is_marked_runs_out(world: PruneWorld, locking: Locking) -> None:
    world.retention = {"last": 3, "minimum": 1, "max_removed_percent": 100, "stale_after": "1000d"}
    (full,) = world.back_up()
    (child,) = world.back_up(1, depends_on=names([full]))
    entries = [full, child, *world.back_up(2)]
    assert world.prune().removed == []
    assert locking.locks == {}, "they are young"
    for _ in range(20):
        world.now += 10 * DAY
        world.prune()
        for entry in entries:
            prefix = bucket.artifact_prefix("orders", entry.manifest.artifact_id)
            for item in locking.list(prefix):
                until = locking.head(item.key).locked_until
                assert until is not None
                assert until >= world.now + 15 * DAY, item.key
    world.back_up(3, every=HOUR)
    held = dict(locking.locks)
    assert sorted(world.prune().marked) == sorted(names(entries))
    world.now += 40 * DAY
    world.prune()
    prefixes = tuple(bucket.artifact_prefix("orders", name) for name in names(entries))
    gone = {key: until for key, until in locking.locks.items() if key.startswith(prefixes)}
    assert all(gone[key] == held[key] for key in gone)


def test_locks_are_extended_although_nothing_is_removed_and_two_looks_tell_of_a_whole_artifact(
    world: PruneWorld, locking: Locking
) -> None:
    world.retention = {"last": 1, "minimum": 1, "max_removed_percent": 1, "stale_after": "1d"}
    world.back_up(6)
    world.now += 20 * DAY
    world.stores["third"] = Down("third")
    assert world.prune().state == "suspended"
    assert len(locking.locks) == 6 * 3 + 3, "each artifact, and what the bucket says of itself"
    locking.heads = 0
    world.prune()
    assert locking.heads == 2 * 6 + 1 + 4, (
        "a manifest and an object of each, the lease, RECOVERY.md, drkit-repo.json and two keys"
    )


# Holds, and taking back.


def test_a_hold_keeps_an_artifact_until_its_release_and_then_a_whole_grace(world: PruneWorld) -> None:
    entries = world.back_up(6)
    first = entries[0].manifest.artifact_id
    hold_artifact(world.workplace, first, "lawsuit 17")
    assert "held: lawsuit 17" in find(world.prune(), first).reasons
    assert [row.held for row in world.catalog.artifact_rows("orders")] == [False] * 5 + [True]
    world.now += 25 * HOUR
    assert first not in world.prune().removed
    world.back_up(1)
    release_artifact(world.workplace, first)
    assert first in world.prune().marked
    world.now += 23 * HOUR
    assert first not in world.prune().removed
    world.now += 2 * HOUR
    assert first in world.prune().removed
    with pytest.raises(CatalogError, match="no artifact starts with"):
        release_artifact(world.workplace, first)


def test_what_is_marked_is_taken_back_by_a_hold_and_its_tombstone_explains_nothing(world: PruneWorld) -> None:
    entries = world.back_up(6)
    first = entries[0].manifest.artifact_id
    world.prune()
    hold_artifact(world.workplace, first, "taken back")
    world.now += 25 * HOUR
    result = world.prune()
    assert first not in result.removed
    assert len(result.removed) == 2
    for store in world.stores.values():
        for name in ("manifest.json", "manifest.json.sig", "database-1.zst.age"):
            store.delete(bucket.artifact_prefix("orders", first) + name)
    found = find_artifacts(world.workplace, "orders")
    assert [entry.manifest.artifact_id for entry in found.unexplained] == [first]
    findings = judge(gather(world.stores, world.bucket.signers, world.catalog), {}, world.now).policies[0].findings
    assert {item.code for item in findings} >= {"chain-gap"}


def test_what_a_policy_wants_again_is_revived_and_marked_anew_later(world: PruneWorld) -> None:
    entries = world.back_up(6)
    third = entries[2].manifest.artifact_id
    world.prune()
    world.retention = {"last": 4, "max_removed_percent": 100}
    world.now += 25 * HOUR
    result = world.prune()
    assert (result.revived, len(result.removed)) == ([third], 2)
    assert world.prune().revived == [], "once is enough"
    world.retention = {"last": 3, "max_removed_percent": 100}
    assert world.prune().marked == [third]
    assert world.prune().removed == []
    world.now += 25 * HOUR
    assert world.prune().removed == [third]


def test_a_hold_that_came_while_a_prune_deletes_stops_it(world: PruneWorld) -> None:
    entries = world.back_up(6)
    world.prune()
    world.now += 25 * HOUR
    offsite = world.stores["offsite"]
    deleting = offsite.delete

    def delete(key: str, **options: object) -> None:
        offsite.delete = deleting
        deleting(key, **options)
        hold_artifact(world.workplace, entries[0].manifest.artifact_id, "wait")

    offsite.delete = delete
    with pytest.raises(Busy, match="a hold was placed on policy orders meanwhile"):
        world.prune()
    assert entries[0].manifest.artifact_id in world.ids()
    world.prune()
    assert world.ids() == {entries[0].manifest.artifact_id, *names(entries)[3:]}


def test_decisions_reach_a_store_that_was_away(world: PruneWorld) -> None:
    entries = world.back_up(6)
    offsite, world.stores["offsite"] = world.stores["offsite"], Down("offsite")
    change = hold_artifact(world.workplace, entries[5].manifest.artifact_id, "audit")
    assert change.failures == ()
    world.stores["offsite"] = offsite
    key = bucket.hold_key("orders", change.holds[0].hold_id)
    offsite.delete(key)
    offsite.delete(bucket.signature_key(key))
    world.prune()
    assert offsite.head(key)
    assert offsite.head(bucket.signature_key(key))


# Attackers who may write to the bucket.


STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_a_forged_tombstone_and_one_that_was_moved_bury_nothing(world: PruneWorld) -> None:
    entries = world.back_up(6)
    world.prune()
    newest, marked = names(entries)[5], names(entries)[0]
    world.bucket.key, own = STRANGER, world.bucket.key
    world.bucket.bury(entries[5])
    world.bucket.key = own
    for name, store in world.stores.items():
        for suffix in ("", ".sig"):
            data = read_object(store, bucket.tombstone_key("orders", marked) + suffix)
            store.put(bucket.tombstone_key("orders", names(entries)[4]) + suffix, [data])
        assert name
    world.now += 25 * HOUR
    result = world.prune()
    assert sorted(result.removed) == names(entries)[:3]
    assert newest in world.ids()
    findings = judge(gather(world.stores, world.bucket.signers, world.catalog), {}, world.now).policies[0].findings
    assert {"tombstone-untrusted", "tombstone-misplaced"} <= {item.code for item in findings}


def test_a_forged_hold_stops_everything_and_is_reported(world: PruneWorld) -> None:
    entries = world.back_up(6)
    world.bucket.key, own = STRANGER, world.bucket.key
    hold = Hold(
        repo_id="repo-1",
        policy="orders",
        artifact_id=names(entries)[0],
        hold_id="01JD0000000000000000000000",
        reason="mine",
        placed_at=world.now,
    )
    world.bucket.put_signed(bucket.hold_key("orders", hold.hold_id), hold.to_bytes(), TOMBSTONE_NAMESPACE)
    world.bucket.key = own
    result = world.prune()
    assert "a hold is not believed" in result.plan.suspended[0]
    findings = judge(gather(world.stores, world.bucket.signers, world.catalog), {}, world.now).policies[0].findings
    assert {item.code for item in findings} == {"hold-untrusted"}


@pytest.mark.parametrize("way", ["deleted", "changed", "released by the release of another"])
def test_a_hold_cannot_be_lifted_by_writing_to_the_bucket(world: PruneWorld, way: str) -> None:
    entries = world.back_up(6)
    first, second = names(entries)[:2]
    held = hold_artifact(world.workplace, first, "lawsuit").holds[0]
    other = hold_artifact(world.workplace, second, "other").holds[0]
    release_artifact(world.workplace, second)
    key, released = bucket.hold_key("orders", held.hold_id), bucket.release_key("orders", other.hold_id)
    for store in world.stores.values():
        for suffix in ("", ".sig"):
            if way == "released by the release of another":
                content = read_object(store, released + suffix)
                store.put(bucket.release_key("orders", held.hold_id) + suffix, [content])
                continue
            content = read_object(store, key + suffix)
            store.delete(key + suffix)
            if way == "changed":
                store.put(key + suffix, [content.replace(first.encode(), second.encode())])
    for _ in range(3):
        assert first not in world.prune().removed
        world.now += 25 * HOUR
    assert first in world.ids()
    findings = judge(gather(world.stores, world.bucket.signers, world.catalog), {}, world.now).policies[0].findings
    assert {item.code for item in findings} & {"hold-gone", "hold-untrusted", "hold-misplaced"}


def test_forged_newer_manifests_drive_out_nothing(world: PruneWorld) -> None:
    entries = world.back_up(3)
    world.bucket.key, own = STRANGER, world.bucket.key
    heads = dict(world.bucket.heads)
    for days in range(6):
        world.bucket.add(at=world.now - days * HOUR)
    world.bucket.key, world.bucket.heads = own, heads
    assert world.prune().plan.removed == []
    assert set(names(entries)) <= world.ids()


def test_a_marked_artifact_whose_manifest_was_changed_is_looked_at_and_not_swept_away(world: PruneWorld) -> None:
    entries = world.back_up(6)
    first = names(entries)[0]
    world.prune()
    key = bucket.manifest_key("orders", first)
    for store in world.stores.values():
        store.delete(key)
        store.put(key, [b"{}"])
    world.now += 25 * HOUR
    assert len(world.prune().removed) == 2
    assert first in world.ids()


def test_newer_ones_whose_bytes_were_changed_drive_out_nothing_once_they_were_read(world: PruneWorld) -> None:
    """An attacker keeps the sizes, so a listing shows nothing; reading everything in turn does (verify)."""
    entries = world.back_up(5)
    world.now += HOUR
    copies = [
        {"subject": name, "store": store, "sound": name in names(entries)[:2], "verified_at": format_utc(world.now)}
        for name in names(entries)
        for store in world.stores
    ]
    record = {
        "format": "drkit-evidence",
        "version": 1,
        "kind": "verification",
        "run_id": "run-1",
        "repo_id": "repo-1",
        "policy": "orders",
        "verdict": "failed",
        "ended_at": format_utc(world.now),
        "copies": copies,
    }
    world.bucket.put_signed(bucket.evidence_key("orders", "run-1"), canonical_json(record), EVIDENCE_NAMESPACE)
    result = world.prune(dry_run=True)
    assert result.plan.removed == []
    assert "was read and is damaged" in find(result, names(entries)[4]).reasons[-1]
    assert "last 1 of 3" in find(result, names(entries)[1]).reasons


# The chain, and what comes after.


def test_the_chain_is_whole_afterwards_and_check_finds_nothing_wrong(world: PruneWorld) -> None:
    world.back_up(6)
    for _ in range(3):
        world.prune()
        world.now += 25 * HOUR
        world.back_up(1)
    verdict = judge(gather(world.stores, world.bucket.signers, world.catalog), {}, world.now).policies[0]
    assert verdict.findings == ()
    assert find_artifacts(world.workplace, "orders").unexplained == []


def test_a_drill_with_a_wrong_key_costs_no_artifact(world: PruneWorld) -> None:
    """A drill every other day, on a host without the identity: half of all that is sound would go after three days."""
    world.retention = {"last": 20, "max_removed_percent": 100}
    entries = world.back_up(8)
    for day, entry in enumerate(entries[::2]):
        world.bucket.prove(entry, "failed", at=world.now + day * HOUR, blames="key")
    world.now += 5 * HOUR
    result = world.prune()
    assert result.marked == []
    assert find(result, names(entries)[0]).reasons == ("last 8 of 20",)
    world.bucket.prove(entries[0], "failed", at=world.now)
    assert world.prune().marked == [names(entries)[0]], "here the artifact itself is at fault"


READING = {"exists": "passed", "intact": "failed", "loads": "not run"}


def read_again(world: PruneWorld, entry: ArtifactEntry, sound: dict[str, bool], *, decrypted: bool = True) -> None:
    """Store the record of a verification that read the copies named."""
    record = {
        "format": "drkit-evidence",
        "version": 1,
        "kind": "verification",
        "run_id": f"read-{world.now:%Y%m%dT%H%M%S}",
        "repo_id": "repo-1",
        "policy": "orders",
        "verdict": "passed" if all(sound.values()) else "failed",
        "ended_at": format_utc(world.now),
        "copies": [
            {
                "subject": entry.manifest.artifact_id,
                "store": store,
                "sound": ok,
                "decrypted": decrypted,
                "verified_at": format_utc(world.now),
            }
            for store, ok in sound.items()
        ],
    }
    key = bucket.evidence_key("orders", str(record["run_id"]))
    world.bucket.put_signed(key, canonical_json(record), EVIDENCE_NAMESPACE)


@pytest.mark.parametrize("levels", [READING, {"exists": "failed", "intact": "not run"}])
def test_a_drill_that_hit_a_damaged_copy_costs_nothing_once_another_was_read_and_is_sound(
    world: PruneWorld, levels: dict[str, str]
) -> None:
    entries = world.back_up(6)
    third = entries[3]
    world.bucket.prove(third, "failed", at=world.now, levels=levels)
    world.now += 4 * DAY
    world.retention = {"last": 3, "max_removed_percent": 100, "stale_after": "30d"}
    result = world.prune(dry_run=True)
    assert find(result, names(entries)[3]).action == "keep", "it would be wanted if it counted"
    assert find(result, names(entries)[2]).action == "keep", "and until that is known it makes no other superfluous"
    read_again(world, third, {"primary": False, "offsite": True}, decrypted=False)
    result = world.prune(dry_run=True)
    assert (find(result, names(entries)[2]).action == "keep") == (levels is READING), "its content was not looked at"
    world.now += HOUR
    read_again(world, third, {"primary": False, "offsite": True})
    result = world.prune(dry_run=True)
    assert find(result, names(entries)[3]).reasons == ("last 3 of 3",)
    assert find(result, names(entries)[2]).action == "remove"


def test_a_reading_from_before_the_drill_and_one_of_damage_acquit_nobody(world: PruneWorld) -> None:
    entries = world.back_up(6)
    read_again(world, entries[3], {"primary": True, "offsite": True})
    world.now += HOUR
    world.bucket.prove(entries[3], "failed", at=world.now, levels=READING)
    assert find(world.prune(dry_run=True), names(entries)[2]).action == "keep"
    world.now += HOUR
    read_again(world, entries[3], {"primary": False, "offsite": False})
    found = find(world.prune(dry_run=True), names(entries)[3])
    assert "was read and is damaged" in found.reasons[0]
    assert find(world.prune(dry_run=True), names(entries)[2]).action == "keep"


@pytest.mark.parametrize("before", ["passed", "failed"])
def test_a_drill_that_says_that_another_copy_was_sound_takes_nothing_back(world: PruneWorld, before: str) -> None:
    entries = world.back_up(6)
    world.bucket.prove(entries[3], before, at=world.now - HOUR, run_id="earlier")
    facts = {"levels": {"exists": "failed"}, "blames": "copy"}
    world.bucket.prove(entries[3], "failed", at=world.now, **facts)
    result = world.prune(dry_run=True)
    assert (find(result, names(entries)[2]).action == "remove") == (before == "passed")


def test_good_news_of_the_future_hides_no_bad_news_of_today(world: PruneWorld) -> None:
    """A clock was a year ahead on one day: what drills and readings found since then is older for a year."""
    entries = world.back_up(6)
    year = 365 * DAY
    world.bucket.prove(entries[3], "passed", at=world.now + year, run_id="ahead")
    world.now += year
    read_again(world, entries[4], {"primary": True, "offsite": True})
    world.now -= year
    for store in world.bucket.stores.values():
        for key, item in list(store._objects.items()):
            store._objects[key] = replace(item, modified_at=min(item.modified_at, world.now))
    assert [item.action for item in world.prune(dry_run=True).plan.artifacts] == ["keep"] * 3 + ["remove"] * 3
    world.now += HOUR
    world.bucket.prove(entries[3], "failed", at=world.now)
    read_again(world, entries[4], {"primary": False, "offsite": False})
    assert find(world.prune(dry_run=True), names(entries)[1]).action == "keep"


def test_a_lease_of_a_clock_that_was_ahead_is_renewed_and_holds(world: PruneWorld) -> None:
    store, right = world.stores["primary"], world.now
    world.now += 365 * DAY
    with store_lease(store, "prune-orders", lambda: world.now) as lease:
        world.now = right
        lease.keep()
        assert right < lease.expires_at <= right + HOUR


@pytest.mark.parametrize("kind", ["drill", "reading"])
def test_bad_news_that_was_taken_out_of_the_stores_still_counts(world: PruneWorld, kind: str) -> None:
    """Whoever damaged the newest ones deletes the records that say so: the older ones, which are sound, would go."""
    world.retention = {"last": 3, "max_removed_percent": 100, "stale_after": "30d"}
    entries = world.back_up(6)
    for entry in entries[3:]:
        world.now += HOUR
        if kind == "drill":
            world.bucket.prove(entry, "failed", at=world.now)
        else:
            read_again(world, entry, {"primary": False, "offsite": False})
    for inventory in take_inventory(world.stores, world.bucket.signers).values():
        for item in inventory.evidence:
            world.catalog.index_evidence(item.record, item.sha256, ["offsite", "primary"])
    assert world.prune(dry_run=True).plan.removed == []
    for store in world.stores.values():
        for item in list(store.list(bucket.evidence_prefix("orders"))):
            store.delete(item.key)
    assert world.prune(dry_run=True).plan.removed == []
    world.now += 4 * DAY
    for entry in entries[3:]:
        world.bucket.prove(entry, "passed", at=world.now, run_id=f"again-{entry.manifest.artifact_id}")
    gone = world.prune(dry_run=True).plan.removed
    assert len(gone) == (3 if kind == "drill" else 0), "a drill that passed later is believed, of the same artifact"


def test_a_question_of_the_policy_that_gets_another_answer_costs_no_artifact(world: PruneWorld) -> None:
    """A drill of an old one asks whether orders are fresh: the data are those that were recorded all the same."""
    world.retention = {"last": 20, "max_removed_percent": 100}
    entries = world.back_up(8)
    levels = {"exists": "passed", "intact": "passed", "same-data": "passed", "works": "failed"}
    world.bucket.prove(entries[0], "failed", at=world.now, levels=levels)
    assert find(world.prune(dry_run=True), names(entries)[0]).reasons == ("last 8 of 20",)


def test_the_newest_link_stays_even_when_its_drill_failed(world: PruneWorld) -> None:
    entries = world.back_up(4)
    world.bucket.prove(entries[3], "failed", at=world.now)
    world.now += 4 * DAY
    result = world.prune(dry_run=True)
    assert "the chain goes on from it" in find(result, names(entries)[3]).reasons
