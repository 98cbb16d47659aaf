"""Options and indexes as text: the spelling of mongodump, and back into what they were."""

from __future__ import annotations

import json
import math
from typing import Any

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, json_util
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from drkit.errors import IntegrityError
from drkit.extended_json import write_double, write_extended


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.0"), (-0.0, "-0.0"), (1.0, "1.0"), (-180.0, "-180.0"), (123456.7, "123456.7"), (100000.0, "100000.0"),
        (1000000.0, "1E+06"), (1048576.0, "1.048576E+06"), (0.0001, "0.0001"), (0.00001, "1E-05"), (5e-324, "5E-324"),
        (-1.5e300, "-1.5E+300"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, "NaN"),
    ],
)  # fmt: skip
def test_doubles_are_spelled_as_go_spells_them(number: float, text: str) -> None:
    assert write_double(number) == text


@given(st.floats(allow_nan=False))
def test_every_double_is_exactly_its_text(number: float) -> None:
    assert math.copysign(1, float(write_double(number))) == math.copysign(1, number)
    assert float(write_double(number)) == number


@pytest.mark.parametrize(
    "value",
    [1, Int64(1), 1.5, "text é \n \"", True, False, None, ObjectId(), Decimal128("1.50"), Timestamp(5, 1), MinKey(),
     MaxKey(), Regex("^a\\b", "im"), Binary(b"x", 128), Binary(b"abc", 2), Binary(b"y" * 16, 4), Code("f()"),
     Code("f()", {"a": Int64(1)}), DatetimeMS(-62135596800001), [1, [Int64(2)]], {"b": 1, "a": {"": 2.0}}],
)  # fmt: skip
def test_it_is_what_the_driver_writes(value: Any) -> None:
    text = json_util.dumps({"value": value}, json_options=json_util.CANONICAL_JSON_OPTIONS)
    assert json.loads(write_extended(bson.encode({"value": value}))) == json.loads(text)


def test_words_of_queries_stay_words() -> None:
    query = {"name": {"$regex": "^a", "$options": "i"}, "b": {"$ref": "x", "$id": 1}, "c": {"$date": "no date"}}
    document = bson.encode(query)
    assert json.loads(write_extended(document)) == {**query, "b": {"$ref": "x", "$id": {"$numberInt": "1"}}}


def test_types_that_drivers_forgot_are_written() -> None:
    pointer = b"\x0cp\0\x02\0\0\0c\0" + bytes(12)
    body = b"\x06u\0" + b"\x0es\0\x02\0\0\0a\0" + pointer
    document = (len(body) + 5).to_bytes(4, "little") + body + b"\0"
    reference = {"$ref": "c", "$id": {"$oid": "0" * 24}}
    assert json.loads(write_extended(document)) == {
        "u": {"$undefined": True},
        "s": {"$symbol": "a"},
        "p": {"$dbPointer": reference},
    }


def test_text_that_is_none_is_damage() -> None:
    with pytest.raises(IntegrityError, match="not UTF-8"):
        write_extended(b"\x0e\0\0\0\x02a\0\2\0\0\0\xff\0\0")
