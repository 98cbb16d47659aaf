"""Trying again for as long as `drkit serve` runs: what the duties that receive a log do with an error."""

from __future__ import annotations

import threading
from collections.abc import Callable

from drkit.attempts import classify
from drkit.errors import DrkitError, IntegrityError, SourceError, StoreError
from drkit.operations.sealed_files import SpoolFull

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0


class Persistence:
    """Runs a step again and again, later each time after it ended, until `progress` says that it got somewhere.

    ``tell`` gets the state and the words of each error. ``damaged`` is the state for an IntegrityError.
    """

    def __init__(self, tell: Callable[[str, str], None], *, damaged: str) -> None:
        self._tell = tell
        self._damaged = damaged
        self._wait_s = _FIRST_WAIT_S

    def progress(self) -> None:
        """Wait only shortly after the next end."""
        self._wait_s = _FIRST_WAIT_S

    def run(self, step: Callable[[threading.Event], None], stopping: threading.Event) -> None:
        """Run ``step`` until ``stopping``; only errors of drkit's own are told and outlived."""
        while not stopping.is_set():
            try:
                step(stopping)
            except IntegrityError as error:
                self._tell(self._damaged, error.message)
            except StoreError as error:
                self._tell("waiting", error.message)
            except SpoolFull as error:
                self._tell("disk-full", error.message)
            except DrkitError as error:
                is_gone = isinstance(error, SourceError) and classify(error) != "auth"
                hint = "" if is_gone or not error.hints else f"; hint: {error.hints[0]}"
                self._tell("server-gone" if is_gone else "refused", error.message + hint)
            if stopping.wait(self._wait_s):
                break
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
