"""Writing the files of a base artifact into an empty folder: side by side, safely named, the control file last.

Nothing is written through a link: tablespaces have folders of their own, and the links that lead to them are made when
all files are there. The folder belongs to us alone until then, so nobody can plant a link in our way.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from drkit.errors import IntegrityError, written
from drkit.operations.folder_sync import FolderSync
from drkit.operations.large_files import LargeFileWriter, write_all
from drkit.tar_stream import TarEntry, read_tar
from drkit.units import CHUNK_BYTES

CONTROL_FILE = "global/pg_control"
BACKUP_MANIFEST = "backup_manifest"

_TABLESPACE_PART = re.compile(r"tablespace-(?P<oid>[1-9][0-9]*)(?:-[0-9]+)?")
_DATA_PART = re.compile(r"base(?:-[0-9]+)?")
_LARGEST_CONTROL_FILE_BYTES = 1 << 16
_LARGEST_MANIFEST_NOTE_BYTES = 1 << 30
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGE_BYTES = CHUNK_BYTES


@dataclass(frozen=True)
class Owner:
    """Whom the files shall belong to; None leaves them to us."""

    uid: int
    gid: int

    def take(self, path: Path | int) -> None:
        """Give a file or folder (or a descriptor of it) to the owner, when it is not theirs already."""
        if self.uid != os.geteuid():
            os.chown(path, self.uid, self.gid)

    def take_entry(self, path: Path) -> None:
        """Give the entry itself to the owner, also when it is a link."""
        if self.uid != os.geteuid():
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


class Extraction:
    """One data folder that is being written; `write` may be called by several threads, once for each part.

    With ``to_disk`` large files go straight to the disk: for what is to be durable, not for what is read at once.
    """

    def __init__(self, data: Path, tablespaces: Path, config: Path, owner: Owner, *, to_disk: bool = False) -> None:
        self.data = data
        self._to_disk = to_disk
        self._tablespaces = tablespaces
        self._config = config
        self._owner = owner
        self._lock = threading.Lock()
        self._folders: set[Path] = set()
        self._control: bytes | None = None
        self.oids: set[str] = set()

    def write(self, part: str, kind: str, chunks: Iterable[bytes]) -> None:
        """Write one part; raise IntegrityError for a name or a kind of file that no base backup has."""
        what = f"part {part}"
        with written(self.data):
            if kind == "manifest":
                self._write_file(self.data / BACKUP_MANIFEST, (memoryview(chunk) for chunk in chunks))
            elif kind == "config":
                self._write_tar(self._config, chunks, what)
            elif match := _TABLESPACE_PART.fullmatch(part):
                folder = self._tablespaces / match["oid"]
                self._make_folder(folder)
                with self._lock:
                    self.oids.add(match["oid"])
                self._write_tar(folder, chunks, what)
            elif _DATA_PART.fullmatch(part):
                self._write_tar(self.data, chunks, what)
            else:
                raise IntegrityError(f"{what} of kind {kind} is none that this drkit can restore")

    def _write_tar(self, root: Path, chunks: Iterable[bytes], what: str) -> None:
        self._make_folder(root)
        large = LargeFileWriter() if self._to_disk else None
        for entry, content in read_tar(chunks, what):
            if root == self.data and self._is_set_aside(entry, content, what):
                continue
            if entry.kind == "link":
                raise IntegrityError(f"{what} has a link, {entry.name}, where none can be")
            path = root / entry.name
            if entry.kind == "folder":
                self._make_folder(path)
            else:
                self._make_folder(path.parent)
                self._write_file(path, content, large if entry.size_bytes >= _LARGE_BYTES else None)

    def _is_set_aside(self, entry: TarEntry, content: Iterator[memoryview], what: str) -> bool:
        """Keep the control file for the end; leave out the links to tablespaces, which are made anew."""
        top, _, rest = entry.name.partition("/")
        if entry.name == CONTROL_FILE:
            if entry.size_bytes > _LARGEST_CONTROL_FILE_BYTES or self._control is not None:
                raise IntegrityError(f"{what} has a control file that cannot be one")
            self._control = b"".join(content)
            return True
        if top != "pg_tblspc" or not rest:
            return False
        if entry.kind == "file" or "/" in rest or not rest.isdigit():
            raise IntegrityError(f"{what} has {entry.name} in the place of a tablespace")
        return True

    def _make_folder(self, path: Path) -> None:
        with self._lock:
            if path in self._folders:
                return
        if path not in (self.data, self._tablespaces, self._config):
            self._make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            self._owner.take(path)
        if path.is_symlink() or not path.is_dir():
            raise IntegrityError(f"{path.name} is a file and a folder at once in this backup")
        with self._lock:
            self._folders.add(path)

    def _write_file(self, path: Path, content: Iterable[memoryview], large: LargeFileWriter | None = None) -> None:
        try:
            descriptor = os.open(path, _WRITE_FLAGS, 0o600)
        except FileExistsError as error:
            raise IntegrityError(f"{path.name} is twice in this backup") from error
        try:
            self._owner.take(descriptor)
            if large is not None:
                large.write(descriptor, content)
            else:
                for piece in content:
                    write_all(descriptor, piece)
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Link the tablespaces, and write what the server's start would link them by (tablespace_map) anew.

        The map in the backup names the source's own folders: read as it is, a drill on the source's host would write
        into production's files (T26). Raise IntegrityError for a tablespace without files.
        """
        with written(self.data):
            links = self.data / "pg_tblspc"
            self._make_folder(links)
            for oid in sorted(self.oids, key=int):
                self._link(links / oid, self._tablespaces / oid)
            known = self._mapped()
            if known - self.oids:
                missing = ", ".join(sorted(known - self.oids))
                raise IntegrityError(f"the backup has no files of tablespace {missing}")

    def adopt(self, folder: Path, oids: set[str]) -> None:
        """Take over a whole data folder, made from several, with the tablespaces that already are in their place."""
        control = folder / CONTROL_FILE
        with written(self.data):
            self._control = control.read_bytes()
            control.unlink()
            for item in [*folder.iterdir()]:
                item.rename(self.data / item.name)
                self._take_all(self.data / item.name)
            for oid in oids:
                self._take_all(self._tablespaces / oid)
            if oids:
                self._owner.take(self._tablespaces)
        self.oids = oids

    def _take_all(self, path: Path) -> None:
        """Give a file or a folder and all in it to the owner, links themselves instead of what they lead to."""
        for folder, names, files in os.walk(path):
            for name in [*names, *files]:
                self._owner.take_entry(Path(folder) / name)
        self._owner.take_entry(path)

    @property
    def tablespaces(self) -> Path:
        """Return the folder of the tablespaces' folders."""
        return self._tablespaces

    def remap(self) -> None:
        """Rewrite tablespace_map; after this the backup manifest does not fit it any more."""
        path = self.data / "tablespace_map"
        if path.exists():
            lines = [f"{oid} {_escaped(self._tablespaces / oid)}\n" for oid in sorted(self.oids, key=int)]
            path.unlink()
            with written(path):
                self._write_file(path, [memoryview(os.fsencode("".join(lines)))])

    def _mapped(self) -> set[str]:
        path = self.data / "tablespace_map"
        if not path.exists():
            return set()
        return {match["oid"].decode() for match in _MAP_LINE.finditer(path.read_bytes())}

    def _link(self, link: Path, target: Path) -> None:
        link.symlink_to(target)
        self._owner.take_entry(link)

    def write_control_file(self) -> None:
        """Write the control file, without which no server starts here, and make it last."""
        if self._control is None:
            raise IntegrityError("the backup has no control file")
        with written(self.data):
            path = self.data / CONTROL_FILE
            self._make_folder(path.parent)
            self._write_file(path, [memoryview(self._control)])

    @contextmanager
    def syncing(self, passed_over: Collection[str] = ()) -> Iterator[None]:
        """Make durable what is there and comes while the body goes on, so that `sync` finds little left to do.

        What is called one of ``passed_over`` in the folder itself is left for `sync`. Raise SourceError after the body
        when that fails.
        """
        with self._folder_sync.beside(passed_over):
            yield

    def sync(self) -> None:
        """Make everything durable; raise SourceError when that fails."""
        self._folder_sync.sync()

    @cached_property
    def _folder_sync(self) -> FolderSync:
        roots = [self.data]
        if self._tablespaces.exists() and not self._tablespaces.is_relative_to(self.data):
            roots.append(self._tablespaces)
        return FolderSync(roots)


_MAP_LINE = re.compile(rb"(?P<oid>[^ \\\n]+) (?:\\.|[^\\\n])*\n?", re.DOTALL)
"""A line of tablespace_map; a line break in a folder's name has a backslash before it."""


def _escaped(path: Path) -> str:
    """Write a path as the server reads it from tablespace_map (xlogrecovery.c, read_tablespace_map)."""
    return re.sub(r"([\\\n\r])", r"\\\1", str(path))
