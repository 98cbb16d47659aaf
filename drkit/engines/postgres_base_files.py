"""The files of a PostgreSQL server as tars, for a base backup that reads them itself.

What is left out, and what happens to a file that grows, shrinks or vanishes while it is read, is exactly as in the
server's own BASE_BACKUP (basebackup.c): replay of the WAL makes every such file right again, and empties or recreates
what is not copied.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastcrc import crc32

from drkit.engines.postgres_pages import PageCheck
from drkit.errors import SourceError
from drkit.units import CHUNK_BYTES

TAR_END = bytes(2 * tarfile.BLOCKSIZE)
CONTROL_FILE = "global/pg_control"

_LEFT_OUT = frozenset(
    {
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "backup_label",
        "tablespace_map",
        "backup_manifest",
        "postmaster.pid",
        "postmaster.opts",
        ".DS_Store",
    }
)
_LEFT_OUT_PREFIXES = ("pgsql_tmp", "pg_internal.init")
_EMPTIED = frozenset(
    {"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}
)
_TEMPORARY_RELATION = re.compile(r"t\d+_\d+(_[a-z]+)?(\.\d+)?")
_RELATION = re.compile(r"(\d+)(?:_(fsm|vm|init))?(?:\.\d+)?")
_DATABASE_FOLDER = re.compile(r"(?:base|PG_\d+_\d+)/\d+")


@dataclass(frozen=True)
class FoundFile:
    """A file below a root, by its name relative to it, with the size that it had when it was found."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class CopiedFile:
    """A file as it went into a tar: what PostgreSQL's backup manifest says of it."""

    path: str
    size_bytes: int
    modified_s: int
    crc32c: int


@dataclass(frozen=True)
class Listing:
    """What is to be copied from below one root; ``skipped`` are neither files nor folders."""

    files: Sequence[FoundFile]
    folders: Sequence[str]
    skipped: Sequence[str]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def list_data_folder(root: Path, major: int) -> Listing:
    """List a data folder, without the WAL, the tablespaces and the control file; raise SourceError for a bad one."""
    listing = _Lister(root)
    listing.walk("")
    listing.folders += ["pg_wal", "pg_wal/archive_status", *(["pg_wal/summaries"] if major >= 17 else [])]
    return listing.result()


def list_tablespace(location: Path, major: int) -> Listing:
    """List what servers of one version have in a tablespace; others may have folders of their own beside it."""
    listing = _Lister(location)
    with readable(location):
        try:
            folders = sorted(path.name for path in location.iterdir() if path.name.startswith(f"PG_{major}_"))
        except FileNotFoundError:
            folders = []
    for folder in folders:
        listing.folders.append(folder)
        listing.walk(folder + "/")
    return listing.result()


def refuse_not_utf8(tablespace: str, place: str) -> None:
    """Raise SourceError for a tablespace whose folder has a name that no manifest can say: it is not UTF-8."""
    raw = os.fsencode(place)
    said = raw.decode(errors="backslashreplace")
    if said.encode() != raw:
        raise SourceError(
            f"tablespace {tablespace} lies in a folder whose name is not UTF-8: {said}",
            hints=["stop the server, rename the folder, and set its link anew: ln -sfn FOLDER DATA/pg_tblspc/OID"],
        )


def no_files(tablespace: str, place: str) -> SourceError:
    """Return the error for a tablespace whose folder is not what the server made of it: a copy would lack its tables.

    Servers keep running on what is gone from a disk, and leave it out of a base backup without a word.
    """
    return SourceError(
        f"tablespace {tablespace} has no files of this server in {place}",
        hints=["mount its folder again, or drop the tablespace"],
    )


class _Lister:
    """Walks one root and sorts what it finds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[FoundFile] = []
        self.folders: list[str] = []
        self.skipped: list[str] = []

    def result(self) -> Listing:
        return Listing(self.files, self.folders, self.skipped)

    def walk(self, prefix: str) -> None:
        """List the folder ``prefix`` (with its slash), and what is below."""
        with readable(self.root / prefix):
            try:
                entries = sorted(os.scandir(self.root / prefix), key=lambda entry: entry.name)
            except FileNotFoundError:
                return  # a database or a relation's folder that was dropped meanwhile
        names = {entry.name for entry in entries}
        in_database = _DATABASE_FOLDER.fullmatch(prefix.rstrip("/")) is not None
        for entry in entries:
            name = prefix + entry.name
            if _is_left_out(entry.name) or name in {CONTROL_FILE, "pg_wal"}:
                continue
            if not (in_database and _is_not_replayed(entry.name, names)):
                self._take(entry, name)

    def _take(self, entry: os.DirEntry[str], name: str) -> None:
        with readable(self.root / name):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                return
        if stat.S_ISDIR(status.st_mode):
            self.folders.append(name)
            if entry.name not in _EMPTIED:
                self.walk(name + "/")
        elif stat.S_ISREG(status.st_mode):
            self.files.append(FoundFile(name, status.st_size))
        elif not name.startswith("pg_tblspc/"):
            self.skipped.append(name)


def _is_left_out(name: str) -> bool:
    return name in _LEFT_OUT or name.startswith(_LEFT_OUT_PREFIXES)


def _is_not_replayed(name: str, names: set[str]) -> bool:
    """Tell whether a file of a database is a temporary relation's, or an unlogged one's other than its init fork."""
    if _TEMPORARY_RELATION.fullmatch(name):
        return True
    relation = _RELATION.fullmatch(name)
    return relation is not None and relation[2] != "init" and f"{relation[1]}_init" in names


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading the server's files into SourceError; FileNotFoundError stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror}",
            hints=["run drkit as the user that the database server runs as, or use via: stream"],
        ) from error


class TarStream:
    """Makes the chunks of one tar from files below ``root``, and keeps what the backup manifest has to say of them.

    ``prefix`` is put before the names for that manifest, not in the tar. With ``pages`` the checksums of pages are
    verified on the way.
    """

    def __init__(self, root: Path, prefix: str = "", pages: PageCheck | None = None) -> None:
        self._root = root
        self._prefix = prefix
        self._pages = pages
        self.copied: list[CopiedFile] = []

    def folders(self, names: Iterable[str]) -> Iterator[bytes]:
        """Yield entries for folders; one that vanished is left out."""
        for name in names:
            with readable(self._root / name):
                try:
                    status = (self._root / name).stat()
                except FileNotFoundError:
                    continue
            yield _header(name, status, size_bytes=0, kind=tarfile.DIRTYPE)

    def files(self, files: Iterable[FoundFile]) -> Iterator[bytes]:
        """Yield entries for files, each with as many bytes as it had when it was opened.

        One that shrinks is filled up with zeros, one that grows is cut, one that vanished is left out.
        """
        for file in files:
            yield from self.file(file.name)

    def file(self, name: str) -> Iterator[bytes]:
        """Yield the entry of one file; nothing when there is no such file any more."""
        path = self._root / name
        with readable(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        try:
            status = os.fstat(descriptor)
            checksum = 0
            yield _header(name, status, size_bytes=status.st_size)
            pages = self._pages if self._pages and self._pages.wants(name) else None
            left_bytes = status.st_size
            while left_bytes:
                with readable(path):
                    chunk = os.read(descriptor, min(left_bytes, CHUNK_BYTES)) or bytes(min(left_bytes, CHUNK_BYTES))
                    if pages:
                        pages.add(name, chunk, status.st_size - left_bytes)
                checksum = crc32.iscsi(chunk, checksum)
                left_bytes -= len(chunk)
                yield chunk
            yield _padding(status.st_size)
        finally:
            os.close(descriptor)
        self._keep(name, status.st_size, int(status.st_mtime), checksum)

    def content(self, name: str, content: bytes, modified_s: int) -> Iterator[bytes]:
        """Yield the entry of a file that is not read from the root."""
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(content), 0o600, modified_s
        yield entry.tobuf(tarfile.GNU_FORMAT) + content + _padding(len(content))
        self._keep(name, len(content), modified_s, crc32.iscsi(content))

    def _keep(self, name: str, size_bytes: int, modified_s: int, crc32c: int) -> None:
        self.copied.append(CopiedFile(self._prefix + name, size_bytes, modified_s, crc32c))


def _header(name: str, status: os.stat_result, *, size_bytes: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size_bytes
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    return entry.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % tarfile.BLOCKSIZE)


def in_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join headers and small files until they make a mebibyte; a piece that is that large passes as it is."""
    held: list[bytes] = []
    held_bytes = 0
    for piece in pieces:
        if len(piece) >= CHUNK_BYTES and not held:
            yield piece
            continue
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes >= CHUNK_BYTES:
            yield b"".join(held)
            held, held_bytes = [], 0
    if held:
        yield b"".join(held)
