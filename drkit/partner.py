"""A child that works with us: it is told what to do in one line, says lines back, and ends when we do.

Its standard input stays open for as long as we live, so that it can take the end of it for the end of us: a process
that is killed can tell nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable

from drkit.process import Command, start_partner

_KILL_AFTER_S = 5.0
_LINE_BYTES = 1 << 20
_LAST_LINES = 20


class Partner:
    """A running child; ``hear`` is called with each line it says, from another thread. Close it in the end."""

    def __init__(self, command: Command, task: bytes, hear: Callable[[bytes], None]) -> None:
        self._process = start_partner(command)
        self._hear = hear
        self._threads = [
            threading.Thread(target=self._listen, name="job output", daemon=True),
            threading.Thread(target=self._drain, name="job errors", daemon=True),
        ]
        self.complaints: list[str] = []
        for thread in self._threads:
            thread.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(task + b"\n")

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in iter(lambda: _line_of(self._process), b""):
                self._hear(line)

    def _drain(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            for line in iter(lambda: self._process.stderr.readline(_LINE_BYTES), b""):  # type: ignore[union-attr]
                self.complaints = [*self.complaints[1 - _LAST_LINES :], line.decode(errors="replace").rstrip()]

    def ended(self) -> int | None:
        """Return the exit status once the child has ended and all that it said was heard; None before."""
        status = self._process.poll()
        if status is not None:
            for thread in self._threads:
                thread.join(timeout=1)
        return status

    def last_words(self) -> str:
        """Return what a child that has ended complained of last, or how it ended when it said nothing."""
        status = self._process.poll()
        if self.complaints:
            return "; ".join(self.complaints[-3:])
        if status is None or status >= 0:
            return "its process ended without a word"
        name = signal.Signals(-status).name
        who = ": somebody did that, or the kernel as memory was short (dmesg says so)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{who}"

    def ask_to_end(self) -> None:
        """Ask the child to end as Ctrl-C would: it ends its own children, queries and uploads first."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the child's end; return whether it came."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=timeout_s)
        return self._process.poll() is not None

    def close(self, patience_s: float = _KILL_AFTER_S) -> None:
        """End the child, by force if it does not listen within ``patience_s``."""
        self.ask_to_end()
        if not self.wait(patience_s):
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline(_LINE_BYTES)
