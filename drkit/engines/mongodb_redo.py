"""What a replay is about to do, written down before it is done, so that a kill at any moment loses and doubles nothing.

One file holds how far the replay is, what the collections should hold then, and the documents that the next batch
leaves. It is replaced as a whole before each batch. Whoever resumes writes those documents once more, which changes
nothing where they were written, and goes on behind them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bson
from bson.errors import BSONError

from drkit.errors import IntegrityError, SourceError
from drkit.oplog_images import Image

_FORMAT = "drkit-redo-1"
_FILE = "redo"


@dataclass(frozen=True)
class Progress:
    """How far a replay is: ``applied`` operations, the last of which is of the entry ``ts``.

    With ``command`` the one after them is a command that may have been done. ``totals`` are what each collection of the
    source should hold: count and digest, None where the digest is not known.
    """

    applied: int = 0
    ts: str = ""
    command: bool = False
    totals: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)


class RedoFile:
    """The file of one restore, in a private folder that outlives the process."""

    def __init__(self, folder: Path, restore_id: str) -> None:
        self._folder = folder
        self._restore_id = restore_id
        self._path = folder / _FILE

    def write(self, progress: Progress, images: Iterable[Image] = ()) -> None:
        """Replace the file; when this returns, it is on the disk."""
        header: dict[str, Any] = {
            "format": _FORMAT,
            "restore_id": self._restore_id,
            "applied": progress.applied,
            "ts": progress.ts,
            "command": progress.command,
            "totals": [[name, rows, _hex(digest)] for name, (rows, digest) in progress.totals.items()],
        }
        unfinished = self._path.with_name(f"{_FILE}~")
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(bson.encode(header))
                for image in images:
                    file.write(bson.encode({"ns": image.namespace, "id": image.id, "after": image.after}))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SourceError(f"cannot write down how far the replay is: {error}") from error

    def read(self) -> tuple[Progress, list[Image]] | None:
        """Return what was written last, None when nothing was; raise IntegrityError when it is of another restore."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            header, *rest = bson.decode_all(data)
        except (BSONError, ValueError) as error:
            raise IntegrityError(f"{self._path} is damaged") from error
        if header.get("format") != _FORMAT or header.get("restore_id") != self._restore_id:
            raise IntegrityError(f"{self._path} is of another restore")
        totals = {name: (rows, None if digest is None else int(digest, 16)) for name, rows, digest in header["totals"]}
        progress = Progress(header["applied"], header["ts"], header["command"], totals)
        return progress, [Image(item["ns"], item["id"], None, item["after"]) for item in rest]


def _hex(digest: int | None) -> str | None:
    return None if digest is None else f"{digest:x}"
