"""A run that is cancelled leaves nothing behind: no child, no session on the server, no upload."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest

from drkit.app import open_app
from drkit.model import Run
from drkit.operations import backup
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.site import ReadySite
from tests.fixtures.waiting import wait_until

LONG = timedelta(hours=1)
SESSIONS = (
    "select application_name, wait_event_type from pg_stat_activity where datname = current_database()"
    " and pid <> pg_backend_pid() and application_name like any (array['drkit%', 'pg_dump%'])"
)

PG_DUMP = """
import os, drkit.engines.postgres_dump as dump
from drkit.process import Command, open_producer
options = f"--lock-wait-timeout={round(dump._DUMP_LOCK_WAIT_S * 1000)}"
with open_producer(Command(["pg_dump", options, "--dbname", os.environ["WAITS_ON"]]), idle_timeout_s=60) as producer:
    list(producer.chunks())
"""
"""A process that starts pg_dump as a backup does, whose guard is gone already."""


@pytest.fixture
def locked(postgres: PostgresServer) -> Iterator[str]:
    """Lend a database with a table that somebody has locked."""
    name = postgres.create_database(None, "create table t (id int); insert into t values (1)")
    with postgres.connect(name) as connection:
        connection.execute("begin")
        connection.execute("lock table t in access exclusive mode")
        yield name
        connection.rollback()
    postgres.drop_database(name)


def running(site: ReadySite) -> list[Run]:
    with open_app(site.site_file) as workplace:
        return workplace.catalog.runs(state="running")


def test_a_backup_that_waits_on_the_server_is_ended_there_too(
    ready_site: ReadySite, postgres: PostgresServer, locked: str
) -> None:
    path = ready_site.write_policy("orders", ready_site.write_secret("url", postgres.url(locked).reveal()))
    path.write_text(path.read_text().replace('keys/url"', f'keys/url", databases: [{locked}]'))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    command = [sys.executable, "-c", "from drkit.cli import main; main()", "backup", "orders"]
    with subprocess.Popen(command, cwd=ready_site.folder, env=environment, stderr=subprocess.PIPE) as process:
        wait_until(
            lambda: any(kind == "Lock" for _, kind in postgres.execute(SESSIONS, locked)), "it waits for the lock"
        )
        (run,) = running(ready_site)
        done = ready_site.call("run", "cancel", run.run_id)
        assert (done.returncode, done.stdout) == (0, f"run {run.run_id} has ended: interrupted\n"), done.stderr
        assert process.wait(timeout=30) == 130
    wait_until(lambda: not postgres.execute(SESSIONS, locked), "no session of ours is left on the server")
    stored = {path.name for path in (ready_site.store_folder / "policies").rglob("*") if path.is_file()}
    assert stored <= {"globals.zst.age"}, "something that was not finished was stored"
    events = ready_site.call("run", "list", "--json").stdout
    assert '"state": "interrupted"' in events


@pytest.mark.parametrize("behind", ["the guard", "pg_dump"])
def test_what_a_kill_leaves_waiting_on_the_server_ends_by_itself(
    ready_site: ReadySite, postgres: PostgresServer, locked: str, behind: str
) -> None:
    """SIGKILL lets nobody clean up. Somebody keeps the lock: what waits for it gives up after its own time."""
    path = ready_site.write_policy("orders", ready_site.write_secret("url", postgres.url(locked).reveal()))
    text = path.read_text().replace('keys/url"', f'keys/url", databases: [{locked}]')
    path.write_text(text.replace("method: dump", "method: dump, lock_timeout: 2s"))
    job = PG_DUMP if behind == "pg_dump" else "from drkit.cli import main; main()"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment["WAITS_ON"] = postgres.url(locked).reveal()
    command = [sys.executable, "-c", job, "backup", "orders"]
    with subprocess.Popen(command, cwd=ready_site.folder, env=environment) as process:
        wait_until(
            lambda: any(kind == "Lock" for _, kind in postgres.execute(SESSIONS, locked)), "it waits for the lock"
        )
        process.kill()
    wait_until(lambda: not postgres.execute(SESSIONS, locked), "no session of ours is left on the server")


def test_what_cannot_be_cancelled_is_said(ready_site: ReadySite) -> None:
    assert ready_site.call("run", "cancel", "01ABC").returncode == 10
    with open_app(ready_site.site_file) as workplace:
        catalog, now = workplace.catalog, workplace.clock()
        ship = Run("01SHIP", "ship", "orders", "running", now, os.uname().nodename, os.getpid(), now)
        far = Run("01FAR", "backup", "orders", "running", now, "elsewhere", 1, now)
        for run in (ship, far):
            catalog.start_run(run)
        catalog.acquire_lease("backup/orders", "elsewhere/1@x#01FAR", LONG, now)
    for run_id, words in (("01SHIP", "is part of drkit serve"), ("01FAR", "is of host elsewhere")):
        done = ready_site.call("run", "cancel", run_id)
        assert done.returncode == 4
        assert words in done.stderr


def test_a_backup_that_stood_still_too_long_commits_nothing(
    ready_site: ReadySite, postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease expired while it was stopped, another run has begun, and then it goes on."""
    path = ready_site.write_policy("orders", ready_site.write_secret("url", postgres.url(database).reveal()))
    path.write_text(path.read_text().replace('keys/url"', f'keys/url", databases: [{database}]'))

    def stand_still(job: backup._Job, manifest: object) -> None:
        catalog = job.workplace.catalog
        catalog.release_lease(job.running.lease)
        catalog.acquire_lease("backup/orders", "elsewhere/1@mark#other", LONG, job.workplace.clock())

    monkeypatch.setattr(backup._Job, "_read_back", stand_still)
    done = ready_site.call("backup", "orders")
    assert done.returncode == 4
    assert "was taken over by elsewhere/1@mark#other while this run stood still; nothing is committed" in done.stderr
    assert not list(ready_site.store_folder.rglob("manifest*"))
    assert ready_site.call("list").stdout.startswith("no artifacts")
