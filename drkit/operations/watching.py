"""`drkit watch` as a resident: look, note what began and ended, tell people, wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from drkit.operations import Workplace
from drkit.operations.lookout import ConditionLog
from drkit.operations.notify import Notifier
from drkit.operations.watch import WORDS, WatchReport

_DELIVER_EVERY_S = 5.0


def reside(
    workplace: Workplace,
    look: Callable[[], WatchReport],
    interval_s: float,
    stopping: threading.Event,
    say: Callable[[WatchReport], None],
) -> None:
    """Look every ``interval_s`` until ``stopping``; deliver what waits meanwhile."""
    log = ConditionLog(workplace.catalog, WORDS)
    notifier = Notifier(workplace)
    while not stopping.is_set():
        report = look()
        say(report)
        log.note(report.conditions, report.at)
        until_s = time.monotonic() + interval_s
        while not stopping.is_set() and time.monotonic() < until_s:
            notifier.round()
            stopping.wait(min(_DELIVER_EVERY_S, max(until_s - time.monotonic(), 0)))
