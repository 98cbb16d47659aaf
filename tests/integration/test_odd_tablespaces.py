"""Tablespaces that a base backup must copy whole or refuse by name: a backup that cannot be restored is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.engines.postgres_base_files import list_tablespace
from drkit.errors import SourceError
from tests.fixtures.physical import PHYSICAL
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import scratch_place
from tests.fixtures.site import ReadySite

VIA = pytest.mark.parametrize("via", ["stream", "local"])


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with running_postgres(**PHYSICAL) as server:
        yield server


def make_tablespace(server: PostgresServer, name: str, folder: str) -> Path:
    location = server.folder / folder
    location.mkdir()
    shutil.chown(location, "postgres", "postgres")
    server.execute(f"create tablespace {name} location '{location}'")
    server.execute(f"create table in_{name} tablespace {name} as select generate_series(1, 1000) as a; checkpoint")
    return location


def link_of(server: PostgresServer, name: str) -> Path:
    ((oid,),) = server.execute(f"select oid from pg_tablespace where spcname = '{name}'")
    return server.folder / "data" / "pg_tblspc" / str(oid)


def back_up(site: ReadySite, server: PostgresServer, via: str) -> tuple[int, str]:
    policy = site.write_policy("odd", site.write_secret("url", server.url().reveal()))
    policy.write_text(policy.read_text().replace("{method: dump}", f"{{method: base, via: {via}}}"))
    done = site.drkit("backup", "odd")
    return done.returncode, done.stderr


def restore(site: ReadySite) -> tuple[int, str]:
    with scratch_place() as place:
        done = site.drkit("restore", "odd", "--into", str(place / "data"))
        return done.returncode, done.stderr


@VIA
@pytest.mark.parametrize("folder", ["new\nline", "carriage\rreturn", "two\n12 lines"])
def test_a_line_break_in_the_folder_of_a_tablespace_is_no_other_tablespace(
    server: PostgresServer, ready_site: ReadySite, via: str, folder: str
) -> None:
    make_tablespace(server, "broken", folder)
    status, said = back_up(ready_site, server, via)
    assert status == 0, said
    status, said = restore(ready_site)
    assert status == 0, said


def test_a_link_without_a_tablespace_does_not_make_a_base_that_cannot_be_restored(
    server: PostgresServer, ready_site: ReadySite
) -> None:
    """The server puts every link into tablespace_map, also what is left of a tablespace that was dropped."""
    make_tablespace(server, "good", "good")
    (server.folder / "data" / "pg_tblspc" / "99999").symlink_to(server.folder / "not there")
    status, said = back_up(ready_site, server, "local")
    if status:
        assert "99999" in said
        return
    status, said = restore(ready_site)
    assert status == 0, said


@VIA
@pytest.mark.parametrize("harm", ["moved away", "emptied", "link gone", "relative link"])
def test_a_tablespace_without_its_files_is_refused_by_name(
    server: PostgresServer, ready_site: ReadySite, via: str, harm: str
) -> None:
    location = make_tablespace(server, "gone", "gone")
    if harm == "moved away":
        location.rename(location.with_name("elsewhere"))
    elif harm == "emptied":
        shutil.rmtree(next(location.iterdir()))
    elif harm == "link gone":
        link_of(server, "gone").unlink()
    else:
        link = link_of(server, "gone")
        link.unlink()
        link.symlink_to("../../gone")  # the server itself reads and writes through it
        assert server.execute("select count(*) from in_gone") == [(1000,)]
    status, said = back_up(ready_site, server, via)
    if harm == "relative link" and status == 0:  # not refused, then whole
        with scratch_place() as place:
            assert ready_site.drkit("restore", "odd", "--into", str(place / "data")).returncode == 0
            files = [path for path in (place / "data" / "tablespaces").rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in files) >= 40960
        return
    assert status == 5, said
    assert ("pg_tblspc/" if harm == "link gone" else "tablespace gone has no files") in said


@VIA
def test_a_tablespace_inside_the_data_folder_is_refused_by_name(
    server: PostgresServer, ready_site: ReadySite, via: str
) -> None:
    with server.connect() as connection:
        connection.execute("set allow_in_place_tablespaces = on")
        connection.execute("create tablespace inside location ''")
    status, said = back_up(ready_site, server, via)
    assert status == 5, said
    assert "tablespace inside is inside the data folder itself" in said
    server.execute("drop tablespace inside")
    assert back_up(ready_site, server, via)[0] == 0, "the hint was followed"


@VIA
def test_a_folder_whose_name_is_not_utf_8_is_refused_by_name(
    server: PostgresServer, ready_site: ReadySite, via: str
) -> None:
    location = make_tablespace(server, "far", "far")
    odd = Path(os.fsdecode(os.fsencode(location) + b"\xff"))
    location.rename(odd)
    link = link_of(server, "far")
    link.unlink()
    link.symlink_to(odd)
    status, said = back_up(ready_site, server, via)
    assert status == 5, said
    assert f"tablespace far lies in a folder whose name is not UTF-8: {location}\\xff" in said


def test_what_a_tablespace_cannot_be_read_for_is_said(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(SourceError, match="cannot read"):
        list_tablespace(loop, 15)
