"""Shipping what PostgreSQL has not asked for yet, so that its turn costs no more than a question.

PostgreSQL hands over one file after the other and waits. Behind the one that it handed over last, what lies ready is
shipped as soon as it is, and the segment that is being written is read as it grows. Nothing is ever marked done for
PostgreSQL, and what goes wrong here is said when it asks for the file.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from drkit.errors import DrkitError
from drkit.folder_events import folder_events
from drkit.operations.growing import LARGEST_BYTES, Growing
from drkit.operations.ship import Shipper
from drkit.operations.spool import Identity, Spool
from drkit.wal import Segment, classify

LOOK_AHEAD = 8
_WORKERS = min(max(os.cpu_count() or 1, 2), LOOK_AHEAD // 2)
"""As many as there are cores: with more of them the one that PostgreSQL waits for gets less of a core."""
_APART = 0.8 / _WORKERS
"""How far apart two files are begun, in the time that one takes: side by side they would be ready side by side, and
PostgreSQL, which asks for one after the other, would wait long for the first of them. Less than an even share, so that
no worker waits for its turn while there is work."""
_MOST_APART_S = 0.1
_LOOK_S = 0.25
_AGAIN_S = 5.0


class LookAhead:
    """What is shipped early of one server's log; nothing is before the server handed over its first segment."""

    def __init__(self, shipper: Shipper, spool: Spool, pool: ThreadPoolExecutor) -> None:
        self._shipper = shipper
        self._spool = spool
        self._pool = pool
        self._identity: Identity | None = None
        self._last: Path | None = None
        self._moved = threading.Event()
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._ahead: set[str] = set()
        self._growing: Growing | None = None
        self._reader: threading.Thread | None = None
        self._ended = False
        self._in_vain = ""
        self._next_at_s = 0.0
        self._took_s = 0.0

    def run(self, stopping: threading.Event) -> None:
        """Look out for what gets ready, until ``stopping``; a folder that cannot be read is tried again now and then.

        Without it, what is ready is still shipped ahead whenever PostgreSQL hands over a file.
        """
        while not stopping.is_set():
            if self._moved.wait(_LOOK_S):
                with contextlib.suppress(OSError):
                    self._look_out(stopping)
                    continue
                stopping.wait(_AGAIN_S)

    def _look_out(self, stopping: threading.Event) -> None:
        """Look whenever a segment is made or gets ready where the last file came from."""
        last = self._last
        assert last is not None
        with folder_events(last.parent, _status_folder(last)) as events:
            while not stopping.is_set() and self._last is not None and self._last.parent == last.parent:
                self.look()
                events.wait(_LOOK_S)

    @contextmanager
    def handed_over(self, path: Path) -> Iterator[None]:
        """Take note that PostgreSQL waits for a file, and so has finished it."""
        with self._lock:
            self._asked.add(path.name)
            self._finish(path)
        try:
            yield
        finally:
            with self._lock:
                self._asked.discard(path.name)

    def taken(self, path: Path) -> None:
        """Take note that a file was handed over and is stored, and look for what follows on it."""
        if classify(path.name) == "segment":
            self._last = path
            self._moved.set()
        with contextlib.suppress(OSError):
            self.look()

    def look(self) -> None:
        """Start on what is ready behind the file handed over last, unless something is wrong already."""
        with self._looking:
            last = self._last
            self._identity = self._identity or self._spool.identity()
            if last is None or self._identity is None or self._shipper.errors():
                return
            ready = ready_names(last, self._identity.segment_bytes)
            for name in ready:
                self._begin(last.with_name(name))
            newest = Segment.parse(ready[-1] if ready else last.name, self._identity.segment_bytes)
            self._grow(last, newest.next(), among={*ready})

    def _begin(self, path: Path) -> None:
        with self._lock:
            self._finish(path)
            if path.name in self._ahead or len(self._ahead) >= LOOK_AHEAD or self._shipper.has(path.name):
                return
            self._ahead.add(path.name)
        try:
            self._pool.submit(self._ship, path)
        except RuntimeError:  # the pool takes nothing any more while serve stops
            self._done(path.name)

    def _finish(self, path: Path) -> None:
        """Say that a file is finished; one of that name in another folder is another server's, and may not be."""
        growing = self._growing
        if growing is None or growing.name != path.name:
            return
        if growing.path == path:
            growing.finish()
        else:
            growing.give_up()

    def _ship(self, path: Path) -> None:
        time.sleep(self._turn_s())
        began_s = time.monotonic()
        try:
            with contextlib.suppress(DrkitError, OSError):
                self._shipper.ship(path, keep_source=True)
        finally:
            self._took_s = time.monotonic() - began_s
            self._done(path.name)

    def _turn_s(self) -> float:
        """Return for how long a worker waits until it begins a file."""
        with self._lock:
            now_s = time.monotonic()
            wait_s = max(self._next_at_s - now_s, 0.0)
            self._next_at_s = now_s + wait_s + min(_APART * self._took_s, _MOST_APART_S)
            return wait_s

    def _done(self, name: str) -> None:
        with self._lock:
            self._ahead.discard(name)

    def _grow(self, last: Path, segment: Segment, among: set[str]) -> None:
        """Read the segment behind all that is ready while it is written, one at a time; leave one that is not next."""
        name = segment.name
        if segment.segment_bytes > LARGEST_BYTES or len(among) >= LOOK_AHEAD or not self._is_written(last, name):
            return
        with self._lock:
            if self._growing is not None:
                if self._growing.name not in {*among, name}:
                    self._growing.give_up()
                return
            if self._ended or name in self._asked or name in self._ahead or name == self._in_vain:
                return
            # The system may give neither memory nor a thread: then it is shipped when it is ready.
            with contextlib.suppress(MemoryError, RuntimeError):
                growing = Growing(last.with_name(name), segment)
                reader = threading.Thread(target=self._read, args=(growing,), name="growing", daemon=True)
                reader.start()
                self._growing, self._reader = growing, reader
                self._ahead.add(name)

    def _is_written(self, last: Path, name: str) -> bool:
        """Say whether a segment is there and neither stored nor done with; one made beforehand is there as well."""
        done = _status_folder(last) / f"{name}.done"
        return not self._shipper.has(name) and last.with_name(name).exists() and not done.exists()

    def _read(self, growing: Growing) -> None:
        try:
            self._shipper.ship_growing(growing)
        except (DrkitError, OSError):
            # Whatever it was, once is enough: it is shipped like any other when it is ready.
            self._in_vain = growing.name
        finally:
            with self._lock:  # not before whoever began it has noted so
                self._ahead.discard(growing.name)
                self._growing = None

    def end(self) -> None:
        """Read nothing more that is being written; return once nobody reads or seals it any more."""
        with self._lock:
            self._ended = True
            if self._growing is not None:
                self._growing.give_up()
            reader = self._reader
        if reader is not None:
            reader.join()


@contextmanager
def looking_ahead(shipper: Shipper, spool: Spool) -> Iterator[LookAhead]:
    """Look ahead until the context ends; what is being shipped then is shipped to its end."""
    ended = threading.Event()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="ahead") as pool:
        ahead = LookAhead(shipper, spool, pool)
        watcher = threading.Thread(target=ahead.run, args=(ended,), name="look-ahead", daemon=True)
        watcher.start()
        try:
            yield ahead
        finally:
            ended.set()
            watcher.join()
            pool.shutdown(wait=False, cancel_futures=True)
            ahead.end()


def ready_names(path: Path, segment_bytes: int) -> list[str]:
    """Return which of the next segments lie ready behind the one that PostgreSQL handed over, in their order.

    They are asked for by name: after hours without an archiver the folder has thousands, too many to list each time.
    """
    if classify(path.name) != "segment":
        return []
    names = []
    segment = Segment.parse(path.name, segment_bytes)
    for _ in range(LOOK_AHEAD):
        segment = segment.next()
        if (_status_folder(path) / f"{segment.name}.ready").exists():
            names.append(segment.name)
    return names


def _status_folder(path: Path) -> Path:
    return path.parent / "archive_status"
