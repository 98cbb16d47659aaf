"""A base backup over the replication protocol: BASE_BACKUP, part by part, with its WAL, nothing staged on disk.

The server sends one tar for each tablespace, the data folder's last with the WAL from start to stop inside (D1), then
its backup manifest, then the stop position. From PostgreSQL 15 on all of it comes as one copy of typed messages; 14
makes a copy of each. The WAL is kept for the backup by a temporary physical slot of the same connection, which is gone
as soon as the connection is.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import errors

from drkit.engines.postgres_client import Endpoint, translated
from drkit.engines.postgres_replication import Replication, Row
from drkit.errors import SourceError
from drkit.units import CHUNK_BYTES

_SINGLE_COPY_MAJOR = 15
_CHECKPOINT_S = 3600.0
_TAR_END = bytes(1024)
_DATA, _ARCHIVE, _MANIFEST, _PROGRESS = b"dnmp"
_RATE_KIB_S = (32, 1 << 20)
_DATA_CORRUPTED = "XX001"


@dataclass(frozen=True)
class Archive:
    """One tar of the backup: a tablespace, or the data folder, whose ``oid`` is None."""

    oid: int | None
    location: str | None
    size_bytes: int


class BaseBackup:
    """One BASE_BACKUP command: its header, its parts in the server's order, its end."""

    def __init__(self, replication: Replication, endpoint: Endpoint, major: int) -> None:
        self._replication = replication
        self._endpoint = endpoint
        self._major = major
        self._messages: Iterator[tuple[int, Any]] = iter(())
        self._opened: tuple[int, Any] | None = None
        self.start_lsn = ""
        self.stop_lsn = ""
        self.timeline = 0
        self.stop_timeline = 0
        self.archives: list[Archive] = []
        self.page_failures = 0

    def start(self, *, rate_bytes_s: int | None) -> None:
        """Keep the WAL, start the backup and read its header; returns when the server's checkpoint is done."""
        slot = f"drkit_base_{secrets.token_hex(6)}"
        try:
            self._replication.rows(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY PHYSICAL RESERVE_WAL")
        except SourceError as error:
            if isinstance(error.__cause__, errors.ConfigurationLimitExceeded):
                raise SourceError(
                    f"{self._endpoint.server} has no free replication slot, which a base backup keeps its WAL by",
                    details=error.details,
                    hints=["drop a slot that nobody uses, or raise max_replication_slots and restart the server"],
                ) from error
            raise
        self._replication.send(_command(self._major, rate_bytes_s))
        (position,) = self._replication.next_rows(timeout_s=_CHECKPOINT_S)
        self.start_lsn, self.timeline = _position(position)
        self.archives = [_archive(row) for row in self._replication.next_rows()]
        self._messages = self._single_copy() if self._major >= _SINGLE_COPY_MAJOR else self._copy_each()

    def read(self, kind: int) -> Iterator[bytes]:
        """Yield the next part, which must be of that kind, in chunks of about a mebibyte.

        Raise SourceError when the server or the connection fails: the end of the stream is the end of the part.
        """
        opened = self._opened or next(self._messages, None)
        self._opened = None
        if opened is None or opened[0] != kind:
            raise self._cut()
        held: list[Any] = []
        held_bytes = 0
        for message in self._messages:
            if message[0] != _DATA:
                self._opened = message
                break
            held.append(message[1])
            held_bytes += len(message[1])
            if held_bytes >= CHUNK_BYTES:
                yield b"".join(held)
                held, held_bytes = [], 0
        if held:
            yield b"".join(held)
        if kind == _ARCHIVE and self._major < _SINGLE_COPY_MAJOR:
            yield _TAR_END
        if kind == _ARCHIVE and self._opened is None:
            raise self._cut()
        if kind == _MANIFEST:
            self._finish()

    def read_archive(self) -> Iterator[bytes]:
        """Yield the next tar."""
        return self.read(_ARCHIVE)

    def read_manifest(self) -> Iterator[bytes]:
        """Yield the backup manifest, and take the backup's end: positions and errors that came after the data."""
        return self.read(_MANIFEST)

    def _single_copy(self) -> Iterator[tuple[int, Any]]:
        self._replication.next_copy()
        for message in self._replication.copied():
            kind = message[0]
            if kind != _PROGRESS:
                yield kind, message[1:]

    def _copy_each(self) -> Iterator[tuple[int, Any]]:
        for kind in [_ARCHIVE] * len(self.archives) + [_MANIFEST]:
            self._replication.next_copy()
            yield kind, b""
            for message in self._replication.copied():
                yield _DATA, message

    def _cut(self) -> SourceError:
        """Return what ended the backup before its end."""
        failure = self._replication.end()
        with translated(self._endpoint):
            if failure is not None:
                raise failure
        return SourceError(f"{self._endpoint.server} ended the base backup before all of it had come")

    def _finish(self) -> None:
        if self._opened is not None:
            raise SourceError(f"{self._endpoint.server} sent something after the backup manifest")
        (position,) = self._replication.next_rows()
        self.stop_lsn, self.stop_timeline = _position(position)
        failure = self._replication.end()
        if failure is None:
            return
        if failure.sqlstate == _DATA_CORRUPTED:
            self.page_failures += 1  # the data is all there, and each page was named in a warning (T28)
            return
        with translated(self._endpoint):
            raise failure


def _command(major: int, rate_bytes_s: int | None) -> str:
    rate_kib_s = None if rate_bytes_s is None else max(rate_bytes_s // 1024, _RATE_KIB_S[0])
    limited = rate_kib_s is not None and rate_kib_s <= _RATE_KIB_S[1]
    if major < _SINGLE_COPY_MAJOR:
        rate = f" MAX_RATE {rate_kib_s}" if limited else ""
        return (
            "BASE_BACKUP LABEL 'drkit' PROGRESS FAST WAL NOWAIT"
            f"{rate} TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'"
        )
    rate = f", MAX_RATE {rate_kib_s}" if limited else ""
    return (
        "BASE_BACKUP (LABEL 'drkit', PROGRESS, CHECKPOINT 'fast', WAL, WAIT false, TABLESPACE_MAP, MANIFEST 'yes',"
        f" MANIFEST_CHECKSUMS 'SHA256'{rate})"
    )


def _position(row: Row) -> tuple[str, int]:
    lsn, timeline = row[0], row[1]
    assert lsn is not None
    assert timeline is not None
    return lsn, int(timeline)


def _archive(row: Row) -> Archive:
    oid, location, size_kib = row[0], row[1], row[2]
    return Archive(int(oid) if oid else None, location, int(size_kib or 0) * 1024)
