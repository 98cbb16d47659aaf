"""Loading an archive without mongorestore: documents go to the server as the raw bytes that they are in the archive.

Inserts are unordered and run side by side, except into capped collections, where the order is part of the data. A
document that the server refuses is counted and never passed over in silence. Validators are bypassed, as what was there
before its validator has to come back as well.

A server replaces an empty timestamp, Timestamp(0, 0) in a top-level field, by its clock when a document is inserted.
Newer servers can be told not to; for the others the document is put right by an update (SERVER-88750, TOOLS-3540).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bson.raw_bson import RawBSONDocument

from drkit.bson_elements import has_empty_timestamp, may_have_empty_timestamps
from drkit.engines.mongodb_client import Client, ServerFacts
from drkit.engines.mongodb_fingerprint import collection_name
from drkit.engines.mongodb_indexes import from_extended_json
from drkit.errors import SourceError
from drkit.mongo_archive import ArchiveReader, ArchiveSummary, CollectionSummary, Namespace
from drkit.units import MIB, format_count

_BATCH_BYTES = 8 * MIB
_BATCH_DOCUMENTS = 10_000
_SHOWN_ERRORS = 5
_KEEPS_EMPTY_TIMESTAMPS = {5: 29, 6: 17, 7: 13}
"""From which patch release on X.0 servers take ``bypassEmptyTsReplacement``; those from 8.0 on all do."""
_NOT_CREATED_WITH = ("autoIndexId", "recordIdsReplicated")
"""Options that a server lists and none takes any more, or none takes from a user."""


@dataclass
class _Outcome:
    """What came of the inserts so far; ``errors`` are the first few."""

    inserted: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)


def load_archive(
    client: Client, server: ServerFacts, targets: Mapping[str, str], chunks: Iterator[bytes], jobs: int
) -> tuple[int, ArchiveSummary]:
    """Load the documents of an archive; return how many were inserted, and what the archive holds.

    ``targets`` says under which name each collection is loaded, both as ``database.collection``; others are left out.
    Raise SourceError naming refused documents when all were tried, or a time series before anything is written;
    IntegrityError when the archive is not sound. Whatever was written stays.
    """
    with ThreadPoolExecutor(jobs, "insert") as pool:
        loading = _Loading(client, server, targets, pool, jobs)
        reader = ArchiveReader(digests=False, sink=loading)
        try:
            for chunk in chunks:
                reader.feed(chunk)
            summary = reader.finish()
            outcome = loading.finish()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if outcome.refused:
        tried = outcome.inserted + outcome.refused
        raise SourceError(
            f"the server refused {format_count(outcome.refused, 'document')} of {tried:,}", details=outcome.errors
        )
    return outcome.inserted, summary


class _Loading:
    """Takes an archive's content as it is read: an `ArchiveSink`."""

    def __init__(
        self, client: Client, server: ServerFacts, targets: Mapping[str, str], pool: ThreadPoolExecutor, jobs: int
    ) -> None:
        self._client = client
        self._targets = targets
        self._pool = pool
        self._free = threading.BoundedSemaphore(2 * jobs)
        self._running: list[Future[None]] = []
        self._ordered: set[Namespace] = set()
        self._outcome = _Outcome()
        self._lock = threading.Lock()
        self._keeps_empty_timestamps = keeps_empty_timestamps(server.version)

    def begin(self, collections: Sequence[CollectionSummary]) -> None:
        """Create the collections with their options, before any document comes."""
        wanted = [item for item in collections if collection_name(item) in self._targets]
        strange = [collection_name(item) for item in wanted if _is_time_series(item)]
        if strange:
            raise SourceError(
                f"{', '.join(strange)} cannot be restored without MongoDB's tools: a time series is more than its"
                " documents",
                hints=["install the MongoDB Database Tools", "or leave it out of the restore"],
            )
        for item in wanted:
            database, name = _split(self._targets[collection_name(item)])
            options = from_extended_json(item.definition.get("options") or {})
            if options.get("capped"):
                self._ordered.add((item.database, item.name))
            if not name.startswith("system."):
                kept = {key: value for key, value in options.items() if key not in _NOT_CREATED_WITH}
                self._client[database].command({"create": name, **kept})

    def take(self, namespace: Namespace, documents: bytes, ends: Sequence[int]) -> None:
        """Insert documents that lie one after another and end at ``ends``; return before the server has them all."""
        target = self._targets.get(".".join(namespace))
        if target is None:
            return
        watched = may_have_empty_timestamps(documents)
        for batch in _batches(documents, ends):
            empty = [document for document in batch if has_empty_timestamp(document)] if watched else []
            if namespace in self._ordered:
                self._insert(target, batch, empty, ordered=True)
            else:
                self._submit(target, batch, empty)

    def _submit(self, target: str, batch: Sequence[bytes], empty: Sequence[bytes]) -> None:
        self._free.acquire()
        future = self._pool.submit(self._insert, target, batch, empty, ordered=False)
        future.add_done_callback(lambda _: self._free.release())
        self._running = [future, *self._ended_well()]

    def _ended_well(self) -> list[Future[None]]:
        """Return the inserts that still run; raise what ended another."""
        for done in [future for future in self._running if future.done()]:
            done.result()
        return [future for future in self._running if not future.done()]

    def finish(self) -> _Outcome:
        """Wait for the last insert and return what came of all."""
        for future in self._running:
            future.result()
        return self._outcome

    def _insert(self, target: str, batch: Sequence[bytes], empty: Sequence[bytes], *, ordered: bool) -> None:
        database, name = _split(target)
        command = {
            "insert": name,
            "ordered": ordered,
            "bypassDocumentValidation": True,
            "writeConcern": {"w": "majority"},
            "documents": [RawBSONDocument(document) for document in batch],
        }
        if empty and self._keeps_empty_timestamps:
            command["bypassEmptyTsReplacement"] = True
        reply = self._client[database].command(command)
        self._note(target, reply)
        if empty and not self._keeps_empty_timestamps:
            self._put_right(database, name, empty)

    def _note(self, target: str, reply: Mapping[str, Any]) -> None:
        if "writeConcernError" in reply:
            words = str(reply["writeConcernError"].get("errmsg", "")).splitlines()
            raise SourceError(f"the server could not keep what was inserted into {target}", details=words[:1])
        refused = reply.get("writeErrors", ())
        with self._lock:
            self._outcome.inserted += int(reply["n"])
            self._outcome.refused += len(refused)
            room = _SHOWN_ERRORS - len(self._outcome.errors)
            self._outcome.errors += [f"{target}: {str(item.get('errmsg')).splitlines()[0]}" for item in refused[:room]]

    def _put_right(self, database: str, name: str, documents: Sequence[bytes]) -> None:
        for document in documents:
            raw = RawBSONDocument(document)
            literal = [{"$replaceRoot": {"newRoot": {"$literal": raw}}}]
            updates = [{"q": {"_id": raw["_id"]}, "u": literal}]
            reply = self._client[database].command(
                {"update": name, "updates": updates, "bypassDocumentValidation": True}
            )
            self._note(f"{database}.{name}", {**reply, "n": 0})


def _is_time_series(item: CollectionSummary) -> bool:
    return item.kind == "timeseries" or "timeseries" in (item.definition.get("options") or {})


def keeps_empty_timestamps(version: str) -> bool:
    """Tell whether a server can be told to leave empty timestamps alone (mongo-tools, common/db/empty_timestamp.go)."""
    numbers = [int(word) if word.isdigit() else 0 for word in version.split("-")[0].split(".")]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major >= 8 or (minor == 0 and patch >= _KEEPS_EMPTY_TIMESTAMPS.get(major, patch + 1))


def _batches(documents: bytes, ends: Sequence[int]) -> Iterator[list[bytes]]:
    """Cut documents into as many as one insert takes: by their number and by their bytes, at least one."""
    batch: list[bytes] = []
    start = first = 0
    for end in ends:
        if batch and (len(batch) == _BATCH_DOCUMENTS or end - first > _BATCH_BYTES):
            yield batch
            batch, first = [], start
        batch.append(documents[start:end])
        start = end
    if batch:
        yield batch


def _split(name: str) -> tuple[str, str]:
    database, _, collection = name.partition(".")
    return database, collection
