"""The oplog of a real server that speaks MongoDB's protocol: tailed, shipped, lost and found again.

Genuine tools, compatible server: mongodump is MongoDB's own, the server is SecantusDB.
"""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Iterator

import pytest

from drkit.app import open_app
from drkit.operations.oplog_branch import start_timeline
from drkit.oplog import OplogTs
from tests.fixtures.mongodb import MongoServer, running_mongodb
from tests.fixtures.oplog import OplogSite, meanwhile, newest, server_entries, write_orders
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite


@pytest.fixture(scope="module")
def server(mongodb_programs: None) -> Iterator[MongoServer]:
    """Lend a server whose oplog nobody else fills."""
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture
def oplog_site(ready_site: ReadySite, server: MongoServer) -> OplogSite:
    """Lend a site whose policy ships the server's oplog, with one order in the server."""
    server.client.drop_database("shop")
    write_orders(server, 0, 1)
    site = OplogSite(ready_site)
    site.write_policy(server.url.reveal())
    return site


def test_no_entry_is_lost_or_doubled_however_often_serve_is_killed(oplog_site: OplogSite, server: MongoServer) -> None:
    begin = newest(server)
    moments = random.Random(8841)
    oplog_site.start()
    oplog_site.wait_for("tail      tailing")
    numbers = iter(range(1000, 100_000))
    with meanwhile(lambda: write_orders(server, next(numbers), 1)):
        for _ in range(2):
            before = len(oplog_site.stored().slices)
            until(lambda before=before: len(oplog_site.stored().slices) > before, "another slice")
            threading.Event().wait(moments.random() * 1.2)
            oplog_site.stop(signal.SIGKILL)
            oplog_site.start()
    end = newest(server)
    until(lambda: oplog_site.reached(end), "all is stored")
    assert oplog_site.stop() == 0
    assert oplog_site.entries() == server_entries(server, begin, end)
    assert not list((oplog_site.spool / "sealed").iterdir())
    assert oplog_site.events("oplog.gap") == []


def test_stopping_serve_stores_what_it_has_read(oplog_site: OplogSite, server: MongoServer) -> None:
    oplog_site.write_policy(server.url.reveal(), "slice_size: 32KiB")
    text = oplog_site.site.folder / "policies" / "orders.yaml"
    text.write_text(text.read_text().replace("slice: 1s", "slice: 1h"))
    begin = newest(server)
    with oplog_site.serving():
        oplog_site.wait_for("tail      tailing")
        write_orders(server, 100, 400)
        end = newest(server)
        until(lambda: oplog_site.stored().slices, "the first slice is full")
        threading.Event().wait(1.5)
    assert oplog_site.entries() == server_entries(server, begin, end)
    assert len(oplog_site.stored().slices) >= 2


def test_an_overrun_is_a_named_gap_until_a_dump_ends_it(
    oplog_site: OplogSite, mongo_tools: object, mongodb_programs: None
) -> None:
    with running_mongodb("--storage-path=:memory:", "--oplog-max-entries=300") as server:
        oplog_site.write_policy(server.url.reveal())
        write_orders(server, 0, 50)
        assert oplog_site.site.call("backup", "orders").returncode == 0
        with oplog_site.serving():
            oplog_site.wait_for("tail      tailing")
            write_orders(server, 50, 20)
            good = newest(server)
            until(lambda: oplog_site.reached(good), "it is stored")
        write_orders(server, 100, 1000)
        with oplog_site.serving():
            oplog_site.wait_for("tail      overrun")
            write_orders(server, 2000, 5)
            end = newest(server)
            until(lambda: oplog_site.reached(end), "slicing goes on")
            (gap,) = oplog_site.events("oplog.gap")
            assert gap["from_ts"] == str(good)
            assert OplogTs.parse(gap["to_ts"]) > good
            checked = json.loads(oplog_site.site.call("check", "orders", "--json").stdout)
            (verdict,) = checked["policies"]
            assert verdict["state"] == "GAP"
            assert "oplog-gap" in [item["code"] for item in verdict["findings"]]
        shown = json.loads(oplog_site.site.call("timeline", "orders", "--json").stdout)
        (open_gap,) = shown["gaps"]
        assert (open_gap["from_ts"], open_gap["to_ts"], open_gap["missing_ts"]) == (str(good), None, gap["to_ts"])
        assert oplog_site.site.call("backup", "orders").returncode == 0
        shown = json.loads(oplog_site.site.call("timeline", "orders", "--json").stdout)
        assert len(shown["windows"]) == 2
        assert shown["gaps"][0]["to_ts"] == shown["starts"][-1]["stop_ts"]
        assert "gap" in oplog_site.site.call("timeline", "orders").stdout


def test_a_restore_into_the_source_begins_a_new_timeline(oplog_site: OplogSite, server: MongoServer) -> None:
    with oplog_site.serving():
        oplog_site.wait_for("tail      tailing")
        write_orders(server, 10, 20)
        branch_ts = newest(server)
        with open_app(oplog_site.site.site_file) as workplace:
            policy = workplace.policies["orders"]
            assert start_timeline(workplace, policy, branch_ts, "restored to 12:00") == 2
        until(lambda: "timeline 2" in oplog_site.said() or oplog_site.stored().timeline == 2, "the new timeline")
        until(lambda: (oplog_site.spool / "position.json").read_text().find('"timeline":2') > 0, "serve follows")
        write_orders(server, 50, 20)
        end = newest(server)
        until(lambda: any(i.slice.timeline == 2 and i.slice.to_ts >= end for i in oplog_site.stored().slices), "stored")
    assert oplog_site.entries(2) == server_entries(server, branch_ts, end)
    assert oplog_site.entries(1)[-1] == server_entries(server, OplogTs(0, 0), branch_ts)[-1]
    (branch,) = oplog_site.stored().branches
    assert (branch.timeline, branch.from_timeline, branch.reason) == (2, 1, "restored to 12:00")


def test_a_server_with_another_history_is_not_taken_for_the_same(
    oplog_site: OplogSite, server: MongoServer, mongodb_programs: None
) -> None:
    with oplog_site.serving():
        oplog_site.wait_for("tail      tailing")
        write_orders(server, 10, 5)
        end = newest(server)
        until(lambda: oplog_site.reached(end), "it is stored")
    with running_mongodb("--storage-path=:memory:") as other:
        write_orders(other, 0, 5)
        oplog_site.write_policy(other.url.reveal())
        with oplog_site.serving():
            until(lambda: oplog_site.events("oplog.timeline") or oplog_site.events("oplog.gap"), "it is noticed")
            write_orders(other, 10, 5)
            until(lambda: oplog_site.reached(newest(other)), "slicing goes on")


def test_a_server_without_an_oplog_is_said(ready_site: ReadySite, mongodb_programs: None) -> None:
    site = OplogSite(ready_site)
    with running_mongodb("--storage-path=:memory:", "--standalone") as server:
        site.write_policy(server.url.reveal())
        with site.serving():
            site.wait_for("it is not a member of a replica set")
