"""Whether every document of a collection has an ``_id`` that no other has, looked at while an archive streams by.

A server refuses the second of two documents with one ``_id``, so an archive that has them cannot be restored. Each
``_id`` is kept in 16 bytes: as it is where it fits, else as a digest. Numbers of one value are one ``_id`` whatever
their type. How many are kept at once is bounded; beyond that the first of a collection are compared, and a note tells.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Any

import bson
import numpy as np
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from numpy.typing import NDArray

MOST_IDENTIFIERS = 4_000_000
"""How many are kept at once: 64 MB, and half as much again while they are compared."""
_KEY_BYTES = 16
_PLACE = 9
"""Where the value lies in a document that begins with its ``_id``: length, type, name and NUL before it."""
_NAME = b"_id\0"
_INT32, _INT64, _DOUBLE = 0x10, 0x12, 0x01
_SIZES = {_INT32: 4, _INT64: 8, _DOUBLE: 8, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x11: 8, 0xFF: 0, 0x7F: 0}
"""Bytes of the types that have a size of their own and fit beside the type: ObjectId, boolean, date, null, …"""
_MEASURED = {0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5}
"""Types that begin with a length, and how many bytes there are beside those it counts: text, documents, binary."""
_LENGTH = struct.Struct("<i")
_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_LARGEST_INTEGER = float(1 << 62)

_Positions = NDArray[np.int64]
_Keys = NDArray[np.uint64]


class Identifiers:
    """Takes the documents of collections as they come and says what is wrong with their ``_id``."""

    def __init__(self, most: int = MOST_IDENTIFIERS) -> None:
        self._most = most
        self._kept: dict[str, list[_Keys]] = {}
        self._kept_count = 0
        self._seen: dict[str, int] = {}
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Return of which collections not every ``_id`` was compared."""
        return tuple(self._notes)

    def take(self, collection: str, data: bytes, ends: list[int]) -> str:
        """Look at whole documents that lie one after another; return what is wrong with one, or nothing."""
        bytes_of = np.frombuffer(data, np.uint8)
        stops = np.array(ends, np.int64)
        starts = np.concatenate(([0], stops[:-1]))
        leading = _begins_with_id(bytes_of, starts, stops)
        keys = np.zeros((len(ends), _KEY_BYTES), np.uint8)
        types = np.where(leading, bytes_of[np.minimum(starts + 4, len(data) - 1)], 0)
        for kind in np.unique(types).tolist():
            chosen = np.flatnonzero(types == kind)
            size = _SIZES.get(kind)
            if size is None:
                fault = _digest_each(keys, data, zip(chosen.tolist(), starts[chosen], stops[chosen], strict=True))
                if fault:
                    return fault
                continue
            if np.any(stops[chosen] - starts[chosen] < _PLACE + size + 1):
                return "has a document whose _id is cut"
            values = bytes_of[(starts[chosen] + _PLACE)[:, None] + np.arange(size)]
            keys[chosen] = _fixed_keys(kind, values)
        self._keep(collection, keys.view(np.uint64))
        return ""

    def _keep(self, collection: str, keys: _Keys) -> None:
        self._seen[collection] = self._seen.get(collection, 0) + len(keys)
        kept = keys[: max(self._most - self._kept_count, 0)]
        self._kept_count += len(kept)
        self._kept.setdefault(collection, []).append(kept.copy() if len(kept) < len(keys) else kept)

    def close(self, collection: str) -> str:
        """Compare what was taken of a collection, which has ended; return what is wrong with it, or nothing."""
        kept, seen = self._kept.pop(collection, []), self._seen.pop(collection, 0)
        count = sum(len(keys) for keys in kept)
        self._kept_count -= count
        if count < seen:
            self._notes.append(
                f"collection {collection}: the _id of the first {count:,} of {seen:,} documents compared"
            )
        return "has an _id twice" if _has_twice(kept) else ""


def _begins_with_id(data: NDArray[np.uint8], starts: _Positions, stops: _Positions) -> NDArray[np.bool_]:
    leading = stops - starts > _PLACE
    places = np.where(leading, starts + 5, 0)
    for offset, letter in enumerate(_NAME):
        leading &= data[np.minimum(places + offset, len(data) - 1)] == letter
    return leading


def _fixed_keys(kind: int, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the keys of values that fit: the type, then the value; integers of any type look alike."""
    keys = np.zeros((len(values), _KEY_BYTES), np.uint8)
    if kind in {_INT32, _INT64, _DOUBLE}:
        numbers = np.ascontiguousarray(values).view({_INT32: "<i4", _INT64: "<i8", _DOUBLE: "<f8"}[kind])[:, 0]
        whole = np.ones(len(numbers), np.bool_)
        if kind == _DOUBLE:
            whole = (np.abs(numbers) < _LARGEST_INTEGER) & (np.floor(numbers) == numbers)
        keys[:, 0] = np.where(whole, _INT64, _DOUBLE)
        integers = np.where(whole, numbers, 0).astype("<i8")
        keys[whole, 8:] = integers[whole].view(np.uint8).reshape(-1, 8)
        keys[~whole, 8:] = values[~whole] if kind == _DOUBLE else 0
        return keys
    keys[:, 0] = kind
    keys[:, 1 : 1 + values.shape[1]] = values
    return keys


def _digest_each(keys: NDArray[np.uint8], data: bytes, places: Any) -> str:
    """Put in the keys of values that do not fit, one by one; return what is wrong with one, or nothing."""
    for row, start, stop in places:
        value = _value_of(data[start:stop])
        if value is None:
            return "has a document without _id"
        keys[row] = np.frombuffer(
            value if len(value) == 16 else b"\0" + blake2b(value, digest_size=15).digest(), np.uint8
        )
    return ""


def _value_of(document: bytes) -> bytes | None:
    """Return type and value of a document's ``_id``, the key of one that has a fixed size; None where it has none."""
    if document[5:_PLACE] == _NAME and document[4] in _MEASURED:
        size = _measure(document)
        return document[4:5] + document[_PLACE : _PLACE + size] if size >= 0 else None
    try:
        found = bson.decode(document, _OPTIONS)
        if "_id" not in found:
            return None
        alone = bson.encode({"_id": found["_id"]}, codec_options=_OPTIONS)
    except (BSONError, ValueError, OverflowError, RecursionError):
        return None
    kind, value = alone[4], alone[_PLACE:-1]
    if kind in _SIZES:
        return _fixed_keys(kind, np.frombuffer(value, np.uint8).reshape(1, -1)).tobytes()
    return bytes([kind]) + value


def _measure(document: bytes) -> int:
    """Return the size of the ``_id`` that a document begins with, -1 when it reaches beyond the document."""
    room = len(document) - _PLACE - 1
    if room < _LENGTH.size:
        return -1
    size = int(_LENGTH.unpack_from(document, _PLACE)[0]) + _MEASURED[document[4]]
    return size if _LENGTH.size <= size <= room else -1


def _has_twice(kept: list[_Keys]) -> bool:
    """Tell whether a key is there twice: sorted by half of their bits first, looked at whole where these are equal."""
    if not kept:
        return False
    mixed = np.concatenate([_mixed(keys) for keys in kept])
    mixed.sort()
    repeated = np.unique(mixed[1:][mixed[1:] == mixed[:-1]])
    if not len(repeated):
        return False
    seen: set[bytes] = set()
    for keys in kept:
        for key in keys[np.isin(_mixed(keys), repeated)]:
            if key.tobytes() in seen:
                return True
            seen.add(key.tobytes())
    return False


def _mixed(keys: _Keys) -> NDArray[np.uint64]:
    product: NDArray[np.uint64] = keys[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ keys[:, 1]
    return product
