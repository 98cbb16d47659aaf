"""The health of `drkit serve` turns red, and says why, when a duty or the catalog really does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from drkit.app import open_app
from drkit.catalog import files
from drkit.errors import CatalogError
from drkit.operations.health import Health
from drkit.operations.serve import Duty, Group, running_duties
from drkit.operations.site_duties import PATIENCE, say_start, site_duties
from drkit.worker import scheduler_duties
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import Clock, Telling, telling
from tests.fixtures.waiting import wait_until

_DIES = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Said:
    def line(self, text: str) -> None:
        pass


class Hanging:
    """A duty that goes round until it is given something to do for ever."""

    name = "hanging"

    def __init__(self) -> None:
        self.step: Callable[[], None] = lambda: None

    def run(self, stopping: threading.Event) -> None:
        while not stopping.wait(0.01):
            self.step()


def wrong(health: Health) -> str:
    report = health.report()
    assert report["ok"] is (not report["wrong"])
    return "; ".join(report["wrong"])


@contextmanager
def watched(duty: Duty, clock: Clock) -> Iterator[Health]:
    health = Health(clock, {})
    with running_duties([duty], lambda *_: None, 5.0, Group(health)):
        yield health
    assert health.report()["duties"] == [], "who was told to stop is watched no longer"


class TestDuties:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    def test_one_that_goes_round_is_well(self, clock: Clock) -> None:
        with watched(Hanging(), clock) as health:
            for _ in range(3):
                clock.forward(minutes=5)
                wait_until(lambda: not wrong(health))

    def test_one_that_hangs_is_stuck(self, clock: Clock) -> None:
        duty, let_go = Hanging(), threading.Event()
        with watched(duty, clock) as health:
            hangs = threading.Event()

            def hang() -> None:
                hangs.set()
                let_go.wait()

            duty.step = hang
            hangs.wait()
            assert wrong(health) == ""
            clock.forward(minutes=11)
            assert wrong(health) == "hanging is stuck: nothing is heard of it, 0:01:00 too long"
            let_go.set()
            wait_until(lambda: not wrong(health))

    @_DIES
    def test_one_whose_thread_ended_is_dead(self, clock: Clock) -> None:
        duty = Hanging()
        with watched(duty, clock) as health:

            def end() -> None:
                raise SystemExit

            duty.step = end
            wait_until(lambda: wrong(health) == "hanging is dead: its thread has ended")

    def test_one_that_fails_is_ill_until_it_goes_on_for_a_minute(self, clock: Clock) -> None:
        duty = Hanging()
        with watched(duty, clock) as health:
            failing = [ZeroDivisionError("no 0")]

            def fail_once() -> None:
                if failing:
                    raise failing.pop()

            duty.step = fail_once
            wait_until(lambda: wrong(health) == "hanging failed: ZeroDivisionError: no 0")
            clock.forward(seconds=61)
            wait_until(lambda: not wrong(health))

    def test_one_that_waits_for_its_end_is_well(self, clock: Clock) -> None:
        class Waiting:
            name = "waiting"

            def run(self, stopping: threading.Event) -> None:
                waits.set()
                stopping.wait()

        waits = threading.Event()
        with watched(Waiting(), clock) as health:
            waits.wait()
            wait_until(lambda: health._duties["waiting"].expected_at is None)
            clock.forward(days=30)
            assert wrong(health) == ""


class TestServe:
    """The duties of a real site, in threads of their own."""

    @pytest.fixture
    def told(self, ready_site: ReadySite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telling]:
        monkeypatch.setattr(files, "BUSY_TIMEOUT_S", 0.05)
        monkeypatch.setattr("drkit.worker.LOOK_S", 0.02)
        monkeypatch.setattr("drkit.worker._BEAT_S", 0.05)
        monkeypatch.setattr("drkit.worker._RECLAIM_S", 0.05)
        text = ready_site.site_file.read_text()
        ready_site.site_file.write_text(text + "metrics: {listen: null}\n")
        with telling(ready_site) as told:
            yield told

    @contextmanager
    def serving(self, told: Telling) -> Iterator[Health]:
        health = Health(told.clock, PATIENCE)
        workplace = told.workplace
        duties, _ = scheduler_duties(workplace, [], Said(), health)  # type: ignore[arg-type]
        duties += site_duties(workplace, health, Said())  # type: ignore[arg-type]
        self.worker = next(duty for duty in duties if duty.name == "worker")
        with running_duties(duties, lambda *_: None, 5.0, Group(health)):
            wait_until(lambda: told.catalog.workers.last_beat() is not None)
            yield health

    def test_a_worker_that_is_stopped_turns_it_red(self, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
        let_go = threading.Event()
        with self.serving(told) as health:
            assert wrong(health) == ""
            monkeypatch.setattr(self.worker, "_look", let_go.wait)
            told.clock.forward(seconds=91)
            # The others go on; the scheduler ticks every ten seconds, and a tick is asked for here.
            health.tick("scheduler")
            wait_until(lambda: wrong(health) == "worker is silent: its last round was 0:01:31 ago")
            monkeypatch.undo()
            let_go.set()
            wait_until(lambda: not wrong(health))
        assert told.catalog.workers.last_beat() is None, "a worker that ended is missed by nobody"

    def test_a_catalog_that_takes_nothing_turns_it_red(self, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.serving(told) as health:

            def refuse(*_: object) -> None:
                raise CatalogError("cannot read or write the catalog: database or disk is full")

            monkeypatch.setattr("drkit.catalog.workers.SqliteWorkers.beat", refuse)
            expected = "the catalog cannot be written: cannot read or write the catalog: database or disk is full"
            wait_until(lambda: expected in wrong(health))
            monkeypatch.undo()
            wait_until(lambda: not wrong(health))

    @_DIES
    def test_a_worker_that_is_dead_turns_it_red(self, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
        def end() -> None:
            raise SystemExit

        with self.serving(told) as health:
            monkeypatch.setattr(self.worker, "_look", end)
            wait_until(lambda: wrong(health) == "worker is dead: its thread has ended")


@pytest.mark.parametrize("told", [True, False])
def test_serve_says_at_its_start_that_nobody_is_told(
    ready_site: ReadySite, monkeypatch: pytest.MonkeyPatch, *, told: bool
) -> None:
    monkeypatch.setattr("drkit.operations.site_duties.tool_versions", lambda: {"drkit": "1"})
    if told:
        ready_site.site_file.write_text(ready_site.site_file.read_text() + 'notify: {default: ["env:NTFY_URL"]}\n')
    lines: list[str] = []
    reporter: Any = SimpleNamespace(line=lines.append)
    with open_app(ready_site.site_file) as workplace:
        say_start(workplace, reporter)
    assert lines[0] == "drkit 1"
    assert [line.partition(":")[0] for line in lines[1:]] == (
        [] if told else ["nobody is told when something goes wrong"]
    )


def test_old_workers_are_forgotten(ready_site: ReadySite) -> None:
    with telling(ready_site) as told:
        workers, now = told.catalog.workers, told.clock()
        workers.beat("a/1@x", now - timedelta(days=2))
        assert workers.last_beat() == now - timedelta(days=2)
        workers.beat("b/1@x", now)
        workers.leave("b/1@x")
        assert workers.last_beat() is None
