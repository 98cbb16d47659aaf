"""Walking BSON by its bytes: which elements a document has and where, without decoding a value (bsonspec.org).

Nothing is turned into a Python value and back, so no value can change its type, a key may come twice, and types that
no driver knows any more (undefined, symbol, DBPointer) are as good as others. Damage raises IntegrityError.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from drkit.errors import IntegrityError

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, UNDEFINED, OBJECT_ID, BOOLEAN = range(0x01, 0x09)
DATE, NULL, REGEX, POINTER, CODE, SYMBOL, SCOPED_CODE, INT32, TIMESTAMP, INT64, DECIMAL = range(0x09, 0x14)
MIN_KEY, MAX_KEY = 0xFF, 0x7F

LARGEST_DOCUMENT_BYTES = (16 << 20) + (16 << 10)
"""What a server accepts internally (BSONObjMaxInternalSize): an oplog entry may be that much over 16 MiB."""

_LENGTH = struct.Struct("<i")
_FIXED_BYTES = {
    DOUBLE: 8,
    UNDEFINED: 0,
    OBJECT_ID: 12,
    BOOLEAN: 1,
    DATE: 8,
    NULL: 0,
    INT32: 4,
    TIMESTAMP: 8,
    INT64: 8,
    DECIMAL: 16,
    MIN_KEY: 0,
    MAX_KEY: 0,
}
_MORE_THAN_LENGTH = {STRING: 4, CODE: 4, SYMBOL: 4, BINARY: 5, POINTER: 16, DOCUMENT: 0, ARRAY: 0, SCOPED_CODE: 0}
"""What a value has beside the length that it begins with: the length itself, a subtype, an ObjectId, or nothing."""
_EMPTY_TIMESTAMP = bytes(8)
_MAYBE_EMPTY_TIMESTAMP = re.compile(rb"\x11[^\x00]*\x00{9}")


class Element(NamedTuple):
    """One element of a document: its type, its name, and where its value is in the document's bytes."""

    kind: int
    name: bytes
    start: int
    end: int


def elements(document: bytes) -> Iterator[Element]:
    """Yield the top-level elements in their order; raise IntegrityError where the bytes are no document."""
    last = len(document) - 1
    if last < _LENGTH.size or _LENGTH.unpack_from(document)[0] != len(document) or document[last]:
        raise _damage()
    position = _LENGTH.size
    while position < last:
        name_end = document.find(b"\0", position + 1, last)
        if name_end < 0:
            raise _damage()
        kind, start = document[position], name_end + 1
        end = start + _value_bytes(document, kind, start)
        if end > last:
            raise _damage()
        yield Element(kind, document[position + 1 : name_end], start, end)
        position = end


def find_value(document: bytes, name: bytes) -> tuple[int, int, int] | None:
    """Return type, start and end of the first top-level value of a name; None where there is none.

    It is what `elements` says, at a third of the cost: an oplog is walked entry by entry. The rest is not looked at.
    """
    last, position, size = len(document) - 1, _LENGTH.size, len(name)
    while position < last:
        name_end = document.find(b"\0", position + 1, last)
        if name_end < 0:
            raise _damage()
        kind, start = document[position], name_end + 1
        end = start + (_FIXED_BYTES[kind] if kind in _FIXED_BYTES else _value_bytes(document, kind, start))
        if end > last:
            raise _damage()
        if name_end - position - 1 == size and document.startswith(name, position + 1):
            return kind, start, end
        position = end
    return None


def _value_bytes(document: bytes, kind: int, start: int) -> int:
    fixed = _FIXED_BYTES.get(kind)
    if fixed is not None:
        return fixed
    if kind == REGEX:
        pattern_end = document.find(b"\0", start)
        options_end = document.find(b"\0", pattern_end + 1) if pattern_end >= 0 else -1
        if options_end < 0:
            raise _damage()
        return options_end + 1 - start
    more = _MORE_THAN_LENGTH.get(kind)
    if more is None or start + _LENGTH.size > len(document):
        raise _damage()
    length = int(_LENGTH.unpack_from(document, start)[0])
    if length < 0:
        raise _damage()
    return length + more


def _damage() -> IntegrityError:
    return IntegrityError("a document is no BSON")


def split_documents(documents: bytes) -> Iterator[bytes]:
    """Yield each of several documents that stand one after another; raise IntegrityError where they are cut."""
    position, available = 0, len(documents)
    while position < available:
        if position + _LENGTH.size > available:
            raise _damage()
        end = position + int(_LENGTH.unpack_from(documents, position)[0])
        if end <= position + _LENGTH.size or end > available:
            raise _damage()
        yield documents[position:end]
        position = end


def may_have_empty_timestamps(documents: bytes) -> bool:
    """Tell quickly whether an empty timestamp may be anywhere in the bytes; no means no."""
    return _MAYBE_EMPTY_TIMESTAMP.search(documents) is not None


def has_empty_timestamp(document: bytes) -> bool:
    """Tell whether a top-level field other than ``_id`` is Timestamp(0, 0), which a server replaces on insert."""
    return may_have_empty_timestamps(document) and any(
        item.kind == TIMESTAMP and item.name != b"_id" and document[item.start : item.end] == _EMPTY_TIMESTAMP
        for item in elements(document)
    )
