"""Checksums of pages while files are copied: against a real server's pages, sound, damaged, torn and moved."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drkit.engines.postgres_pages import PageCheck, PageLayout, damaged, describe_damage
from tests.fixtures.physical import PHYSICAL, start_server, take_base
from tests.fixtures.postgres import PostgresServer, as_server_user, running_postgres
from tests.fixtures.site import ReadySite

LAYOUT = PageLayout(8192, 131072)
FAR_LSN = 1 << 62


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Lend a server with page checksums and a table `hit` of some hundred pages."""
    with running_postgres(**PHYSICAL) as server:
        server.create_database("orders", "create table hit as select g, md5(g::text) from generate_series(1, 50000) g")
        subprocess.run(
            [str(server.bin / "pgbench"), "-i", "-q", "-s", "1", "-d", server.url("orders").reveal()],
            check=True,
            capture_output=True,
        )
        server.stop("fast")
        enable = [str(server.bin / "pg_checksums"), "--enable", "-D", str(server.folder / "data")]
        subprocess.run(enable, check=True, capture_output=True, cwd=server.folder, **as_server_user())
        start_server(server)
        yield server


@pytest.fixture
def heap(server: PostgresServer) -> Iterator[Path]:
    """Lend the file of the table `hit`, which nothing writes; what was changed in it is put right again."""
    ((path,),) = server.execute("select pg_relation_filepath('hit')", "orders")
    file = server.folder / "data" / path
    before = file.read_bytes()
    yield file
    file.write_bytes(before)


def flip(file: Path, position: int, bit: int = 1) -> None:
    with file.open("r+b") as opened:
        opened.seek(position)
        (byte,) = opened.read(1)
        opened.seek(position)
        opened.write(bytes([byte ^ bit]))


CheckFile = Callable[..., PageCheck]


@pytest.fixture
def check_file(tmp_path: Path) -> CheckFile:
    """Return a check of content that was read of a file in one piece, from ``offset`` on, under a name of its own."""

    def check(
        file: Path, name: str, content: bytes, offset: int = 0, start_lsn: int = FAR_LSN, layout: PageLayout = LAYOUT
    ) -> PageCheck:
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        (root / name).parent.mkdir(parents=True)
        (root / name).symlink_to(file)
        done = PageCheck(root, layout, start_lsn)
        assert done.wants(name)
        done.add(name, content, offset)
        done.finish()
        return done

    return check


def test_a_sound_server_under_load_has_no_wrong_page(server: PostgresServer, tmp_path: Path) -> None:
    load = [str(server.bin / "pgbench"), "-n", "-c", "2", "-T", "60", "-d", server.url("orders").reveal()]
    bench = subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        taken = take_base(server.url(), tmp_path / "base", via="local", parallel=3)
        assert bench.poll() is None
    finally:
        bench.terminate()
        bench.wait()
    base = taken.details["base"]
    assert (base["checksums"], base["checksums_verified"], base["damage"]) == (True, True, [])
    assert taken.warnings == ()
    assert "page checksums verified" in taken.preflight.summary


def test_a_flipped_bit_is_found_named_and_marked_everywhere(
    server: PostgresServer, heap: Path, ready_site: ReadySite
) -> None:
    path = ready_site.write_policy("orders", server.url().reveal())
    path.write_text(path.read_text().replace("{method: dump}", "{method: base, via: local, parallel: 2}"))
    sound = json.loads(ready_site.drkit("backup", "orders", "--json").stdout)["artifact_id"]
    flip(heap, 3 * 8192 + 5000)
    flip(heap, 200 * 8192 + 100)
    done = ready_site.drkit("backup", "orders")
    assert done.returncode == 0, done.stderr
    relative = str(heap.relative_to(server.folder / "data"))
    assert f"2 pages of {relative} with a wrong checksum: block 3, 200" in done.stderr
    (hit,) = [row for row in artifacts(ready_site) if row["artifact_id"] != sound]
    assert {row["artifact_id"]: row["degraded"] for row in artifacts(ready_site)} == {
        sound: False,
        hit["artifact_id"]: True,
    }
    assert ready_site.drkit("list").stdout.count("base (degraded)") == 1
    shown = ready_site.drkit("show", hit["artifact_id"]).stdout
    assert "DEGRADED" in shown
    assert f"page checksum wrong in {relative}, block 200" in shown
    assert "DEGRADED" not in ready_site.drkit("show", sound).stdout


def artifacts(site: ReadySite) -> list[dict[str, object]]:
    return list(json.loads(site.drkit("list", "--json").stdout)["artifacts"])


def test_a_page_that_claims_to_be_younger_than_the_backup_is_damaged(
    server: PostgresServer, heap: Path, tmp_path: Path
) -> None:
    flip(heap, 5 * 8192 + 2)  # the upper half of the page's LSN
    taken = take_base(server.url(), tmp_path / "base", via="local", parallel=2)
    assert [line.partition(", ")[2] for line in taken.details["base"]["damage"]] == ["block 5"]


@pytest.mark.parametrize("position", [0, 4, 8, 9, 10, 12, 14, 24, 5000, 8191])
def test_one_bit_anywhere_in_a_page_is_enough(check_file: CheckFile, heap: Path, position: int) -> None:
    sound = heap.read_bytes()[: 128 * 8192]
    assert check_file(heap, "base/5/1", sound).bad == []
    flip(heap, 7 * 8192 + position, 1 << (position % 8))
    check = check_file(heap, "base/5/1", heap.read_bytes()[: 128 * 8192])
    assert [page.block for page in damaged([check], 0)] == [7]


def test_a_page_that_is_right_when_it_is_read_again_was_torn(check_file: CheckFile, heap: Path) -> None:
    content = bytearray(heap.read_bytes()[: 16 * 8192])
    content[3 * 8192 + 4096 : 4 * 8192] = bytes(4096)
    check = check_file(heap, "base/5/1", bytes(content))
    assert (check.bad, check.doubtful) == ([], [])


def test_pages_that_changed_since_the_start_are_left_to_replay(check_file: CheckFile, heap: Path) -> None:
    flip(heap, 3 * 8192 + 5000)
    content = heap.read_bytes()[: 16 * 8192]
    check = check_file(heap, "base/5/1", content, start_lsn=0)
    assert damaged([check], FAR_LSN) == []
    assert [page.block for page in check.doubtful] == [3]


def test_pages_of_zeros_are_right_and_half_a_page_is_not_looked_at(check_file: CheckFile, heap: Path) -> None:
    content = heap.read_bytes()[:8192] + bytes(3 * 8192) + b"x" * 100
    assert check_file(heap, "base/5/1", content).bad == []


def test_a_later_file_of_a_relation_goes_on_counting(check_file: CheckFile, heap: Path, tmp_path: Path) -> None:
    """The number of a page is part of its checksum; a page that was moved is wrong."""
    pages = heap.read_bytes()[: 12 * 8192]
    second = tmp_path / "second"
    second.write_bytes(pages[4 * 8192 :])
    assert check_file(second, "PG_15_202209061/5/1.1", second.read_bytes(), layout=PageLayout(8192, 4)).bad == []
    moved = check_file(second, "base/5/1", second.read_bytes())
    assert [page.block for page in moved.bad] == list(range(8))
    assert describe_damage(moved.bad) == ["8 pages of base/5/1 with a wrong checksum: block 0, 1, 2, 3, 4, 5, 6, 7"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("global/1262", True),
        ("base/5/16384", True),
        ("base/5/16384.12", True),
        ("base/5/16384_fsm", True),
        ("base/5/16384_vm.1", True),
        ("PG_15_202209061/5/16384_init", True),
        ("global/pg_filenode.map", False),
        ("base/5/PG_VERSION", False),
        ("pg_xact/0000", False),
        ("PG_VERSION", False),
    ],
)
def test_only_files_of_relations_have_pages(name: str, wanted: bool) -> None:
    assert PageCheck(Path(), LAYOUT, 0).wants(name) is wanted


def test_a_piece_that_does_not_begin_with_a_page_is_checked_from_the_next_one(
    check_file: CheckFile, heap: Path
) -> None:
    flip(heap, 5 * 8192 + 77)
    offset = 4 * 8192 - 10
    check = check_file(heap, "base/5/1", heap.read_bytes()[offset : offset + 6 * 8192], offset)
    assert [page.block for page in check.bad] == [5]
