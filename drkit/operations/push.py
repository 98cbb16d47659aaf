"""Answering `drkit wal push`: what archive_command calls waits here until its file is durable in every store.

PostgreSQL hands over one file at a time and waits; what comes next is shipped meanwhile (`drkit.operations.ahead`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drkit.errors import CatalogError, DrkitError, IntegrityError, SourceError
from drkit.operations.ahead import LookAhead, looking_ahead
from drkit.operations.line_requests import read_request
from drkit.operations.receive import Setting
from drkit.units import format_count
from drkit.wal import classify

_TAKEN = "ok 0"
_POLL_S = 0.5
_LINE_TIMEOUT_S = 30.0
_LONGEST_SOCKET_PATH = 100
ANSWERED_WITHIN_S = 5.0
"""How long a stop waits for answers; a third of what a group of duties has, so that the spool gets its last round."""
_PEER = struct.Struct("3i")


class PushServer:
    """The duty that answers at the policy's socket."""

    name = "push"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._shipper = setting.shipper

    def run(self, stopping: threading.Event) -> None:
        """Answer until ``stopping``, once it is known whose log it is and what is stored of it."""
        while not (self._setting.met.is_set() and self._setting.recovered.is_set()):
            if stopping.wait(_POLL_S):
                return
        answering: list[threading.Thread] = []
        with looking_ahead(self._setting.shipper, self._setting.spool) as ahead:
            try:
                self._listen(stopping, ahead, answering)
            finally:
                self._await(answering)

    def _listen(self, stopping: threading.Event, ahead: LookAhead, answering: list[threading.Thread]) -> None:
        """Take who asks until ``stopping``, each in a thread of its own that is among ``answering`` while it lasts."""
        path = self._setting.spool.socket
        with listening(path, self._setting.owner_uid()) as listener:
            listener.settimeout(_POLL_S)
            self._tell("listening", str(path))
            while not stopping.is_set():
                try:
                    line, _ = listener.accept()
                except TimeoutError:
                    continue
                thread = threading.Thread(target=self._answer, args=(line, ahead), name="push", daemon=True)
                answering[:] = [item for item in answering if item.is_alive()]
                answering.append(thread)
                thread.start()

    def _await(self, answering: Sequence[threading.Thread]) -> None:
        """Let whoever asked have an answer: a file that was stored need not be handed over again by a PostgreSQL."""
        until_s = time.monotonic() + ANSWERED_WITHIN_S
        for thread in answering:
            thread.join(timeout=max(until_s - time.monotonic(), 0))
        left = sum(thread.is_alive() for thread in answering)
        if left:
            words = format_count(left, "file is", "files are")
            self._tell("stuck", f"{words} not stored yet, and not waited for; PostgreSQL hands over again what it must")

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _answer(self, line: socket.socket, ahead: LookAhead) -> None:
        with line, contextlib.suppress(OSError):
            line.settimeout(_LINE_TIMEOUT_S)
            request = read_request(line)
            word, _, argument = request.partition(" ")
            answer = self._do(line, word, Path(argument), ahead)
            line.sendall(os.fsencode(answer.replace("\n", " ")) + b"\n")
            # Not before: nothing else is begun while PostgreSQL waits for one that nobody has begun yet.
            if answer == _TAKEN:
                ahead.taken(Path(argument))

    def _do(self, line: socket.socket, word: str, path: Path, ahead: LookAhead) -> str:
        if word != "push":
            return "no this socket only answers push"
        if not self._may_ask(line):
            return "no this socket answers the user that owns the database, root and drkit's own user"
        try:
            with ahead.handed_over(path):
                self._push(path)
        except DrkitError as error:
            self._tell("refused" if isinstance(error, IntegrityError) else "failing", error.message)
            if isinstance(error, IntegrityError):
                self._note_refusal(path.name, error)
            return f"no {error.message}"
        except OSError as error:
            return f"no {path.name} cannot be read: {error.strerror}"
        self._tell("listening", str(self._setting.spool.socket))
        return _TAKEN

    def _push(self, path: Path) -> None:
        if classify(path.name) is None:
            raise IntegrityError(f"{path.name} is not a name that PostgreSQL gives to a file of its log")
        self._shipper.ship(path, keep_source=True)

    def _may_ask(self, line: socket.socket) -> bool:
        if not hasattr(socket, "SO_PEERCRED"):
            return True  # then the socket's own mode is all there is
        _, user, _ = _PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return user in {0, os.geteuid(), self._setting.owner_uid()}

    def _note_refusal(self, name: str, error: IntegrityError) -> None:
        facts = {"policy": self._setting.policy.policy, "file": name, "message": error.message}
        with contextlib.suppress(CatalogError):
            self._setting.workplace.catalog.add_event("wal.refused", self._setting.workplace.clock(), facts)


@contextmanager
def listening(path: Path, owner: int) -> Iterator[socket.socket]:
    """Listen at ``path``, which an earlier process may have left behind; ``owner`` is who else may connect.

    A path that is too long for the system's address is reached through its folder.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        short = len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH
        listener.bind(str(path) if short else f"/proc/self/fd/{folder}/{path.name}")
        path.chmod(0o600)
        if owner != os.geteuid():
            os.chown(path, owner, -1)
            for place in (path.parent, path.parent.parent):
                place.chmod(stat.S_IMODE(place.stat().st_mode) | 0o011)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise SourceError(f"cannot listen at {path}: {error.strerror or error}") from error
    finally:
        os.close(folder)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)
