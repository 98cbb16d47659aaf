"""Restoring MongoDB: what is chosen, renamed, built afterwards, and the losses that others call a success."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Timestamp

from drkit.errors import IntegrityError, SourceError
from drkit.fingerprint import compare_fingerprints
from drkit.units import format_bytes
from tests.fixtures.mongodb import MongoServer, running_mongodb
from tests.fixtures.site import ReadySite
from tests.integration.test_mongodb import ENGINE, dump, load

Archives = tuple[dict[str, Any], dict[str, bytes]]


@pytest.fixture
def small(mongodb: MongoServer, mongo_tools: Path) -> Iterator[str]:
    """A database with two collections, indexes, and a view whose pipeline has an operator that looks like a value."""
    mongodb.client.drop_database("small")
    database = mongodb.client["small"]
    database["orders"].insert_many([{"_id": number, "state": "paid", "n": number % 7} for number in range(40)])
    database["orders"].create_index([("state", 1), ("n", -1)], name="by state")
    database["orders"].create_index("n", name="few", partialFilterExpression={"n": {"$gt": 5}})
    database["people"].insert_many([{"_id": number, "name": f"name {number}"} for number in range(9)])
    database["people"].create_index("name", unique=True)
    pipeline = [{"$match": {"name": {"$regex": "^name [12]", "$options": "i"}}}]
    database.create_collection("some", viewOn="people", pipeline=pipeline)
    yield "small"
    for name in ("small", "other", "archive"):
        mongodb.client.drop_database(name)


@pytest.fixture
def dumped(mongodb: MongoServer, small: str, tmp_path: Path) -> Archives:
    return dump(mongodb.url, tmp_path, databases=(small,))


def differences(mongodb: MongoServer, details: dict[str, Any], options: Any) -> list[tuple[str, str]]:
    found = ENGINE.fingerprint(mongodb.url, options)["database-1"]
    recorded = details["parts"]["database-1"]["fingerprint"]
    return [(item.name, item.fact) for item in compare_fingerprints(recorded, found, ENGINE.expected)]


def test_indexes_and_views_are_built_after_the_documents_and_equal(
    mongodb: MongoServer, dumped: Archives, tmp_path: Path
) -> None:
    details, archives = dumped
    mongodb.client.drop_database("small")
    options = load(mongodb.url, details, archives, work_folder=tmp_path, scratch=True)
    assert differences(mongodb, details, options) == []
    assert len(list(mongodb.client["small"]["some"].find())) == 2


def test_a_database_comes_back_beside_itself_under_another_name(
    mongodb: MongoServer, dumped: Archives, tmp_path: Path
) -> None:
    details, archives = dumped
    renames = {"small": "other", "small.people": "archive.persons"}
    load(mongodb.url, details, archives, work_folder=tmp_path, renames=renames, exclude_tables=("*.some",))
    client = mongodb.client
    assert client["other"].list_collection_names() == ["orders"]
    assert client["other"]["orders"].count_documents({}) == 40
    assert set(client["other"]["orders"].index_information()) == {"_id_", "by state", "few"}
    assert client["archive"]["persons"].index_information()["name_1"]["unique"] is True
    # mongodump lists collections in any order, so either database may be found in the way first.
    with pytest.raises(SourceError, match=r"refused: database (other .*orders|archive .*persons)\)"):
        load(mongodb.url, details, archives, work_folder=tmp_path, renames=renames)
    assert client["small"]["orders"].count_documents({}) == 40, "the source is as it was"


def test_a_view_whose_base_got_another_name_is_said(mongodb: MongoServer, dumped: Archives, tmp_path: Path) -> None:
    details, archives = dumped
    mongodb.client.drop_database("small")
    options = {"renames": {"small.people": "small.persons"}, "work_folder": tmp_path}
    from drkit.engines import RestoreOptions

    chosen = RestoreOptions(details=details, parts=tuple(archives), **options)  # type: ignore[arg-type]
    with ENGINE.open_restore(mongodb.url, chosen) as session:
        session.load("database-1", iter(archives.values()))
        result = session.finish()
    assert result.warnings == ["view small.some is of small.people, which got another name"]
    assert {name: words.partition(" in ")[0] for name, words in result.built.items()} == {
        "index small.orders.by state": "built",
        "index small.orders.few": "built",
        "index small.persons.name_1": "built",
        "view small.some": "built",
    }


def test_an_index_that_cannot_be_built_is_named_and_the_documents_stay(
    mongodb: MongoServer, dumped: Archives, tmp_path: Path
) -> None:
    details, archives = dumped
    mongodb.client.drop_database("small")
    # SecantusDB has no text indexes: the same bytes with another key are an index that cannot be built.
    (data,) = archives.values()
    changed = data.replace(b'"key":{"state":{"$numberInt":"1"}', b'"key":{"state":"text"            ', 1)
    assert changed != data
    with pytest.raises(SourceError, match=r"1 of 4 .* could not be built: index small\.orders\.by state") as caught:
        load(mongodb.url, details, {"database-1": changed}, work_folder=tmp_path)
    assert len(caught.value.details) == 1
    assert mongodb.client["small"]["orders"].count_documents({}) == 40
    assert set(mongodb.client["small"]["orders"].index_information()) == {"_id_", "few"}
    assert set(mongodb.client["small"]["people"].index_information()) == {"_id_", "name_1"}


def test_documents_that_are_older_than_their_validator_come_back(
    mongodb: MongoServer, small: str, tmp_path: Path
) -> None:
    mongodb.client[small].command("collMod", "orders", validator={"$jsonSchema": {"required": ["customer"]}})
    details, archives = dump(mongodb.url, tmp_path, databases=(small,))
    mongodb.client.drop_database(small)
    options = load(mongodb.url, details, archives, work_folder=tmp_path)
    assert differences(mongodb, details, options) == []
    mongodb.client[small]["orders"].drop()
    assert ("small.orders", "presence") in differences(mongodb, details, options)


def test_a_capped_collection_comes_back_in_its_order_and_size(mongodb: MongoServer, small: str, tmp_path: Path) -> None:
    database = mongodb.client[small]
    database.create_collection("log", capped=True, size=1 << 20)
    # Enough for several batches, which several workers would shuffle.
    database["log"].insert_many([{"_id": number * 7919 % 1201, "n": number} for number in range(1200)])
    details, archives = dump(mongodb.url, tmp_path, databases=(small,))
    mongodb.client.drop_database(small)
    options = load(mongodb.url, details, archives, work_folder=tmp_path, jobs=4)
    assert differences(mongodb, details, options) == []
    assert database["log"].options()["size"] == 1 << 20

    rows = list(database["log"].find())
    database["log"].drop()
    database.create_collection("log", capped=True, size=1 << 20)
    database["log"].insert_many(reversed(rows))
    assert differences(mongodb, details, options) == [("small.log", "order")]


def test_an_empty_timestamp_stays_empty(mongodb: MongoServer, small: str, tmp_path: Path) -> None:
    # A server puts its own time in the place of an empty timestamp that is inserted.
    orders = mongodb.client[small]["orders"]
    orders.insert_one({"_id": "now", "at": Timestamp(0, 0)})
    orders.update_one({"_id": 1}, {"$set": {"at": Timestamp(0, 0), "deep": {"at": Timestamp(0, 0)}}})
    details, archives = dump(mongodb.url, tmp_path, databases=(small,))
    mongodb.client.drop_database(small)
    options = load(mongodb.url, details, archives, work_folder=tmp_path)
    assert differences(mongodb, details, options) == []


def test_a_lie_of_mongorestore_turns_red(
    mongodb: MongoServer, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2000 of 2000 documents refused, exit status 0: each is there already, under the same ``_id``."""
    mongodb.client[small]["orders"].drop()
    mongodb.client[small]["orders"].insert_many([{"_id": number, "n": 1} for number in range(2000)])
    details, archives = dump(mongodb.url, tmp_path, databases=(small,))
    # Somebody writes into the target after it was found empty.
    mongodb.client.drop_database(small)
    from drkit.engines import RestoreOptions

    options = RestoreOptions(details=details, parts=("database-1",), work_folder=tmp_path)
    with ENGINE.open_restore(mongodb.url, options) as session:
        mongodb.client[small]["orders"].insert_many([{"_id": number, "n": 2} for number in range(2000)])
        with pytest.raises(SourceError, match="could not restore 2,000 documents of 2,009, and still exited with 0"):
            session.load("database-1", iter(archives.values()))


def test_a_server_that_dies_does_not_hide_what_ended_the_load(dumped: Archives, tmp_path: Path) -> None:
    from drkit.engines import RestoreOptions

    details, archives = dumped
    with ExitStack() as stack:
        server = stack.enter_context(running_mongodb())

        def damaged() -> Iterator[bytes]:
            yield archives["database-1"][:1000]
            stack.close()
            raise IntegrityError("the archive is damaged")

        options = RestoreOptions(details=details, parts=("database-1",), work_folder=tmp_path)
        with (
            ENGINE.open_restore(server.url, options) as session,
            pytest.raises(IntegrityError, match="the archive is damaged") as failed,
        ):
            session.load("database-1", damaged())
    where = f"127.0.0.1:{server.port}"
    assert failed.value.details[-1] == (
        f"small at {where} may be left with a part of the backup, because it could not be dropped again: cannot reach"
        f" the MongoDB server {where}"
    )


def test_damaged_archives_leave_the_target_untouched(
    ready_site: ReadySite, mongodb: MongoServer, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sealed and signed may still not be what was recorded; a person who wrote the bucket could not tell."""
    from drkit.engines import mongodb_dump

    url = ready_site.write_secret("source-url", mongodb.url.reveal())
    path = ready_site.write_policy("small", url)
    path.write_text(path.read_text().replace("engine: postgres,", f"engine: mongodb, databases: [{small}],"))
    honest = mongodb_dump.fingerprint_of

    def lying(summary: Any) -> Any:
        found = json.loads(json.dumps(honest(summary)))
        found["collection"]["small.orders"]["digest"] = "0" * 64
        return found

    monkeypatch.setattr(mongodb_dump, "fingerprint_of", lying)
    assert ready_site.call("backup", "small").returncode == 0
    mongodb.client.drop_database(small)
    done = ready_site.call("verify")
    assert (done.returncode, "collection small.orders: digest differs" in done.stdout) == (8, True), done.stdout
    refused = ready_site.call("restore", "small", "--to", url)
    assert refused.returncode == 8, refused.stderr
    assert "collection small.orders: digest differs" in refused.stderr
    assert small not in mongodb.client.list_database_names()


def test_a_plan_shows_collections_sizes_and_indexes_and_the_result_what_was_built(
    ready_site: ReadySite, mongodb: MongoServer, small: str
) -> None:
    url = ready_site.write_secret("source-url", mongodb.url.reveal())
    path = ready_site.write_policy("small", url)
    path.write_text(path.read_text().replace("engine: postgres,", f"engine: mongodb, databases: [{small}],"))
    assert ready_site.call("backup", "small").returncode == 0
    plan = ready_site.call("restore", "small", "--plan", "--rename", "small=other", "--exclude-table", "small.some")
    assert plan.returncode == 0, plan.stderr
    size = sum(len(bson.encode(document)) for document in mongodb.client[small]["orders"].find())
    assert f"small.orders as other.orders  40 documents, {format_bytes(size)}, indexes by state, few" in plan.stdout
    assert "some" not in plan.stdout
    done = ready_site.call("--json", "restore", "small", "--to", url, "--rename", "small=other")
    document = json.loads(done.stdout)
    assert document["loaded"] == {"database-1": "other"}
    # In which order mongodump has read the collections is its own affair.
    *indexes, view = document["built"]
    assert sorted(indexes) == ["index other.orders.by state", "index other.orders.few", "index other.people.name_1"]
    assert view == "view other.some"
    for words, status, said in [
        (("--table", "small.order"), 5, "the backup has no collection small.order"),
        (("--rename", "small"), 2, "write --rename like OLD=NEW"),
    ]:
        refused = ready_site.call("restore", "small", "--plan", *words)
        assert (refused.returncode, said in refused.stderr) == (status, True), refused.stderr


def test_an_archive_with_one_id_twice_is_found_before_the_target_is_touched(
    mongodb: MongoServer, dumped: Archives
) -> None:
    from drkit.engines.mongodb_proof import verify_part
    from tests.integration.test_mongodb import _with_repeated_documents

    details, archives = dumped
    (data,) = archives.values()
    assert verify_part(details["parts"]["database-1"], iter([data])) == ()
    with pytest.raises(IntegrityError, match=r"collection small\.\w+ has an _id twice"):
        verify_part(None, iter([_with_repeated_documents(data)]))
    without = bson.encode({"_id": 0, "state": "paid", "n": 0})
    assert without in data
    with pytest.raises(IntegrityError, match="has a document without _id"):
        verify_part(None, iter([data.replace(without, without.replace(b"_id", b"_ix"))]))


def test_a_server_that_was_dumped_whole_is_drilled_and_one_of_its_databases_restored(
    ready_site: ReadySite, mongodb_programs: None, mongo_tools: Path
) -> None:
    with running_mongodb("--storage-path=:memory:") as server:
        for name in ("shop", "ledger"):
            server.client[name]["entries"].insert_many([{"_id": number, "of": name} for number in range(20)])
            server.client[name]["entries"].create_index("of", name="of")
        url = ready_site.write_secret("source-url", server.url.reveal())
        path = ready_site.write_policy("all", url, more="drills: [{name: rehearsal, level: same-data}]\n")
        path.write_text(path.read_text().replace("engine: postgres,", "engine: mongodb,"))
        done = ready_site.call("backup", "all")
        assert done.returncode == 0, done.stderr
        drilled = ready_site.call("drill", "all")
        assert drilled.returncode == 0, drilled.stderr
        assert "2 of 2 collections equal in count and digest" in drilled.stderr + drilled.stdout
        wrong = ready_site.call("restore", "all", "--plan", "--database", "shopp")
        assert (wrong.returncode, "it has ledger, shop" in wrong.stderr) == (3, True), wrong.stderr
        words = ("--database", "shop", "--rename", "shop=again", "--to", url)
        done = ready_site.call("restore", "all", *words)
        assert done.returncode == 0, done.stderr
        assert server.client["again"]["entries"].count_documents({"of": "shop"}) == 20
        assert set(server.client["again"]["entries"].index_information()) == {"_id_", "of"}
        refused = ready_site.call("restore", "all", "--to", url)
        assert (refused.returncode, "is not empty" in refused.stderr) == (5, True), refused.stderr
