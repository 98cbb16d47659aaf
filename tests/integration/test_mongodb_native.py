"""Dumps and restores of MongoDB without MongoDB's tools, and across: genuine tools on one side, drkit on the other."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.raw_bson import RawBSONDocument

from drkit.bson_elements import split_documents
from drkit.credentials import Secret
from drkit.engines import BackupOptions, RestoreOptions
from drkit.engines import mongodb_load as loading
from drkit.engines import mongodb_snapshot as snapshots
from drkit.engines.mongodb_client import connect, parse_url
from drkit.engines.mongodb_dump import MongodbDump
from drkit.engines.mongodb_raw import Estimate, estimate, read_collections
from drkit.engines.mongodb_reading import Reading, open_batches
from drkit.errors import SourceError
from drkit.fingerprint import compare_fingerprints
from tests.fixtures.mongodb import SECANTUS_FOLDER, MongoServer
from tests.fixtures.site import ReadySite

ENGINE = MongodbDump()
WAYS = ("tools", "native")


@pytest.fixture
def shop(mongodb: MongoServer, mongo_tools: Path) -> Iterator[str]:
    """A database with the smaller collections of Chinook, an index, a validator and a view."""
    yield mongodb.fill("shop", most_documents=300)
    mongodb.client.drop_database("shop")


def dump(url: Secret, folder: Path, *, via: Any, **options: Any) -> tuple[dict[str, Any], dict[str, bytes], list[str]]:
    """Take a backup with the engine alone; return its details, the archives, and what it warned of."""
    with ENGINE.open_backup(url, BackupOptions(work_folder=folder, via=via, **options)) as session:
        archives = {}
        for part in session.preflight.parts:
            with session.open_part(part) as chunks:
                archives[part.name] = b"".join(chunks)
        return session.details(), archives, [*session.preflight.warnings, *session.warnings]


def fingerprint(details: dict[str, Any]) -> Any:
    return details["parts"]["database-1"]["fingerprint"]


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("reader-", "insert"))]


def test_both_ways_of_dumping_find_the_same(mongodb: MongoServer, shop: str, tmp_path: Path) -> None:
    mongodb.client[shop]["Genre"].create_index(
        [("Name", 1)], partialFilterExpression={"GenreId": {"$gt": 1e6}, "Name": {"$type": "string"}}, name="some"
    )
    mongodb.client[shop].create_collection("Ring", capped=True, size=1e6)
    mongodb.client[shop].create_collection(
        "Checked", validator={"name": {"$regex": "^a", "$options": "i"}, "n": {"$lt": 2.5}}
    )
    by_tools, by_drkit = (dump(mongodb.url, tmp_path, via=via, databases=(shop,)) for via in WAYS)
    assert fingerprint(by_drkit[0]) == fingerprint(by_tools[0])
    assert by_drkit[0]["parts"]["database-1"]["uuids"] == by_tools[0]["parts"]["database-1"]["uuids"]
    assert {*by_drkit[0]["server"]} == {*by_tools[0]["server"]}
    assert reader_threads() == []


def test_what_a_server_only_says_of_snapshots_is_found_out_and_said(
    mongodb: MongoServer, shop: str, tmp_path: Path
) -> None:
    details, _, warnings = dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    assert details["server"]["one_snapshot"] is False
    assert "answers for one of 1970, so it does not isolate" in warnings[0]


def test_a_snapshot_in_which_something_moves_is_none(
    mongodb: MongoServer, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_refuses", lambda *_: True)
    options = BackupOptions(databases=(shop,), work_folder=tmp_path, via="native")
    with ENGINE.open_backup(mongodb.url, options) as session:
        assert "in one snapshot" in session.preflight.summary
        (part,) = session.preflight.parts
        with session.open_part(part) as chunks:
            mongodb.client[shop]["Genre"].insert_many([{"_id": number} for number in range(100, 104)])
            mongodb.client[shop]["Artist"].update_one({"_id": 274}, {"$set": {"Name": "moved"}})
            assert b"".join(chunks)
        assert session.details()["server"]["one_snapshot"] is False
        (warning,) = session.warnings
    assert "does not isolate" in warning
    assert "shop.Genre (25 documents, then 29)" in warning
    assert "shop.Artist (275 documents, then 275)" in warning


def test_a_snapshot_in_which_nothing_moves_is_one_but_for_capped_collections(
    mongodb: MongoServer, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_refuses", lambda *_: True)
    details, _, warnings = dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    assert (details["server"]["one_snapshot"], warnings) == (True, [])
    with ENGINE.open_backup(mongodb.url, BackupOptions(databases=(shop,), work_folder=tmp_path, via="native")) as one:
        with one.open_part(one.preflight.parts[0]) as chunks:
            assert b"".join(chunks)
        assert one.oplog_range is not None
        assert one.oplog_range.start_ts == one.oplog_range.stop_ts
    mongodb.client[shop].create_collection("Ring", capped=True, size=100000)
    details, _, warnings = dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    assert details["server"]["one_snapshot"] is False
    assert warnings == ["capped collections are not in the snapshot: shop.Ring"]


@pytest.mark.parametrize("parallel", [1, 3])
def test_ranges_of_ids_of_many_types_make_up_the_whole(mongodb: MongoServer, tmp_path: Path, parallel: int) -> None:
    documents: list[dict[str, Any]] = [{"_id": number, "text": "x" * 100} for number in range(400)]
    documents += [{"_id": f"name {number}"} for number in range(300)] + [{"_id": ObjectId()} for _ in range(300)]
    documents += [{"_id": {"a": number}} for number in range(100)] + [{"_id": None}, {"_id": 1.5}, {"_id": MaxKey()}]
    mongodb.client["many"]["all"].insert_many(documents)
    with connect(parse_url(mongodb.url)) as client:
        collections = read_collections(client, "many")
        assert estimate(client, collections) == {("many", "all"): Estimate(len(documents))}
        told = {("many", "all"): Estimate(len(documents), sum(len(bson.encode(document)) for document in documents))}
        reading = Reading(parallel, split_bytes=10_000, estimates=told)
        with open_batches(client, collections, reading) as batches:
            read = [batch for batch in batches]  # noqa: C416 - it is a stream
    found = [document for _, data in read if data for document in split_documents(data)]
    assert sorted(found) == sorted(bson.encode(document) for document in documents)
    assert [data for _, data in read].count(None) == 1
    assert read[-1] == (("many", "all"), None)
    assert reader_threads() == []
    mongodb.client.drop_database("many")


@pytest.mark.parametrize(("count", "size_bytes", "most_batches"), [(5_000, 60, 2), (600, 30_000, 10)])
def test_batches_weigh_two_mebibytes_after_the_first_although_the_server_tells_no_sizes(
    mongodb: MongoServer, count: int, size_bytes: int, most_batches: int
) -> None:
    mongodb.client["weighed"]["all"].insert_many({"_id": number, "x": b"x" * size_bytes} for number in range(count))
    with connect(parse_url(mongodb.url)) as client:
        collections = read_collections(client, "weighed")
        estimates = estimate(client, collections)
        assert estimates == {("weighed", "all"): Estimate(count)}
        with open_batches(client, collections, Reading(1, estimates=estimates)) as batches:
            read = [data for _, data in batches if data]
    assert len(read) <= most_batches
    assert max(map(len, read[1:])) <= 2 << 20
    assert sum(1 for data in read for _ in split_documents(data)) == count
    mongodb.client.drop_database("weighed")


@pytest.fixture
def fail_command(mongodb: MongoServer) -> Iterator[Callable[..., None]]:
    """Return a function that makes the server fail commands of one name from now on."""

    def arm(name: str, **how: Any) -> None:
        data = {"failCommands": [name], **how}
        mongodb.client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 100}, "data": data})

    yield arm
    mongodb.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def test_a_cursor_that_breaks_is_no_backup(
    mongodb: MongoServer, tmp_path: Path, fail_command: Callable[..., None]
) -> None:
    mongodb.client["long"]["all"].insert_many([{"_id": number, "text": "x" * 2000} for number in range(4000)])
    fail_command("getMore", closeConnection=True)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        dump(mongodb.url, tmp_path, via="native", databases=("long",))
    assert reader_threads() == []
    mongodb.client.drop_database("long")


def test_whoever_stops_early_leaves_no_reader_behind(mongodb: MongoServer, shop: str, tmp_path: Path) -> None:
    options = BackupOptions(databases=(shop,), work_folder=tmp_path, via="native")
    with ENGINE.open_backup(mongodb.url, options) as session:
        with session.open_part(session.preflight.parts[0]) as chunks:
            assert next(chunks)
        assert reader_threads() == []
        assert session.details()["parts"] == {}


def test_a_collection_that_is_emptied_while_it_is_read_is_missed(
    mongodb: MongoServer, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drkit.engines import mongodb_native

    # A reader that loses every second document stands for a server or a driver that does.
    def losing(*arguments: Any) -> Any:
        @contextlib.contextmanager
        def lend() -> Iterator[Any]:
            with open_batches(*arguments) as batches:
                yield ((name, data and b"".join([*split_documents(data)][::2])) for name, data in batches)

        return lend()

    monkeypatch.setattr(mongodb_native, "open_batches", losing)
    with pytest.raises(SourceError, match=r"drkit wrote \d+ documents"):
        dump(mongodb.url, tmp_path, via="native", databases=(shop,))


def test_what_was_read_is_counted_again_only_where_the_server_said_another_number(
    mongodb: MongoServer, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drkit.engines import mongodb_native

    counted: list[list[str]] = []
    real_counts, real_estimate = mongodb_native.read_counts, mongodb_native.estimate

    def counting(client: Any, database: str, names: Any) -> Any:
        counted.append([*names])
        return real_counts(client, database, counted[-1])

    def mistaken(*arguments: Any) -> Any:
        return {**real_estimate(*arguments), (shop, "Genre"): Estimate(24)}

    monkeypatch.setattr(mongodb_native, "read_counts", counting)
    dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    monkeypatch.setattr(mongodb_native, "estimate", mistaken)
    dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    assert counted == [[], ["Genre"]]


def test_a_collection_that_is_renamed_before_it_is_read_is_no_empty_one(
    mongodb: MongoServer, shop: str, tmp_path: Path
) -> None:
    options = BackupOptions(databases=(shop,), work_folder=tmp_path, via="native")
    with ENGINE.open_backup(mongodb.url, options) as session:
        renamed = pytest.raises(SourceError, match=r"shop\.Genre was renamed to shop\.Genres while it was dumped")
        with renamed, session.open_part(session.preflight.parts[0]) as chunks:
            mongodb.client[shop]["Genre"].rename("Genres")
            list(chunks)
        assert session.details()["parts"] == {}


def test_a_time_series_is_refused_by_name(mongodb: MongoServer, tmp_path: Path) -> None:
    database = mongodb.client["sensors"]
    database.create_collection("heat", timeseries={"timeField": "at", "metaField": "room"})
    with pytest.raises(SourceError, match=r"sensors\.heat cannot be dumped without MongoDB's tools") as caught:
        dump(mongodb.url, tmp_path, via="native", databases=("sensors",))
    assert any("exclude_tables" in hint for hint in caught.value.hints)
    mongodb.client.drop_database("sensors")


def raw(*items: bytes) -> RawBSONDocument:
    """Return a document of elements that are written out, beside an ``_id``."""
    body = b"".join(items)
    return RawBSONDocument(struct.pack("<i", len(body) + 5) + body + b"\0")


def faithful_documents() -> list[Any]:
    """Return a document of every kind that some tool somewhere has changed on its way."""
    deep: Any = 1
    for _ in range(90):
        deep = {"d": deep}
    values: list[Any] = [
        Decimal128("NaN"), Decimal128("1.500"), Decimal128("-0"), 1, Int64(1), 1.0, -0.0, float("inf"), float("-inf"),
        Timestamp(5, 1), ObjectId("0" * 24), Binary(b"x", 0), Binary(b"x", 2), Binary(b"y" * 16, 3),
        Binary(b"y" * 16, 4),
        Binary(b"z", 6), Binary(b"z", 128), Code("f()", {"a": 1}), MinKey(), MaxKey(), Regex("a", "im"), {"": 1},
        {"a.b": 1, "$c": 2}, "nul\0inside", {"b": 1, "a": 2}, [[], {}], None, True, deep, "é" * 50,
    ]  # fmt: skip
    documents: list[Any] = [{"_id": number, "value": value} for number, value in enumerate(values)]
    odd = [
        b"\x06u\0", b"\x0es\0\x02\0\0\0a\0", b"\x0cp\0\x02\0\0\0c\0" + bytes(12), b"\x01n\0\x01\0\0\0\0\0\xf8\x7f",
        b"\x10k\0\1\0\0\0\x10k\0\2\0\0\0",
    ]  # fmt: skip
    return documents + [raw(b"\x10_id\0" + struct.pack("<i", 100 + number), item) for number, item in enumerate(odd)]


@pytest.fixture
def faithful(mongodb: MongoServer, mongo_tools: Path) -> Iterator[str]:
    """A database with a document of every kind, an empty timestamp, a capped collection and functions."""
    database = mongodb.client["kinds"]
    database.command({"insert": "all", "documents": faithful_documents()})
    stamp = {"_id": 1, "at": Timestamp(0, 0), "in": {"at": Timestamp(0, 0)}}
    database.command({"insert": "stamps", "documents": [stamp], "bypassEmptyTsReplacement": True})
    database.create_collection("ring", capped=True, size=100000)
    database["ring"].insert_many([{"_id": -number} for number in range(50)])
    database["system.js"].insert_one({"_id": "double", "value": Code("function(x) { return 2 * x; }")})
    yield "kinds"
    mongodb.client.drop_database("kinds")


def test_every_kind_of_document_is_dumped_as_mongodump_does_it(
    mongodb: MongoServer, faithful: str, mongo_tools: Path, tmp_path: Path
) -> None:
    (by_tools, tool_archives, _), (by_drkit, archives, _) = (
        dump(mongodb.url, tmp_path, via=via, databases=(faithful,)) for via in WAYS
    )
    assert fingerprint(by_drkit) == fingerprint(by_tools)
    documents = tmp_path / "all.bson"
    documents.write_bytes(b"".join(map(_raw, faithful_documents())))
    done = subprocess.run([mongo_tools / "bsondump", "--objcheck", documents], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    # The server itself turns types that no driver knows any more into others.
    kept = [document for document in map(_raw, faithful_documents()) if document in tool_archives["database-1"]]
    assert len(kept) >= 30
    assert all(document in archives["database-1"] for document in kept)


def _raw(document: Any) -> bytes:
    return document.raw if isinstance(document, RawBSONDocument) else bson.encode(document)


def load(url: Secret, details: dict[str, Any], archives: dict[str, bytes], **options: Any) -> RestoreOptions:
    """Load archives with the engine alone; return the options."""
    chosen = RestoreOptions(details=details, parts=tuple(archives), **options)
    with ENGINE.open_restore(url, chosen) as session:
        for part, data in archives.items():
            session.load(part, (data[start : start + 1000] for start in range(0, len(data), 1000)))
        session.finish()
    return chosen


@pytest.mark.parametrize(("dumped", "loaded"), [("native", "tools"), ("tools", "native"), ("native", "native")])
@pytest.mark.parametrize("database", ["shop", "faithful"])
def test_each_side_restores_what_the_other_wrote(
    mongodb: MongoServer, tmp_path: Path, request: pytest.FixtureRequest, database: str, dumped: str, loaded: str
) -> None:
    name = request.getfixturevalue(database)
    details, archives, _ = dump(mongodb.url, tmp_path, via=dumped, databases=(name,))
    mongodb.client.drop_database(name)
    options = load(mongodb.url, details, archives, work_folder=tmp_path, via=loaded)
    other = "tools" if loaded == "native" else "native"
    for eyes in (loaded, other):
        found = ENGINE.fingerprint(mongodb.url, RestoreOptions(**{**vars(options), "via": eyes}))["database-1"]
        assert compare_fingerprints(fingerprint(details), found, ENGINE.expected) == []
    assert list(tmp_path.iterdir()) == []


def test_an_empty_timestamp_is_put_right_where_the_server_cannot_be_told(
    mongodb: MongoServer, faithful: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "keeps_empty_timestamps", lambda _: False)
    details, archives, _ = dump(mongodb.url, tmp_path, via="native", databases=(faithful,))
    mongodb.client.drop_database(faithful)
    options = load(mongodb.url, details, archives, via="native")
    assert ENGINE.fingerprint(mongodb.url, options)["database-1"] == fingerprint(details)


def test_documents_that_the_target_refuses_are_counted_and_fail(
    mongodb: MongoServer, shop: str, tmp_path: Path
) -> None:
    mongodb.client[shop]["orders"].insert_many([{"_id": number, "n": 1} for number in range(2000)])
    details, archives, _ = dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    mongodb.client.drop_database(shop)
    options = RestoreOptions(details=details, parts=("database-1",), tables=("shop.orders",), via="native")
    with ENGINE.open_restore(mongodb.url, options) as session:
        data = archives["database-1"]
        documents_begin = data.index(b"\xff\xff\xff\xff") + 4

        def meddled() -> Iterator[bytes]:
            yield data[:documents_begin]
            # Somebody makes a rule for the collection, which is there by now, that one document at most can obey.
            mongodb.client[shop]["orders"].create_index("n", unique=True)
            yield data[documents_begin:]

        with pytest.raises(SourceError, match=r"the server refused 1,999 documents of 2,000") as caught:
            session.load("database-1", meddled())
    assert "shop.orders: " in caught.value.details[0]
    assert shop not in mongodb.client.list_database_names()


def test_a_server_that_fails_while_it_is_loaded_keeps_nothing(
    mongodb: MongoServer, shop: str, tmp_path: Path, fail_command: Callable[..., None]
) -> None:
    details, archives, _ = dump(mongodb.url, tmp_path, via="native", databases=(shop,))
    mongodb.client.drop_database(shop)
    fail_command("insert", errorCode=96)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        load(mongodb.url, details, archives, via="native")
    assert shop not in mongodb.client.list_database_names()
    assert reader_threads() == []


def test_without_the_tools_a_backup_is_drilled_verified_and_restored(
    ready_site: ReadySite, mongodb: MongoServer, shop: str
) -> None:
    url = ready_site.write_secret("source-url", mongodb.url.reveal())
    path = ready_site.write_policy("shop", url, more="drills: [{name: rehearsal}]\n")
    path.write_text(path.read_text().replace("engine: postgres,", f"engine: mongodb, databases: [{shop}],"))
    bare = {"DRKIT_MONGO_BIN": str(SECANTUS_FOLDER)}
    done = ready_site.call("backup", "shop", env=bare)
    assert done.returncode == 0, done.stderr
    assert "read by drkit itself" in done.stderr
    assert "the server gives no snapshot" in done.stderr
    assert ready_site.call("verify", env=bare).returncode == 0
    drilled = ready_site.call("drill", "shop", env=bare)
    assert drilled.returncode == 0, drilled.stdout + drilled.stderr
    assert re.search(r"(\d+) of \1 collections equal in count and digest", drilled.stderr)
    mongodb.client.drop_database(shop)
    restored = ready_site.call("restore", "shop", "--to", url, env=bare)
    assert restored.returncode == 0, restored.stderr
    assert mongodb.client[shop]["Artist"].count_documents({}) == 275
