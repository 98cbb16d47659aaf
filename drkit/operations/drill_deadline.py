"""The bound on a drill: when its time is over it ends as after Ctrl-C, so that whatever it was lent is taken away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta


class OutOfTime(KeyboardInterrupt):
    """The time of a drill is over.

    An interrupt, not an error: nothing on the way may take it for a failure of its own work and go on, and what cleans
    up after Ctrl-C (psycopg cancels its query, children are ended) cleans up after this.
    """


@contextmanager
def deadline(limit: timedelta) -> Iterator[None]:
    """Raise OutOfTime in the body when it takes longer than ``limit``, at most once.

    Only the main thread can be stopped wherever it waits (signal(7)); anywhere else this raises ValueError.
    """
    before = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, limit.total_seconds())
    try:
        yield
    finally:
        call_off()
        signal.signal(signal.SIGALRM, before)


def call_off() -> None:
    """Let the rest of the body take its time: what is proven is proven, and cleaning up must not be cut short."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _ring(*_: object) -> None:
    raise OutOfTime
