"""Large files are written past the system's memory where that can be done, and are the same bytes in any case."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.operations import large_files
from drkit.operations.large_files import LargeFileWriter

CONTENT = os.urandom(3 * 1024 * 1024 + 8192 + 17)


def in_pieces(content: bytes, *sizes: int) -> Iterator[memoryview]:
    rest = memoryview(content)
    while rest:
        for size in sizes:
            yield rest[:size]
            rest = rest[size:]


def write(path: Path, content: bytes, *sizes: int, writer: LargeFileWriter | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        (writer or LargeFileWriter()).write(descriptor, in_pieces(content, *sizes))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 3 << 20, len(CONTENT)])
@pytest.mark.parametrize("sizes", [(1 << 20,), (700_000, 5, 1 << 20), (3 << 20,)])
def test_whatever_the_sizes_the_bytes_are_the_same(tmp_path: Path, size_bytes: int, sizes: tuple[int, ...]) -> None:
    write(tmp_path / "file", CONTENT[:size_bytes], *sizes)
    assert (tmp_path / "file").read_bytes() == CONTENT[:size_bytes]


def test_one_writer_writes_many_files(tmp_path: Path) -> None:
    writer = LargeFileWriter()
    for number in range(3):
        write(tmp_path / str(number), CONTENT[number:], 1 << 20, writer=writer)
    assert [(tmp_path / str(number)).read_bytes() for number in range(3)] == [CONTENT[number:] for number in range(3)]


def test_a_file_system_that_refuses_the_flag_is_written_to_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, argument)

    monkeypatch.setattr(large_files.fcntl, "fcntl", refuse)
    write(tmp_path / "file", CONTENT, 1 << 20)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_system_that_takes_the_flag_and_refuses_the_writes_is_written_to_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, real_fcntl = os.write, fcntl.fcntl
    flags = [0]

    def keep(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL:
            flags[0] = argument
            return 0
        return real_fcntl(descriptor, command, argument) | flags[0]

    def refuse(descriptor: int, content: memoryview) -> int:
        if flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_write(descriptor, content)

    monkeypatch.setattr(large_files.fcntl, "fcntl", keep)
    monkeypatch.setattr(large_files.os, "write", refuse)
    write(tmp_path / "file", CONTENT, 1 << 20)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert not flags[0] & os.O_DIRECT


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_takes_no_more_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(descriptor: int, content: memoryview) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(large_files.os, "write", refuse)
    with pytest.raises(OSError, match=os.strerror(code)):
        write(tmp_path / "file", CONTENT, 1 << 20)


def test_what_a_disk_takes_in_parts_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(large_files.os, "write", lambda descriptor, content: real(descriptor, content[: 3 * 4096]))
    write(tmp_path / "file", CONTENT, 1 << 20)
    assert (tmp_path / "file").read_bytes() == CONTENT
