"""The client that PostgreSQL calls, against a socket that answers what the test wants."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit import wal_client

NAME = "000000010000000000000007"


@contextlib.contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[list[bytes]]:
    """Answer one question at ``path``, or hang up without a word for None; yield what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        listener.listen()

        def answer_once() -> None:
            line, _ = listener.accept()
            with line:
                asked.append(line.recv(10_000))
                if answer is not None:
                    line.sendall(answer)

        thread = threading.Thread(target=answer_once, daemon=True)
        thread.start()
        yield asked
        thread.join(timeout=5)


def run(*arguments: str) -> tuple[int, str]:
    line = [sys.executable, "-I", "-S", str(Path(wal_client.__file__)), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_push_names_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with answering(tmp_path / "socket", b"ok 0\n") as asked:
        assert wal_client.push(f"pg_wal/{NAME}", "socket") == 0
    assert asked == [f"push {tmp_path}/pg_wal/{NAME}\n".encode()]


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [(b"no it is another one\n", 1, "was refused: it is another one"), (b"", 2, "hung up"), (None, 2, "hung up")],
)
def test_a_push_that_was_not_taken(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: bytes | None, status: int, said: str
) -> None:
    with answering(tmp_path / "socket", answer):
        assert wal_client.push(f"/x/{NAME}", str(tmp_path / "socket")) == status
    assert said in capfd.readouterr().err


def test_a_push_does_not_wait_for_ever(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        assert wal_client.push(f"/x/{NAME}", str(tmp_path / "socket"), 0.1) == 2
    assert "no answer in time" in capfd.readouterr().err


def test_a_fetch_writes_the_file_whole(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    with answering(tmp_path / "socket", b"ok %d\n%b" % (len(content), content)) as asked:
        assert wal_client.fetch(NAME, str(tmp_path / "RECOVERYXLOG"), str(tmp_path / "socket")) == 0
    assert asked == [f"fetch {NAME}\n".encode()]
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RECOVERYXLOG", "socket"]


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    with answering(tmp_path / "socket", b"ok 0\n"):
        assert wal_client.fetch(NAME, str(tmp_path / "out"), str(tmp_path / "socket")) == 0
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"absent\n", 1),
        (b"no the store is away\n", 255),
        (b"ok 10\nshort", 255),
        (b"ok 3\nlonger than that", 255),
        (b"ok many\n", 255),
        (b"absent", 255),
        (None, 255),
    ],
)
def test_only_a_clear_answer_ends_a_recovery(tmp_path: Path, answer: bytes | None, status: int) -> None:
    with answering(tmp_path / "socket", answer):
        assert wal_client.fetch(NAME, str(tmp_path / "out"), str(tmp_path / "socket")) == status
    assert [path.name for path in tmp_path.iterdir()] == ["socket"]


def test_nobody_there_aborts_a_recovery_and_keeps_a_segment(tmp_path: Path) -> None:
    status, said = run("fetch", NAME, str(tmp_path / "out"), "--socket", str(tmp_path / "socket"))
    assert (status, "nobody answers at" in said) == (255, True)
    status, said = run("push", f"/x/{NAME}", "--socket", str(tmp_path / "socket"))
    assert (status, "nobody answers at" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 255),
        (["fetch", NAME], 255),
        (["fetch", NAME, "out"], 255),
        (["fetch", NAME, "out", "--socket", "s", "--timeout", "soon"], 255),
        (["push", "a", "b", "--socket", "s"], 64),
        (["push", "a"], 64),
    ],
)
def test_wrong_usage_is_never_taken_for_the_end_of_the_log(arguments: list[str], status: int) -> None:
    assert run(*arguments)[0] == status


def test_a_long_path_to_the_socket_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    with answering(folder / "socket", b"ok 0\n"):
        folder.chmod(0o300)  # to pass through is all that the server's user may
        assert wal_client.push(f"/x/{NAME}", str(folder / "socket")) == 0


def test_it_imports_next_to_nothing() -> None:
    program = (
        "import sys; before = set(sys.modules); sys.argv = ['x']; "
        f"exec(compile(open({wal_client.__file__!r}).read().replace('os._exit(main', '(main'), 'client', 'exec')); "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "_socket" in loaded
    assert loaded.isdisjoint({"socket", "pathlib", "json", "re", "typing", "subprocess", "argparse", "drkit"})
    assert len(loaded) < 20
