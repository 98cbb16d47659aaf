"""The sandbox lends a server and takes it away on every path; each way of dying is tried on a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from drkit.errors import SourceError
from drkit.model import Scratch
from drkit.process_identity import ProcessIdentity
from drkit.sandboxes import SandboxRequest, ScratchServer
from drkit.sandboxes import postgres as sandbox_module
from drkit.sandboxes import scratch as scratch_module
from drkit.sandboxes.machine import core_count, is_abandoned, memory_available_bytes, memory_limit_bytes
from drkit.sandboxes.postgres import PostgresSandbox
from drkit.units import MIB
from tests.fixtures.postgres import postgres_bin
from tests.fixtures.waiting import wait_until

MAJOR = int(postgres_bin().parts[-2])


class MemoryLedger:
    """A ledger that also notes what was on disk when a row came or went."""

    def __init__(self) -> None:
        self.rows: dict[str, Scratch] = {}
        self.seen: list[tuple[str, bool]] = []

    def add_scratch(self, scratch: Scratch) -> None:
        self.rows[scratch.scratch_id] = scratch
        self.seen.append(("add", Path(scratch.locator).exists()))

    def remove_scratch(self, scratch_id: str) -> None:
        self.seen.append(("remove", Path(self.rows.pop(scratch_id).locator).exists()))

    def scratches(self) -> list[Scratch]:
        return list(self.rows.values())


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


def a_request(tmp_path: Path, **changes: object) -> SandboxRequest:
    return replace(SandboxRequest(major=MAJOR, need_bytes=10 * MIB, folder=tmp_path), **changes)  # type: ignore[arg-type]


def ask(server: ScratchServer, query: str) -> object:
    with psycopg.connect(server.url.reveal()) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def processes_in(folder: Path) -> list[str]:
    """Return every process that names the folder or works in it, by our own reading of /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            here = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command or here.startswith(str(folder)):
            found.append(f"{entry.name} {command}")
    return found


def test_a_server_is_lent_and_taken_away(tmp_path: Path, ledger: MemoryLedger) -> None:
    with PostgresSandbox().open(a_request(tmp_path), ledger) as server:
        assert len(ledger.rows) == 1
        assert ask(server, "select 40 + 2") == 42
        assert server.version.startswith(f"{MAJOR}.")
        assert server.folder.stat().st_mode & 0o777 == 0o700
        assert server.stage_folder.stat().st_mode & 0o777 == 0o700
        assert processes_in(server.folder)
        folder = server.folder
    assert ledger.seen == [("add", False), ("remove", False)]
    assert processes_in(folder) == []


def test_the_server_is_tuned_and_neutral(tmp_path: Path, ledger: MemoryLedger) -> None:
    request = a_request(tmp_path, settings={"max_locks_per_transaction": "1000", "max_connections": "5"})
    with PostgresSandbox().open(request, ledger) as server, psycopg.connect(server.url.reveal()) as connection:
        rows = connection.execute("select name, setting from pg_settings").fetchall()
        settings = dict(rows)
        owner = Path(f"/proc/{connection.info.backend_pid}").stat().st_uid
    assert owner != 0
    expected = {
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "archive_mode": "off",
        "autovacuum": "off",
        "jit": "off",
        "listen_addresses": "",
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": "",
        "max_locks_per_transaction": "1000",
    }
    assert {name: settings[name] for name in expected} == expected
    assert int(settings["max_connections"]) > 5


def test_settings_of_a_restored_superuser_do_not_rule_the_sessions_that_load(
    tmp_path: Path, ledger: MemoryLedger
) -> None:
    with PostgresSandbox().open(a_request(tmp_path), ledger) as server:
        with psycopg.connect(server.url.reveal(), autocommit=True) as connection:
            connection.execute("create role app nologin")
            for setting, value in (
                ("role", "app"),
                ("default_transaction_read_only", "on"),
                ("default_transaction_isolation", "serializable"),
                ("session_replication_role", "replica"),
                ("array_nulls", "off"),
                ("quote_all_identifiers", "on"),
            ):
                connection.execute(f"alter role postgres set {setting} = '{value}'".encode())
        assert ask(server, "select current_user::text") == "postgres"
        assert ask(server, "show transaction_read_only") == "off"
        assert ask(server, "show transaction_isolation") == "read committed"
        assert ask(server, "show session_replication_role") == "origin"
        assert ask(server, "select ('{NULL}'::text[])[1] is null") is True
        assert ask(server, "show quote_all_identifiers") == "off"


def test_an_exception_leaves_nothing(tmp_path: Path, ledger: MemoryLedger) -> None:
    broken: list[str] = []

    def break_in(server: ScratchServer) -> None:
        broken.append(str(server.folder))
        raise RuntimeError("the drill broke")

    with pytest.raises(RuntimeError, match="the drill broke"), PostgresSandbox().open(a_request(tmp_path), ledger) as s:
        break_in(s)
    folder = Path(broken[0])
    assert not folder.exists()
    assert ledger.rows == {}
    assert processes_in(folder) == []


def test_a_server_that_died_is_taken_away_as_well(tmp_path: Path, ledger: MemoryLedger) -> None:
    with PostgresSandbox().open(a_request(tmp_path), ledger) as server:
        words = (server.folder / "data/postmaster.pid").read_text().splitlines()
        postmaster, interlock = int(words[0]), words[6].split()[1]
        mapped = Path(f"/proc/{postmaster}/maps").read_text()
        assert f"{server.folder}/data/pg_dynshmem/" in mapped
        assert "/dev/shm/PostgreSQL" not in mapped, "what lies there is nobody's once the server was killed"
        assert interlock in shared_memory()
        os.kill(postmaster, signal.SIGKILL)
        folder = server.folder
    assert not folder.exists()
    assert processes_in(folder) == []
    assert interlock not in shared_memory()


def shared_memory() -> set[str]:
    """Return the numbers of the host's System V segments."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path, ledger: MemoryLedger) -> None:
    request = a_request(tmp_path, settings={"no_such_setting": "1"})
    with pytest.raises(SourceError, match="did not start") as caught, PostgresSandbox().open(request, ledger):
        pass
    assert any("no_such_setting" in line for line in caught.value.details)
    assert ledger.seen == [("add", False), ("remove", False)]


def test_too_little_room_is_refused_before_anything_is_made(tmp_path: Path, ledger: MemoryLedger) -> None:
    with (
        pytest.raises(SourceError, match="short"),
        PostgresSandbox().open(a_request(tmp_path, need_bytes=1 << 60), ledger),
    ):
        pass
    assert ledger.seen == []


def test_a_major_that_is_not_installed_is_refused(tmp_path: Path, ledger: MemoryLedger) -> None:
    refused = pytest.raises(SourceError, match="PostgreSQL 9 is not installed")
    with refused, PostgresSandbox().open(a_request(tmp_path, major=9), ledger):
        pass
    assert ledger.seen == []


def test_too_little_memory_is_refused(tmp_path: Path, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "memory_available_bytes", lambda: 100_000_000)
    refused = pytest.raises(SourceError, match="100 MB are available")
    with refused, PostgresSandbox().open(a_request(tmp_path), ledger):
        pass
    assert ledger.seen == []


def test_a_long_folder_gives_way_to_a_short_one(tmp_path: Path, ledger: MemoryLedger) -> None:
    long = tmp_path / ("x" * 60) / ("y" * 60)
    with PostgresSandbox().open(a_request(long), ledger) as server:
        assert ask(server, "select 1") == 1
    assert ledger.rows == {}


HOLDER = """
import sys, time
from pathlib import Path
from drkit.sandboxes import SandboxRequest
from drkit.sandboxes.postgres import PostgresSandbox
from tests.integration.test_sandbox import MAJOR, MemoryLedger

class Printing(MemoryLedger):
    def add_scratch(self, scratch):
        print(scratch.scratch_id, scratch.locator, scratch.owner_pid, scratch.owner_started, scratch.host, flush=True)
        super().add_scratch(scratch)

with PostgresSandbox().open(SandboxRequest(MAJOR, 1, Path(sys.argv[1])), Printing()) as server:
    print("up", flush=True)
    sys.stdin.read()
"""


def start_holder(tmp_path: Path) -> tuple[subprocess.Popen[str], Scratch]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    scratch_id, locator, pid, started, host = holder.stdout.readline().split()
    row = Scratch(scratch_id, "postgres", locator, host, int(pid), started, datetime.now(UTC) + timedelta(hours=1))
    return holder, row


def end(holder: subprocess.Popen[str], signal_number: int) -> None:
    holder.send_signal(signal_number)
    holder.wait(timeout=30)
    for pipe in (holder.stdin, holder.stdout):
        assert pipe is not None
        pipe.close()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_leaves_a_stopped_server_that_is_reaped(tmp_path: Path, signal_number: int) -> None:
    holder, row = start_holder(tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    folder = Path(row.locator)
    assert not is_abandoned(row, datetime.now(UTC))
    end(holder, signal_number)
    assert is_abandoned(row, datetime.now(UTC))
    wait_until(lambda: not processes_in(folder), "the watcher to stop the server")
    PostgresSandbox().reap(row)
    assert not folder.exists()
    PostgresSandbox().reap(row)


def test_an_owner_killed_while_it_starts_is_reaped(tmp_path: Path) -> None:
    holder, row = start_holder(tmp_path)
    folder = Path(row.locator)
    wait_until((folder / "data").exists, "initdb to begin")
    end(holder, signal.SIGKILL)
    PostgresSandbox().reap(row)
    assert not folder.exists()
    assert processes_in(folder) == []


def test_reap_stops_a_server_whose_watcher_died_too(tmp_path: Path) -> None:
    holder, row = start_holder(tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    folder = Path(row.locator)
    for line in processes_in(folder):
        if "/bin/sh" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
    end(holder, signal.SIGKILL)
    assert processes_in(folder)
    PostgresSandbox().reap(row)
    assert processes_in(folder) == []
    assert not folder.exists()


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    holder, row = start_holder(tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    end(holder, signal.SIGINT)
    assert not Path(row.locator).exists()
    assert processes_in(Path(row.locator)) == []


def test_reap_never_kills_a_stranger_with_the_number_of_the_server(tmp_path: Path) -> None:
    scratch_id = "01JD2K6Z8QSTRANGER00000000"
    folder = tmp_path / f"drkit-{scratch_id}"
    (folder / "data").mkdir(parents=True)
    stranger = subprocess.Popen(["/bin/sleep", "60"])
    try:
        (folder / "data/postmaster.pid").write_text(f"{stranger.pid}\n{folder}/data\n1\n5432\n")
        row = Scratch(scratch_id, "postgres", str(folder), "here", 1, "", datetime.now(UTC))
        PostgresSandbox().reap(row)
        assert stranger.poll() is None
        assert not folder.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_reap_refuses_a_folder_that_is_not_a_scratch(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    row = Scratch("01JD2K6Z8Q", "postgres", str(precious), "here", 1, "", datetime.now(UTC))
    with pytest.raises(SourceError, match="no scratch server's folder"):
        PostgresSandbox().reap(row)
    assert precious.exists()


def test_files_that_cannot_be_removed_are_named(
    tmp_path: Path, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(scratch_module.shutil, "rmtree", refuse)
        leaked = pytest.raises(SourceError, match="could not be removed")
        with leaked as caught, PostgresSandbox().open(a_request(tmp_path), ledger) as server:
            pass
    assert str(server.folder) in caught.value.message
    assert len(ledger.rows) == 1, "the row stays until the files are gone"
    PostgresSandbox().reap(ledger.scratches()[0])
    assert not server.folder.exists()


def test_a_scratch_of_another_host_or_a_living_owner_is_left_alone() -> None:
    now = datetime.now(UTC)
    theirs = Scratch("x", "postgres", "/tmp/drkit-x", "another-host", 1, "", now - timedelta(days=1))
    assert not is_abandoned(theirs, now)
    me = ProcessIdentity.own()
    ours = Scratch("x", "postgres", "/tmp/drkit-x", me.host, me.pid, me.start_mark, now - timedelta(days=1))
    assert not is_abandoned(ours, now), "a living owner's is not too old"
    assert is_abandoned(replace(ours, owner_started="another start"), now), "its number is somebody else's by now"
    unknown = replace(ours, owner_pid=2**22 + 1, owner_started="")
    assert is_abandoned(unknown, now)
    assert not is_abandoned(replace(unknown, expires_at=now + timedelta(hours=1)), now)


def test_the_machine_is_measured() -> None:
    assert core_count() >= 1
    assert 0 < memory_available_bytes() <= memory_limit_bytes()
