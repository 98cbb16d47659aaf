"""How long to wait before the next try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from drkit.errors import StoreUnavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Exponential waits with full jitter, so that many writers do not come back at the same moment.

    ``attempts`` counts the first try too. Nothing is tried again ``give_up_after_s`` after the first try began, so that
    a server which takes every connection and never answers is not waited for once per layer and attempt. ``sleep`` and
    ``jitter`` (0 to 1) are arguments for tests, and for callers that must be able to stop a wait.
    """

    attempts: int = 4
    first_s: float = 1.0
    longest_s: float = 30.0
    give_up_after_s: float = 120.0
    sleep: Callable[[float], object] = time.sleep
    jitter: Callable[[], float] = random.random

    def delays_s(self) -> Iterator[float]:
        """Return the waits before each further try; the first one begins now."""
        return self._delays_s(time.monotonic() + self.give_up_after_s)

    def _delays_s(self, deadline_s: float) -> Iterator[float]:
        for exponent in range(self.attempts - 1):
            if time.monotonic() >= deadline_s:
                return
            yield min(self.first_s * 2**exponent, self.longest_s) * (0.5 + self.jitter() / 2)

    def retry(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns; call it again only after StoreUnavailable, and raise the last one."""
        delays_s = self.delays_s()
        while True:
            try:
                return call()
            except StoreUnavailable:
                delay_s = next(delays_s, None)
                if delay_s is None:
                    raise
                self.sleep(delay_s)
