"""Entries of an oplog, made by hand in MongoDB's shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
from bson import Binary, Int64, Timestamp

BEGUN_AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECONDS = int(BEGUN_AT.timestamp())
NO_OP_TIME = {"ts": Timestamp(0, 0), "t": Int64(-1)}


def entry(number: int, op: str, ns: str, o: Any, **more: Any) -> bytes:
    """One entry, written ``number`` seconds after the beginning."""
    fields = {
        "op": op,
        "ns": ns,
        "ui": Binary(b"u" * 16, 4),
        "o": o,
        "ts": Timestamp(SECONDS + number, 1),
        "t": Int64(1),
        "v": Int64(2),
        "wall": BEGUN_AT + timedelta(seconds=number),
    }
    return bson.encode({**fields, **more})


def insert(number: int, ns: str, document: Mapping[str, Any], **more: Any) -> bytes:
    """An entry that inserts."""
    return entry(number, "i", ns, document, o2={"_id": document["_id"]}, **more)


def update(number: int, ns: str, identifier: Any, diff: Mapping[str, Any], **more: Any) -> bytes:
    """An entry that updates by a delta."""
    return entry(number, "u", ns, {"$v": 2, "diff": diff}, o2={"_id": identifier}, **more)


def replace(number: int, ns: str, document: Mapping[str, Any]) -> bytes:
    """An entry that replaces a whole document."""
    return entry(number, "u", ns, document, o2={"_id": document["_id"]})


def delete(number: int, ns: str, identifier: Any) -> bytes:
    """An entry that deletes."""
    return entry(number, "d", ns, {"_id": identifier})


def command(number: int, database: str, o: Mapping[str, Any], **more: Any) -> bytes:
    """An entry that changes a collection."""
    return entry(number, "c", f"{database}.$cmd", o, **more)


def bundled(op: str, ns: str, o: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """An operation as it is inside of applyOps."""
    return {"op": op, "ns": ns, "ui": Binary(b"u" * 16, 4), "o": o, **more}


def bundle(number: int, operations: Iterable[Mapping[str, Any]], *, session: int, first: bool, **o: Any) -> bytes:
    """An entry of a transaction; ``o`` may say partialTxn or prepare."""
    previous = NO_OP_TIME if first else {"ts": Timestamp(SECONDS, 1), "t": Int64(1)}
    return command(number, "admin", {"applyOps": list(operations), **o}, **in_session(session), prevOpTime=previous)


def in_session(session: int) -> dict[str, Any]:
    """The fields of an entry that is of a session's first transaction."""
    return {"lsid": {"id": Binary(bytes([session]) * 16, 4), "uid": b"u" * 32}, "txnNumber": Int64(1)}
