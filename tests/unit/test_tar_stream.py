"""The tar reader reads what tar writes, and refuses every name and kind that leads elsewhere."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.errors import IntegrityError
from drkit.tar_stream import read_tar

LONG = "/".join(["a_folder_with_a_name"] * 12) + "/file"


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry, content in members:
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, len(content), link
    return entry, content


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def contents(data: bytes, size: int = 1 << 20) -> dict[str, bytes]:
    return {entry.name: b"".join(content) for entry, content in read_tar(cut(data, size), "part base")}


@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}(/[a-z0-9.]{1,8}x){0,3}", fullmatch=True), st.binary(max_size=3000), max_size=8
    ),
    size=st.integers(1, 2000),
)
def test_what_tar_writes_is_read_in_chunks_of_any_size(files: dict[str, bytes], size: int) -> None:
    assert contents(packed(*(member(name, content) for name, content in files.items())), size) == files


def test_long_names_folders_and_links_are_read() -> None:
    data = packed(
        member("./"[:-1], kind=tarfile.DIRTYPE),
        member("pg_wal/", kind=tarfile.DIRTYPE),
        member(LONG, b"x"),
        member("pg_tblspc/1", kind=tarfile.SYMTYPE, link="/somewhere/" + "far/" * 60),
    )
    entries = [entry for entry, _ in read_tar(cut(data, 700), "part base")]
    assert [(entry.name, entry.kind) for entry in entries] == [
        ("", "folder"),
        ("pg_wal", "folder"),
        (LONG, "file"),
        ("pg_tblspc/1", "link"),
    ]
    assert entries[-1].link.startswith("/somewhere/far/far/")


def test_a_content_that_is_not_read_is_skipped() -> None:
    data = packed(member("a", b"1" * 5000), member("b", b"2"))
    assert [entry.name for entry, _ in read_tar(cut(data, 100), "part base")] == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out", "a/../../out", "a/./b", "a//b", "..", "base/..", "./../out", "a/.."]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    entry = tarfile.TarInfo("x")
    entry.name = name
    header = entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    with pytest.raises(IntegrityError, match="unsafe name"):
        contents(header)


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"x", b"V"]
)
def test_kinds_that_no_backup_has_are_refused(kind: bytes) -> None:
    with pytest.raises(IntegrityError, match="which no base backup has"):
        contents(packed(member("x", kind=kind)))


@pytest.mark.parametrize("left", [0, 100, 512, 700, 1500, 2047])
def test_a_cut_is_never_the_end(left: int) -> None:
    data = packed(member("a", b"1" * 1000))
    with pytest.raises(IntegrityError, match="ends in the middle"):
        contents(data[:left])


def test_damage_and_hidden_content_are_refused() -> None:
    data = bytearray(packed(member("a", b"1")))
    with pytest.raises(IntegrityError, match="goes on after its end"):
        contents(bytes(data) + b"more")
    data[3] ^= 1
    with pytest.raises(IntegrityError, match="damaged"):
        contents(bytes(data))
