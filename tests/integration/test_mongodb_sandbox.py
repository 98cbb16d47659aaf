"""The MongoDB sandbox lends a server on the loopback and takes it away on every path."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pymongo import MongoClient

from drkit.errors import SourceError
from drkit.model import Scratch
from drkit.sandboxes import SandboxRequest
from drkit.sandboxes.machine import is_abandoned
from drkit.sandboxes.mongodb import MongodbSandbox
from drkit.units import MIB
from tests.integration.test_sandbox import MemoryLedger, processes_in, wait_until

pytestmark = pytest.mark.usefixtures("mongodb_programs")

HOLDER = """
import sys
from pathlib import Path
from drkit.sandboxes import SandboxRequest
from drkit.sandboxes.mongodb import MongodbSandbox
from tests.integration.test_sandbox import MemoryLedger

class Printing(MemoryLedger):
    def add_scratch(self, scratch):
        print(scratch.scratch_id, scratch.locator, scratch.owner_pid, scratch.owner_started, scratch.host, flush=True)
        super().add_scratch(scratch)

with MongodbSandbox().open(SandboxRequest(8, 1, Path(sys.argv[1])), Printing()) as server:
    print("up", flush=True)
    sys.stdin.read()
"""


def a_request(folder: Path, need_bytes: int = MIB) -> SandboxRequest:
    return SandboxRequest(major=8, need_bytes=need_bytes, folder=folder)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a scratch server until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def row_of(holder: subprocess.Popen[str]) -> Scratch:
    """Return what the holder wrote down before it made anything."""
    assert holder.stdout is not None
    scratch_id, locator, pid, started, host = holder.stdout.readline().split()
    return Scratch(scratch_id, "mongodb", locator, host, int(pid), started, datetime.now(UTC) + timedelta(hours=1))


def test_a_server_is_lent_and_taken_away(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    with MongodbSandbox().open(a_request(tmp_path), ledger) as server:
        assert server.folder.stat().st_mode & 0o777 == 0o700
        assert server.url.reveal().startswith("mongodb://127.0.0.1:")
        with MongoClient(server.url.reveal()) as client:
            client["shop"]["orders"].insert_one({"_id": 1})
            assert client["shop"]["orders"].count_documents({}) == 1
        assert processes_in(server.folder)
    assert ledger.seen == [("add", False), ("remove", False)]
    assert processes_in(server.folder) == []
    assert list(tmp_path.iterdir()) == []


def test_a_compatible_server_says_that_it_is_one(tmp_path: Path) -> None:
    with MongodbSandbox().open(a_request(tmp_path), MemoryLedger()) as server:
        assert "a compatible server" in server.version


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    with pytest.raises(RuntimeError, match="broke"), MongodbSandbox().open(a_request(tmp_path), ledger):
        raise RuntimeError("the drill broke")
    assert ledger.rows == {}
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_leaves_a_stopped_server_that_is_reaped(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    row = row_of(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    assert not is_abandoned(row, datetime.now(UTC))
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=30)
    assert is_abandoned(row, datetime.now(UTC))
    folder = Path(row.locator)
    wait_until(lambda: not processes_in(folder), "the shell to kill the server")
    assert folder.exists()
    MongodbSandbox().reap(row)
    assert not folder.exists()
    MongodbSandbox().reap(row)


def test_an_owner_killed_while_the_server_starts_is_reaped(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    row = row_of(holder)
    wait_until((Path(row.locator) / "data").exists, "the server's folder")
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=30)
    MongodbSandbox().reap(row)
    assert not Path(row.locator).exists()
    # A child of the owner's that was not yet the shell is no program of the sandbox: it finds no folder and ends.
    wait_until(lambda: not processes_in(Path(row.locator)), "the end of all processes")
    assert not Path(row.locator).exists()


def test_a_server_that_does_not_start_is_said_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "mongod"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho the disk is made of cheese\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("DRKIT_MONGO_BIN", str(broken.parent))
    ledger = MemoryLedger()
    with (
        pytest.raises(SourceError, match="mongod did not start and has ended") as caught,
        MongodbSandbox().open(a_request(tmp_path / "scratch"), ledger),
    ):
        pass
    assert caught.value.details == ("the disk is made of cheese",)
    assert ledger.rows == {}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_is_missing_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = MemoryLedger()
    with (
        pytest.raises(SourceError, match="short"),
        MongodbSandbox().open(a_request(tmp_path, need_bytes=1 << 60), ledger),
    ):
        pass
    monkeypatch.setenv("DRKIT_MONGO_BIN", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="mongod was not found"), MongodbSandbox().open(a_request(tmp_path), ledger):
        pass
    assert ledger.seen == []


def test_reap_refuses_a_folder_that_is_not_a_scratch(tmp_path: Path) -> None:
    row = Scratch("01JD2K6Z8Q", "mongodb", str(tmp_path), "here", 1, "", datetime.now(UTC))
    with pytest.raises(SourceError, match="no scratch server's folder"):
        MongodbSandbox().reap(row)
    assert tmp_path.exists()
