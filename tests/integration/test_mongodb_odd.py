"""Collections as other people have them: odd names, every type of `_id`, and whatever a collection can be made with."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, Int64, Regex
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from drkit.engines import RestoreOptions
from drkit.errors import SourceError
from drkit.fingerprint import compare_fingerprints
from tests.fixtures.mongodb import MongoServer
from tests.integration.test_mongodb_native import ENGINE, dump

DATABASE = "odd"
NAMES = (
    *("a.b", "ünï", "東京", "x" * 120, "é" * 60, "x" * 235, "system.js", "systemx", "a b", "a/b", "a\\b", "a*b", "a?b"),
    *("a%b", "%24", "a\nb", 'a"b', "a'b", "a{b}", "[x]", "0", "-", "admin", "oplog", "drkit_restore", "a:b", "A", "a"),
)


def _text(value: bytes) -> bytes:
    return struct.pack("<i", len(value) + 1) + value + b"\0"


def _document(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


_ONE = b"\x10a\0\1\0\0\0"
IDS = {
    **{name: b"\x01" + struct.pack("<d", value) for name, value in (("1.5", 1.5), ("-inf", float("-inf")))},
    "nan with a payload": b"\x01" + bytes.fromhex("010000000000f87f"),
    "text with a zero": b"\x02" + _text(b"a\0b"),
    "document": b"\x03" + _document(_ONE),
    "document with a dot": b"\x03" + _document(b"\x10a.b\0\1\0\0\0"),
    "binary of the old kind": b"\x05" + struct.pack("<i", 6) + b"\2" + struct.pack("<i", 2) + b"ab",
    "undefined": b"\x06",
    "regex": b"\x0ba\0i\0",
    "symbol": b"\x0e" + _text(b"s"),
    "code with scope": b"\x0f" + struct.pack("<i", 4 + 6 + 12) + _text(b"f") + _document(_ONE),
    "empty timestamp": b"\x11" + bytes(8),
    "int64": b"\x12" + struct.pack("<q", 8),
    "decimal": b"\x13" + Decimal128("1.10").bid,
    "least": b"\xff",
    "greatest": b"\x7f",
}
INDEXES: tuple[dict[str, Any], ...] = (
    {"key": {"loc": "2dsphere"}, "name": "geo"},
    {"key": {"xy": "2d"}, "name": "flat", "bits": 20},
    {"key": {"$**": 1}, "name": "$**_1", "wildcardProjection": {"a": 1}},
    {"key": {"a": 1}, "name": "some", "partialFilterExpression": {"a": {"$gt": Int64(5)}, "b": {"$exists": True}}},
    {"key": {"d": 1}, "name": "expires", "expireAfterSeconds": 1e9},
    {"key": {"q": 1}, "name": "hidden", "hidden": True},
    {"key": {"u": Int64(-1)}, "name": "n" * 127, "unique": True, "sparse": True},
    {"key": {"c": 1.0}, "name": "ünï $ name", "collation": {"locale": "fr"}},
    {"key": {"y": 1}, "name": "foo.bar"},
    {"key": {"z": 1}, "name": "foo$bar"},
)


def fill(database: Database[dict[str, Any]]) -> None:
    for name in NAMES:
        database.command("insert", name, documents=[{"_id": name}])
    documents = [RawBSONDocument(_document(value[:1] + b"_id\0" + value[1:])) for value in IDS.values()]
    assert database.command("insert", "ids", documents=documents)["n"] == len(IDS)
    points = [{"_id": i, "a": i, "b": str(i), "loc": {"type": "Point", "coordinates": [i, i]}} for i in range(9)]
    database["base"].insert_many([{**point, "xy": [1, 2], "u": point["_id"]} for point in points])
    database.command("createIndexes", "base", indexes=list(INDEXES))
    # By their full names this one and two of those above would be the same.
    database.command("createIndexes", "base.foo", indexes=[{"key": {"r": 1}, "name": "bar"}])
    checked = {"a": {"$regex": "^x", "$options": "i"}, "b": {"$in": [Regex("q"), Decimal128("1.0")]}}
    for name, options in {
        "empty and checked": {"validator": checked, "validationLevel": "moderate"},
        "ring": {"capped": True, "size": 8192, "max": 5},
        "german": {"collation": {"locale": "de", "strength": 2}},
        "clustered": {
            "clusteredIndex": {"key": {"_id": 1}, "unique": True, "name": "mine"},
            "expireAfterSeconds": 3600,
        },
        "images": {"changeStreamPreAndPostImages": {"enabled": True}},
        "view": {"viewOn": "base", "pipeline": [{"$match": {"b": 1, "a": {"$gt": 1}}}, {"$sort": {"z": 1, "a": -1}}]},
        "view of a view": {"viewOn": "view", "pipeline": [], "collation": {"locale": "fr"}},
        "view of nothing": {"viewOn": "gone", "pipeline": []},
        "view.of [x]": {"viewOn": "[x]", "pipeline": []},
    }.items():
        database.command({"create": name, **options})
    for name in ("ring", "clustered"):
        database[name].insert_many([{"_id": number} for number in (5, 3, 9, 1)])


@pytest.fixture(scope="module")
def odd(mongodb: MongoServer) -> Iterator[MongoServer]:
    mongodb.client.drop_database(DATABASE)
    fill(mongodb.client[DATABASE])
    yield mongodb
    mongodb.client.drop_database(DATABASE)


def test_odd_collections_come_back_equal_whichever_way_they_went(
    odd: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    dumps = {via: dump(odd.url, tmp_path, via=via, databases=(DATABASE,)) for via in ("tools", "native")}
    recorded = {via: details["parts"]["database-1"]["fingerprint"] for via, (details, _, _) in dumps.items()}
    assert recorded["tools"] == recorded["native"]
    assert {f"{DATABASE}.{name}" for name in (*NAMES, "ids", "ring", "empty and checked")} <= {
        *recorded["tools"]["collection"]
    }
    assert f"{DATABASE}.base$foo$bar" in recorded["tools"]["index"]
    for dumped, restored in (("tools", "native"), ("native", "tools")):
        details, archives, _ = dumps[dumped]
        options = RestoreOptions(
            details=details, parts=("database-1",), work_folder=tmp_path, via=restored, scratch=True
        )  # type: ignore[arg-type]
        odd.client.drop_database(DATABASE)
        with ENGINE.open_restore(odd.url, options) as session:
            session.load("database-1", iter([archives["database-1"]]))
            session.finish()
        found = ENGINE.fingerprint(odd.url, options)["database-1"]
        assert compare_fingerprints(recorded[dumped], found, ENGINE.expected) == []


def test_what_no_way_dumps_is_named(mongodb: MongoServer, mongo_tools: Path, tmp_path: Path) -> None:
    stray = mongodb.client["stray"]
    stray.command("insert", "system.buckets.gone", documents=[{"_id": 1}])
    for via in ("tools", "native"):
        warnings = dump(mongodb.url, tmp_path, via=via, databases=("stray",))[2]
        assert [words for words in warnings if "stray.system.buckets.gone" in words], via
    stray.command("insert", "log.", documents=[{"_id": 1}])
    details, _, _ = dump(mongodb.url, tmp_path, via="tools", databases=("stray",))
    assert details["parts"]["database-1"]["fingerprint"]["collection"]["stray.log."]["rows"] == 1
    with pytest.raises(SourceError, match=r"collection stray\.log\. cannot be read without MongoDB's tools") as caught:
        dump(mongodb.url, tmp_path, via="native", databases=("stray",))
    assert "via: tools" in caught.value.hints[0]
    mongodb.client.drop_database("stray")
