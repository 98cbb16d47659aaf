"""Loading an archive's rows over several connections at once, while the archive streams by.

pg_restore loads a stream through one connection, and the server's work on COPY is most of a restore. Here pg_restore
only turns the archive into a script, whose COPY blocks are cut at ends of lines and shared out among connections: also
the rows of one big table. Nothing is staged, and no row is looked at by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from drkit.errors import SourceError
from drkit.units import CHUNK_BYTES, MIB

_POLL_S = 0.1
_STOP_S = 30.0
_PIECE_BYTES = CHUNK_BYTES // 4
_MOST_HELD_BYTES = 8 * MIB
_STATEMENT_END = b" FROM stdin;\n"
_ROWS_END = b"\\.\n"

Connect = Callable[[], contextlib.AbstractContextManager[psycopg.Connection[Any]]]


@dataclass(frozen=True)
class Piece:
    """Some rows and the COPY statement that takes them.

    Without a statement ``rows`` are what comes before the first COPY: the settings of the session. ``whole`` says that
    the last row is complete; when it is not, the next piece goes on with it.
    """

    statement: bytes
    rows: bytes | bytearray
    whole: bool = True


def split_script(chunks: Iterable[bytes]) -> Iterator[Piece]:
    r"""Cut the script that pg_restore writes for table data into pieces; those of small chunks are larger than these.

    Raise SourceError for a script that ends within a COPY, or holds any statement but the settings at its start. In
    COPY's text format a line break is the end of a row, since those within values are escaped, and ``\.`` alone on a
    line is the end of the rows (COPY, File Formats).
    """
    stream = iter(chunks)
    held = bytearray()
    settings = bytearray()
    first = True
    while True:
        statement, between = _next_statement(stream, held)
        settings += _only_settings(between, allowed=first)
        if first:
            yield Piece(b"", bytes(settings))
            first = False
        if not statement:
            return
        held = yield from _rows(stream, held, statement)


def _next_statement(stream: Iterator[bytes], held: bytearray) -> tuple[bytes, bytes]:
    """Take everything up to the next COPY and its end out of ``held``; no statement at the end of the script."""
    while True:
        start = 0 if held.startswith(b"COPY ") else held.find(b"\nCOPY ") + 1
        if start or held.startswith(b"COPY "):
            end = _statement_end(held, start)
            if end:
                between, statement = bytes(held[:start]), bytes(held[start:end])
                del held[:end]
                return statement, between
        chunk = next(stream, b"")
        if not chunk:
            if start or held.startswith(b"COPY "):
                raise SourceError("the script of the archive's rows ends within a statement")
            between = bytes(held)
            held.clear()
            return b"", between
        held += chunk


def _statement_end(held: bytearray, start: int) -> int:
    """Return where the statement ends, 0 if that has not come yet; names in quotes may hold anything."""
    end = held.find(_STATEMENT_END, start)
    while end >= 0:
        if held.count(b'"', start, end) % 2 == 0:
            return end + len(_STATEMENT_END)
        end = held.find(_STATEMENT_END, end + 1)
    return 0


def _rows(stream: Iterator[bytes], held: bytearray, statement: bytes) -> Generator[Piece, None, bytearray]:
    """Yield the rows of one COPY, up to and without the line that ends them; ``held`` starts with a line.

    Return what follows that line. A piece is what was held itself, not a copy of it.
    """
    at_line_start = True
    while True:
        if at_line_start and held.startswith(_ROWS_END):
            del held[: len(_ROWS_END)]
            return held
        # One byte is found ten times as fast as four, and most rows hold no backslash.
        end = held.find(b"\n" + _ROWS_END) if b"\\" in held else -1
        # What comes after the last line break may be the beginning of the end, so it waits for the next chunk.
        cut = end + 1 if end >= 0 else held.rfind(b"\n") + 1
        if not cut and len(held) > _MOST_HELD_BYTES:
            cut = len(held)
        if cut:
            rows, held = held, held[cut:]
            del rows[cut:]
            at_line_start = rows.endswith(b"\n")
            yield Piece(statement, rows, whole=at_line_start)
            if end >= 0:
                continue
        if not _read_on(stream, held):
            raise SourceError("the script of the archive's rows ends within the rows of a table")


def _read_on(stream: Iterator[bytes], held: bytearray) -> bool:
    """Add a piece's worth to ``held``, since each piece costs to hand over; return whether there was any more."""
    before = len(held)
    for chunk in stream:
        held += chunk
        if len(held) - before >= _PIECE_BYTES:
            break
    return len(held) > before


def _only_settings(text: bytes, *, allowed: bool) -> bytes:
    settings = []
    for line in text.split(b"\n"):
        if not line or line.startswith((b"--", b"\\restrict ", b"\\unrestrict ")):
            continue
        if not allowed or not line.startswith((b"SET ", b"SELECT pg_catalog.set_config(")):
            raise SourceError("the script of the archive's rows has a statement that is not COPY")
        settings.append(line + b"\n")
    return b"".join(settings)


class _Stopped(Exception):
    """The load is over because of an error elsewhere."""


class _Loaders:
    """Connections with a thread each, that take pieces from one queue: whoever is free takes the next."""

    def __init__(self, count: int) -> None:
        self._pieces: queue.Queue[tuple[bytes, Iterator[bytes | bytearray]] | None] = queue.Queue(maxsize=2 * count)
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._unfinished: queue.Queue[bytes | bytearray | None] | None = None
        self.failure: psycopg.Error | None = None

    def start(self, connection: psycopg.Connection[Any]) -> None:
        thread = threading.Thread(target=self._run, args=(connection,), name="copy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def put(self, piece: Piece) -> None:
        """Hand a piece over; raise _Stopped when a connection failed. A row that goes on stays with its connection."""
        if self._unfinished is not None:
            self._put(self._unfinished, piece.rows)
            if piece.whole:
                self._put(self._unfinished, None)
                self._unfinished = None
        elif piece.whole:
            self._put(self._pieces, (piece.statement, iter((piece.rows,))))
        else:
            self._unfinished = queue.Queue(maxsize=2)
            self._unfinished.put(piece.rows)
            self._put(self._pieces, (piece.statement, self._continued(self._unfinished)))

    def finish(self) -> None:
        """Wait until everything is committed; raise _Stopped when a connection failed."""
        for _ in self._threads:
            self._put(self._pieces, None)
        for thread in self._threads:
            thread.join()
        if self.failure:
            raise _Stopped

    def stop(self) -> None:
        """Make every thread roll back and end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=_STOP_S)

    def _put(self, to: queue.Queue[Any], item: object) -> None:
        while not self._stopping.is_set():
            try:
                to.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return
        raise _Stopped

    def _take(self, source: queue.Queue[Any]) -> Any:
        while not self._stopping.is_set():
            try:
                return source.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        raise _Stopped

    def _continued(self, rest: queue.Queue[bytes | bytearray | None]) -> Iterator[bytes | bytearray]:
        while (rows := self._take(rest)) is not None:
            yield rows

    def _run(self, connection: psycopg.Connection[Any]) -> None:
        try:
            self._copy(connection)
        except _Stopped:
            pass
        except psycopg.Error as error:
            self.failure = self.failure or error
            self._stopping.set()

    def _copy(self, connection: psycopg.Connection[Any]) -> None:
        """Copy pieces until there are no more; a COPY stays open as long as the pieces are of its table."""
        piece = self._take(self._pieces)
        while piece is not None:
            statement = piece[0]
            with connection.cursor().copy(statement) as copy:
                while piece is not None and piece[0] == statement:
                    for rows in piece[1]:
                        copy.write(rows)
                    piece = self._take(self._pieces)


class RowsLoad:
    """One load of rows: a pipe that pg_restore writes its script to, and the connections that take the rows.

    Run it, give pg_restore ``output`` as its standard output, call `given` once it has started and `finish` once it has
    ended. A connection that fails closes the pipe, so that pg_restore ends too. Psycopg's errors are not translated
    here: the caller knows the endpoint.
    """

    def __init__(self, connect: Connect, count: int) -> None:
        self._connect = connect
        self._count = count
        self._loaders = _Loaders(count)
        self.output = -1
        self._error: SourceError | None = None
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)

    def raise_failure(self) -> None:
        """Raise what went wrong here, if anything did: it is why pg_restore found its pipe closed."""
        failure = self._loaders.failure or self._error
        if failure is not None:
            raise failure

    def given(self) -> None:
        """Close our own end of ``output``: from now on the script ends when pg_restore does."""
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def finish(self) -> None:
        """Wait, once pg_restore has ended well, until all rows are committed; raise what went wrong with that."""
        self._thread.join()
        self.raise_failure()

    @contextmanager
    def running(self) -> Iterator[RowsLoad]:
        """Run the load; whatever is still going on when the context ends is rolled back."""
        with ExitStack() as stack:
            self._connections = [stack.enter_context(self._connect()) for _ in range(self._count)]
            self._input, self.output = os.pipe()
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._input, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
            self._thread.start()
            try:
                yield self
            finally:
                self.given()
                self._loaders.stop()
                self._thread.join(timeout=_STOP_S)

    def _run(self) -> None:
        try:
            for piece in split_script(iter(lambda: os.read(self._input, CHUNK_BYTES), b"")):
                if piece.statement:
                    self._loaders.put(piece)
                else:
                    self._begin(bytes(piece.rows))
            self._loaders.finish()
        except _Stopped:
            pass
        except psycopg.Error as error:
            self._loaders.failure = error
        except SourceError as error:
            self._error = error
        finally:
            os.close(self._input)

    def _begin(self, settings: bytes) -> None:
        """Give every connection the settings that pg_restore gives its own: encoding, search path, checks."""
        for connection in self._connections:
            if settings:
                connection.execute(settings)
            self._loaders.start(connection)
