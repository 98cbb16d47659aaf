"""Everything drkit raises on purpose.

    DrkitError
    ├── ConfigError        3   the site, a policy or a secret reference is wrong
    ├── Busy               4   somebody else holds the lease
    ├── SourceError        5   the database is unreachable, or its tool failed
    │   └── NoRoom             a disk that something is restored to is full
    ├── StoreError         6   a store did not do what was asked
    │   ├── StoreMissing       there is no such object or bucket
    │   ├── StoreExists        an object of that name is there already
    │   └── StoreUnavailable   worth another try later
    ├── KeyUnavailable     7   no identity in reach opens it
    ├── IntegrityError     8   the bytes are not what was recorded; never retried
    ├── RecoveryGap        9   no path to the moment asked for
    └── CatalogError       10  the catalog is missing, locked, corrupt or too new

Not exceptions: 1 is a bug, 2 is wrong usage, 11 a failed drill or a missed objective, 12 some policies have problems,
130 an interrupt.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_DRILL_FAILED = 11
EXIT_PROBLEMS = 12
EXIT_INTERRUPTED = 130


class DrkitError(Exception):
    """Carry one lower-case sentence with the noun at fault, and what to do about it.

    ``message`` and ``details`` are shown to the user as they are, so neither may hold a secret. ``details`` are lines
    between the sentence and the hints (the tail of a tool's stderr, the list of what was seen); ``hints`` are commands
    or actions, one a line.
    """

    exit_code = 1

    def __init__(self, message: str, *, details: Sequence[str] = (), hints: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.hints = tuple(hints)


def add_left(error: BaseException, left: str) -> None:
    """Say in an error's details what is left of the work that it ended, if anything is; it stays what is raised.

    An interrupt and a bug have no details to say it in.
    """
    if left and isinstance(error, DrkitError):
        error.details = (*error.details, left)


_FULL = re.compile(rf"(: {os.strerror(errno.ENOSPC)}|HINT:  Check free disk space\.)$", re.MULTILINE)


def says_full(words: str) -> bool:
    """Tell whether a tool's or a server's own words are that a disk is full.

    A PostgreSQL server that could write a part of a page says how much it wrote, with a hint (md.c, mdextend). Rows
    that it shows beside an error may hold any words, but not at the end of a line.
    """
    return _FULL.search(words) is not None


def shell_line(*words: object) -> str:
    """Return a command for somebody to paste into a shell, whatever is in the names that it has."""
    return shlex.join(str(word) for word in words)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a configuration file; line and column count from 1, 0 where there is no place."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class ConfigError(DrkitError):
    """The site, a policy or a secret reference is wrong; ``problems`` lists all of them at once."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        details: Sequence[str] = (),
        hints: Sequence[str] = (),
    ) -> None:
        super().__init__(message, details=details, hints=hints)
        self.problems = tuple(problems)


class Busy(DrkitError):
    """Somebody else holds the lease; the message says who, and until when."""

    exit_code = 4


class SourceError(DrkitError):
    """The database is unreachable or a tool of it failed; ``details`` hold the last lines of the tool's stderr."""

    exit_code = 5


class NoRoom(SourceError):
    """A disk has too little room, which says nothing of the backup."""


class StoreError(DrkitError):
    """A store did not do what was asked."""

    exit_code = 6


class StoreMissing(StoreError):
    """There is no such object, folder or bucket."""


class StoreExists(StoreError):
    """An object of that name is there already, with other bytes."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or is out of order; the same request may succeed later."""


class KeyUnavailable(DrkitError):
    """No identity in reach opens it; the message names the recipients that it was sealed for."""

    exit_code = 7


class IntegrityError(DrkitError):
    """The bytes are not what was recorded: digest, signature, authentication, truncation or chain. Never retried."""

    exit_code = 8


class RecoveryGap(DrkitError):
    """There is no path to the moment asked for; the message has the last good position and the first missing one."""

    exit_code = 9


class CatalogError(DrkitError):
    """The catalog is missing, locked, corrupt or from a newer drkit; the stores are not affected."""

    exit_code = 10


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn the errors of writing into SourceError that names the folder, NoRoom where it is full."""
    try:
        yield
    except OSError as error:
        message = f"cannot write into {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(message, hints=[shell_line("df", "-h", path)]) from error
        raise SourceError(message) from error
