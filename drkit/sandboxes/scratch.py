"""What every scratch server has in common: a folder of its own that is written down first, and is proven gone at last.

The folder's name is unique. So whatever process works in it, or names it in its arguments, is the server's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from drkit.errors import NoRoom, SourceError, shell_line
from drkit.model import Scratch
from drkit.process_identity import start_mark
from drkit.sandboxes import SandboxRequest, ScratchLedger
from drkit.units import format_bytes

STOP_TIMEOUT_S = 30.0
_COMM_CHARACTERS = 15  # that Linux keeps of a program's name (proc_pid_comm(5))
ANOTHER_SCRATCH = "export DRKIT_SCRATCH=FOLDER   (on a larger disk, then try again)"


def folder_name(scratch_id: str) -> str:
    """Return the name of a scratch's folder."""
    return f"drkit-{scratch_id}"


def check_room(folder: Path, need_bytes: int) -> None:
    """Raise NoRoom when less than ``need_bytes`` are free in ``folder``."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        raise NoRoom(
            f"a scratch server in {folder} needs {format_bytes(need_bytes)}, {format_bytes(free_bytes)} are free: "
            f"{format_bytes(need_bytes - free_bytes)} short",
            hints=[ANOTHER_SCRATCH],
        )


@contextmanager
def recorded(
    scratch_id: str,
    folder: Path,
    request: SandboxRequest,
    ledger: ScratchLedger,
    *,
    kind: str,
    reap: Callable[[Scratch], None],
) -> Iterator[None]:
    """Write the scratch down before anything of it is made, and strike it out when all of it is gone."""
    scratch = Scratch(
        scratch_id=scratch_id,
        kind=kind,
        locator=str(folder),
        host=socket.gethostname(),
        owner_pid=os.getpid(),
        owner_started=start_mark(os.getpid()),
        expires_at=datetime.now(UTC) + request.ttl,
    )
    ledger.add_scratch(scratch)
    try:
        yield
    finally:
        reap(scratch)
        ledger.remove_scratch(scratch_id)


def take_away(scratch: Scratch, programs: tuple[str, ...], release: Callable[[Path], None] | None = None) -> None:
    """Stop a scratch's processes and remove its files; raise SourceError naming what is left of it.

    ``programs`` are the names of those that may run in it. ``release`` gets its folder once nothing runs there any
    more, and gives back what the server held outside of it.
    """
    folder = Path(scratch.locator)
    if folder.name != folder_name(scratch.scratch_id) or not folder.is_absolute():
        raise SourceError(f"scratch {scratch.scratch_id} names {folder}, which is no scratch server's folder")
    for last in (False, False, True):
        left = _stop_processes(folder, programs)
        if left:
            raise SourceError(
                f"scratch server {folder} could not be stopped: it still holds restored data",
                details=[f"process {pid} ({command})" for pid, command in left],
                hints=[f"kill -9 {' '.join(str(pid) for pid, _ in left)}"],
            )
        if release is not None:
            release(folder)
        try:
            _remove(folder)
        except SourceError:
            # A program that was being started writes one more file; it is a process to stop by now.
            if last:
                raise
        else:
            return


def processes_of(folder: Path, programs: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return number and name of the programs that live in ``folder``, by working folder or arguments.

    The folder's name is unique, so a process that took over a number from a pid file can never be mistaken for it.
    """
    found = []
    names = {program[:_COMM_CHARACTERS] for program in programs}
    for entry in Path("/proc").iterdir() if Path("/proc/self").exists() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "comm").read_text().strip()
                if command in names and _lives_in(entry, folder):
                    found.append((int(entry.name), command))
    return found


def _lives_in(process: Path, folder: Path) -> bool:
    arguments = (process / "cmdline").read_bytes().split(b"\0")
    here = os.fsencode(folder)
    if any(argument == here or argument.startswith(here + b"/") for argument in arguments):
        return True
    return (process / "cwd").readlink().is_relative_to(folder)


def _stop_processes(folder: Path, programs: tuple[str, ...]) -> list[tuple[int, str]]:
    """Stop the server at once and return what is still there after the time-out."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    stop = signal.SIGQUIT
    while left := processes_of(folder, programs):
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, stop)
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
        if time.monotonic() > deadline - STOP_TIMEOUT_S / 2:
            stop = signal.SIGKILL
    return []


def _remove(folder: Path) -> None:
    """Remove the folder; raise SourceError naming it if that fails."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SourceError(
            f"scratch folder {folder} could not be removed and holds restored data: {error}",
            hints=[shell_line("rm", "-rf", folder)],
        ) from error
