"""Every method on the newest PostgreSQL, and with --all-versions on every other that can be had."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.binaries import FOLDERS_VARIABLE, postgres_version
from tests.fixtures.physical import PHYSICAL
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import POLICY, Walk, document_of
from tests.fixtures.shipping import LOGGED, LogSite, flushed_lsn
from tests.fixtures.site import ReadySite
from tests.fixtures.versions import majors, programs_of

FIRST_INCREMENTAL = 17


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "major" in metafunc.fixturenames:
        metafunc.parametrize("major", majors(metafunc.config), ids=lambda major: f"postgres-{major}", scope="module")


@pytest.fixture(scope="module")
def server(major: int) -> Iterator[PostgresServer]:
    """Lend a server of that major, with a table of one row."""
    programs = programs_of(major)
    settings = PHYSICAL | LOGGED | {"track_commit_timestamp": "on"}
    if major >= FIRST_INCREMENTAL:
        settings["summarize_wal"] = "on"
    with running_postgres(programs=programs, **settings) as server:
        assert postgres_version(programs / "postgres")[0] == major
        server.execute("create table status (state text); insert into status values ('born')")
        yield server


@pytest.fixture
def walk(server: PostgresServer, ready_site: ReadySite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """Lend the server with a policy of base and streamed log, and let drkit find the programs of its major."""
    monkeypatch.setenv(FOLDERS_VARIABLE, str(server.bin))
    LogSite(ready_site).write_policy(server.url().reveal())
    return Walk(ready_site, server, tmp_path)


def passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert document_of(done)["verdict"] == "passed"


def test_a_base_and_its_streamed_log_come_back(walk: Walk) -> None:
    log = LogSite(walk.site)
    with log.serving():
        log.wait_for("receiving: ")
        walk.base()
        wanted = walk.set("wanted")
        walk.set("later")
        log.await_lsn(flushed_lsn(walk.server))
    walk.server.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
    assert walk.state_at("--at", f"xid:{wanted.xid}") == "wanted"
    assert walk.state_at("--at", "latest") == "later"
    passed(walk.site.call("drill", POLICY, "--level", "same-data", "--json"))


def test_a_base_from_the_data_folder_comes_back(walk: Walk) -> None:
    path = walk.site.folder / "policies" / f"{POLICY}.yaml"
    path.write_text(path.read_text().replace("{method: base}", "{method: base, via: local, parallel: 2}"))
    walk.set("copied")
    walk.base()
    assert walk.state_at("--at", "immediate") == "copied"


def test_an_incremental_base_comes_back_or_is_refused_by_name(walk: Walk, major: int) -> None:
    walk.base()
    walk.set("changed")
    if major >= FIRST_INCREMENTAL:
        walk.base("--incremental")
        assert walk.state_at("--at", "immediate") == "changed"
    else:
        done = walk.site.call("backup", POLICY, "--incremental")
        assert done.returncode == 5
        assert "takes no incremental base backups: they came with 17" in done.stderr


def test_a_dump_comes_back(walk: Walk, chinook_of: str) -> None:
    url = walk.site.write_secret("chinook", walk.server.url(chinook_of).reveal())
    walk.site.write_policy("shop", url)
    assert walk.site.call("backup", "shop").returncode == 0
    passed(walk.site.call("drill", "shop", "--level", "same-data", "--json"))


@pytest.fixture
def chinook_of(server: PostgresServer) -> str:
    """Return a database of that server with the Chinook sample."""
    name = server.create_database("chinook")
    server.load_chinook(name)
    return name
