"""Saying things never ends what is said of."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from drkit.cli.output import Output
from drkit.operations import serve


class Failing:
    """A duty that fails until ``times`` is reached."""

    name = "worker"

    def __init__(self, times: int) -> None:
        self.times = times
        self.ran = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        if self.times:
            self.times -= 1
            raise RuntimeError("nobody foresaw it")
        self.ran.set()
        stopping.wait()


def test_duties_go_on_when_nobody_reads_what_serve_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the log's reader was restarted, or the disk is full that the log is written to."""
    monkeypatch.setattr(serve, "_FIRST_WAIT_S", 0.01)
    reading, writing = os.pipe()
    os.close(reading)
    stderr = os.fdopen(writing, "w", buffering=1)
    duty, output = Failing(2), Output()
    with contextlib.redirect_stderr(stderr):
        output.line("scheduler  begins")
        with serve.running_duties([duty], lambda *told: output.line("  ".join(told))):
            assert duty.ran.wait(20)
    with contextlib.suppress(BrokenPipeError):
        stderr.close()
