"""SIGKILL before and after every request that a clean backup makes to its stores, and inside every put.

After each kill, and with nothing done but the next command, must hold (docs/architecture.md, section 12): every visible
manifest verifies and decrypts; what was restorable still is; the lost run is recorded as lost; no process, no temporary
file, no secret and no row is left where it must not be; and the catalog is what the stores say. The next backup is the
one that is killed at the next point, so every kill also proves that the one before needed no unlocking.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drkit import bucket
from tests.faults.forking import Ended, Forker, searched, wait_until
from tests.faults.shop import (
    BUCKET_VARIABLES,
    ROW_WORD,
    TABLE_WORD,
    Shop,
    bucket_bytes,
    bucket_lines,
    create_shop,
    make_shop,
)
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.s3 import S3Server

SHARDS = 4
KILLED = -9


@pytest.fixture(scope="session")
def shop_url(postgres: PostgresServer) -> str:
    return postgres.tcp_url(create_shop(postgres)).reveal()


def folders_shop(machine: Path, forker: Forker, url: str) -> Shop:
    shop = make_shop(machine / "folders", forker, url, stores=("primary", "offsite"))
    shop.site.add_store("offsite").mkdir(mode=0o700)
    return shop


def requests_of(ended: Ended) -> list[str]:
    """Return the points that a clean run passed, without those that are no requests to stores, each once."""
    assert ended.status == 0, ended.said
    return list(dict.fromkeys(point for point in ended.passed if not point.startswith(("started", "begin", "end"))))


def share(points: list[str], shard: int) -> list[str]:
    """Return one of the consecutive shares of ``points``."""
    size = -(-len(points) // SHARDS)
    return points[shard * size : (shard + 1) * size]


@pytest.mark.parametrize("shard", range(SHARDS))
def test_two_folders(machine: Path, forker: Forker, shop_url: str, shard: int) -> None:
    clean = folders_shop(machine / "clean", forker, shop_url)
    points = requests_of(clean.drkit("backup", "shop"))
    assert len(points) > 70
    shop = folders_shop(machine, forker, shop_url)
    folders = [shop.site.folder / "backups", shop.site.folder / "offsite"]

    def stored() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()}

    Survivor(shop, stored, store_count=2).survive(share(points, shard))


@pytest.mark.parametrize("shard", range(2))
def test_a_folder_and_a_bucket(machine: Path, forker: Forker, shop_url: str, moto_server: S3Server, shard: int) -> None:
    def make(name: str, bucket_name: str) -> Shop:
        shop = make_shop(machine / name, forker, shop_url, stores=("primary", "offsite"), **BUCKET_VARIABLES)
        shop.site.add_store("offsite", f"s3://{bucket_name}/site", *bucket_lines(moto_server.endpoint))
        return shop

    points = [
        point
        for point in requests_of(make("clean", moto_server.bucket()).drkit("backup", "shop"))
        if " offsite " in point
    ]
    assert len(points) > 20
    bucket_name = moto_server.bucket()
    shop = make("bucket", bucket_name)
    client = moto_server.client()

    def stored() -> dict[str, bytes]:
        return dict(bucket_bytes(client, bucket_name))

    Survivor(shop, stored).survive(points[shard::2])
    assert client.list_multipart_uploads(Bucket=bucket_name).get("Uploads", []) == []


def test_a_large_upload(machine: Path, forker: Forker, postgres: PostgresServer, moto_server: S3Server) -> None:
    """A multipart upload that is cut off is no object, and is taken away once it is too old to be somebody's."""
    url = postgres.tcp_url(create_shop(postgres, noise_bytes=14 << 20)).reveal()
    shop = make_shop(machine / "large", forker, url, stores=("offsite",), **BUCKET_VARIABLES)
    name = moto_server.bucket()
    shop.site.add_store("offsite", f"s3://{name}/site", *bucket_lines(moto_server.endpoint))
    point = "before the last chunk of offsite put policies/shop/artifacts/*/database-1.zst.age"
    killed = shop.drkit("backup", "shop", stop_at=point, impatient=True)
    assert killed.status == KILLED, killed.said
    client = moto_server.client()
    assert len(client.list_multipart_uploads(Bucket=name)["Uploads"]) == 1
    assert shop.copies() == set()
    assert shop.document("backup", "shop")["stores"] == ["offsite"]
    assert len(shop.copies("--all")) == 1
    # To moto every upload began in 2010, so this one is old already.
    assert "Uploads" not in client.list_multipart_uploads(Bucket=name)


def _changes_a_store(point: str) -> bool:
    """Tell whether the stores are any different from what they were at the point before."""
    return (point.startswith("after ") and " put " in point) and not (" chunk of " in point and "age" not in point)


class Survivor:
    """A shop whose backups are killed one after the other, and what was restorable so far.

    ``stored`` returns every byte of the stores that are looked into at the end, ``store_count`` of them.
    """

    def __init__(self, shop: Shop, stored: Callable[[], dict[str, bytes]], *, store_count: int = 1) -> None:
        self.shop = shop
        self.store_count = store_count
        self.stored = stored
        self.copies: set[tuple[str, str]] = set()

    def survive(self, points: list[str]) -> None:
        for point in points:
            killed = self.shop.drkit("backup", "shop", stop_at=point)
            assert killed.status == KILLED, f"{point} was not reached: {killed.said}"
            self.judge(killed)
        self.finish()

    def judge(self, killed: Ended) -> None:
        shop, point = self.shop, killed.passed[-1]
        wait_until(lambda: not shop.host.processes(), f"{point}: still running: {shop.host.processes()}")
        self.judge_temporary_files(point)
        if not _changes_a_store(point):
            return
        newest = shop.copies()
        assert shop.temporary_files() == [], point
        run = shop.runs()[0]
        assert (run.kind, run.state, run.pid) == ("backup", "lost", killed.pid), point
        export = shop.export()
        assert export == shop.rebuilt_export(), point
        copies = {
            (item["manifest"]["artifact_id"], name)
            for item in json.loads(export)["artifacts"]
            for name in item["stores"]
        }
        assert copies >= self.copies | newest, point
        assert shop.seen_secrets(killed) == [], point
        self.copies = copies

    def judge_temporary_files(self, point: str) -> None:
        """A dead process leaves its private folder; what its tools needed to connect is for its user's eyes only."""
        for path in self.shop.temporary_files():
            assert path.stat().st_mode & 0o077 == 0, (point, path)
            assert path.is_dir() or path.name in {"service.conf", "pass"}, (point, path)
        assert searched([self.shop.host.temporary], [ROW_WORD, TABLE_WORD]) == [], point

    def finish(self) -> None:
        """Complete the copies, take a last backup, and look into every stored byte."""
        shop = self.shop
        before = shop.copies("--all")
        assert before >= self.copies
        artifacts = {artifact_id for artifact_id, _ in before}
        copied = shop.document("store", "copy")
        assert {(item["artifact_id"], item["store"]) for item in copied["copied"]} == {
            (artifact_id, "offsite") for artifact_id in artifacts if (artifact_id, "offsite") not in before
        }
        last = shop.document("backup", "shop")
        artifacts.add(last["artifact_id"])
        assert shop.copies("--all") == {(name, store) for name in artifacts for store in ("primary", "offsite")}
        assert shop.runs()[0].state == "succeeded"
        report = shop.document("check", status=12)
        codes = {finding["code"] for policy in report["policies"] for finding in policy["findings"]}
        assert codes <= {"never-drilled", "orphan"}, report
        assert report["stores"] == []
        for name, content in self.stored().items():
            words = [word for word in (*shop.secrets, ROW_WORD, TABLE_WORD) if word.encode() in content]
            assert words == [], name
            assert not name.endswith(".zst.age") or content.startswith(b"age-encryption.org/v1\n"), name
        once_a_store = [name for name in self.stored() if name.endswith((bucket.RECOVERY_KEY, bucket.REPO_KEY))]
        assert len(once_a_store) == 2 * self.store_count
