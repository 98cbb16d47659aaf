"""Locks as long as the retention keeps: planned when an artifact is written, extended without a prune, log included."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drkit import bucket
from drkit.errors import StoreError, StoreUnavailable
from drkit.jobs import Job, run_job
from drkit.model import ArtifactEntry
from drkit.operations.artifact_copying import copy_artifact
from drkit.operations.holds import hold_artifact, release_artifact
from drkit.operations.locking import keep_locked
from drkit.operations.prune_locks import lock_as_planned
from drkit.operations.reader_lease import live_reader, reader_lease
from drkit.operations.running import new_id
from drkit.scheduler import schedules_of
from drkit.site_scheduler import SchedulerConfig
from drkit.stores.memory import MemoryStore
from drkit.stores.s3_connection import ObjectLock
from tests.fixtures.pruning import DAY, HOUR, Locking, PruneWorld, Silent, prune_world
from tests.fixtures.s3 import S3Server
from tests.fixtures.site import ReadySite

YEARS = {"last": 1, "minimum": 1, "monthly": 12, "yearly": 7, "max_removed_percent": 100}


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path) as made:
        yield made


def left(world: PruneWorld, store: Locking, entry: ArtifactEntry) -> list[timedelta]:
    """Return how long each object of an artifact is locked from now on."""
    keys = [item.key for item in store.list(bucket.artifact_prefix("orders", entry.manifest.artifact_id))]
    found = [store.head(key).locked_until for key in keys]
    assert len(found) == 3
    return [until - world.now for until in found if until is not None]


def test_a_new_artifact_is_locked_to_its_planned_end_up_to_what_the_store_allows(world: PruneWorld) -> None:
    world.retention = YEARS
    locking = world.lock_offsite(lock_at_most=400 * DAY)
    world.now = world.now.replace(month=11, day=30, hour=3)
    (of_month,) = world.back_up()  # of the first of December: the next one comes on the second
    lock_as_planned(world.workplace, world.policy, of_month.manifest, "offsite")
    assert set(left(world, locking, of_month)) == {30 * DAY}, "no rule is known to keep it for longer than that"
    world.now = world.now.replace(month=12, day=30, hour=3)
    (of_year,) = world.back_up()
    lock_as_planned(world.workplace, world.policy, of_year.manifest, "offsite")
    assert set(left(world, locking, of_year)) == {400 * DAY}
    world.now = world.now.replace(year=world.now.year + 1, month=1, day=30, hour=3)
    (last,) = world.back_up(1, every=DAY)
    lock_as_planned(world.workplace, world.policy, last.manifest, "offsite")
    assert world.now + left(world, locking, last)[0] == world.now.replace(year=2028, month=1, day=1, hour=0)


def test_a_copy_is_locked_to_its_planned_end_too(world: PruneWorld) -> None:
    world.retention = {"within": "90d"}
    locking = world.lock_offsite(lock_at_most=400 * DAY)
    (entry,) = world.back_up(1, stores=["primary"])
    for item in entry.manifest.objects:
        world.stores["primary"].delete(item.key)
        world.stores["offsite"].put(item.key, [b"sealed"])  # as if copied: the fixture's digests are made up
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drkit.operations.artifact_copying.copy_sealed", lambda *_: None)
        copy_artifact(world.workplace, entry, "offsite", lambda _: None)
    assert {round(span / DAY) for span in left(world, locking, entry)} == {90}


@pytest.mark.parametrize("options", [{}, {"lock_at_most": 10 * DAY}])
def test_nothing_is_asked_for_where_nobody_wants_it(world: PruneWorld, options: dict[str, timedelta]) -> None:
    world.retention = YEARS
    locking = world.lock_offsite(**options)
    (entry,) = world.back_up()
    lock_as_planned(world.workplace, world.policy, entry.manifest, "offsite")
    lock_as_planned(world.workplace, world.policy, entry.manifest, "primary")
    assert locking.asked == []


def test_a_store_that_does_not_lock_for_longer_fails_no_backup_and_is_asked_again(world: PruneWorld) -> None:
    """The same after a kill between the commit and the lock: what was put is locked already, only not for as long."""
    world.retention = {"within": "200d"}
    locking = world.lock_offsite(lock_at_most=400 * DAY)
    (entry,) = world.back_up()
    extending = locking.extend_lock

    def refuse(key: str, *_: object, **__: object) -> None:
        raise StoreUnavailable(f"store offsite failed at {key}")

    locking.extend_lock = refuse  # type: ignore[method-assign]
    lock_as_planned(world.workplace, world.policy, entry.manifest, "offsite")
    (event,) = [event for event in world.catalog.events() if event["name"] == "lock.failed"]
    assert (event["artifact_id"], event["store"]) == (entry.manifest.artifact_id, "offsite")
    locking.extend_lock = extending  # type: ignore[method-assign]
    keep_locked(world.workplace, world.policy)
    assert all(span > 199 * DAY for span in left(world, locking, entry))


def test_without_retention_everything_stays_locked(world: PruneWorld) -> None:
    locking = world.lock_offsite()
    policy = world.policy.model_copy(update={"retention": None})
    entries = world.back_up(3)
    for _ in range(30):
        world.now += 10 * DAY
        job = Job("lock", "orders", "", world.now, new_id(world.now))
        workplace = world.workplace
        workplace.policies = {"orders": policy}
        assert run_job(workplace, job, Silent()) == {"artifacts": 3, "log_manifests": 0}
        for entry in entries:
            assert all(span >= 15 * DAY for span in left(world, locking, entry))
    assert len(locking.asked) <= 300 / 15 * 9


def test_a_manifest_that_somebody_else_locked_does_not_let_the_data_behind_it_run_out(world: PruneWorld) -> None:
    """Whoever stole the keys of the store cannot delete what is locked, but can lock a manifest for years."""
    locking = world.lock_offsite()
    (entry, *_) = world.back_up(4)
    locking.locks[bucket.manifest_key("orders", entry.manifest.artifact_id)] = world.now + 3000 * DAY
    for _ in range(30):
        world.now += DAY
        keep_locked(world.workplace, world.policy)
        assert all(span > 10 * DAY for span in left(world, locking, entry))


def test_a_parent_is_locked_as_long_as_what_builds_on_it(world: PruneWorld) -> None:
    world.retention = {"within": "90d"}
    locking = world.lock_offsite(lock_at_most=400 * DAY)
    (full,) = world.back_up()
    world.now += 40 * DAY
    (child,) = world.back_up(1, depends_on=(full.manifest.artifact_id,))
    keep_locked(world.workplace, world.policy)
    assert left(world, locking, full) == left(world, locking, child)


def test_what_is_marked_or_unwanted_runs_out_and_nothing_is_removed_or_marked(world: PruneWorld) -> None:
    world.lock_offsite()
    world.retention = {"last": 3, "minimum": 1, "max_removed_percent": 100, "stale_after": "1000d"}
    entries = world.back_up(6)
    world.now += 20 * DAY
    before = world.keys()
    locking = world.stores["offsite"]
    keep_locked(world.workplace, world.policy)
    assert world.keys() == before
    asked = {key.split("/")[3] for key in locking.asked if key.startswith("policies/")}
    locked = {entry.manifest.artifact_id for entry in entries[3:]}
    assert asked >= locked
    # The others are locked until they are ten days older: then they are deferred, and nobody extends that.
    assert asked == locked


def test_a_hold_that_stands_is_locked_with_what_it_holds(world: PruneWorld) -> None:
    locking = world.lock_offsite()
    (entry, *_) = world.back_up(6)
    hold_artifact(world.workplace, entry.manifest.artifact_id, "lawsuit 17")
    world.now += 20 * DAY
    keep_locked(world.workplace, world.policy)
    (hold,) = world.catalog.holds.entries(policy="orders")
    key = bucket.hold_key("orders", hold.hold_id)
    assert {key, bucket.signature_key(key)} <= set(locking.asked)
    assert all(span >= 15 * DAY for span in left(world, locking, entry))
    release_artifact(world.workplace, entry.manifest.artifact_id)
    world.now += 20 * DAY
    locking.asked.clear()
    keep_locked(world.workplace, world.policy)
    assert key not in locking.asked


def test_what_is_missing_hinders_nothing_and_what_fails_is_told_after_the_rest(world: PruneWorld) -> None:
    locking = world.lock_offsite()
    world.retention = {"within": "1000d"}
    first, second, third = world.back_up(3)
    gone = first.manifest.objects[0].key
    locking.delete(gone)
    refused = bucket.manifest_key("orders", second.manifest.artifact_id)
    looking = locking.head

    def head(key: str, **options: object) -> object:
        if key == refused:
            raise StoreError(f"store offsite failed at {key}: AccessDenied")
        if key == gone:
            raise AssertionError("a missing object is not described")
        return looking(key, **options)  # type: ignore[arg-type]

    world.now += 20 * DAY
    locking.head = head  # type: ignore[method-assign, assignment]
    extending = locking.extend_lock
    missing: list[str] = []

    def extend(key: str, *arguments: object, **options: object) -> None:
        if key == gone:
            missing.append(key)
            MemoryStore.head(locking, key)  # StoreMissing
        extending(key, *arguments, **options)  # type: ignore[arg-type]

    locking.extend_lock = extend  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="AccessDenied"):
        keep_locked(world.workplace, world.policy)
    assert missing == [gone]
    kept = {key.split("/")[3] for key in locking.asked if key.endswith("/manifest.json")}
    assert kept == {first.manifest.artifact_id, third.manifest.artifact_id}
    (run,) = world.catalog.runs(kind="lock")
    assert run.state == "failed"


def test_a_store_that_cannot_be_listed_is_told_of(world: PruneWorld) -> None:
    world.back_up(2)
    locking = world.lock_offsite()

    def down(prefix: str) -> Iterator[object]:
        raise StoreUnavailable(f"store offsite does not answer: {prefix}")

    locking.list = down  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreError, match="store offsite could not be listed, and what it has locked"):
        keep_locked(world.workplace, world.policy)


def test_it_is_scheduled_where_a_store_locks_and_nowhere_else(world: PruneWorld) -> None:
    def names() -> list[str]:
        site = world.site
        return [item.name for item in schedules_of([world.policy], SchedulerConfig(), site.locking_stores)]

    assert "lock/orders" not in names()
    world.lock_offsite()
    assert "lock/orders" in names()


@pytest.mark.parametrize("kind", ["moto", "versitygw"])
def test_a_real_bucket_locks_to_the_planned_end(world: PruneWorld, kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(f"{kind}_server")
    place = server.bucket(object_lock=True)
    store = server.store(place, lock=ObjectLock("governance", 2 * DAY))
    store.name = "offsite"
    world.lock_offsite(lock_for=2 * DAY, lock_at_most=400 * DAY)
    world.stores["offsite"] = world.bucket.stores["offsite"] = store
    world.bucket.__post_init__()
    world.retention = {"within": "100d"}
    world.now = datetime.now(UTC)
    (entry,) = world.back_up(1, every=HOUR / 60)
    lock_as_planned(world.workplace, world.policy, entry.manifest, "offsite")
    end = (entry.manifest.covers.to_at + 100 * DAY).replace(microsecond=0)
    keys = [item.key for item in store.list(bucket.artifact_prefix("orders", entry.manifest.artifact_id))]
    assert {store.head(key).locked_until for key in keys} == {end}
    keep_locked(world.workplace, world.policy)
    assert {store.head(key).locked_until for key in (bucket.REPO_KEY, bucket.RECOVERY_KEY)} == {end}
    asked: list[str] = []
    store.extend_lock = lambda key, *_, **__: asked.append(key)  # type: ignore[method-assign, assignment]
    keep_locked(world.workplace, world.policy)
    assert asked == [], "one look later nothing is to be done"


def documents_of(world: PruneWorld, entry: ArtifactEntry) -> set[str]:
    """Write one of each document that is never removed; return the keys of all that must stay locked with it."""
    world.bucket.prove(entry, at=world.now, run_id="drill-1")
    return documents_in(world, entry)


def documents_in(world: PruneWorld, entry: ArtifactEntry) -> set[str]:
    sealed = entry.manifest.encryption.recipients[0].fingerprint
    signer = world.bucket.signers[0].key_id
    recovery = (bucket.RECOVERY_KEY, bucket.signature_key(bucket.RECOVERY_KEY))
    own = (*recovery, bucket.REPO_KEY, bucket.trust_key(sealed), bucket.trust_key(signer))
    for key in own:
        if key not in {item.key for item in world.stores["offsite"].list("")}:
            world.stores["offsite"].put(key, [b"{}"])
    signed = {bucket.evidence_key("orders", "drill-1")}
    signed |= {item.key for item in world.stores["offsite"].list(bucket.tombstones_prefix("orders"))}
    return {*own, *signed, *(bucket.signature_key(key) for key in signed if not key.endswith(".sig"))}


def test_tombstones_records_and_public_keys_stay_locked_long_after_what_they_speak_of_is_gone(
    world: PruneWorld,
) -> None:
    locking = world.lock_offsite()
    entries = world.back_up(6)
    wanted = documents_of(world, entries[-1])
    world.stores["offsite"].put(bucket.trust_key("ssh:5714963715714963"), [b"a stranger's"])
    world.now += 31 * DAY
    world.retention = {"last": 3, "minimum": 1, "max_removed_percent": 100, "stale_after": "1000d"}
    world.prune()  # marks three, whose locks have ended
    wanted |= documents_in(world, entries[-1])
    assert len(wanted) == 5 + 2 + 3 * 2
    for _ in range(12):
        world.now += 10 * DAY
        keep_locked(world.workplace, world.policy)
        for key in wanted:
            until = locking.head(key).locked_until
            assert until is not None
            assert until >= world.now + 15 * DAY, key
    assert bucket.trust_key("ssh:5714963715714963") not in locking.asked, "what a stranger put there is his"
    gone = bucket.tombstone_key("orders", entries[0].manifest.artifact_id)
    order = [key for key in locking.asked if key.startswith(gone)]
    assert order[:2] == [bucket.signature_key(gone), gone], "a look at the document tells of its signature"


def test_documents_are_locked_as_long_as_the_artifact_that_is_kept_the_longest(world: PruneWorld) -> None:
    world.retention = {"within": "200d"}
    locking = world.lock_offsite(lock_at_most=400 * DAY)
    (entry,) = world.back_up()
    wanted = documents_of(world, entry)
    keep_locked(world.workplace, world.policy)
    ends = {locking.head(key).locked_until for key in wanted}
    assert ends == {(entry.manifest.covers.to_at + 200 * DAY).replace(microsecond=0)}


def test_a_document_that_is_not_believed_or_is_missing_hinders_nothing(world: PruneWorld) -> None:
    locking = world.lock_offsite()
    (entry,) = world.back_up()
    wanted = documents_of(world, entry)
    forged = bucket.evidence_key("orders", "forged")
    world.stores["offsite"].put(forged, [b"{}"])
    locking.delete(bucket.RECOVERY_KEY)
    world.now += 20 * DAY
    keep_locked(world.workplace, world.policy)
    assert set(locking.asked) >= wanted - {bucket.RECOVERY_KEY, bucket.signature_key(bucket.RECOVERY_KEY)}
    assert forged not in locking.asked, "what somebody put there is not made to stay"


def test_a_document_that_cannot_be_locked_makes_the_run_fail_by_name(world: PruneWorld) -> None:
    locking = world.lock_offsite()
    (entry,) = world.back_up()
    documents_of(world, entry)
    world.now += 20 * DAY
    extending, refused = locking.extend_lock, bucket.evidence_key("orders", "drill-1")

    def extend(key: str, *arguments: object, **options: object) -> None:
        if key == refused:
            raise StoreError(f"store offsite failed at {key}: AccessDenied")
        extending(key, *arguments, **options)  # type: ignore[arg-type]

    locking.extend_lock = extend  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"1 document was not locked anew: store offsite failed at .*drill-1"):
        keep_locked(world.workplace, world.policy)
    assert bucket.REPO_KEY in locking.asked
    assert all(span >= 15 * DAY for span in left(world, locking, entry))


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_at_any_moment_of_an_extension_leaves_it_to_the_next(world: PruneWorld) -> None:
    world.retention = {"within": "1000d"}
    locking = world.lock_offsite()
    entries = world.back_up(2)
    extending = locking.extend_lock
    for steps in range(6):
        world.now += 20 * DAY
        locking.asked.clear()

        def extend(key: str, *arguments: object, at: int = steps, **options: object) -> None:
            if len(locking.asked) == at:
                raise Killed
            extending(key, *arguments, **options)  # type: ignore[arg-type]

        locking.extend_lock = extend  # type: ignore[method-assign]
        with pytest.raises(Killed):
            keep_locked(world.workplace, world.policy)
        locking.extend_lock = extending  # type: ignore[method-assign]
        keep_locked(world.workplace, world.policy)
        for entry in entries:
            assert all(span >= 15 * DAY for span in left(world, locking, entry)), steps


def test_what_is_marked_and_wanted_again_is_locked_before_a_prune_takes_it_back(world: PruneWorld) -> None:
    locking = world.lock_offsite()
    world.stores["offsite"].head = lambda key, **_: MemoryStore.head(locking, key)  # locks that nobody may see
    (first, *_) = world.back_up(6)
    assert first.manifest.artifact_id in world.prune().marked
    world.retention = {"last": 10}
    locking.asked.clear()
    keep_locked(world.workplace, world.policy)
    assert bucket.manifest_key("orders", first.manifest.artifact_id) in locking.asked


@pytest.mark.parametrize("kind", ["moto", "versitygw"])
def test_a_reader_of_a_bucket_that_locks_holds_up_a_prune_and_gives_its_lease_back(
    world: PruneWorld, kind: str, request: pytest.FixtureRequest
) -> None:
    server: S3Server = request.getfixturevalue(f"{kind}_server")
    store = server.store(server.bucket(object_lock=True), lock=ObjectLock("governance", DAY))
    world.stores["offsite"] = store
    now = datetime.now(UTC)
    for _ in range(2):
        with reader_lease(world.workplace, "orders", ["offsite"], Silent()):
            assert live_reader(store, "orders", now) == "leases/read.orders.0.json"
            assert live_reader(store, "orders", now + HOUR) == ""
        assert live_reader(store, "orders", now) == ""
