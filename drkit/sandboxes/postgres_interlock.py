"""The piece of shared memory by which PostgreSQL knows that somebody still works in a data folder.

A server removes it as it ends. One that was killed leaves it behind until the host is started anew, and a host has room
for 4096 of them; so whoever takes such a data folder away takes it along. postmaster.pid names it in its seventh line:
key and id (PostgreSQL, src/include/utils/pidfile.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SEGMENTS = Path("/proc/sysvipc/shm")
_LINE = 6
_KEY_VALUES = 1 << 32
_IPC_RMID = 0


@dataclass(frozen=True)
class _Segment:
    """One line of the kernel's list (proc_sysvipc_shm(5))."""

    key: int
    number: int
    attached: int
    uid: int


def remove_interlock(data: Path) -> None:
    """Remove what a killed server of that data folder left in shared memory; call it once nothing runs there.

    Only the segment that its postmaster.pid names by key and id, of the same owner, and never one that a process is
    attached to: every server that lives is. Without such a segment, or a /proc that tells, nothing is done.
    """
    try:
        pid_file = data / "postmaster.pid"
        key, number = (int(word) for word in pid_file.read_text(errors="replace").splitlines()[_LINE].split())
        owner = pid_file.stat().st_uid
    except (OSError, ValueError, IndexError):
        return  # it ended in good order, or before it had one
    for segment in _segments():
        if (segment.key, segment.number, segment.uid) == (key % _KEY_VALUES, number, owner) and not segment.attached:
            ctypes.CDLL(None).shmctl(number, _IPC_RMID, None)


def _segments() -> Iterator[_Segment]:
    lines: list[str] = []
    with suppress(OSError):
        lines = _SEGMENTS.read_text().splitlines()[1:]
    for line in lines:
        key, number, _, _, _, _, attached, uid, *_ = (int(word) for word in line.split())
        yield _Segment(key % _KEY_VALUES, number, attached, uid)
