"""Reading collections side by side as raw BSON: batches of documents as the server sent them, in bounded memory.

The largest collection is begun first. One that is large by itself is read in ranges of ``_id``, which never change for
a document, so that each is read once whatever is written meanwhile. Ranges are bounds on the index (``min``, ``max``)
and not a filter: a filter compares values of one type only, and would pass over others.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo.collection import Collection
from pymongo.cursor import RawBatchCursor
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from drkit.engines.mongodb_client import Client
from drkit.engines.mongodb_raw import Estimate, RawCollection
from drkit.mongo_archive import Namespace
from drkit.mongo_archive_writer import Batch
from drkit.stream import Abandoned
from drkit.units import MIB

_BATCH_BYTES = 2 * MIB
_MOST_DOCUMENTS = 20_000
_DOCUMENTS_OF_ANY_SIZE = 100
"""The first batch where nothing is known of the size of a document; what it weighs tells how many make the next."""
SPLIT_BYTES = 64 * MIB
_SAMPLES_PER_RANGE = 20
_POLL_S = 0.1
_ABANDON_S = 5.0
_BOUNDS: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_NOT_SPLIT = frozenset({"capped", "collation", "clusteredIndex", "timeseries"})
"""Options of collections whose order counts, or whose index is not in the order of plain values."""


@dataclass(frozen=True)
class Reading:
    """How to read: ``parallel`` cursors at once, with which read concern; None for the server's own.

    ``unpinned`` are collections that cannot be read with it. Those of ``split_bytes`` and more are read in ranges, if
    their ``estimates`` say so: they decide about nothing but speed and memory. With ``keeps_cursors`` the server is
    told that they must not time out.
    """

    parallel: int
    concern: ReadConcern | None = None
    unpinned: frozenset[Namespace] = frozenset()
    split_bytes: int = SPLIT_BYTES
    estimates: Mapping[Namespace, Estimate] = field(default_factory=dict)
    keeps_cursors: bool = True


@dataclass(frozen=True)
class _Task:
    """One cursor: a collection or a range of it; bounds are documents of one ``_id``, the upper one excluded.

    ``batch_documents`` are those of the first batch, 0 where there are none to read.
    """

    namespace: Namespace
    batch_documents: int
    lower: dict[str, Any] | None = None
    upper: dict[str, Any] | None = None


class _Failure:
    """What ended a reader, on its way to whoever takes the batches."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextmanager
def open_batches(client: Client, collections: Sequence[RawCollection], reading: Reading) -> Iterator[Iterator[Batch]]:
    """Lend the batches of all collections, and after the last of each a mark; the readers end with the context.

    Up to two batches for each cursor are in memory, of 2 MiB or one document by the estimate, never of more than a
    server sends (16 MiB). Errors of a reader are raised to the taker.
    """
    readers = _Readers(client, reading, _plan(client, collections, reading))
    try:
        yield readers.batches()
    finally:
        readers.stop()


def _plan(client: Client, collections: Sequence[RawCollection], reading: Reading) -> list[_Task]:
    """Return the cursors to open, the largest first; where sizes are not told, those of most documents."""
    sized: list[tuple[int, _Task]] = []
    for collection in collections:
        if not collection.has_documents:
            sized.append((0, _Task(collection.namespace, 0)))
            continue
        said = reading.estimates.get(collection.namespace, Estimate(0))
        size_bytes = said.size_bytes or 0
        ranges = min(reading.parallel, size_bytes // max(reading.split_bytes // 2, 1))
        bounds = _bounds(client, collection, ranges) if size_bytes >= reading.split_bytes else []
        edges = [None, *bounds, None]
        for lower, upper in pairwise(edges):
            task = _Task(collection.namespace, _batch_documents(said), lower, upper)
            sized.append(((size_bytes or said.documents) // (len(edges) - 1), task))
    return [task for _, task in sorted(sized, key=lambda pair: -pair[0])]


def _batch_documents(said: Estimate) -> int:
    if not said.size_bytes or not said.documents:
        return _DOCUMENTS_OF_ANY_SIZE
    return _fitting(said.documents, said.size_bytes)


def _fitting(documents: int, size_bytes: int) -> int:
    """Return how many documents make a batch, if so many have that size."""
    return max(1, min(_MOST_DOCUMENTS, _BATCH_BYTES * documents // size_bytes))


def _bounds(client: Client, collection: RawCollection, ranges: int) -> list[dict[str, Any]]:
    """Return where to cut a collection into ranges of about one size; nowhere if its server cannot read by bounds."""
    database, name = collection.namespace
    if ranges < 2 or collection.option_names & _NOT_SPLIT:
        return []
    source = client[database].get_collection(name, codec_options=_BOUNDS)
    sampling = [{"$sample": {"size": ranges * _SAMPLES_PER_RANGE}}, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}]
    try:
        sample = list(source.aggregate(sampling))
        bounds = [sample[len(sample) * number // ranges] for number in range(1, ranges)] if sample else []
        bounds = [bound for number, bound in enumerate(bounds) if bound not in bounds[:number]]
        return bounds if bounds and _knows_bounds(source, bounds[-1]) else []
    except OperationFailure:
        return []


def _knows_bounds(source: Collection[dict[str, Any]], bound: dict[str, Any]) -> bool:
    """Try both kinds of bound with a document that is there; whoever ignores them would send everything, often."""
    by_id = source.find(projection={"_id": 1}).hint([("_id", 1)]).limit(1)
    first = next(by_id.clone().min([*bound.items()]), None)
    below = next(by_id.clone().max([*bound.items()]).sort("_id", -1), None)
    largest = next(by_id.clone().sort("_id", -1), None)
    return first == bound and below not in (bound, largest)


class _Readers:
    """The threads that read, and the queue that joins them to the taker."""

    def __init__(self, client: Client, reading: Reading, tasks: Sequence[_Task]) -> None:
        self._client = client
        self._reading = reading
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._open: dict[Namespace, int] = {}
        for task in tasks:
            self._tasks.put(task)
            self._open[task.namespace] = self._open.get(task.namespace, 0) + 1
        self._ready: queue.Queue[Batch | _Failure] = queue.Queue(maxsize=reading.parallel)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"reader-{number}", daemon=True)
            for number in range(min(reading.parallel, len(tasks)))
        ]

    def batches(self) -> Iterator[Batch]:
        """Yield every batch; raise what ended a reader."""
        for thread in self._threads:
            thread.start()
        missing = len(self._open)
        while missing:
            item = self._take()
            if isinstance(item, _Failure):
                raise item.error
            missing -= item[1] is None
            yield item

    def _take(self) -> Batch | _Failure:
        while True:
            try:
                return self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                if self._stopping.is_set():
                    raise Abandoned from None

    def stop(self) -> None:
        """End the readers; one that waits for the server is left to the client's time-out."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=_ABANDON_S)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._read(self._tasks.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:  # noqa: BLE001 - carried over to the taker's thread, which raises it
            self._offer(_Failure(error))

    def _read(self, task: _Task) -> None:
        for documents in self._documents(task) if task.batch_documents else ():
            if documents and not self._offer((task.namespace, documents)):
                return
        with self._lock:
            self._open[task.namespace] -= 1
            last = self._open[task.namespace] == 0
        if last:
            self._offer((task.namespace, None))

    def _documents(self, task: _Task) -> Iterator[bytes]:
        """Yield the raw batches of one cursor, which is closed on the server in every case."""
        database, name = task.namespace
        concern = None if task.namespace in self._reading.unpinned else self._reading.concern
        source = self._client[database].get_collection(name, read_concern=concern)
        # A slow store must not cost the cursor: the server would drop an idle one after ten minutes.
        with self._client.start_session(causal_consistency=False) as session:
            cursor = source.find_raw_batches(
                batch_size=task.batch_documents, no_cursor_timeout=self._reading.keeps_cursors, session=session
            )
            with _placed(cursor, task):
                yield from _weighed(cursor, task.batch_documents)

    def _offer(self, item: Batch | _Failure) -> bool:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


def _weighed(cursor: RawBatchCursor[Any], batch_documents: int) -> Iterator[bytes]:
    """Yield the batches; ask for as many documents next as would have weighed 2 MiB of the last batch's.

    A reply that the server ended at its 16 MiB has fewer than were asked for, and the next has fewer still. pymongo's
    method refuses to change a cursor that is being read; were its attribute renamed, all batches were as the first.
    """
    for documents in cursor:
        yield documents
        if documents:
            batch_documents = _fitting(batch_documents, len(documents))
            cursor._batch_size = batch_documents  # noqa: SLF001


def _placed(cursor: RawBatchCursor[Any], task: _Task) -> RawBatchCursor[Any]:
    """Tell a cursor how to walk: in the order of the disk, or along the index between two bounds."""
    if task.lower is None and task.upper is None:
        return cursor.hint([("$natural", 1)])
    cursor.hint([("_id", 1)])
    if task.lower is not None:
        cursor.min([*task.lower.items()])
    if task.upper is not None:
        cursor.max([*task.upper.items()])
    return cursor
