"""Doing several things of one run at once, and ending all of them when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from drkit.errors import SourceError

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
