"""MongoDB brought to a moment: from `drkit backup` and `drkit serve` to `drkit restore --at`, killed and gone on with.

Genuine tools, compatible server: mongodump and mongorestore are MongoDB's own, the servers are SecantusDB.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pytest

from drkit.operations.init import init_site
from tests.fixtures.mongodb import MongoServer, running_mongodb
from tests.fixtures.oplog import OplogSite, newest
from tests.fixtures.replaying import History, held, modelled
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite

SEED = 7
WRITES, MOMENTS = 240, 2
DRILLS = """\
objectives: {rpo: 1h, rto: 1h}
drills:
  - name: any-moment
    pick: random
    level: works
    checks:
      - {name: orders are there, database: shop, collection: orders, pipeline: [{$limit: 1}, {$count: n}], expect: 1}
"""


@pytest.fixture(scope="module")
def source(mongodb_programs: None) -> Iterator[MongoServer]:
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture(scope="module")
def target_server(mongodb_programs: None) -> Iterator[MongoServer]:
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture
def target(target_server: MongoServer) -> Iterator[MongoServer]:
    """An empty server."""
    yield target_server
    for name in target_server.client.list_database_names():
        if name not in ("admin", "config", "local"):
            target_server.client.drop_database(name)


@dataclass
class Shipped:
    """A site whose store has a dump and the oplog behind it, and what the source held at some moments after it."""

    site: OplogSite
    history: History

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.site.site.call("restore", "orders", *arguments, "--to", "file:keys/target-url", "--json")


@pytest.fixture(scope="module")
def shipped(source: MongoServer, target_server: MongoServer, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Write, dump in the middle, write on; remember some moments after the dump; ship everything."""
    made = init_site(tmp_path_factory.mktemp("oplog") / "site", principal="test@example.org")
    made.policy_file.unlink()
    site = OplogSite(ReadySite(made.folder, made))
    site.write_policy(source.url.reveal())
    path = site.site.folder / "policies" / "orders.yaml"
    path.write_text(path.read_text() + DRILLS)
    site.site.write_secret("target-url", target_server.url.reveal())
    history = History(source.client, source.client["shop"], random.Random(SEED))
    history.write(WRITES // 2, set())
    source.client["shop"]["orders"].create_index([("n", 1)], name="by n")
    source.client["shop"].command("createRole", "auditor", privileges=[], roles=[])
    with site.serving():
        site.wait_for("tail      tailing")
        dumped = site.site.call("backup", "orders")
        assert dumped.returncode == 0, dumped.stderr
        for number in range(MOMENTS):
            history.write(WRITES // MOMENTS, {random.Random(SEED + number).randrange(WRITES // MOMENTS)})
            until(lambda: site.reached(newest(source)), "what was written is stored")
        source.client["shop"].create_collection("by year", viewOn="orders", pipeline=[{"$match": {"n": 5}}])
        source.client["shop"]["orders"].create_index([("odd", -1)], name="late")
        history.remember()
        source.client["other"]["noise"].insert_one({"_id": 1})
        end = newest(source)
        until(lambda: site.reached(end), "all is stored")
    return Shipped(site, history)


def test_a_restore_to_a_moment_equals_the_model(shipped: Shipped, source: MongoServer, target: MongoServer) -> None:
    for moment in shipped.history.moments:
        done = shipped.restore("--at", moment.at.isoformat())
        assert done.returncode == 0, done.stdout
        found = held(target.client["shop"])
        found.pop("by year", None)
        assert found == modelled(moment.documents)
        document = json.loads(done.stdout)
        assert document["replayed"]["operations"] > 0
        assert target.client.list_database_names().count("drkit_restore") == 0
        assert not list((shipped.site.site.folder / "restores").iterdir())
        last = moment is shipped.history.moments[-1]
        assert ("by year" in target.client["shop"].list_collection_names()) is last
        if last:
            assert indexes_of(target) == indexes_of(source)
        target.client.drop_database("shop")


def wanted_slices(shipped: Shipped) -> list[Path]:
    """Return the stored slices that a restore to the last moment reads; what was written after it may fill others."""
    planned = json.loads(shipped.restore("--at", shipped.history.moments[-1].at.isoformat(), "--plan").stdout)
    logs = shipped.site.site.store_folder / "policies" / "orders" / "logs"
    paths = [next(logs.glob(f"*/{item['name']}.zst.age")) for item in planned["replay"]["slices"]]
    assert len(paths) > 1
    return paths


def indexes_of(server: MongoServer) -> dict[str, set[str]]:
    shop = server.client["shop"]
    return {name: set(shop[name].index_information()) for name in shop.list_collection_names() if name != "by year"}


def redo_of(site: OplogSite) -> dict[str, Any]:
    """Return what a restore in progress has written down last."""
    for path in (site.site.folder / "restores").glob("*/redo"):
        with path.open("rb") as file:
            header: dict[str, Any] = next(bson.decode_file_iter(file))
            return header
    return {}


def test_a_restore_that_is_killed_in_its_replay_goes_on_by_the_same_command(
    shipped: Shipped, target: MongoServer
) -> None:
    moment = shipped.history.moments[-1]
    asked = ("restore", "orders", "--at", moment.at.isoformat(), "--with-users", "--to", "file:keys/target-url")
    argv = [sys.executable, "-c", "from drkit.cli import main; main()", *asked]
    child = subprocess.Popen(argv, cwd=shipped.site.site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: redo_of(shipped.site).get("applied"), "the replay has begun")
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert "drkit_restore" in target.client.list_database_names()

    other = shipped.restore("--at", moment.at.isoformat(), "--table", "shop.orders")
    assert other.returncode == 5
    assert "has an unfinished restore of artifact" in other.stdout
    assert target.client["shop"].command("rolesInfo", 1)["roles"] == []
    done = shipped.restore("--at", moment.at.isoformat(), "--with-users")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["replayed"]["resumed_after"] > 0
    said = "users and roles are those of the dump: SecantusDB"
    assert [words[: len(said)] for words in document["warnings"] if "users" in words] == [said]
    assert [item["role"] for item in target.client["shop"].command("rolesInfo", 1)["roles"]] == ["auditor"]
    target.client["shop"].command("dropRole", "auditor")
    found = held(target.client["shop"])
    found.pop("by year")
    assert found == modelled(moment.documents)
    assert "drkit_restore" not in target.client.list_database_names()


def test_a_restore_that_is_killed_in_its_load_begins_again(shipped: Shipped, target: MongoServer) -> None:
    moment = shipped.history.moments[0]
    asked = ("restore", "orders", "--at", moment.at.isoformat(), "--to", "file:keys/target-url")
    argv = [sys.executable, "-c", "from drkit.cli import main; main()", *asked]
    child = subprocess.Popen(argv, cwd=shipped.site.site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: target.client["drkit_restore"]["progress"].find_one(), "the load has begun")
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = shipped.restore("--at", moment.at.isoformat())
    assert done.returncode == 0, done.stdout
    assert held(target.client["shop"]) == modelled(moment.documents)


def test_one_collection_comes_back_under_another_name_and_split_transactions_are_told(
    shipped: Shipped, target: MongoServer
) -> None:
    moment = shipped.history.moments[-1]
    chosen = ("--table", "shop.orders", "--rename", "shop.orders=copy.orders")
    done = shipped.restore("--at", moment.at.isoformat(), *chosen)
    assert done.returncode == 0, done.stdout
    assert held(target.client["copy"]) == {"orders": modelled(moment.documents)["orders"]}
    assert "shop" not in target.client.list_database_names()
    document = json.loads(done.stdout)
    assert document["replayed"]["split_transactions"]
    assert any("came back in part" in warning for warning in document["warnings"])


def test_what_is_missing_is_named_before_the_target_is_touched(shipped: Shipped, target: MongoServer) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    long_ago = "2001-01-01T00:00:00+00:00"
    for moment, words in ((tomorrow, "the stored oplog goes up to"), (long_ago, "the oldest dump of policy orders")):
        refused = shipped.restore("--at", moment)
        assert (refused.returncode, words in refused.stdout) == (9, True), refused.stdout
    lost = wanted_slices(shipped)[-2]
    lost.rename(lost.with_suffix(".away"))
    try:
        for moment in ("latest", shipped.history.moments[-1].at.isoformat()):
            refused = shipped.restore("--at", moment, "--plan")
            assert (refused.returncode, "is wanted; they go on after" in refused.stdout) == (9, True), refused.stdout
    finally:
        lost.with_suffix(".away").rename(lost)
    assert set(target.client.list_database_names()) <= {"admin", "config", "local"}


def test_a_damaged_slice_is_found_before_the_target_is_touched(shipped: Shipped, target: MongoServer) -> None:
    damaged = wanted_slices(shipped)[-1]
    content = damaged.read_bytes()
    damaged.chmod(0o600)
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        refused = shipped.restore("--at", shipped.history.moments[-1].at.isoformat())
    finally:
        damaged.write_bytes(content)
    assert refused.returncode == 8, refused.stdout
    assert damaged.name.partition(".")[0] in refused.stdout
    assert set(target.client.list_database_names()) <= {"admin", "config", "local"}


def test_the_plan_names_the_dump_and_its_slices(shipped: Shipped) -> None:
    moment = shipped.history.moments[0].at
    planned = json.loads(shipped.restore("--at", moment.isoformat(), "--plan").stdout)
    replay = planned["replay"]
    assert replay["dump"]["included"]
    assert replay["slices"][0]["from_ts"] <= replay["dump"]["stop_ts"]
    shown = shipped.site.site.call("restore", "orders", "--at", moment.isoformat(), "--plan").stdout
    assert "the oplog of the dump's own time; " in shown
    assert "nothing was changed" in shown
    alone = json.loads(shipped.restore("--plan").stdout)
    assert (alone["replay"]["slices"], alone["replay"]["until"]) == ([], None)


def test_the_plan_of_a_moment_says_what_is_in_the_way_in_the_target(shipped: Shipped, target: MongoServer) -> None:
    moment = shipped.history.moments[0].at.isoformat()
    fits = shipped.restore("--at", moment, "--plan")
    assert (fits.returncode, "mongodb" in json.loads(fits.stdout)["target"]) == (0, True), fits.stdout
    assert set(target.client.list_database_names()) <= {"admin", "config", "local"}
    assert not list((shipped.site.site.folder / "restores").glob("*"))
    target.client["shop"]["orders"].insert_one({"_id": 1})
    refused = shipped.restore("--at", moment, "--plan")
    assert (refused.returncode, "database shop" in refused.stdout) == (5, True), refused.stdout
    assert target.client["shop"]["orders"].count_documents({}) == 1


def test_a_drill_replays_to_a_random_moment_and_compares_what_came_of_it(shipped: Shipped) -> None:
    done = shipped.site.site.call("drill", "orders", "--seed", "4", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "passed"), (document, done.stderr)
    results = {name: level["result"] for name, level in document["levels"].items()}
    assert results == dict.fromkeys(results, "passed")
    assert "by digest" in document["levels"]["same-data"]["summary"]
    assert document["recovered"]["oplog_ts"]
    assert document["rpo_s"] <= 60
    again = json.loads(shipped.site.site.call("drill", "orders", "--seed", "4", "--level", "replays", "--json").stdout)
    assert again["disaster_at"] == document["disaster_at"]
    assert {name: level["result"] for name, level in again["levels"].items()} == {
        **dict.fromkeys(("exists", "intact", "loads", "replays"), "passed"),
        **dict.fromkeys(("same-data", "works"), "not run"),
    }
    outside = shipped.site.site.call("drill", "orders", "--at", "2001-01-01T00:00:00Z", "--level", "replays", "--json")
    assert (outside.returncode, json.loads(outside.stdout)["levels"]["exists"]["result"]) == (11, "failed")


def test_a_transaction_does_not_look_like_another_history(shipped: Shipped, source: MongoServer) -> None:
    with shipped.site.serving():
        shipped.site.wait_for("tail      tailing")
        for number in range(2):
            with source.client.start_session() as session, session.start_transaction():
                for name in ("one", "two"):
                    source.client["late"][name].insert_one({"_id": number}, session=session)
            end = newest(source)
            until(lambda end=end: shipped.site.reached(end), "the transaction is stored")
    assert shipped.site.stored().timeline == 1


def test_a_restore_into_the_source_begins_a_new_timeline(shipped: Shipped, source: MongoServer) -> None:
    moment = shipped.history.moments[-1]
    for name in ("shop", "other", "late"):
        source.client.drop_database(name)
    done = shipped.site.site.call("restore", "orders", "--at", moment.at.isoformat(), "--to", "file:keys/database-url")
    assert done.returncode == 0, done.stderr
    assert "timeline 2 of the oplog begins here" in done.stderr
    assert shipped.site.stored().timeline == 2
