"""Base backups of real servers: what is in them, and that stock tools bring them back."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drkit.engines import BackupOptions, postgres_base_facts
from drkit.engines.registry import find_engine
from tests.fixtures.physical import (
    PHYSICAL,
    read_base,
    standby_of,
    start_server,
    started_from,
    take_base,
    verify_by_hand,
)
from tests.fixtures.postgres import PostgresServer, as_server_user, running_postgres
from tests.fixtures.shipping import until

WAYS = pytest.mark.parametrize("options", [{"via": "stream"}, {"via": "local", "parallel": 3}], ids=["stream", "local"])
QUIET = "select count(*), sum(hashtext(q::text)) from quiet as q"
ROLE = "drkit backup"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Lend a server with a database `orders`, of which `quiet` is never written, and two tablespaces."""
    with running_postgres(**PHYSICAL) as server:
        server.create_database(
            "orders", "create table quiet as select g, md5(g::text) from generate_series(1, 50000) g"
        )
        for name in ("fast disk", "slow"):
            folder = server.folder / f"space {name}"
            subprocess.run(["install", "-d", "-m", "700", "-o", "postgres", str(folder)], check=True)
            server.execute(f"create tablespace \"{name}\" location '{folder}'")
        server.execute(
            'create table spaced tablespace "fast disk" as select g from generate_series(1, 100000) g;'
            "create unlogged table cache as select g from generate_series(1, 1000) g;",
            "orders",
        )
        subprocess.run(
            [str(server.bin / "pgbench"), "-i", "-q", "-s", "2", "-d", server.url("orders").reveal()],
            check=True,
            capture_output=True,
        )
        yield server


@contextmanager
def pgbench(server: PostgresServer) -> Iterator[None]:
    """Keep the server busy; the load must still be alive at the end."""
    command = [str(server.bin / "pgbench"), "-n", "-c", "2", "-T", "60", "-d", server.url("orders").reveal()]
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        before = server.execute("select count(*) from pgbench_history", "orders")
        while server.execute("select count(*) from pgbench_history", "orders") == before:
            pass
        yield
        assert load.poll() is None, "pgbench ended before the backup did"
    finally:
        load.kill()
        load.wait()


@WAYS
def test_a_base_of_a_busy_server_comes_back_with_stock_tools(
    server: PostgresServer, tmp_path: Path, options: dict[str, object], request: pytest.FixtureRequest
) -> None:
    with pgbench(server):
        taken = take_base(server.url(), tmp_path / "taken", **options)
    folder = server.folder / f"restored-{request.node.callspec.id}"
    data = taken.unpack(folder)
    verify_by_hand(server, data)
    label = (data / "backup_label").read_text()
    assert label.startswith(f"START WAL LOCATION: {taken.position.start_lsn} (file ")
    with started_from(server, data) as copy:
        assert copy.execute("select pg_is_in_recovery()") == [(False,)]
        assert copy.execute(QUIET, "orders") == server.execute(QUIET, "orders")
        assert copy.execute("select count(*) from spaced", "orders") == [(100000,)]
        assert copy.execute("select count(*) from cache", "orders") == [(0,)], "an unlogged table is emptied"
        balances = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers)"
        balances += ", (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)"
        ((accounts, tellers, branches, history),) = copy.execute(balances, "orders")
        assert accounts == tellers == branches == history
        assert copy.execute("select max(mtime)::timestamptz from pgbench_history", "orders")[0][0] <= taken.snapshot_at
        where = copy.execute("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast disk'")
        assert where[0][0].startswith(f"{folder}/tablespace-")


@WAYS
def test_what_is_recorded(server: PostgresServer, tmp_path: Path, options: dict[str, object]) -> None:
    taken = take_base(server.url(), tmp_path, **options)
    base, position = taken.details["base"], taken.position
    identifier = server.execute("select system_identifier::text from pg_control_system()")[0][0]
    assert taken.details["server"]["system_identifier"] == identifier
    assert position.system_identifier_tail == identifier[-6:]
    assert (position.timeline, position.segment_bytes) == (1, 16 << 20)
    assert (base["start_lsn"], base["stop_lsn"]) == (position.start_lsn, position.stop_lsn)
    ((wal_range,),) = ([*taken.manifest()["WAL-Ranges"]],)
    assert wal_range == {"Timeline": 1, "Start-LSN": position.start_lsn, "End-LSN": position.stop_lsn}
    assert {item["name"] for item in base["tablespaces"]} == {"fast disk", "slow"}
    assert all(item["location"] == f"{server.folder}/space {item['name']}" for item in base["tablespaces"])
    assert base["settings"]["max_wal_senders"] == "6"
    assert base["checksums"] is (server.execute("show data_checksums") == [("on",)])
    assert base["checksums_verified"] is base["checksums"]
    assert base["damage"] == []
    assert "orders" in {database["name"] for database in base["databases"]}
    assert taken.preflight.warnings[0].startswith("fsync is off")
    assert taken.warnings == ()


def test_both_ways_copy_the_same_files(server: PostgresServer, tmp_path: Path) -> None:
    streamed = take_base(server.url(), tmp_path / "stream", via="stream")
    local = take_base(server.url(), tmp_path / "local", via="local", parallel=2)
    ours, theirs = local.contents(), streamed.contents()
    wal = {path for path in ours | theirs if path.startswith("pg_wal/")}
    assert set(ours) - wal == set(theirs) - wal
    differing = {path for path in set(ours) - wal if ours[path] != theirs[path]}
    passing = ("pg_xact/", "pg_logical/", "pg_multixact/")  # depends on what happened between the two
    assert {path for path in differing if not path.startswith(passing)} <= {"backup_label", "global/pg_control"}
    listed = {item["Path"]: item["Checksum"] for item in local.manifest()["Files"]}
    assert listed == {path: digest for path, digest in ours.items() if path not in wal}
    assert listed.keys() == {item["Path"] for item in streamed.manifest()["Files"]} - wal


def test_local_tars_share_the_files(server: PostgresServer, tmp_path: Path) -> None:
    """Whatever the threads take, each file is in one tar: also where one thread comes late and finds nothing left."""
    taken = take_base(server.url(), tmp_path, via="local", parallel=3)
    assert taken.preflight.parallel == 3
    tars = [part.name for part in taken.preflight.parts if part.kind == "data"]
    assert len(tars) > 2
    names = [name for tar in tars for name in taken.names(tar) if not name.endswith("/")]
    listed = [item["Path"] for item in taken.manifest()["Files"] if not item["Path"].startswith("pg_tblspc/")]
    assert sorted(name for name in names if not name.startswith("pg_wal/")) == sorted(listed)
    assert taken.names("base")[-1] == "global/pg_control"


@WAYS
def test_a_standby_gives_a_base(server: PostgresServer, tmp_path: Path, options: dict[str, object]) -> None:
    with standby_of(server) as standby:
        folder = standby.folder / "restored"
        with pgbench(server):
            taken = take_base(standby.url(), tmp_path / "taken", **options)
        assert taken.details["server"]["standby"] is True
        data = taken.unpack(folder)
        assert "BACKUP FROM: standby" in (data / "backup_label").read_text()
        verify_by_hand(server, data)
        (data / "standby.signal").unlink(missing_ok=True)
        with started_from(server, data) as copy:
            assert copy.execute(QUIET, "orders") == server.execute(QUIET, "orders")


def test_a_standby_whose_clock_is_slow_shows_no_moment_before_its_last_commit(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base dated too early would be taken for moments that it is past already."""
    slow = postgres_base_facts._END.replace("clock_timestamp()", "(clock_timestamp() - interval '1 hour')")
    monkeypatch.setattr(postgres_base_facts, "_END", slow)
    with standby_of(server) as standby:
        (committed_at,) = server.execute("create table late (); drop table late; select clock_timestamp()")[0]
        until(
            lambda: standby.execute(
                "select pg_last_xact_replay_timestamp() is not null and exists (select from pg_stat_wal_receiver)"
                f" and pg_last_wal_replay_lsn() >= '{server.execute('select pg_current_wal_lsn()')[0][0]}'"
            )[0][0],
            "the standby has it",
        )
        with standby.connect() as connection:
            end = postgres_base_facts.read_end(connection)
    assert abs((end.stop_at - committed_at).total_seconds()) < 1800
    assert end.behind_s < 0


def test_wal_is_kept_by_a_slot_that_is_gone_afterwards(server: PostgresServer, tmp_path: Path) -> None:

    slots = "select temporary, restart_lsn <= %s::pg_lsn from pg_replication_slots"
    for via in ("stream", "local"):
        options = BackupOptions(work_folder=tmp_path, via=via)
        with find_engine("postgres", "base").open_backup(server.url(), options), server.connect() as connection:
            now = "select pg_current_wal_lsn()::text"
            (lsn,) = connection.execute(now).fetchone() or ("",)
            assert connection.execute(slots, [lsn]).fetchall() == [(True, True)]
        with server.connect() as connection:
            while connection.execute("select count(*) from pg_replication_slots").fetchone() != (0,):
                pass


def test_wal_that_the_server_would_have_removed_is_there(tmp_path: Path) -> None:
    settings = {**PHYSICAL, "max_wal_size": "32MB", "min_wal_size": "32MB", "wal_keep_size": "0"}
    with running_postgres(**settings) as server:
        server.create_database("orders", "create table quiet as select g from generate_series(1, 100) g")
        for via in ("stream", "local"):
            options = BackupOptions(work_folder=tmp_path, via=via)
            with find_engine("postgres", "base").open_backup(server.url(), options) as session:
                for _ in range(8):
                    server.execute("select pg_logical_emit_message(true, '', 'x'), pg_switch_wal()")
                server.execute("checkpoint")
                taken = read_base(session, tmp_path / via)
            assert len([name for name in taken.names("base") if re.fullmatch("pg_wal/[0-9A-F]{24}", name)]) == 9
            data = taken.unpack(server.folder / f"restored-{via}")
            verify_by_hand(server, data)
            with started_from(server, data) as copy:
                assert copy.execute("select count(*) from quiet", "orders") == [(100,)]


def test_a_configuration_outside_of_the_data_folder_is_captured(tmp_path: Path) -> None:
    with running_postgres(**PHYSICAL) as server:
        outside = server.folder / "etc"
        subprocess.run(["install", "-d", "-o", "postgres", str(outside)], check=True)
        (server.folder / "data" / "pg_hba.conf").rename(outside / "pg_hba.conf")
        (outside / "more.conf").write_text("work_mem = '5MB'\n")
        with (server.folder / "data" / "postgresql.conf").open("a") as config:
            config.write(f"hba_file = '{outside}/pg_hba.conf'\ninclude_if_exists = '{outside}/more.conf'\n")
        server.stop("fast")
        start_server(server)
        taken = take_base(server.url(), tmp_path / "privileged")
        assert taken.details["base"]["config"]["captured"] == [f"{outside}/more.conf", f"{outside}/pg_hba.conf"]
        assert taken.names("config") == [f"{outside}/more.conf".lstrip("/"), f"{outside}/pg_hba.conf".lstrip("/")]
        server.execute(f'create role "{ROLE}" login replication; grant pg_read_all_settings to "{ROLE}"')
        refused = take_base(server.url(user=ROLE), tmp_path / "limited")
        assert "config" not in refused.details["parts"]
        assert list(refused.details["base"]["config"]["missing"]) == [f"{outside}/pg_hba.conf"]
        assert any("pg_read_server_files" in line for line in refused.preflight.warnings)


def test_the_least_role_takes_a_base_and_is_told_what_it_cannot_see(server: PostgresServer, tmp_path: Path) -> None:
    server.execute(f'create role "{ROLE}" login replication')
    try:
        taken = take_base(server.url(user=ROLE), tmp_path)
        assert any(f'grant pg_read_all_settings to "{ROLE}";' in line for line in taken.preflight.warnings)
        assert taken.manifest()["Files"]
    finally:
        server.execute(f'drop role "{ROLE}"')


def test_what_is_created_while_the_backup_runs_is_named(server: PostgresServer, tmp_path: Path) -> None:

    with find_engine("postgres", "base").open_backup(server.url(), BackupOptions(work_folder=tmp_path)) as session:
        name = server.create_database()
        read_base(session, tmp_path)
        assert [line for line in session.warnings if name in line]
    server.drop_database(name)


def test_damaged_pages_are_named_and_the_backup_is_called_damaged(tmp_path: Path) -> None:
    with running_postgres(**PHYSICAL) as server:
        server.create_database("orders", "create table hit as select g from generate_series(1, 10000) g")
        (path,) = server.execute("select pg_relation_filepath('hit')", "orders")[0]
        server.stop("fast")
        enable = [str(server.bin / "pg_checksums"), "--enable", "-D", str(server.folder / "data")]
        subprocess.run(enable, check=False, capture_output=True, cwd=server.folder, **as_server_user())
        with (server.folder / "data" / path).open("r+b") as file:
            file.seek(2 * 8192 + 5000)
            file.write(b"!")
        start_server(server)
        taken = take_base(server.url(), tmp_path)
        assert [line for line in taken.details["base"]["damage"] if path in line]
        assert any("the source is damaged" in line for line in taken.warnings)
        assert taken.details["base"]["checksums_verified"]
        assert taken.position.stop_lsn
        local = take_base(server.url(), tmp_path / "local", via="local")
        assert [line for line in local.details["base"]["damage"] if f"{path}, block 2" in line]
        assert any("the source is damaged" in line for line in local.warnings)
        assert local.contents()[path] == taken.contents()[path]
