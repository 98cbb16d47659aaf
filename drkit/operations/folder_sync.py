"""Making folders durable, several times over while they are written: what did not change meanwhile is left alone.

A file is known by its inode and by when it was last changed (inode(7), ctime), which every write moves on by at least a
tick of the clock. One that changed within the last ticks before it was synced is synced again, because the next change
could bear the same time.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from drkit.errors import written

_THREADS = 8
_SETTLED_NS = 100_000_000
"""Some ticks of the slowest clock that a kernel stamps files by, 100 a second."""
_PAUSE_S = 0.2

_Mark = tuple[int, int]


class FolderSync:
    """Some folders and what is known to be durable in them."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._durable: dict[str, _Mark] = {}

    def sync(self) -> None:
        """Make everything durable, several files at once; raise SourceError when that fails."""
        self._sync(threading.Event())

    @contextmanager
    def beside(self, passed_over: Collection[str] = ()) -> Iterator[None]:
        """Make durable what is there and what is written while the body goes on, so that `sync` finds little to do.

        What is called one of ``passed_over`` in one of the folders themselves is left for `sync`. Raise SourceError
        after the body when it fails. At the end of the body what is not begun is left for `sync` as well.
        """
        ended = threading.Event()
        with ThreadPoolExecutor(1, "sync") as pool:
            running = pool.submit(self._keep_syncing, ended, passed_over)
            try:
                yield
            finally:
                ended.set()
            running.result()

    def _keep_syncing(self, ended: threading.Event, passed_over: Collection[str]) -> None:
        while not ended.is_set():
            began_s = time.monotonic()
            self._sync(ended, passed_over)
            ended.wait(max(_PAUSE_S, time.monotonic() - began_s))

    def _sync(self, given_up: threading.Event, passed_over: Collection[str] = ()) -> None:
        looked_ns = time.time_ns()
        changed = [(path, mark) for path, mark in self._found(passed_over) if self._durable.get(path) != mark]

        def sync_some(some: Iterable[tuple[str, _Mark]]) -> None:
            for path, mark in some:
                if given_up.is_set():
                    return
                # Whoever writes into the folders meanwhile may remove files.
                with contextlib.suppress(FileNotFoundError):
                    sync_path(Path(path))
                    if mark[1] < looked_ns - _SETTLED_NS:
                        self._durable[path] = mark

        with written(self._roots[0]), ThreadPoolExecutor(_THREADS, "sync") as pool:
            list(pool.map(sync_some, [changed[first::_THREADS] for first in range(_THREADS)]))

    def _found(self, passed_over: Collection[str]) -> Iterator[tuple[str, _Mark]]:
        """Yield every file and folder with its mark, of now or before."""
        for root in self._roots:
            for folder, folders, names in os.walk(root):
                if Path(folder) == root:
                    folders[:] = [name for name in folders if name not in passed_over]
                for path in (*(os.path.join(folder, name) for name in names), folder):  # noqa: PTH118 - of thousands
                    with contextlib.suppress(FileNotFoundError):
                        status = os.lstat(path)
                        if not stat.S_ISLNK(status.st_mode):
                            yield path, (status.st_ino, status.st_ctime_ns)


def sync_path(path: Path) -> None:
    """Make one file or folder durable."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
