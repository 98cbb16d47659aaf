"""What lies outside of the data folder, or must not be touched: tablespaces, configuration, settings, pages."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from drkit.errors import IntegrityError
from drkit.sandboxes.postgres_proof import check_pages, check_structure, verify_files
from drkit.sandboxes.postgres_server import ServerPlace, open_server
from tests.fixtures.physical import start_server
from tests.fixtures.postgres import as_server_user, postgres_bin
from tests.fixtures.recovery import (
    POLICY,
    Walk,
    document_of,
    restored,
    run_as_server,
    scratch_place,
    started,
    walking,
)
from tests.fixtures.site import ReadySite

MAJOR = int(postgres_bin().parts[-2])
FLOORS = {"max_connections": "123", "max_prepared_transactions": "17", "max_worker_processes": "11"}


@pytest.fixture
def walk(ready_site: ReadySite) -> Iterator[Walk]:
    with walking(ready_site, **FLOORS) as walk:
        yield walk


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file below a folder with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_tablespace(walk: Walk, name: str) -> Path:
    location = walk.server.folder / name
    location.mkdir()
    shutil.chown(location, "postgres", "postgres")
    walk.server.execute(f"create tablespace {name} location '{location}'")
    walk.server.execute(f"create table in_{name} tablespace {name} as select generate_series(1, 1000) as a; checkpoint")
    return location


def test_tablespaces_are_remapped_and_new_ones_never_written_over(walk: Walk) -> None:
    location = make_tablespace(walk, "early")
    walk.set("one")
    walk.base()
    walk.set("before two")
    walk.server.execute("insert into in_early select generate_series(1001, 2000)")
    walk.set("two")
    walk.switch()
    walk.ship()
    walk.server.execute("checkpoint")
    before = tree(location)
    with restored(walk) as server:
        data = (server.folder / "data").resolve()
        (link,) = (data / "pg_tblspc").iterdir()
        assert link.resolve().is_relative_to(data / "tablespaces")
        assert server.execute("select count(*) from in_early") == [(2000,)]
        assert server.execute("select state from status") == [("two",)]
    assert tree(location) == before
    path = walk.site.folder / "policies" / f"{POLICY}.yaml"
    path.write_text(path.read_text() + "drills: [{name: all, level: same-data}]\n")
    done = walk.site.call("drill", POLICY, "--json")
    assert done.returncode == 0, done.stderr
    assert tree(location) == before

    late = make_tablespace(walk, "late")
    walk.set("three")
    walk.switch()
    walk.ship()
    walk.server.execute("checkpoint")
    before = tree(late)
    with scratch_place() as place:
        done = walk.restore("--into", str(place / "data"))
        assert done.returncode == 9, done.stdout + done.stderr
        assert f"creates a tablespace in {late}" in done.stderr
        assert list((place / "data").iterdir()) == []
        done = walk.restore("--into", str(place / "data"), "--no-start")
        assert done.returncode == 9, done.stdout + done.stderr
    done = walk.site.call("drill", POLICY, "--json")
    assert done.returncode == 11
    assert str(late) in document_of(done)["error"]
    assert tree(late) == before
    # Replay to "two" reads on to the next commit, which is that of the tablespace: its folder is made before that.
    done = walk.restore("--plan", "--at", walk.marks["before two"].after.isoformat())
    assert done.returncode == 0, done.stderr
    assert walk.state_at("--at", walk.marks["before two"].after.isoformat()) == "before two"


def sorted_elsewhere(walk: Walk) -> None:
    """Make a database whose indexes are of other versions of ICU (T48)."""
    walk.server.create_database(
        "sorted",
        'create table words (one text, two text collate "fr-x-icu"); create index on words (one, two);'
        " update pg_collation set collversion = '0.9' where collname = 'fr-x-icu'",
        "locale_provider icu icu_locale 'de'",
    )
    walk.server.execute("update pg_database set datcollversion = '1.0' where datname = 'sorted'")


def test_settings_of_the_source_neither_bend_nor_break_a_replay(walk: Walk) -> None:
    """What leads to the source, loads what is not there, or is too small for the log is kept away (T24, T25, T40)."""
    server, data = walk.server, walk.server.folder / "data"
    server.execute("alter system set shared_preload_libraries = 'not_there'")
    server.execute("alter system set primary_conninfo = 'host=production'")
    server.execute("alter system set recovery_target_name = 'left over'")
    server.execute("alter system set work_mem = '5MB'")
    sorted_elsewhere(walk)
    outside = server.folder / "elsewhere"
    outside.mkdir()
    (outside / "hba.conf").write_text("local all all reject\n")
    with (data / "postgresql.conf").open("a") as config:
        config.write(f"data_directory = '{data}'\n  HBA_file = '{outside}/hba.conf'\n")
    walk.base()
    with server.connect() as connection:
        connection.execute("begin; update status set state = 'prepared'; prepare transaction 'pending'")
    walk.switch()
    walk.ship()
    with scratch_place() as place:
        into = place / "data"
        done = walk.restore("--into", str(into), "--json")
        assert done.returncode == 0, done.stderr
        notes = " ".join(document_of(done)["notes"])
        assert "recovery_target_name" in notes
        assert "data_directory, hba_file" in notes
        assert "database sorted has indexes on text that may be in the wrong order on this host" in notes
        for words in ("the default (1.0 there,", '"fr-x-icu" (0.9 there,', 'reindex database "sorted"'):
            assert words in notes
        assert "database postgres" not in notes
        auto_conf = (into / "postgresql.auto.conf").read_text()
        assert "work_mem" in auto_conf
        assert "left over" not in auto_conf
        assert "production" not in auto_conf
        (into / "postgresql.auto.conf").write_text(auto_conf.replace("not_there", ""))
        with started(server, into) as copy:
            assert Path(copy.execute("show data_directory")[0][0]).resolve() == into
            assert copy.execute("select gid from pg_prepared_xacts") == [("pending",)]
            assert copy.execute("show work_mem") == [("5MB",)]
            copy.execute("commit prepared 'pending'")
            assert copy.execute("select state from status") == [("prepared",)]
    server.execute("rollback prepared 'pending'")


def test_a_configuration_that_lies_elsewhere_is_not_needed_to_come_back(ready_site: ReadySite) -> None:
    """As Debian has it: nothing in the data folder says how the server is to be started (T24)."""
    with walking(ready_site) as walk:
        server, data = walk.server, walk.server.folder / "data"
        etc = server.folder / "etc"
        server.stop("fast")
        (etc / "conf.d").mkdir(parents=True)
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (data / name).rename(etc / name)
        places = {"data_directory": data, "hba_file": etc / "pg_hba.conf", "ident_file": etc / "pg_ident.conf"}
        with (etc / "postgresql.conf").open("a") as config:
            config.writelines(f"{name} = '{path}'\n" for name, path in places.items())
            config.write("include_dir = 'conf.d'\nmax_connections = 77\n")
        (etc / "conf.d" / "more.conf").write_text("work_mem = '7MB'\n")
        subprocess.run(["chown", "-R", "postgres:postgres", str(etc)], check=True)
        log = str(server.folder / "server.log")
        begun = run_as_server(str(server.bin / "pg_ctl"), "-D", str(etc), "-l", log, "-w", "start")
        assert begun.returncode == 0, Path(log).read_text()
        walk.base()
        walk.set("elsewhere")
        walk.switch()
        walk.ship()
        server.stop()
        shutil.rmtree(etc)
        with scratch_place() as place:
            into = place / "data"
            done = walk.restore("--into", str(into), "--json")
            assert done.returncode == 0, done.stderr
            assert "the source kept its own elsewhere" in " ".join(document_of(done)["notes"])
            captured = into / "captured-config" / str(etc).lstrip("/")
            assert (captured / "conf.d" / "more.conf").read_text() == "work_mem = '7MB'\n"
            assert "max_connections = 77" in (captured / "postgresql.conf").read_text()
            assert (captured / "pg_hba.conf").stat().st_mode & 0o077 == 0
            written = [line for line in (into / "pg_hba.conf").read_text().splitlines() if not line.startswith("#")]
            assert all(line.startswith("local") for line in written if line)
            (into / "pg_hba.conf").write_text("local all all trust\n")
            with started(server, into) as copy:
                assert copy.execute("select state from status") == [("elsewhere",)]
                assert copy.execute("show max_connections") == [("77",)]
        drill = walk.site.call("drill", POLICY, "--level", "same-data", "--json")
        assert (drill.returncode, document_of(drill)["verdict"]) == (0, "passed"), drill.stderr


def test_the_unfinished_segment_is_the_end_of_the_latest(walk: Walk) -> None:
    walk.set("one")
    walk.base()
    walk.set("two")
    walk.switch()
    walk.set("three")
    walk.ship()
    ((name,),) = walk.server.execute("select pg_walfile_name(pg_current_wal_insert_lsn())")
    walk.server.execute("checkpoint")
    walk.ship_partial(walk.server.folder / "data" / "pg_wal" / name)
    walk.set("after that")
    assert walk.state_at() == "three"


def test_a_superuser_of_another_name_and_page_checksums(ready_site: ReadySite) -> None:
    with walking(ready_site) as walk:
        server = walk.server
        sorted_elsewhere(walk)
        server.execute("create role keeper superuser login")
        server.execute("alter role postgres rename to boss", user="keeper")
        ready_site.write_secret("source-url", server.url(user="keeper").reveal())
        server.stop("fast")
        enable = [str(server.bin / "pg_checksums"), "--enable", "-D", str(server.folder / "data")]
        subprocess.run(enable, check=True, capture_output=True, cwd=server.folder, **as_server_user())
        start_server(server)
        path = ready_site.folder / "policies" / f"{POLICY}.yaml"
        path.write_text(path.read_text() + "drills: [{name: all, level: same-data}]\n")
        walk.base()
        done = ready_site.call("drill", POLICY, "--json")
        assert done.returncode == 0, done.stdout
        assert document_of(done)["verdict"] == "passed_with_findings"
        assert any("database sorted has indexes on text" in line for line in document_of(done)["findings"])
        assert "page checksums right" in document_of(done)["levels"]["same-data"]["summary"]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPlace]:
    """Lend a data folder with checksums and a backup manifest, as a restore leaves it before its server starts."""
    with scratch_place() as folder:
        shutil.chown(folder, "postgres", "postgres")
        tools = postgres_bin()

        def tool(name: str, *arguments: str) -> None:
            done = subprocess.run(
                [str(tools / name), *arguments], capture_output=True, text=True, cwd=folder, **as_server_user()
            )
            assert done.returncode == 0, done.stderr

        source, data = folder / "source", folder / "data"
        tool("initdb", "-D", str(source), "-U", "postgres", "--data-checksums", "--no-sync", "--auth=trust")
        run_folder = folder / "run"
        run_folder.mkdir()
        shutil.chown(run_folder, "postgres", "postgres")
        first = ServerPlace(source, run_folder, MAJOR, "postgres")
        with open_server(first) as server:
            server.start({"listen_addresses": "", "wal_level": "replica", "fsync": "off"}, timeout_s=60)
            with psycopg.connect(first.url.reveal(), autocommit=True) as connection:
                connection.execute("create table t as select generate_series(1, 5000) as a")
                connection.execute("create index t_a on t (a)")
            (run_folder / "pg_hba.conf").write_text("local all,replication all trust\n")
            tool("pg_ctl", "-D", str(source), "reload")
            tool("pg_basebackup", "-h", str(run_folder), "-p", "5432", "-U", "postgres", "-D", str(data), "-c", "fast")
        yield ServerPlace(data, run_folder, MAJOR, "postgres")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(bytes(content))


def test_a_file_that_is_not_as_in_the_backup_manifest_is_named(place: ServerPlace) -> None:
    assert "backup manifest" in verify_files(place)
    flip(place.data / "PG_VERSION", 0)
    with pytest.raises(IntegrityError, match="PG_VERSION"):
        verify_files(place)
    flip(place.data / "PG_VERSION", 0)
    (segment,) = [path for path in (place.data / "pg_wal").iterdir() if path.is_file()]
    flip(segment, 40)
    with pytest.raises(IntegrityError, match="pg_waldump"):
        verify_files(place)


def test_damaged_pages_and_indexes_are_named(place: ServerPlace) -> None:
    with open_server(place) as server:
        server.start({"listen_addresses": "", "fsync": "off"}, timeout_s=60)
        assert check_structure(place).damage == ()
        assert check_pages(server).damage == ()
        with psycopg.connect(place.url.reveal(), autocommit=True) as connection:
            row = connection.execute("select pg_relation_filepath('t_a')").fetchone()
            assert row is not None
            connection.execute("checkpoint")
        server.stop()
        flip(place.data / row[0], 8192 + 5000)
        server.start_again(timeout_s=60)
        pages = check_pages(server)
        assert any("checksum verification failed" in line for line in pages.damage)
        assert check_structure(place).damage != ()
