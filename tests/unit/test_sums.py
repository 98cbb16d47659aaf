"""The sums that the catalog keeps are what its rows add up to, whatever is written, trimmed, upgraded or salvaged."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from drkit.catalog import files
from drkit.catalog.measures import SIZES
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.catalog.sums import DURATION_BUCKETS_S
from drkit.model import Run
from drkit.occurrences import Decision
from tests.fixtures.bucket import NOW, entry_of, make_manifest
from tests.unit.test_scheduler import HOURLY

_TOOK_S = (0.5, 10, 10.5, 59, 3600, 86400, 86401, 200_000)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqliteCatalog]:
    with contextlib.closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        yield catalog


def let_things_happen(catalog: SqliteCatalog, seed: int) -> None:
    """Write runs that end, are lost and end all the same, or go on; moments of a schedule; events."""
    chance = random.Random(seed)
    for number, (policy, kind) in enumerate(product(("orders", "ledger"), ("backup", "drill"), repeat=1)):
        for step in range(12):
            at = NOW + timedelta(hours=chance.randrange(100), minutes=number * 20 + step)
            run = Run(f"{number}-{step}", kind, policy, "running", at, "h", 1, at)
            catalog.start_run(run)
            catalog.beat(run.run_id, at)
            ended_at = at + timedelta(seconds=chance.choice(_TOOK_S))
            if chance.random() < 0.3:
                catalog.finish_run(replace(run, state="lost", ended_at=at + timedelta(seconds=1)))
            if chance.random() < 0.8:
                state: Any = chance.choice(("succeeded", "succeeded", "failed"))
                catalog.finish_run(replace(run, state=state, ended_at=ended_at))
                catalog.finish_run(replace(run, state=state, ended_at=ended_at))
    with catalog.occurrences.planning() as book:
        for hour in range(20):
            state = chance.choice(("due", "missed", "coalesced"))
            book.write(HOURLY, [Decision(NOW + timedelta(hours=hour), state)], NOW)
    for item in catalog.occurrences.waiting(NOW + timedelta(days=9))[:3]:
        catalog.occurrences.give_up(item, "skipped", "no policy", NOW)
    catalog.add_event("lease.lost", NOW, {})


def said(catalog: SqliteCatalog) -> tuple[Any, ...]:
    measures = catalog.measures
    runs = {(run.policy, run.kind): run[2:] for run in measures.last_runs()}
    durations = {item.policy: item[1:] for item in measures.durations()}
    return runs, durations, measures.totals("occurrence"), measures.totals("event")


def counted(catalog: SqliteCatalog) -> tuple[Any, ...]:
    """Return the same by looking at every row."""
    runs: dict[tuple[str, str], tuple[Any, ...]] = {}
    durations: dict[str, tuple[Any, ...]] = {}
    ended = [run for run in catalog.runs(limit=10_000) if run.ended_at is not None]
    for policy, kind in {(run.policy, run.kind) for run in ended}:
        own = [run for run in ended if (run.policy, run.kind) == (policy, kind)]
        succeeded = [run for run in own if run.state == "succeeded"]
        newest = max(own, key=lambda run: run.started_at)
        last = max((run.ended_at for run in succeeded if run.ended_at), default=None)
        runs[policy, kind] = (last, newest.state, pytest.approx(_took_s(newest), abs=0.01))
        if kind == "backup" and succeeded:
            took = [_took_s(run) for run in succeeded]
            within = tuple(sum(seconds <= bound + 0.001 for seconds in took) for bound in DURATION_BUCKETS_S)
            durations[policy] = (within, len(took), pytest.approx(sum(took), abs=0.01))
    states = Counter(item.state for item in catalog.occurrences.history())
    names = Counter(event["name"] for event in catalog.events(limit=10_000))
    return runs, durations, states, names


def _took_s(run: Run) -> float:
    assert run.ended_at is not None
    return (run.ended_at - run.started_at).total_seconds()


def nothing_left_out(totals: tuple[Any, ...]) -> tuple[Any, ...]:
    return *totals[:2], *({name: many for name, many in counts.items() if many} for counts in totals[2:])


@pytest.mark.parametrize("seed", range(3))
def test_they_are_what_the_rows_add_up_to(catalog: SqliteCatalog, seed: int) -> None:
    let_things_happen(catalog, seed)
    assert nothing_left_out(said(catalog)) == counted(catalog)


def test_an_older_catalog_is_summed_up_when_it_is_opened(catalog: SqliteCatalog) -> None:
    let_things_happen(catalog, 7)
    before = said(catalog)
    catalog.close()
    with contextlib.closing(sqlite3.connect(catalog.path)) as connection, connection:
        for (
            kind,
            name,
        ) in connection.execute("""select type, name from sqlite_master where name in ('run_sums', 'totals',
            'backup_durations', 'workers', 'run_written', 'run_ended', 'event_written', 'occurrence_written',
            'occurrence_changed', 'evidence_drills', 'evidence_proofs', 'runs_going_on', 'problems_open',
            'occurrences_due', 'occurrences_dispatched') order by type = 'table'""").fetchall():
            connection.execute(f"drop {kind} {name}")
        connection.execute("alter table evidence drop column drill")
        connection.execute("alter table evidence drop column proves_to")
        connection.execute("create table former_occurrences (state text primary key, many integer not null)")
        connection.execute("insert into former_occurrences values ('done', 5)")
        connection.execute("delete from _sqlite_migrations where name = '011_sums'")
        connection.execute("pragma user_version = 10")
    with contextlib.closing(open_catalog(catalog.path)) as reopened:
        assert nothing_left_out(said(reopened)) == nothing_left_out(
            (before[0], before[1], {**before[2], "done": 5}, before[3])
        )


def test_a_rebuilt_catalog_goes_on_where_the_old_one_was(catalog: SqliteCatalog, tmp_path: Path) -> None:
    let_things_happen(catalog, 8)
    before = said(catalog)
    with catalog._transaction() as connection:  # as trimming does
        connection.execute("delete from occurrences")
        connection.execute("delete from runs where kind = 'backup'")
    catalog.close()
    with contextlib.closing(open_catalog(tmp_path / "new.db", create=True)) as fresh:
        assert files.salvage(catalog.path, fresh.path) == []
        assert said(fresh) == before


def test_the_newest_of_each_method_are_found_with_the_sizes_before_them(catalog: SqliteCatalog) -> None:
    for method, days in (("dump", range(-1, 30)), ("base", (40, 3))):
        for day in days:
            manifest = make_manifest(at=NOW - timedelta(days=day), content=b"x" * (100 + day))
            catalog.index_artifact(entry_of(manifest.model_copy(update={"method": method}), ["b", "a"]))
    assert catalog.measures.newest_artifacts(NOW, ["nobody"]) == []
    found = {item.method: item for item in catalog.measures.newest_artifacts(NOW, ["orders", "nobody"])}
    assert found["dump"].restorable_to_at == NOW, "what is of the future is not newest"
    assert found["dump"].oldest_at == NOW - timedelta(days=29)
    assert found["dump"].sizes == tuple(range(100, 100 + SIZES))
    assert (found["base"].restorable_to_at, found["base"].sizes) == (NOW - timedelta(days=3), (103, 140))
    assert found["base"].stores == ("a", "b")
    readings = catalog.measures.oldest_readings(NOW, ["orders", "nobody"])
    assert readings == {"orders": NOW - timedelta(days=40)}


def test_a_glance_is_of_one_moment_and_nobody_waits_for_it(catalog: SqliteCatalog) -> None:
    with catalog.glance() as measures:
        assert measures.totals("event") == {}
        catalog.add_event("something", NOW, {})
        assert measures.totals("event") == {}
    assert catalog.measures.totals("event") == {"something": 1}


@pytest.mark.parametrize(
    "query",
    [
        "select * from occurrences where state = 'due' and not_before_at <= ? order by due_at, schedule limit 9",
        "select count(*), min(not_before_at) from occurrences where state = 'due' and not_before_at <= ?",
        "select * from occurrences where state = 'dispatched' and due_at <> ? order by due_at",
        "select * from occurrences where schedule = ? and state in ('due', 'dispatched') order by due_at",
        "select min(heartbeat_at) from runs where state = 'running' and heartbeat_at <> ?",
    ],
)
def test_what_is_asked_all_the_time_goes_through_no_history(catalog: SqliteCatalog, query: str) -> None:
    rows = catalog._read(f"explain query plan {query}", ("x",))
    (used,) = {row["detail"].partition(" INDEX ")[2].split()[0] for row in rows}
    assert used in {"occurrences_due", "occurrences_dispatched", "occurrences_unfinished", "runs_going_on"}
