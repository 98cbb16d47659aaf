"""What a database is made of, read from the server as it stands: collections with their options, indexes and UUIDs.

The server's bytes become the metadata of an archive in the very form in which mongodump writes it (mongodump,
metadata_dump.go), and nothing is decoded on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bson import Int64
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from drkit import bson_elements as kinds
from drkit.bson_elements import elements
from drkit.engines.mongodb_client import Client
from drkit.extended_json import write_extended
from drkit.mongo_archive import Namespace
from drkit.mongo_archive_writer import CollectionMetadata

RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_NAMESPACE_NOT_FOUND = 26


@dataclass(frozen=True)
class RawCollection:
    """One collection, view or time series as the server lists it."""

    namespace: Namespace
    kind: str
    options: bytes | None
    uuid: str
    indexes: tuple[bytes, ...] = ()

    @property
    def has_documents(self) -> bool:
        """Tell whether it has documents of its own."""
        return self.kind == "collection"

    @property
    def is_time_series(self) -> bool:
        """Tell whether it is a time series; not every server says so in its kind."""
        return self.kind == "timeseries" or "timeseries" in self.option_names

    @property
    def option_names(self) -> frozenset[str]:
        """Return the names of the options that are set."""
        names = (item.name for item in elements(self.options or b"\x05\0\0\0\0"))
        return frozenset(name.decode(errors="replace") for name in names)

    def metadata(self) -> CollectionMetadata:
        """Return its entry in an archive."""
        words = [f'"options":{write_extended(self.options)}'] if self.options and self.option_names else []
        words.append(f'"indexes":[{",".join(map(write_extended, self.indexes))}]')
        words += [f'"uuid":"{self.uuid}"'] if self.uuid else []
        words.append(f'"collectionName":{json.dumps(self.namespace[1], ensure_ascii=False)}')
        words.append(f'"type":{json.dumps(self.kind)}')
        return CollectionMetadata(self.namespace, self.kind, "{" + ",".join(words) + "}")


def read_collections(client: Client, database: str) -> list[RawCollection]:
    """Return what mongodump would dump of a database, in the order of its names; what is dropped meanwhile is absent.

    Of the system's own collections that is ``system.js`` alone (mongodump, prepare.go).
    """
    found = []
    for entry in _cursor(client, database, {"listCollections": 1, "cursor": {}}):
        collection = _collection(database, entry)
        if not _is_dumped(collection.namespace[1]):
            continue
        try:
            found.append(_with_indexes(client, collection))
        except OperationFailure as error:
            if error.code != _NAMESPACE_NOT_FOUND:
                raise
    return sorted(found, key=lambda item: item.namespace)


def _is_dumped(name: str) -> bool:
    return name == "system.js" or not (name.startswith("system.") or "$" in name)


def _collection(database: str, entry: RawBSONDocument) -> RawCollection:
    options, uuid = None, ""
    document = bytes(entry.raw)
    for item in elements(document):
        value = document[item.start : item.end]
        if item.name == b"options" and item.kind == kinds.DOCUMENT:
            options = value
        elif item.name == b"info" and item.kind == kinds.DOCUMENT:
            uuid = next(
                (value[part.start + 5 : part.end].hex() for part in elements(value) if part.name == b"uuid"), ""
            )
    return RawCollection((database, str(entry["name"])), str(entry.get("type", "collection")), options, uuid)


def _with_indexes(client: Client, collection: RawCollection) -> RawCollection:
    if not collection.has_documents:
        return collection
    database, name = collection.namespace
    indexes = tuple(bytes(item.raw) for item in _cursor(client, database, {"listIndexes": name, "cursor": {}}))
    return RawCollection(collection.namespace, collection.kind, collection.options, collection.uuid, indexes)


def _cursor(client: Client, database: str, command: Mapping[str, Any]) -> Iterator[RawBSONDocument]:
    """Yield the raw documents of a command that answers with a cursor."""
    with client.start_session(causal_consistency=False) as session:
        reply = client[database].command(dict(command), codec_options=RAW, session=session)["cursor"]
        yield from reply["firstBatch"]
        while reply["id"]:
            _, _, name = str(reply["ns"]).partition(".")
            more = {"getMore": Int64(reply["id"]), "collection": name}
            reply = client[database].command(more, codec_options=RAW, session=session)["cursor"]
            yield from reply["nextBatch"]


@dataclass(frozen=True)
class Estimate:
    """What a server's metadata say that a collection has; ``size_bytes`` is None where they do not tell."""

    documents: int
    size_bytes: int | None = None


def estimate(client: Client, collections: Iterable[RawCollection]) -> dict[Namespace, Estimate]:
    """Return about how much each collection has; only those with documents of their own.

    No document is read, and no more than ``find`` is needed of the user's rights (MongoDB manual, privilege actions).
    """
    return {item.namespace: _estimate(client, *item.namespace) for item in collections if item.has_documents}


def _estimate(client: Client, database: str, name: str) -> Estimate:
    try:
        said = client[database].command({"dataSize": f"{database}.{name}", "estimate": True})
        return Estimate(int(said["numObjects"]), int(said["size"]))
    except (OperationFailure, KeyError):
        return Estimate(client[database][name].estimated_document_count())
