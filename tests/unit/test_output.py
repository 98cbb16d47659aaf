"""Saying things never ends what is said of."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from drkit.app import open_app
from drkit.cli.output import Output
from drkit.operations import serve
from drkit.operations.health import Health
from tests.fixtures.site import ReadySite


class Failing:
    """A duty that fails until ``times`` is reached."""

    name = "worker"

    def __init__(self, times: int, words: str = "nobody foresaw it") -> None:
        self.times = times
        self.words = words
        self.ran = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        if self.times:
            self.times -= 1
            raise RuntimeError(self.words)
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


def test_a_duty_that_fails_is_an_event_also_where_lines_are_silent(
    ready_site: ReadySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_FIRST_WAIT_S", 0.01)
    duty, stopping = Failing(3, "cannot reach postgresql://me:hunter2@db/orders"), threading.Event()
    with open_app(ready_site.site_file) as workplace:
        watched = Health(workplace.clock, {}), [duty]
        serving = threading.Thread(target=serve.serve, args=(workplace, [], Output(json=True), stopping, watched))
        serving.start()
        assert duty.ran.wait(20)
        stopping.set()
        serving.join()
        (event,) = [item for item in workplace.catalog.events() if item["name"] == "duty.failed"]
    message = "RuntimeError: cannot reach postgresql://me:***@db/orders"
    assert (event["duty"], event["state"], event["message"]) == ("worker", "failed", message)
