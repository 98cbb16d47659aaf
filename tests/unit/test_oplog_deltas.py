"""Deltas of both shapes over raw BSON.

The fixtures of MongoDB's own shape are made by hand after its sources (document_diff_applier.cpp and its test); no real
mongod wrote them, so that shape is fixture-tested. SecantusDB's shape is also met live in tests/integration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from drkit.errors import IntegrityError
from drkit.oplog_deltas import DeltaMismatch, apply_delta
from drkit.raw_bson import Element, make_document, read_elements

ODD: dict[str, Any] = {
    "int32": 1,
    "int64": Int64(1),
    "double": 1.0,
    "minus zero": -0.0,
    "nan": float("nan"),
    "infinity": float("-inf"),
    "decimal": Decimal128("1.500"),
    "decimal nan": Decimal128("NaN"),
    "stamp": Timestamp(7, 9),
    "binary": Binary(b"\0\1", 128),
    "old binary": Binary(b"abc", 2),
    "regex": Regex("^a", "imx"),
    "min": MinKey(),
    "max": MaxKey(),
    "code": Code("f()", {"x": 1}),
    "null": None,
    "id": ObjectId(b"123456789012"),
    "": "empty name",
    "dotted.name": 1,
    "$dollar": 2,
    "text": "a\0b",
}
RAREST = [
    Element(0x06, b"undefined", b""),
    Element(0x0E, b"symbol", b"\x02\0\0\0a\0"),
    Element(0x0C, b"pointer", b"\x02\0\0\0a\0" + b"i" * 12),
    Element(0x01, b"nan payload", b"\x01\0\0\0\0\0\xf8\x7f"),
    Element(0x09, b"year 99999", (10**15).to_bytes(8, "little")),
    Element(0x10, b"twice", b"\1\0\0\0"),
    Element(0x10, b"twice", b"\2\0\0\0"),
]
MONGOD = [
    # What of the fixture: before, diff, after.
    ({"a": 1, "b": 2, "c": 3}, {"d": {"b": False}}, {"a": 1, "c": 3}),
    ({"a": 1, "b": 2}, {"u": {"a": Int64(1)}}, {"a": Int64(1), "b": 2}),
    ({"a": 1}, {"i": {"b": 2, "A": 3}}, {"a": 1, "b": 2, "A": 3}),
    ({"a": 1, "b": 2}, {"i": {"a": 3}}, {"b": 2, "a": 3}),
    ({"a": {"x": {"y": 1}}}, {"sa": {"sx": {"u": {"y": 2}}}}, {"a": {"x": {"y": 2}}}),
    (
        {"a": 1, "n": {"x": 1, "y": 2}},
        {"d": {"a": False}, "sn": {"d": {"x": False}, "i": {"z": 0}}},
        {"n": {"y": 2, "z": 0}},
    ),
    ({"l": [1, 2, 3]}, {"sl": {"a": True, "u1": 9}}, {"l": [1, 9, 3]}),
    ({"l": [1, 2, 3]}, {"sl": {"a": True, "l": 2}}, {"l": [1, 2]}),
    ({"l": [1]}, {"sl": {"a": True, "u3": 4}}, {"l": [1, None, None, 4]}),
    ({"l": [1]}, {"sl": {"a": True, "l": 3}}, {"l": [1, None, None]}),
    ({"l": [{"x": 1}, 2]}, {"sl": {"a": True, "s0": {"u": {"x": 5}}}}, {"l": [{"x": 5}, 2]}),
    ({"l": [[1, 2], 2]}, {"sl": {"a": True, "s0": {"a": True, "l": 1}, "u2": 0}}, {"l": [[1], 2, 0]}),
    ({"": 1, "s": {"": 2}}, {"u": {"": 3}, "ss": {"u": {"": 4}}}, {"": 3, "s": {"": 4}}),
    ({"": {"a": 1}}, {"s": {"u": {"a": 2}}}, {"": {"a": 2}}),
    ({"updatedFields": {"a": 1}}, {"supdatedFields": {"u": {"a": 2}}}, {"updatedFields": {"a": 2}}),
    ({"a.b": {"$c": 1}}, {"sa.b": {"u": {"$c": 2}}}, {"a.b": {"$c": 2}}),
    ({"a": 1}, {}, {"a": 1}),
]
SECANTUS = [
    ({"a": 1, "b": 2}, {"updatedFields": {"a": 5}}, {"a": 5, "b": 2}),
    ({"a": 1}, {"updatedFields": {"z": {"y": 1}, "b": 2}}, {"a": 1, "z": {"y": 1}, "b": 2}),
    ({"a": {"x": 1, "y": 1}}, {"updatedFields": {"a.x": -0.0}, "removedFields": ["a.y"]}, {"a": {"x": -0.0}}),
    ({"l": [1, 2]}, {"updatedFields": {"l.1": 3, "l.4": 5}}, {"l": [1, 3, None, None, 5]}),
    ({"l": [{"x": 1}]}, {"updatedFields": {"l.0.x": 2}}, {"l": [{"x": 2}]}),
    ({"l": [1, 2, 3]}, {"truncatedArrays": [{"field": "l", "newSize": 1}]}, {"l": [1]}),
    ({"n": {"1": "a"}}, {"updatedFields": {"n.1": "b"}, "disambiguatedPaths": {"n.1": ["n", "1"]}}, {"n": {"1": "b"}}),
    ({"a.b": 1}, {"updatedFields": {"a.b": 2}}, {"a.b": 2}),
    ({"a.b": {"c": 1}}, {"updatedFields": {"a.b.c": 2}}, {"a.b": {"c": 2}}),
    ({"a.b": 1, "c": 1}, {"removedFields": ["a.b"]}, {"c": 1}),
    ({"a": 1}, {"updatedFields": {}, "removedFields": [], "truncatedArrays": []}, {"a": 1}),
]


def done(before: Mapping[str, Any], diff: Mapping[str, Any], *, strict: bool = True) -> bytes:
    return apply_delta(bson.encode({"_id": 0, **before}), bson.encode(diff), strict=strict)


@pytest.mark.parametrize(("before", "diff", "after"), [*MONGOD, *SECANTUS])
@pytest.mark.parametrize("strict", [True, False])
def test_the_new_document_is_the_old_one_with_the_delta(
    before: dict[str, Any], diff: dict[str, Any], after: dict[str, Any], strict: bool
) -> None:
    assert done(before, diff, strict=strict) == bson.encode({"_id": 0, **after})


@pytest.mark.parametrize(
    "diff", [{"u": ODD}, {"i": ODD}, {"updatedFields": {k: v for k, v in ODD.items() if k != "dotted.name"}}]
)
def test_no_value_of_a_delta_changes_its_bytes(diff: dict[str, Any]) -> None:
    values = next(iter(diff.values()))
    assert done({}, diff) == bson.encode({"_id": 0, **values})


def test_no_value_that_a_delta_does_not_touch_changes_its_bytes() -> None:
    kept = make_document([*read_elements(bson.encode(ODD)), *RAREST])
    assert list(read_elements(kept))[-len(RAREST) :] == RAREST
    for diff in ({"u": {"last": 1}}, {"updatedFields": {"last": 1}}):
        last = Element(0x10, b"last", b"\1\0\0\0")
        assert apply_delta(kept, bson.encode(diff), strict=True) == make_document([*read_elements(kept), last])


@pytest.mark.parametrize(
    "diff",
    [
        {"x": {}},
        {"b": {"data": {"o": 1, "d": b""}}},
        {"u": {"a": 1}, "updatedFields": {}},
        {"updatedFields": {"a": 1}, "renamedFields": {}},
        {"sl": {"a": True, "x1": 1}},
        {"sl": {"a": True, "u-1": 1}},
        {"sl": {"a": True, "u99999999": 1}},
        {"sl": {"a": True, "u2097152": 1}},
        {"sl": {"a": True, f"u{'1' * 5000}": 1}},
        {"sl": {"a": True, "l": "two"}},
        {"sl": {"a": True, "l": -1}},
        {"sl": {"a": False, "u0": 1}},
        {"d": ["a"]},
        {"s": 1},
        {"updatedFields": ["a"]},
        {"removedFields": [1]},
        {"truncatedArrays": [{"field": "l"}]},
        {"truncatedArrays": [{"field": "a", "newSize": 1}]},
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_not_known_is_refused(diff: dict[str, Any], strict: bool) -> None:
    with pytest.raises(DeltaMismatch):
        done({"a": 1, "l": [1, 2]}, diff, strict=strict)


def test_a_delta_without_end_is_refused() -> None:
    document, diff = make_document([]), make_document([])
    for _ in range(2000):
        document = make_document([Element(0x03, b"a", document)])
        diff = make_document([Element(0x03, b"sa", diff)])
    with pytest.raises(DeltaMismatch, match="nested deeper"):
        apply_delta(document, diff, strict=True)


@pytest.mark.parametrize(
    ("before", "diff", "left"),
    [
        ({}, {"d": {"a": False}}, {}),
        ({}, {"sa": {"u": {"x": 1}}}, {}),
        ({"a": 5}, {"sa": {"u": {"x": 1}}}, {"a": None}),
        ({"a": {"x": 1}}, {"sa": {"a": True, "l": 0}}, {"a": None}),
        ({"l": []}, {"sl": {"a": True, "s0": {"u": {"x": 1}}}}, {"l": [None]}),
        ({}, {"removedFields": ["a"]}, {}),
        ({"a": {"b": 1}}, {"updatedFields": {"a.b.c": 1}}, {"a": {"b": 1}}),
        ({}, {"truncatedArrays": [{"field": "l", "newSize": 1}]}, {}),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_when_it_must_and_left_to_later_entries_when_it_may(
    before: dict[str, Any], diff: dict[str, Any], left: dict[str, Any]
) -> None:
    with pytest.raises(DeltaMismatch):
        done(before, diff)
    assert done(before, diff, strict=False) == bson.encode({"_id": 0, **left})


@pytest.mark.parametrize("before", [{"a.b": 1, "a": {"b": 1}}, {"a.b": 1, "a": {}}, {"a.b": {"c": 1}, "a": {"b.c": 1}}])
def test_a_path_that_can_be_read_in_two_ways_is_refused(before: dict[str, Any]) -> None:
    path = "a.b.c" if isinstance(before["a.b"], dict) else "a.b"
    with pytest.raises(DeltaMismatch, match="two ways"):
        done(before, {"updatedFields": {path: 2}})


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0.$"), min_size=1, max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.integers(-5, 5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=4)


def tree_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The simplest delta of MongoDB's shape from one document to the other."""
    nested = {
        f"s{name}": tree_between(before[name], value)
        for name, value in after.items()
        if isinstance(value, dict) and isinstance(before.get(name), dict)
    }
    changed = {name: value for name, value in after.items() if name in before and f"s{name}" not in nested}
    diff = {
        "d": {name: False for name in before if name not in after},
        "u": changed,
        "i": {name: value for name, value in after.items() if name not in before},
        **nested,
    }
    return {key: value for key, value in diff.items() if value or key in nested}


@given(DOCUMENTS, DOCUMENTS)
def test_a_delta_leads_from_any_document_to_any_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = bson.decode(done(before, tree_between(before, after)))
    assert repr(sort_names({"_id": 0, **after})) == repr(sort_names(found))
    again = apply_delta(bson.encode(found), bson.encode(tree_between(before, after)), strict=False)
    assert repr(sort_names(bson.decode(again))) == repr(sort_names(found)), "a delta that is done twice is done once"


def sort_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: sort_names(value[name]) for name in sorted(value)}
    return [sort_names(item) for item in value] if isinstance(value, list) else value


@given(st.binary(max_size=60))
def test_damaged_bson_raises_clean_errors_only(data: bytes) -> None:
    framed = (len(data) + 5).to_bytes(4, "little") + data + b"\0"
    for document in (data, framed):
        with contextlib.suppress(IntegrityError):
            assert make_document(read_elements(document)) == document
