"""Walking BSON by its bytes: every type is found where it is, and nothing but an IntegrityError comes of damage."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import bson
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.bson_elements import elements, has_empty_timestamp, split_documents
from drkit.errors import IntegrityError

EVERYTHING: dict[str, Any] = {
    "double": 1.5, "text": "nul\0inside", "document": {"": 1}, "array": [1, [2]], "binary": Binary(b"x" * 9, 128),
    "old": Binary(b"abc", 2), "id": ObjectId(), "yes": True, "none": None, "regex": Regex("a\\b", "im"),
    "code": Code("f"), "scoped": Code("f", {"a": 1}), "int": 1, "stamp": Timestamp(5, 1), "long": Int64(1),
    "decimal": Decimal128("1.50"),
    "least": MinKey(), "most": MaxKey(), "reference": DBRef("c", 1),
}  # fmt: skip


def raw(*items: bytes) -> bytes:
    """Return a document of elements that are written out."""
    body = b"".join(items)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def test_every_type_is_found_with_its_bytes() -> None:
    document = bson.encode(EVERYTHING)
    found = {item.name.decode(): document[item.start : item.end] for item in elements(document)}
    assert list(found) == list(EVERYTHING)
    for name, value in found.items():
        alone = bson.encode({"x": EVERYTHING[name]})
        assert alone[7:-1] == value


def test_types_that_drivers_forgot_and_keys_that_come_twice_are_elements_as_others() -> None:
    undefined, symbol = b"\x06u\0", b"\x0es\0\x02\0\0\0a\0"
    pointer = b"\x0cp\0\x02\0\0\0c\0" + bytes(12)
    document = raw(undefined, symbol, symbol, pointer)
    assert [(item.kind, item.name) for item in elements(document)] == [
        (0x06, b"u"),
        (0x0E, b"s"),
        (0x0E, b"s"),
        (0x0C, b"p"),
    ]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\5\0\0\0", b"\6\0\0\0\0", raw(b"\x10a"), raw(b"\x10a\0\1"), raw(b"\x02a\0\xff\xff\xff\x7fx\0"),
     raw(b"\x02a\0\xff\xff\xff\xff"), raw(b"\x42a\0"), raw(b"\x0ba\0x"), b"\5\0\0\0\1"],
)  # fmt: skip
def test_damage_is_named(damaged: bytes) -> None:
    with pytest.raises(IntegrityError, match="no BSON"):
        list(elements(damaged))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_whatever_comes_is_walked_or_refused(noise: bytes, at: int) -> None:
    document = bson.encode(EVERYTHING)
    broken = document[:at] + noise + document[at + len(noise) :]
    for walk in (elements, split_documents):
        with contextlib.suppress(IntegrityError):
            list(walk(broken))


def test_documents_one_after_another_are_cut_apart() -> None:
    documents = [bson.encode({"_id": number}) for number in range(3)]
    assert list(split_documents(b"".join(documents))) == documents
    with pytest.raises(IntegrityError):
        list(split_documents(b"".join(documents)[:-1]))


@pytest.mark.parametrize(
    ("document", "empty"),
    [
        ({"_id": 1, "at": Timestamp(0, 0)}, True),
        ({"_id": Timestamp(0, 0)}, False),
        ({"_id": 1, "in": {"at": Timestamp(0, 0)}}, False),
        ({"_id": 1, "at": Timestamp(0, 1)}, False),
        ({"_id": 1, "text": "\x11a\0" + "\0" * 12}, False),
        ({"_id": 1, "zero": 0.0, "none": Int64(0)}, False),
        ({"_id": 1, "": Timestamp(0, 0)}, True),
    ],
)
def test_an_empty_timestamp_counts_where_a_server_replaces_it(document: dict[str, Any], *, empty: bool) -> None:
    assert has_empty_timestamp(bson.encode(document)) is empty
