"""Replaying an oplog to a moment, against a model that never saw it: on a compatible server, SecantusDB."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Int64, Timestamp

from drkit.engines.mongodb_redo import Progress, RedoFile
from drkit.errors import DrkitError, IntegrityError, RecoveryGap
from drkit.oplog import OplogTs
from drkit.oplog_images import Image
from tests.fixtures.mongodb import ROOT, MongoServer, running_mongodb
from tests.fixtures.replaying import RESTORE_ID, History, Moment, held, modelled, read_oplog, replay
from tests.unit.oplog_entries import BEGUN_AT, SECONDS, bundle, bundled, command, delete, in_session, insert, update
from tests.unit.test_oplog_series import grown, made

WRITES, MOMENTS, SEED = 2000, 20, 20261122
SOURCE, TARGET = "history", "replayed"


@pytest.fixture(scope="module")
def server(mongodb_programs: None) -> Iterator[MongoServer]:
    """Lend a server whose oplog nobody else fills."""
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture(scope="module")
def history(server: MongoServer) -> Iterator[tuple[list[Moment], list[bytes]]]:
    """Two thousand writes, the states at twenty random moments among them, and the oplog that they left."""
    newest = server.client["local"]["oplog.rs"].find().sort("$natural", -1).limit(1).next()["ts"]
    written = History(server.client, server.client[SOURCE], random.Random(SEED))
    written.write(WRITES, set(random.Random(SEED).sample(range(WRITES), MOMENTS)))
    entries = read_oplog(server.client, newest)
    assert held(server.client[SOURCE]) == modelled(written.model), "the model itself is wrong"
    yield written.moments, entries
    server.client.drop_database(SOURCE)


@pytest.fixture
def target(server: MongoServer) -> Iterator[Any]:
    server.client.drop_database(TARGET)
    yield server.client[TARGET]
    server.client.drop_database(TARGET)


def test_a_replay_that_stops_at_twenty_moments_equals_the_model_at_each(
    history: tuple[list[Moment], list[bytes]], server: MongoServer, target: Any, tmp_path: Path
) -> None:
    moments, entries = history
    assert len(moments) == MOMENTS
    for moment in moments:
        done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), moment.at)
        assert held(target) == modelled(moment.documents)
        assert done.last_at is not None
        assert done.last_at <= moment.at


@pytest.mark.parametrize("number", [3, 11, 19])
def test_a_replay_from_the_beginning_equals_the_model(
    number: int, history: tuple[list[Moment], list[bytes]], server: MongoServer, target: Any, tmp_path: Path
) -> None:
    moments, entries = history
    replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), moments[number].at)
    assert held(target) == modelled(moments[number].documents)


def test_a_replay_that_is_killed_again_and_again_equals_the_model(
    history: tuple[list[Moment], list[bytes]], server: MongoServer, target: Any, tmp_path: Path
) -> None:
    moments, entries = history
    moment = moments[MOMENTS // 2]
    file = tmp_path / "entries"
    file.write_bytes(b"".join(entries))
    chance = random.Random(SEED)
    argv = [sys.executable, "-m", "tests.fixtures.replaying", server.url.reveal(), str(file), str(tmp_path)]
    for _ in range(3):
        child = subprocess.Popen([*argv, SOURCE, TARGET, moment.at.isoformat()], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        with child.stdout:
            for _ in range(chance.randrange(len(entries) // 4)):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), moment.at)
    assert done.resumed_after > 0
    assert held(target) == modelled(moment.documents)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (insert(5, f"{SOURCE}.orders", {"_id": "there"}), "inserts a document that is there already"),
        (update(5, f"{SOURCE}.orders", "gone", {"u": {"n": 1}}), "updates a document that is not there"),
        (update(5, f"{SOURCE}.orders", "there", {"z": {"n": 1}}), 'has key "z"'),
        (delete(5, f"{SOURCE}.orders", "gone"), "deletes a document that is not there"),
        (command(5, SOURCE, {"create": "orders", "capped": True, "size": 4096}), "create of history.orders"),
        (command(5, SOURCE, {"renameCollection": f"{SOURCE}.gone", "to": f"{SOURCE}.new"}), "renameCollection of"),
        (insert(5, f"{SOURCE}.system.buckets.weather", {"_id": 1}), "is of time series history.weather"),
        (
            command(5, SOURCE, {"create": "weather", "timeseries": {"timeField": "t"}}),
            "is of time series history.weather",
        ),
    ],
)
def test_an_entry_that_does_not_fit_ends_the_replay_by_name(
    entry: bytes, words: str, server: MongoServer, target: Any, tmp_path: Path
) -> None:
    target["orders"].insert_one({"_id": "there", "n": 0})
    with pytest.raises(DrkitError) as caught:
        replay(server.client, iter([entry]), tmp_path, (SOURCE, TARGET), None)
    assert words in caught.value.message
    assert f"oplog entry {SECONDS + 5}:1" in caught.value.message
    assert list(target["orders"].find()) == [{"_id": "there", "n": 0}]


def test_a_batch_that_was_written_down_is_done_by_whoever_resumes(
    server: MongoServer, target: Any, tmp_path: Path
) -> None:
    entries = [insert(number, f"{SOURCE}.orders", {"_id": number}) for number in range(4)]
    images = [Image(f"{SOURCE}.orders", bson.encode({"_id": number})[4:-1], None, entries[number]) for number in (0, 1)]
    images = [image._replace(after=bson.encode({"_id": number})) for number, image in enumerate(images)]
    # The command that makes the collection is an operation as well.
    RedoFile(tmp_path, RESTORE_ID).write(Progress(3, "x", totals={f"{SOURCE}.orders": (2, None)}), images)
    target["orders"].insert_one({"_id": 0})
    done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), None)
    assert sorted(item["_id"] for item in target["orders"].find()) == [0, 1, 2, 3]
    assert (done.resumed_after, done.operations, done.totals) == (3, 2, {f"{SOURCE}.orders": (4, None)})
    with pytest.raises(IntegrityError, match="is after the moment that is asked for"):
        replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), BEGUN_AT)


def test_a_moment_that_lies_within_the_dump_is_refused(server: MongoServer, target: Any, tmp_path: Path) -> None:
    entries = [insert(number, f"{SOURCE}.orders", {"_id": number}) for number in range(4)]
    stop_ts = OplogTs(SECONDS + 2, 1)
    with pytest.raises(RecoveryGap, match="is after the moment that is asked for"):
        replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), BEGUN_AT + timedelta(seconds=1), stop_ts)
    replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), BEGUN_AT + timedelta(seconds=2), stop_ts)
    assert sorted(item["_id"] for item in target["orders"].find()) == [0, 1, 2]


def test_a_clock_that_was_ahead_does_not_end_a_replay(server: MongoServer, target: Any, tmp_path: Path) -> None:
    far = BEGUN_AT + timedelta(hours=1)
    name = f"{SOURCE}.orders"
    entries = [
        insert(1, name, {"_id": 1}),
        insert(2, name, {"_id": 2}, wall=far),
        insert(3, name, {"_id": 3}),
        insert(5, name, {"_id": 5}, wall=BEGUN_AT),
    ]
    done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), BEGUN_AT + timedelta(seconds=4))
    assert sorted(item["_id"] for item in target["orders"].find()) == [1, 2, 3]
    assert (done.passed, done.last_ts) == (True, OplogTs(SECONDS + 3, 1))


def test_entries_whose_places_run_backwards_are_refused(server: MongoServer, target: Any, tmp_path: Path) -> None:
    entries = [insert(number, f"{SOURCE}.orders", {"_id": number}) for number in (1, 3, 2)]
    with pytest.raises(IntegrityError, match=f"entry {SECONDS + 2}:1 does not follow on {SECONDS + 3}:1"):
        replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), None)
    assert list(target["orders"].find()) == []


def test_a_prepared_transaction_comes_back_at_its_commit(server: MongoServer, target: Any, tmp_path: Path) -> None:
    name = f"{SOURCE}.orders"
    entries = [
        bundle(1, [bundled("i", name, {"_id": "kept"})], session=1, first=True, prepare=True),
        bundle(2, [bundled("i", name, {"_id": "given up"})], session=2, first=True, prepare=True),
        insert(3, name, {"_id": "other"}),
        command(4, "admin", {"commitTransaction": 1, "commitTimestamp": Timestamp(SECONDS + 1, 1)}, **in_session(1)),
        command(5, "admin", {"abortTransaction": 1}, **in_session(2)),
        bundle(6, [bundled("i", name, {"_id": "open"})], session=3, first=True, prepare=True),
    ]
    (tmp_path / "before").mkdir()
    replay(server.client, iter(entries), tmp_path / "before", (SOURCE, TARGET), BEGUN_AT + timedelta(seconds=3))
    assert [item["_id"] for item in target["orders"].find()] == ["other"]
    target["orders"].drop()
    done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), None)
    assert sorted(item["_id"] for item in target["orders"].find()) == ["kept", "other"]
    assert (done.aborted, done.unfinished) == (1, [OplogTs(SECONDS + 6, 1)])


def test_buckets_of_a_time_series_come_back_and_go_on_where_they_were_killed(
    server: MongoServer, target: Any, tmp_path: Path
) -> None:
    """SecantusDB has no buckets: it shows whether they arrive, not that a series is made of them."""
    entries = [raw.replace(b"shop.", b"tick.") for raw in (*made(), *grown())]
    replay(server.client, iter(entries[:3]), tmp_path, ("tick", TARGET), None, batch_writes=1)
    assert target["system.buckets.heat"].find_one()["data"]["v"] == {"0": 1.5}
    replay(server.client, iter(entries), tmp_path, ("tick", TARGET), None, batch_writes=1)
    buckets = list(target["system.buckets.heat"].find())
    assert len(buckets) == 2
    assert [item["control"]["count"] for item in buckets if item["control"]["version"] == 2] == [2]
    (series,) = target.list_collections(filter={"name": "heat"})
    assert series["options"]["timeseries"]["metaField"] == "place"


def test_a_document_whose_id_changes_its_type_alone_is_replaced(
    server: MongoServer, target: Any, tmp_path: Path
) -> None:
    name = f"{SOURCE}.orders"
    entries = [insert(1, name, {"_id": 1}), delete(2, name, 1), insert(3, name, {"_id": Int64(1), "n": 2})]
    replay(server.client, iter(entries[:1]), tmp_path, (SOURCE, TARGET), None)
    replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), None)
    (document,) = target["orders"].find()
    assert (type(document["_id"]), document["n"]) == (Int64, 2)


def test_a_collection_that_was_dropped_while_the_dump_ran_is_not_changed(
    server: MongoServer, target: Any, tmp_path: Path
) -> None:
    entries = [
        command(1, SOURCE, {"collMod": "orders", "validationLevel": "off"}),
        command(2, SOURCE, {"drop": "orders"}),
    ]
    replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), None, OplogTs(SECONDS + 2, 1))
    assert target.list_collection_names() == []
