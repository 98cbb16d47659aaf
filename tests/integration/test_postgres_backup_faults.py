"""What goes wrong with a PostgreSQL backup: found before it starts where possible, never taken for success."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from drkit.binaries import FOLDERS_VARIABLE, postgres_binary, postgres_version
from drkit.engines import BackupOptions
from drkit.engines.postgres_dump import whole_archive, whole_globals
from drkit.errors import SourceError
from tests.fixtures.ports import free_port
from tests.fixtures.postgres import PostgresServer, as_server_user, postgres_bin, running_postgres
from tests.integration.test_postgres_backup import ENGINE, fingerprint_of, restore, take, unexpected


@contextmanager
def eventually(condition: Callable[[], object], within_s: float = 20) -> Iterator[None]:
    """Wait until ``condition`` holds, then go on."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.01)
    yield


# Preflight ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(postgres: PostgresServer, database: str) -> str:
    """Lend a role that may read nothing yet."""
    role = f"Limited {database}"
    postgres.execute(f'create role "{role}" login')
    return role


def test_unreadable_objects_are_listed_with_the_grants_that_help(
    postgres: PostgresServer, database: str, limited: str, tmp_path: Path
) -> None:
    postgres.execute(
        'create schema closed; create table closed.a (id int); create table public."B b" (id serial);'
        "create table public.readable (id int); grant select on public.readable to public;"
        "create view public.v as select 1",
        database,
    )
    with pytest.raises(SourceError, match=f"role {limited} may not read 4 objects in database {database}") as caught:
        take(postgres.url(user=limited), tmp_path, database)
    assert caught.value.details == (
        "schema closed",
        "table closed.a",
        'table public."B b"',
        'sequence public."B b_id_seq"',
    )
    postgres.execute("\n".join(hint for hint in caught.value.hints if hint.startswith("grant")), database)
    taken = take(postgres.url(user=limited), tmp_path, database)
    assert (
        unexpected(taken.fingerprint(database), fingerprint_of(postgres, restore(postgres, taken.streams[database])))
        == []
    )


def test_an_excluded_table_need_not_be_readable(
    postgres: PostgresServer, database: str, limited: str, tmp_path: Path
) -> None:
    postgres.execute("create table audit (id int generated always as identity)", database)
    with pytest.raises(SourceError, match="may not read"):
        take(postgres.url(user=limited), tmp_path, database)
    assert take(postgres.url(user=limited), tmp_path, database, exclude_tables=("audit",)).streams[database]


def test_row_security_without_bypass_is_refused_by_name(
    postgres: PostgresServer, database: str, limited: str, tmp_path: Path
) -> None:
    postgres.execute(
        "create table secrets (id int); alter table secrets enable row level security;"
        f'grant select on secrets to "{limited}"',
        database,
    )
    with pytest.raises(SourceError, match=r"sees only some rows .* row-level security") as caught:
        take(postgres.url(user=limited), tmp_path, database)
    assert caught.value.details == ("public.secrets",)
    assert caught.value.hints[0] == f'alter role "{limited}" bypassrls;'
    postgres.execute(caught.value.hints[0])
    assert take(postgres.url(user=limited), tmp_path, database).streams[database]


def test_unreadable_large_objects_are_refused_with_the_grant(
    postgres: PostgresServer, database: str, limited: str, tmp_path: Path
) -> None:
    postgres.execute("select lo_from_bytea(4711, 'x'::bytea)", database)
    with pytest.raises(SourceError, match="may not read 1 object of the large objects") as caught:
        take(postgres.url(user=limited), tmp_path, database)
    assert caught.value.details == ("large object 4711",)
    postgres.execute(caught.value.hints[0], database)
    taken = take(postgres.url(user=limited), tmp_path, database)
    assert taken.fingerprint(database)["large object"]["all"] == {"count": 1, "bytes": 1}
    assert (
        unexpected(taken.fingerprint(database), fingerprint_of(postgres, restore(postgres, taken.streams[database])))
        == []
    )


def test_what_a_dump_does_not_carry_is_a_warning(postgres: PostgresServer, objects: str, tmp_path: Path) -> None:
    with postgres.connect(objects) as connection:
        connection.execute("create table app.broken (a int); insert into app.broken values (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("create unique index concurrently broken_index on app.broken (a)")
    try:
        warnings = take(postgres.url(), tmp_path, objects).preflight.warnings
        assert "objects: foreign tables are carried without rows: app.far_away" in warnings
        assert "objects: invalid indexes are not carried by a dump: app.broken_index" in warnings
    finally:
        postgres.execute("drop table app.broken", objects)


def test_too_many_relations_for_the_lock_table(tmp_path: Path) -> None:
    with running_postgres(
        max_locks_per_transaction="10", max_connections="10", max_prepared_transactions="0"
    ) as server:
        server.execute("".join(f"create table t{n} (id int);" for n in range(60)))
        server.execute("".join(f"create view v{n} as select {n} as n;" for n in range(60)))
        taken = take(server.url(), tmp_path)
        assert taken.preflight.warnings[0].startswith("postgres: 120 relations to lock, and the server's lock table is")
        for start in range(0, 120, 20):
            server.execute("".join(f"create view w{n} as select {n} as n;" for n in range(start, start + 20)))
        with pytest.raises(SourceError, match=r"has 240 relations to lock, and .* made for 100") as caught:
            take(server.url(), tmp_path)
        assert "set max_locks_per_transaction = 88" in caught.value.hints[0]


def test_a_standby_is_dumped_but_not_with_unlogged_tables(tmp_path: Path) -> None:
    with running_postgres(max_wal_senders="4", wal_level="replica") as primary:
        name = primary.create_database("orders", "create table t as select generate_series(1, 1000) as id")
        with _standby_of(primary) as standby:
            taken = take(standby.url(), tmp_path, name)
            assert taken.details["server"]["standby"] is True
            assert any("the server is a standby" in line for line in taken.preflight.warnings)
            assert taken.fingerprint(name)["table"]["public.t"]["rows"] == 1000
            primary.execute("create unlogged table cache (id int)", name)
            with eventually(lambda: standby.execute("select to_regclass('cache') is not null", name) == [(True,)]):
                pass
            with pytest.raises(
                SourceError, match="unlogged tables of database orders are empty on a standby"
            ) as caught:
                take(standby.url(), tmp_path, name)
            assert caught.value.details == ("public.cache",)
            assert take(standby.url(), tmp_path, name, exclude_tables=("cache",)).streams[name]


@contextmanager
def _standby_of(primary: PostgresServer) -> Iterator[PostgresServer]:
    standby = PostgresServer(primary.folder / "standby", free_port(), primary.bin)
    subprocess.run(["install", "-d", "-m", "700", "-o", primary.folder.owner(), str(standby.folder)], check=True)
    copy = [str(primary.bin / "pg_basebackup"), "-h", str(primary.folder), "-p", str(primary.port), "-U", "postgres"]
    copy += ["-D", str(standby.folder / "data"), "-R", "-c", "fast"]
    subprocess.run(copy, check=True, capture_output=True, cwd=primary.folder, **as_server_user())
    with (standby.folder / "data" / "postgresql.conf").open("a") as config:
        config.write(f"port = {standby.port}\nunix_socket_directories = '{standby.folder}'\n")
    start = [
        str(primary.bin / "pg_ctl"),
        "-D",
        str(standby.folder / "data"),
        "-w",
        "-l",
        str(standby.folder / "log"),
        "start",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(start, check=True, cwd=standby.folder, **quiet, **as_server_user())
    try:
        yield standby
    finally:
        standby.stop()


# Locks ----------------------------------------------------------------------------------------------------------------


def test_a_blocked_table_ends_in_time_and_names_the_blocker(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    postgres.execute("create table orders (id int)", database)
    with psycopg.connect(postgres.url(database).reveal(), application_name="nightly vacuum") as blocker:
        blocker.execute("lock table orders; select 'a secret in a query'")
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"a table stayed locked for 0\.3 s") as caught:
            take(postgres.url(), tmp_path, database, lock_timeout_s=0.3)
        assert time.monotonic() - started < 15
        told = "\n".join([*caught.value.details, *caught.value.hints])
        assert "public.orders" in told
        assert f"pid {blocker.info.backend_pid}, role postgres, application 'nightly vacuum'" in told
        assert f"pg_terminate_backend({blocker.info.backend_pid})" in told
        assert "secret" not in told
    assert take(postgres.url(), tmp_path, database, lock_timeout_s=0.3).streams[database]


def test_a_prepared_transaction_that_blocks_is_named(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    postgres.execute("create table orders (id int)", database)
    postgres.execute("begin; lock table orders; prepare transaction 'forgotten one'", database)
    try:
        with pytest.raises(SourceError, match="stayed locked") as caught:
            take(postgres.url(), tmp_path, database, lock_timeout_s=0.2)
        assert any("prepared transaction 'forgotten one'" in line for line in caught.value.details)
    finally:
        postgres.execute("rollback prepared 'forgotten one'", database)


def test_ddl_that_arrives_between_our_locks_and_pg_dumps_is_let_through(
    postgres: PostgresServer, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump would wait for the ALTER TABLE, which waits for our snapshot: it is given up and taken again."""
    postgres.execute("create table orders (id int); insert into orders values (1)", database)
    gate = tmp_path / "gate"
    real = postgres.bin / "pg_dump"
    _fake_pg_dump(tmp_path, monkeypatch, f'while [ ! -e "{gate}" ]; do sleep 0.02; done; exec {real} "$@"')

    def alter() -> None:
        with eventually(lambda: _locks(postgres, database, "AccessShareLock")):
            postgres.execute("alter table orders add column note text default 'new'", database)

    def open_the_gate() -> None:
        with eventually(lambda: _locks(postgres, database, "AccessExclusiveLock")):
            gate.touch()

    threads = [threading.Thread(target=alter), threading.Thread(target=open_the_gate)]
    for thread in threads:
        thread.start()
    taken = take(postgres.url(), tmp_path, database, lock_timeout_s=1)
    for thread in threads:
        thread.join()
    assert "note" in taken.fingerprint(database)["table"]["public.orders"]["columns"]
    assert [child.exit_status for child in taken.children if child.tool == "pg_dump"] == [1, 0]


def _locks(postgres: PostgresServer, database: str, mode: str) -> bool:
    query = "select 1 from pg_locks where relation = to_regclass('public.orders') and mode = '{}'"
    return bool(postgres.execute(query.format(mode), database))


def test_a_table_that_was_just_rewritten_does_not_look_empty(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """TRUNCATE is not MVCC-safe: to a snapshot from before its commit the table has no rows, old or new."""
    postgres.execute("create table refilled as select generate_series(1, 100)", database)
    with postgres.connect(database) as writer:
        writer.execute("begin; truncate refilled; insert into refilled select generate_series(1, 70)")

        def commit_when_the_dump_waits() -> None:
            waiting = "select 1 from pg_locks where relation = 'refilled'::regclass and not granted"
            with eventually(lambda: postgres.execute(waiting, database)):
                writer.execute("commit")

        thread = threading.Thread(target=commit_when_the_dump_waits)
        thread.start()
        taken = take(postgres.url(), tmp_path, database)
        thread.join()
    assert taken.fingerprint(database)["table"]["public.refilled"]["rows"] == 70
    restored = restore(postgres, taken.streams[database])
    assert unexpected(taken.fingerprint(database), fingerprint_of(postgres, restored)) == []


# Children that fail ---------------------------------------------------------------------------------------------------


def _fake_pg_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    major, minor = postgres_version(postgres_bin() / "pg_dump")
    version = f'if [ "$1" = --version ]; then echo "pg_dump (PostgreSQL) {major}.{minor}"; exit 0; fi'
    (folder / "pg_dump").write_text(f"#!/bin/sh\n{version}\n{script}\n")
    (folder / "pg_dump").chmod(0o755)
    monkeypatch.setenv(FOLDERS_VARIABLE, str(folder))


FAILURES = {
    "exits with 1 after nine tenths": (
        '{real} "$@" | head -c 450000; echo "pg_dump: error: connection lost" >&2; exit 1',
        "pg_dump failed with exit status 1",
        "pg_dump: error: connection lost",
    ),
    "exits with 1 after the last byte": (
        '{real} "$@"; echo "pg_dump: error: at the very end" >&2; exit 1',
        "pg_dump failed with exit status 1",
        "at the very end",
    ),
    "hangs after some bytes": ('{real} "$@" | head -c 100000; exec sleep 600', "moved no byte for 2 s", ""),
    "hangs at once": ("exec sleep 600", "moved no byte for 2 s", ""),
    "floods stderr": (
        'head -c 104857600 /dev/zero | tr "\\0" "x" | fold -w 1000 >&2; echo "the last words" >&2; exit 3',
        "exit status 3",
        "the last words",
    ),
    "writes nothing": ("exit 0", "without a byte of output", ""),
    "writes something else": (
        "head -c 1000 /dev/zero",
        "is not an archive",
        "",
    ),
    "stops early without an error": ('{real} "$@" | head -c 450000', "has no end", ""),
    "is killed": ('{real} "$@" | head -c 100000; kill -9 $$', "was killed by signal SIGKILL", ""),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_pg_dump_is_never_taken_for_the_end(
    postgres: PostgresServer, chinook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    script, message, last_words = FAILURES[failure]
    _fake_pg_dump(tmp_path, monkeypatch, script.replace("{real}", str(postgres.bin / "pg_dump")))
    with pytest.raises(SourceError, match=message) as caught:
        take(postgres.url(), tmp_path, chinook, idle_timeout_s=2 if "hangs" in failure else 60)
    assert any(last_words in line for line in ["", *caught.value.details])
    assert len("\n".join(caught.value.details)) < 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    postgres.wait_for_end_of_sessions()


def test_a_flood_on_stderr_does_not_stop_a_good_dump(
    postgres: PostgresServer, chinook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = postgres.bin / "pg_dump"
    _fake_pg_dump(tmp_path, monkeypatch, f'head -c 104857600 /dev/zero >&2; exec {real} "$@"')
    assert take(postgres.url(), tmp_path, chinook).streams[chinook].startswith(b"PGDMP")


def test_a_server_that_dies_mid_dump_fails_the_backup(tmp_path: Path) -> None:
    with running_postgres() as server:
        # 60 MB: what the sockets hold, which grow to 10 MB, must not be all that is missing.
        name = server.create_database(
            "orders", "create table t as select repeat(md5(n::text), 30) from generate_series(1, 60000) as n"
        )
        options = BackupOptions(databases=(name,), work_folder=tmp_path, idle_timeout_s=20)

        def kill_in_the_middle() -> None:
            with (
                ENGINE.open_backup(server.tcp_url(), options) as session,
                session.open_part(session.preflight.parts[1]) as chunks,
            ):
                next(chunks)
                server.stop("immediate")
                for _ in chunks:
                    pass

        with pytest.raises(SourceError, match=r"pg_dump failed|ended the connection|closed the connection|was lost"):
            kill_in_the_middle()
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_that_fails_stops_the_stream(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    postgres.execute("create table t as select md5(n::text) as word from generate_series(1, 300000) as n", database)
    options = BackupOptions(databases=(database,), work_folder=tmp_path)

    def end_the_guard() -> None:
        with (
            ENGINE.open_backup(postgres.url(), options) as session,
            session.open_part(session.preflight.parts[1]) as chunks,
        ):
            next(chunks)
            postgres.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'drkit snapshot'"
            )
            for _ in chunks:
                pass

    with pytest.raises(SourceError, match=r"(ended|closed) the connection|fingerprint"):
        end_the_guard()
    assert list(tmp_path.iterdir()) == []


def test_leaving_early_ends_everything_at_once(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    postgres.execute("create table t as select md5(n::text) as word from generate_series(1, 400000) as n", database)
    options = BackupOptions(databases=(database,), work_folder=tmp_path)

    def leave() -> None:
        with (
            ENGINE.open_backup(postgres.url(), options) as session,
            session.open_part(session.preflight.parts[1]) as chunks,
        ):
            next(chunks)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        leave()
    assert time.monotonic() - started < 10
    query = "select count(*) from pg_stat_activity where datname = '{}' and application_name ~ 'drkit|pg_dump'"
    with eventually(lambda: postgres.execute(query.format(database)) == [(0,)]):
        pass


def test_an_archive_must_begin_and_end_as_one() -> None:
    good = b"PGDMP" + b"x" * 200 + b"\0" * 5
    assert b"".join(whole_archive(iter([good[:3], good[3:]]), "d")) == good
    for bad in (b"", b"PGDMP", good[:-1] + b"x", b"x" + good[1:], good[:-3] + b"\1\1\1"):
        with pytest.raises(SourceError):
            list(whole_archive(iter([bad] if bad else []), "d"))
    end = b"--\n-- PostgreSQL database cluster dump complete\n--\n"
    assert b"".join(whole_globals(iter([end[:20], end[20:]]))) == end
    for text in (b"", end[:30]):
        with pytest.raises(SourceError, match="closing line is missing"):
            list(whole_globals(iter([text])))


# Binaries -------------------------------------------------------------------------------------------------------------


def _program(folder: Path, tool: str, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / tool).write_text(f'#!/bin/sh\necho "{tool} (PostgreSQL) {version}"\n')
    (folder / tool).chmod(0o755)
    return folder / tool


def test_the_client_is_chosen_by_the_servers_major(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _program(tmp_path / "a", "pg_dump", "91.2")
    newer = _program(tmp_path / "b", "pg_dump", "91.10 (Debian 91.10-1)")
    next_major = _program(tmp_path / "c", "pg_dump", "93beta1")
    server = _program(tmp_path / "b", "initdb", "93.1")
    monkeypatch.setenv(FOLDERS_VARIABLE, ":".join(str(path.parent) for path in (old, newer, next_major)))
    assert postgres_binary("pg_dump", 91) == newer
    assert postgres_binary("pg_dump", 92) == next_major
    assert postgres_binary("initdb", 93) == server
    with pytest.raises(SourceError, match="initdb for PostgreSQL 92 is not installed") as caught:
        postgres_binary("initdb", 92)
    assert any("93.1" in line for line in caught.value.details)
    with pytest.raises(SourceError, match="pg_dump for PostgreSQL 94 is not installed") as caught:
        postgres_binary("pg_dump", 94)
    assert "apt install postgresql-client-94" in caught.value.hints


def test_a_program_that_is_not_postgresqls_is_refused(tmp_path: Path) -> None:
    odd = _program(tmp_path / "a", "pg_dump", "15.1")
    odd.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(SourceError, match="does not say which version"):
        postgres_version(odd)


def test_timescaledb_is_refused_by_name(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    # The real one is in no package here; what the preflight looks at is the extension's name.
    postgres.execute(
        "create extension citext; update pg_extension set extname = 'timescaledb' where extname = 'citext'", database
    )
    with pytest.raises(SourceError, match=f"database {database}: extension timescaledb needs calls") as caught:
        take(postgres.url(), tmp_path, database)
    assert any(database in hint for hint in caught.value.hints)
