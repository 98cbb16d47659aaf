"""Writing large files straight to the disk, past the memory in which the system keeps files.

That memory has to be found and filled for each page, which costs as much as all that is done to the bytes before; what
was written so is on the disk as soon as it is written, and pushes nothing out that another server on this host needs.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable

from drkit.units import CHUNK_BYTES

_DIRECT = getattr(os, "O_DIRECT", 0)
_ALIGNED_BYTES = 4096
"""No disk has larger sectors (open(2), O_DIRECT)."""


class LargeFileWriter:
    """Writes one file after the other; each thread needs one of its own.

    Its buffer begins at a page, and is shared memory, so that a process which is started meanwhile does no harm
    (open(2), NOTES).
    """

    def __init__(self) -> None:
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))

    def write(self, descriptor: int, pieces: Iterable[memoryview]) -> None:
        """Write to an empty file; where its file system cannot pass by the memory, as any other file."""
        filled = 0
        _pass_by_memory(descriptor, wanted=True)
        for piece in pieces:
            rest = piece
            while rest:
                taken = rest[: len(self._buffer) - filled]
                self._buffer[filled : filled + len(taken)] = taken
                filled, rest = filled + len(taken), rest[len(taken) :]
                if filled == len(self._buffer):
                    write_all(descriptor, self._buffer)
                    filled = 0
        whole = filled - filled % _ALIGNED_BYTES
        write_all(descriptor, self._buffer[:whole])
        if whole < filled:
            _pass_by_memory(descriptor, wanted=False)
            write_all(descriptor, self._buffer[whole:filled])


def write_all(descriptor: int, content: memoryview) -> None:
    """Write all of it, however often that has to be asked for."""
    rest = content
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            # Some file systems take the flag, and refuse the writes.
            if error.errno != errno.EINVAL or not _passes_by_memory(descriptor):
                raise
            _pass_by_memory(descriptor, wanted=False)


def _passes_by_memory(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & _DIRECT)


def _pass_by_memory(descriptor: int, *, wanted: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | (_DIRECT if wanted else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
