"""A drill that is killed, terminated or interrupted at each of its phases leaves no server, no file and no doubt.

After SIGKILL nobody of drkit is left to clean up: the server must stop by itself, and the next command takes the files
away. After SIGTERM and Ctrl-C the drill takes everything away itself before it exits with 130.
"""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from tests.faults.forking import Ended, Forker, wait_until
from tests.faults.shop import Shop, create_shop, make_shop
from tests.fixtures.postgres import PostgresServer

DRILLS = """\
drills: [{name: rehearsal, level: works, checks: [{name: one, sql: "select 1", expect: 1}]}]
"""
SERVER = ["started initdb", "started pg_ctl", "end provision", "started pg_restore", "end compare", "begin tear down"]
RECORD = ["before primary put policies/shop/evidence/*.json.sig", "after primary put policies/shop/evidence/*.json.sig"]
POINTS = ["end fetch", *SERVER, *RECORD]
NEXT_COMMANDS = itertools.cycle([("run", "list"), ("check",), ("drills",), ("verify",), ("store", "copy")])


@pytest.fixture(scope="module")
def shop(forker: Forker, postgres: PostgresServer, module_machine: Path) -> Shop:
    shop = make_shop(module_machine / "shop", forker, postgres.tcp_url(create_shop(postgres)).reveal(), more=DRILLS)
    assert shop.drkit("backup", "shop").status == 0
    return shop


@pytest.mark.parametrize(
    "point", [*POINTS, "begin select", "started sh", "started psql", "end load", "end checks", "end tear down"]
)
def test_kill(shop: Shop, point: str) -> None:
    killed = shop.drkit("drill", "shop", stop_at=point)
    assert killed.status == -9, f"{point} was not reached: {killed.said}"
    wait_until(lambda: not shop.host.processes(), f"still running: {shop.host.processes()}")
    command = next(NEXT_COMMANDS)
    after = shop.drkit(*command)
    assert after.status in {0, 12}, after.said
    assert_nothing_left(shop, killed)
    assert recorded(shop, killed) == ("lost", "its process ended without a word")


@pytest.mark.parametrize("point", POINTS)
def test_terminate(shop: Shop, point: str) -> None:
    ended = shop.drkit("drill", "shop", stop_at=point, stop_by=signal.SIGTERM)
    assert (ended.status, ended.stdout) == (130, ""), ended.said
    assert ended.stderr.endswith("drkit: interrupted\n")
    assert_nothing_left(shop, ended)
    assert recorded(shop, ended) == ("interrupted", "interrupted")


@pytest.mark.parametrize("stop_by", [signal.SIGINT, signal.SIGHUP])
def test_interrupt(shop: Shop, stop_by: signal.Signals) -> None:
    ended = shop.drkit("drill", "shop", stop_at="started pg_restore", stop_by=stop_by)
    assert ended.status == 130, ended.said
    assert_nothing_left(shop, ended)
    assert recorded(shop, ended) == ("interrupted", "interrupted")


def test_a_drill_needs_no_unlocking(shop: Shop) -> None:
    killed = shop.drkit("drill", "shop", stop_at="started pg_restore")
    assert killed.status == -9
    document = shop.document("drill", "shop")
    assert (document["verdict"], document["teardown"]) == ("passed", "nothing left behind")
    assert_nothing_left(shop, killed)


def recorded(shop: Shop, ended: Ended) -> tuple[str, str | None]:
    """Return how the catalog says that the drill of a process ended."""
    run = next(run for run in shop.runs() if run.pid == ended.pid and run.kind == "drill")
    return run.state, run.error


def assert_nothing_left(shop: Shop, ended: Ended) -> None:
    """Nothing runs, nothing lies about, nothing is on the books, nothing was said that must not be."""
    assert shop.host.processes() == {}
    assert shop.temporary_files() == []
    assert [*(shop.site.folder / "scratch").rglob("*")] == []
    assert shop.scratches() == 0
    assert shop.seen_secrets(ended) == []
