"""A throw-away server that speaks MongoDB's protocol: private folder, loopback only, a random port, gone afterwards.

It is a `mongod` where there is one, else SecantusDB, which is a compatible server: whoever reads a result must know, so
the version says it. The server is the child of a shell that waits for a word on a pipe of ours; when drkit dies the
pipe ends, and the shell kills the server. What is left in the folder, the next command reaps.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ulid import ULID

from drkit.credentials import Secret
from drkit.errors import SourceError
from drkit.model import Scratch
from drkit.mongo_binaries import FOLDERS_VARIABLE, find_mongo_binary
from drkit.process import Command, open_consumer
from drkit.process_identity import start_mark
from drkit.sandboxes import SandboxRequest, ScratchFolder, ScratchLedger, ScratchServer
from drkit.sandboxes.machine import memory_available_bytes
from drkit.sandboxes.scratch import STOP_TIMEOUT_S, check_room, folder_name, recorded, take_away
from drkit.units import MIB

_EMPTY_SERVER_BYTES = 512 * MIB  # mongod's journal and its diagnostics
_START_TIMEOUT_S = 60.0
_POLL_MS = 250
_PROGRAMS = ("mongod", "secantusd-py", "sh")

_WATCH = """
"$@" >"$0" 2>&1 </dev/null &
server=$!
echo $server >"$0.pid"
read -r _
kill -KILL $server
wait $server
exit 0
"""
"""Run the server until a word comes or the pipe ends, which it does when drkit is killed."""


class MongodbSandbox:
    """Lends an empty server that speaks MongoDB's protocol."""

    kind = "mongodb"

    @contextmanager
    def open(self, request: SandboxRequest, ledger: ScratchLedger) -> Iterator[ScratchServer]:
        """Lend an empty server; on leaving stop it and remove every file, or raise SourceError naming what is left."""
        plan = _plan(request)
        reserved = recorded(plan.scratch_id, plan.folder, request, ledger, kind=self.kind, reap=self.reap)
        with reserved, _running(plan) as server:
            yield server

    def open_folder(self, request: SandboxRequest, ledger: ScratchLedger) -> AbstractContextManager[ScratchFolder]:  # noqa: ARG002
        """Refuse: no backup of MongoDB comes as the files of a server."""
        raise SourceError("a backup of MongoDB is loaded into a server; it does not come as a data folder")

    def reap(self, scratch: Scratch) -> None:
        """Take away the processes and files of a scratch; raise SourceError naming what is left of it."""
        take_away(scratch, _PROGRAMS)


@dataclass(frozen=True)
class _Plan:
    """What will be made, and where; nothing exists yet."""

    scratch_id: str
    folder: Path
    program: Path
    cache_bytes: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def stage(self) -> Path:
        return self.folder / "stage"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def compatible(self) -> bool:
        """Tell whether the server is one that only speaks MongoDB's protocol."""
        return self.program.name != "mongod"


def _plan(request: SandboxRequest) -> _Plan:
    """Find a server and check the room; raise SourceError with what is missing before anything is made."""
    program = find_mongo_binary("mongod") or find_mongo_binary("secantusd-py")
    if program is None:
        raise SourceError(
            "no server to restore into is installed: mongod was not found",
            hints=["install MongoDB's server", f"or name its folder: export {FOLDERS_VARIABLE}=/path/to/bin"],
        )
    parent = request.folder.absolute()
    parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    check_room(parent, request.need_bytes + _EMPTY_SERVER_BYTES)
    scratch_id = str(ULID())
    cache_bytes = max(256 * MIB, min(memory_available_bytes() // 4, 1024 * MIB))
    return _Plan(scratch_id, parent / folder_name(scratch_id), program, cache_bytes)


@contextmanager
def _running(plan: _Plan) -> Iterator[ScratchServer]:
    plan.folder.mkdir(mode=0o700)
    plan.stage.mkdir(mode=0o700)
    plan.data.mkdir(mode=0o700)
    port = _free_port()
    watch = ["/bin/sh", "-c", _WATCH, str(plan.log), *_argv(plan, port)]
    with open_consumer(Command(watch, cwd=plan.folder), idle_timeout_s=STOP_TIMEOUT_S) as watcher:
        url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        try:
            yield ScratchServer(Secret(url), _wait_until_ready(plan, url), plan.folder, plan.stage)
        finally:
            watcher.feed([b"stop\n"])


def _free_port() -> int:
    """Return a port that nobody uses; if somebody takes it first, the server does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _argv(plan: _Plan, port: int) -> list[str]:
    if plan.compatible:
        # An empty configuration of our own: it would look for one in other folders.
        (plan.folder / "server.toml").touch(mode=0o600)
        argv = [str(plan.program), f"--config={plan.folder / 'server.toml'}", f"--storage-path={plan.data}"]
        return [*argv, "--host=127.0.0.1", f"--port={port}", f"--cache-size={plan.cache_bytes // MIB}M"]
    argv = [str(plan.program), f"--dbpath={plan.data}", "--bind_ip=127.0.0.1", f"--port={port}", "--nounixsocket"]
    argv.append(f"--wiredTigerCacheSizeGB={plan.cache_bytes / (1024 * MIB):.2f}")
    # Documents that expire while they are compared would look lost.
    return [*argv, "--setParameter=ttlMonitorEnabled=false", "--setParameter=diagnosticDataCollectionEnabled=false"]


def _wait_until_ready(plan: _Plan, url: str) -> str:
    """Wait until the server answers and return its version; raise SourceError with its log when it ends before."""
    from pymongo import MongoClient
    from pymongo.errors import ServerSelectionTimeoutError

    until_s = time.monotonic() + _START_TIMEOUT_S
    client: MongoClient[dict[str, object]] = MongoClient(url, serverSelectionTimeoutMS=_POLL_MS)
    try:
        while time.monotonic() < until_s:
            try:
                build = client.admin.command("buildInfo")
            except ServerSelectionTimeoutError:
                continue
            finally:
                # Whoever answers in place of a server that has ended is a stranger.
                _require_alive(plan)
            version = str(build["version"])
            compatible = f" (SecantusDB {build.get('secantusVersion')}, a compatible server)" if plan.compatible else ""
            return version + compatible
    finally:
        client.close()
    raise _not_started(plan, f"within {_START_TIMEOUT_S:g} s")


def _require_alive(plan: _Plan) -> None:
    """Raise SourceError when the server has ended; before its number is written it has not begun."""
    pid_file = plan.log.with_name(f"{plan.log.name}.pid")
    number = pid_file.read_text().strip() if pid_file.exists() else ""
    if number and not start_mark(int(number)):
        raise _not_started(plan, "and has ended")


def _not_started(plan: _Plan, how: str) -> SourceError:
    lines = plan.log.read_text(errors="replace").splitlines()[-10:] if plan.log.exists() else []
    return SourceError(f"the scratch server {plan.program.name} did not start {how}", details=lines)
