"""Counting what a dump should have: against a compatible server, without MongoDB's tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drkit.engines.mongodb_counts import Counts, SaidCounts, mark_counts, read_counts, require_whole
from drkit.errors import SourceError
from drkit.mongo_archive import ArchiveSummary, CollectionSummary
from tests.fixtures.mongodb import MongoServer


@pytest.fixture(params=["counted", "from the oplog"])
def before(request: pytest.FixtureRequest, mongodb: MongoServer) -> Iterator[Counts]:
    """What is remembered of a collection with ten documents: their number, or the place in the oplog alone."""
    mongodb.client.drop_database("counted")
    mongodb.client["counted"]["orders"].insert_many([{"_id": number} for number in range(10)])
    if request.param == "counted":
        yield read_counts(mongodb.client, "counted", ["orders"])
    else:
        yield mark_counts(mongodb.client, "counted", ["orders"], [])
    mongodb.client.drop_database("counted")


def judge(mongodb: MongoServer, before: Counts, dumped: int | None) -> None:
    """Compare a dump with so many documents (None: without the collection) with what is there now."""
    held = [] if dumped is None else [CollectionSummary("counted", "orders", "collection", dumped, None, {})]
    after = read_counts(mongodb.client, "counted", ["orders"])
    require_whole(mongodb.client, ArchiveSummary("", "", tuple(held)), before, after)


@pytest.mark.parametrize("dumped", [9, 11, 0, None])
def test_a_dump_of_a_quiet_collection_has_all_of_it(mongodb: MongoServer, before: Counts, dumped: int | None) -> None:
    assert before.documents.get("counted.orders", 10) == 10
    judge(mongodb, before, 10)
    with pytest.raises(SourceError, match=r"counted\.orders"):
        judge(mongodb, before, dumped)


def test_what_was_written_meanwhile_may_be_there_or_not(mongodb: MongoServer, before: Counts) -> None:
    orders = mongodb.client["counted"]["orders"]
    orders.insert_many([{"_id": number} for number in range(10, 15)])
    orders.delete_many({"_id": {"$lt": 5}})
    for dumped in (5, 10, 15):
        judge(mongodb, before, dumped)
    for dumped in (4, 16):
        with pytest.raises(SourceError, match=r"there were 10 before and 10 after") as caught:
            judge(mongodb, before, dumped)
        assert caught.value.details == ("the oplog has 5 inserted and 5 deleted meanwhile",)


def test_a_collection_that_was_dropped_meanwhile_may_be_missing(mongodb: MongoServer, before: Counts) -> None:
    mongodb.client["counted"]["orders"].drop()
    judge(mongodb, before, None)


def test_what_a_capped_collection_drops_is_in_no_oplog_so_it_is_counted(mongodb: MongoServer) -> None:
    mongodb.client.drop_database("counted")
    mongodb.client["counted"]["orders"].insert_one({"_id": 1})
    marked = mark_counts(mongodb.client, "counted", ["orders", "log"], ["orders"])
    assert dict(marked.documents) == {"counted.orders": 1}
    assert marked.oplog_ts is not None


def test_what_mongodump_says_that_the_server_counted_is_compared_with_what_it_wrote() -> None:
    said = SaidCounts()
    lines = [
        "counted 10 documents in counted.orders",
        "counted 1 document in counted.a b",
        "counted 3 documents in x.y",
    ]
    assert [said.heard(f"2026-11-22T17:48:45.122+0000\t{line}") for line in lines] == [False] * 3
    assert said.heard("2026-11-22T17:48:45.122+0000\tFailed: error writing data for collection")

    def dumped(orders: int, other: int) -> ArchiveSummary:
        held = [CollectionSummary("counted", "orders", "collection", orders, None, {})]
        return ArchiveSummary("", "", (*held, CollectionSummary("counted", "a b", "collection", other, None, {})))

    assert said.agreeing(dumped(10, 1)) == {"counted.orders", "counted.a b"}
    assert said.agreeing(dumped(9, 1)) == {"counted.a b"}
    assert said.agreeing(ArchiveSummary("", "", ())) == frozenset()
