"""Oplog entries as operations, transactions at their commit, and what is left out."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, BinaryIO

import bson
import pytest
from bson import Int64, Timestamp

from drkit.errors import IntegrityError, RecoveryGap
from drkit.oplog import OplogTs
from drkit.oplog_entries import Command, Operation, Write, read_entry, read_operations
from drkit.oplog_selection import Selection
from drkit.oplog_transactions import Transactions
from tests.unit.oplog_entries import (
    BEGUN_AT,
    NO_OP_TIME,
    SECONDS,
    bundle,
    bundled,
    command,
    delete,
    entry,
    in_session,
    insert,
    replace,
    update,
)


def operations(*entries: bytes, transactions: Transactions | None = None) -> list[Operation]:
    transactions = transactions or Transactions()
    return [operation for raw in entries for operation in transactions.take(raw).operations]


def names(found: Iterable[Operation]) -> list[str]:
    """Say briefly what operations are."""
    return [
        f"{item.kind} {bson.decode(b'%b%b%c' % ((len(item.id) + 5).to_bytes(4, 'little'), item.id, 0))['_id']}"
        if isinstance(item, Write)
        else item.name
        for item in found
    ]


def test_writes_are_read_with_the_bytes_of_their_documents() -> None:
    document = {"_id": Int64(7), "b": 1.0, "a": Int64(1)}
    found = operations(
        insert(1, "shop.orders", document),
        replace(2, "shop.orders", document),
        update(3, "shop.orders", Int64(7), {"u": {"b": 2}}),
        delete(4, "shop.a.b", Int64(7)),
    )
    identifier = b"\x12_id\0" + (7).to_bytes(8, "little")
    places = [OplogTs(SECONDS + number, 1) for number in range(1, 5)]
    raw = bson.encode(document)
    assert found == [
        Write("insert", "shop.orders", identifier, raw, places[0]),
        Write("replace", "shop.orders", identifier, raw, places[1]),
        Write("update", "shop.orders", identifier, bson.encode({"u": {"b": 2}}), places[2]),
        Write("delete", "shop.a.b", identifier, b"", places[3]),
    ]


def test_what_concerns_the_server_alone_is_left_out() -> None:
    assert not operations(
        entry(1, "n", "", {"msg": "periodic noop"}),
        insert(2, "config.transactions", {"_id": 1}),
        insert(3, "local.replset.minvalid", {"_id": 1}),
        insert(4, "admin.system.version", {"_id": 1}),
        insert(5, "shop.system.profile", {"_id": 1}),
        command(6, "config", {"create": "image_collection"}),
        command(7, "shop", {"startIndexBuild": "orders", "indexes": []}),
        command(8, "shop", {"abortIndexBuild": "orders", "indexes": []}),
        entry(9, "km", "", {}),
    )


def test_commands_are_named_with_their_collection() -> None:
    found = operations(
        command(1, "shop", {"create": "orders", "capped": True, "size": 4096}),
        command(2, "shop", {"renameCollection": "shop.orders", "to": "shop.old"}),
        command(3, "shop", {"dropDatabase": 1}),
    )
    assert [(item.name, item.namespace) for item in found if isinstance(item, Command)] == [
        ("create", "shop.orders"),
        ("renameCollection", "shop.orders"),
        ("dropDatabase", "shop."),
    ]


def test_a_write_to_the_views_collection_is_a_view() -> None:
    view = {"_id": "shop.names", "viewOn": "artists", "pipeline": [{"$match": {}}]}
    found = operations(
        insert(1, "shop.system.views", view),
        replace(2, "shop.system.views", view),
        delete(3, "shop.system.views", "shop.names"),
    )
    assert [(item.name, item.namespace) for item in found if isinstance(item, Command)] == [
        ("create", "shop.names"),
        ("drop", "shop.names"),
        ("create", "shop.names"),
        ("drop", "shop.names"),
    ]


def test_bundles_within_bundles_without_end_are_refused() -> None:
    inner = bson.encode({})
    for _ in range(2000):
        shell = bson.encode({"op": "c", "ns": "shop.$cmd"})[4:-1]
        item = shell + b"\x03o\0" + inner
        array = b"\x030\0" + (len(item) + 5).to_bytes(4, "little") + item + b"\0"
        held = b"\x04applyOps\0" + (len(array) + 5).to_bytes(4, "little") + array + b"\0"
        inner = (len(held) + 5).to_bytes(4, "little") + held + b"\0"
    nested = dataclasses.replace(read_entry(command(1, "shop", {"applyOps": []})), o=inner)
    with pytest.raises(IntegrityError, match="bundles bundles deeper"):
        list(read_operations(nested))


@pytest.mark.parametrize(
    "raw",
    [
        entry(1, "x", "shop.orders", {}),
        command(1, "shop", {"importCollection": "orders"}),
        command(1, "shop", {"convertToCapped": "orders"}),
        command(1, "shop", {}),
        command(1, "shop", {"create": 5}),
        command(1, "shop", {"applyOps": 5}),
        entry(1, "u", "shop.orders", {"$set": {"a": 1}}, o2={"_id": 1}),
        entry(1, "u", "shop.orders", {"$v": 1, "$set": {"a": 1}}, o2={"_id": 1}),
        entry(1, "u", "shop.orders", {"$v": 2, "diff": {}, "more": 1}, o2={"_id": 1}),
        entry(1, "u", "shop.orders", {"$v": 3, "diff": {}}, o2={"_id": 1}),
        entry(1, "u", "shop.orders", {"$v": 2, "diff": {}}),
        entry(1, "i", "shop.orders", {"a": 1}),
        entry(1, "i", "shop.orders", "text"),
        entry(1, "i", "shop.orders", {"_id": 1}, v=3),
        update(1, "shop.system.views", "shop.names", {"u": {"viewOn": "x"}}),
        bundle(1, [bundled("x", "shop.orders", {})], session=1, first=True),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match=f"oplog entry {SECONDS + 1}:1 "):
        operations(raw)


@pytest.mark.parametrize("raw", [b"", b"\5\0\0\0\0", bson.encode({"ts": 5}), bson.encode({"ts": Timestamp(1, 1)})[:-1]])
def test_what_is_no_entry_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_entry(raw)


def test_the_moment_of_an_entry_is_its_wall_clock_or_else_its_second() -> None:
    late = insert(1, "shop.orders", {"_id": 1})
    assert read_entry(late).at.timestamp() == SECONDS + 1
    bare = bson.encode({"op": "n", "ns": "", "o": {}, "ts": Timestamp(SECONDS + 9, 3)})
    assert (read_entry(bare).at.timestamp(), str(read_entry(bare).ts)) == (SECONDS + 9, f"{SECONDS + 9}:3")


ONE, TWO, THREE = (bundled("i", "shop.orders", {"_id": number}) for number in (1, 2, 3))


def test_a_transaction_counts_at_its_commit() -> None:
    transactions = Transactions()
    assert not operations(bundle(1, [ONE], session=1, first=True, partialTxn=True), transactions=transactions)
    assert names(operations(insert(2, "shop.orders", {"_id": 9}), transactions=transactions)) == ["insert 9"]
    last = bundle(3, [TWO, bundled("d", "shop.orders", {"_id": 1})], session=1, first=False, count=3)
    found = operations(last, transactions=transactions)
    assert names(found) == ["insert 1", "insert 2", "delete 1"]
    assert {item.ts for item in found} == {OplogTs(SECONDS + 3, 1)}
    assert transactions.unfinished == []


def test_a_transaction_in_one_entry_counts_at_once() -> None:
    assert names(operations(bundle(1, [ONE, TWO], session=1, first=True))) == ["insert 1", "insert 2"]


def test_a_prepared_transaction_counts_at_its_commit_and_an_aborted_one_never() -> None:
    transactions = Transactions()
    prepared = [
        bundle(1, [ONE], session=1, first=True, partialTxn=True),
        bundle(2, [TWO], session=1, first=False, prepare=True),
        bundle(3, [THREE], session=2, first=True, prepare=True),
    ]
    assert not operations(*prepared, transactions=transactions)
    assert transactions.unfinished == [OplogTs(SECONDS + 1, 1), OplogTs(SECONDS + 3, 1)]
    assert not operations(command(4, "admin", {"abortTransaction": 1}, **in_session(2)), transactions=transactions)
    commit = command(5, "admin", {"commitTransaction": 1, "commitTimestamp": Timestamp(1, 1)}, **in_session(1))
    assert names(operations(commit, transactions=transactions)) == ["insert 1", "insert 2"]
    assert (transactions.unfinished, transactions.aborted) == ([], 1)


def test_a_transaction_that_a_session_gave_up_never_counts() -> None:
    transactions = Transactions()
    operations(bundle(1, [ONE], session=1, first=True, partialTxn=True), transactions=transactions)
    second = {**in_session(1), "txnNumber": Int64(2), "prevOpTime": NO_OP_TIME}
    begun = command(2, "admin", {"applyOps": [TWO], "partialTxn": True}, **second)
    assert not operations(begun, transactions=transactions)
    assert (transactions.unfinished, transactions.aborted) == ([OplogTs(SECONDS + 2, 1)], 1)


def test_two_transactions_at_once_are_kept_apart() -> None:
    transactions = Transactions()
    found = operations(
        bundle(1, [ONE], session=1, first=True, partialTxn=True),
        bundle(2, [TWO], session=2, first=True, partialTxn=True),
        bundle(3, [], session=1, first=False),
        transactions=transactions,
    )
    assert names(found) == ["insert 1"]
    assert transactions.unfinished == [OplogTs(SECONDS + 2, 1)]


@pytest.mark.parametrize(
    "raw",
    [
        bundle(1, [ONE], session=1, first=False),
        bundle(1, [ONE], session=1, first=False, partialTxn=True),
        command(1, "admin", {"commitTransaction": 1}, **in_session(1)),
    ],
)
def test_a_transaction_that_began_before_the_log_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="whose beginning is not in the log"):
        operations(raw)


def test_retryable_writes_in_a_bundle_are_no_transaction() -> None:
    previous = {"prevOpTime": {"ts": Timestamp(SECONDS, 1), "t": Int64(1)}}
    raw = command(1, "admin", {"applyOps": [ONE, TWO]}, **in_session(1), **previous, multiOpType=1)
    assert names(operations(raw)) == ["insert 1", "insert 2"]


def test_a_large_transaction_is_kept_where_it_is_told_to() -> None:
    spills: list[BinaryIO] = []

    def open_spill() -> BinaryIO:
        spill: Any = tempfile.SpooledTemporaryFile(max_size=1000)  # noqa: SIM115
        spills.append(spill)
        return spill  # type: ignore[no-any-return]

    transactions = Transactions(open_spill)
    big = [bundled("i", "shop.orders", {"_id": number, "text": "x" * 500}) for number in range(50)]
    for number, item in enumerate(big[:-1]):
        operations(bundle(number, [item], session=1, first=not number, partialTxn=True), transactions=transactions)
    assert [spill._rolled for spill in spills] == [True]  # type: ignore[attr-defined]
    found = operations(bundle(99, big[-1:], session=1, first=False), transactions=transactions)
    assert names(found) == [f"insert {number}" for number in range(50)]
    assert spills[0].closed


def test_an_unfinished_transaction_is_given_back() -> None:
    spill = io.BytesIO()
    transactions = Transactions(lambda: spill)
    operations(bundle(1, [ONE], session=1, first=True, partialTxn=True), transactions=transactions)
    transactions.close()
    assert spill.closed


def chosen(selection: Selection, *entries: bytes) -> list[str]:
    return [
        f"{getattr(item, 'kind', None) or item.name} {item.namespace}"  # type: ignore[union-attr]
        for operation in operations(*entries)
        for item in selection.choose(operation)
    ]


def only_orders(namespace: str) -> str | None:
    return "copy.orders" if namespace == "shop.orders" else None


def test_only_what_is_wanted_is_chosen_and_split_transactions_are_told() -> None:
    selection = Selection(only_orders)
    other = bundled("i", "shop.customers", {"_id": 1})
    found = chosen(
        selection,
        insert(1, "shop.orders", {"_id": 5}),
        insert(2, "shop.customers", {"_id": 5}),
        bundle(3, [ONE, other, TWO], session=1, first=True),
        bundle(4, [other], session=2, first=True),
        bundle(5, [ONE], session=3, first=True),
        command(6, "shop", {"drop": "customers"}),
    )
    assert found == ["insert shop.orders"] * 4
    assert selection.split == [OplogTs(SECONDS + 3, 1)]
    assert selection.skipped == 4


def test_a_collection_that_leaves_by_rename_is_dropped_and_one_that_comes_is_refused() -> None:
    selection = Selection(only_orders)
    leaves = command(1, "shop", {"renameCollection": "shop.orders", "to": "shop.old"})
    assert chosen(selection, leaves) == ["drop shop.orders"]
    assert chosen(selection, command(2, "shop", {"renameCollection": "shop.a", "to": "shop.b"})) == []
    with pytest.raises(RecoveryGap, match="its documents are not restored"):
        chosen(selection, command(3, "shop", {"renameCollection": "shop.a", "to": "shop.orders"}))


@pytest.mark.parametrize(
    ("wall", "at"),
    [
        (timedelta(seconds=3, milliseconds=250), timedelta(seconds=3, milliseconds=250)),
        (timedelta(hours=1), timedelta(seconds=3, milliseconds=999)),
        (-timedelta(hours=1), timedelta(seconds=3)),
        (None, timedelta(seconds=3)),
    ],
)
def test_an_entry_was_written_in_the_second_of_its_place_whatever_the_clock_says(
    wall: timedelta | None, at: timedelta
) -> None:
    raw = insert(3, "shop.a", {"_id": 1}, wall=None if wall is None else BEGUN_AT + wall)
    assert read_entry(raw).at == BEGUN_AT + at
