"""PostgreSQL's replication protocol, as far as a base backup needs it (manual, "Streaming Replication Protocol").

A replication connection takes only the simple query protocol, which psycopg's cursors do not speak, so this goes
through libpq itself. The end of a copy proves nothing here: libpq reports it for a server that died as well, and only
the results that follow tell the two apart.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import psycopg
from psycopg import errors, pq

from drkit.engines.postgres_client import Endpoint, translated
from drkit.errors import SourceError

Row = Sequence[str | None]

_LEAVE_S = 10.0
_IDLE_TIMEOUT_MAJOR = 14
_REFUSED_FROM = re.compile(r'replication connection from host "([^"]+)"')


class Replication:
    """One replication connection, used by one thread at a time."""

    def __init__(self, connection: psycopg.Connection[object], endpoint: Endpoint, idle_timeout_s: float) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._endpoint = endpoint
        self._idle_timeout_s = idle_timeout_s
        self._in_use = threading.Lock()
        self._closing = False
        self.warnings: list[str] = []
        connection.add_notice_handler(self._keep_warning)

    def _keep_warning(self, diagnostic: errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING" and diagnostic.message_primary:
            self.warnings.append(diagnostic.message_primary)

    def rows(self, command: str) -> list[Row]:
        """Run a short command and return its rows as text."""
        with translated(self._endpoint):
            return self._rows_of(self._pgconn.exec_(command.encode()))

    def run(self, command: str) -> None:
        """Run a short command that returns no rows."""
        with translated(self._endpoint):
            result = self._pgconn.exec_(command.encode())
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise self._error_of(result) or self._unexpected("rows where there should be none")

    def send(self, command: str) -> None:
        """Start a command whose results are read one by one."""
        with translated(self._endpoint):
            self._pgconn.send_query(command.encode())

    def upload(self, command: str, chunks: Iterable[bytes]) -> None:
        """Run a command that takes a copy from us; raise SourceError when the server refuses it or takes nothing."""
        with translated(self._endpoint):
            self._pgconn.send_query(command.encode())
        result = self._next_result(None)
        with translated(self._endpoint):
            if result is None or result.status != pq.ExecStatus.COPY_IN:
                raise self._error_of(result) or self._unexpected("it does not take what it was to be sent")
            for chunk in chunks:
                self._pgconn.put_copy_data(chunk)
                self._flush()
            self._pgconn.put_copy_end()
            self._flush()
            failure = self.end()
            if failure is not None:
                raise failure

    def _flush(self) -> None:
        """Send what libpq holds; the server may want to be heard meanwhile."""
        until_s = time.monotonic() + self._idle_timeout_s
        poll = select.poll()
        poll.register(self._pgconn.socket, select.POLLIN | select.POLLOUT)
        while self._pgconn.flush():
            for _, event in poll.poll(1000):
                if event & select.POLLIN:
                    self._pgconn.consume_input()
            if time.monotonic() > until_s:
                raise SourceError(f"{self._endpoint.server} took nothing for {self._idle_timeout_s:g} s")

    def next_rows(self, *, timeout_s: float | None = None) -> list[Row]:
        """Return the rows of the next result; raise SourceError when it is an error or something else than rows."""
        result = self._next_result(timeout_s)
        with translated(self._endpoint):
            if result is None:
                raise self._unexpected("no result where there should be rows")
            return self._rows_of(result)

    def next_copy(self) -> None:
        """Take the next result, which must start a copy to us."""
        result = self._next_result(None)
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            with translated(self._endpoint):
                raise self._error_of(result) or self._unexpected("no data where there should be some")

    def end(self) -> errors.Error | None:
        """Read the rest of a command's results; return the error that the server ended it with, if it did."""
        failure: errors.Error | None = None
        while (result := self._next_result(None)) is not None:
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                failure = failure or self._error_of(result) or errors.OperationalError("an answer out of turn")
        return failure

    def copied(self) -> Iterator[memoryview]:
        """Yield the messages of a copy until its end, which is also what a failure looks like: read on after it."""
        with translated(self._endpoint):
            while True:
                with self._in_use:
                    size_bytes, message = self._pgconn.get_copy_data(1)
                    if size_bytes == 0:
                        self._wait(self._idle_timeout_s)
                if size_bytes > 0:
                    yield message
                elif size_bytes < 0:
                    return

    def _next_result(self, timeout_s: float | None) -> pq.abc.PGresult | None:
        with translated(self._endpoint), self._in_use:
            while self._pgconn.is_busy():
                self._wait(timeout_s or self._idle_timeout_s)
            return self._pgconn.get_result()

    def _wait(self, timeout_s: float) -> None:
        """Wait until the server has said something, and take it in."""
        until_s = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._pgconn.socket, select.POLLIN)
        while not self._closing and not poll.poll(1000):
            if time.monotonic() > until_s:
                raise SourceError(
                    f"{self._endpoint.server} sent nothing for {timeout_s:g} s, so the backup was given up",
                    hints=["look into the server's log, or raise idle_timeout of the policy's rule"],
                )
        if self._closing:
            raise SourceError("the replication connection was closed while it was being read")
        self._pgconn.consume_input()

    def _rows_of(self, result: pq.abc.PGresult) -> list[Row]:
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error_of(result) or self._unexpected("no rows where there should be some")
        return [
            [_text(result.get_value(row, column)) for column in range(result.nfields)] for row in range(result.ntuples)
        ]

    @staticmethod
    def _error_of(result: pq.abc.PGresult | None) -> errors.Error | None:
        failed = result is not None and result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)
        return errors.error_from_result(result) if result is not None and failed else None

    def _unexpected(self, what: str) -> SourceError:
        return SourceError(f"{self._endpoint.server} does not keep to the replication protocol: {what}")

    def close(self) -> None:
        """Close the connection; a thread that still reads from it is woken and waited for first."""
        self._closing = True
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)
        if self._in_use.acquire(timeout=_LEAVE_S):  # libpq's memory must not be freed under a thread that is in it
            self._connection.close()
            self._in_use.release()


def _text(value: bytes | None) -> str | None:
    return None if value is None else os.fsdecode(value)  # a tablespace's folder has whatever name it has


@contextmanager
def open_replication(endpoint: Endpoint, *, major: int, idle_timeout_s: float) -> Iterator[Replication]:
    """Lend a physical replication connection to a server of that major version.

    Raise SourceError with the line for pg_hba.conf, the role's missing attribute or the setting that is in the way.
    """
    parameters = {**endpoint.parameters, "replication": "yes"}
    if major >= _IDLE_TIMEOUT_MAJOR:
        parameters["options"] = f"{parameters.get('options', '')} -c idle_session_timeout=0".strip()
    replicating = replace(endpoint, parameters=parameters)
    with translated(endpoint):
        try:
            connection = psycopg.connect(replicating.conninfo("replication", "drkit base"), autocommit=True)
        except psycopg.OperationalError as error:
            raise _refused(endpoint, str(error)) or error from error
    replication = Replication(connection, endpoint, idle_timeout_s)
    try:
        yield replication
    finally:
        replication.close()


def _refused(endpoint: Endpoint, words: str) -> SourceError | None:
    """Explain why a server that talks to the role does not let it replicate."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    host = _REFUSED_FROM.search(words)
    if host:
        kind = "local" if host[1] == "[local]" else "host"
        address = "" if kind == "local" else f"  {host[1]}/{128 if ':' in host[1] else 32}"
        return SourceError(
            f"{endpoint.server} does not let role {endpoint.user} make a replication connection from this host",
            details=[*lines, "a line of pg_hba.conf for database all does not cover replication"],
            hints=[
                f'add to pg_hba.conf of the server: {kind}  replication  "{endpoint.user}"{address}  scram-sha-256',
                "then: select pg_reload_conf();",
            ],
        )
    if "max_wal_senders" in words:
        return SourceError(
            f"{endpoint.server} has no free WAL sender",
            details=lines,
            hints=["raise max_wal_senders in postgresql.conf and restart the server; a base backup needs one"],
        )
    return None
