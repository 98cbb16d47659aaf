"""What the dead leave, and who takes it away: the next command, and nobody takes from the living."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from drkit.app import _private_folder
from drkit.process_identity import start_mark
from tests.faults.forking import Forker
from tests.faults.shop import BUCKET_VARIABLES, Shop, bucket_lines, create_shop, make_shop
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.s3 import S3Server
from tests.fixtures.s3_proxy import Fault, running_proxy

DEAD_PID = 2**22 + 1  # above the largest pid that Linux gives
YOUNG_S, OLD_S = 6 * 86400, 8 * 86400


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lend a folder for temporary files that is ours alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def work_folder(parent: Path, pid: int, mark: str) -> Path:
    folder = parent / f"drkit-work-{os.getuid()}-{pid}-{mark}-random"
    folder.mkdir(mode=0o700)
    (folder / "pass").write_text("secret")
    return folder


class TestWorkFolders:
    def test_ours_is_private_and_gone_afterwards(self, temporary: Path) -> None:
        with _private_folder() as folder:
            assert folder.parent == temporary
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "file").touch()
        assert [*temporary.iterdir()] == []

    def test_only_those_of_the_dead_are_removed(self, temporary: Path) -> None:
        own_mark = start_mark(os.getpid())
        dead = [work_folder(temporary, DEAD_PID, "boot.1"), work_folder(temporary, os.getpid(), "boot.1")]
        kept = [
            work_folder(temporary, os.getpid(), own_mark),
            work_folder(temporary, os.getppid(), start_mark(os.getppid())),
        ]
        stranger = temporary / "drkit-work-somebody"
        stranger.mkdir()
        with _private_folder():
            pass
        assert not any(folder.exists() for folder in dead)
        assert all(folder.exists() for folder in [*kept, stranger])

    def test_a_link_that_somebody_planted_leads_nowhere(self, temporary: Path) -> None:
        precious = temporary / "precious"
        precious.mkdir()
        (precious / "file").touch()
        planted = temporary / f"drkit-work-{os.getuid()}-{DEAD_PID}-boot.1-x"
        planted.symlink_to(precious)
        with _private_folder():
            pass
        assert (precious / "file").exists()

    def test_many_commands_at_once_do_not_trip_over_each_other(self, temporary: Path) -> None:
        for number in range(300):
            work_folder(temporary, DEAD_PID + number, "boot.1")

        def enter(_: int) -> None:
            with ExitStack() as stack:
                stack.enter_context(_private_folder())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(enter, range(16)))
        assert [*temporary.iterdir()] == []


@pytest.fixture(scope="module")
def shop(forker: Forker, postgres: PostgresServer, module_machine: Path) -> Shop:
    shop = make_shop(module_machine / "shop", forker, postgres.tcp_url(create_shop(postgres)).reveal())
    assert shop.drkit("backup", "shop").status == 0
    return shop


COMMANDS = [
    ("run", "list"),
    ("check",),
    ("verify",),
    ("store", "copy"),
    ("drills",),
    ("backup", "shop"),
    ("drill", "shop", "--level", "intact"),
    ("restore", "shop", "--plan"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_clears_up_after_a_killed_one(shop: Shop, command: tuple[str, ...]) -> None:
    killed = shop.drkit("backup", "shop", stop_at="started pg_dump")
    assert killed.status == -9
    assert shop.temporary_files() != []
    assert shop.drkit(*command).status in {0, 12}
    assert shop.temporary_files() == []
    assert next(run for run in shop.runs() if run.pid == killed.pid).state == "lost"


def test_a_plan_with_a_target_says_what_is_in_the_way_and_touches_nothing(shop: Shop, postgres: PostgresServer) -> None:
    source = shop.document("list")["artifacts"][0]
    target = f"plan_{source['artifact_id'].lower()}"
    fits = shop.drkit("restore", "shop", "--plan", "--to", postgres.tcp_url(target).reveal())
    assert (fits.status, f"{target}, postgres" in fits.stdout) == (0, True), fits.said
    assert "it can take this" in fits.stdout
    assert not postgres.execute(f"select 1 from pg_database where datname = '{target}'")
    filled = postgres.tcp_url(create_shop(postgres)).reveal()
    refused = shop.drkit("restore", "shop", "--plan", "--to", filled)
    assert (refused.status, "is not empty" in refused.said) == (5, True), refused.said
    assert f"  artifact   {source['artifact_id']}" in refused.stdout
    assert shop.drkit("restore", "shop", "--plan", "--to", filled, "--json").status == 5


def test_temporary_files_of_a_store_go_when_they_are_old(shop: Shop) -> None:
    point = "after the first chunk of primary put policies/shop/artifacts/*/globals.zst.age"

    def left() -> list[Path]:
        return list(shop.site.store_folder.rglob("~put-*"))

    for file in left():
        file.unlink()
    assert shop.drkit("backup", "shop", stop_at=point).status == -9
    assert len(left()) == 1
    assert shop.drkit("backup", "shop", clock_offset_s=YOUNG_S).status == 0
    assert len(left()) == 1
    assert shop.drkit("backup", "shop", clock_offset_s=OLD_S).status == 0
    assert left() == []


def test_who_may_not_list_uploads_may_still_back_up(
    machine: Path, forker: Forker, postgres: PostgresServer, moto_server: S3Server
) -> None:
    with running_proxy(moto_server.endpoint) as proxy:
        url = postgres.tcp_url(create_shop(postgres)).reveal()
        shop = make_shop(machine / "host", forker, url, stores=("offsite",), **BUCKET_VARIABLES)
        bucket = moto_server.bucket()
        shop.site.add_store("offsite", f"s3://{bucket}/site", *bucket_lines(proxy.endpoint))
        proxy.plan = [Fault("uploads", status=403, code="AccessDenied", times=1000)]
        assert shop.drkit("backup", "shop", impatient=True).status == 0
        assert proxy.count("uploads") > 0
