"""The beginning of a pg_dump archive: kept while the rest streams by, so that it can be listed and used again.

A custom-format archive is a header, a table of contents with every statement, and then the rows. Whatever needs no rows
(what is in it, the indexes and constraints) can be taken from a file with nothing but the beginning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from drkit.errors import SourceError
from drkit.process import Command, run

_LIST_TIMEOUT_S = 600
_ENTRY = re.compile(r"(?P<id>\d+); \d+ \d+ (?P<rest>.*)")
_BLOB_KINDS = ("BLOB ", "BLOBS ", "BLOB METADATA ")


@dataclass(frozen=True)
class Entry:
    """One line of an archive's list: ``text`` is kind, schema, name and owner, separated by spaces and not quoted."""

    line: str
    text: str

    def is_a(self, kind: str) -> bool:
        """Tell whether the entry is of a kind such as ``EVENT TRIGGER``."""
        return self.text.startswith(kind + " ")


@dataclass(frozen=True)
class Head:
    """The beginning of an archive, whole table of contents included: in ``file``, and still part of ``chunks``."""

    file: Path
    chunks: Iterator[bytes]
    entries: tuple[Entry, ...]

    @property
    def has_large_objects(self) -> bool:
        """Tell whether there are large objects, each of which takes a lock."""
        return any(entry.text.startswith(_BLOB_KINDS) for entry in self.entries)


def read_head(chunks: Iterator[bytes], pg_restore: Path, folder: Path) -> Head:
    """Take as many chunks as hold the table of contents; raise SourceError when the archive ends before it does."""
    file = folder / "head"
    taken: list[bytes] = []
    want = 1
    with open_private(file) as out:
        while True:
            for chunk in chunks:
                out.write(chunk)
                taken.append(chunk)
                if len(taken) >= want:
                    break
            out.flush()
            listed = run(Command([str(pg_restore), "--list", str(file)]), timeout_s=_LIST_TIMEOUT_S, check=False)
            if listed.status == 0:
                break
            if len(taken) < want:
                raise SourceError(
                    "the archive cannot be read: its table of contents is cut or damaged",
                    details=listed.stderr.splitlines()[-5:],
                )
            want *= 2  # so that a long table of contents is not listed again for each chunk
    return Head(file, chain(taken, chunks), parse_list(listed.stdout.decode(errors="surrogateescape")))


def parse_list(text: str) -> tuple[Entry, ...]:
    """Read what ``pg_restore --list`` printed."""
    matches = (_ENTRY.fullmatch(line) for line in text.splitlines())
    return tuple(Entry(match[0], match["rest"]) for match in matches if match)


def list_entries(head: Head, pg_restore: Path, selection: Iterable[str]) -> tuple[Entry, ...]:
    """Return the entries that pg_restore's own options (``--table``, ``--schema``) select."""
    command = Command([str(pg_restore), "--list", *selection, str(head.file)])
    return parse_list(run(command, timeout_s=_LIST_TIMEOUT_S).stdout.decode(errors="surrogateescape"))


def write_list(file: Path, entries: Iterable[Entry]) -> Path:
    """Write entries as the list that pg_restore's ``--use-list`` reads, and return its path."""
    with open_private(file) as out:
        for entry in entries:
            out.write(entry.line.encode(errors="surrogateescape") + b"\n")
    return file


def open_private(path: Path) -> BinaryIO:
    """Create a file that only its owner may read, from the start, and open it for writing."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
