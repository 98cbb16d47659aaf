"""What a batch leaves of each document, and which collections and indexes there are: strict after the dump's end."""

from __future__ import annotations

from typing import Any

import bson
import pytest

from drkit.errors import IntegrityError
from drkit.oplog import OplogTs
from drkit.oplog_catalog import OplogCatalog
from drkit.oplog_entries import Command, Write, read_entry, read_operations
from drkit.oplog_images import Batch, Image, show_id
from tests.unit.oplog_entries import SECONDS, command, delete, insert, replace, update

END = OplogTs(SECONDS + 10, 1)
"""The end of the dump; entries are made with the seconds after the beginning, so 11 and later are strict."""


def batch_of(*entries: bytes, may_forget: bool = False) -> Batch:
    batch = Batch(END, lambda _: may_forget)
    for raw in entries:
        for operation in read_operations(read_entry(raw)):
            assert isinstance(operation, Write)
            batch.add(operation)
    return batch


def element(identifier: Any) -> bytes:
    return bson.encode({"_id": identifier})[4:-1]


def left_by(batch: Batch, *existing: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the documents before and after, decoded."""
    known = {("shop.orders", element(document["_id"])): bson.encode(document) for document in existing}
    return [
        (image.before and bson.decode(image.before), image.after and bson.decode(image.after))
        for image in batch.images(known)
    ]


def test_many_writes_of_one_document_leave_one_image() -> None:
    batch = batch_of(
        insert(11, "shop.orders", {"_id": 1, "n": 1}),
        update(12, "shop.orders", 1, {"u": {"n": 2}}),
        delete(13, "shop.orders", 1),
        insert(14, "shop.orders", {"_id": 1, "n": 5}),
        update(15, "shop.orders", 1, {"i": {"m": 6}}),
    )
    assert list(batch.wanted()) == []
    assert batch.images({}) == [Image("shop.orders", element(1), None, bson.encode({"_id": 1, "n": 5, "m": 6}))]


def test_documents_that_are_changed_are_asked_for_and_those_inserted_only_where_the_dump_may_have_them() -> None:
    batch = batch_of(
        insert(5, "shop.orders", {"_id": 1}),
        insert(11, "shop.orders", {"_id": 2}),
        update(12, "shop.orders", 2, {"u": {"n": 2}}),
        replace(12, "shop.orders", {"_id": 3}),
        delete(12, "shop.orders", 4),
    )
    assert [identifier for _, identifier in batch.wanted()] == [element(1), element(3), element(4)]


def test_before_the_end_of_the_dump_entries_are_taken_as_they_can_be() -> None:
    batch = batch_of(
        insert(1, "shop.orders", {"_id": 1, "n": 1}),
        update(2, "shop.orders", 2, {"u": {"n": 2}}),
        replace(3, "shop.orders", {"_id": 3}),
        delete(4, "shop.orders", 4),
        update(10, "shop.orders", 5, {"d": {"gone": False}}),
    )
    left = left_by(batch, {"_id": 1, "n": 9}, {"_id": 5})
    assert left == [({"_id": 1, "n": 9}, {"_id": 1, "n": 1}), *[(None, None)] * 3, ({"_id": 5}, {"_id": 5})]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (insert(11, "shop.orders", {"_id": "x"}), "inserts a document that is there already"),
        (update(11, "shop.orders", "y", {"u": {"n": 2}}), "updates a document that is not there"),
        (replace(11, "shop.orders", {"_id": "y"}), "replaces a document that is not there"),
        (delete(11, "shop.orders", "y"), "deletes a document that is not there"),
        (update(11, "shop.orders", "x", {"d": {"gone": False}}), 'is of field "gone"'),
        (update(11, "shop.orders", "x", {"q": 1}), 'has key "q" of type 0x10, which this drkit does not know'),
        (update(1, "shop.orders", "x", {"q": 1}), 'has key "q" of type 0x10, which this drkit does not know'),
    ],
)
def test_after_the_end_of_the_dump_every_entry_must_fit(raw: bytes, words: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        left_by(batch_of(raw), {"_id": "x"})
    number = read_entry(raw).ts
    identifier = "x" if "inserts" in words or "field" in words or "key" in words else "y"
    assert f"oplog entry {number} of shop.orders" in caught.value.message
    assert words in caught.value.message
    assert f'_id "{identifier}"' in caught.value.message


def test_a_capped_collection_may_have_forgotten_what_is_deleted() -> None:
    assert left_by(batch_of(delete(11, "shop.orders", 1), may_forget=True)) == [(None, None)]


def test_an_id_is_shown_as_extended_json_or_as_bytes() -> None:
    assert show_id(element({"a": 1.5, "b": "text"})) == '{"a": 1.5, "b": "text"}'
    assert show_id(b"\x09_id\0" + (10**18).to_bytes(8, "little")).startswith("0x095f696400")
    assert show_id(b"\x99_id\0") == "0x995f696400"
    assert len(show_id(element("x" * 5000))) < 300


def fold(catalog: OplogCatalog, *entries: bytes) -> list[str]:
    """Return what is to be done at once, as words."""
    done = []
    for raw in entries:
        for operation in read_operations(read_entry(raw)):
            assert isinstance(operation, Command)
            done += [f"{item.name} {item.namespace}" for item in catalog.fold(operation)]
    return done


INDEX = {"v": 2, "key": {"day": 1}, "name": "by day", "entryFormat": 4}


@pytest.mark.parametrize(
    "made",
    [
        {"createIndexes": "orders", "indexes": [INDEX]},
        {"createIndexes": "orders", **INDEX},
        {"createIndexes": "orders", "spec": INDEX},
        {"commitIndexBuild": "orders", "indexBuildUUID": 1, "indexes": [INDEX]},
    ],
)
def test_indexes_are_remembered_in_every_shape_and_built_later(made: dict[str, Any]) -> None:
    catalog = OplogCatalog()
    assert fold(catalog, command(1, "shop", {"create": "orders"}), command(2, "shop", made)) == ["create shop.orders"]
    assert {name: dict(index["key"]) for name, index in catalog.indexes["shop.orders"].items()} == {
        "by day": {"day": 1}
    }
    changed = {"collMod": "orders", "index": {"name": "by day", "expireAfterSeconds": 60}}
    assert fold(catalog, command(3, "shop", changed)) == []
    assert catalog.indexes["shop.orders"]["by day"]["expireAfterSeconds"] == 60
    hidden = {"collMod": "orders", "index": {"keyPattern": {"day": 1}, "hidden": True}}
    assert fold(catalog, command(3, "shop", hidden)) == []
    assert catalog.indexes["shop.orders"]["by day"]["hidden"] is True
    assert fold(catalog, command(4, "shop", {"dropIndexes": "orders", "index": "by day"})) == []
    assert catalog.indexes == {"shop.orders": {}}


def test_collections_take_their_indexes_with_them() -> None:
    catalog = OplogCatalog({"shop.orders": {"by day": INDEX}, "shop.old": {}}, capped={"shop.orders"})
    rename = {"renameCollection": "shop.orders", "to": "shop.old", "dropTarget": True}
    assert fold(catalog, command(1, "shop", rename)) == ["renameCollection shop.orders"]
    assert (catalog.indexes, catalog.capped) == ({"shop.old": {"by day": INDEX}}, {"shop.old"})
    validator = {"collMod": "old", "validator": {"a": 1}, "index": {"name": "by day", "hidden": True}}
    assert fold(catalog, command(2, "shop", validator)) == ["collMod shop.old"]
    assert fold(catalog, command(3, "shop", {"dropIndexes": "old", "index": "*"})) == []
    assert fold(catalog, command(4, "shop", {"dropDatabase": 1})) == ["drop shop.old"]
    assert (catalog.indexes, catalog.capped) == ({}, set())


def test_views_are_remembered_and_come_last() -> None:
    catalog = OplogCatalog(views={"shop.names": {"viewOn": "artists", "pipeline": []}})
    made = command(1, "shop", {"create": "late", "viewOn": "orders", "pipeline": [{"$match": {}}], "idIndex": {}})
    assert fold(catalog, made, command(2, "shop", {"drop": "names"})) == []
    assert fold(catalog, command(3, "shop", {"collMod": "late", "viewOn": "old"})) == []
    assert {name: view["viewOn"] for name, view in catalog.views.items()} == {"shop.late": "old"}


@pytest.mark.parametrize(
    "o", [{"createIndexes": "orders", "indexes": [{"key": {"a": 1}}]}, {"dropIndexes": "orders", "index": 5}]
)
def test_an_index_that_is_not_named_is_refused(o: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=f"oplog entry {SECONDS + 1}:1 "):
        fold(OplogCatalog(), command(1, "shop", o))
