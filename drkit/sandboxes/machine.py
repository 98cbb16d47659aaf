"""What this machine lends: cores, memory within its control group, and who a process is."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path

from drkit.model import Scratch
from drkit.process_identity import ProcessIdentity

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def core_count() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_limit_bytes() -> int:
    """Return the memory this process may use: the machine's, or its control group's where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits()])


def memory_available_bytes() -> int:
    """Return the memory that can be taken without pushing others out; the limit where the system does not say."""
    limit = memory_limit_bytes()
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
    except OSError:
        return limit
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return min(limit, int(fields.get("MemAvailable", f"{limit // 1024} kB").split()[0]) * 1024)


def _cgroup_limits() -> list[int]:
    """Return the limits of our control group and those above it; version 2 writes ``max`` where there is none."""
    try:
        memberships = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUP / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = root / path.lstrip("/")
        # In a container the path is the host's, and our own group is what is mounted as the root.
        for folder in {group, *group.parents} if path != "/" else {root}:
            if folder.is_relative_to(root):
                limits += _limit(folder / name)
    return limits


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []


def is_abandoned(scratch: Scratch, now: datetime) -> bool:
    """Tell whether a scratch of this host has lost its owner; other hosts' are theirs to judge.

    A drill that lives may take as long as it is allowed to. Age decides only where nobody can say whether the owner
    lives, because the system does not tell when a process began.
    """
    owner = ProcessIdentity(scratch.host, scratch.owner_pid, scratch.owner_started)
    if owner.is_known_alive():
        return False
    return owner.is_known_dead() or (scratch.host == socket.gethostname() and scratch.expires_at <= now)
