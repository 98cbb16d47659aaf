"""What PostgreSQL calls for each WAL file: hands one file to `drkit serve`, or takes one from a restore, by a socket.

It stands alone and imports next to nothing, because PostgreSQL starts it for every segment:

    archive_command = 'python3 -I -S /path/to/wal_client.py push %p --socket /path/to/socket'
    restore_command = 'python3 -I -S /path/to/wal_client.py fetch %f %p --socket /path/to/socket'

The protocol is one line each way. Asked is ``push PATH`` (absolute; the other side reads the file) or ``fetch NAME``.
Answered is ``ok SIZE`` (after a fetch that many bytes follow), ``absent``, or ``no REASON``.

Exit status: 0 done. push: 1 refused, 2 not reached or not answered in time; PostgreSQL keeps the file and asks again.
fetch: 1 there is no such file, which ends recovery; 255 anything else, which aborts it: a log that cannot be read now
must never be taken for its end (manual, 26.3.4).
"""
# pathlib takes longer to import than all the rest of this takes to run, and so does what the module socket adds to
# the one in C beneath it: a segment costs PostgreSQL half as much this way.
# ruff: noqa: PTH100, PTH105, PTH108, PTH110, PTH119, PTH120, PTH123

import _socket
import os
import sys

PUSH_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 600.0
_CHUNK_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 8192
_LONGEST_SOCKET_PATH = 100
_USAGE = "usage: wal_client.py push PATH --socket SOCKET | fetch NAME PATH --socket SOCKET   [--timeout SECONDS]"


def push(path: str, socket_path: str, timeout_s: float = PUSH_TIMEOUT_S) -> int:
    """Hand over the file at ``path``; return 0 once it is durable in the stores, the exit status otherwise."""
    try:
        line = connect(socket_path, timeout_s)
        try:
            _send_request(line, "push", os.path.abspath(path))
            answer, _ = _read_line(line)
        finally:
            line.close()
    except (OSError, ValueError) as error:
        _say(f"{os.path.basename(path)} was not taken: {_reason(error, socket_path)}")
        return 2
    if answer.startswith("ok"):
        return 0
    _say(f"{os.path.basename(path)} was refused: {answer.removeprefix('no ')}")
    return 1


def fetch(name: str, path: str, socket_path: str, timeout_s: float = FETCH_TIMEOUT_S) -> int:
    """Write the file called ``name`` to ``path``; return the exit status for PostgreSQL."""
    unfinished = f"{path}.drkit"
    try:
        line = connect(socket_path, timeout_s)
        try:
            _send_request(line, "fetch", name)
            answer, rest = _read_line(line)
            if answer == "absent":
                return 1
            _receive(line, rest, _announced_bytes(answer), unfinished)
        finally:
            line.close()
        os.replace(unfinished, path)
    except (OSError, ValueError) as error:
        _say(f"{name} was not fetched: {_reason(error, socket_path)}")
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        return 255
    return 0


def connect(socket_path: str, timeout_s: float) -> _socket.socket:
    """Connect to the socket; a path that is too long for the system's address is reached through its folder."""
    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    line.settimeout(timeout_s)
    folder = -1
    try:
        if len(os.fsencode(socket_path)) <= _LONGEST_SOCKET_PATH:
            line.connect(socket_path)
        else:
            folder = os.open(os.path.dirname(socket_path), os.O_PATH)  # who may only pass through may connect
            line.connect(f"/proc/self/fd/{folder}/{os.path.basename(socket_path)}")
    except BaseException:
        line.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return line


def _send_request(line: _socket.socket, word: str, argument: str) -> None:
    if "\n" in argument:
        raise ValueError("a name with a line break cannot be asked for")
    line.sendall(word.encode() + b" " + os.fsencode(argument) + b"\n")


def _read_line(line: _socket.socket) -> tuple[str, bytes]:
    """Return the answer without its line end, and what came after it."""
    received = b""
    while b"\n" not in received:
        chunk = line.recv(_CHUNK_BYTES)
        if not chunk or len(received) > _LONGEST_LINE_BYTES:
            raise ValueError("the other side hung up without an answer")
        received += chunk
    answer, _, rest = received.partition(b"\n")
    return answer.decode("utf-8", "replace"), rest


def _announced_bytes(answer: str) -> int:
    word, _, size = answer.partition(" ")
    if word != "ok":
        raise ValueError(answer.removeprefix("no "))
    return int(size)


def _receive(line: _socket.socket, rest: bytes, size_bytes: int, path: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:
        missing = size_bytes
        chunk = rest
        while True:
            missing -= len(chunk)
            if missing < 0:
                raise ValueError("more bytes came than were announced")
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
            if not missing:
                return
            chunk = line.recv(min(_CHUNK_BYTES, missing))
            if not chunk:
                raise ValueError(f"{missing} of {size_bytes} bytes did not come")


def _reason(error: Exception, socket_path: str) -> str:
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return f"nobody answers at {socket_path} (is drkit serve running?)"
    if isinstance(error, TimeoutError):
        return f"no answer in time from {socket_path}"
    return f"{error} ({socket_path})" if isinstance(error, OSError) else str(error)


def _say(text: str) -> None:
    sys.stderr.write(f"drkit wal: {text}\n")


def main(arguments: list[str]) -> int:
    """Run the command line; wrong usage is never taken for "there is no such file"."""
    options = {"--socket": "", "--timeout": ""}
    words = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in options and rest:
            options[word] = rest.pop(0)
        else:
            words.append(word)
    socket_path, timeout = options["--socket"], options["--timeout"]
    try:
        if words[:1] == ["push"] and len(words) == 2 and socket_path:
            return push(words[1], socket_path, float(timeout or PUSH_TIMEOUT_S))
        if words[:1] == ["fetch"] and len(words) == 3 and socket_path:
            return fetch(words[1], words[2], socket_path, float(timeout or FETCH_TIMEOUT_S))
    except ValueError:
        pass
    sys.stderr.write(_USAGE + "\n")
    return 64 if words[:1] == ["push"] else 255


if __name__ == "__main__":
    # Taking the interpreter down in good order takes a tenth of all the time, and nothing is left to be put in order.
    os._exit(main(sys.argv[1:]))
