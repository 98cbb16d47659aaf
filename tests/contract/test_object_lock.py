"""Object Lock: what a store is told to lock cannot be removed, and a bucket that cannot lock is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from drkit.errors import StoreError, StoreMissing
from drkit.operations.sparing import erase
from drkit.stores.s3 import S3Store
from drkit.stores.s3_connection import ObjectLock
from tests.fixtures.s3 import SMALLEST_PART_BYTES, S3Server

DAY = timedelta(days=1)
LOCK = ObjectLock("governance", DAY)
CONTENTS = {"small": [b"a small object"], "large": [b"x" * SMALLEST_PART_BYTES, b"the last part"]}
KEY = "policies/orders/artifacts/1/data.zst.age"


@pytest.fixture(params=["moto", "versitygw"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.mark.parametrize("size", CONTENTS)
def test_what_is_put_is_locked_for_its_period(server: S3Server, size: str) -> None:
    bucket = server.bucket(object_lock=True)
    store = server.store(bucket, lock=LOCK)
    written = store.put(KEY, CONTENTS[size])
    client, address = server.client(), {"Bucket": bucket, "Key": f"site/backups/{KEY}"}
    head = client.head_object(**address, VersionId=written.version_id)
    assert head["ObjectLockMode"] == "GOVERNANCE"
    assert abs(head["ObjectLockRetainUntilDate"] - datetime.now(UTC) - DAY) < timedelta(minutes=1)
    with pytest.raises(ClientError, match=r"AccessDenied|ObjectLocked|WORM"):
        client.delete_object(**address, VersionId=written.version_id)
    with pytest.raises(StoreError, match=f"store bucket failed at {KEY}"):
        store.delete(KEY, version_id=written.version_id)
    assert store.put(KEY, CONTENTS[size]).version_id == written.version_id, "our own earlier try is no second version"


def test_a_lease_is_not_locked(server: S3Server) -> None:
    bucket = server.bucket(object_lock=True)
    store = server.store(bucket, lock=LOCK)
    first = store.replace("leases/backup.json", b"1", expected=None)
    store.replace("leases/backup.json", b"2", expected=first.revision)
    head = server.client().head_object(Bucket=bucket, Key="site/backups/leases/backup.json")
    assert "ObjectLockMode" not in head


@pytest.mark.parametrize("size", CONTENTS)
def test_a_bucket_without_object_lock_is_refused_by_name(server: S3Server, size: str) -> None:
    bucket = server.bucket(versions=True)
    store = server.store(bucket, lock=LOCK)
    with pytest.raises(StoreError, match=f"the bucket {bucket} has no Object Lock") as refused:
        store.put(KEY, CONTENTS[size])
    assert "object_lock: governance" in refused.value.message
    assert "drkit store probe bucket" in refused.value.hints
    assert server.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_until_when_an_object_is_locked_can_be_asked(server: S3Server) -> None:
    locked = server.store(server.bucket(object_lock=True), lock=LOCK)
    locked.put(KEY, CONTENTS["small"])
    until = locked.head(KEY).locked_until
    assert until is not None
    assert abs(until - datetime.now(UTC) - DAY) < timedelta(minutes=1)
    free = server.store(server.bucket(versions=True))
    free.put(KEY, CONTENTS["small"])
    assert free.head(KEY).locked_until is None


@pytest.mark.parametrize("size", CONTENTS)
def test_a_lock_is_extended_and_never_shortened(server: S3Server, size: str) -> None:
    store = server.store(server.bucket(object_lock=True), lock=LOCK)
    written = store.put(KEY, CONTENTS[size])
    now = datetime.now(UTC).replace(microsecond=0)
    for until, expected in ((now + 3 * DAY, now + 3 * DAY), (now + 2 * DAY, now + 3 * DAY)):
        store.extend_lock(KEY, until, version_id=written.version_id)
        assert store.head(KEY).locked_until == expected
    with pytest.raises(StoreError, match=f"store bucket failed at {KEY}"):
        store.delete(KEY, version_id=written.version_id)
    with pytest.raises(StoreMissing):
        store.extend_lock("policies/orders/nothing", now)


def test_a_store_whose_site_wants_no_locks_makes_none(server: S3Server) -> None:
    store = server.store(server.bucket(object_lock=True))
    store.put(KEY, CONTENTS["small"])
    store.extend_lock(KEY, datetime.now(UTC) + DAY)
    assert store.head(KEY).locked_until is None


def test_erasing_frees_every_version_and_is_refused_while_one_is_locked(server: S3Server) -> None:
    bucket = server.bucket(versions=True)
    store, client = server.store(bucket), server.client()
    store.put(KEY, CONTENTS["small"])
    client.put_object(Bucket=bucket, Key=f"site/backups/{KEY}", Body=b"somebody else's")
    erase(store, KEY)
    assert client.list_object_versions(Bucket=bucket).get("Versions", []) == []
    erase(store, KEY)
    locked = server.store(server.bucket(object_lock=True), lock=LOCK)
    locked.put(KEY, CONTENTS["small"])
    with pytest.raises(StoreError, match=f"store bucket failed at {KEY}"):
        erase(locked, KEY)
    assert b"".join(_read(locked)) == b"".join(CONTENTS["small"])


def _read(store: S3Store) -> list[bytes]:
    with store.open(KEY) as chunks:
        return list(chunks)
