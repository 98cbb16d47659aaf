"""Loading real dumps into real servers: equal afterwards, refused where it must be, nothing left where it failed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from drkit.credentials import Secret
from drkit.engines import BackupOptions, LoadResult, RestoreOptions
from drkit.engines import postgres_restore as restore_module
from drkit.engines.postgres_inventory import stable_expression
from drkit.engines.registry import find_engine
from drkit.errors import IntegrityError, SourceError
from drkit.fingerprint import compare_fingerprints, describe_difference
from drkit.sandboxes import SandboxRequest, ScratchServer
from drkit.sandboxes.postgres import PostgresSandbox
from drkit.units import MIB
from tests.fixtures.postgres import DATA, SUPERUSER, PostgresServer, postgres_bin
from tests.integration.test_sandbox import MAJOR, MemoryLedger

ENGINE = find_engine("postgres", "dump")
SECRET_PART = "test-pass"


@dataclass
class Taken:
    """A backup in memory: what `drkit.operations` would have stored."""

    details: dict[str, Any]
    parts: dict[str, list[bytes]]

    def part(self, label: str) -> str:
        """Return the name of the part of a database."""
        return next(name for name, facts in self.details["parts"].items() if facts["label"] == label)

    def only(self, *labels: str) -> Taken:
        """Return the backup narrowed down to some databases."""
        return Taken(self.details, {self.part(label): self.parts[self.part(label)] for label in labels})


def take(server: PostgresServer, work_folder: Path, *databases: str, user: str = SUPERUSER) -> Taken:
    parts = {}
    with ENGINE.open_backup(
        server.url(user=user), BackupOptions(databases=databases, work_folder=work_folder)
    ) as session:
        for part in session.preflight.parts:
            with session.open_part(part) as chunks:
                parts[part.name] = list(chunks)
        return Taken(session.details(), parts)


def restore(url: Secret, taken: Taken, work_folder: Path, **changes: Any) -> LoadResult:
    options = replace(RestoreOptions(taken.details, tuple(taken.parts), work_folder=work_folder), **changes)
    with ENGINE.open_restore(url, options) as session:
        for part, chunks in taken.parts.items():
            session.load(part, iter(chunks))
        return session.finish()


def differences(url: Secret, taken: Taken) -> list[str]:
    """Compare as a drill does."""
    found = ENGINE.fingerprint(url, RestoreOptions(taken.details, tuple(taken.parts), scratch=True))
    return [
        describe_difference(item)
        for part in taken.parts
        for item in compare_fingerprints(taken.details["parts"][part]["fingerprint"], found[part], lambda _: "")
    ]


def schema_of(url: Secret, database: str, *options: str) -> list[str]:
    """Return pg_dump's sorted schema of a database, without what differs from run to run."""
    target = re.sub(r"/[^/?]*\?", f"/{database}?", url.reveal())
    argv = [str(postgres_bin() / "pg_dump"), "--schema-only", *options, "-d", target]
    done = subprocess.run(argv, capture_output=True, check=True)
    lines = done.stdout.decode(errors="replace").splitlines()
    kept = (line for line in lines if line and not line.startswith(("--", "\\restrict", "\\unrestrict")))
    return sorted(stable_expression(line) for line in kept)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def sources(postgres: PostgresServer, chinook: str) -> Iterator[list[str]]:
    """Make databases of every kind that a server may hold."""
    made = ["objects", "latin", "bytes", "icu", "odd \"name\" = 'x' %20"]
    postgres.create_database("objects")
    postgres.load(DATA / "objects.sql", "objects")
    postgres.create_database("latin", options="encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'")
    postgres.execute("set client_encoding = 'UTF8'; create table t as select 'é ß ÿ'::text as word", "latin")
    postgres.create_database("bytes", options="encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'")
    postgres.execute(r"create table t as select E'\xe9\xff'::text as word", "bytes")
    postgres.create_database("icu", options="locale_provider icu icu_locale 'de-u-co-phonebk' locale 'C.UTF-8'")
    postgres.execute("create table t (word text primary key); insert into t values ('Ärger'), ('Zebra')", "icu")
    postgres.create_database(made[-1], "create table t as select 1 as one")
    yield [chinook, *made]
    for name in made:
        postgres.drop_database(name)


@pytest.fixture(scope="module")
def everything(postgres: PostgresServer, sources: list[str], work: Path) -> Taken:
    return take(postgres, work, *sources)


@pytest.fixture(scope="module")
def small(postgres: PostgresServer, work: Path) -> Iterator[Taken]:
    """Back up a small database of which the details of a load can be seen."""
    postgres.execute("drop role if exists small_owner; create role small_owner nologin")
    name = postgres.create_database("small", SMALL)
    postgres.execute("alter database small owner to small_owner; alter database small set work_mem = '7MB'")
    yield take(postgres, work, name).only(name)
    postgres.drop_database(name)
    postgres.execute("drop role small_owner")


SMALL = """
create schema shop authorization small_owner;
create table shop.orders (id integer primary key, note text);
insert into shop.orders select n, repeat('x', 200) from generate_series(1, 20000) as n;
alter table shop.orders owner to small_owner;
create table "Plain" (id serial, "Value" text);
insert into "Plain" ("Value") values ('a'), ('b');
select lo_from_bytea(0, '\\x00ff'::bytea);
"""


@contextmanager
def sandbox(work: Path) -> Iterator[ScratchServer]:
    with PostgresSandbox().open(SandboxRequest(MAJOR, 100 * MIB, work), MemoryLedger()) as server:
        yield server


@pytest.fixture(scope="module")
def scratch(work: Path) -> Iterator[ScratchServer]:
    with sandbox(work) as server:
        yield server


@pytest.mark.parametrize("staged", [True, False])
def test_everything_comes_back_equal(postgres: PostgresServer, everything: Taken, work: Path, staged: bool) -> None:
    with sandbox(work) as scratch:
        stage_folder = scratch.stage_folder if staged else None
        loaded = restore(scratch.url, everything, work, scratch=True, stage_folder=stage_folder)
        assert loaded.warnings == []
        assert set(loaded.loaded) == set(everything.parts)
        assert differences(scratch.url, everything) == []
        for label in ("chinook", "objects", "latin", "bytes", "icu"):
            restored = schema_of(scratch.url, label, "--create")
            assert restored == schema_of(postgres.url(), label, "--create")
        assert list(scratch.stage_folder.iterdir()) == []


def test_a_load_that_lost_a_row_is_seen(everything: Taken, scratch: ScratchServer, work: Path) -> None:
    chinook = everything.only("chinook")
    restore(scratch.url, chinook, work, scratch=True)
    url = Secret(scratch.url.reveal().replace("/postgres?", "/chinook?"))
    run_sql(url, "delete from playlist_track where playlist_id = 1 and track_id = 1")
    assert differences(url, chinook) == [
        "table public.playlist_track: digest differs",
        "table public.playlist_track: 8,714 rows, 8,715 at backup time",
    ]


def run_sql(url: Secret, statement: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url.reveal(), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_a_missing_database_is_made_with_owner_and_settings(
    postgres: PostgresServer, small: Taken, tmp_path: Path
) -> None:
    loaded = restore(postgres.tcp_url("small_copy"), small, tmp_path)
    try:
        assert loaded.loaded == {small.part("small"): f"127.0.0.1:{postgres.port}/small_copy"}
        assert postgres.execute("select count(*) from shop.orders", "small_copy") == [(20000,)]
        query = "select pg_get_userbyid(datdba) from pg_database where datname = 'small_copy'"
        assert postgres.execute(query) == [("small_owner",)]
        assert postgres.execute("show work_mem", "small_copy") == [("7MB",)]
        analyzed = "select reltuples > 0 from pg_class where relname = 'orders'"
        assert postgres.execute(analyzed, "small_copy") == [(True,)]
        assert schema_of(postgres.url(), "small_copy") == schema_of(postgres.url(), "small")
    finally:
        postgres.drop_database("small_copy")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_role_that_connects_change_nothing_in_a_backup_and_its_restore(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    postgres.execute(
        r"""
        create table "ж" (words text[], note text);
        insert into "ж" values ('{NULL,"NULL",x}', E'a\\b\n\\.\nc');
        select lo_from_bytea(0, '\x00ff'::bytea)""",
        database,
    )
    postgres.execute("create role moody superuser login")
    try:
        for setting in (
            "client_encoding = 'LATIN1'",
            "standard_conforming_strings = off",
            "array_nulls = off",
            "quote_all_identifiers = on",
            "default_transaction_isolation = 'serializable'",
            "bytea_output = 'escape'",
            "lock_timeout = '1ms'",
        ):
            postgres.execute(f"alter role moody set {setting}")
        taken = take(postgres, tmp_path, database, user="moody").only(database)
        restore(postgres.url("moody_copy", "moody"), taken, tmp_path, jobs=1)
        same = r"""select words[1] is null and words[2] = 'NULL' and note = E'a\\b\n\\.\nc' from "ж" """
        assert postgres.execute(same, "moody_copy") == [(True,)]
    finally:
        postgres.drop_database("moody_copy")
        postgres.execute("drop role moody")


def test_every_setting_of_a_database_comes_back_whatever_the_others_forbid(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    settings = {"default_transaction_read_only": "on", "search_path": "nowhere", "work_mem": "7MB"}
    for name, value in settings.items():
        postgres.execute(f"alter database {database} set {name} = '{value}'")
    taken = take(postgres, tmp_path, database).only(database)
    try:
        loaded = restore(postgres.url("strict_copy"), taken, tmp_path)
        assert loaded.warnings == []
        for name, value in settings.items():
            assert postgres.execute(f"show {name}", "strict_copy") == [(value,)]
    finally:
        postgres.drop_database("strict_copy")


def test_an_empty_database_is_filled_and_keeps_what_is_its_own(
    postgres: PostgresServer, small: Taken, database: str, tmp_path: Path
) -> None:
    postgres.execute(f"alter database {database} set work_mem = '9MB'")
    restore(postgres.url(database), small, tmp_path)
    assert postgres.execute("select count(*) from shop.orders", database) == [(20000,)]
    assert postgres.execute("show work_mem", database) == [("9MB",)]


def test_several_databases_go_to_their_own_names(postgres: PostgresServer, everything: Taken, tmp_path: Path) -> None:
    two = everything.only("latin", "icu")
    for label in ("latin", "icu"):
        postgres.execute(f"alter database {label} rename to {label}_before")
    try:
        loaded = restore(postgres.url(), two, tmp_path)
        assert sorted(loaded.loaded.values()) == [
            f"{postgres.folder}:{postgres.port}/{name}" for name in ("icu", "latin")
        ]
        assert differences(postgres.url(), two) == []
    finally:
        for label in ("latin", "icu"):
            postgres.drop_database(label)
            postgres.execute(f"alter database {label}_before rename to {label}")


def test_several_databases_into_one_are_refused(postgres: PostgresServer, everything: Taken, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has 2 databases, and the target's url names one: x"):
        restore(postgres.url("x"), everything.only("latin", "icu"), tmp_path)


def test_globals_are_not_applied_to_a_server_of_a_user(
    postgres: PostgresServer, everything: Taken, tmp_path: Path
) -> None:
    only_globals = Taken(everything.details, {"globals": [b"syntax error"]})
    loaded = restore(postgres.url(), only_globals, tmp_path)
    assert "not applied" in loaded.loaded["globals"]


def test_a_filled_target_is_refused_and_named_as_the_source(
    postgres: PostgresServer, small: Taken, chinook: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        restore(postgres.tcp_url(chinook), small, tmp_path)
    message = caught.value.message
    assert f"the target 127.0.0.1:{postgres.port}/{chinook} is not empty (11 tables)" in message
    assert "its server is the source of this backup (system identifier …" in message
    assert caught.value.hints == (f"restore beside it: --to postgresql://127.0.0.1:{postgres.port}/{chinook}_restored",)
    elsewhere = {**small.details, "server": {**small.details["server"], "system_identifier": "1"}}
    with pytest.raises(SourceError) as caught:
        restore(postgres.tcp_url(chinook), Taken(elsewhere, small.parts), tmp_path)
    assert "source" not in caught.value.message


@pytest.mark.parametrize(
    ("statement", "held"),
    [
        ("create view v as select 1", "view public.v"),
        ("create function f() returns integer language sql as 'select 1'", "function public.f()"),
        ("create schema s", "schema s"),
        ("create type mood as enum ('a')", "type public.mood"),
        ("create sequence s", "sequence public.s"),
        ("select lo_create(4711)", "large object 4711"),
    ],
)
def test_a_target_without_tables_may_still_be_filled(
    postgres: PostgresServer, small: Taken, database: str, tmp_path: Path, statement: str, held: str
) -> None:
    postgres.execute(statement, database)
    with pytest.raises(SourceError, match="is not empty") as caught:
        restore(postgres.url(database), small, tmp_path)
    assert held in caught.value.message


def test_an_extension_in_the_target_does_not_fill_it(
    postgres: PostgresServer, small: Taken, database: str, tmp_path: Path
) -> None:
    postgres.execute("create extension hstore", database)
    restore(postgres.url(database), small, tmp_path)


def test_an_older_server_is_refused(postgres: PostgresServer, small: Taken, tmp_path: Path) -> None:
    newer = {**small.details, "server": {**small.details["server"], "major": 99, "version": "99.1"}}
    with pytest.raises(SourceError, match=r"runs PostgreSQL 15\.\d+, the backup is of 99\.1"):
        restore(postgres.url("nowhere"), Taken(newer, small.parts), tmp_path)


def test_all_missing_extensions_and_roles_are_listed(postgres: PostgresServer, small: Taken, tmp_path: Path) -> None:
    part = small.part("small")
    facts = small.details["parts"][part]
    fingerprint = {
        "extension": {"no_such_thing": {"version": "2.1", "schema": "public"}, "plpgsql": {"version": "1.0"}},
        "table": {"public.t": {"owner": "no_owner", "acl": '"no ""grantee"""=r/no_owner =r/no_owner small_owner=r/x'}},
    }
    details = {**small.details, "parts": {part: {**facts, "fingerprint": fingerprint}}}
    with pytest.raises(SourceError, match="lacks what the backup needs: 3 things") as caught:
        restore(postgres.url("nowhere"), Taken(details, small.parts), tmp_path)
    assert caught.value.details == ("extension no_such_thing 2.1", 'role no "grantee"', "role no_owner")
    assert 'create role "no ""grantee""";' in caught.value.hints
    assert postgres.execute("select count(*) from pg_database where datname = 'nowhere'") == [(0,)]


def cut(chunks: Sequence[bytes], size_bytes: int) -> list[bytes]:
    return [b"".join(chunks)[:size_bytes]]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_archive_leaves_nothing(postgres: PostgresServer, small: Taken, tmp_path: Path, share: float) -> None:
    part, chunks = next(iter(small.parts.items()))
    size_bytes = int(len(b"".join(chunks)) * share)
    with pytest.raises(SourceError) as caught:
        restore(postgres.url("cut"), Taken(small.details, {part: cut(chunks, size_bytes)}), tmp_path)
    assert "cut" in caught.value.message
    assert caught.value.details
    assert postgres.execute("select count(*) from pg_database where datname = 'cut'") == [(0,)]
    assert list(tmp_path.iterdir()) == []


def test_a_cut_archive_leaves_nothing_in_a_scratch_server(small: Taken, scratch: ScratchServer, work: Path) -> None:
    part, chunks = next(iter(small.parts.items()))
    half = Taken(small.details, {part: cut(chunks, len(b"".join(chunks)) // 2)})
    for stage_folder in (scratch.stage_folder, None):
        with pytest.raises(SourceError):
            restore(scratch.url, half, work, scratch=True, stage_folder=stage_folder)
        assert run_sql(scratch.url, "select count(*) from pg_database where datname = 'small'") == [(0,)]
        assert list(scratch.stage_folder.iterdir()) == []


def test_damage_on_the_way_is_the_error_and_leaves_nothing(
    postgres: PostgresServer, small: Taken, tmp_path: Path
) -> None:
    def damaged() -> Iterator[bytes]:
        yield from small.parts[part][:2]
        raise IntegrityError("object database-1 has another digest")

    part = small.part("small")
    options = RestoreOptions(small.details, (part,), work_folder=tmp_path)
    stopped = pytest.raises(IntegrityError, match="another digest")
    with ENGINE.open_restore(postgres.url("damaged"), options) as session, stopped:
        session.load(part, damaged())
    assert postgres.execute("select count(*) from pg_database where datname = 'damaged'") == [(0,)]


def test_damage_after_the_last_row_is_still_seen(postgres: PostgresServer, small: Taken, tmp_path: Path) -> None:
    def damaged_at_the_end() -> Iterator[bytes]:
        yield from small.parts[part]
        raise IntegrityError("object database-1 is longer than recorded")

    part = small.part("small")
    options = RestoreOptions(small.details, (part,), work_folder=tmp_path, tables=("shop.orders",))
    stopped = pytest.raises(IntegrityError, match="longer than recorded")
    with ENGINE.open_restore(postgres.url("damaged"), options) as session, stopped:
        session.load(part, damaged_at_the_end())
    assert postgres.execute("select count(*) from pg_database where datname = 'damaged'") == [(0,)]


def test_rows_that_the_server_refuses_stop_the_load_at_once(postgres: PostgresServer, work: Path) -> None:
    name = postgres.create_database("picky", PICKY)
    try:
        taken = take(postgres, work, name).only(name)
    finally:
        postgres.drop_database(name)
    for jobs in (1, 2):
        with pytest.raises(SourceError, match=r"picky could not be loaded: .*violates check constraint"):
            restore(postgres.url("picky"), taken, work, jobs=jobs, idle_timeout_s=20)
        assert postgres.execute("select count(*) from pg_database where datname = 'picky'") == [(0,)]


PICKY = """
create function is_fine() returns boolean language sql
    as $$ select coalesce(current_setting('picky.fine', true), '') = 'yes' $$;
create table t (id integer, filler text, check (is_fine()));
set picky.fine = 'yes';
insert into t select n, repeat('x', 1000) from generate_series(1, 20000) as n;
"""


def test_long_rows_and_many_small_tables_come_back_equal(
    postgres: PostgresServer, work: Path, scratch: ScratchServer
) -> None:
    name = postgres.create_database("shapes", SHAPES)
    try:
        taken = take(postgres, work, name).only(name)
    finally:
        postgres.drop_database(name)
    restore(scratch.url, taken, work, scratch=True)
    assert differences(scratch.url, taken) == []


SHAPES = r"""
create table long (id integer, filler text);
insert into long select n, repeat(E'\\\n\\.\n', 4000000) from generate_series(1, 2) as n;
insert into long values (3, E'\\.'), (4, ''), (5, null);
do $$ begin
    for n in 1..50 loop
        execute format('create table small_%s as select g as id from generate_series(1, %s) as g', n, n % 3);
    end loop;
end $$;
"""


def test_a_database_that_was_there_is_left_and_named(
    postgres: PostgresServer, small: Taken, database: str, tmp_path: Path
) -> None:
    part, chunks = next(iter(small.parts.items()))
    half = cut(chunks, len(b"".join(chunks)) // 2)
    with pytest.raises(SourceError) as caught:
        restore(postgres.url(database), Taken(small.details, {part: half}), tmp_path)
    assert any(f"{database} was there before; it is left with a part" in line for line in caught.value.details)
    assert postgres.execute(f"select count(*) from pg_database where datname = '{database}'") == [(1,)]


def test_one_table_comes_back_with_its_rows(
    postgres: PostgresServer, small: Taken, database: str, tmp_path: Path
) -> None:
    postgres.execute("create table mine (id integer)", database)
    loaded = restore(postgres.url(database), small, tmp_path, tables=("Plain", "shop.orders"))
    assert postgres.execute('select "Value" from "Plain" order by 1', database) == [("a",), ("b",)]
    assert postgres.execute("select count(*) from shop.orders", database) == [(20000,)]
    assert any("table shop.orders came with columns and rows only" in line for line in loaded.warnings)
    with pytest.raises(SourceError, match=r'public\."Plain" is already there'):
        restore(postgres.url(database), small, tmp_path, tables=('public."Plain"',))


def test_a_table_that_is_not_in_the_backup_is_refused(
    postgres: PostgresServer, small: Taken, database: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"has no table shop\.order"):
        restore(postgres.url(database), small, tmp_path, tables=("shop.order",))


def test_views_that_fail_are_warnings_and_event_triggers_come_last(
    postgres: PostgresServer, work: Path, scratch: ScratchServer
) -> None:
    name = postgres.create_database("views", VIEWS)
    try:
        taken = take(postgres, work, name).only(name)
    finally:
        postgres.drop_database(name)
    loaded = restore(scratch.url, taken, work, scratch=True, stage_folder=scratch.stage_folder)
    url = Secret(scratch.url.reveal().replace("/postgres?", "/views?"))
    assert loaded.warnings == [
        'materialized view public.broken could not be refreshed and is empty: relation "t" does not exist'
    ]
    assert run_sql(url, "select * from a_second") == [(2,)], "a view of a view, named before it"
    assert run_sql(url, "select relispopulated from pg_class where relname = 'left_empty'") == [(False,)]
    assert run_sql(url, "select count(*) from fired") == [(0,)]
    run_sql(url, "create table later ()")
    assert run_sql(url, "select count(*) > 0 from fired") == [(True,)]


VIEWS = """
create table t as select 1 as one;
create table fired (what text);
create function needs_a_path() returns bigint language plpgsql as 'begin return (select count(*) from t); end';
create materialized view broken as select needs_a_path() as n;
create materialized view z_first as select one + 1 as two from t;
create materialized view a_second as select two from z_first;
create materialized view left_empty as select one from t with no data;
create function note() returns event_trigger language plpgsql
    as 'begin insert into public.fired values (tg_tag); end';
create event trigger on_ddl on ddl_command_end execute function note();
alter event trigger on_ddl enable always;
"""


def test_a_missing_extension_is_left_out_of_a_scratch_server(
    postgres: PostgresServer, work: Path, scratch: ScratchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.create_database("extended", "create extension hstore; create extension citext; create table t ()")
    try:
        taken = take(postgres, work, name).only(name)
    finally:
        postgres.drop_database(name)
    real = restore_module.available_extensions
    without = lambda connection: {key: value for key, value in real(connection).items() if key != "hstore"}  # noqa: E731
    monkeypatch.setattr(restore_module, "available_extensions", without)
    loaded = restore(scratch.url, taken, work, scratch=True)
    assert loaded.warnings == ["extension hstore left out: not installed here"]
    url = Secret(scratch.url.reveal().replace("/postgres?", "/extended?"))
    assert run_sql(url, "select extname::text from pg_extension order by 1") == [("citext",), ("plpgsql",)]


def test_roles_that_no_globals_made_are_made_in_a_scratch_server(small: Taken, work: Path) -> None:
    with sandbox(work) as server:
        loaded = restore(server.url, small, work, scratch=True)
        assert loaded.warnings == ["role small_owner is not in the backup's globals and was made without login"]
        assert differences(server.url, small) == []


def test_a_role_that_is_no_superuser_restores_its_own(postgres: PostgresServer, work: Path, tmp_path: Path) -> None:
    postgres.execute("create role plain_owner login createdb password 'test-pass'")
    try:
        postgres.create_database("owned", "create table t as select 1 as one; create view v as select one from t")
        postgres.execute("alter database owned owner to plain_owner")
        postgres.execute("alter table t owner to plain_owner; alter view v owner to plain_owner", "owned")
        taken = take(postgres, work, "owned").only("owned")
        restore(postgres.tcp_url("owned_copy", "plain_owner", "test-pass"), taken, tmp_path)
        assert postgres.execute("select one from v", "owned_copy") == [(1,)]
    finally:
        for name in ("owned", "owned_copy"):
            postgres.drop_database(name)
        postgres.execute("drop role plain_owner")


def test_tools_are_told_no_password(postgres: PostgresServer, small: Taken, tmp_path: Path) -> None:
    seen: set[str] = set()

    def watched() -> Iterator[bytes]:
        for chunk in small.parts[part]:
            yield chunk
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if (process / "exe").readlink().name == "pg_restore":
                        seen.add((process / "cmdline").read_text() + (process / "environ").read_text())
                except OSError:
                    continue

    part = small.part("small")
    options = RestoreOptions(small.details, (part,), work_folder=tmp_path)
    try:
        with ENGINE.open_restore(postgres.tcp_url("watched"), options) as session:
            session.load(part, watched())
            session.finish()
    finally:
        postgres.drop_database("watched")
    assert seen
    assert not any(SECRET_PART in text for text in seen)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("select count(*) from track", 3503),
        ("select count(*) > 5 from track", True),
        ("select 0.5", 0.5),
        ("select date '2026-11-22'", "2026-11-22"),
        ("select null", None),
    ],
)
def test_a_check_answers_with_one_value(chinook: str, postgres: PostgresServer, query: str, answer: object) -> None:
    assert ENGINE.run_check(postgres.url(), {"label": chinook}, query) == answer


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("select 1, 2", "1 row of 2 columns"),
        ("select genre_id from genre", "several rows of 1 columns"),
        ("select 1 where false", "0 rows of 1 columns"),
        ("select nonsense", 'column "nonsense" does not exist'),
    ],
)
def test_a_check_that_answers_otherwise_fails(
    chinook: str, postgres: PostgresServer, query: str, complaint: str
) -> None:
    with pytest.raises(SourceError, match=re.escape(complaint)):
        ENGINE.run_check(postgres.url(), {"label": chinook}, query)
