"""Memory of chunks is used again instead of being cleared by the system each time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys, threading
from drkit.chunk_memory import keep_chunk_memory
if sys.argv[1] == "keep":
    keep_chunk_memory()
def make():
    for _ in range(500):
        held = [b"x" * (1 << 20) for _ in range(4)]
thread = threading.Thread(target=make)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no mallopt")
def test_the_memory_of_a_chunk_is_used_again() -> None:
    assert faults("keep") * 10 < faults("leave")
