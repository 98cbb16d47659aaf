"""A standby that is promoted after drkit has asked for its timeline, and before BASE_BACKUP begins (T30)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drkit.binaries import FOLDERS_VARIABLE
from drkit.engines.postgres_replication import Replication
from tests.fixtures.physical import standby_of
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import Walk, document_of, promoted
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite
from tests.fixtures.versions import NEWEST, programs_of
from tests.integration.test_incremental import SETTINGS, point_at


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    monkeypatch.setenv(FOLDERS_VARIABLE, str(programs_of(NEWEST)))
    with running_postgres(programs=programs_of(NEWEST), **SETTINGS) as primary:
        primary.execute("create table status (state text); insert into status values ('born'); checkpoint")
        with standby_of(primary) as made:
            yield primary, made


def test_no_incremental_base_is_built_on_a_timeline_that_was_left(
    servers: tuple[PostgresServer, PostgresServer],
    ready_site: ReadySite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary, standby = servers
    point_at(ready_site, standby)
    walk = Walk(ready_site, standby, tmp_path)
    walk.base()
    primary.execute("update status set state = 'changed'; checkpoint")
    ((lsn,),) = primary.execute("select pg_current_wal_lsn()::text")
    until(lambda: standby.execute(f"select pg_last_wal_replay_lsn() >= '{lsn}'")[0][0], "the standby has it")
    standby.execute("checkpoint")
    redo = "select redo_lsn from pg_control_checkpoint()"
    summarized = f"select max(end_lsn) >= ({redo}) from pg_available_wal_summaries()"
    until(lambda: standby.execute(summarized)[0][0], "it is summarized")
    upload: Callable[..., None] = Replication.upload

    def upload_and_promote(self: Replication, *arguments: object) -> None:
        promoted(standby)
        until(lambda: not standby.execute("select pg_is_in_recovery()")[0][0], "promoted")
        standby.execute("update status set state = 'promoted'; checkpoint")
        upload(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Replication, "upload", upload_and_promote)
        done = ready_site.call("backup", "orders", "--incremental")
    assert done.returncode == 5, done.stderr
    assert "was promoted to timeline 2" in done.stderr
    assert document_of(ready_site.call("backup", "orders", "--incremental", "--json"))["depends_on"] == []
