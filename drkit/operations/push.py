"""Answering `drkit wal push`: what archive_command calls waits here until its file is durable in every store.

PostgreSQL hands over one file at a time and waits. So while one is on its way, the next ones that lie ready beside it
are shipped as well, and their turn then costs no more than a question. Nothing is ever marked done for PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from drkit.errors import CatalogError, DrkitError, IntegrityError, SourceError
from drkit.operations.line_requests import read_request
from drkit.operations.receive import Setting
from drkit.wal import Segment, classify

LOOK_AHEAD = 8
_WORKERS = min((os.cpu_count() or 1) + 1, LOOK_AHEAD // 2)
"""One more than there are cores: while one waits for a disk, another computes."""
_TAKEN = "ok 0"
_POLL_S = 0.5
_LINE_TIMEOUT_S = 30.0
_LONGEST_SOCKET_PATH = 100
_PEER = struct.Struct("3i")


class PushServer:
    """The duty that answers at the policy's socket."""

    name = "push"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._shipper = setting.shipper
        self._ahead: set[str] = set()
        self._lock = threading.Lock()

    def run(self, stopping: threading.Event) -> None:
        """Answer until ``stopping``, once it is known whose log it is and what is stored of it."""
        while not (self._setting.met.is_set() and self._setting.recovered.is_set()):
            if stopping.wait(_POLL_S):
                return
        path = self._setting.spool.socket
        self._ahead.clear()  # what an earlier run had begun and not ended
        with (
            ThreadPoolExecutor(_WORKERS, thread_name_prefix="ahead") as pool,
            listening(path, self._setting.owner_uid()) as listener,
        ):
            listener.settimeout(_POLL_S)
            self._tell("listening", str(path))
            while not stopping.is_set():
                try:
                    line, _ = listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._answer, args=(line, pool), name="push", daemon=True).start()
            pool.shutdown(cancel_futures=True)

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _answer(self, line: socket.socket, pool: ThreadPoolExecutor) -> None:
        with line, contextlib.suppress(OSError):
            line.settimeout(_LINE_TIMEOUT_S)
            request = read_request(line)
            word, _, argument = request.partition(" ")
            answer = self._do(line, word, Path(argument))
            line.sendall(os.fsencode(answer.replace("\n", " ")) + b"\n")
            # Not before: nothing else is begun while PostgreSQL waits for one that nobody has begun yet.
            if answer == _TAKEN:
                self._look_ahead(Path(argument), pool)

    def _do(self, line: socket.socket, word: str, path: Path) -> str:
        if word != "push":
            return "no this socket only answers push"
        if not self._may_ask(line):
            return "no this socket answers the user that owns the database, root and drkit's own user"
        try:
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

    def _look_ahead(self, path: Path, pool: ThreadPoolExecutor) -> None:
        """Start on the segments that PostgreSQL will hand over next, unless something is wrong already."""
        identity = self._setting.spool.identity()
        if identity is None or self._shipper.errors():
            return
        for name in ready_names(path, identity.segment_bytes):
            with self._lock:
                if name in self._ahead or self._shipper.has(name) or len(self._ahead) >= LOOK_AHEAD:
                    continue
                self._ahead.add(name)
            with contextlib.suppress(RuntimeError):  # the pool takes nothing any more while serve stops
                pool.submit(self._ship_ahead, path.with_name(name))

    def _ship_ahead(self, path: Path) -> None:
        try:
            # What goes wrong here is said when PostgreSQL asks for the file.
            with contextlib.suppress(DrkitError, OSError):
                self._shipper.ship(path, keep_source=True)
        finally:
            with self._lock:
                self._ahead.discard(path.name)

    def _may_ask(self, line: socket.socket) -> bool:
        if not hasattr(socket, "SO_PEERCRED"):
            return True  # then the socket's own mode is all there is
        _, user, _ = _PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return user in {0, os.geteuid(), self._setting.owner_uid()}

    def _note_refusal(self, name: str, error: IntegrityError) -> None:
        facts = {"policy": self._setting.policy.policy, "file": name, "message": error.message}
        with contextlib.suppress(CatalogError):
            self._setting.workplace.catalog.add_event("wal.refused", self._setting.workplace.clock(), facts)


def ready_names(path: Path, segment_bytes: int) -> list[str]:
    """Return which of the next segments lie ready behind the one that PostgreSQL hands over now, in their order.

    They are asked for by name: after hours without an archiver the folder has thousands, too many to list each time.
    """
    if classify(path.name) != "segment":
        return []
    names = []
    segment = Segment.parse(path.name, segment_bytes)
    for _ in range(LOOK_AHEAD):
        segment = segment.next()
        if (path.parent / "archive_status" / f"{segment.name}.ready").exists():
            names.append(segment.name)
    return names


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
