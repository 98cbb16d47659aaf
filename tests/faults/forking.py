"""Command lines that die on purpose: a site, a process that forks them, and what must hold after each."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative for a signal), what it said, and the points that it passed."""

    pid: int
    status: int
    stdout: str
    stderr: str
    passed: list[str]
    peak_bytes: int

    @property
    def said(self) -> str:
        """Return everything that was printed."""
        return self.stdout + self.stderr


@dataclass
class Forker:
    """A process that has imported drkit and forks one command after the other."""

    process: subprocess.Popen[str]
    count: int = field(default=0)

    def start(
        self,
        host: Host,
        *arguments: str,
        stop_at: str = "",
        stop_by: signal.Signals = signal.SIGKILL,
        impatient: bool = False,
        largest_file_bytes: int = 0,
        clock_offset_s: float = 0,
    ) -> StartedCommand:
        """Start a command on a host, to be stopped by a signal to itself when it passes the point ``stop_at``.

        An ``impatient`` one gives up on S3 within seconds and sends small parts; the clock may be another.
        """
        self.count += 1
        files = {name: host.folder / f"{name}-{self.count}" for name in ("stdout", "stderr", "trace")}
        how = {
            "stop_at": stop_at,
            "signal": int(stop_by),
            "impatient": impatient,
            "largest_file_bytes": largest_file_bytes,
            "clock_offset_s": clock_offset_s,
        }
        return self.fork(arguments, host.site_folder, host.environment, files, **how)

    def fork(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], files: Mapping[str, Path], **how: object
    ) -> StartedCommand:
        """Start a command that writes to ``files``: its stdout, its stderr and, if it is watched, its trace."""
        names = {name: str(path) for name, path in files.items()}
        job = {"arguments": arguments, "env": dict(env), "folder": str(cwd), **names, **how}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return StartedCommand(self, int(self._line()), files)

    def run(self, host: Host, *arguments: str, **how: object) -> Ended:
        """Run a command on a host to its end."""
        return self.start(host, *arguments, **how).wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the forking process ended"
        return line.strip()


@dataclass
class StartedCommand:
    """A command that runs; `wait` for it before the next one is started."""

    forker: Forker
    pid: int
    files: Mapping[str, Path]

    def wait(self) -> Ended:
        """Wait for the end and return it."""
        status, peak_bytes = map(int, self.forker._line().split())
        said = {name: path.read_text() for name, path in self.files.items() if path.exists()}
        passed = said.get("trace", "").splitlines()
        return Ended(self.pid, status, said.get("stdout", ""), said.get("stderr", ""), passed, peak_bytes)


@functools.cache
def shared_forker() -> Forker:
    """Return the forking process of all tests; it is started when the first asks, and ends with them."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running_forker())


@contextmanager
def running_forker() -> Iterator[Forker]:
    """Run a forking process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.injection"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Forker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


@dataclass(frozen=True)
class Host:
    """A machine of its own, as far as drkit can tell: home, folder for temporary files, site.

    Processes are told apart by the home folder in their environment, which children inherit.
    """

    folder: Path
    site_folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Return the home folder."""
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        """Return the folder for temporary files."""
        return self.folder / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment of a command on this host."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "NO_COLOR": "1",
            **self.variables,
        }

    def make_folders(self) -> None:
        """Make what every machine has."""
        for path in (self.home, self.temporary):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o711)

    def processes(self) -> dict[int, list[str]]:
        """Return the processes of this host, with their arguments."""
        mark = os.fsencode(f"HOME={self.home}")
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:
                continue
        return found


def wait_until(holds: object, what: str, *, timeout_s: float = 60) -> None:
    """Wait until ``holds()`` is true; fail naming ``what`` otherwise."""
    deadline = time.monotonic() + timeout_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def searched(paths: Sequence[Path], words: Sequence[str]) -> list[str]:
    """Return the files under ``paths`` that hold one of ``words``."""
    needles = [word.encode() for word in words]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [str(file) for file in files if file.is_file() and any(word in file.read_bytes() for word in needles)]
