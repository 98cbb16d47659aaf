"""Every document has an ``_id`` of its own: what is the same for a server is the same here, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.mongo_ids import Identifiers

KEYS: list[Any] = [
    1, 2, Int64(3), 1.5, 2.0**70, float("inf"), "1", "a" * 10, "", "a" * 11, "a" * 12, "a" * 40,
    ObjectId("1" * 24), ObjectId("2" * 24), True, False, None,
    Binary(b"x", 0), Binary(b"x", 5), Binary(b"x" * 16, 4), {"a": 1, "b": 2}, {"b": 2, "a": 1},
    [1], [1, 2], {},
    datetime(2026, 1, 1, tzinfo=UTC), Timestamp(1, 1), Timestamp(1, 2), Decimal128("1.5"), Decimal128("2.5"), MinKey(),
    MaxKey(), Regex("a", "i"), Regex("a", "m"), Code("f()"), Int64(1 << 40), -1, Int64(-(1 << 40)),
]  # fmt: skip


def check(documents: list[bytes], most: int = 1000) -> str:
    """Return what is wrong with documents that come in two pieces."""
    identifiers = Identifiers(most)
    for piece in (documents[: len(documents) // 2], documents[len(documents) // 2 :]):
        if piece and (fault := identifiers.take("d.c", b"".join(piece), list(accumulate(map(len, piece))))):
            return fault
    return identifiers.close("d.c")


def document(key: Any, **more: Any) -> bytes:
    return bson.encode({"_id": key, **more})


def test_different_ones_are_different() -> None:
    assert check([document(key, n=1) for key in KEYS]) == ""


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_one_that_is_there_twice_is_found_among_others(key: Any) -> None:
    assert check([document(other) for other in KEYS] + [document(key, n=2)]) == "has an _id twice"


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_one_that_does_not_come_first_is_found_as_well(key: Any) -> None:
    assert check([bson.encode({"n": 1, "_id": key})]) == ""
    assert check([document(key), bson.encode({"n": 1, "_id": key})]) == "has an _id twice"


@pytest.mark.parametrize(("one", "other"), [(1, Int64(1)), (1, 1.0), (0, -0.0), (Int64(1 << 40), float(1 << 40))])
def test_numbers_of_one_value_are_one_for_a_server(one: Any, other: Any) -> None:
    assert check([document(one), document(other)]) == "has an _id twice"


@pytest.mark.parametrize("content", [{}, {"id": 1}, {"_idx": 1}, {"a": {"_id": 1}}, {"_i": "d"}])
def test_a_document_without_one_is_found(content: dict[str, Any]) -> None:
    assert check([document(1), bson.encode(content)]) == "has a document without _id"


def test_a_value_that_reaches_beyond_its_document_is_found() -> None:
    whole = document(ObjectId())
    cut = (len(whole) - 4).to_bytes(4, "little") + whole[4:-5] + b"\0"
    assert check([cut]) == "has a document whose _id is cut"
    text = bytearray(document("abc"))
    text[9] = 200
    assert check([bytes(text)]) == "has a document without _id"


def test_beyond_the_bound_the_first_are_compared_and_it_is_said() -> None:
    identifiers = Identifiers(3)
    documents = [document(number) for number in (1, 2, 3, 4, 4)]
    assert identifiers.take("d.c", b"".join(documents), list(accumulate(map(len, documents)))) == ""
    assert identifiers.close("d.c") == ""
    assert identifiers.notes == ("collection d.c: the _id of the first 3 of 5 documents compared",)
    assert identifiers.take("d.e", documents[0] * 2, [len(documents[0]), 2 * len(documents[0])]) == ""
    assert identifiers.close("d.e") == "has an _id twice", "a collection that has ended makes room for the next"


def test_an_empty_collection_is_sound() -> None:
    assert Identifiers().close("d.c") == ""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-50, 50) | st.text(max_size=3) | st.booleans() | st.none(), max_size=30), st.booleans())
def test_it_agrees_with_counting(keys: list[Any], first: bool) -> None:
    made = [bson.encode({"_id": key, "n": 1} if first else {"n": 1, "_id": key}) for key in keys]
    alone = {RawBSONDocument(bson.encode({"": key})).raw for key in keys}
    assert check(made) == ("" if len(alone) == len(keys) else "has an _id twice")
