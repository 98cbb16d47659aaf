"""How `drkit serve` is: when its duties last went round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from drkit.units import format_utc


@dataclass
class Health:
    """Is told by the duties, from their threads, and asked by whoever watches the process.

    ``patience`` names the duties that go rounds, and how old the last round of each may be. One that fails goes none.
    """

    clock: Callable[[], datetime]
    patience: Mapping[str, timedelta]
    _ticked_at: dict[str, datetime] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._ticked_at.update(dict.fromkeys(self.patience, self.clock()))

    def tick(self, duty: str) -> None:
        """Note that a duty went round."""
        with self._turn:
            self._ticked_at[duty] = self.clock()

    def last_ticks(self) -> dict[str, datetime]:
        """Return when each duty last went round."""
        with self._turn:
            return dict(self._ticked_at)

    def report(self) -> dict[str, Any]:
        """Return the document of ``/healthz``; ``ok`` is False when a duty is silent for too long."""
        now = self.clock()
        duties = []
        for name, ticked_at in sorted(self.last_ticks().items()):
            age, patience = now - ticked_at, self.patience.get(name)
            state = "silent" if patience is not None and age > patience else "running"
            duties.append({"name": name, "state": state, "tick_age_s": round(age.total_seconds(), 3)})
        return {"ok": all(duty["state"] == "running" for duty in duties), "at": format_utc(now), "duties": duties}
