"""Which process it is: told apart from a later one that was given the same number."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """Which process: host, pid and when it started, because pids are used again."""

    host: str
    pid: int
    start_mark: str

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), start_mark(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Read what ``str`` wrote; anything else is a process of a host that is not this one."""
        host, _, rest = text.partition("/")
        pid, _, mark = rest.partition("@")
        return cls(host, int(pid), mark) if pid.isdecimal() else cls("", 0, "")

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}@{self.start_mark}"

    def is_known_alive(self) -> bool:
        """Tell whether the process runs on this host; of another host's process nothing is known."""
        here = self.host == socket.gethostname() and bool(self.start_mark)
        return here and start_mark(self.pid) == self.start_mark

    def is_known_dead(self) -> bool:
        """Tell whether the process ran on this host and is gone; of another host's process nothing is known."""
        return self.host == socket.gethostname() and start_mark(self.pid) != self.start_mark


def start_mark(pid: int) -> str:
    """Return a word that tells a process from a later one with the same number; empty when there is none.

    On Linux it is the start of the boot's id and the process's start in clock ticks since boot (proc(5), field 22),
    elsewhere what ps prints.
    """
    proc = Path("/proc")
    if (proc / "self/stat").exists():
        try:
            stat = (proc / str(pid) / "stat").read_text(errors="replace")
            boot = (proc / "sys/kernel/random/boot_id").read_text()
        except OSError:
            return ""
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{boot[:8]}.{fields[19]}"
    done = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "_".join(done.stdout.split())
