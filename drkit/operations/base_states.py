"""The states of a base backup, kept with its run: which of them it reached, and when (T21)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from drkit.errors import CatalogError
from drkit.operations import Workplace
from drkit.operations.running import RunningRun
from drkit.units import format_utc

BaseState = Literal["running", "copied", "waiting_for_wal", "complete", "failed"]


class BaseStates:
    """Notes the states in the run's outcome as they are reached.

    ``running`` reads the server; ``copied`` has all files, and the WAL from start to stop with them, in the first
    store; ``waiting_for_wal`` asks the store for every object back, the WAL included; ``complete`` has its manifest.
    """

    def __init__(self, workplace: Workplace, running: RunningRun) -> None:
        self._workplace = workplace
        self._running = running
        self._states: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        """Tell whether the backup exists."""
        return "complete" in self._states

    def reach(self, state: BaseState) -> None:
        """Note that a state was reached now."""
        self._states[state] = format_utc(self._workplace.clock())
        outcome = {**(self._running.outcome or {}), "state": state, "states": dict(self._states)}
        self._running.outcome = outcome
        self._workplace.catalog.note_outcome(self._running.run_id, outcome)


@contextmanager
def base_states(workplace: Workplace, running: RunningRun) -> Iterator[BaseStates]:
    """Lend the states of one base backup; the end by an error is noted as ``failed``, unless it was complete before."""
    states = BaseStates(workplace, running)
    states.reach("running")
    try:
        yield states
    finally:
        if not states.complete:
            with suppress(CatalogError):  # it must not hide what ended the backup
                states.reach("failed")
