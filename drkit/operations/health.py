"""How `drkit serve` is: whether each duty lives, goes round and does not fail, and whether the catalog is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from drkit.units import format_duration, format_utc

USUAL_PATIENCE = timedelta(minutes=10)
"""How long a duty may not ask whether it is to stop: a store that never answers is waited for, four minutes."""

LONG_PATIENCE = timedelta(hours=1)
"""The same for one that may have much to do at once, such as shipping what a day without a store has left."""

_ILL_FOR = timedelta(minutes=1)
"""How long a duty that failed must go on before it is well again: one that fails at once fails again and again."""


@dataclass
class _Duty:
    thread: threading.Thread
    patience: timedelta
    expected_at: datetime | None
    failed_at: datetime | None = None
    failure: str = ""


@dataclass
class Health:
    """Is told by the duties, from their threads, and asked by whoever watches the process.

    ``patience`` names the duties that go rounds, and how old the last round of each may be: a round that fails is none.
    Every duty is watched besides: its thread must live, and ask now and then whether it is to stop.
    """

    clock: Callable[[], datetime]
    patience: Mapping[str, timedelta]
    _ticked_at: dict[str, datetime] = field(default_factory=dict)
    _duties: dict[str, _Duty] = field(default_factory=dict)
    _catalog_failure: str = ""
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

    def watch(self, duty: str, thread: threading.Thread, patience: timedelta) -> None:
        """Watch a duty whose thread has not begun yet; `forget` it before it ends."""
        with self._turn:
            self._duties[duty] = _Duty(thread, patience, self.clock() + patience)

    def forget(self, duty: str) -> None:
        """Watch a duty no longer: it is to end."""
        with self._turn:
            self._duties.pop(duty, None)
            self._ticked_at.pop(duty, None)

    def expect(self, duty: str, within_s: float | None) -> None:
        """Note that a duty lives, and waits for so long now; None: until it is told to stop."""
        with self._turn:
            watched = self._duties.get(duty)
            if watched is not None:
                now = self.clock()
                pause = None if within_s is None else timedelta(seconds=within_s)
                watched.expected_at = None if pause is None else now + pause + watched.patience
                if watched.failed_at is not None and now - watched.failed_at > _ILL_FOR:
                    watched.failed_at = None

    def fail(self, duty: str, failure: str) -> None:
        """Note that an error ended a duty, which is begun again."""
        with self._turn:
            watched = self._duties.get(duty)
            if watched is not None:
                watched.failed_at, watched.failure = self.clock(), failure

    def note_catalog(self, failure: str = "") -> None:
        """Note that the catalog could be written, or why it could not."""
        with self._turn:
            self._catalog_failure = failure

    def report(self) -> dict[str, Any]:
        """Return the document of ``/healthz``; ``wrong`` says in words what is not well, and is empty when all is."""
        now, ticked = self.clock(), self.last_ticks()
        with self._turn:
            watched, catalog_failure = dict(self._duties), self._catalog_failure
        duties, wrong = [], []
        if catalog_failure:
            wrong.append(f"the catalog cannot be written: {catalog_failure}")
        for name in sorted(ticked.keys() | watched.keys()):
            age = now - ticked[name] if name in ticked else None
            state, words = self._state(name, watched.get(name), age, now)
            duty: dict[str, Any] = {"name": name, "state": state}
            if age is not None:
                duty["tick_age_s"] = round(age.total_seconds(), 3)
            duties.append(duty)
            if words:
                wrong.append(f"{name} {words}")
        return {"ok": not wrong, "at": format_utc(now), "wrong": wrong, "duties": duties}

    def _state(self, name: str, duty: _Duty | None, age: timedelta | None, now: datetime) -> tuple[str, str]:
        """Return a duty's state, and what is wrong with it, empty when nothing is."""
        if duty is not None and duty.thread.ident is not None and not duty.thread.is_alive():
            return "dead", "is dead: its thread has ended"
        patience = self.patience.get(name)
        if age is not None and patience is not None and age > patience:
            return "silent", f"is silent: its last round was {format_duration(age)} ago"
        if duty is None:
            return "running", ""
        if duty.failed_at is not None:
            return "failed", f"failed: {duty.failure}"
        if duty.expected_at is not None and now > duty.expected_at:
            return "stuck", f"is stuck: nothing is heard of it, {format_duration(now - duty.expected_at)} too long"
        return "running", ""


class Pulse(threading.Event):
    """An event to stop by, for one duty: whoever asks it shows that the duty lives."""

    def __init__(self, duty: str, health: Health) -> None:
        super().__init__()
        self._duty = duty
        self._health = health

    def set(self) -> None:
        """Tell the duty to stop; that it ends is right from now on."""
        self._health.forget(self._duty)
        super().set()

    def is_set(self) -> bool:
        """Tell whether the duty is to stop."""
        self._health.expect(self._duty, 0)
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the duty is to stop, or for so many seconds; tell whether it is."""
        self._health.expect(self._duty, timeout)
        told = super().wait(timeout)
        self._health.expect(self._duty, 0)
        return told

    def fail(self, failure: str) -> None:
        """Note that an error ended the duty, which is begun again."""
        self._health.fail(self._duty, failure)
