"""Being told that something was made in one of some folders: inotify(7), and a short sleep where there is none."""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_CREATED_OR_MOVED_IN = 0x00000100 | 0x00000080
_UNHEARD_S = 0.05
_ROOM_BYTES = 1 << 16


class FolderEvents(Protocol):
    """Waits for something new."""

    def wait(self, timeout_s: float) -> None:
        """Return once something was made since the last call, after ``timeout_s`` at the latest."""


class _Told:
    """What the kernel tells."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if poll.poll(timeout_s * 1000):
            os.read(self._descriptor, _ROOM_BYTES)


class _Untold:
    """Nobody tells: whoever waits looks for himself, soon."""

    def wait(self, timeout_s: float) -> None:
        time.sleep(min(timeout_s, _UNHEARD_S))


@contextmanager
def folder_events(*folders: Path) -> Iterator[FolderEvents]:
    """Listen to some folders; raise OSError when one cannot be read."""
    for folder in folders:
        os.scandir(folder).close()
    descriptor = _listen(folders)
    if descriptor is None:
        yield _Untold()
        return
    try:
        yield _Told(descriptor)
    finally:
        os.close(descriptor)


def _listen(folders: Sequence[Path]) -> int | None:
    """Return what to read the kernel's word from; None where the kernel has none, or no more of it to give."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "inotify_init1"):
        return None
    descriptor = int(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        return None
    for folder in folders:
        if library.inotify_add_watch(descriptor, os.fsencode(folder), _CREATED_OR_MOVED_IN) < 0:
            os.close(descriptor)
            return None
    return descriptor
