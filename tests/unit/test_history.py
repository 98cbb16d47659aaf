"""What of the past leaves the catalog, and what never does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drkit.catalog import history as history_module
from drkit.catalog.occurrences import Claim, Ending
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.errors import ConfigError
from drkit.model import Run
from drkit.occurrences import Decision
from drkit.operations.trimming import Trimming
from tests.fixtures.bucket import entry_of, make_manifest
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import Telling, telling
from tests.unit.test_scheduler import HOURLY

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
KEEP = 400 * DAY
NAMES = ["notify", "scheduler"]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqliteCatalog]:
    with contextlib.closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        catalog.history.trim(NOW - DAY - KEEP, NOW - DAY)
        yield catalog


def _trim(catalog: SqliteCatalog) -> dict[str, int]:
    return catalog.history.trim(NOW - KEEP, NOW)


def _all_read(catalog: SqliteCatalog) -> None:
    with catalog.occurrences.planning() as book:
        for reader in NAMES:
            book.read_events(reader, [])


def _names(catalog: SqliteCatalog) -> list[str]:
    return [event["name"] for event in reversed(catalog.events())]


def _run(catalog: SqliteCatalog, number: int, days: int, **changes: Any) -> None:
    at = NOW - days * DAY
    run = Run(f"run{number}", "copy", "orders", "succeeded", at, "host", 1, at, ended_at=at)
    catalog.start_run(replace(run, **changes))


def test_events_go_when_they_are_old_and_everybody_read_them(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_AT_ONCE", 3)
    for number in range(8):
        catalog.add_event(f"old{number}", NOW - KEEP - DAY, {})
    catalog.add_event("new", NOW - KEEP + DAY, {})
    assert _trim(catalog)["events"] == 0, "nobody has read them"
    _all_read(catalog)
    catalog.add_event("unread", NOW - KEEP - DAY, {})
    assert _trim(catalog)["events"] == 8
    assert _names(catalog) == ["history.trimmed", "new", "history.trimmed", "unread", "history.trimmed"]


def test_one_reader_that_is_behind_keeps_them(catalog: SqliteCatalog) -> None:
    catalog.add_event("old", NOW - KEEP - DAY, {})
    with catalog.occurrences.planning() as book:
        book.read_events("scheduler", [])
    assert _trim(catalog)["events"] == 0


def test_numbers_of_events_are_never_given_twice(tmp_path: Path) -> None:
    with contextlib.closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        catalog.history.trim(NOW - DAY - KEEP, NOW - DAY)
        catalog.add_event("old", NOW - KEEP - DAY, {})
        _all_read(catalog)
        newest = catalog.measures.newest_event_id()
        _trim(catalog)
        assert catalog.measures.newest_event_id() > newest
        assert [event.name for event in catalog.measures.events_after(newest, 9)] == ["history.trimmed"]


def test_runs_go_but_backups_what_runs_and_the_newest_two_of_a_kind(catalog: SqliteCatalog) -> None:
    for number, days in enumerate((500, 490, 480, 470)):
        _run(catalog, number, days)
    for number, days in enumerate((500, 490, 480, 470), start=10):
        _run(catalog, number, days, kind="backup")
    for number, days in enumerate((500, 490, 480), start=20):
        _run(catalog, number, days, kind="backup", state="failed")
    for number in range(30, 33):
        _run(catalog, number, 600, kind="ship", state="running", ended_at=None)
    _run(catalog, 40, 600, policy="ledger")
    _run(catalog, 41, 10, policy="ledger")
    assert _trim(catalog)["runs"] == 3
    left = {run.run_id for run in catalog.runs()}
    assert {"run0", "run1", "run20"}.isdisjoint(left)
    assert len(left) == 13


def test_moments_go_but_those_that_wait_and_the_counters_go_on(catalog: SqliteCatalog) -> None:
    ledger = catalog.occurrences
    for days, state in ((500, "missed"), (490, "coalesced"), (480, "due"), (470, "due"), (10, "missed")):
        with ledger.planning() as book:
            book.write(HOURLY, [Decision(NOW - days * DAY, state)], NOW - days * DAY)  # type: ignore[arg-type]
    with ledger.planning() as book:
        book.move(HOURLY.name, NOW)
    done, _ = ledger.waiting(NOW)
    assert ledger.claim(Claim(done.occurrence_id, "host/1@x", "run", {}), done.due_at)
    assert ledger.finish(replace(done, run_id="run"), Ending("done"), done.due_at)
    before = catalog.measures.totals("occurrence")
    assert _trim(catalog)["occurrences"] == 3
    assert [(item.due_at, item.state) for item in ledger.history()] == [
        (NOW - 10 * DAY, "missed"),
        (NOW - 470 * DAY, "due"),
    ]
    assert ledger.attempts(done.occurrence_id) == []
    assert catalog.measures.totals("occurrence") == before
    assert _trim(catalog)["occurrences"] == 0
    assert catalog.measures.totals("occurrence") == before


def test_what_proves_something_stays(catalog: SqliteCatalog) -> None:
    catalog.index_artifact(entry_of(make_manifest(at=NOW - 900 * DAY)))
    record = {"kind": "drill", "policy": "orders", "run_id": "r", "verdict": "passed", "ended_at": "2020-01-01"}
    catalog.index_evidence(record, "e" * 64, ["primary"])
    before = catalog.export()
    _all_read(catalog)
    _trim(catalog)
    assert catalog.export() == before


def test_a_clock_that_jumped_removes_nothing_the_first_time(catalog: SqliteCatalog) -> None:
    _run(catalog, 1, 10)
    _run(catalog, 2, 9)
    _run(catalog, 3, 8)
    ahead = NOW + 1000 * DAY
    assert catalog.history.trim(ahead - KEEP, ahead)["runs"] == 0
    assert catalog.history.trim(NOW - KEEP, NOW)["runs"] == 0, "the last time is not yet"
    assert len(catalog.runs()) == 3
    assert catalog.history.trim(ahead - KEEP, ahead)["runs"] == 0


class TestDuty:
    @pytest.fixture
    def told(self, ready_site: ReadySite) -> Iterator[Telling]:
        text = ready_site.site_file.read_text()
        ready_site.site_file.write_text(text + "scheduler: {keep_history: 30d}\n")
        with telling(ready_site) as told:
            yield told

    def test_it_trims_once_a_day_whoever_does(self, told: Telling) -> None:
        said: list[str] = []

        class Said:
            line = staticmethod(said.append)

        duties = [Trimming(told.workplace, Said()) for _ in range(2)]  # type: ignore[arg-type]
        for days in range(3):
            for number in range(3):
                at = told.clock() - 60 * DAY
                run = Run(f"run{days}{number}", "copy", "orders", "succeeded", at, "host", 1, at, ended_at=at)
                told.catalog.start_run(run)
            for duty in duties * 2:
                duty.round()
            told.clock.now += DAY
        assert [event["runs"] for event in told.catalog.events() if event["name"] == "history.trimmed"] == [3, 3, 0]
        assert said == ["history  trimmed: 3 runs"] * 2

    def test_less_than_a_week_is_refused(self, ready_site: ReadySite) -> None:
        text = ready_site.site_file.read_text()
        ready_site.site_file.write_text(text + "scheduler: {keep_history: 1d}\n")
        with pytest.raises(ConfigError) as refused:
            ready_site.load()
        assert "keep_history" in str(refused.value.problems[0])
