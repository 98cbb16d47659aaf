"""Doing several things of one run at once, and ending all of them when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from drkit.engines import Part, Preflight
from drkit.errors import SourceError
from drkit.sandboxes.machine import core_count

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stop:
    """Tells streams to end early, from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """End every watched stream at its next chunk."""
        self._event.set()

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield ``chunks``; raise SourceError once told to stop."""
        for chunk in chunks:
            if self._event.is_set():
                raise SourceError("stopped because something else of the same run failed")
            yield chunk


class Spare:
    """Says, by ``event``, when a processor is left over beside the streams that are being worked on.

    Of the streams of a preflight those count that are known to be large. What is written to a far store leaves
    processors over while it waits.
    """

    def __init__(self, preflight: Preflight, *, local: bool, cores: int | None = None) -> None:
        self._left = sum(bool(part.expected_bytes) for part in preflight.parts)
        self._parallel = preflight.parallel if local else 0
        self._cores = cores or core_count()
        self._lock = threading.Lock()
        self.event = threading.Event()
        self._look()

    @contextmanager
    def working(self, part: Part) -> Iterator[threading.Event]:
        """Lend the event while one stream is worked on."""
        yield self.event
        with self._lock:
            self._left -= bool(part.expected_bytes)
            self._look()

    def _look(self) -> None:
        if min(self._left, self._parallel) < self._cores:
            self.event.set()


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], parallel: int, stop: Stop) -> list[Result]:
    """Do ``work`` on every item, up to ``parallel`` at once, begun in order; return the results in order.

    When one fails, or the caller is interrupted, ``stop`` is set, nothing further begins, and the first error is raised
    after everything that runs has ended.
    """
    if parallel == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(parallel, "part") as pool:
        running = [pool.submit(work, item) for item in items]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            _raise_failure(done)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in running]


def _raise_failure(futures: Iterable[Future[Result]]) -> None:
    for future in futures:
        future.result()
