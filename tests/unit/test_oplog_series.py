"""Time series in a replayed oplog. Entries are made by hand after the server's sources; no real server wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import bson
import pytest
from bson import Binary, ObjectId

from drkit.engines.mongodb_replay import require_series
from drkit.errors import RecoveryGap, SourceError
from drkit.oplog_catalog import OplogCatalog
from drkit.oplog_entries import Command, Operation, read_entry, read_operations
from drkit.oplog_series import as_of_series, buckets_name, series_name
from tests.unit.oplog_entries import command, delete, insert, replace, update

NAME, BUCKETS = "shop.heat", "shop.system.buckets.heat"
FIRST = ObjectId("6921a2c00000000000000001")
SERIES = {"timeField": "at", "metaField": "place", "granularity": "seconds", "bucketMaxSpanSeconds": 3600}
VIEW = {"_id": NAME, "viewOn": "system.buckets.heat", "pipeline": [{"$_internalUnpackBucket": {"timeField": "at"}}]}


def bucket(*values: float) -> dict[str, Any]:
    """A bucket that is not compressed (version 1): control, and columns by field and place."""
    at = [datetime(2026, 11, 22, 12, 0, second, tzinfo=UTC) for second, _ in enumerate(values)]
    low, high = {"at": at[0], "v": min(values)}, {"at": at[-1], "v": max(values)}
    data = {"at": {str(i): at_ for i, at_ in enumerate(at)}, "v": {str(i): value for i, value in enumerate(values)}}
    return {"_id": FIRST, "control": {"version": 1, "min": low, "max": high}, "meta": "attic", "data": data}


def made() -> list[bytes]:
    """The entries that a series begins with."""
    options = {"validator": {"$jsonSchema": {}}, "clusteredIndex": True, "timeseries": SERIES}
    return [
        command(1, "shop", {"create": "system.buckets.heat", **options}),
        insert(2, "shop.system.views", VIEW),
    ]


def grown() -> list[bytes]:
    """The entries of a bucket that grows by one measurement, is closed and compressed, and of one that is deleted."""
    closed = {**bucket(1.5, 2.5), "control": {**bucket(1.5, 2.5)["control"], "version": 2, "count": 2}}
    closed["data"] = {"at": Binary(b"\x09compressed", 7), "v": Binary(b"\x01compressed", 7)}
    second = datetime(2026, 11, 22, 12, 0, 1, tzinfo=UTC)
    control = {"smax": {"u": {"at": second, "v": 2.5}}}
    return [
        insert(3, BUCKETS, bucket(1.5)),
        update(
            4, BUCKETS, FIRST, {"scontrol": control, "sdata": {"sat": {"i": {"1": second}}, "sv": {"i": {"1": 2.5}}}}
        ),
        replace(5, BUCKETS, closed),
        insert(6, BUCKETS, {**bucket(9.0), "_id": ObjectId()}),
    ]


def plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(body))


def replayed(entries: list[bytes], catalog: OplogCatalog) -> list[Operation]:
    """Return what is to be done to the data, with everything folded into the catalog."""
    done: list[Operation] = []
    for raw in entries:
        for operation in read_operations(read_entry(raw)):
            found = as_of_series(operation, catalog)
            if isinstance(found, Command):
                done += catalog.fold(found)
            elif found is not None:
                done.append(found)
    return done


def test_a_series_is_made_as_its_owner_made_it_and_its_buckets_stay_buckets() -> None:
    catalog = OplogCatalog()
    create, *writes = replayed([*made(), *grown()], catalog)
    assert isinstance(create, Command)
    assert (create.namespace, plain(create.body)) == (NAME, {"create": "heat", "timeseries": SERIES})
    assert {write.namespace for write in writes} == {BUCKETS}
    assert (catalog.time_series, catalog.meta_fields, catalog.views) == ({NAME}, {NAME: "place"}, {})
    assert (buckets_name(NAME), series_name(BUCKETS), series_name(NAME)) == (BUCKETS, NAME, NAME)


@pytest.mark.parametrize(
    ("index", "key"),
    [
        ({"key": {"meta": 1}}, {"place": 1}),
        ({"key": {"meta.room": -1, "control.min.at": 1, "control.max.at": 1}}, {"place.room": -1, "at": 1}),
        ({"key": {"control.max.v": -1, "control.min.v": -1}}, {"v": -1}),
        (
            {"key": {"data.x": "2dsphere_bucket"}, "originalSpec": {"key": {"x": "2dsphere"}, "name": "i"}},
            {"x": "2dsphere"},
        ),
    ],
)
@pytest.mark.parametrize("shape", ["indexes", "flat", "spec"])
def test_an_index_of_buckets_is_one_of_the_series(index: dict[str, Any], key: dict[str, Any], shape: str) -> None:
    catalog, whole = OplogCatalog(), {"v": 2, **index, "name": "i"}
    bodies: dict[str, dict[str, Any]] = {
        "indexes": {"commitIndexBuild": "system.buckets.heat", "indexes": [whole]},
        "flat": {"createIndexes": "system.buckets.heat", **whole},
        "spec": {"createIndexes": "system.buckets.heat", "spec": whole},
    }
    assert len(replayed([*made(), command(3, "shop", bodies[shape])], catalog)) == 1
    assert plain(catalog.indexes[NAME]["i"])["key"] == key
    assert replayed([command(4, "shop", {"dropIndexes": "system.buckets.heat", "index": "i"})], catalog) == []
    assert catalog.indexes[NAME] == {}


def test_a_series_is_changed_and_dropped_by_its_own_name_once() -> None:
    catalog = OplogCatalog()
    change = {"collMod": "system.buckets.heat", "timeseries": {"granularity": "hours"}}
    done = replayed(
        [
            *made(),
            command(3, "shop", change),
            # The view is written anew with the other granularity; the series must not end by it.
            replace(4, "shop.system.views", VIEW),
            command(5, "shop", {"drop": "system.buckets.heat"}),
            delete(6, "shop.system.views", NAME),
        ],
        catalog,
    )
    commands = [item for item in done if isinstance(item, Command)]
    assert [(item.name, item.namespace) for item in commands][:3] == [
        ("create", NAME),
        ("collMod", NAME),
        ("drop", NAME),
    ]
    assert plain(commands[1].body) == {"collMod": "heat", "timeseries": {"granularity": "hours"}}
    assert (catalog.time_series, catalog.indexes, catalog.meta_fields) == (set(), {}, {})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (update(3, BUCKETS, FIRST, {"sdata": {"b": {"v": {"o": 4, "d": b"x"}}}}), "changes a compressed bucket"),
        (insert(3, "shop.system.buckets.other", bucket(1.0)), "is of time series shop.other, which is not replayed"),
        (insert(3, NAME, {"_id": 1}), "is of time series shop.heat, which is not replayed"),
        (command(3, "shop", {"create": "new", "timeseries": SERIES}), "is of time series shop.new"),
        (command(3, "shop", {"renameCollection": BUCKETS, "to": "shop.cold"}), "is of time series shop.heat"),
        (command(3, "shop", {"collMod": "heat", "expireAfterSeconds": 1}), "is of time series shop.heat"),
        (command(3, "shop", {"collMod": "system.buckets.other", "expireAfterSeconds": 1}), "time series shop.other"),
        (
            command(3, "shop", {"createIndexes": "system.buckets.heat", "name": "i", "key": {"control.min.v": 1}}),
            "makes index i in a form that this drkit does not know",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_refused_by_name(raw: bytes, words: str) -> None:
    catalog = OplogCatalog()
    replayed(made(), catalog)
    with pytest.raises(RecoveryGap) as caught:
        replayed([raw], catalog)
    assert words in caught.value.message
    assert caught.value.hints[0].startswith("leave it out: --exclude-table shop.")


def test_a_database_that_is_dropped_takes_its_series_along() -> None:
    catalog = OplogCatalog()
    replayed([*made(), command(3, "shop", {"dropDatabase": 1})], catalog)
    assert (catalog.time_series, catalog.indexes) == (set(), {})


class _Series:
    """A collection that has some buckets, and shows some measurements."""

    name, full_name = "heat", NAME

    def __init__(self, buckets: int, shown: int) -> None:
        self.buckets, self.shown = buckets, shown
        self.database = {"system.buckets.heat": self}

    def count_documents(self, _: Any) -> int:
        return self.buckets

    def find_one(self, *_: Any) -> Any:
        return {"_id": 1} if self.shown else None


def test_a_server_that_shows_nothing_of_its_buckets_is_found_out() -> None:
    require_series(cast("Any", _Series(2, 5)), 2)
    require_series(cast("Any", _Series(0, 0)), 0)
    with pytest.raises(SourceError, match="has 1 buckets after the replay, and 2 were restored"):
        require_series(cast("Any", _Series(1, 5)), 2)
    with pytest.raises(SourceError, match="has 2 buckets, and the server shows nothing of them"):
        require_series(cast("Any", _Series(2, 0)), 2)
