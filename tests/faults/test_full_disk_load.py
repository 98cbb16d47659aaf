"""A disk that is too small, or full in the middle of a drill's load of a dump: named, and no verdict on the backup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from drkit.engines.postgres_load import ArchiveLoad
from tests.fixtures.disks import fill, small_disk
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.recovery import document_of, scratch_place
from tests.fixtures.site import ReadySite


@contextmanager
def backup_of(site: ReadySite, server: PostgresServer, statements: str, more: str = "") -> Iterator[ReadySite]:
    """Lend the site with a backup of a database that these statements make."""
    name = server.create_database(statements=statements)
    path = site.write_policy("shop", site.write_secret("url", server.url(name).reveal()), more=more)
    path.write_text(path.read_text().replace("engine: postgres,", f"engine: postgres, databases: [{name}],"))
    try:
        assert site.call("backup", "shop").returncode == 0
        yield site
    finally:
        server.drop_database(name)


@pytest.fixture
def backed_up(ready_site: ReadySite, postgres: PostgresServer) -> Iterator[ReadySite]:
    """Lend a site with a backup of a database of some forty mebibytes."""
    rows = "select g, repeat(md5(g::text), 30) as t from generate_series(1, 40000) as g"
    with backup_of(ready_site, postgres, f"create table grown as {rows}") as site:
        yield site


def test_a_disk_that_is_full_in_mid_load_is_not_the_backup(
    backed_up: ReadySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_objects = ArchiveLoad.load_objects

    def filled(*arguments: object) -> None:
        fill(disk, 16 << 20)
        load_objects(*arguments)  # type: ignore[arg-type]

    with scratch_place() as place, small_disk(place, "700m") as disk:
        monkeypatch.setenv("DRKIT_SCRATCH", str(disk))
        with monkeypatch.context() as patched:
            patched.setattr(ArchiveLoad, "load_objects", filled)
            drill = backed_up.call("drill", "shop", "--json")
            (disk / "filler").unlink()
            said = backed_up.call("drill", "shop").stdout
        (disk / "filler").unlink()
        assert f"hint: df -h {disk}/" in said
        assert "hint: export DRKIT_SCRATCH=FOLDER" in said
        document = document_of(drill)
        assert (drill.returncode, document["verdict"]) == (5, "inconclusive"), drill.stdout + drill.stderr
        assert "could not be loaded" in document["error"]
        assert f"the disk that holds {disk}/" in document["error"]
        assert document["teardown"] == "nothing left behind"
        assert list(disk.iterdir()) == []
        again = backed_up.call("drill", "shop", "--json")
        assert (again.returncode, document_of(again)["verdict"]) == (0, "passed"), again.stderr


def test_a_disk_that_is_too_small_is_said_with_what_to_type(
    backed_up: ReadySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_place() as place, small_disk(place, "30m") as disk:
        monkeypatch.setenv("DRKIT_SCRATCH", str(disk))
        drill = backed_up.call("drill", "shop")
        said = drill.stdout + drill.stderr
        assert drill.returncode == 5, said
        assert "INCONCLUSIVE" in said
        assert f"a scratch server in {disk} needs" in said
        assert "hint: export DRKIT_SCRATCH=FOLDER" in said
    with scratch_place() as place:
        monkeypatch.setenv("DRKIT_SCRATCH", str(place))
        assert backed_up.call("drill", "shop").returncode == 0, "the hint was followed"


SORTED = "select repeat(md5(g::text), 20) as t from generate_series(1, 1500000) as g order by 1 offset 1"
SPILLING = f"select count(*) > 0 from ({SORTED}) as x where t <> ''"
CHECK = f"""\
drills:
  - name: rehearsal
    level: works
    checks:
      - {{name: large, sql: "{SPILLING}"}}
"""


@pytest.mark.parametrize(
    ("statements", "more"),
    [("create table a (b integer)", CHECK), (f"create materialized view v as {SPILLING}", "")],
    ids=["check", "materialized view"],
)
def test_a_disk_that_a_question_fills_for_a_moment_is_not_the_backup(
    ready_site: ReadySite, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, statements: str, more: str
) -> None:
    """What a sort wrote is gone again by the time that anybody looks at the disk."""
    source = backup_of(ready_site, postgres, statements, more)
    with source as site, scratch_place() as place, small_disk(place, "600m") as disk:
        monkeypatch.setenv("DRKIT_SCRATCH", str(disk))
        document = document_of(site.call("drill", "shop", "--json"))
        assert document["verdict"] == "inconclusive", document
        assert f"the disk that holds {disk}/" in document["error"]


@pytest.mark.parametrize("words", ["cp: No space left on device", "HINT:  Check free disk space."])
def test_rows_that_speak_of_a_full_disk_are_no_full_disk(
    ready_site: ReadySite, postgres: PostgresServer, words: str
) -> None:
    port = "select current_setting('port')"
    statements = f"""create function here() returns boolean language sql as $$ select ({port}) = '{postgres.port}' $$;
        create table log (message text check (here())); insert into log values ('{words}')"""
    with backup_of(ready_site, postgres, statements) as site:
        drill = site.call("drill", "shop", "--json")
        assert (drill.returncode, document_of(drill)["verdict"]) == (11, "failed"), drill.stdout
        assert words in drill.stdout
