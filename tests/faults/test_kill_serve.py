"""Three schedulers on one catalog, killed at random: each moment of a schedule is dispatched once and ends somehow."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drkit.app import open_app
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.scheduler import Planner, schedules_of
from tests.fixtures import scheduling
from tests.fixtures.site import ReadySite

ROOT = Path(__file__).parents[2]


@dataclass
class Crew:
    """Some `drkit serve` on one site."""

    site: ReadySite
    began_s: float = field(default_factory=time.time)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start one more."""
        with (self.site.folder / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fixtures.scheduling", str(self.site.site_file)],
                cwd=self.site.folder,
                env={**os.environ, scheduling.BEGAN: str(self.began_s), "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        """Return what they all said."""
        return (self.site.folder / "serve.log").read_text()

    def stop(self) -> None:
        """Stop them all and wait."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=30)
        self.processes.clear()

    def jobs(self) -> list[int]:
        """Return the jobs of this site that run, whoever's they are."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_job = b"tests.fixtures.scheduling\0job" in (folder / "cmdline").read_bytes()
                if is_job and (folder / "cwd").readlink() == self.site.folder:
                    found.append(int(folder.name))
        return found


@pytest.fixture
def crew(ready_site: ReadySite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    crew = Crew(ready_site)
    yield crew
    for process in crew.processes:
        process.kill()
        process.wait()


@pytest.fixture
def catalog(ready_site: ReadySite) -> Iterator[SqliteCatalog]:
    with contextlib.closing(open_catalog(ready_site.folder / "var" / "catalog.db", create=True)) as catalog:
        yield catalog


def add_policy(site: ReadySite, name: str, schedule: str = "* * * * *", more: str = "") -> None:
    path = site.write_policy(name, more=more)
    path.write_text(path.read_text().replace("{method: dump}", f'{{method: dump, schedule: "{schedule}"}}'))


def until(holds: Callable[[], bool], crew: Crew, timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, crew.said()[-3000:]
        time.sleep(0.05)


def overdue(crew: Crew, catalog: SqliteCatalog) -> None:
    """Put the clock to one hour after the schedules were first seen, so that what is due at half past is overdue."""
    with open_app(crew.site.site_file) as workplace:
        schedules = schedules_of(workplace.policies.values(), workplace.site.scheduler)
    Planner(catalog.occurrences, schedules).tick(scheduling.fast_clock(time.time()))
    crew.began_s -= 3600 / scheduling.SPEED


def settled(catalog: SqliteCatalog) -> bool:
    return not catalog.occurrences.dispatched()


def test_three_killed_at_random_dispatch_each_moment_once(crew: Crew, catalog: SqliteCatalog) -> None:
    for name in ("one", "two"):
        add_policy(crew.site, name)
    dice = random.Random(11)
    for _ in range(3):
        crew.start()
    until(lambda: len(catalog.occurrences.history()) >= 2, crew)
    kills = 0
    while kills < 5:
        time.sleep(dice.uniform(0.2, 1.0))
        victim = crew.processes.pop(dice.randrange(3))
        victim.kill()
        victim.wait()
        kills += 1
        crew.start()
    until(lambda: len([item for item in catalog.occurrences.history() if item.state == "done"]) >= 8, crew)
    crew.stop()
    crew.start()  # whoever comes last takes up what the killed had
    until(lambda: settled(catalog) and not crew.jobs(), crew)
    crew.stop()

    items = catalog.occurrences.history(limit=100_000)
    assert len({(item.schedule, item.due_at) for item in items}) == len(items)
    for name in ("one", "two"):
        due = sorted(item.due_at for item in items if item.policy == name)
        minutes = round((due[-1] - due[0]).total_seconds() / 60)
        assert len(due) == minutes + 1, "a moment has no row"
    runs = {run.run_id: run for run in catalog.runs(limit=100_000)}
    for item in items:
        assert item.state in ("done", "coalesced", "skipped", "failed", "due"), item
        assert item.reason or item.state in ("done", "due"), item
        assert item.state != "failed" or item.reason.endswith("and the next is due"), item
        ends = Counter(
            runs[attempt.run_id].state
            for attempt in catalog.occurrences.attempts(item.occurrence_id)
            if attempt.run_id in runs
        )
        assert ends["succeeded"] == (1 if item.state == "done" else 0), (item, ends)
    assert crew.jobs() == []
    assert [run for run in runs.values() if run.state == "running"] == []


def test_a_serve_that_is_told_to_stop_ends_its_jobs_and_the_next_takes_them_up(
    crew: Crew, catalog: SqliteCatalog
) -> None:
    text = crew.site.site_file.read_text()
    crew.site.site_file.write_text(text + "scheduler: {stop_within: 100ms}\n")
    add_policy(crew.site, "hangs", "30 0 * * *")
    add_policy(crew.site, "stubborn", "30 0 * * *")
    overdue(crew, catalog)
    crew.start()
    until(lambda: len(crew.jobs()) == 2 and len(catalog.runs(state="running")) == 2, crew)
    crew.stop()
    assert crew.jobs() == []
    states = {item.policy: (item.state, item.attempts) for item in catalog.occurrences.history()}
    assert states == {"hangs": ("due", 1), "stubborn": ("due", 1)}
    crew.start()
    until(lambda: all(item.attempts == 2 for item in catalog.occurrences.history()), crew)


def test_what_fails_is_tried_again_or_not(crew: Crew, catalog: SqliteCatalog) -> None:
    add_policy(crew.site, "refused", "30 0 * * *")
    add_policy(crew.site, "flaky", "30 0 * * *", "objectives: {rpo: 2m}\n")
    overdue(crew, catalog)
    crew.start()

    def tried() -> dict[str, int]:
        return {item.policy: item.attempts for item in catalog.occurrences.history()}

    until(lambda: tried().get("flaky", 0) >= 3, crew)
    crew.stop()
    states = {item.policy: item for item in catalog.occurrences.history()}
    assert (states["refused"].state, states["refused"].attempts) == ("failed", 1)
    assert "auth" in states["refused"].reason
    assert [event["class"] for event in catalog.events() if event["name"] == "occurrence.failed"] == ["auth"]
    failures = [item.failure for item in catalog.occurrences.attempts(states["flaky"].occurrence_id)]
    assert set(failures) <= {"transient", "interrupted"}


def test_what_stands_still_is_ended(crew: Crew, catalog: SqliteCatalog) -> None:
    crew.site.site_file.write_text(crew.site.site_file.read_text() + "scheduler: {stalled_after: 2s}\n")
    add_policy(crew.site, "hangs", "30 0 * * *")
    overdue(crew, catalog)
    crew.start()
    until(lambda: "no byte and no word for" in crew.said(), crew)
    (item,) = catalog.occurrences.history()
    until(lambda: catalog.occurrences.attempts(item.occurrence_id)[0].failure == "transient", crew)


def test_a_run_that_is_cancelled_is_not_tried_again(crew: Crew, catalog: SqliteCatalog) -> None:
    add_policy(crew.site, "hangs", "30 0 * * *")
    overdue(crew, catalog)
    crew.start()
    until(lambda: bool(catalog.runs(state="running")), crew)
    (run,) = catalog.runs(state="running")
    done = crew.site.call("run", "cancel", run.run_id[:20])
    assert done.returncode == 0, done.stderr
    assert "has ended: interrupted" in done.stdout
    until(lambda: settled(catalog), crew)
    (item,) = catalog.occurrences.history()
    assert (item.state, item.reason) == ("failed", "it was cancelled by hand")
    assert crew.site.call("run", "cancel", run.run_id).returncode == 10
    shown = crew.site.call("run", "show", run.run_id).stdout
    assert "backup/hangs/dump due" in shown
    assert "cancelled" in shown
