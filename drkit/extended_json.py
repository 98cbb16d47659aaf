"""Canonical Extended JSON (v2) of collection options and indexes, as mongodump writes them into an archive.

Options come from the server's bytes and not through pymongo's decoder, which makes other things of ``{$ref: ...}`` and
``{$regex: ..., $options: ...}``; both are ordinary words of a validator or a pipeline. Documents of users never pass
through here. Doubles are spelled as Go spells them (mongo-driver, bson/extjson_writer.go), so that equal options are
equal text whoever wrote the archive.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal

from bson import Decimal128

from drkit import bson_elements as kinds
from drkit.bson_elements import Element, elements
from drkit.errors import IntegrityError

_PLAIN_EXPONENTS = range(-4, 6)


def write_extended(document: bytes) -> str:
    """Return a BSON document as canonical Extended JSON: one line, keys in their order, non-ASCII as it is."""
    return "{" + ",".join(f"{_text(item.name)}:{_value(document, item)}" for item in elements(document)) + "}"


def _value(document: bytes, item: Element) -> str:
    value = document[item.start : item.end]
    if item.kind == kinds.DOCUMENT:
        return write_extended(value)
    if item.kind == kinds.ARRAY:
        return "[" + ",".join(_value(value, inner) for inner in elements(value)) + "]"
    writer = _WRITERS.get(item.kind)
    if writer is None:
        raise IntegrityError(f"an option has a value of type 0x{item.kind:02x}, which Extended JSON does not know")
    return writer(value)


def _text(value: bytes) -> str:
    try:
        return json.dumps(value.decode(), ensure_ascii=False)
    except UnicodeDecodeError as error:
        raise IntegrityError("a name or text of an option is not UTF-8") from error


def _string(value: bytes) -> str:
    return _text(value[4:-1])


def _integer(value: bytes) -> str:
    return f'"{int.from_bytes(value, "little", signed=True)}"'


def write_double(number: float) -> str:
    """Return a double in the fewest digits that are exactly it, in the form of Go's format ``G``."""
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    exact = Decimal(repr(number)).normalize()
    exponent = exact.adjusted() if exact else 0
    if exponent in _PLAIN_EXPONENTS:
        plain = f"{exact:f}"
        return plain if "." in plain else f"{plain}.0"
    sign, digits, _ = exact.as_tuple()
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    return f"{'-' * sign}{first}{'.' if rest else ''}{rest}E{exponent:+03d}"


def _binary(value: bytes) -> str:
    subtype, content = value[4], value[5:]
    if subtype == 2:  # the old form repeats its length
        content = content[4:]
    return f'{{"$binary":{{"base64":"{base64.b64encode(content).decode()}","subType":"{subtype:02x}"}}}}'


def _regex(value: bytes) -> str:
    pattern, options, _ = value.split(b"\0")
    return f'{{"$regularExpression":{{"pattern":{_text(pattern)},"options":{_text(options)}}}}}'


def _timestamp(value: bytes) -> str:
    increment, seconds = struct.unpack("<II", value)
    return f'{{"$timestamp":{{"t":{seconds},"i":{increment}}}}}'


def _pointer(value: bytes) -> str:
    return f'{{"$dbPointer":{{"$ref":{_string(value[:-12])},"$id":{{"$oid":"{value[-12:].hex()}"}}}}}}'


def _scoped_code(value: bytes) -> str:
    code_end = 8 + int.from_bytes(value[4:8], "little")
    return f'{{"$code":{_string(value[4:code_end])},"$scope":{write_extended(value[code_end:])}}}'


def _decimal(value: bytes) -> str:
    return f'{{"$numberDecimal":"{Decimal128.from_bid(value)}"}}'


_WRITERS: Mapping[int, Callable[[bytes], str]] = {
    kinds.DOUBLE: lambda value: f'{{"$numberDouble":"{write_double(struct.unpack("<d", value)[0])}"}}',
    kinds.STRING: _string,
    kinds.BINARY: _binary,
    kinds.UNDEFINED: lambda _: '{"$undefined":true}',
    kinds.OBJECT_ID: lambda value: f'{{"$oid":"{value.hex()}"}}',
    kinds.BOOLEAN: lambda value: "true" if value != b"\0" else "false",
    kinds.DATE: lambda value: f'{{"$date":{{"$numberLong":{_integer(value)}}}}}',
    kinds.NULL: lambda _: "null",
    kinds.REGEX: _regex,
    kinds.POINTER: _pointer,
    kinds.CODE: lambda value: f'{{"$code":{_string(value)}}}',
    kinds.SYMBOL: lambda value: f'{{"$symbol":{_string(value)}}}',
    kinds.SCOPED_CODE: _scoped_code,
    kinds.INT32: lambda value: f'{{"$numberInt":{_integer(value)}}}',
    kinds.TIMESTAMP: _timestamp,
    kinds.INT64: lambda value: f'{{"$numberLong":{_integer(value)}}}',
    kinds.DECIMAL: _decimal,
    kinds.MIN_KEY: lambda _: '{"$minKey":1}',
    kinds.MAX_KEY: lambda _: '{"$maxKey":1}',
}
