"""A primary that is killed under load, and a standby that lacked the end and writes on: what was promised comes back.

With ``synchronous: true`` a commit is acknowledged when drkit has it durably, so each of them must be restorable, also
those that the promoted standby never had.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.physical import standby_of
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import Walk, promoted, restored
from tests.fixtures.shipping import LOGGED, LogSite, busy, flushed_lsn, make_rows, until, write_rows
from tests.fixtures.site import ReadySite
from tests.integration.test_wal_stream import kill_server, shipped_to

SLOT = "drkit_sync"
SUMS = "select sum(delta), sum(b), sum(t), sum(a) from (select delta, 0 b, 0 t, 0 a from pgbench_history union all"
SUMS += " select 0, bbalance, 0, 0 from pgbench_branches union all select 0, 0, tbalance, 0 from pgbench_tellers"
SUMS += " union all select 0, 0, 0, abalance from pgbench_accounts) as s"


@dataclass
class Writer:
    """Counts up in a table; knows what was acknowledged, and a moment before each commit and after the one before."""

    server: PostgresServer
    moments: list[datetime] = field(default_factory=list)
    acknowledged: int = 0

    def run(self) -> None:
        """Write until the server is gone."""
        try:
            with self.server.connect() as connection:
                for number in itertools.count(1):
                    row = connection.execute(
                        "insert into counted values (%s) returning clock_timestamp()", [number]
                    ).fetchone()
                    assert row is not None
                    self.moments.append(row[0])
                    self.acknowledged = number
        except psycopg.Error:
            return

    def between(self, number: int) -> str:
        """Return a moment at which that number was committed, and the next one was not."""
        return self.moments[number].isoformat()


@contextmanager
def writing(server: PostgresServer) -> Iterator[Writer]:
    writer = Writer(server)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
    finally:
        thread.join(timeout=30)


@dataclass(frozen=True)
class Scene:
    """The log of both timelines, shipped; ``early`` was written before the standby was cut off, ``late`` after it."""

    walk: Walk
    writer: Writer
    early: int
    late: int
    standby: list[int]
    moment_on_two: str


@pytest.fixture
def scene(ready_site: ReadySite, tmp_path: Path) -> Iterator[Scene]:
    with running_postgres(segment_mib=1, **LOGGED) as primary, standby_of(primary) as standby:
        make_rows(primary)
        primary.execute("create table counted (n int)")
        source = LogSite(ready_site)
        hosts, ports = f"{primary.folder},{standby.folder}", f"{primary.port},{standby.port}"
        url = f"postgresql://postgres@/postgres?host={hosts}&port={ports}&target_session_attrs=read-write"
        source.write_policy(url, "synchronous: true", f"slot: {SLOT}")
        walk = Walk(ready_site, primary, tmp_path)
        with source.serving():
            source.wait_for("receiving: ")
            walk.base()
            primary.execute(f"alter system set synchronous_standby_names = '{SLOT}'")
            primary.execute("select pg_reload_conf()")
            asked = f"select 1 from pg_stat_replication where application_name = '{SLOT}' and sync_state = 'sync'"
            until(lambda: primary.execute(asked), "commits wait for drkit")
            with busy(primary), writing(primary) as writer:
                until(lambda: writer.acknowledged > 40, "some commits")
                early = writer.acknowledged - 2
                standby.execute("alter system set primary_conninfo = ''")
                standby.execute("select pg_reload_conf()")
                until(
                    lambda: (
                        not primary.execute(f"select 1 from pg_stat_replication where application_name <> '{SLOT}'")
                    ),
                    "the standby is cut off",
                )
                begun = writer.acknowledged
                until(lambda: writer.acknowledged > begun + 40, "commits that the standby lacks", 60)
                kill_server(primary)
            late = writer.acknowledged - 2
            promoted(standby)
            until(lambda: not standby.execute("select pg_is_in_recovery()")[0][0], "it is promoted")
            for number in (-1, -2):
                standby.execute(f"insert into counted values ({number})")
            ((moment_on_two,),) = standby.execute("select clock_timestamp()")
            write_rows(standby, 300)
            standby.execute("insert into counted values (-3)")
            pgbench = [str(standby.bin / "pgbench"), "-h", str(standby.folder), "-p", str(standby.port)]
            subprocess.run([*pgbench, "-U", "postgres", "-n", "-t", "20", "postgres"], check=True, capture_output=True)
            lsn = flushed_lsn(standby)
            until(lambda: shipped_to(source, 2) >= lsn, "the new timeline is listed", 60)
        source.gapless(timeline=1)
        source.gapless(timeline=2)
        left = [row[0] for row in standby.execute("select n from counted order by n")]
        yield Scene(walk, writer, early, late, left, moment_on_two.isoformat())


def counted(scene: Scene, *words: str) -> list[int]:
    """Restore, require that no transaction of pgbench is there by half, and return what was counted."""
    with restored(scene.walk, *words) as copy:
        (sums,) = copy.execute(SUMS)
        assert len(set(sums)) == 1, "a transaction of pgbench is there by half"
        return [row[0] for row in copy.execute("select n from counted order by n")]


def test_every_acknowledged_commit_comes_back_before_between_and_after(scene: Scene) -> None:
    writer = scene.writer
    assert counted(scene, "--at", writer.between(scene.early)) == list(range(1, scene.early + 1))
    on_one = counted(scene, "--timeline", "1")
    assert on_one in (list(range(1, writer.acknowledged + 1)), list(range(1, writer.acknowledged + 2)))
    assert counted(scene, "--timeline", "1", "--at", writer.between(scene.late)) == list(range(1, scene.late + 1))
    assert len(scene.standby) - 3 < scene.late, "the standby lacked some of them"
    assert counted(scene) == scene.standby
    assert counted(scene, "--at", scene.moment_on_two) == [n for n in scene.standby if n != -3]
