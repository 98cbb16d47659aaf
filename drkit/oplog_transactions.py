"""From oplog entries to what counts: a transaction's operations at its commit, everything else at once.

A large transaction lies in the oplog in several entries, a prepared one long before its commit; both are kept by
session until they are committed, on disk when they are large. What is not committed where the log ends never happened.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO

from drkit.errors import IntegrityError
from drkit.oplog import OplogTs
from drkit.oplog_entries import (
    Operation,
    OplogEntry,
    command_name,
    flag,
    read_entry,
    read_operations,
)

_LENGTH_BYTES = 4

Session = tuple[bytes, bytes]


@dataclass(frozen=True)
class Group:
    """Operations that count together: those of an entry, or of a transaction that it commits."""

    ts: OplogTs
    at: datetime
    operations: Iterable[Operation]


@dataclass
class _Open:
    """A transaction that is not committed yet; ``file`` holds the raw bundles one after another."""

    file: BinaryIO
    since: OplogTs
    prepared: bool = False


@dataclass
class Transactions:
    """Takes entries in their order; ``open_spill`` lends a private file for what a transaction has so far.

    ``entries`` counts what was taken, and ``aborted`` the transactions that were given up.
    """

    open_spill: Callable[[], BinaryIO] = io.BytesIO
    entries: int = 0
    aborted: int = 0
    _open: dict[Session, _Open] = field(default_factory=dict)

    def take(self, raw: bytes, entry: OplogEntry | None = None) -> Group:
        """Return what counts from this entry on; raise IntegrityError for what cannot be understood.

        The operations must be read before the next entry is taken.
        """
        entry = entry or read_entry(raw)
        self.entries += 1
        return Group(entry.ts, entry.at, self._operations(raw, entry))

    @property
    def unfinished(self) -> list[OplogTs]:
        """Return where the transactions began that were not committed so far."""
        return sorted(item.since for item in self._open.values())

    def close(self) -> None:
        """Give back what is held of unfinished transactions."""
        for item in self._open.values():
            item.file.close()
        self._open.clear()

    def _operations(self, raw: bytes, entry: OplogEntry) -> Iterator[Operation]:
        name = command_name(entry) if entry.kind == "c" else ""
        if entry.session is None or entry.separate or name not in ("applyOps", "commitTransaction", "abortTransaction"):
            yield from read_operations(entry)
        elif name == "abortTransaction":
            self._abort(entry.session)
        elif name == "commitTransaction":
            yield from self._commit(entry, entry.session)
        elif flag(entry.o, b"partialTxn") or flag(entry.o, b"prepare"):
            self._keep(raw, entry, entry.session)
        else:
            if entry.continues or entry.session in self._open:
                yield from self._commit(entry, entry.session)
            yield from read_operations(entry)

    def _keep(self, raw: bytes, entry: OplogEntry, session: Session) -> None:
        known = self._open.get(session)
        if known is None:
            if entry.continues:
                raise _begun_before(entry)
            self._forget_older(session)
            known = self._open[session] = _Open(self.open_spill(), entry.ts)
        known.file.write(raw)
        known.prepared = known.prepared or flag(entry.o, b"prepare")

    def _forget_older(self, session: Session) -> None:
        """Drop what a session left behind: one that begins a new transaction has given up the one before."""
        for other in [key for key, item in self._open.items() if key[0] == session[0] and not item.prepared]:
            self._abort(other)

    def _abort(self, session: Session) -> None:
        known = self._open.pop(session, None)
        if known is not None:
            known.file.close()
            self.aborted += 1

    def _commit(self, entry: OplogEntry, session: Session) -> Iterator[Operation]:
        """Yield what was kept, with the place of the commit: that is when it came to count."""
        known = self._open.pop(session, None)
        if known is None:
            raise _begun_before(entry)
        with known.file as file:
            file.seek(0)
            while head := file.read(_LENGTH_BYTES):
                kept = read_entry(head + file.read(int.from_bytes(head, "little") - _LENGTH_BYTES))
                for operation in read_operations(kept):
                    yield operation._replace(ts=entry.ts)


def _begun_before(entry: OplogEntry) -> IntegrityError:
    return IntegrityError(
        f"oplog entry {entry.ts} is of a transaction whose beginning is not in the log",
        hints=["choose another dump to begin from: --artifact ID"],
    )
