"""The planner over a real ledger: what is written when, by one process and by several."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from drkit.catalog.occurrences import Claim, Ending, OccurrenceLedger
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.errors import CatalogError
from drkit.occurrences import Occurrence, Schedule
from drkit.schedule import Recurrence
from drkit.scheduler import Planned, Planner, Ticker, coming_up, schedules_of
from drkit.site import load_policies
from drkit.site_scheduler import SchedulerConfig
from tests.fixtures.site import ReadySite

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOURLY = Schedule("backup/orders/dump", "backup", "orders", "dump", Recurrence("0 * * * *"))
DRILL = Schedule("drill/orders/d", "drill", "orders", "d", Recurrence("0 6 * * *"), "all_within", timedelta(days=7))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqliteCatalog]:
    with contextlib.closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        yield catalog


@pytest.fixture
def ledger(catalog: SqliteCatalog) -> OccurrenceLedger:
    return catalog.occurrences


def rows(ledger: OccurrenceLedger) -> list[tuple[str, str]]:
    return [(f"{item.due_at:%d %H:%M:%S}", item.state) for item in reversed(ledger.history())]


def run_all(ledger: OccurrenceLedger, now: datetime, state: str = "done") -> list[Occurrence]:
    """Claim and finish all that waits."""
    done = []
    for item in ledger.waiting(now):
        assert ledger.claim(Claim(item.occurrence_id, "host/1@x", f"run-{item.occurrence_id}", {}), now)
        done.append(replace(item, run_id=f"run-{item.occurrence_id}"))
        assert ledger.finish(done[-1], Ending(state), now)  # type: ignore[arg-type]
    return done


def test_a_new_schedule_begins_now(ledger: OccurrenceLedger) -> None:
    planner = Planner(ledger, [HOURLY])
    assert planner.tick(START + HOUR / 2) == []
    assert [item.decision.state for item in planner.tick(START + HOUR)] == ["due"]
    assert planner.tick(START + HOUR) == []
    assert rows(ledger) == [("22 13:00:00", "due")]


def test_a_catalog_that_takes_nothing_for_a_while_loses_no_moment(
    ledger: OccurrenceLedger, catalog: SqliteCatalog, tmp_path: Path
) -> None:
    planner = Planner(ledger, [HOURLY, DRILL])
    planner.tick(START)
    with contextlib.closing(sqlite3.connect(tmp_path / "catalog.db")) as full:
        full.execute("create trigger full before insert on occurrences begin select raise(abort, 'disk is full'); end")
        with pytest.raises(CatalogError):
            planner.tick(START + HOUR)
        full.execute("drop trigger full")
    planner.tick(START + HOUR + timedelta(seconds=10))
    planner.tick(START + 2 * HOUR)
    assert rows(ledger) == [("22 13:00:00", "coalesced"), ("22 14:00:00", "due")]


def test_what_came_due_while_nobody_planned(ledger: OccurrenceLedger, catalog: SqliteCatalog) -> None:
    Planner(ledger, [HOURLY, DRILL]).tick(START)
    Planner(ledger, [HOURLY, DRILL]).tick(START + 3 * DAY + HOUR / 2)
    counts = Counter((item.kind, item.state) for item in ledger.history())
    assert counts == {("backup", "coalesced"): 71, ("backup", "due"): 1, ("drill", "due"): 3}
    assert all(item.reason for item in ledger.history())
    (event,) = [item for item in catalog.events() if item["name"] == "occurrence.missed"]
    assert (event["count"], event["state"], event["policy"]) == (71, "coalesced", "orders")


def test_of_years_without_anybody_the_old_ones_share_a_row(ledger: OccurrenceLedger) -> None:
    Planner(ledger, [HOURLY]).tick(START)
    Planner(ledger, [HOURLY]).tick(START + 1000 * DAY)
    counts = Counter(item.state for item in ledger.history())
    assert counts == {"missed": 1, "coalesced": 99, "due": 1}
    summary = ledger.history()[-1]
    assert "between 2026-11-22T12:00:00+00:00 and here" in summary.reason


def test_a_clock_put_back_repeats_nothing_and_goes_on(ledger: OccurrenceLedger) -> None:
    planner = Planner(ledger, [HOURLY])
    planner.tick(START)
    for hour in (1, 2):
        planner.tick(START + hour * HOUR)
        assert len(run_all(ledger, START + hour * HOUR)) == 1
    now = START + HOUR / 2
    while now < START + 2 * HOUR:
        assert planner.tick(now) == []
        now += HOUR / 6
    assert [item.decision.state for item in planner.tick(START + 3 * HOUR)] == ["due"]


def test_a_clock_that_was_a_year_ahead_stops_nothing_once_it_is_right(ledger: OccurrenceLedger) -> None:
    planner = Planner(ledger, [HOURLY, DRILL])
    planner.tick(START)
    planner.tick(START + 365 * DAY, leapt=True)
    assert len(run_all(ledger, START + 365 * DAY)) == 2
    seen = [planner.tick(START + HOUR * number) for number in range(48)]
    due = [item for news in seen for item in news if item.decision.state == "due" and item.schedule == HOURLY]
    assert len(due) == 47


def test_a_restart_with_a_clock_put_back_is_the_same(ledger: OccurrenceLedger) -> None:
    Planner(ledger, [HOURLY]).tick(START)
    Planner(ledger, [HOURLY]).tick(START + 365 * DAY)
    planner = Planner(ledger, [HOURLY])
    assert planner.tick(START + HOUR / 2) == []
    assert len(planner.tick(START + HOUR)) > 0


def test_any_number_of_planners_write_each_moment_once(ledger: OccurrenceLedger) -> None:
    schedules = [replace(HOURLY, name=f"backup/p{number}/dump", policy=f"p{number}") for number in range(5)]
    dice = random.Random(7)
    planners = [Planner(ledger, schedules) for _ in range(3)]
    now = START
    planned: Counter[tuple[str, datetime]] = Counter()
    for _ in range(150):
        now += timedelta(minutes=dice.randint(1, 30))
        index = dice.randrange(3)
        if dice.random() < 0.1:
            planners[index] = Planner(ledger, schedules)
        for item in planners[index].tick(now):
            planned[(item.schedule.name, item.decision.due_at)] += item.decision.is_new
        run_all(ledger, now)
    expected = {(item.name, due_at) for item in schedules for due_at in item.recurrence.between(START + HOUR, now)}
    assert expected <= set(planned)
    assert set(planned.values()) == {1}
    assert all(item.state in ("done", "coalesced") for item in ledger.history(limit=10_000))


def test_a_tick_plans_a_piece_and_the_next_goes_on_in_order(ledger: OccurrenceLedger) -> None:
    schedules = [
        replace(
            HOURLY,
            name=f"backup/p{number}/dump",
            recurrence=Recurrence("0 * * * *", offset=timedelta(seconds=60 + 4 * number)),
        )
        for number in range(650)
    ]

    def tick(now: datetime, *, leapt: bool = False) -> list[list[Planned]]:
        pieces = [planner.tick(now, leapt=leapt)]
        while planner.is_behind:
            pieces.append(planner.tick(now + timedelta(seconds=len(pieces))))
        return pieces

    planner = Planner(ledger, schedules)
    assert tick(START) == [[], []]
    assert not planner.is_behind
    pieces = tick(START + HOUR)
    assert [len(piece) for piece in pieces] == [100] * 6 + [50]
    due = [item.decision.due_at for piece in pieces for item in piece]
    assert due == sorted(due)
    assert Counter(item.schedule for item in ledger.history()) == {item.name: 1 for item in schedules}
    # A leap of the clock is one for all the pieces of its tick.
    planned = [item for piece in tick(START + 4 * HOUR, leapt=True) for item in piece]
    assert len([item for item in planned if item.decision.is_new]) == 3 * len(schedules)
    coalesced = [item.decision for item in planned if item.decision.is_new and item.decision.state == "coalesced"]
    assert {item.reason.partition(";")[0] for item in coalesced} == {"the clock was put forward"}


def test_a_planner_killed_between_two_pieces_loses_nothing(ledger: OccurrenceLedger) -> None:
    schedules = [replace(HOURLY, name=f"backup/p{number}/dump") for number in range(250)]
    planner = Planner(ledger, schedules)
    planner.tick(START)
    assert len(planner.tick(START + HOUR)) == 100
    other = Planner(ledger, schedules)
    assert [len(other.tick(START + HOUR)) for _ in range(2)] == [100, 50]
    assert not other.is_behind
    assert sum(len(planner.tick(START + HOUR)) for _ in range(2)) == 0
    assert {item.state for item in ledger.history()} == {"due"}


def test_a_gap_in_the_log_has_a_base_taken_at_once(ledger: OccurrenceLedger, catalog: SqliteCatalog) -> None:
    base = Schedule("backup/ledger/base", "backup", "ledger", "base", Recurrence("0 3 * * sun"))
    planner = Planner(ledger, [base])
    planner.tick(START)
    catalog.add_event("wal.gap", START + HOUR, {"policy": "ledger", "reason": "the slot was lost"})
    (news,) = planner.tick(START + HOUR)
    assert (news.decision.due_at, news.decision.state) == (START + HOUR, "due")
    assert news.decision.reason == "wal.gap: a base at once, because no later moment can be restored without one"
    assert planner.tick(START + HOUR) == []
    assert Planner(ledger, []).tick(START + HOUR) == []
    (item,) = ledger.waiting(START + HOUR)
    assert (item.policy, item.what) == ("ledger", "base")


def test_a_gap_in_the_oplog_has_a_dump_taken(ledger: OccurrenceLedger, catalog: SqliteCatalog) -> None:
    planner = Planner(ledger, [])
    planner.tick(START)
    for name in ("oplog.gap", "oplog.timeline", "oplog.state"):
        catalog.add_event(name, START + HOUR, {"policy": name.replace(".", "-")})
    news = planner.tick(START + HOUR)
    assert [(item.schedule.policy, item.schedule.what) for item in news] == [
        ("oplog-gap", "dump"),
        ("oplog-timeline", "dump"),
    ]


def test_a_gap_while_a_base_runs_needs_another(ledger: OccurrenceLedger, catalog: SqliteCatalog) -> None:
    base = replace(HOURLY, name="backup/ledger/base", policy="ledger", what="base")
    planner = Planner(ledger, [base])
    planner.tick(START)
    planner.tick(START + HOUR)
    (item,) = ledger.waiting(START + HOUR)
    assert ledger.claim(Claim(item.occurrence_id, "host/1@x", "run", {}), START + HOUR)
    catalog.add_event("wal.gap", START + HOUR * 1.2, {"policy": "ledger"})
    assert [item.decision.state for item in planner.tick(START + HOUR * 1.2)] == ["due"]
    assert ledger.finish(replace(item, run_id="run"), Ending("done"), START + HOUR * 1.5)
    assert len(ledger.waiting(START + HOUR * 1.5)) == 1


class TestClaims:
    @pytest.fixture
    def items(self, ledger: OccurrenceLedger) -> list[Occurrence]:
        planner = Planner(ledger, [replace(HOURLY, name=f"backup/p{number}/dump") for number in range(3)])
        planner.tick(START)
        planner.tick(START + HOUR)
        return ledger.waiting(START + HOUR)

    def test_each_is_claimed_once(self, ledger: OccurrenceLedger, items: list[Occurrence]) -> None:
        claims = [Claim(items[0].occurrence_id, f"host/{number}@x", f"run{number}", {}) for number in range(3)]
        assert [ledger.claim(claim, START) for claim in claims] == [True, False, False]
        (taken,) = ledger.dispatched()
        assert (taken.run_id, taken.holder, taken.attempts) == ("run0", "host/0@x", 1)

    def test_limits_hold_until_the_end(self, ledger: OccurrenceLedger, items: list[Occurrence]) -> None:
        def claim(index: int, **limits: int) -> bool:
            return ledger.claim(Claim(items[index].occurrence_id, "host/1@x", f"run{index}", limits), START)

        assert claim(0, site=2, host=1)
        assert not claim(1, site=2, host=1)
        assert claim(1, site=2)
        assert not claim(2, site=2)
        assert ledger.finish(replace(items[0], run_id="run0"), Ending("done"), START)
        assert claim(2, site=2, host=1)

    def test_whoever_comes_late_changes_nothing(self, ledger: OccurrenceLedger, items: list[Occurrence]) -> None:
        zombie = replace(items[0], run_id="first")
        assert ledger.claim(Claim(zombie.occurrence_id, "host/1@x", "first", {"site": 1}), START)
        assert ledger.finish(zombie, Ending("due", "lost", "lost", "gone", START), START)
        assert ledger.claim(Claim(zombie.occurrence_id, "host/2@x", "second", {"site": 1}), START)
        assert not ledger.finish(zombie, Ending("done"), START)
        assert ledger.finish(replace(zombie, run_id="second"), Ending("done"), START)
        assert [(item.number, item.run_id, item.failure) for item in ledger.attempts(zombie.occurrence_id)] == [
            (1, "first", "lost"),
            (2, "second", ""),
        ]
        assert ledger.of_run("first") == ledger.of_run("second")

    def test_ends_are_events(self, ledger: OccurrenceLedger, catalog: SqliteCatalog, items: list[Occurrence]) -> None:
        run_all(ledger, START + HOUR, "failed")
        assert {event["name"] for event in catalog.events()} == {"occurrence.failed"}


POLICY = """\
retention: {last: 3}
drills:
  - {name: weekly, schedule: "0 6 * * sat", timezone: America/New_York, catch_up: 2d}
"""


class TestPolicies:
    @pytest.fixture
    def schedules(self, ready_site: ReadySite) -> list[Schedule]:
        ready_site.add_store("offsite")
        path = ready_site.write_policy("orders", stores=("primary", "offsite"), more=POLICY)
        rules = (
            '  - {method: dump, schedule: "30 2 * * *", timezone: Europe/Berlin, jitter: 30m}\n'
            '  - {method: dump, schedule: "0 14 * * *", dst: utc, timezone: Asia/Tokyo}\n'
        )
        path.write_text(path.read_text().replace("  - {method: dump}\n", rules))
        self.policies = load_policies(ready_site.load())
        return schedules_of(self.policies.values(), SchedulerConfig())

    def test_every_rule_is_a_schedule(self, schedules: list[Schedule]) -> None:
        names = [item.name for item in schedules]
        assert names[:3] == ["backup/orders/dump", "backup/orders/dump-2", "drill/orders/weekly"]
        assert {"copy/orders", "prune/orders"} <= set(names)
        first, second, drill, *_ = schedules
        assert timedelta() < first.recurrence.offset < timedelta(minutes=30)
        assert second.recurrence.dst == "utc"
        assert (drill.missed, drill.catch_up) == ("all_within", timedelta(days=2))

    def test_what_comes_up_is_told_in_both_zones(self, schedules: list[Schedule]) -> None:
        before_change = datetime(2027, 3, 27, 3, tzinfo=UTC)
        without_copies = schedules_of(self.policies.values(), SchedulerConfig(copy_missing=None))
        rows = coming_up(without_copies, before_change, 6)
        (shifted,) = [row for row in rows if row["what"] == "dump" and row["due_at"].startswith("2027-03-28")]
        assert shifted["due_at"].startswith("2027-03-28T01:")
        assert shifted["local"].startswith("2027-03-28 03:")
        assert "clocks went forward" in shifted["note"]
        assert "spread by" in shifted["note"]
        assert [row["due_at"] for row in rows] == sorted(row["due_at"] for row in rows)


class TestTicker:
    class Reporter:
        def __init__(self) -> None:
            self.said: list[str] = []

        def line(self, text: str) -> None:
            self.said.append(text)

        def progress(self, label: str, expected_bytes: int | None = None) -> Any:
            raise NotImplementedError

    class Scripted:
        """A planner that raises, or notes what it is told."""

        def __init__(self, *errors: Exception) -> None:
            self.errors = list(errors)
            self.is_behind = False
            self.leapt: list[bool] = []

        def tick(self, now: datetime, *, leapt: bool = False) -> list[Planned]:
            self.leapt.append(leapt)
            if self.errors:
                raise self.errors.pop(0)
            return []

    def ticker(self, planner: Scripted, clock: Callable[[], datetime] = lambda: START) -> Ticker:
        self.reporter = self.Reporter()
        return Ticker(planner, clock, self.reporter, tick_s=0.01)  # type: ignore[arg-type]

    def test_a_clock_put_forward_is_noticed(self) -> None:
        planner, moments = self.Scripted(), [START, START + timedelta(seconds=10), START + DAY, START + DAY]
        ticker = self.ticker(planner, lambda: moments.pop(0))
        for _ in range(4):
            ticker._plan()
        assert planner.leapt == [False, False, True, False]

    def test_a_clock_put_back_a_day_does_not_silence_it_for_a_day(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shift = [timedelta()]

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + shift[0]

        for place in ("drkit.scheduler", "apscheduler.schedulers.base", "apscheduler.executors.base"):
            monkeypatch.setattr(f"{place}.datetime", Clock)
        planner, stopping = self.Scripted(), threading.Event()
        thread = threading.Thread(target=self.ticker(planner).run, args=[stopping])
        thread.start()
        try:
            for put_back in (timedelta(), -DAY):
                shift[0] = put_back
                before, deadline_s = len(planner.leapt), time.monotonic() + 20
                while len(planner.leapt) < before + 3 and time.monotonic() < deadline_s:
                    time.sleep(0.01)
                assert len(planner.leapt) >= before + 3
        finally:
            stopping.set()
            thread.join(10)

    def test_an_error_of_the_catalog_is_said_and_the_next_tick_goes_on(self) -> None:
        planner = self.Scripted(CatalogError("the catalog is locked"))
        ticker, stopping = self.ticker(planner), threading.Event()
        thread = threading.Thread(target=ticker.run, args=[stopping])
        thread.start()
        deadline_s = time.monotonic() + 10
        while len(planner.leapt) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        stopping.set()
        thread.join(10)
        assert len(planner.leapt) >= 2
        assert self.reporter.said == ["scheduler  failed: the catalog is locked"]

    def test_what_a_tick_leaves_is_planned_at_once(self) -> None:
        planner, stopping = self.Scripted(), threading.Event()
        planner.is_behind = True
        ticker = self.ticker(planner)
        ticker._tick_s = 3600
        thread = threading.Thread(target=ticker.run, args=[stopping])
        thread.start()
        deadline_s = time.monotonic() + 10
        while len(planner.leapt) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        stopping.set()  # also in the middle of much work
        thread.join(10)
        assert not thread.is_alive()
        assert len(planner.leapt) >= 3

    def test_what_nobody_foresaw_ends_the_duty_and_serve_begins_it_again(self) -> None:
        with pytest.raises(ZeroDivisionError):
            self.ticker(self.Scripted(ZeroDivisionError())).run(threading.Event())
