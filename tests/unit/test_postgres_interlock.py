"""What a killed server leaves in shared memory is removed by its very name, and nobody else's is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drkit.operations.data_folder import MARKER, claimed, inspect_target
from drkit.sandboxes.postgres_interlock import remove_interlock

KERNELS_LIST = Path("/proc/sysvipc/shm")
CREATE_ONLY, REMOVE = 0o3600, 0
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]

pytestmark = pytest.mark.skipif(not KERNELS_LIST.exists(), reason="this kernel does not list System V shared memory")


@dataclass(frozen=True)
class Segment:
    key: int
    number: int

    def exists(self) -> bool:
        return any(line.split()[1] == str(self.number) for line in KERNELS_LIST.read_text().splitlines()[1:])


@pytest.fixture
def segment() -> Iterator[Segment]:
    """Make a segment as a server does: private to its user, of a key that a name in the file system gives."""
    key = next(key for key in range(-os.getpid() - 1, 0) if (number := libc.shmget(key, 56, CREATE_ONLY)) >= 0)
    made = Segment(key, number)
    yield made
    libc.shmctl(number, REMOVE, None)


@pytest.fixture
def name(tmp_path: Path) -> Callable[[int, int], Path]:
    """Return a function that makes a data folder whose postmaster.pid names a segment."""

    def write(key: int, number: int) -> Path:
        lines = ["4194305", str(tmp_path), "1795420000", "5432", "/tmp", "", f"{key % 2**64:9d} {number:9d}", "ready"]
        (tmp_path / "postmaster.pid").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def test_the_one_that_is_named_goes(segment: Segment, name: Callable[[int, int], Path]) -> None:
    data = name(segment.key, segment.number)
    assert segment.exists()
    remove_interlock(data)
    assert not segment.exists()
    remove_interlock(data)


def test_one_of_another_key_or_another_number_stays(segment: Segment, name: Callable[[int, int], Path]) -> None:
    remove_interlock(name(segment.key - 1, segment.number))
    remove_interlock(name(segment.key, segment.number + 1))
    assert segment.exists()


def test_one_that_somebody_works_with_stays(segment: Segment, name: Callable[[int, int], Path]) -> None:
    address = libc.shmat(segment.number, None, 0)
    remove_interlock(name(segment.key, segment.number))
    libc.shmdt(address)
    assert segment.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_one_of_another_owner_stays(segment: Segment, name: Callable[[int, int], Path]) -> None:
    data = name(segment.key, segment.number)
    os.chown(data / "postmaster.pid", 12345, 12345)
    remove_interlock(data)
    assert segment.exists()


@pytest.mark.parametrize(
    "text", ["", "1\n2\n3\n4\n5\n6\n", "1\n2\n3\n4\n5\n6\nx y\n", "1\n2\n3\n4\n5\n6\n7\n", "\0" * 9]
)
def test_a_file_that_names_none_is_passed_over(segment: Segment, tmp_path: Path, text: str) -> None:
    remove_interlock(tmp_path)
    (tmp_path / "postmaster.pid").write_text(text)
    remove_interlock(tmp_path)
    assert segment.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the folder is the server's user's, as after a restore by root")
def test_the_restore_after_a_killed_one_takes_it_away(
    segment: Segment, name: Callable[[int, int], Path], tmp_path: Path
) -> None:
    (name(segment.key, segment.number) / MARKER).write_text("{}")
    os.chown(tmp_path, 65534, 65534)
    with claimed(inspect_target(tmp_path, 0)):
        assert not segment.exists()
