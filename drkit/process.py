"""Child processes: the one place that starts them.

Rules that every caller gets: a process group of its own, a minimal environment, no shell, stderr always drained, an
idle time-out on every pipe, and a failed child that is never taken for the end of its data. What a child is told in
``argv`` can be read by everybody on the host, so secrets go through files that only we can read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from drkit.errors import SourceError
from drkit.process_identity import ProcessIdentity, start_mark
from drkit.stderr_tail import MOST_LINES, StderrTail
from drkit.units import CHUNK_BYTES

_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "KRB5CCNAME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
_PIPE_BYTES = 1 << 20
_KILL_AFTER_S = 5.0
_NICENESS = 5

LARGE_BUFFER_BYTES = 64 * 1024
"""How much a tool should read or write at once; more gains nothing (`scripts/bench backup`, `restore`)."""


@dataclass(frozen=True)
class Command:
    """What to run. ``env`` is added to the minimal environment; ``user`` is changed to when we are root.

    ``buffer_bytes`` is how much the child's C library reads from its standard input at once, and collects before it
    writes to its standard output, by coreutils' stdbuf where that is there. For a pipe it is 4 KiB otherwise, and each
    one is a call to the system that may wake the other side. ``heard`` is told each line that the child says on stderr
    while a stream runs, and returns whether a failure's details should have it. ``started_by`` are the words of another
    program that starts it.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    user: str | None = None
    buffer_bytes: int | None = None
    heard: Callable[[str], bool] | None = None
    started_by: Sequence[str] = ()

    @property
    def tool(self) -> str:
        """Return the program's own name, for messages."""
        return Path(self.argv[0]).name

    def started_as(self) -> list[str]:
        """Return ``argv`` behind what starts it, stdbuf if the child is to have larger buffers."""
        stdbuf = shutil.which("stdbuf") if self.buffer_bytes else None
        buffers = [stdbuf, f"--input={self.buffer_bytes}", f"--output={self.buffer_bytes}"] if stdbuf else []
        return [*self.started_by, *buffers, *self.argv]

    def environment(self) -> dict[str, str]:
        """Return the whole environment that the child gets: English messages, UTC, and little else."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {**inherited, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", **self.env}


@dataclass(frozen=True)
class Completed:
    """A child that ended by itself."""

    status: int
    stdout: bytes
    stderr: str


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[str | int]


class _Child:
    """A running child with one pipe to us; ended, by force if need be, when its context ends."""

    def __init__(
        self, command: Command, idle_timeout_s: float, *, reads_us: bool, output: int = subprocess.DEVNULL
    ) -> None:
        self.command = command
        self.idle_timeout_s = idle_timeout_s
        self.status: int | None = None
        self._unused = threading.Event()
        self._unused.set()
        self._process = _start(
            command,
            stdin=subprocess.PIPE if reads_us else subprocess.DEVNULL,
            stdout=output if reads_us else subprocess.PIPE,
        )
        pipe = self._process.stdin if reads_us else self._process.stdout
        assert pipe is not None
        assert self._process.stderr is not None
        self._pipe = pipe
        self._stderr = StderrTail(self._process.stderr.fileno(), command.heard)
        os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def stderr_lines(self) -> list[str]:
        """Return the last lines that the child wrote to stderr."""
        return self._stderr.lines()

    def _wait_for(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._pipe.fileno(), event)
        if not poll.poll(self.idle_timeout_s * 1000):
            self.kill()
            raise self._failure(f"{self.command.tool} moved no byte for {self.idle_timeout_s:g} s and was stopped")

    def _finish(self) -> None:
        """Wait for the child's end; raise SourceError unless it exited with 0."""
        try:
            self.status = self._process.wait(timeout=self.idle_timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failure(
                f"{self.command.tool} closed its pipe, did not end for {self.idle_timeout_s:g} s and was stopped"
            ) from None
        _kill_group(self._process.pid)
        if self.status != 0:
            raise self._failure(f"{self.command.tool} {ending(self.status)}")

    def _failure(self, message: str) -> SourceError:
        return SourceError(message, details=[f"command: {shlex.join(self.command.argv)}", *self.stderr_lines])

    def kill(self) -> None:
        """End the child's whole process group: politely first, then not; no error when it is gone already."""
        for stop, patience_s in ((signal.SIGTERM, _KILL_AFTER_S), (signal.SIGKILL, None)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=patience_s)
            if self._process.poll() is not None:
                _kill_group(self._process.pid)
        self.status = self._process.poll()

    def close(self) -> None:
        """End the child if it still runs, and close our ends of its pipes.

        Another thread may still be in `Producer.chunks`: the child's end wakes it, and the pipe is closed after it
        left.
        """
        self.kill()
        self._unused.wait(timeout=_KILL_AFTER_S)
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._stderr.lines()
        if self._process.stderr is not None:
            self._process.stderr.close()


class Producer(_Child):
    """A child whose standard output we read."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the output in chunks of a mebibyte, and raise SourceError if the child then does not exit with 0.

        The last chunk may be short. An idle time-out kills the child and raises SourceError.
        """
        self._unused.clear()
        try:
            yield from self._read()
        finally:
            self._unused.set()
        self._finish()

    def _read(self) -> Iterator[bytes]:
        descriptor = self._pipe.fileno()
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        filled = 0
        while True:
            # Asked first, since it mostly has to wait: pg_dump writes 4 KiB at a time.
            self._wait_for(select.POLLIN)
            count = os.readv(descriptor, [view[filled:]])
            if count == 0:
                break
            filled += count
            if filled == CHUNK_BYTES:
                yield bytes(buffer)
                filled = 0
        if filled:
            yield bytes(view[:filled])


class Consumer(_Child):
    """A child whose standard input we write."""

    def feed(self, chunks: Iterable[bytes]) -> None:
        """Write everything, close the pipe and wait; raise SourceError unless the child exits with 0.

        When ``chunks`` raises, the child is killed before its input ends, so that it cannot take the cut for the end;
        the error goes on to the caller.
        """
        try:
            for chunk in chunks:
                self._write(memoryview(chunk))
        except BrokenPipeError:
            self._finish()
            raise self._failure(f"{self.command.tool} stopped reading before the end of its input") from None
        except BaseException:
            self.kill()
            raise
        self._pipe.close()
        self._finish()

    def _write(self, view: memoryview) -> None:
        descriptor = self._pipe.fileno()
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                self._wait_for(select.POLLOUT)


class Resident(_Child):
    """A child that runs until it is told to stop; it is only watched, and says what it has to say on stderr."""

    @property
    def identity(self) -> ProcessIdentity:
        """Return which process it is, so that it can be found when we were killed and it was not."""
        return ProcessIdentity(socket.gethostname(), self._process.pid, start_mark(self._process.pid))

    def ended(self) -> int | None:
        """Return the exit status of a child that has ended, None while it runs."""
        self.status = self._process.poll()
        return self.status

    def interrupt(self, patience_s: float) -> None:
        """Ask the child to end as Ctrl-C would, and wait for it; `close` does the rest."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)


@contextmanager
def open_producer(command: Command, *, idle_timeout_s: float) -> Iterator[Producer]:
    """Start a child to read from; it is gone when the context ends. Raise SourceError when it cannot be started."""
    child = Producer(command, idle_timeout_s, reads_us=False)
    try:
        yield child
    finally:
        child.close()


@contextmanager
def open_resident(command: Command) -> Iterator[Resident]:
    """Start a child to watch; it is gone when the context ends. Raise SourceError when it cannot be started."""
    child = Resident(command, _KILL_AFTER_S, reads_us=False)
    try:
        yield child
    finally:
        child.close()


@contextmanager
def open_consumer(command: Command, *, idle_timeout_s: float, output: int = subprocess.DEVNULL) -> Iterator[Consumer]:
    """Start a child to write to; it is gone when the context ends. Raise SourceError when it cannot be started.

    ``output`` is the descriptor that it gets as its standard output; ours stays open.
    """
    child = Consumer(command, idle_timeout_s, reads_us=True, output=output)
    try:
        yield child
    finally:
        child.close()


def run(command: Command, *, stdin: bytes | int = b"", timeout_s: float = 60, check: bool = True) -> Completed:
    """Run a short child to its end and return what it said; its input is what is given, or an open descriptor.

    Raise SourceError when it cannot be started, outlives ``timeout_s``, or (with ``check``) exits with another status
    than 0. Its output is held in memory: for tools that say little.
    """
    given = stdin if isinstance(stdin, bytes) else None
    source = subprocess.PIPE if isinstance(stdin, bytes) else stdin
    with _start(command, stdin=source, stdout=subprocess.PIPE) as process:
        try:
            stdout, stderr = process.communicate(given, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise SourceError(
                f"{command.tool} did not end within {timeout_s:g} s", details=[f"command: {shlex.join(command.argv)}"]
            ) from None
        finally:
            if process.poll() is None:
                _kill_group(process.pid)
    text = stderr.decode(errors="replace")
    if check and process.returncode != 0:
        tail = [line for line in text.splitlines() if line.strip()][-MOST_LINES:]
        raise SourceError(
            f"{command.tool} {ending(process.returncode)}", details=[f"command: {shlex.join(command.argv)}", *tail]
        )
    return Completed(process.returncode, stdout, text)


def start_partner(command: Command) -> subprocess.Popen[bytes]:
    """Start a child with pipes both ways, for `drkit.partner`; raise SourceError when it cannot be started."""
    return _start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _start(command: Command, *, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    try:
        identity = _identity(command.user) if command.user else {}
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command.started_as(),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=command.environment(),
            cwd=command.cwd,
            start_new_session=True,
            bufsize=0,
            **identity,
        )
    except OSError as error:
        raise SourceError(f"cannot start {command.argv[0]}: {error}") from error
    return process


def give_way() -> None:
    """Let this thread, and what it starts from now on, take a processor after others, and never from one that runs.

    A database server on the same host is what drkit waits for: when each of its writes wakes a reader that pushes it
    off its processor, both are slower. Lasts as long as the thread, since only root may take it back.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), _NICENESS))


def _identity(user: str) -> _Identity:
    """Return what makes a child ``user``'s, in that user's primary group, whatever the group is called."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise SourceError(f"there is no user {user} on this host", hints=[f"getent passwd {user}"]) from None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _kill_group(leader: int) -> None:
    """Kill what is left of a child's process group, right when it has ended: later its number may be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def ending(status: int) -> str:
    """Say how a child ended whose exit status, or negative signal, is given."""
    if status >= 0:
        return f"failed with exit status {status}"
    try:
        return f"was killed by signal {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def end_orphan(identity: ProcessIdentity) -> bool:
    """Kill a child of a process that was killed, with its group; return whether it was still there.

    ``identity`` must be of a child that was started here: such a one leads a group of its own.
    """
    if not identity.is_known_alive():
        return False
    _kill_group(identity.pid)
    return True
