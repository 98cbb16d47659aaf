"""What a PostgreSQL backup holds and records: every kind of object, exactly, while others write."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drkit.canonical import canonical_json
from drkit.credentials import Secret
from drkit.engines import BackupOptions, BackupSession
from drkit.engines.postgres_client import connect, parse_url
from drkit.engines.postgres_expected import expected_after_dump
from drkit.engines.postgres_fingerprint import fingerprint_database
from drkit.engines.registry import find_engine
from drkit.errors import DrkitError, SourceError
from drkit.fingerprint import compare_fingerprints
from drkit.model import Difference, Fingerprint
from tests.fixtures.postgres import PASSWORD, PostgresServer

ENGINE = find_engine("postgres", "dump")


class Taken:
    """A backup in memory."""

    def __init__(self, session: BackupSession) -> None:
        self.preflight = session.preflight
        self.streams: dict[str, bytes] = {}
        for part in session.preflight.parts:
            with session.open_part(part) as chunks:
                self.streams[part.label] = b"".join(chunks)
        self.children = session.children
        self.snapshot_at = session.snapshot_at
        self.details = session.details()
        self.by_label = {entry["label"]: entry for entry in self.details["parts"].values()}

    def fingerprint(self, database: str) -> Fingerprint:
        """Return what was recorded of a database."""
        recorded: Fingerprint = self.by_label[database]["fingerprint"]
        return recorded


def take(url: Secret, work_folder: Path, *databases: str, **options: Any) -> Taken:
    """Take a backup of ``databases`` and keep it in memory."""
    with ENGINE.open_backup(url, BackupOptions(databases=databases, work_folder=work_folder, **options)) as session:
        return Taken(session)


def restore(postgres: PostgresServer, archive: bytes, options: str = "") -> str:
    """Load an archive with stock pg_restore into a new database and return its name."""
    name = postgres.create_database(options=options)
    command = [str(postgres.bin / "pg_restore"), "--exit-on-error", "-d", postgres.url(name).reveal()]
    done = subprocess.run(command, input=archive, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return name


def fingerprint_of(postgres: PostgresServer, database: str, **options: Any) -> Fingerprint:
    """Take the fingerprint of a database of the test server."""
    with connect(parse_url(postgres.url()), database) as connection:
        return fingerprint_database(connection, **options)


def unexpected(expected: Fingerprint, actual: Fingerprint) -> list[Difference]:
    """Return the differences that a dump does not explain; per-database settings need pg_restore --create."""
    found = compare_fingerprints(expected, actual, expected_after_dump)
    return [item for item in found if not item.expected_by and item.kind != "database setting"]


def schema_lines(postgres: PostgresServer, database: str) -> list[str]:
    """Return a sorted plain schema dump, without the lines that PostgreSQL respells or makes up each time."""
    command = [str(postgres.bin / "pg_dump"), "--schema-only", "-d", postgres.url(database).reveal()]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sorted(line for line in text.splitlines() if not re.search(r"ANY \(|^\\(un)?restrict", line))


def test_every_kind_of_object_comes_back_as_recorded(postgres: PostgresServer, objects: str, tmp_path: Path) -> None:
    taken = take(postgres.url(), tmp_path, objects)
    restored = restore(postgres, taken.streams[objects])
    assert unexpected(taken.fingerprint(objects), fingerprint_of(postgres, restored)) == []
    assert schema_lines(postgres, restored) == schema_lines(postgres, objects)


def test_the_record_names_every_kind(postgres: PostgresServer, objects: str, tmp_path: Path) -> None:
    recorded = take(postgres.url(), tmp_path, objects).fingerprint(objects)
    kinds = """cast, collation, comment, constraint, database, database setting, default privileges, event trigger,
        extension, foreign server, function, index, large object, materialized view, operator, operator class, policy,
        publication, rule, schema, sequence, statistics, subscription, table, text search, trigger, type, user mapping,
        view"""
    assert set(recorded) == {" ".join(kind.split()) for kind in kinds.split(",")}
    tables = recorded["table"]
    assert tables["app.nothing"]["rows"] == 2
    assert tables["app.cache"]["persistence"] == "unlogged"
    assert "rows" not in tables["app.measurement"]
    assert (
        sum(tables[name].get("rows", 0) for name in tables if name.startswith(("app.measurement", "app.attached")))
        == 1501
    )
    assert tables["app.parent"]["rows"] == 2, "a parent counts only its own rows"
    assert tables["app.hashed_by_enum"]["rows"] == 50
    assert "rows" not in tables["app.far_away"]
    assert (
        recorded["sequence"]["app.positioned"] | {"last_value": 77, "is_called": False}
        == recorded["sequence"]["app.positioned"]
    )
    assert recorded["large object"]["all"]["count"] == 3
    assert recorded["large object"]["all"]["bytes"] == 13000 + 0 + 100005


def test_the_details_are_canonical_json_without_a_secret(
    postgres: PostgresServer, objects: str, tmp_path: Path
) -> None:
    taken = take(postgres.tcp_url(), tmp_path, objects)
    text = canonical_json(taken.details).decode()
    for secret in (PASSWORD, "fdw-secret", "subscription-secret", "reader-secret", "SCRAM-SHA-256"):
        assert secret not in text
    assert taken.details["server"]["major"] == 15


CHANGES = [
    ("delete from app.employee where id = 12", "table", "app.employee", "rows"),
    ("update app.every_value set unlimited = null where unlimited = ''", "table", "app.every_value", "digest"),
    (
        "update app.every_value set raw = set_byte(raw, 3, 7) where length(raw) > 99",
        "table",
        "app.every_value",
        "digest",
    ),
    ("update app.every_value set double = 0.3 where id = 2", "table", "app.every_value", "digest"),
    ("update app.every_value set fixed = 'pad' || chr(9) where id = 1", "table", "app.every_value", "digest"),
    ("update app.two_hundred_columns set \"col 199\" = 'x'", "table", "app.two_hundred_columns", "digest"),
    ('update app."日本語" set "名前" = null where "名前" = \'\'', "table", 'app."日本語"', "digest"),
    ("insert into app.nothing default values", "table", "app.nothing", "rows"),
    ("delete from only app.parent where id = 1", "table", "app.parent", "rows"),
    ("update app.hashed_by_enum set n = 99 where n = 1", "table", "app.hashed_by_enum", "digest"),
    ("alter table app.accounts disable row level security", "table", "app.accounts", "row_security"),
    ("alter table app.accounts no force row level security", "table", "app.accounts", "forced_row_security"),
    ("grant delete on app.accounts to objects_reader", "table", "app.accounts", "acl"),
    ("grant select (id) on app.accounts to objects_reader", "table", "app.accounts", "column_acl"),
    ("alter table app.logged owner to objects_owner", "table", "app.logged", "owner"),
    ("alter table app.logged alter column at set default 5", "table", "app.logged", "columns"),
    ("alter table app.logged alter column what set not null", "table", "app.logged", "columns"),
    ("alter table app.measurement detach partition app.measurement_2020", "table", "app.measurement_2020", "bound"),
    ("alter table app.cache set logged", "table", "app.cache", "persistence"),
    ("drop table app.logged cascade", "table", "app.logged", "presence"),
    ("drop policy own_rows on app.accounts", "policy", "app.accounts.own_rows", "presence"),
    ("alter policy only_small on app.accounts using (balance < 11)", "policy", "app.accounts.only_small", "condition"),
    ("select nextval('app.never_called')", "sequence", "app.never_called", "is_called"),
    ("alter sequence app.counter no cycle", "sequence", "app.counter", "cycle"),
    ("drop index app.partial_unique", "index", "app.partial_unique", "presence"),
    (
        "alter table app.employee drop constraint employee_room_excl",
        "constraint",
        "app.employee.employee_room_excl",
        "presence",
    ),
    ("alter table app.employee enable trigger disabled_one", "trigger", "app.employee.disabled_one", "enabled"),
    ("alter event trigger disabled_watch enable", "event trigger", "disabled_watch", "enabled"),
    (
        "create or replace function app.twice(n integer) returns integer language sql immutable as 'select n * 3'",
        "function",
        "app.twice(n integer)",
        "source",
    ),
    ("grant execute on function app.guarded() to public", "function", "app.guarded()", "acl"),
    ("alter type app.mood rename value 'ok' to 'fine'", "type", "app.mood", "definition"),
    ("alter domain app.positive drop constraint is_positive", "constraint", "app.positive.is_positive", "presence"),
    (
        "create or replace view app.on_matview as select max + 1 as max from app.of_the_other",
        "view",
        "app.on_matview",
        "definition",
    ),
    ("refresh materialized view app.not_filled", "materialized view", "app.not_filled", "populated"),
    ("drop extension hstore cascade", "extension", "hstore", "presence"),
    ("alter publication some_tables drop table app.employee", "publication", "some_tables", "tables"),
    (
        "alter default privileges for role objects_owner in schema app revoke select on tables from objects_reader",
        "default privileges",
        "objects_owner in app on r",
        "presence",
    ),
    ("comment on schema app is null", "comment", "schema app", "presence"),
    ("select lo_unlink(70002)", "large object", "all", "count"),
    ("select lo_put(70001, 5, 'X')", "large object", "all", "digest"),
    ("select lo_put(70003, 200000, 'X')", "large object", "all", "bytes"),
    (
        "alter subscription sleeping set publication other with (refresh = false)",
        "subscription",
        "sleeping",
        "publications",
    ),
    (
        "alter text search configuration app.simple_search drop mapping for asciiword",
        "text search",
        "configuration app.simple_search",
        "definition",
    ),
]


@pytest.fixture(scope="module")
def recorded_objects(postgres: PostgresServer, objects: str) -> Fingerprint:
    return fingerprint_of(postgres, objects)


@pytest.mark.parametrize(("change", "kind", "name", "fact"), CHANGES)
def test_every_change_is_noticed_and_named(
    postgres: PostgresServer, objects: str, recorded_objects: Fingerprint, change: str, kind: str, name: str, fact: str
) -> None:
    with connect(parse_url(postgres.url()), objects) as connection:
        connection.execute("begin")
        connection.execute("set local search_path = pg_catalog, ext")
        connection.execute(change.encode())
        connection.execute("set local search_path = pg_catalog")
        changed = fingerprint_database(connection)
        connection.execute("rollback")
    found = compare_fingerprints(recorded_objects, changed, expected_after_dump)
    assert (kind, name, fact) in [(item.kind, item.name, item.fact) for item in found if not item.expected_by]
    postgres.execute("select setval('app.never_called', 42, false)", objects)


def test_an_unchanged_database_has_no_difference(
    postgres: PostgresServer, objects: str, recorded_objects: Fingerprint
) -> None:
    assert compare_fingerprints(recorded_objects, fingerprint_of(postgres, objects), expected_after_dump) == []


def test_counts_mode_reads_no_digests(postgres: PostgresServer, chinook: str, tmp_path: Path) -> None:
    tables = take(postgres.url(), tmp_path, chinook, fingerprint="counts").fingerprint(chinook)["table"]
    assert tables["public.track"]["rows"] == 3503
    assert not any("digest" in facts for facts in tables.values())


def test_chinook_comes_back_equal(postgres: PostgresServer, chinook: str, tmp_path: Path) -> None:
    taken = take(postgres.url(), tmp_path, chinook)
    restored = restore(postgres, taken.streams[chinook])
    assert unexpected(taken.fingerprint(chinook), fingerprint_of(postgres, restored)) == []
    assert schema_lines(postgres, restored) == schema_lines(postgres, chinook)
    assert [(child.tool, child.exit_status) for child in taken.children] == [("pg_dumpall", 0), ("pg_dump", 0)]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_databases_in_other_encodings(postgres: PostgresServer, tmp_path: Path, encoding: str) -> None:
    options = f"encoding '{encoding}' locale 'C'"
    name = postgres.create_database(options=options)
    with connect(parse_url(postgres.url()), name) as connection:
        if encoding == "LATIN1":
            connection.execute(
                'create table public."prénom" ("âge" text); insert into public."prénom" values (\'é\'), (\'ÿ\')'
            )
        else:
            connection.execute(b'create table public."pr\xe9nom" ("\xff" text)')
            connection.execute(b"insert into public.\"pr\xe9nom\" values ('\xe9'), ('\xc3\xa9'), ('\xfe')")
            connection.execute(b'create sequence public."\xe9"')
    taken = take(postgres.url(), tmp_path, name)
    assert len(canonical_json(taken.details)) > 0
    recorded = taken.fingerprint(name)
    assert next(iter(recorded["table"].values()))["rows"] == (2 if encoding == "LATIN1" else 3)
    assert taken.by_label[name]["database"]["encoding"] == encoding
    restored = restore(postgres, taken.streams[name], options)
    assert unexpected(recorded, fingerprint_of(postgres, restored)) == []


def test_odd_database_names(postgres: PostgresServer, tmp_path: Path) -> None:
    name = "Odd 'name' = \"x\" \\ é 🦆"
    postgres.create_database(name, "create table t (a int); insert into t values (1)")
    try:
        assert take(postgres.url(name), tmp_path, name).fingerprint(name)["table"]["public.t"]["rows"] == 1
    finally:
        postgres.drop_database(name)


def test_excluded_tables_are_in_neither_archive_nor_record(
    postgres: PostgresServer, objects: str, tmp_path: Path
) -> None:
    patterns = (
        "app.measurement*",
        "app.attached",
        "app.per_sensor",
        "app.of_the_other",
        "app.on_matview",
        "app.PG_upper",
    )
    taken = take(postgres.url(), tmp_path, objects, exclude_tables=patterns)
    names = {name for kind in taken.fingerprint(objects).values() for name in kind}
    assert not [name for name in names if "measurement" in name or "per_sensor" in name or "PG_upper" in name]
    restored = restore(postgres, taken.streams[objects])
    found = unexpected(taken.fingerprint(objects), fingerprint_of(postgres, restored, exclude_tables=patterns))
    assert found == []
    assert 'app."PG_upper"' in taken.by_label[objects]["excluded"]


def test_excluding_what_others_need_is_refused(postgres: PostgresServer, objects: str, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"exclude_tables leaves out tables that the rest of database objects needs"
    ) as caught:
        take(postgres.url(), tmp_path, objects, exclude_tables=("app.department",))
    assert any("employee_department_fkey" in line and "app.department" in line for line in caught.value.details)
    assert any("app.sales" in line for line in caught.value.details)


def test_an_exclusion_that_matches_nothing_is_a_warning(postgres: PostgresServer, chinook: str, tmp_path: Path) -> None:
    warnings = take(postgres.url(), tmp_path, chinook, exclude_tables=("nosuch",)).preflight.warnings
    assert "target.exclude_tables matches no table: nosuch" in warnings


def test_globals_hold_roles_and_passwords(postgres: PostgresServer, objects: str, tmp_path: Path) -> None:
    taken = take(postgres.url(), tmp_path, objects)
    text = taken.streams["globals"].decode()
    assert "ALTER ROLE objects_reader SET work_mem TO '5MB'" in text
    assert "SCRAM-SHA-256$" in text
    recorded = taken.by_label["globals"]["fingerprint"]
    assert recorded["role"]['"Odd ""Role"" é"']["connection_limit"] == 3
    assert recorded["membership"]['objects_reader to "Odd ""Role"" é"'] == {"admin": True}
    assert recorded["role setting"]["objects_reader"]["settings"] == 'search_path="odd, public"\nwork_mem=5MB'


def test_a_role_without_the_password_catalog_leaves_passwords_out(
    postgres: PostgresServer, chinook: str, tmp_path: Path
) -> None:
    postgres.execute("drop role if exists plain_reader; create role plain_reader login")
    postgres.execute("grant select on all tables in schema public to plain_reader", chinook)
    taken = take(postgres.url(user="plain_reader"), tmp_path, chinook)
    assert b"CREATE ROLE" in taken.streams["globals"]
    assert b"SCRAM-SHA-256$" not in taken.streams["globals"]
    assert taken.by_label["globals"]["role_passwords"] is False
    assert any("without their passwords" in line for line in taken.preflight.warnings)
    restored = restore(postgres, taken.streams[chinook])
    assert unexpected(taken.fingerprint(chinook), fingerprint_of(postgres, restored)) == []


def test_no_password_in_any_child_and_nothing_left_behind(
    postgres: PostgresServer, chinook: str, tmp_path: Path
) -> None:
    with ENGINE.open_backup(postgres.tcp_url(), BackupOptions(databases=(chinook,), work_folder=tmp_path)) as session:
        for part in session.preflight.parts:
            with session.open_part(part) as chunks:
                next(chunks)
                shown = b"".join(_seen_by_everybody())
                assert PASSWORD.encode() not in shown
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
            "service.conf": 0o600,
            "pass": 0o600,
        }
    assert list(tmp_path.iterdir()) == []


def _seen_by_everybody() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text():
                yield (process / "cmdline").read_bytes()
                yield (process / "environ").read_bytes()
        except OSError:
            continue


def test_the_private_files_are_removed_when_the_backup_fails(
    postgres: PostgresServer, chinook: str, tmp_path: Path
) -> None:
    options = BackupOptions(databases=(chinook,), work_folder=tmp_path)

    def fail_after_the_first_bytes() -> None:
        with (
            ENGINE.open_backup(postgres.tcp_url(), options) as session,
            session.open_part(session.preflight.parts[1]) as chunks,
        ):
            next(chunks)
            raise RuntimeError("store is gone")

    with pytest.raises(RuntimeError, match="store is gone"):
        fail_after_the_first_bytes()
    assert list(tmp_path.iterdir()) == []
    postgres.wait_for_end_of_sessions()


def test_writers_during_the_dump_do_not_change_what_is_recorded(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    postgres.execute(
        "create table ledger (id bigserial primary key, note text);"
        "insert into ledger (note) select 'n' from generate_series(1, 50000)",
        database,
    )
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        with postgres.connect(database) as connection:
            while not stop.is_set():
                connection.execute("insert into ledger (note) select 'new' from generate_series(1, 20)")
                connection.execute("delete from ledger where id in (select id from ledger order by random() limit 3)")
                connection.execute("update ledger set note = note || '.' where id % 1000 = 7")
                started.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(20)
        for _ in range(3):
            taken = take(postgres.url(), tmp_path, database)
            restored = restore(postgres, taken.streams[database])
            assert unexpected(taken.fingerprint(database), fingerprint_of(postgres, restored)) == []
            postgres.drop_database(restored)
    finally:
        stop.set()
        writer.join()
    assert taken.fingerprint(database)["table"]["public.ledger"]["rows"] > 50000


def test_a_sequence_in_use_is_recorded_as_a_range(postgres: PostgresServer, database: str) -> None:
    postgres.execute("create sequence s; create sequence still", database)
    with connect(parse_url(postgres.url()), database) as connection:
        from drkit.engines.postgres_fingerprint import sequence_positions

        before = sequence_positions(connection, [])
        connection.execute("select nextval('public.s') from generate_series(1, 7)")
        recorded = fingerprint_database(connection, earlier_positions=before)["sequence"]
    assert (recorded["public.s"]["last_value"], recorded["public.s"]["is_called"]) == ("1 to 7", None)
    assert (recorded["public.still"]["last_value"], recorded["public.still"]["is_called"]) == (1, False)
    for actual, reason in ((1, True), (5, True), (7, True), (8, False), (0, False)):
        difference = Difference("sequence", "public.s", "last_value", "1 to 7", actual)
        assert bool(expected_after_dump(difference)) is reason
    assert not expected_after_dump(Difference("sequence", "public.still", "last_value", 1, 2))


def test_the_snapshot_moment_is_the_oldest_and_by_the_servers_clock(
    postgres: PostgresServer, chinook: str, tmp_path: Path
) -> None:
    ((before,),) = postgres.execute("select clock_timestamp()")
    taken = take(postgres.url(), tmp_path, chinook, "postgres")
    ((after,),) = postgres.execute("select clock_timestamp()")
    assert before < taken.snapshot_at < after
    assert taken.by_label[chinook]["snapshot_at"] < taken.by_label["postgres"]["snapshot_at"]


def test_all_databases_but_the_templates(postgres: PostgresServer, chinook: str, tmp_path: Path) -> None:
    closed = postgres.create_database("closed_one")
    postgres.execute("alter database closed_one allow_connections false")
    try:
        with ENGINE.open_backup(postgres.url(), BackupOptions(work_folder=tmp_path)) as session:
            labels = [part.label for part in session.preflight.parts]
            assert {"globals", "postgres", chinook} <= set(labels)
            assert not {"template0", "template1", closed} & set(labels)
            assert any(
                "closed_one is left out: it accepts no connections" in line for line in session.preflight.warnings
            )
        with pytest.raises(SourceError, match=r"closed_one .*accepts no connections"):
            take(postgres.url(), tmp_path, closed)
    finally:
        postgres.execute("alter database closed_one allow_connections true")
        postgres.drop_database(closed)


def test_an_invalid_database_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    name = postgres.create_database()
    with postgres.connect() as connection:
        connection.execute("update pg_database set datconnlimit = -2 where datname = %s", [name])
    try:
        with pytest.raises(SourceError, match="is invalid: a DROP DATABASE of it was interrupted"):
            take(postgres.url(), tmp_path, name)
    finally:
        postgres.execute(f"drop database {name}")


def test_an_unknown_database_is_named_with_those_that_exist(
    postgres: PostgresServer, chinook: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="there is no database nosuch") as caught:
        take(postgres.url(), tmp_path, chinook, "nosuch")
    assert chinook in caught.value.details[0]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://postgres:wrong@127.0.0.1:{port}/postgres", "refused the password of role postgres"),
        ("postgresql://postgres@127.0.0.1:{port}/postgres", "wants a password for role postgres and got none"),
        ("postgresql://nobody@/postgres?host={folder}&port={port}", "there is no role nobody"),
        ("postgresql://postgres@/nodb?host={folder}&port={port}", "there is no database nodb"),
        ("postgresql://postgres@127.0.0.1:1/x", "nothing listens at 127.0.0.1:1"),
        ("postgresql://postgres@/x?host=/nosuch", "there is no server socket at /nosuch"),
        ("postgresql://postgres@nosuch.invalid/x", "the host of nosuch.invalid:5432 has no address"),
        ("postgresql://u:s3cret-part@two@host/x", "is not a PostgreSQL connection URL"),
        ("postgresql://u:s3cret@host/x?nosuch=1", "is not a PostgreSQL connection URL"),
        ("postgresql://postgres:s3cret@127.0.0.1:{port}/x?sslmode=require", "does not speak TLS"),
    ],
)
def test_what_cannot_be_reached_is_named_with_what_to_do(
    postgres: PostgresServer, tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(DrkitError, match=message) as caught:
        take(Secret(url.format(port=postgres.port, folder=postgres.folder)), tmp_path)
    assert caught.value.hints
    assert "s3cret" not in " ".join([caught.value.message, *caught.value.details, *caught.value.hints])
    assert list(tmp_path.iterdir()) == []
