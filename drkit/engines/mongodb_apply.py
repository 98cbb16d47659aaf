"""Replaying an oplog into a server, from the outside: ordinary writes, in batches, as far as a moment.

A batch reads the documents that it changes, works out what becomes of them (`drkit.oplog_images`), writes that down
(`mongodb_redo`) and then to the server. Killed at any place and resumed, it comes to the same documents. Every write is
counted: a server that says yes to less than it was given is not believed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from drkit.bson_elements import ARRAY, DOCUMENT, has_empty_timestamp
from drkit.engines.mongodb_client import Client
from drkit.engines.mongodb_commands import Commands
from drkit.engines.mongodb_redo import Progress, RedoFile
from drkit.errors import IntegrityError, RecoveryGap, SourceError
from drkit.oplog import OplogDisorder, OplogTs
from drkit.oplog_accounts import Accounts
from drkit.oplog_catalog import OplogCatalog, command_of
from drkit.oplog_entries import Command, Operation, OplogEntry, Write, id_query, read_entry
from drkit.oplog_images import Batch, Image, misfit, show_id
from drkit.oplog_selection import Selection
from drkit.oplog_series import as_of_series, buckets_name, series_name
from drkit.oplog_transactions import Transactions
from drkit.raw_bson import Element, find_element, make_array, make_document
from drkit.units import MIB, format_moment

_BATCH_BYTES = 16 * MIB
_SPILL_BYTES = MIB
_DIGEST_MODULUS = 1 << 256
_DUPLICATE_KEY = 11000

Totals = dict[str, tuple[int, int | None]]
"""Count and digest by namespace of the source, of a time series by that of its buckets; None is a digest not known."""


@dataclass(frozen=True)
class ReplayOptions:
    """What to replay, and how: entries up to ``until`` included (None: all that there are).

    Entries up to ``strict_after`` may be in the data already. ``accounts`` takes what is of users and roles.
    """

    strict_after: OplogTs
    until: datetime | None
    selection: Selection
    work_folder: Path
    watch: Callable[[OplogTs, datetime], object] | None = None
    batch_writes: int = 1000
    accounts: Accounts | None = None


@dataclass
class Replayed:
    """What came of a replay: how many entries were read and operations done, and up to which entry.

    ``split`` are transactions of which only a part was wanted, ``unfinished`` those that were not committed by then.
    ``passed`` says that an entry after the moment was seen, so that nothing before it can be missing. ``left_out`` are
    users and roles that did not come as the log has them, each with why.
    """

    entries: int = 0
    operations: int = 0
    skipped: int = 0
    resumed_after: int = 0
    last_ts: OplogTs | None = None
    last_at: datetime | None = None
    split: Sequence[OplogTs] = ()
    unfinished: Sequence[OplogTs] = ()
    aborted: int = 0
    passed: bool = False
    totals: Totals = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


class Applier:
    """Replays one stream of entries; a second one on the same ``redo`` goes on where the first was killed."""

    def __init__(self, client: Client, catalog: OplogCatalog, options: ReplayOptions, redo: RedoFile) -> None:
        self._client = client
        self._catalog = catalog
        self._options = options
        self._redo = redo
        self._commands = Commands(client, options.strict_after, options.selection.name_in_target)
        self._accounts = options.accounts or Accounts()
        self._batch = self._new_batch()
        self._done = Progress()
        self._totals: Totals = {}
        self._taken = 0

    def run(self, entries: Iterable[bytes], totals: Mapping[str, tuple[int, int | None]]) -> Replayed:
        """Replay ``entries``; ``totals`` are what the collections hold before, unless this resumes.

        The entries are the same from the beginning whenever it is resumed. Raise IntegrityError for an entry that is
        not understood or does not fit, naming it; what was done so far stays done.
        """
        self._totals = dict(totals)
        result = Replayed(resumed_after=self._resume())
        transactions = Transactions(self._open_spill)
        try:
            for raw in entries:
                entry = read_entry(raw)
                if result.last_ts is not None and entry.ts < result.last_ts:
                    raise OplogDisorder(f"the oplog is damaged: entry {entry.ts} does not follow on {result.last_ts}")
                if self._options.until is not None and entry.at > self._options.until:
                    self._require_consistent(entry)
                    result.passed = True
                    break
                for operation in transactions.take(raw, entry).operations:
                    self._take_wanted(operation)
                result.last_ts, result.last_at = entry.ts, entry.at
                if self._options.watch is not None:
                    self._options.watch(entry.ts, entry.at)
            self._flush()
            self._require_reached()
            result.unfinished = transactions.unfinished
        finally:
            transactions.close()
        result.entries, result.aborted = transactions.entries, transactions.aborted
        result.operations = self._taken - result.resumed_after
        result.skipped, result.split = self._options.selection.skipped, tuple(self._options.selection.split)
        result.totals, result.left_out = self._totals, self._accounts.left_out
        return result

    def _require_consistent(self, beyond: OplogEntry) -> None:
        """Raise RecoveryGap when the first entry that is too late is one that the dump may hold already."""
        if beyond.ts <= self._options.strict_after:
            raise RecoveryGap(
                f"the dump holds what was written up to oplog entry {self._options.strict_after}, and entry"
                f" {beyond.ts}, of {format_moment(beyond.at)}, is after the moment that is asked for",
                hints=["choose a later moment, or an older dump: --artifact ID"],
            )

    def _open_spill(self) -> BinaryIO:
        spill = tempfile.SpooledTemporaryFile(max_size=_SPILL_BYTES, dir=str(self._options.work_folder))  # noqa: SIM115
        return cast("BinaryIO", spill)

    def _resume(self) -> int:
        """Do again what was about to be done when the last one was killed; return how many operations are done then."""
        found = self._redo.read()
        if found is None:
            return 0
        self._done, images = found
        self._totals = dict(self._done.totals)
        for namespace, part in _by_namespace(images).items():
            # Some of them may be there already: this is the one write that is not counted.
            ordered = part if namespace in self._catalog.capped else [*chain(*_deletions_first(part))]
            self._collection(namespace).bulk_write(
                [_again(image) for image in ordered], bypass_document_validation=True
            )
            _put_right(self._collection(namespace), part)
        return self._done.applied

    def _require_reached(self) -> None:
        if self._taken < self._done.applied:
            raise IntegrityError(
                f"the replay is at oplog entry {self._done.ts} already, which is after the moment that is asked for",
                hints=["drop what was restored, and begin again"],
            )

    def _new_batch(self) -> Batch:
        return Batch(self._options.strict_after, self._catalog.capped.__contains__)

    def _take_wanted(self, operation: Operation) -> None:
        """Take what of an operation is restored: users and roles apart, a time series by its buckets."""
        if self._accounts.take(operation):
            return
        for chosen in self._options.selection.choose(operation):
            wanted = as_of_series(chosen, self._catalog)
            if wanted is not None:
                self._take(wanted)

    def _take(self, operation: Operation) -> None:
        """Do an operation, or only remember what it says of indexes when it was done before the kill."""
        if isinstance(operation, Write) and operation.kind == "insert" and not self._knows(operation):
            # SecantusDB does not log that a collection began with its first document.
            self._take(command_of(operation, "create", operation.namespace))
        if isinstance(operation, Command):
            for command in self._catalog.fold(operation):
                self._take_command(command)
        elif self._counted():
            self._batch.add(operation)
            if len(self._batch.writes) >= self._options.batch_writes or self._batch.size_bytes >= _BATCH_BYTES:
                self._flush()

    def _knows(self, write: Write) -> bool:
        return self._catalog.knows(series_name(write.namespace))

    def _counted(self) -> bool:
        """Count an operation; tell whether it is still to be done."""
        self._taken += 1
        return self._taken > self._done.applied

    def _take_command(self, command: Command) -> None:
        self._flush()
        if not self._counted():
            return
        before = self._taken - 1
        again = self._done.command and before == self._done.applied
        if not again:
            self._note(Progress(before, str(command.ts), command=True, totals=self._totals))
        self._commands.run(command, again=again)
        self._totals = _after_command(self._totals, command)
        self._note(Progress(self._taken, str(command.ts), totals=self._totals))

    def _note(self, progress: Progress, images: Sequence[Image] = ()) -> None:
        self._redo.write(progress, images)
        self._done = progress

    def _flush(self) -> None:
        """Do the batch: read, work out, write down, write."""
        batch, self._batch = self._batch, self._new_batch()
        if not batch.writes:
            return
        images = batch.images(self._existing(batch))
        totals = _moved(self._totals, images)
        self._note(Progress(self._taken, str(batch.writes[-1].ts), totals=totals), images)
        self._totals = totals
        for namespace, part in _by_namespace(images).items():
            changed = [image for image in part if image.before is not None or image.after is not None]
            collection, ordered = self._collection(namespace), namespace in self._catalog.capped
            for group in (changed,) if ordered else _deletions_first(changed):
                with _blamed(group, batch.writes):
                    _write(collection, [_request(image) for image in group], ordered=ordered)
                    _put_right(collection, group)

    def _existing(self, batch: Batch) -> dict[tuple[str, bytes], bytes]:
        wanted: dict[str, list[bytes]] = defaultdict(list)
        for namespace, identifier in batch.wanted():
            wanted[namespace].append(identifier)
        found: dict[tuple[str, bytes], bytes] = {}
        for namespace, identifiers in wanted.items():
            values = make_array(Element(item[0], b"", item.partition(b"\0")[2]) for item in identifiers)
            within = make_document([Element(ARRAY, b"$in", values)])
            query = RawBSONDocument(make_document([Element(DOCUMENT, b"_id", within)]))
            for document in self._collection(namespace).find(query):
                raw = bytes(document.raw)
                own = find_element(raw, b"_id")
                assert own is not None
                found[namespace, bytes(own)] = raw
        return found

    def _collection(self, namespace: str) -> Collection[RawBSONDocument]:
        database, _, name = self._target(namespace).partition(".")
        raw = self._client.codec_options.with_options(document_class=RawBSONDocument)
        return cast("Collection[RawBSONDocument]", self._client[database].get_collection(name, codec_options=raw))

    def _target(self, namespace: str) -> str:
        series = series_name(namespace)
        target = self._options.selection.name_in_target(series)
        assert target is not None
        return target if series == namespace else buckets_name(target)


def _by_namespace(images: Iterable[Image]) -> dict[str, list[Image]]:
    parts: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        parts[image.namespace].append(image)
    return parts


def _deletions_first(images: Sequence[Image]) -> tuple[list[Image], list[Image]]:
    """Divide images: two ids of other bytes can be one to the server, as 1 and 1.0, and the old one has to go first."""
    return [image for image in images if image.after is None], [image for image in images if image.after is not None]


def _moved(totals: Mapping[str, tuple[int, int | None]], images: Iterable[Image]) -> Totals:
    """Return count and digest of each collection after a batch."""
    moved = dict(totals)
    for image in images:
        rows, digest = moved.get(image.namespace, (0, 0))
        rows += (image.after is not None) - (image.before is not None)
        if digest is not None:
            digest = (digest + _digest(image.after) - _digest(image.before)) % _DIGEST_MODULUS
        moved[image.namespace] = rows, digest
    return moved


def _digest(document: bytes | None) -> int:
    return 0 if document is None else int.from_bytes(hashlib.sha256(document).digest())


def _after_command(totals: Totals, command: Command) -> Totals:
    after = dict(totals)
    if command.name == "create":
        is_series = "timeseries" in command.body
        after.setdefault(buckets_name(command.namespace) if is_series else command.namespace, (0, 0))
    elif command.name == "drop":
        after.pop(command.namespace, None)
        after.pop(buckets_name(command.namespace), None)
    elif command.name == "renameCollection":
        after[str(command.body["to"])] = after.pop(command.namespace, (0, 0))
    return after


_Request = InsertOne[RawBSONDocument] | ReplaceOne[RawBSONDocument] | DeleteOne


def _request(image: Image) -> _Request:
    """Return the write that makes an image of a document that is as it was before."""
    if image.after is None:
        return DeleteOne(_query(image))
    document = RawBSONDocument(image.after)
    return InsertOne(document) if image.before is None else ReplaceOne(_query(image), document)


def _again(image: Image) -> _Request:
    """Return the write that makes an image whether or not it is there already."""
    if image.after is None:
        return DeleteOne(_query(image))
    return ReplaceOne(_query(image), RawBSONDocument(image.after), upsert=True)


def _query(image: Image) -> RawBSONDocument:
    return RawBSONDocument(id_query(image.id))


def _write(collection: Collection[RawBSONDocument], requests: Sequence[_Request], *, ordered: bool) -> None:
    """Write; raise SourceError when fewer documents were changed than were given.

    No two are of one document, so their order only matters where the collection keeps it; else fewer commands do.
    """
    if not requests:
        return
    result = collection.bulk_write(requests, ordered=ordered, bypass_document_validation=True)
    changed = result.inserted_count + result.matched_count + result.deleted_count
    if changed != len(requests):
        raise SourceError(f"{collection.full_name}: the server changed {changed:,} of {len(requests):,} documents")


def _put_right(collection: Collection[RawBSONDocument], images: Iterable[Image]) -> None:
    """Write once more what a server changes on insert: it puts its clock for an empty timestamp (TOOLS-3540)."""
    updates = [
        UpdateOne(_query(image), [{"$replaceRoot": {"newRoot": {"$literal": RawBSONDocument(image.after)}}}])
        for image in images
        if image.after is not None and has_empty_timestamp(image.after)
    ]
    if updates:
        collection.bulk_write(updates, bypass_document_validation=True)


@contextmanager
def _blamed(images: Sequence[Image], writes: Sequence[Write]) -> Iterator[None]:
    """Say which entry and document it was that the server refused."""
    try:
        yield
    except BulkWriteError as error:
        refused = error.details["writeErrors"][0] if error.details.get("writeErrors") else {}
        image = images[int(refused.get("index", 0))]
        write = next(item for item in writes if (item.namespace, item.id) == (image.namespace, image.id))
        if refused.get("code") == _DUPLICATE_KEY and write.kind == "insert":
            raise misfit(write, "inserts a document that is there already") from error
        words = str(refused.get("errmsg") or error).splitlines()[0]
        raise SourceError(
            f"oplog entry {write.ts} of {write.namespace} cannot be done: {words}", details=[f"_id {show_id(write.id)}"]
        ) from error
