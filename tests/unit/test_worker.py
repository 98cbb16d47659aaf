"""The worker on a real ledger, with jobs that are one line of Python: how each way of ending is written down."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drkit import worker
from drkit.app import open_app
from drkit.catalog.occurrences import Claim, OccurrenceLedger
from drkit.model import Run
from drkit.occurrences import Occurrence
from drkit.operations import Workplace
from drkit.scheduler import Planner, schedules_of
from drkit.worker import Worker
from tests.fixtures.bucket import entry_of, make_manifest
from tests.fixtures.site import ReadySite

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
JOB = "import json, os, sys; task = json.loads(sys.stdin.readline())['job']; say = lambda **d: print(json.dumps(d)); "
ENDS = JOB + "say(ended={'failure': %r, 'error': 'because'})"


@dataclass
class Scene:
    """A site of one policy that was due at START, a worker, and a clock that is set by hand."""

    workplace: Workplace
    now: datetime = START
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        policies = list(self.workplace.policies.values())
        self.planner = Planner(self.ledger, schedules_of(policies, self.workplace.site.scheduler))
        self.planner.tick(START - MINUTE)
        self.planner.tick(START)
        self.worker = Worker(self.workplace, self.planner, policies, self, lambda: self.now)

    def line(self, text: str) -> None:
        self.said.append(text)

    def progress(self, label: str, expected_bytes: int | None = None) -> Any:
        raise NotImplementedError

    @property
    def ledger(self) -> OccurrenceLedger:
        return self.workplace.catalog.occurrences

    @property
    def item(self) -> Occurrence:
        return next(item for item in self.ledger.history() if item.due_at == START)

    def until(self, holds: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline_s, self.said
            self.worker._look()
            time.sleep(0.01)

    def run(self, code: str) -> Occurrence:
        """Let the worker do one job, which is ``code``, and return what became of it."""
        worker.JOB_COMMAND = (sys.executable, "-I", "-S", "-c", code)
        self.until(lambda: self.item.attempts == 1 and self.item.state != "dispatched")
        return self.item


@pytest.fixture
def scene(ready_site: ReadySite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(worker, "JOB_COMMAND", ())
    monkeypatch.setattr(worker, "_RECLAIM_S", 0)
    monkeypatch.setattr(worker, "_HARD_AFTER_S", 0.2)
    text = ready_site.site_file.read_text()
    housekeeping = "copy_missing: null, prune: null, verify: null"
    ready_site.site_file.write_text(text + f"scheduler: {{{housekeeping}, stop_within: 50ms}}\n")
    ready_site.add_store("offsite")
    path = ready_site.write_policy("orders", stores=("primary", "offsite"), more="objectives: {rpo: 4h}\n")
    path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 * * * *"}'))
    with open_app(ready_site.site_file) as workplace:
        scene = Scene(workplace)
        yield scene
        scene.worker._stop()


@pytest.mark.parametrize(
    ("failure", "state", "reason"),
    [
        ("", "done", ""),
        ("transient", "due", "attempt 1 ended (transient): because"),
        ("capacity", "due", "attempt 1 ended (capacity): because"),
        ("conflict", "due", "attempt 1 ended (conflict): because"),
        ("interrupted", "due", "attempt 1 ended (lost): it was interrupted"),
        ("auth", "failed", "auth: because; 1 attempt"),
        ("data", "failed", "data: because; 1 attempt"),
    ],
)
def test_ends(scene: Scene, failure: str, state: str, reason: str) -> None:
    item = scene.run(ENDS % failure)
    assert (item.state, item.reason) == (state, reason)
    assert scene.ledger.held() == {}
    assert (item.not_before_at > START) == (state == "due")


def test_the_next_command_is_said_below_a_failure(scene: Scene) -> None:
    scene.run(JOB + "say(ended={'failure': 'auth', 'error': 'because', 'hints': ['drkit keys prove']})")
    assert scene.said[-2:] == ["orders  backup dump  failed: because", "orders  backup dump  hint: drkit keys prove"]


def test_a_job_is_given_its_policy_only_where_the_file_has_problems(scene: Scene) -> None:
    code = "import json, sys; given = json.loads(sys.stdin.readline()).get('policy', {}).get('values', {}); "
    code += "print(json.dumps({'ended': {'failure': 'transient', 'error': given.get('policy', 'nothing')}}))"
    assert scene.run(code).reason == "attempt 1 ended (transient): nothing"
    scene.workplace.kept_policies = {"orders"}
    scene.now = START + MINUTE
    scene.until(lambda: scene.item.attempts == 2 and scene.item.state == "due")
    assert scene.item.reason == "attempt 2 ended (transient): orders"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no such module')", "no such module"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "its process was ended by SIGKILL: somebody did that, or the kernel as memory was short (dmesg says so)",
        ),
        ("import os; os.kill(os.getpid(), 15)", "its process was ended by SIGTERM"),
        (JOB + "print('what is this')", "its process ended without a word"),
    ],
)
def test_an_end_without_a_word_is_tried_again(scene: Scene, code: str, words: str) -> None:
    item = scene.run(code)
    assert (item.state, item.reason) == ("due", f"attempt 1 ended (lost): {words}")


def test_the_last_try_before_the_next_is_due_is_the_last(scene: Scene) -> None:
    scene.now = START + timedelta(minutes=59, seconds=50)
    item = scene.run(ENDS % "transient")
    assert (item.state, item.reason) == ("failed", "transient: because; after 1 attempt, and the next is due")
    (late,) = [event for event in scene.workplace.catalog.events() if event["name"] == "occurrence.late"]
    assert late["late_s"] == 3590


def test_a_program_that_cannot_be_started(scene: Scene) -> None:
    worker.JOB_COMMAND = ("/nowhere/python",)
    scene.until(lambda: scene.item.attempts == 1 and scene.item.state == "due")
    assert "cannot start /nowhere/python" in scene.item.reason


def test_one_that_does_not_listen_is_killed(scene: Scene) -> None:
    quick = scene.worker._config.model_copy(update={"stalled_after": timedelta(milliseconds=300)})
    scene.worker._config = quick  # for this job alone: on a busy machine any other may take as long to begin
    item = scene.run("import signal, time; signal.signal(15, 1); say = print; time.sleep(60)")
    assert item.reason.startswith("attempt 1 ended (transient): stalled after 0 B: no byte and no word for 0.")


def test_one_that_ended_its_work_and_not_itself_is_killed(scene: Scene) -> None:
    code = JOB + "say(ended={'failure': '', 'error': ''}); sys.stdout.flush(); import time; time.sleep(60)"
    assert scene.run(code).state == "done"


@pytest.mark.parametrize(("stores", "state"), [(("primary",), "failed"), (("primary", "offsite"), "done")])
def test_a_backup_that_stands_is_not_taken_again_for_its_copies(
    scene: Scene, stores: tuple[str, ...], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "new_id", lambda at: "01RUN")
    scene.workplace.catalog.index_artifact(entry_of(make_manifest(run_id="01RUN"), stores))
    item = scene.run(ENDS % "transient")
    assert item.state == state
    if state == "failed":
        assert item.reason == "incomplete: it stands in primary, and the copies are made later: because"


class TestWhatOthersLeft:
    def take(self, scene: Scene, holder: str, run: str = "") -> Occurrence:
        """Let a process claim the occurrence, and record a run of it in state ``run``."""
        (item,) = scene.ledger.waiting(START)
        assert scene.ledger.claim(Claim(item.occurrence_id, holder, "01RUN", {"site": 4}), START)
        if run:
            now = scene.workplace.clock()
            scene.workplace.catalog.finish_run(
                Run("01RUN", "backup", "orders", run, now, "elsewhere", 1, now)  # type: ignore[arg-type]
            )
        return item

    @pytest.fixture
    def dead(self, scene: Scene) -> str:
        own = scene.worker._holder
        return own.partition("@")[0] + "@earlier"

    @pytest.mark.parametrize(("run", "state"), [("", "due"), ("failed", "due"), ("lost", "due"), ("succeeded", "done")])
    def test_of_a_dead_process_the_run_tells(self, scene: Scene, dead: str, run: str, state: str) -> None:
        self.take(scene, dead, run)
        scene.worker._reclaim()
        assert scene.item.state == state
        assert scene.ledger.held() == {}

    def test_a_child_of_the_dead_that_still_runs_is_waited_for(self, scene: Scene, dead: str) -> None:
        self.take(scene, dead, "running")
        scene.worker._reclaim()
        assert scene.item.state == "dispatched"

    def test_what_we_hold_and_do_not_do_was_lost(self, scene: Scene) -> None:
        self.take(scene, scene.worker._holder)
        scene.worker._reclaim()
        assert scene.item.state == "due"

    def test_of_another_host_only_time_tells(self, scene: Scene) -> None:
        self.take(scene, "elsewhere/1@x")
        scene.worker._reclaim()
        assert scene.item.state == "dispatched"
        scene.now = START + 11 * MINUTE
        scene.worker._reclaim()
        assert scene.item.reason == "attempt 1 ended (lost): nothing was heard of elsewhere/1@x any more"

    def test_one_of_another_host_whose_clock_was_a_year_ahead_is_not_waited_for_a_year(self, scene: Scene) -> None:
        self.take(scene, "elsewhere/1@x")
        scene.now = START - timedelta(days=365)
        scene.worker._reclaim()
        assert scene.item.reason.startswith("attempt 1 ended (lost)")
        assert scene.ledger.held() == {}


def test_what_no_policy_wants_any_more_is_skipped(scene: Scene) -> None:
    (item,) = scene.ledger.waiting(START)
    scene.worker._begin(replace(item, policy="gone"), scene.ledger.held())
    assert (scene.item.state, scene.item.reason) == ("skipped", "there is no policy gone any more")


def test_limits_of_hosts_and_stores(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://drkit:secret@db1.example.org/orders")
    limits = scene.worker._limits(scene.item, scene.workplace.policies["orders"])
    assert limits == {
        "site": 4,
        "schedule backup/orders/dump": 1,
        "backup of orders": 1,
        "store primary": 4,
        "store offsite": 4,
        "host db1.example.org": 2,
    }


def test_a_catalog_that_is_locked_is_asked_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from drkit.errors import CatalogError

    stopping = threading.Event()

    def locked() -> None:
        stopping.set()
        raise CatalogError("the catalog is locked")

    monkeypatch.setattr(scene.worker, "_look", locked)
    scene.worker.run(stopping)
    assert scene.said == ["worker  waiting: the catalog is locked"]
