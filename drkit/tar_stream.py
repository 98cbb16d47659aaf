"""Reading a tar that streams by: one pass, constant memory, and no name that leads out of its folder.

PostgreSQL and drkit write ustar with GNU's long names and large sizes, and that is what is read. What a restore has no
use for (devices, hard links, sparse files) is refused rather than guessed at.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from drkit.errors import IntegrityError

_BLOCK_BYTES = 512
_LONGEST_NAME_BYTES = 1 << 16
_KINDS: dict[bytes, Literal["file", "folder", "link"]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
}
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK


@dataclass(frozen=True)
class TarEntry:
    """One member; ``name`` is relative, without empty, ``.`` or ``..`` segments. ``link`` is where a link points."""

    name: str
    kind: Literal["file", "folder", "link"]
    size_bytes: int
    mode: int
    link: str = ""


def read_tar(chunks: Iterable[bytes], what: str) -> Iterator[tuple[TarEntry, Iterator[memoryview]]]:
    """Yield each member with its content; what is left of a content when the next member is asked for is skipped.

    ``chunks`` is read to its very end, so that whatever checks it as a whole gets to do so. Raise IntegrityError naming
    ``what`` for a tar that is cut or damaged, and for a member that a restore must not write.
    """
    reader = _Reader(chunks, what)
    while (entry := _next_entry(reader, what)) is not None:
        content = reader.content(entry.size_bytes)
        yield entry, content
        for _ in content:
            pass
        reader.skip(-entry.size_bytes % _BLOCK_BYTES)
    reader.drain()


class _Reader:
    """Hands out exactly as many bytes as are asked for, in pieces of the chunks that came."""

    def __init__(self, chunks: Iterable[bytes], what: str) -> None:
        self._chunks = iter(chunks)
        self._held = memoryview(b"")
        self._what = what

    def content(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield the next ``size_bytes``."""
        while size_bytes:
            if not self._held:
                self._held = memoryview(next(self._chunks, b""))
                if not self._held:
                    raise IntegrityError(f"{self._what} ends in the middle of a file")
            piece = self._held[:size_bytes]
            self._held = self._held[len(piece) :]
            size_bytes -= len(piece)
            yield piece

    def exactly(self, size_bytes: int) -> bytes:
        """Return the next ``size_bytes`` as one piece."""
        return b"".join(self.content(size_bytes))

    def skip(self, size_bytes: int) -> None:
        """Pass over padding."""
        for _ in self.content(size_bytes):
            pass

    def drain(self) -> None:
        """Read the padding after the end mark, which must be zeros: nothing hides behind the end."""
        for piece in chain([bytes(self._held)], self._chunks):
            if piece.count(0) != len(piece):
                raise IntegrityError(f"{self._what} goes on after its end")


def _next_entry(reader: _Reader, what: str) -> TarEntry | None:
    """Read the next header, long names included; None at the end mark."""
    long: dict[bytes, str] = {}
    while True:
        block = reader.exactly(_BLOCK_BYTES)
        if not block.strip(b"\0"):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise IntegrityError(f"{what} is damaged: {error}") from error
        if header.type not in (_LONG_NAME, _LONG_LINK):
            break
        long[header.type] = _long_text(reader, header.size, what)
    kind = _KINDS.get(header.type)
    if kind is None:
        raise IntegrityError(f"{what} has {header.name!r} of tar type {header.type!r}, which no base backup has")
    if header.size < 0 or (kind != "file" and header.size):
        raise IntegrityError(f"{what} gives {header.name!r} a size that it cannot have")
    name = _safe_name(long.get(_LONG_NAME, header.name), what, folder=kind == "folder")
    link = long.get(_LONG_LINK, header.linkname) if kind == "link" else ""
    return TarEntry(name, kind, header.size, header.mode, link)


def _long_text(reader: _Reader, size_bytes: int, what: str) -> str:
    if not 0 < size_bytes <= _LONGEST_NAME_BYTES:
        raise IntegrityError(f"{what} has a name of {size_bytes} bytes")
    text = reader.exactly(size_bytes)
    reader.skip(-size_bytes % _BLOCK_BYTES)
    return text.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _safe_name(name: str, what: str, *, folder: bool) -> str:
    """Return the name without a leading ``./`` and a folder's slash; refuse one that would lead elsewhere."""
    cleaned = name.removeprefix("./")
    if folder:
        cleaned = cleaned.rstrip("/")
        if cleaned in ("", "."):
            return ""
    if not cleaned or cleaned.startswith("/") or "\0" in cleaned:
        raise IntegrityError(f"{what} has the unsafe name {name!r}")
    if any(segment in ("", ".", "..") for segment in cleaned.split("/")):
        raise IntegrityError(f"{what} has the unsafe name {name!r}")
    return cleaned
