"""The catalog under several processes, kill -9 and a full disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from drkit.catalog import files
from drkit.catalog.sqlite import open_catalog
from drkit.errors import Busy
from tests.fixtures.bucket import NOW

ROOT = Path(__file__).parents[2]
TTL = timedelta(seconds=60)

_PRELUDE = """
import os, resource, sys, time
from datetime import timedelta
from pathlib import Path
from drkit.catalog.sqlite import open_catalog
from drkit.errors import Busy, CatalogError
from drkit.model import Run, Scratch
from tests.fixtures.bucket import NOW, entry_of, make_manifest
path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""


@contextmanager
def started(program: str, path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a Python program that has imported everything and waits for one line on its standard input."""
    command = [sys.executable, "-c", _PRELUDE + program, str(path), *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def run_at_once(programs: Sequence[tuple[str, Sequence[str]]], path: Path) -> list[str]:
    """Let several programs go at the same moment; return what each printed."""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(program, path, *arguments)) for program, arguments in programs]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=60) for process in processes]
        for process, (_, errors) in zip(processes, results, strict=True):
            assert process.returncode == 0, errors
        return [output for output, _ in results]


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("pragma integrity_check").fetchone()[0])
    finally:
        connection.close()


_FIGHT = """
me, gate = sys.argv[2], Path(sys.argv[3])
catalog = open_catalog(path)
won = 0
while won < 8:
    now = NOW + timedelta(seconds=time.monotonic())
    try:
        lease = catalog.acquire_lease("backup/orders", me, timedelta(seconds=600), now)
    except Busy:
        continue
    os.close(os.open(gate, os.O_CREAT | os.O_EXCL))   # fails if anybody else is inside
    print(lease.fence)
    gate.unlink()
    catalog.release_lease(lease)
    won += 1
"""


def test_four_processes_fight_for_a_lease_and_never_hold_it_together(tmp_path: Path) -> None:
    path, gate = tmp_path / "catalog.db", tmp_path / "gate"
    open_catalog(path, create=True).close()
    outputs = run_at_once([(_FIGHT, [f"p{number}", str(gate)]) for number in range(4)], path)
    fences = [[int(line) for line in output.split()] for output in outputs]
    assert sorted(fence for mine in fences for fence in mine) == [*range(1, 33)], "one fence for each change of holder"
    assert all(mine == sorted(mine) for mine in fences)


_HOLD = """
catalog = open_catalog(path)
catalog.acquire_lease("backup/orders", "the dead one", timedelta(seconds=60), NOW)
print("held", flush=True)
time.sleep(600)
"""


def test_the_lease_of_a_killed_holder_expires(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = open_catalog(path, create=True)
    with started(_HOLD, path) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write("go\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait(10)
    with pytest.raises(Busy, match="the dead one"):
        catalog.acquire_lease("backup/orders", "the heir", TTL, NOW + TTL - timedelta(microseconds=1))
    assert catalog.acquire_lease("backup/orders", "the heir", TTL, NOW + TTL).fence == 2
    catalog.close()


_WRITE = """
catalog = open_catalog(path)
for number in range(100_000):
    entry = entry_of(make_manifest(at=NOW + timedelta(seconds=number)), details={"padding": "x" * 5000})
    catalog.index_artifact(entry)
    print(entry.manifest.artifact_id, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 40])
def test_what_was_written_before_kill_9_is_there_and_the_file_is_sound(tmp_path: Path, after: int) -> None:
    path = tmp_path / "catalog.db"
    open_catalog(path, create=True).close()
    with started(_WRITE, path) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
        written = {writer.stdout.readline().strip() for _ in range(after)}
        writer.kill()
        written |= set(writer.stdout.read().split())
    catalog = open_catalog(path)
    found = {row.artifact_id for row in catalog.artifact_rows()}
    assert written <= found
    assert len(found) <= len(written) + 1
    for artifact_id in found:
        assert catalog.artifact(artifact_id).details is not None, "an artifact without what belongs to it"
    catalog.close()
    assert integrity(path) == "ok"


_FILL = """
catalog = open_catalog(path)
catalog.index_artifact(entry_of(make_manifest()))
limit = path.with_name(path.name + "-wal").stat().st_size + 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for number in range(1, 1000):
    try:
        catalog.index_artifact(entry_of(make_manifest(at=NOW + timedelta(seconds=number)), details={"x": "y" * 9000}))
    except CatalogError as error:
        print(number, len(catalog.artifact_rows()), error.message, error.hints[0], sep="|")
        break
"""


def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    open_catalog(path, create=True).close()
    (output,) = run_at_once([(_FILL, [])], path)
    failed_at, known, message, hint = output.strip().split("|")
    assert int(known) == int(failed_at) >= 1, "all that was indexed before is readable in the same process"
    assert message.startswith(f"cannot read or write the catalog {path}")
    assert hint == f"df -h {tmp_path}"
    catalog = open_catalog(path)
    assert len(catalog.artifact_rows()) == int(known)
    catalog.add_event("there is room again", NOW, {})
    catalog.close()
    assert integrity(path) == "ok"


_CREATE = """
catalog = open_catalog(path, create=True)
catalog.add_event("opened", NOW, {"by": sys.argv[2]})
print(len(catalog.events()) > 0)
catalog.close()
"""


def test_processes_that_create_a_catalog_at_once_share_one(tmp_path: Path) -> None:
    path = tmp_path / "var" / "catalog.db"
    run_at_once([(_CREATE, [str(number)]) for number in range(4)], path)
    catalog = open_catalog(path)
    assert {event["by"] for event in catalog.events()} == {"0", "1", "2", "3"}
    catalog.close()
    assert [item.name for item in path.parent.iterdir()] == ["catalog.db"], "no draft is left behind"


def test_processes_that_upgrade_a_catalog_at_once_do_it_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    connection = sqlite3.connect(path)
    connection.execute(f"pragma application_id = {files.APPLICATION_ID}")
    connection.close()
    run_at_once([(_CREATE, [str(number)]) for number in range(4)], path)
    connection = sqlite3.connect(path)
    applied = connection.execute("select name from _sqlite_migrations where migration_set = 'drkit'").fetchall()
    connection.close()
    assert len(applied) == files.SCHEMA_VERSION


def test_a_catalog_that_somebody_writes_to_without_a_log_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute(f"pragma application_id = {files.APPLICATION_ID}")
    writer.execute("begin immediate")
    refused = threading.Event()

    def on_wait(seconds: float) -> None:
        refused.set()
        real_sleep(seconds)

    real_sleep = time.sleep
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr("drkit.catalog.files.time.sleep", on_wait)
        opening = pool.submit(open_catalog, path)
        assert refused.wait(30)
        writer.execute("commit")
        writer.close()
        opening.result(30).close()
    assert integrity(path) == "ok"


_DIE_UPGRADING = """
import drkit.catalog.migrations as migrations
def die(*_):
    os.kill(os.getpid(), 9)
original = migrations.migrate
def migrate(db):
    original(db)
    die()
migrations.migrate = migrate
open_catalog(path, create=True)
"""


@pytest.mark.parametrize("upgrading", [True, False])
def test_kill_9_during_creation_or_upgrade_changes_nothing(tmp_path: Path, upgrading: bool) -> None:
    path = tmp_path / "catalog.db"
    if upgrading:
        connection = sqlite3.connect(path)
        connection.execute(f"pragma application_id = {files.APPLICATION_ID}")
        connection.close()
    with started(_DIE_UPGRADING, path) as victim:
        victim.communicate("go\n", timeout=60)
        assert victim.returncode == -9
    assert path.exists() == upgrading
    catalog = open_catalog(path, create=True)
    catalog.add_event("x", NOW, {})
    catalog.close()
    assert integrity(path) == "ok"
