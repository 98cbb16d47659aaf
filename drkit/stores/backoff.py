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

    ``attempts`` counts the first try too. ``sleep`` and ``jitter`` (0 to 1) are arguments for tests, and for callers
    that must be able to stop a wait.
    """

    attempts: int = 4
    first_s: float = 1.0
    longest_s: float = 30.0
    sleep: Callable[[float], object] = time.sleep
    jitter: Callable[[], float] = random.random

    def delays_s(self) -> Iterator[float]:
        """Yield the wait before each further try."""
        for exponent in range(self.attempts - 1):
            yield min(self.first_s * 2**exponent, self.longest_s) * (0.5 + self.jitter() / 2)

    def retry(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns; call it again only after StoreUnavailable, and raise the last one."""
        for delay_s in self.delays_s():
            try:
                return call()
            except StoreUnavailable:
                self.sleep(delay_s)
        return call()
