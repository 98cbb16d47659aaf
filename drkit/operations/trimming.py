"""Taking what is long over out of the catalog, once a day: it must not grow without end."""

from __future__ import annotations

import threading
from datetime import timedelta

from drkit.operations import Reporter, Workplace

_LOOK_EVERY_S = 600.0
_EVERY = timedelta(days=1)


class Trimming:
    """The duty that trims the past of the catalog; any number of processes may, and one a day does."""

    name = "history"

    def __init__(self, workplace: Workplace, reporter: Reporter) -> None:
        self._workplace = workplace
        self._reporter = reporter

    def run(self, stopping: threading.Event) -> None:
        """Trim until ``stopping``, not at once: what is to be done at the start is more urgent."""
        while not stopping.wait(_LOOK_EVERY_S):
            self.round()

    def round(self) -> None:
        """Trim, when that was a day ago."""
        history, now = self._workplace.catalog.history, self._workplace.clock()
        last = history.trimmed_at()
        if last is not None and timedelta() <= now - last < _EVERY:
            return
        removed = history.trim(now - self._workplace.site.scheduler.keep_history, now)
        if any(removed.values()):
            words = ", ".join(f"{count} {what}" for what, count in removed.items() if count)
            self._reporter.line(f"history  trimmed: {words}")
