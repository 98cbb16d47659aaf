"""The files of a base backup taken locally: what is left out, and what happens to a file that changes meanwhile."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastcrc import crc32
from hypothesis import given
from hypothesis import strategies as st

from drkit.engines.postgres_base_files import (
    TAR_END,
    CopiedFile,
    FoundFile,
    TarStream,
    in_chunks,
    list_data_folder,
    list_tablespace,
    readable,
)
from drkit.engines.postgres_base_manifest import backup_manifest
from drkit.errors import SourceError
from drkit.model import LogPosition
from drkit.units import CHUNK_BYTES

POSITION = LogPosition(timeline=2, start_lsn="0/3000028", stop_lsn="0/3000138", segment_bytes=1 << 24)


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def unpacked(pieces: Iterator[bytes]) -> dict[str, bytes]:
    """Read a tar as Python's tarfile does."""
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces) + TAR_END)) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            contents[entry.name] = file.read() if file else b""
    return contents


def test_what_the_server_leaves_out_is_left_out(tmp_path: Path) -> None:
    kept = ["PG_VERSION", "global/1262", "base/5/1259", "base/5/1259_fsm", "base/5/1259.1", "base/5/t_note"]
    kept += ["base/5/2000_init", "pg_xact/0000", "log/a.log", "postgresql.auto.conf", "base/5/PG_VERSION"]
    make(tmp_path, *kept)
    make(tmp_path, "postmaster.pid", "postmaster.opts", "backup_label", "tablespace_map", "backup_manifest")
    make(tmp_path, "global/pg_control", "global/pg_internal.init", "base/5/pg_internal.init.77", "pg_wal/" + "0" * 24)
    make(tmp_path, "base/pgsql_tmp/pgsql_tmp1.0", "base/5/t3_100", "base/5/t3_100_fsm.1", "pg_replslot/s/state")
    make(tmp_path, "base/5/2000", "base/5/2000_fsm", "base/5/2000.1", "pg_stat_tmp/x", "pg_subtrans/0000")
    listing = list_data_folder(tmp_path, 15)
    assert sorted(file.name for file in listing.files) == sorted(kept)
    assert {"pg_replslot", "pg_stat_tmp", "pg_subtrans", "pg_wal", "pg_wal/archive_status"} <= set(listing.folders)
    assert not {"base/pgsql_tmp", "pg_replslot/s"} & set(listing.folders)
    assert "pg_wal/summaries" in list_data_folder(tmp_path, 17).folders


def test_links_are_not_followed_and_strange_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    make(root, "PG_VERSION", "pg_tblspc/keep")
    make(tmp_path / "elsewhere", "secret")
    (root / "pg_tblspc" / "16400").symlink_to(tmp_path / "elsewhere")
    (root / "server.crt").symlink_to(tmp_path / "elsewhere" / "secret")
    os.mkfifo(root / "pipe")
    listing = list_data_folder(root, 15)
    assert {file.name for file in listing.files} == {"PG_VERSION", "pg_tblspc/keep"}
    assert sorted(listing.skipped) == ["pipe", "server.crt"]


def test_a_tablespace_has_only_the_folders_of_its_version(tmp_path: Path) -> None:
    make(tmp_path, "PG_15_202209061/5/100", "PG_15_202209061/5/t1_7", "PG_14_202107181/5/100", "note")
    listing = list_tablespace(tmp_path, 15)
    assert [file.name for file in listing.files] == ["PG_15_202209061/5/100"]
    assert listing.folders[0] == "PG_15_202209061"


class Changing(TarStream):
    """Lets a file change just after it was opened and its header was made."""

    def changed(self, name: str, change: bytes | None, path: Path) -> Iterator[bytes]:
        pieces = self.file(name)
        yield next(pieces)
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change)
        yield from pieces


@pytest.mark.parametrize(
    ("change", "expected"),
    [(b"12", b"12" + bytes(8)), (b"", bytes(10)), (b"x" * 99, b"x" * 10), (None, b"0123456789")],
    ids=["shrinks", "empties", "grows", "is removed"],
)
def test_a_file_that_changes_is_filled_up_or_cut(tmp_path: Path, change: bytes | None, expected: bytes) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    stream = Changing(tmp_path, "pg_tblspc/1/")
    assert unpacked(stream.changed("a", change, tmp_path / "a")) == {"a": expected}
    (copied,) = stream.copied
    assert (copied.path, copied.size_bytes, copied.crc32c) == (
        "pg_tblspc/1/a",
        10,
        crc32.iscsi(expected),
    )


def test_what_vanished_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "there", "folder/file")
    stream = TarStream(tmp_path)
    pieces = [*stream.folders(["folder", "gone"]), *stream.files([FoundFile("gone", 5), FoundFile("there", 5)])]
    assert unpacked(iter(pieces)) == {"folder": b"", "there": b"there"}
    assert [file.path for file in stream.copied] == ["there"]


def test_names_and_sizes_that_no_plain_header_holds(tmp_path: Path) -> None:
    long = "/".join(["folder"] * 30) + "/file"
    raw = os.fsdecode(b"caf\xe9")
    make(tmp_path, long, raw)
    stream = TarStream(tmp_path)
    assert unpacked(stream.files([FoundFile(long, 1), FoundFile(raw, 1)])) == {
        long: long.encode(),
        raw: os.fsencode(raw),
    }
    assert json.loads(backup_manifest(stream.copied, POSITION))["Files"][1]["Encoded-Path"] == b"caf\xe9".hex()


def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*Permission denied") as caught, readable(tmp_path / "a"):
        raise PermissionError(13, "Permission denied")
    assert "via: stream" in caught.value.hints[0]


@given(st.lists(st.integers(0, CHUNK_BYTES + 5), max_size=8))
def test_chunks_are_whole_and_never_tiny(sizes: list[int]) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    chunks = list(in_chunks(pieces))
    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) >= CHUNK_BYTES for chunk in chunks[:-1])


def test_the_manifest_is_covered_by_its_checksum() -> None:
    manifest = backup_manifest([CopiedFile('a "b"/ü', 3, 0, 0xE3069283)], POSITION)
    document = json.loads(manifest)
    assert document["Files"] == [
        {
            "Path": 'a "b"/ü',
            "Size": 3,
            "Last-Modified": "1970-01-01 00:00:00 GMT",
            "Checksum-Algorithm": "CRC32C",
            "Checksum": 0xE3069283.to_bytes(4, sys.byteorder).hex(),
        }
    ]
    assert document["WAL-Ranges"] == [{"Timeline": 2, "Start-LSN": "0/3000028", "End-LSN": "0/3000138"}]
    covered = manifest[: manifest.index(b'"Manifest-Checksum"')]
    assert document["Manifest-Checksum"] == hashlib.sha256(covered).hexdigest()
