"""SIGKILL before and after every request that a clean backup makes to its stores, and inside every put.

After each kill, and with nothing done but the next command, must hold (docs/architecture.md, section 12): every visible
manifest verifies and decrypts; what was restorable still is; the lost run is recorded as lost; no process, no temporary
file, no secret and no row is left where it must not be; and the catalog is what the stores say. The next backup is the
one that is killed at the next point, so every kill also proves that the one before needed no unlocking.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.forking import Forker
from tests.faults.shop import BUCKET_VARIABLES, Shop, bucket_bytes, bucket_lines, create_shop, make_shop
from tests.faults.surviving import KILLED, Survivor, requests_of, share
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.s3 import S3Server

SHARDS = 4


@pytest.fixture(scope="session")
def shop_url(postgres: PostgresServer) -> str:
    return postgres.tcp_url(create_shop(postgres)).reveal()


def folders_shop(machine: Path, forker: Forker, url: str) -> Shop:
    shop = make_shop(machine / "folders", forker, url, stores=("primary", "offsite"))
    shop.site.add_store("offsite").mkdir(mode=0o700)
    return shop


@pytest.mark.parametrize("shard", range(SHARDS))
def test_two_folders(machine: Path, forker: Forker, shop_url: str, shard: int) -> None:
    clean = folders_shop(machine / "clean", forker, shop_url)
    points = requests_of(clean.drkit("backup", "shop"))
    assert len(points) > 70
    shop = folders_shop(machine, forker, shop_url)
    folders = [shop.site.folder / "backups", shop.site.folder / "offsite"]

    def stored() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()}

    Survivor(shop, stored, store_count=2).survive(share(points, shard, SHARDS))


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
