"""Which keys there are."""

from __future__ import annotations

import re

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_KEY = re.compile(f"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*")
_LONGEST_BYTES = 900


def is_key(text: str) -> bool:
    """Say whether ``text`` may name an object; foreign objects in a bucket may have other names, and are not listed."""
    return len(text) <= _LONGEST_BYTES and _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Return ``key``; raise ValueError when it cannot name an object."""
    if not is_key(key):
        raise ValueError(f'"{key}" is not an object key: A-Z a-z 0-9 . _ - in segments joined by /, none . or ..')
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix``; raise ValueError when no key can start with it."""
    if not _PREFIX.fullmatch(prefix) or prefix.startswith("/") or {".", ".."} & set(prefix.split("/")[:-1]):
        raise ValueError(f'"{prefix}" is not the beginning of an object key')
    return prefix
