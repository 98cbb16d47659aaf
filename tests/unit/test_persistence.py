"""What a resident duty does with errors: tell the state, wait longer each time, begin anew after progress."""

from __future__ import annotations

import threading

import pytest

from drkit.errors import ConfigError, DrkitError, IntegrityError, SourceError, StoreError
from drkit.operations.persistence import Persistence
from drkit.operations.sealed_files import SpoolFull


class Stopping(threading.Event):
    """Never waits; notes how long it was asked to, and is set after so many waits."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._after = after

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) >= self._after:
            self.set()
        return self.is_set()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (IntegrityError("another cluster"), "wrong-server"),
        (StoreError("no store"), "waiting"),
        (SourceError("gone"), "server-gone"),
        (SpoolFull("no room"), "disk-full"),
        (SourceError("role me at db1 may not receive log"), "refused"),
        (ConfigError("no such slot"), "refused"),
    ],
    ids=["integrity", "store", "source", "full", "forbidden", "other"],
)
def test_each_error_has_its_state_and_is_tried_again(error: DrkitError, state: str) -> None:
    told: list[tuple[str, str]] = []

    def step(stopping: threading.Event) -> None:
        raise error

    stopping = Stopping(2)
    Persistence(lambda *words: told.append(words), damaged="wrong-server").run(step, stopping)
    assert told == [(state, error.message)] * 2


def test_what_a_person_has_to_do_is_told_with_the_command() -> None:
    told: list[tuple[str, str]] = []

    def step(stopping: threading.Event) -> None:
        raise SourceError("role me may not receive log", hints=['alter role "me" replication;', "or else"])

    Persistence(lambda *words: told.append(words), damaged="wrong-server").run(step, Stopping(1))
    assert told == [("refused", 'role me may not receive log; hint: alter role "me" replication;')]


def test_the_waits_grow_to_a_bound_until_there_is_progress() -> None:
    stopping = Stopping(9)
    runs: list[int] = []

    def step(_: threading.Event) -> None:
        runs.append(1)
        if len(runs) == 8:
            step_again.progress()

    step_again = Persistence(lambda *_: None, damaged="failed")
    step_again.run(step, stopping)
    assert stopping.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 0.5, 1.0]


def test_what_is_no_error_of_drkit_ends_it() -> None:
    def step(_: threading.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Persistence(lambda *_: None, damaged="failed").run(step, Stopping(5))
