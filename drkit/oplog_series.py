"""Time series in an oplog: what is logged of a series' buckets, as operations of the series itself.

Before MongoDB 8.3 a series ``NAME`` is a view of the collection ``system.buckets.NAME``, and the oplog has that
collection: it is created, indexed and changed there, in documents of up to a thousand measurements. A target is told to
make the series, which makes both; then buckets are written as any documents. What cannot be taken over so is refused:
changes inside of compressed columns (MongoDB 8.0 and newer, timeseries_write_util.cpp) and series without buckets of
their own (8.3 and newer, SecantusDB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drkit.bson_elements import DOCUMENT
from drkit.errors import RecoveryGap
from drkit.oplog_catalog import OplogCatalog
from drkit.oplog_entries import Command, Operation, Write
from drkit.raw_bson import find_element

BUCKETS = "system.buckets."
_CREATED_WITH = ("timeseries", "expireAfterSeconds", "collation", "storageEngine", "indexOptionDefaults")
"""What the series is made with; the rest of its buckets' options is the server's doing."""
_NOT_REPLAYED = "which is not replayed"
_META, _MIN, _MAX = "meta", "control.min.", "control.max."


def series_name(namespace: str) -> str:
    """Return the name of the series whose buckets lie there; any other name as it is."""
    return namespace.replace(f".{BUCKETS}", ".", 1)


def buckets_name(namespace: str) -> str:
    """Return where the buckets of a series lie."""
    return namespace.replace(".", f".{BUCKETS}", 1)


def as_of_series(operation: Operation, catalog: OplogCatalog) -> Operation | None:
    """Return a command to buckets as one to their series, None where another says the same; others as they are.

    Writes stay those of buckets: that is where their documents lie, in the target as well.
    Raise RecoveryGap naming entry and series for what cannot be replayed.
    """
    series = series_name(operation.namespace)
    of_buckets = series != operation.namespace
    if isinstance(operation, Command):
        if of_buckets:
            return _command(operation, series, catalog)
        if operation.namespace in catalog.time_series and operation.name in ("create", "drop"):
            # The view that the series is to people, or its end: the buckets are made and dropped by an entry of theirs.
            return None
        if str(operation.body.get("viewOn", "")).startswith(BUCKETS):
            return None
        if "timeseries" in operation.body or operation.namespace in catalog.time_series:
            raise _refusal(operation, series, _NOT_REPLAYED)
        return operation
    if not of_buckets and operation.namespace not in catalog.time_series:
        return operation
    if not of_buckets or series not in catalog.time_series:
        raise _refusal(operation, series, _NOT_REPLAYED)
    if operation.kind == "update" and _changes_columns(operation):
        raise _refusal(operation, series, "and changes a compressed bucket, as MongoDB 8.0 and newer do: not replayed")
    return operation


def _command(command: Command, series: str, catalog: OplogCatalog) -> Command:
    name, body = series.partition(".")[2], command.body
    if command.name == "create" and "timeseries" in body:
        kept = {key: body[key] for key in _CREATED_WITH if key in body}
        return command._replace(namespace=series, body={"create": name, **kept})
    if series not in catalog.time_series or command.name == "renameCollection":
        raise _refusal(command, series, _NOT_REPLAYED)
    body = {**body, command.name: name}
    if command.name in ("createIndexes", "commitIndexBuild"):
        body = {command.name: name, "indexes": [_index(command, series, index, catalog) for index in _indexes(body)]}
    return command._replace(namespace=series, body=body)


def _indexes(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "indexes" in body or "spec" in body:
        yield from body.get("indexes") or [body["spec"]]
    else:
        yield {key: value for key, value in body.items() if key not in ("createIndexes", "commitIndexBuild")}


def _index(command: Command, series: str, index: Mapping[str, Any], catalog: OplogCatalog) -> Mapping[str, Any]:
    """Return an index of buckets as one of the series, as its owner wrote it.

    Newer servers keep that beside it; else it follows from the key (timeseries_index_schema_conversion_functions.cpp).
    """
    if "originalSpec" in index:
        return dict(index["originalSpec"])
    key = _key(list(dict(index.get("key", {})).items()), catalog.meta_fields.get(series, ""))
    if key is None or "partialFilterExpression" in index:
        raise _refusal(command, series, f"and makes index {index.get('name')} in a form that this drkit does not know")
    return {**index, "key": key}


def _key(pairs: list[tuple[str, Any]], meta_field: str) -> dict[str, Any] | None:
    """Return the key that its owner wrote for a key of buckets; None where it is of no known form.

    What is measured has a pair of keys there, the least and the greatest of a bucket, in the order of the direction.
    """
    key: dict[str, Any] = {}
    while pairs:
        field, direction = pairs.pop(0)
        if field == _META or field.startswith(f"{_META}."):
            if not meta_field:
                return None
            key[meta_field + field.removeprefix(_META)] = direction
            continue
        ends = (_MIN, _MAX) if field.startswith(_MIN) else (_MAX, _MIN)
        measured = field.removeprefix(ends[0])
        if measured == field or not pairs or pairs.pop(0) != (ends[1] + measured, direction):
            return None
        key[measured] = direction
    return key or None


def _changes_columns(write: Write) -> bool:
    data = find_element(write.document, b"sdata")
    return data is not None and data.kind == DOCUMENT and find_element(data.value, b"b") is not None


def _refusal(operation: Operation, series: str, what: str) -> RecoveryGap:
    return RecoveryGap(
        f"oplog entry {operation.ts} is of time series {series}, {what}",
        hints=[f"leave it out: --exclude-table {series}", "or restore the dump alone: --artifact ID"],
    )
