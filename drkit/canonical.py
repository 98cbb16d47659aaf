"""Canonical JSON: one value has exactly one spelling, so digests and signatures can be taken over it."""

from __future__ import annotations

import json
from typing import Any

from drkit.errors import IntegrityError

JSON = dict[str, Any] | list[Any] | str | int | bool | None


def canonical_json(value: JSON) -> bytes:
    """Encode with sorted keys, no white space, UTF-8 and no floats, and one newline at the end.

    Raise TypeError for a float: two readers may print the same float differently, and a digest would not survive that.
    """
    _refuse_floats(value)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Decode one JSON object; raise IntegrityError naming ``what`` when it is not one, or repeats a key.

    A repeated key is refused because readers disagree on which of the two counts, and the signature covers both.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is not a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse_floats(value: JSON) -> None:
    if isinstance(value, float):
        raise TypeError(f"canonical JSON has no floats, got {value!r}")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)
