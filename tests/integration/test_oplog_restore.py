"""MongoDB brought to a moment: from `drkit backup` and `drkit serve` to `drkit restore --at`, killed and gone on with.

Genuine tools, compatible server: mongodump and mongorestore are MongoDB's own, the servers are SecantusDB.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.mongodb import MongoServer, running_mongodb
from tests.fixtures.oplog import OplogSite, newest
from tests.fixtures.replaying import History, held, modelled
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite

SEED = 7
WRITES, MOMENTS = 240, 3


@pytest.fixture(scope="module")
def source(mongodb_programs: None) -> Iterator[MongoServer]:
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture
def target(mongodb_programs: None) -> Iterator[MongoServer]:
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture
def shop(ready_site: ReadySite, source: MongoServer, mongo_tools: Path) -> OplogSite:
    site = OplogSite(ready_site)
    site.write_policy(source.url.reveal())
    return site


def run_history(shop: OplogSite, source: MongoServer) -> History:
    """Write, dump in the middle, write on; remember some moments after the dump; ship everything."""
    source.client.drop_database("shop")
    history = History(source.client, source.client["shop"], random.Random(SEED))
    history.write(WRITES // 2, set())
    source.client["shop"]["orders"].create_index([("n", 1)], name="by n")
    with shop.serving():
        shop.wait_for("tail      tailing")
        dumped = shop.site.call("backup", "orders")
        assert dumped.returncode == 0, dumped.stderr
        history.write(WRITES, set(random.Random(SEED).sample(range(WRITES), MOMENTS)))
        history.remember()
        source.client["other"]["noise"].insert_one({"_id": newest(source).seconds})
        end = newest(source)
        until(lambda: shop.reached(end), "all is stored")
    return history


def test_a_restore_to_a_moment_equals_the_model_and_goes_on_where_it_was_killed(
    shop: OplogSite, source: MongoServer, target: MongoServer
) -> None:
    history = run_history(shop, source)
    to = shop.site.write_secret("target-url", target.url.reveal())
    for moment in history.moments:
        done = shop.site.call("restore", "orders", "--at", moment.at.isoformat(), "--to", to, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        assert held(target.client["shop"]) == modelled(moment.documents)
        document = json.loads(done.stdout)
        assert document["replayed"]["operations"] > 0
        assert "drkit_restore" not in target.client.list_database_names()
        assert not list((shop.site.folder / "restores").iterdir())
        for name in ("shop", "other"):
            target.client.drop_database(name)
