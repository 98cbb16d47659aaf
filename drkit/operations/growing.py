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
_LATER_S = 0.025
"""A busy server fills a segment within a tenth of a second, and looking costs some microseconds."""


class ReadInVain(SourceError):
    """What was read of the segment early is worth nothing: it was given up, or is not what the server finished."""


class Growing:
    """One segment that is being written; what was read of it is kept in ``content``, up to ``size_bytes``.

    ``stamp`` is there once it was read whole; ``search`` has looked at what was read before it was finished.
    """

    def __init__(self, path: Path, segment: Segment) -> None:
        self.path = path
        self.segment = segment
        # Written to once, because the system gives memory only then, and later somebody waits for it.
        self.content = memoryview(bytearray(b"\0") * segment.segment_bytes)
        self.size_bytes = 0
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

    def chunks(self) -> Iterator[memoryview]:
        """Read the segment as it grows, and the rest once it is finished; nothing counts before `confirm` returned.

        Raise ReadInVain once it is given up, or was replaced by another file; OSError when it cannot be read.
        """
        with self.path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            while self._has_more(descriptor):
                chunk = self._read_on(descriptor)
                self.search.look(self.content, self.size_bytes)
                yield chunk
            if self._given_up:
                raise ReadInVain(f"{self.name} is not finished")
            # Before anything is compared: what is written from here on changes the stamp.
            self.stamp = stamp_of(self.path)
            if os.fstat(descriptor).st_ino != self.stamp[0]:
                raise self._replaced()
            self._begin_comparing(self.content[: self.size_bytes], os.dup(descriptor))
            while chunk := self._read_on(descriptor):
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
            again = bytearray(CHUNK_BYTES)
            for position in range(0, len(early), CHUNK_BYTES):
                piece = early[position : position + CHUNK_BYTES]
                size_bytes = os.preadv(descriptor, [memoryview(again)[: len(piece)]], position)
                if size_bytes != len(piece) or not again.startswith(piece):
                    raise self._replaced()  # startswith, because == looks at one byte after the other
        finally:
            os.close(descriptor)

    def _has_more(self, descriptor: int) -> bool:
        """Wait until more of the segment is finished; say no once it all is, or nobody waits for it."""
        wait_s = 0.0
        while not self._changed.wait(wait_s):
            if self._is_finished(descriptor):
                return True
            wait_s = min(max(2 * wait_s, _SOON_S), _LATER_S)
        return False

    def _is_finished(self, descriptor: int) -> bool:
        """Say whether the page behind the next chunk was begun; the last pages are nobody's word but the server's."""
        position = self.size_bytes + _READ_BYTES
        if position >= self.segment.segment_bytes:
            return False
        return begins_page(os.pread(descriptor, _HEADER_BYTES, position), self.segment, position)

    def _read_on(self, descriptor: int) -> memoryview:
        """Read the next chunk into its place."""
        room = self.content[self.size_bytes : self.size_bytes + _READ_BYTES]
        chunk = room[: os.preadv(descriptor, [room], self.size_bytes) if room else 0]
        self.size_bytes += len(chunk)
        return chunk

    def _replaced(self) -> ReadInVain:
        return ReadInVain(f"{self.name} was written anew after it had been read")


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file is written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
