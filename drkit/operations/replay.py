"""Serving WAL to a server that replays: read ahead into a bounded spool, handed out over a socket by name.

"There is no such file" ends a recovery; "it cannot be read now" must abort it, or what is missing would be taken for
the end of the log (T33). So a file of the plan is served whole and right, or refused with the reason, which is kept.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drkit.errors import DrkitError, IntegrityError, RecoveryGap, SourceError, written
from drkit.operations.extraction import Owner
from drkit.operations.line_requests import read_request
from drkit.operations.stored_log import LogReader, StoredFile
from drkit.units import MIB
from drkit.wal import classify, parse_history_name, parse_partial_name
from drkit.wal_pages import Buffer, read_identity
from drkit.wal_tablespaces import SegmentEnds, find_across, find_creations

SPOOL_BYTES = 1024 * MIB
"""How much is read ahead; 64 segments of the usual size."""
_MOST_AHEAD = 64
_FETCHERS = 2
_FIRST_FILES = 8
_LOOK_EVERY_S = 0.02
_LINE_TIMEOUT_S = 60
_LONGEST_SOCKET_PATH = 100


@dataclass(frozen=True)
class ReplayLog:
    """What a recovery may ask for: the plan's files in order, and the histories by timeline.

    ``system_identifier`` is the cluster's, empty when it is not known. ``has_target`` says that the server knows where
    to stop, so that WAL may be withheld from it: it never takes the end for the target.
    """

    files: Sequence[StoredFile]
    histories: Mapping[int, bytes]
    segment_bytes: int
    system_identifier: str = ""
    policy: str = "POLICY"
    has_target: bool = True

    def asked_names(self) -> dict[str, int]:
        """Return the position in ``files`` by the name that PostgreSQL asks for: a partial one by its segment's."""
        names: dict[str, int] = {}
        for number, stored in enumerate(self.files):
            if stored.file.kind == "partial":
                names.setdefault(parse_partial_name(stored.file.name, self.segment_bytes)[0].name, number)
            elif stored.file.kind == "segment":
                names[stored.file.name] = number
        return names


@dataclass
class ReplayCounts:
    """What was asked and how it went; ``waited`` are the files that were not yet there when they were asked for."""

    served: int = 0
    served_bytes: int = 0
    waited: int = 0


@dataclass
class _Spooled:
    path: Path
    state: Literal["wanted", "fetching", "ready", "taken", "failed"] = "wanted"
    error: DrkitError | None = None


@dataclass
class WalServer:
    """Reads ahead and answers; made by `open_wal_server`.

    What is ready lies in the folder `ready` of the spool under the name that PostgreSQL asks for, and its
    ``restore_command`` moves it away (`drkit.engines.postgres_recovery.fetch_command`), which costs next to nothing.
    For everything else it asks the socket. ``error`` is what could not be read, ``withheld`` why something was not
    handed out.
    """

    log: ReplayLog
    reader: LogReader
    spool: Path
    owner: Owner
    advance: Callable[[int], object] | None = None
    counts: ReplayCounts = field(default_factory=ReplayCounts)
    error: DrkitError | None = None
    withheld: DrkitError | None = None

    def __post_init__(self) -> None:
        self._numbers = self.log.asked_names()
        self._names = {number: name for name, number in self._numbers.items()}
        self._last = max(self._names, default=None)
        self._guard = TablespaceGuard(self.log.policy)
        self._entries: dict[int, _Spooled] = {}
        self._served: set[int] = set()
        self._changed = threading.Condition()
        self._position = 0
        self._closing = False
        self._ahead = max(2, min(_MOST_AHEAD, SPOOL_BYTES // self.log.segment_bytes))
        self._threads = [threading.Thread(target=self._fetch_ahead, daemon=True) for _ in range(_FETCHERS)]
        self.ready.mkdir(mode=0o700)
        self.owner.take(self.ready)
        self.spool.chmod(0o711)

    @property
    def ready(self) -> Path:
        """Return the folder that the server takes files from."""
        return ready_folder(self.spool)

    def start(self) -> None:
        """Begin to read ahead."""
        for thread in self._threads:
            thread.start()

    def wait_for_first(self) -> None:
        """Wait until the first files are there or cannot be read: a server that starts then finds them local."""
        enough = min(_FIRST_FILES, len(self._numbers))
        with self._changed:
            self._changed.wait_for(
                lambda: sum(entry.state in ("ready", "failed") for entry in self._entries.values()) >= enough,
                timeout=_LINE_TIMEOUT_S,
            )

    def close(self) -> None:
        """Stop reading ahead."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=_LINE_TIMEOUT_S)

    def answer(self, line: socket.socket) -> None:
        """Answer one request; the protocol is that of `drkit.wal_client`."""
        # A time-out of Python's would make many small calls of one large one, each of which waits for the interpreter.
        line.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            line.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _LINE_TIMEOUT_S, 0))
        with line, contextlib.suppress(OSError):
            request = read_request(line)
            if not request.startswith("fetch "):
                line.sendall(b"no this socket only answers fetch\n")
                return
            try:
                self._serve(line, request.removeprefix("fetch "))
            except RecoveryGap as error:
                # The server reads ahead of its target: what it must not replay it may never need.
                self.withheld = self.withheld or error
                line.sendall(b"absent\n" if self.log.has_target else f"no {error.message}\n".encode())
            except DrkitError as error:
                self.error = self.error or error
                line.sendall(f"no {error.message}\n".encode())

    def _serve(self, line: socket.socket, name: str) -> None:
        kind = classify(name)
        if kind == "history":
            content = self.log.histories.get(parse_history_name(name))
            line.sendall(b"absent\n" if content is None else b"ok %d\n%b" % (len(content), content))
            return
        number = self._numbers.get(name)
        if number is None:
            line.sendall(b"absent\n")
            return
        path = self._wait_for(number)
        # The folder is the server's own: what it may have put there instead is not followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123
            size_bytes = os.fstat(file.fileno()).st_size
            line.sendall(f"ok {size_bytes}\n".encode())
            line.sendfile(file)
        with self._changed:
            self._note_served(number)

    def _wait_for(self, number: int) -> Path:
        """Return the spooled file; raise what kept it from being there. It may be one that was served before."""
        with self._changed:
            self._note_taken()
            entry = self._entries.setdefault(number, self._new_entry(number))
            self.counts.waited += entry.state != "ready"
            if entry.state == "taken":  # a server that starts over asks again
                entry.state = "wanted"
            self._position = max(self._position, number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: entry.state in ("ready", "failed") or self._closing)
            if entry.error is not None:
                raise entry.error
            if entry.state != "ready":
                raise SourceError("the restore is ending")
            return entry.path

    def _note_taken(self) -> None:
        """Look which files the server has moved away."""
        for number, entry in sorted(self._entries.items()):
            if entry.state == "ready" and not entry.path.exists():
                self._note_served(number)

    def _note_served(self, number: int) -> None:
        self._position = max(self._position, number + 1)
        # At the end of recovery the server asks for the last file once more (xlogrecovery.c, FinishWalRecovery).
        again = number == self._last and number not in self._served
        if number not in self._served:
            self._served.add(number)
            self.counts.served += 1
            self.counts.served_bytes += self.log.segment_bytes
            if self.advance:
                self.advance(self.log.segment_bytes)
        self._entries[number].path.unlink(missing_ok=True)
        self._entries[number].state = "wanted" if again else "taken"
        self._changed.notify_all()

    def _new_entry(self, number: int) -> _Spooled:
        return _Spooled(self.ready / self._names[number])

    def _fetch_ahead(self) -> None:
        while True:
            with self._changed:
                number = self._wait_for_work()
                if number is None:
                    return
                entry = self._entries.setdefault(number, self._new_entry(number))
                entry.state = "fetching"
            try:
                with written(self.spool):
                    self._fetch(number, entry.path)
            except DrkitError as error:
                self._settle(entry, "failed", error)
            else:
                self._settle(entry, "ready", None)

    def _wait_for_work(self) -> int | None:
        """Return what to fetch next, None at the end; look now and then what the server has taken."""
        while not self._closing:
            number = self._next_wanted()
            if number is not None:
                return number
            self._changed.wait(timeout=_LOOK_EVERY_S)
            self._note_taken()
        return None

    def _settle(self, entry: _Spooled, state: Literal["ready", "failed"], error: DrkitError | None) -> None:
        with self._changed:
            entry.state, entry.error = state, error
            self._changed.notify_all()

    def _next_wanted(self) -> int | None:
        """Return what to fetch next: what somebody waits for first, then in the plan's order."""
        asked = [number for number, entry in self._entries.items() if entry.state == "wanted"]
        if asked:
            return min(asked)
        for number in range(self._position, min(self._position + self._ahead, len(self.log.files))):
            if number not in self._entries and self.log.files[number].file.kind != "history":
                return number
        return None

    def _fetch(self, number: int, path: Path) -> None:
        """Decrypt one file into the spool, filled up with zeros to a whole segment; check what replay would do."""
        stored = self.log.files[number]
        unfinished = self.spool / f"{number}.unfinished"
        with unfinished.open("w+b", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            self.owner.take(file.fileno())
            self.reader.copy(stored, file, self.log.segment_bytes)
            # Only what was written: a file system in memory that is full would end the process where it has a hole.
            with mmap.mmap(file.fileno(), file.tell(), access=mmap.ACCESS_READ) as content:
                self._check(number, stored.file.name, content)
            file.truncate(self.log.segment_bytes)
        unfinished.rename(path)

    def _check(self, number: int, name: str, content: mmap.mmap) -> None:
        with memoryview(content) as view:
            check_identity(view, name, self.log)
            self._guard.check(number, name, view)


def ready_folder(spool: Path) -> Path:
    """Return where in a spool the files lie that a server may take."""
    return spool / "ready"


class TablespaceGuard:
    """Refuses WAL that would create a tablespace in a folder of this host that holds something (T26).

    Replay takes the path from the source: on the source's own host it would write into production's files.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._ends: dict[int, SegmentEnds] = {}

    def check(self, number: int, name: str, content: Buffer) -> None:
        """Look into one file of the plan; its neighbours are remembered. Raise RecoveryGap naming the folder."""
        found, ends = find_creations(content)
        with self._lock:
            before, after = self._ends.get(number - 1), self._ends.get(number + 1)
            self._ends[number] = ends
        found += find_across(before, ends) if before else []
        found += find_across(ends, after) if after else []
        for creation in found:
            if _holds_something(Path(creation.path)):
                raise RecoveryGap(
                    f"the WAL creates a tablespace in {creation.path}, and that folder of this host is in use: replay"
                    " would write into it",
                    details=[f"tablespace {creation.oid}, created in {name}"],
                    hints=[
                        "choose a moment before that",
                        f"or take a base that has the tablespace: drkit backup {self._policy} --method base",
                        "or restore on another host",
                    ],
                )


def _holds_something(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except FileNotFoundError:
        return False
    except OSError:
        return True


def check_identity(content: Buffer, name: str, log: ReplayLog) -> None:
    """Raise IntegrityError for WAL of another cluster, which replay would take for the end of the log."""
    system_identifier, segment_bytes = read_identity(content, f"WAL file {name}")
    if log.system_identifier and system_identifier != log.system_identifier:
        raise IntegrityError(
            f"WAL file {name} is of another cluster: its system identifier is {system_identifier},"
            f" the base's is {log.system_identifier}"
        )
    if segment_bytes != log.segment_bytes:
        raise IntegrityError(f"WAL file {name} is a segment of {segment_bytes:,} bytes, not of {log.segment_bytes:,}")


@contextmanager
def open_wal_server(server: WalServer, socket_path: Path) -> Iterator[WalServer]:
    """Answer at ``socket_path``, which only the server's owner and we may use, until the context ends."""
    listener = _bound(socket_path)
    server.owner.take(socket_path)
    stopping = threading.Event()
    accepting = threading.Thread(target=_accept, args=(listener, server, stopping), name="wal", daemon=True)
    server.start()
    accepting.start()
    try:
        yield server
    finally:
        stopping.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        listener.close()
        socket_path.unlink(missing_ok=True)


def _bound(path: Path) -> socket.socket:
    """Listen at a path, also at one that is too long for the system's address: then through its folder."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    mask = os.umask(0o177)
    try:
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            listener.bind(str(path))
        else:
            folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise SourceError(f"cannot listen at {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
        if folder >= 0:
            os.close(folder)
    return listener


def _accept(listener: socket.socket, server: WalServer, stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            line, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=server.answer, args=(line,), daemon=True).start()
