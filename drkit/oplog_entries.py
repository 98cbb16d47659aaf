"""Oplog entries as operations: what was written, read from raw BSON without decoding a document.

An entry is one write, one command, or a bundle of them (``applyOps``); what is in a bundle of a transaction counts only
once it is committed (`drkit.oplog_transactions`). A kind of entry or a command that is not known is refused: to leave
it out would be to restore something else. The shapes are those of MongoDB 4.4 to 8.x (oplog_entry.idl and
mongo-tools, mongorestore/oplog.go) and of SecantusDB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from drkit.bson_elements import ARRAY, DATE, DOCUMENT, STRING, TIMESTAMP
from drkit.errors import IntegrityError
from drkit.oplog import OplogTs
from drkit.raw_bson import Element, find_element, make_document, read_elements

_TRUE = b"\x01"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REST_OF_SECOND = timedelta(milliseconds=999)
_DELTA_VERSION = 2
_INTERNAL = ("n", "km", "ci", "cd", "cu")
"""Kinds of entries that change no document: heartbeats, and what the server keeps in containers of its own."""
_SKIPPED_DATABASES = ("admin", "config", "local")
USERS, ROLES = "admin.system.users", "admin.system.roles"
"""Where MongoDB keeps users and roles of all databases."""
_SKIPPED_COLLECTIONS = ("system.profile",)
_VIEWS = "system.views"
_COMMANDS = (
    *("create", "drop", "dropDatabase", "renameCollection", "collMod"),
    *("createIndexes", "commitIndexBuild", "dropIndexes", "deleteIndexes"),
)
_SKIPPED_COMMANDS = ("startIndexBuild", "abortIndexBuild")
"""An index that is being built is there once it is committed."""


class Write(NamedTuple):
    """One document inserted, replaced, updated or deleted.

    ``id`` is the element ``_id`` as it is in a document. ``document`` is the whole new document; of an update it is the
    delta, and of a deletion it is empty.
    """

    kind: Literal["insert", "replace", "update", "delete"]
    namespace: str
    id: bytes
    document: bytes
    ts: OplogTs


class Command(NamedTuple):
    """A change to a collection, its options or its indexes; ``body`` has raw documents inside."""

    name: str
    namespace: str
    body: Mapping[str, Any]
    ts: OplogTs


Operation = Write | Command


@dataclass(frozen=True, slots=True)
class OplogEntry:
    """One entry: ``o`` is what it does, ``o2`` which document it is of.

    ``session`` is the raw logical session and the number of the transaction or retryable write, None without one.
    ``continues`` says that entries of the same session came before it.
    """

    ts: OplogTs
    wall_at: datetime | None
    kind: str
    namespace: str
    o: bytes
    o2: bytes | None
    session: tuple[bytes, bytes] | None
    continues: bool
    separate: bool

    @property
    def at(self) -> datetime:
        """Return when it was written: the server's clock, kept within the second of its place.

        Places only grow. Clocks do not: after a failover, entries of the member that was ahead are from the future of
        the one that goes on.
        """
        second = self.ts.moment
        return min(max(self.wall_at or second, second), second + _REST_OF_SECOND)


def read_entry(raw: bytes) -> OplogEntry:
    """Read one entry; raise IntegrityError for what is none, naming its place."""
    fields = {item.name: item for item in read_elements(raw)}
    ts = fields.get(b"ts")
    if ts is None or ts.kind != TIMESTAMP:
        raise IntegrityError("an oplog entry has no ts")
    place = _read_ts(ts.value)
    version = fields.get(b"v")
    if version is not None and int.from_bytes(version.value, "little") != _DELTA_VERSION:
        raise _refusal(place, "is of a version of the oplog that this drkit does not know")
    wall, number = fields.get(b"wall"), fields.get(b"txnNumber")
    lsid, multi = fields.get(b"lsid"), fields.get(b"multiOpType")
    return OplogEntry(
        ts=place,
        wall_at=_read_date(wall.value) if wall is not None and wall.kind == DATE else None,
        kind=_text(fields, b"op", place),
        namespace=_text(fields, b"ns", place),
        o=_document(fields, b"o", place),
        o2=fields[b"o2"].value if b"o2" in fields and fields[b"o2"].kind == DOCUMENT else None,
        session=(lsid.value, number.value) if lsid is not None and number is not None else None,
        continues=_continues(fields),
        separate=multi is not None and int.from_bytes(multi.value, "little") != 0,
    )


def _read_ts(value: bytes) -> OplogTs:
    increment, seconds = struct.unpack("<II", value)
    return OplogTs(seconds, increment)


def _read_date(value: bytes) -> datetime | None:
    try:
        return _EPOCH + timedelta(milliseconds=int.from_bytes(value, "little", signed=True))
    except OverflowError:
        return None


def _text(fields: Mapping[bytes, Element], name: bytes, ts: OplogTs) -> str:
    item = fields.get(name)
    if item is None or item.kind != STRING:
        raise _refusal(ts, f"has no {name.decode()}")
    return item.value[4:-1].decode(errors="replace")


def _document(fields: Mapping[bytes, Element], name: bytes, ts: OplogTs) -> bytes:
    item = fields.get(name)
    if item is None or item.kind != DOCUMENT:
        raise _refusal(ts, f"has no {name.decode()}")
    return item.value


def _continues(fields: Mapping[bytes, Element]) -> bool:
    previous = fields.get(b"prevOpTime")
    if previous is None or previous.kind != DOCUMENT:
        return False
    ts = find_element(previous.value, b"ts")
    return ts is not None and any(ts.value)


def _refusal(ts: OplogTs, what: str) -> IntegrityError:
    return IntegrityError(f"oplog entry {ts} {what}")


def command_name(entry: OplogEntry) -> str:
    """Return the name of a command's entry, its first field."""
    first = next(read_elements(entry.o), None)
    if first is None:
        raise _refusal(entry.ts, "is a command without a name")
    return first.name.decode(errors="replace")


def read_operations(entry: OplogEntry) -> Iterator[Operation]:
    """Yield what an entry does, bundles unpacked; nothing for what concerns the server alone.

    Raise IntegrityError naming the entry's place for what is not known.
    """
    try:
        yield from _operations(entry.kind, entry.namespace, entry.o, entry.o2, entry.ts)
    except RecursionError as error:
        raise _refusal(entry.ts, "bundles bundles deeper than any server does") from error


def _operations(kind: str, namespace: str, o: bytes, o2: bytes | None, ts: OplogTs) -> Iterator[Operation]:
    database, _, collection = namespace.partition(".")
    if kind in _INTERNAL:
        return
    if database in _SKIPPED_DATABASES and collection != "$cmd" and namespace not in (USERS, ROLES):
        return
    if kind == "c":
        yield from _command(database, o, ts)
    elif kind not in ("i", "u", "d"):
        raise _refusal(ts, f'is of kind "{kind}", which this drkit does not know')
    elif collection == _VIEWS:
        yield from _view_commands(_write(kind, namespace, o, o2, ts))
    elif collection not in _SKIPPED_COLLECTIONS:
        yield _write(kind, namespace, o, o2, ts)


def _view_commands(write: Write) -> Iterator[Command]:
    """Yield what a write to the collection that MongoDB keeps its views in means for the view."""
    from bson.raw_bson import RawBSONDocument

    if write.kind == "update":
        raise _refusal(write.ts, f"changes a view of {write.namespace} in a way that this drkit does not know")
    name = write.id.partition(b"\0")[2][4:-1].decode(errors="replace")
    short = name.partition(".")[2]
    if write.kind != "insert":
        yield Command("drop", name, {"drop": short}, write.ts)
    if write.kind != "delete":
        yield Command("create", name, {"create": short, **RawBSONDocument(write.document)}, write.ts)


def _write(kind: str, namespace: str, o: bytes, o2: bytes | None, ts: OplogTs) -> Write:
    if kind == "i":
        return Write("insert", namespace, _id_of(o, ts), o, ts)
    if kind == "d":
        return Write("delete", namespace, _id_of(o, ts), b"", ts)
    if o2 is None:
        raise _refusal(ts, "is an update of no document")
    fields = {item.name: item for item in read_elements(o)}
    if b"_id" in fields:
        return Write("replace", namespace, _id_of(o2, ts), o, ts)
    version, diff = fields.get(b"$v"), fields.get(b"diff")
    known = version is not None and int.from_bytes(version.value[:4], "little") == _DELTA_VERSION
    if not known or diff is None or diff.kind != DOCUMENT or len(fields) != len((b"$v", b"diff")):
        keys = ", ".join(name.decode(errors="replace") for name in fields)
        raise _refusal(ts, f"is an update of a shape that this drkit does not know, with {keys}")
    return Write("update", namespace, _id_of(o2, ts), diff.value, ts)


def _id_of(document: bytes, ts: OplogTs) -> bytes:
    found = find_element(document, b"_id")
    if found is None:
        raise _refusal(ts, "is of a document without _id")
    return bytes(found)


def _command(database: str, o: bytes, ts: OplogTs) -> Iterator[Operation]:
    first = next(read_elements(o), None)
    name = first.name.decode(errors="replace") if first is not None else ""
    if name == "applyOps":
        yield from _bundle(o, ts)
    elif name not in _COMMANDS:
        if name not in _SKIPPED_COMMANDS and database not in _SKIPPED_DATABASES:
            raise _refusal(ts, f'is command "{name}", which this drkit does not know')
    elif database not in _SKIPPED_DATABASES:
        assert first is not None
        yield _typed_command(name, database, o, first, ts)


def _typed_command(name: str, database: str, o: bytes, first: Element, ts: OplogTs) -> Command:
    from bson.raw_bson import RawBSONDocument

    named = first.value[4:-1].decode(errors="replace") if first.kind == STRING else ""
    if not named and name != "dropDatabase":
        raise _refusal(ts, f'is command "{name}" of nothing')
    namespace = named if name == "renameCollection" else f"{database}.{named}"
    return Command(name, namespace, dict(RawBSONDocument(o)), ts)


def _bundle(o: bytes, ts: OplogTs) -> Iterator[Operation]:
    bundled = find_element(o, b"applyOps")
    if bundled is None or bundled.kind != ARRAY:
        raise _refusal(ts, "is a bundle of nothing")
    for item in read_elements(bundled.value):
        fields = {field.name: field for field in read_elements(item.value)}
        o2 = fields.get(b"o2")
        yield from _operations(
            _text(fields, b"op", ts),
            _text(fields, b"ns", ts),
            _document(fields, b"o", ts),
            o2.value if o2 is not None and o2.kind == DOCUMENT else None,
            ts,
        )


def id_query(element: bytes) -> bytes:
    """Return the raw query for the document of an ``_id``: by equality, whatever the value looks like."""
    kind, _, value = element[0], *element[1:].partition(b"\0")[1:]
    equal = make_document([Element(kind, b"$eq", value)])
    return make_document([Element(DOCUMENT, b"_id", equal)])


def flag(document: bytes, name: bytes) -> bool:
    """Tell whether a field is there and true."""
    found = find_element(document, name)
    return found is not None and found.value == _TRUE
