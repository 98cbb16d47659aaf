"""Which file of a server is copied when: several tars take files from one queue, those that last longest first.

So no thread ends long before the others, whatever the files are. A file is as slow as its slowest stage, and that is
mostly its compression: an index may take three times as long as a table of its size, so the large ones are tried.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from drkit.engines.postgres_base_files import FoundFile
from drkit.stream import compress, drain
from drkit.units import CHUNK_BYTES, MIB

Slowness = Callable[[FoundFile], float]
"""Return how many times as long as usual a byte of a file takes; never less than once."""

_USUAL_S = 1e-9
_TRIED_SHARE = 256
_TRIED_FROM_BYTES = 64 * MIB
_TRIED_LEVEL = 1


class FileQueue:
    """Files that wait to be copied; each is taken once, by whichever thread asks first."""

    def __init__(self, files: Iterable[FoundFile]) -> None:
        self._files = deque(files)

    def __iter__(self) -> Iterator[FoundFile]:
        """Take one file after the other until there are none left."""
        with suppress(IndexError):
            while True:
                yield self._files.popleft()


def slowest_first(files: Iterable[FoundFile], slowness: Slowness) -> list[FoundFile]:
    """Order files so that what is left for the end is quick; only the large ones, at most 256, are asked ``slowness``.

    Slowness counts more than size. Towards the end one file may be copied alone: while its compression is much slower
    than its reading and hashing, that occupies one processor of several.
    """
    found = list(files)
    large_bytes = max(sum(file.size_bytes for file in found) // _TRIED_SHARE, _TRIED_FROM_BYTES)

    def weight(file: FoundFile) -> float:
        return file.size_bytes * (slowness(file) ** 2 if file.size_bytes >= large_bytes else 1)

    return sorted(found, key=weight, reverse=True)


def tried(root: Path) -> Slowness:
    """Return what compresses a mebibyte from the middle of a file below ``root``, and takes the time that it needs.

    A byte usually takes as long as its reading and hashing. A file that is gone or cannot be read counts as a usual
    one: whoever copies it says what is to be said.
    """

    def slowness(file: FoundFile) -> float:
        try:
            with (root / file.name).open("rb") as opened:
                sample = os.pread(opened.fileno(), CHUNK_BYTES, file.size_bytes // 2)
        except OSError:
            return 1
        began_s = time.thread_time()
        drain(compress([sample], _TRIED_LEVEL))
        return max((time.thread_time() - began_s) / (_USUAL_S * max(len(sample), 1)), 1)

    return slowness
