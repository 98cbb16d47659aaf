"""The catalog in SQLite: what goes in comes out, leases are exclusive and fenced, and what is wrong is said."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drkit.catalog import EvidenceEntry, files
from drkit.catalog.files import SCHEMA_VERSION
from drkit.catalog.migrations import MIGRATIONS
from drkit.catalog.sqlite import SqliteCatalog, catalog_path, open_catalog
from drkit.errors import Busy, CatalogError, ConfigError, IntegrityError
from drkit.model import Lease, Run, Scratch
from tests.fixtures.bucket import NOW, entry_of, make_manifest

TTL = timedelta(seconds=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "catalog.db"


@pytest.fixture
def catalog(path: Path) -> Iterator[SqliteCatalog]:
    opened = open_catalog(path, create=True)
    yield opened
    opened.close()


def make_run(run_id: str, **changes: object) -> Run:
    facts: dict[str, object] = {
        "run_id": run_id,
        "kind": "backup",
        "policy": "orders",
        "state": "running",
        "started_at": NOW,
        "host": "db1",
        "pid": 42,
        "heartbeat_at": NOW,
    }
    return Run(**{**facts, **changes})  # type: ignore[arg-type]


class TestRuns:
    def test_a_run_comes_back_as_it_went_in(self, catalog: SqliteCatalog) -> None:
        run = make_run("r1", state="failed", ended_at=NOW + TTL, error="no", outcome={"bytes": 1})
        catalog.start_run(make_run("r1"))
        catalog.finish_run(run)
        assert catalog.runs() == [run]

    def test_newest_first_and_by_policy_kind_and_state(self, catalog: SqliteCatalog) -> None:
        catalog.start_run(make_run("r1"))
        catalog.start_run(make_run("r2", started_at=NOW + TTL, kind="drill", state="succeeded"))
        catalog.start_run(make_run("r3", started_at=NOW + 2 * TTL, policy="ledger"))
        assert [run.run_id for run in catalog.runs()] == ["r3", "r2", "r1"]
        assert [run.run_id for run in catalog.runs(policy="orders")] == ["r2", "r1"]
        assert [run.run_id for run in catalog.runs(kind="drill")] == ["r2"]
        assert [run.run_id for run in catalog.runs(state="running", limit=1)] == ["r3"]

    def test_a_heartbeat_moves_only_the_heartbeat(self, catalog: SqliteCatalog) -> None:
        catalog.start_run(make_run("r1"))
        catalog.beat("r1", NOW + TTL)
        assert catalog.runs() == [make_run("r1", heartbeat_at=NOW + TTL)]

    def test_the_end_of_a_run_is_kept_though_its_start_is_not_known(self, catalog: SqliteCatalog) -> None:
        catalog.finish_run(make_run("r1", state="succeeded"))
        assert [run.state for run in catalog.runs()] == ["succeeded"]

    def test_events_are_kept_in_order(self, catalog: SqliteCatalog) -> None:
        catalog.add_event("run.succeeded", NOW, {"run_id": "r1"})
        catalog.add_event("run.failed", NOW, {"run_id": "r2"})
        assert [(event["name"], event["run_id"]) for event in catalog.events()] == [
            ("run.failed", "r2"),
            ("run.succeeded", "r1"),
        ]


class TestArtifacts:
    def test_an_artifact_comes_back_with_its_details(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest(), details={"parts": {"database-1": {"label": "orders"}}})
        catalog.index_artifact(entry)
        assert catalog.artifact(entry.manifest.artifact_id) == entry
        assert catalog.artifacts() == [entry_of(entry.manifest)]

    def test_indexing_again_adds_stores_and_keeps_details(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest(), details={"parts": {}})
        catalog.index_artifact(entry)
        catalog.index_artifact(entry_of(entry.manifest, ["offsite"]))
        found = catalog.artifact(entry.manifest.artifact_id)
        assert (found.stores, found.details) == (("offsite", "primary"), {"parts": {}})

    def test_another_manifest_under_the_same_id_is_refused(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest())
        catalog.index_artifact(entry)
        other = make_manifest(artifact_id=entry.manifest.artifact_id, seq=2)
        with pytest.raises(IntegrityError, match="two different manifests"):
            catalog.index_artifact(entry_of(other))
        assert catalog.artifacts() == [entry]

    def test_unknown_fields_of_a_later_drkit_are_kept(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest(mood="sunny"))
        catalog.index_artifact(entry)
        assert catalog.artifacts()[0].manifest.to_bytes() == entry.manifest.to_bytes()

    def test_newest_first_and_by_policy(self, catalog: SqliteCatalog) -> None:
        entries = [entry_of(make_manifest(policy, at=NOW + hours * TTL)) for hours, policy in enumerate("aba")]
        for entry in entries:
            catalog.index_artifact(entry)
        assert catalog.artifacts() == entries[::-1]
        assert catalog.artifacts("a") == [entries[2], entries[0]]
        assert [row.artifact_id for row in catalog.artifact_rows("b")] == [entries[1].manifest.artifact_id]

    def test_a_row_says_what_a_list_shows(self, catalog: SqliteCatalog) -> None:
        manifest = make_manifest(seq=7)
        catalog.index_artifact(entry_of(manifest, ["primary", "offsite"]))
        (row,) = catalog.artifact_rows()
        assert (row.stores, row.seq, row.restorable_to_at) == (("offsite", "primary"), 7, NOW)
        assert (row.plain_bytes, row.stored_bytes) == (manifest.plain_bytes, manifest.stored_bytes)
        assert (row.verdict, row.level) == ("", "")

    def test_a_row_shows_its_newest_drill(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest())
        catalog.index_artifact(entry)
        for number, verdict in enumerate(["passed", "failed"]):
            record = {
                "run_id": verdict,
                "policy": "orders",
                "kind": "drill",
                "artifact_id": entry.manifest.artifact_id,
                "verdict": verdict,
                "selection": {"level": "works"},
                "ended_at": f"2026-11-2{number}T00:00:00+00:00",
            }
            catalog.index_evidence(record, f"{number}" * 64, ["primary"])
        assert [(row.verdict, row.level) for row in catalog.artifact_rows()] == [("failed", "works")]
        assert [record["run_id"] for record in catalog.evidence(policy="orders")] == ["failed", "passed"]
        assert catalog.evidence(artifact_id="other") == []

    def test_by_the_start_of_its_id(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest())
        catalog.index_artifact(entry)
        prefix = entry.manifest.artifact_id[:12]
        assert catalog.artifact(prefix.lower() + "…") == entry

    @pytest.mark.parametrize("prefix", ["", "…", "ZZ", "%", "_"])
    def test_no_artifact_of_that_id(self, catalog: SqliteCatalog, prefix: str) -> None:
        catalog.index_artifact(entry_of(make_manifest()))
        with pytest.raises(CatalogError, match="no artifact starts with") as caught:
            catalog.artifact(prefix)
        assert "drkit list" in caught.value.hints

    def test_too_short_a_prefix_lists_the_candidates(self, catalog: SqliteCatalog) -> None:
        entries = [entry_of(make_manifest(at=NOW + number * TTL)) for number in range(3)]
        for entry in entries:
            catalog.index_artifact(entry)
        with pytest.raises(CatalogError, match="more than one artifact") as caught:
            catalog.artifact(entries[0].manifest.artifact_id[:3])
        assert len(caught.value.details) == 3

    def test_a_forgotten_artifact_is_gone_with_its_stores(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest())
        catalog.index_artifact(entry)
        catalog.forget_artifact(entry.manifest.artifact_id)
        catalog.forget_artifact(entry.manifest.artifact_id)
        assert catalog.artifacts() == []
        assert b"primary" not in catalog.export()

    def test_replacing_the_index_is_exact_for_what_is_given_and_leaves_the_rest(self, catalog: SqliteCatalog) -> None:
        known, gone, fresh = (entry_of(make_manifest(at=NOW + n * TTL), details={"n": n}) for n in range(3))
        for entry in (known, gone, fresh):
            catalog.index_artifact(entry)
        moved = entry_of(known.manifest, ["offsite"])
        catalog.replace_index([moved], [], [gone.manifest.artifact_id])
        assert catalog.artifacts() == [entry_of(fresh.manifest), moved]
        assert catalog.artifact(known.manifest.artifact_id).details == {"n": 0}

    def test_a_replaced_manifest_loses_the_details_of_the_old_one(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest(), details={"n": 1})
        catalog.index_artifact(entry)
        other = entry_of(make_manifest(artifact_id=entry.manifest.artifact_id, seq=2))
        catalog.replace_index([other], [], [])
        assert catalog.artifact(entry.manifest.artifact_id) == other

    def test_replacing_the_index_is_all_or_nothing(self, catalog: SqliteCatalog) -> None:
        entry = entry_of(make_manifest())
        catalog.index_artifact(entry)
        bad = EvidenceEntry({"run_id": "r", "policy": "orders", "share": 0.5}, "0" * 64, ("primary",))
        with pytest.raises(TypeError):
            catalog.replace_index([], [bad], [entry.manifest.artifact_id])
        assert catalog.artifacts() == [entry]


class TestExport:
    def test_the_export_does_not_depend_on_order_details_or_what_the_host_did(self, tmp_path: Path) -> None:
        entries = [entry_of(make_manifest(at=NOW + n * TTL), ["b", "a"], details={"n": n}) for n in range(4)]
        records = [({"run_id": f"r{n}", "policy": "orders"}, f"{n}" * 64) for n in range(3)]
        exports = []
        for number, step in enumerate((1, -1)):
            catalog = open_catalog(tmp_path / f"{number}.db", create=True)
            for entry in entries[::step]:
                catalog.index_artifact(entry)
            for record, sha256 in records[::step]:
                catalog.index_evidence(record, sha256, ["a"])
            if number:
                catalog.start_run(make_run("r1"))
            exports.append(catalog.export())
            catalog.close()
        assert exports[0] == exports[1]
        assert b'"n"' not in exports[0]


class TestLeases:
    def test_a_held_lease_is_refused_with_its_holder(self, catalog: SqliteCatalog) -> None:
        catalog.acquire_lease("backup/orders", "db1:42", TTL, NOW)
        with pytest.raises(Busy, match="db1:42 holds it until"):
            catalog.acquire_lease("backup/orders", "db1:43", TTL, NOW + TTL / 2)
        assert catalog.acquire_lease("backup/ledger", "db1:43", TTL, NOW).fence == 1

    def test_one_of_a_clock_that_was_ahead_holds_nobody_up(self, catalog: SqliteCatalog) -> None:
        catalog.acquire_lease("l", "db1:42", TTL, NOW + timedelta(days=365))
        assert catalog.acquire_lease("l", "db2:43", TTL, NOW).fence == 2

    def test_an_expired_lease_is_free_and_its_fence_grows(self, catalog: SqliteCatalog) -> None:
        first = catalog.acquire_lease("l", "a", TTL, NOW)
        second = catalog.acquire_lease("l", "b", TTL, NOW + TTL)
        assert (first.fence, second.fence) == (1, 2)
        with pytest.raises(Busy, match="b holds it"):
            catalog.renew_lease(first, TTL, NOW + TTL)

    def test_the_last_holder_of_an_expired_lease_may_go_on(self, catalog: SqliteCatalog) -> None:
        lease = catalog.acquire_lease("l", "a", TTL, NOW)
        assert catalog.renew_lease(lease, TTL, NOW + 5 * TTL) == Lease("l", "a", 1, NOW + 6 * TTL)

    def test_a_stale_release_does_not_free_somebody_elses_lease(self, catalog: SqliteCatalog) -> None:
        old = catalog.acquire_lease("l", "a", TTL, NOW)
        new = catalog.acquire_lease("l", "b", TTL, NOW + TTL)
        catalog.release_lease(old)
        assert catalog.lease("l") == new

    def test_a_released_lease_is_free_at_once_and_cannot_be_renewed(self, catalog: SqliteCatalog) -> None:
        lease = catalog.acquire_lease("l", "a", TTL, NOW)
        catalog.release_lease(lease)
        assert catalog.lease("l") is None
        with pytest.raises(Busy, match="given up"):
            catalog.renew_lease(lease, TTL, NOW)
        assert catalog.acquire_lease("l", "a", TTL, NOW).fence == 2

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        steps=st.lists(
            st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "renew", "release"]), st.integers(0, 90)),
            max_size=30,
        )
    )
    def test_never_two_holders_and_the_fence_grows_with_every_change(
        self, catalog: SqliteCatalog, steps: list[tuple[str, str, int]]
    ) -> None:
        """Compare with a model of three variables: who holds it, under which fence, until when."""
        name, now = os.urandom(8).hex(), NOW
        holding, fence, until = "", 0, NOW
        mine: dict[str, Lease] = {}
        for holder, action, seconds in steps:
            now += timedelta(seconds=seconds)
            if action == "take":
                free = holding in ("", holder) or until <= now
                if not free:
                    with pytest.raises(Busy):
                        catalog.acquire_lease(name, holder, TTL, now)
                    continue
                holding, fence, until = holder, fence + (holding != holder), now + TTL
                mine[holder] = catalog.acquire_lease(name, holder, TTL, now)
                assert mine[holder] == Lease(name, holder, fence, until)
            elif holder in mine and action == "renew":
                if (holding, fence) != (holder, mine[holder].fence):
                    with pytest.raises(Busy):
                        catalog.renew_lease(mine[holder], TTL, now)
                    continue
                until = now + TTL
                mine[holder] = catalog.renew_lease(mine[holder], TTL, now)
            elif holder in mine:
                catalog.release_lease(mine[holder])
                holding = "" if (holding, fence) == (holder, mine[holder].fence) else holding
            expected = Lease(name, holding, fence, until) if holding else None
            assert catalog.lease(name) == expected


class TestScratch:
    def test_a_scratch_is_known_until_it_is_removed(self, catalog: SqliteCatalog) -> None:
        scratch = Scratch("s1", "postgres", "/tmp/x", "db1", 42, "123", NOW)
        catalog.add_scratch(scratch)
        assert catalog.scratches() == [scratch]
        catalog.remove_scratch("s1")
        assert catalog.scratches() == []


class TestFile:
    def test_the_file_and_its_log_are_private(self, catalog: SqliteCatalog, path: Path) -> None:
        catalog.add_event("x", NOW, {})
        modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
        assert modes == {"catalog.db": 0o600, "catalog.db-wal": 0o600, "catalog.db-shm": 0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_it_is_in_wal_mode_with_foreign_keys(self, catalog: SqliteCatalog) -> None:
        connection = catalog._connection
        assert connection.execute("pragma journal_mode").fetchone()[0] == "wal"
        assert connection.execute("pragma foreign_keys").fetchone()[0] == 1

    def test_what_was_indexed_before_says_what_it_builds_on(self, catalog: SqliteCatalog, path: Path) -> None:
        full = make_manifest()
        child = make_manifest(at=NOW + TTL, depends_on=("01FULL", full.artifact_id))
        for manifest in (full, child):
            catalog.index_artifact(entry_of(manifest, ["primary"]))
        expected = {full.artifact_id: "", child.artifact_id: full.artifact_id}
        assert {row.artifact_id: row.parent for row in catalog.artifact_rows()} == expected
        catalog.close()
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("alter table artifacts drop column parent")
            connection.execute("delete from _sqlite_migrations where name = '003_parent'")
            connection.execute("pragma user_version = 2")
        with closing(open_catalog(path)) as reopened:
            assert {row.artifact_id: row.parent for row in reopened.artifact_rows()} == expected

    def test_the_schema_version_is_the_number_of_migrations(self, catalog: SqliteCatalog) -> None:
        assert len(MIGRATIONS._migrations) == SCHEMA_VERSION
        assert catalog._connection.execute("pragma user_version").fetchone()[0] == SCHEMA_VERSION

    def test_threads_take_turns(self, catalog: SqliteCatalog) -> None:
        def work(number: int) -> None:
            for step in range(20):
                catalog.start_run(make_run(f"{number}-{step}"))
                catalog.runs(limit=5)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(catalog.runs(limit=1000)) == 80

    def test_a_missing_catalog_is_not_made_by_opening(self, path: Path) -> None:
        with pytest.raises(CatalogError, match="there is no catalog at") as caught:
            open_catalog(path)
        assert caught.value.hints == ("drkit catalog rebuild",)
        assert not path.parent.exists()

    def test_the_log_of_a_lost_catalog_is_not_swallowed(self, path: Path) -> None:
        path.parent.mkdir()
        path.with_name("catalog.db-wal").write_bytes(b"precious")
        with pytest.raises(CatalogError, match=r"its write-ahead log .* is there"):
            open_catalog(path, create=True)
        assert not path.exists()

    def test_a_newer_catalog_is_left_alone(self, catalog: SqliteCatalog, path: Path) -> None:
        catalog.close()
        with sqlite3.connect(path) as connection:
            connection.execute(f"pragma user_version = {SCHEMA_VERSION + 6}")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(CatalogError, match="written by a newer drkit") as caught:
            open_catalog(path, create=True)
        assert path.read_bytes() == before
        assert f"version {SCHEMA_VERSION + 6}" in caught.value.details[0]
        assert any("drkit catalog rebuild" in hint for hint in caught.value.hints)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not a catalog of drkit"),
            (b"this is not a database at all" * 100, "is damaged"),
            (b"SQLite format 3\0" + b"\xff" * 4080, "is damaged"),
        ],
    )
    def test_what_is_no_catalog_is_named_and_left_alone(self, path: Path, content: bytes, message: str) -> None:
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(CatalogError, match=message) as caught:
            open_catalog(path, create=True)
        assert str(path) in caught.value.message
        assert "drkit catalog rebuild" in caught.value.hints
        assert path.read_bytes() == content

    def test_somebody_elses_database_is_left_alone(self, path: Path) -> None:
        path.parent.mkdir()
        connection = sqlite3.connect(path)
        connection.execute("create table invoices (id)")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(CatalogError, match="is not a catalog of drkit"):
            open_catalog(path, create=True)
        assert path.read_bytes() == before

    def test_damage_inside_is_found_when_it_is_read(self, catalog: SqliteCatalog, path: Path) -> None:
        for number in range(50):
            catalog.index_artifact(entry_of(make_manifest(at=NOW + number * TTL)))
        catalog.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(CatalogError, match="is damaged") as caught, closing(open_catalog(path)) as damaged:
            damaged.artifacts()
        assert "drkit catalog rebuild" in caught.value.hints
        assert path.read_bytes() == bytes(content)

    def test_a_folder_in_its_place(self, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(CatalogError, match="cannot open the catalog"):
            open_catalog(path, create=True)

    def test_a_file_where_its_folder_should_be(self, path: Path) -> None:
        path.parent.write_text("not a folder")
        with pytest.raises(CatalogError, match="cannot use the catalog"):
            open_catalog(path, create=True)

    def test_a_catalog_that_others_may_not_read(self, catalog: SqliteCatalog, path: Path) -> None:
        catalog.close()
        if os.getuid() != 0:
            pytest.skip("needs root, to become somebody else")
        path.parent.chmod(0o755)
        # Everything is imported before the user is changed: nobody may have no access to this checkout.
        program = (
            "import os, sys\nfrom pathlib import Path\nfrom drkit.catalog.sqlite import open_catalog\n"
            "from drkit.errors import CatalogError\nos.chdir(sys.argv[1])\nos.setuid(65534)\n"
            "try:\n    open_catalog(Path('catalog.db'))\nexcept CatalogError as error:\n    print(error.message)\n"
        )
        for folder in (path.parent, *path.parent.parents):
            if folder.stat().st_uid == os.getuid() and folder != Path("/") and "pytest" in str(folder):
                folder.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", program, str(path.parent)], capture_output=True, text=True, check=False, timeout=60
        )
        assert "cannot open the catalog" in done.stdout, done.stderr

    def test_a_locked_catalog_says_so_after_its_time(
        self, catalog: SqliteCatalog, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "BUSY_TIMEOUT_S", 0.2)
        other = open_catalog(path)
        catalog._connection.execute("begin immediate")
        started_s = time.monotonic()
        with pytest.raises(CatalogError, match="is locked by another process"):
            other.add_event("x", NOW, {})
        assert time.monotonic() - started_s >= 0.2
        catalog._connection.execute("rollback")
        other.add_event("x", NOW, {})
        other.close()

    def test_a_short_lock_is_waited_for(self, catalog: SqliteCatalog, path: Path) -> None:
        other = open_catalog(path)
        catalog._connection.execute("begin immediate")
        thread = threading.Thread(target=other.add_event, args=("x", NOW, {}))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        catalog._connection.execute("commit")
        thread.join(10)
        assert [event["name"] for event in catalog.events()] == ["x"]
        other.close()

    def test_an_older_schema_is_upgraded_where_it_is(self, path: Path) -> None:
        """Start from a file that has no migration yet, as every catalog of an older drkit has fewer than this one."""
        path.parent.mkdir()
        connection = sqlite3.connect(path)
        connection.execute(f"pragma application_id = {files.APPLICATION_ID}")
        connection.close()
        catalog = open_catalog(path)
        catalog.add_event("x", NOW, {})
        catalog.close()
        reopened = open_catalog(path)
        assert len(reopened.events()) == 1
        reopened.close()


class TestPlace:
    def test_a_relative_path_counts_from_the_site(self) -> None:
        assert catalog_path("sqlite:///var/c.db", Path("/srv/site")) == Path("/srv/site/var/c.db")
        assert catalog_path("sqlite:////var/c.db", Path("/srv/site")) == Path("/var/c.db")

    @pytest.mark.parametrize("url", ["postgresql://db/x", "sqlite://x", "var/c.db", "sqlite:///"])
    def test_another_kind_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigError, match="is not a catalog this drkit can use"):
            catalog_path(url, Path())
