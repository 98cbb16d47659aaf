"""Sealed files in a folder: written once, durably, each with a note of what is inside.

Sealing is randomised, so a file is sealed once, before the first store sees it: whatever is interrupted after that goes
on with the same bytes, and a store that has them already says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from drkit import age
from drkit.canonical import canonical_json, parse_json
from drkit.errors import DrkitError, IntegrityError, NoRoom, SourceError, shell_line
from drkit.model import ObjectRecord
from drkit.stream import Meter, checked, compress, drain, prefetch
from drkit.units import CHUNK_BYTES, format_utc

_UNFINISHED = ".new"
_PIECE_BYTES = CHUNK_BYTES // 4
"""So that little is left to write of a file that grows once its end has come."""


class SpoolFull(NoRoom):
    """The disk of the spool has no room left."""


class SealedDamaged(IntegrityError):
    """A sealed file in the spool is not what was sealed: the disk lost it, or somebody changed it."""


@dataclass(frozen=True)
class Sealing:
    """How to seal: for whom, and how hard to compress."""

    policy: str
    recipients: Sequence[age.Recipient]
    level: int


def seal_file(
    path: Path, chunks: Iterable[bytes], sealing: Sealing, *, in_parallel: bool = True
) -> tuple[Meter, Meter]:
    """Write ``chunks`` sealed to ``path``; return what was measured of the plain and of the sealed bytes.

    With ``in_parallel`` a second thread reads and hashes, which is worth its while where a core has nothing to do.
    Nobody counts on the file before `write_note` has made it durable. Raise SourceError when the folder cannot hold it.
    """
    plain, stored = Meter(), Meter()
    with translated(path), _unfinished(path) as unfinished:
        measured = plain.measure(chunks)
        with (
            prefetch(measured) if in_parallel else nullcontext(measured) as ahead,
            unfinished.open("wb", buffering=0) as target,
        ):
            os.fchmod(target.fileno(), 0o600)
            packed = compress(ahead, sealing.level, piece_bytes=_PIECE_BYTES)
            for chunk in stored.measure(age.encrypt(packed, sealing.recipients, block_bytes=_PIECE_BYTES)):
                _write_all(target.fileno(), chunk)
        unfinished.replace(path)
    return plain, stored


def warm_up(sealing: Sealing) -> None:
    """Load and make whatever sealing needs, so that the first file does not wait for it."""
    drain(age.encrypt(compress((), sealing.level), sealing.recipients))


def read_sealed(path: Path, record: ObjectRecord) -> Iterator[bytes]:
    """Read the sealed bytes; raise SealedDamaged at their end when they are not what was sealed."""
    try:
        with path.open("rb", buffering=0) as file:
            yield from checked(
                iter(lambda: file.read(CHUNK_BYTES), b""),
                Meter(),
                size_bytes=record.stored_bytes,
                sha256=record.stored_sha256,
                what=str(path),
            )
    except (IntegrityError, FileNotFoundError) as error:
        raise SealedDamaged(f"the sealed copy of {record.part} in the spool is damaged: {error}") from error


def write_note(path: Path, note: dict[str, Any], *, confirm: Callable[[], object] | None = None) -> None:
    """Make a sealed file durable and write down what it is; from then on it counts.

    When ``confirm`` raises, which is called at the last moment, the file is removed instead.
    """
    # A disk takes as long for two files at once as for one. Only then has the note the name by which it counts.
    with ThreadPoolExecutor(1, "sync") as pool:
        synced = pool.submit(_sync, path)

        def settle() -> None:
            synced.result()
            if confirm is not None:
                confirm()

        try:
            write_durably(_note_of(path), canonical_json(note), after=settle)
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise


def _sync(path: Path) -> None:
    with translated(path), path.open("rb") as file:
        os.fdatasync(file.fileno())


def noted_files(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the sealed files with their notes; take away what was being sealed when a process ended."""
    found = []
    with translated(folder):
        for path in sorted(folder.iterdir()):
            if path.name.endswith(".json"):
                if not path.with_name(path.name.removesuffix(".json")).exists():
                    path.unlink()
            elif path.name.endswith(_UNFINISHED) or not _note_of(path).exists():
                path.unlink()
            else:
                found.append((path, parse_json(_note_of(path).read_bytes(), str(_note_of(path)))))
    return found


def forget_sealed(path: Path) -> None:
    """Remove a sealed file: its data first, so that what is left is never taken for whole."""
    path.unlink(missing_ok=True)
    _note_of(path).unlink(missing_ok=True)


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def write_durably(path: Path, content: bytes, *, after: Callable[[], object] | None = None) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens; not before ``after`` returns."""
    with translated(path), _unfinished(path) as unfinished:
        with unfinished.open("wb", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            _write_all(file.fileno(), content)
            os.fdatasync(file.fileno())
        if after is not None:
            after()
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a small document, None when it is not there or not whole."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except (FileNotFoundError, IntegrityError):
        return None


def write_state(folder: Path, state: Mapping[str, Any], at: datetime) -> None:
    """Write down where things stand; it need not outlive the machine."""
    path = folder / "state.json"
    unfinished = path.with_name(path.name + _UNFINISHED)
    with translated(path):
        unfinished.write_bytes(canonical_json({**state, "at": format_utc(at)}))
        unfinished.replace(path)


def free_bytes(folder: Path) -> int:
    """Return how much room there is."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class Ballast:
    """Room that a file holds on the disk of a spool, and gives up when that is full.

    What is in a spool leaves it once it is sealed and listed, which takes some room itself: without any, nothing would
    ever make room again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    @property
    def is_held(self) -> bool:
        """Say whether the room is held now."""
        return self._path.exists()

    def hold(self, size_bytes: int) -> None:
        """Take the room, if as much is left then; a disk that has not so much is left alone."""
        if self.is_held or free_bytes(self._path.parent) < 2 * size_bytes:
            return
        with suppress(OSError), _unfinished(self._path) as unfinished:
            with unfinished.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            unfinished.replace(self._path)

    def give_up(self) -> None:
        """Make the room free for who seals and lists, also what a process took that was killed meanwhile."""
        with translated(self._path):
            self._path.with_name(self._path.name + _UNFINISHED).unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        yield unfinished
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the operating system says of the spool into an error that names it."""
    try:
        yield
    except DrkitError:
        raise
    except OSError as error:
        kind = SpoolFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SourceError
        raise kind(
            f"the spool cannot be used: {error.strerror or error}: {error.filename or path}",
            hints=[shell_line("df", "-h", path.parent)],
        ) from error
