"""A folder as a store (R11): what is in place is whole and durable, whatever is pulled out when.

An object is written under a temporary name in its own folder, fsynced, and linked into place: ``link`` fails when the
name is taken, which is what makes it create-only where ``rename`` would overwrite. Temporary names and the lock file
hold a ``~``, which no key may, so that a listing can tell them apart. Needs hard links and ``flock``.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from drkit.errors import StoreError, StoreExists, StoreMissing, StoreUnavailable, shell_line
from drkit.stores import ObjectInfo, Traits
from drkit.stores.naming import check_key, check_prefix, is_key
from drkit.units import CHUNK_BYTES

_TEMPORARY_PREFIX = "~put-"
_LOCK_NAME = "~lock"
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN, errno.EINTR}


class FileStore:
    """Objects as files under ``root``, a folder that must exist: an unmounted disk is an error, not an empty store."""

    traits = Traits(create_only=True, compare_and_swap=True, versions=False, object_lock=False, local=True)

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.url = root.as_uri()
        self._root = root

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        """Create an object (`Store.put`): one pass, one fsync; only where the name is taken are bytes compared."""
        path = self._path(key)
        with self._temporary(path) as (temporary, file):
            for chunk in chunks:
                with self._translated(path):
                    _write_all(file, chunk)
            with self._translated(path):
                os.fsync(file.fileno())
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    if not _same_bytes(temporary, path):
                        raise StoreExists(f"{key} is in store {self.name} already, with other bytes") from None
                temporary.unlink()
                _sync_folder(path.parent)
        return self.head(key)

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        """Write a small object if its revision is still ``expected`` (`Store.replace`), under the store's one lock."""
        path = self._path(key)
        with self._temporary(path) as (temporary, file), self._translated(path), _locked(self._root):
            if _revision_of(path) != expected:
                raise StoreExists(f"{key} in store {self.name} was changed by somebody else")
            _write_all(file, content)
            os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
            return _describe(key, path.stat())

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:  # noqa: ARG002
        """Read an object (`Store.open`); there are no versions, so ``version_id`` is not looked at."""
        path = self._path(key)
        with self._translated(path):
            file = _open_regular(path)
        with file:
            yield self._read(file, path)

    def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:  # noqa: ARG002
        """Describe an object (`Store.head`); there are no versions, so ``version_id`` is not looked at."""
        path = self._path(key)
        with self._translated(path):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
        return _describe(key, status)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Describe the objects under ``prefix`` in order of keys (`Store.list`)."""
        check_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        with self._translated(self._root):
            self._root.stat()
        return self._walk(folder + "/" if folder else "", prefix)

    def delete(self, key: str, *, version_id: str | None = None) -> None:  # noqa: ARG002
        """Remove an object and the folders that it leaves empty (`Store.delete`)."""
        path = self._path(key)
        with self._translated(path):
            self._root.stat()
            try:
                path.unlink()
            except FileNotFoundError:
                return
            _sync_folder(path.parent)
            for folder in path.parents:
                if folder == self._root or not _remove_empty(folder):
                    return

    def extend_lock(self, key: str, until: datetime, *, version_id: str | None = None) -> None:
        """Do nothing: a folder has no locks (`Store.extend_lock`)."""

    def abort_leftovers(self, *, older_than: datetime) -> int:
        """Remove temporary files that were last written before ``older_than``; return how many."""
        removed = 0
        with self._translated(self._root):
            self._root.stat()
            for path in self._root.rglob(f"{_TEMPORARY_PREFIX}*"):
                try:
                    if path.stat().st_mtime < older_than.timestamp():
                        path.unlink()
                        removed += 1
                except FileNotFoundError:
                    continue
        return removed

    def examine(self, key: str) -> Mapping[str, bool]:  # noqa: ARG002
        """Return nothing: there is no server that could be asked (`Store.examine`)."""
        return {}

    def close(self) -> None:
        """Do nothing; no file stays open between calls."""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _temporary(self, path: Path) -> Iterator[tuple[Path, io.FileIO]]:
        """Lend a new file beside ``path``, and take it away again unless it was moved into place."""
        temporary = path.with_name(f"{_TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
        with self._translated(path):
            file = self._create(temporary)
        try:
            with file:
                yield temporary, file
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _create(self, temporary: Path) -> io.FileIO:
        """Open a new private file, making its folders; another process may be removing them as empty meanwhile."""
        self._root.stat()
        for attempt in range(5):
            self._make_folders(temporary.parent)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                if attempt == 4:
                    raise
            else:
                return io.FileIO(descriptor, "wb")
        raise AssertionError("not reached")

    def _make_folders(self, folder: Path) -> None:
        if folder == self._root or folder.is_dir():
            return
        self._make_folders(folder.parent)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if folder.is_file():
                raise StoreError(
                    f"{folder} of store {self.name} is an object, so nothing can be put under it"
                ) from None
            return
        _sync_folder(folder.parent)

    def _read(self, file: io.FileIO, path: Path) -> Iterator[bytes]:
        with self._translated(path):
            size_bytes = os.fstat(file.fileno()).st_size
        position = 0
        while position < size_bytes:
            with self._translated(path):
                # Room for a whole chunk costs more than reading one of the small files of which a log has thousands.
                chunk = file.read(min(CHUNK_BYTES, size_bytes - position))
            if not chunk:
                raise StoreUnavailable(f"{path} of store {self.name} ended after {position:,} of {size_bytes:,} bytes")
            position += len(chunk)
            yield chunk

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """Walk depth first. Folders sort with their slash, as in their keys: ``a.b`` comes before ``a/b``.

        A folder of log has a hundred thousand files. They are asked for by their names alone, beside the open folder:
        by their whole paths, or by `head`, it would take several times as long.
        """
        with self._translated(self._root / folder):
            try:
                descriptor = os.open(self._root / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return
            try:
                with os.scandir(descriptor) as entries:
                    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
                for name in names:
                    key = folder + name
                    if name.endswith("/"):
                        if key.startswith(prefix) or prefix.startswith(key):
                            yield from self._walk(key, prefix)
                    elif key.startswith(prefix) and is_key(key):
                        try:
                            status = os.stat(name, dir_fd=descriptor)
                        except (FileNotFoundError, NotADirectoryError):
                            continue
                        if stat.S_ISREG(status.st_mode):
                            yield _describe(key, status)
            finally:
                os.close(descriptor)

    @contextmanager
    def _translated(self, path: Path) -> Iterator[None]:
        """Turn what the operating system says into store errors; the one place that does."""
        try:
            yield
        except OSError as error:
            raise self._store_error(error, path) from error

    def _store_error(self, error: OSError, path: Path) -> StoreError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NOT_THERE:
            if self._root.is_dir():
                return StoreMissing(f"{path.relative_to(self._root)} is not in store {self.name}")
            return StoreError(
                f"the folder {self._root} of store {self.name} does not exist",
                details=["an unmounted disk looks the same, so drkit does not make it"],
                hints=[f"mount its disk, or if it is new: {shell_line('mkdir', '-p', '-m', '700', self._root)}"],
            )
        if error.errno in _FULL:
            return StoreError(
                f"store {self.name} is full: {reason}: {path}", hints=[shell_line("df", "-h", self._root)]
            )
        if error.errno in _FORBIDDEN:
            return StoreError(
                f"store {self.name} may not be used: {reason}: {error.filename or path}",
                hints=[f"as the user that runs drkit: {shell_line('ls', '-ld', error.filename or path)}"],
            )
        if error.errno in _NO_LINKS:
            return StoreError(
                f"the file system of store {self.name} has no hard links: {reason}: {self._root}",
                hints=["put the store on a file system such as ext4, xfs, zfs or nfs"],
            )
        kind = StoreUnavailable if error.errno in _PASSING else StoreError
        return kind(f"store {self.name} failed: {reason}: {path}")


def _open_regular(path: Path) -> io.FileIO:
    """Open a file for reading; whatever else has its name (a folder, a pipe that nobody fills) is not an object."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    return io.FileIO(descriptor, "rb")


def _describe(key: str, status: os.stat_result) -> ObjectInfo:
    modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
    return ObjectInfo(key, status.st_size, modified_at, None, _revision(status))


def _revision(status: os.stat_result) -> str:
    """Tell one state of a file from the next: `replace` always makes a new inode, so the time stamp alone need not."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _revision_of(path: Path) -> str | None:
    try:
        return _revision(path.stat())
    except FileNotFoundError:
        return None


def _write_all(file: io.FileIO, chunk: bytes) -> None:
    """Write without a buffer: chunks are large, and a buffer would try its rest again while an error unwinds."""
    written = file.write(chunk)
    while written < len(chunk):
        written += file.write(memoryview(chunk)[written:])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock file in ``folder``, which stays: removing a lock file would let two holders in."""
    descriptor = os.open(folder / _LOCK_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while chunk := first.read(CHUNK_BYTES):
            if chunk != second.read(CHUNK_BYTES):
                return False
    return True


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
