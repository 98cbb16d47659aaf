"""Reading a segment while the server still writes it, so that little is left to do when it hands it over.

PostgreSQL writes a segment in order, and begins a page only when the one before it is full (XLogWrite in xlog.c). What
lies before a page that was begun is therefore finished. That is a guess all the same as long as the segment is not
handed over: what was read early is kept, and compared with the whole file before anybody counts on it. That lasts as
long as sealing the rest and making it durable do, which go on meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from drkit.errors import SourceError
from drkit.units import CHUNK_BYTES, MIB
from drkit.wal import Segment
from drkit.wal_pages import CommitSearch, begins_page

LARGEST_BYTES = 32 * MIB
"""Larger segments are read once they are whole: what is read early is kept in memory."""

Stamp = tuple[int, int, int]

_READ_BYTES = CHUNK_BYTES // 4
_HEADER_BYTES = 24
_SOON_S = 0.01
_LATER_S = 0.25


class ReadInVain(SourceError):
    """What was read of the segment early is worth nothing: it was given up, or is not what the server finished."""


class Growing:
    """One segment that is being written; ``stamp`` is there once it was read whole, and ``search`` has looked at it."""

    def __init__(self, path: Path, segment: Segment) -> None:
        self.path = path
        self.segment = segment
        self.stamp: Stamp = (0, 0, 0)
        self.search = CommitSearch(segment)
        self._changed = threading.Event()
        self._given_up = False
        self._compared: Future[None] | None = None

    @property
    def name(self) -> str:
        """Return the segment's file name."""
        return self.segment.name

    def finish(self) -> None:
        """Say that the server has finished the segment."""
        self._changed.set()

    def give_up(self) -> None:
        """Say that nobody waits for the segment any more."""
        self._given_up = True
        self._changed.set()

    def chunks(self) -> Iterator[bytes]:
        """Read the segment as it grows, and the rest once it is finished; nothing counts before `confirm` returned.

        Raise ReadInVain once it is given up, or was replaced by another file; OSError when it cannot be read.
        """
        early, early_bytes = bytearray(self.segment.segment_bytes), 0
        with self.path.open("rb", buffering=0) as file:
            for chunk in self._finished(file.fileno()):
                early[early_bytes : early_bytes + len(chunk)] = chunk
                early_bytes += len(chunk)
                self.search.look(early, early_bytes)
                yield chunk
            if self._given_up:
                raise ReadInVain(f"{self.name} is not finished")
            # Before anything is compared: what is written from here on changes the stamp.
            self.stamp = stamp_of(self.path)
            if os.fstat(file.fileno()).st_ino != self.stamp[0]:
                raise self._replaced()
            self._begin_comparing(memoryview(early)[:early_bytes], os.dup(file.fileno()))
            file.seek(early_bytes)
            while chunk := file.read(_READ_BYTES):
                yield chunk

    def confirm(self) -> None:
        """Return once what was read early is known to be what the server finished.

        Raise ReadInVain when it is not, OSError when the segment cannot be read again.
        """
        if self._compared is None:
            raise ReadInVain(f"{self.name} was not read to its end")
        self._compared.result()

    def _begin_comparing(self, early: memoryview, descriptor: int) -> None:
        thread = ThreadPoolExecutor(1, "compare")
        self._compared = thread.submit(self._compare, early, descriptor)
        thread.shutdown(wait=False)

    def _compare(self, early: memoryview, descriptor: int) -> None:
        try:
            chunk = bytearray(_READ_BYTES)
            for position in range(0, len(early), _READ_BYTES):
                size_bytes = os.preadv(descriptor, [chunk], position)
                if size_bytes != _READ_BYTES or not chunk.startswith(early[position : position + _READ_BYTES]):
                    raise self._replaced()  # startswith, because == looks at one byte after the other
        finally:
            os.close(descriptor)

    def _finished(self, descriptor: int) -> Iterator[bytes]:
        """Yield what is finished of the segment until it all is, or nobody waits for it."""
        position, wait_s = 0, _SOON_S
        while not self._changed.wait(wait_s):
            wait_s = min(2 * wait_s, _LATER_S)
            while not self._changed.is_set() and self._is_finished(descriptor, position + _READ_BYTES):
                yield os.pread(descriptor, _READ_BYTES, position)
                position += _READ_BYTES
                wait_s = _SOON_S

    def _is_finished(self, descriptor: int, position: int) -> bool:
        """Say whether the page at ``position`` was begun; the last pages are nobody's word but the server's."""
        if position >= self.segment.segment_bytes:
            return False
        return begins_page(os.pread(descriptor, _HEADER_BYTES, position), self.segment, position)

    def _replaced(self) -> ReadInVain:
        return ReadInVain(f"{self.name} was written anew after it had been read")


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file is written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
