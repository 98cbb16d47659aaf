"""The client that PostgreSQL calls, against a socket that answers what the test wants."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from drkit import wal_client
from tests.fixtures.wal_commands import answering

NAME = "000000010000000000000007"
PERL = Path("/usr/bin/perl")
PERL_CLIENT = str(Path(wal_client.__file__).with_name("wal_push.pl"))
PYTHON = (sys.executable, "-I", "-S", str(Path(wal_client.__file__)))
clients = pytest.mark.parametrize(
    "client",
    [
        pytest.param(PYTHON, id="python"),
        pytest.param(
            (str(PERL), "-C0", PERL_CLIENT),
            id="perl",
            marks=pytest.mark.skipif(not PERL.exists(), reason="there is no Perl here"),
        ),
    ],
)


def run(*arguments: str, client: Sequence[str] = PYTHON, **settings: Any) -> tuple[int, str]:
    done = subprocess.run([*client, *arguments], capture_output=True, text=True, check=False, **settings)
    return done.returncode, done.stderr


@clients
def test_a_push_names_the_whole_path(tmp_path: Path, client: Sequence[str]) -> None:
    with answering(tmp_path / "socket", b"ok 0\n") as asked:
        assert run("push", f"pg_wal/{NAME}", "--socket", "socket", client=client, cwd=tmp_path) == (0, "")
    assert asked == [f"push {tmp_path}/pg_wal/{NAME}\n".encode()]


@clients
@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"no it is another one\n", 1, "was refused: it is another one"),
        (b"", 2, "was not taken: the other side hung up without an answer"),
        (b"ok 0", 2, "was not taken: the other side hung up without an answer"),
        (b"x" * 9000, 2, "was not taken: the other side hung up without an answer"),
        (None, 2, "was not taken: the other side hung up without an answer"),
    ],
)
def test_a_push_that_was_not_taken(
    tmp_path: Path, client: Sequence[str], answer: bytes | None, status: int, said: str
) -> None:
    with answering(tmp_path / "socket", answer):
        found = run("push", f"/x/{NAME}", "--socket", str(tmp_path / "socket"), client=client)
    assert found == (status, f"drkit wal: {NAME} {said}\n")


@clients
def test_a_push_does_not_wait_for_ever(tmp_path: Path, client: Sequence[str]) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        found = run("push", f"/x/{NAME}", "--socket", path, "--timeout", "0.1", client=client)
    assert found == (2, f"drkit wal: {NAME} was not taken: no answer in time from {path}\n")


@clients
def test_a_push_that_may_not_connect_says_so(tmp_path: Path, client: Sequence[str]) -> None:
    path = tmp_path / "socket"
    path.mkdir()  # as good as no permission, which root always has: connecting to it is refused
    assert run("push", f"/x/{NAME}", "--socket", str(path), client=client) == (
        2,
        f"drkit wal: {NAME} was not taken: nobody answers at {path} (is drkit serve running?)\n",
    )
    too_long = f"/{'x' * 300}/socket"
    status, said = run("push", f"/x/{NAME}", "--socket", too_long, client=client)
    assert (status, "File name too long" in said) == (2, True)
    assert run("push", "/x/two\nlines", "--socket", str(path), client=client)[0] == 2


@clients
def test_a_push_is_not_disturbed_by_the_servers_environment(tmp_path: Path, client: Sequence[str]) -> None:
    strange = {**os.environ, "LC_ALL": "xx_XX", "PERL_UNICODE": "SAD", "PERL_BADLANG": "0", "PYTHONHOME": "/nowhere"}
    name = os.fsdecode(b"caf\xe9\xff")
    with answering(tmp_path / "socket", b"ok 0\n") as asked:
        assert run("push", f"/x/{name}", "--socket", str(tmp_path / "socket"), client=client, env=strange) == (0, "")
    assert asked == [b"push /x/caf\xe9\xff\n"]


@pytest.mark.skipif(not PERL.exists(), reason="there is no Perl here")
def test_the_perl_client_loads_no_module_and_is_clean(tmp_path: Path) -> None:
    strict = subprocess.run(
        [str(PERL), "-Mstrict", "-Mwarnings", "-c", PERL_CLIENT], capture_output=True, text=True, check=False
    )
    assert strict.stderr == f"{PERL_CLIENT} syntax OK\n"
    shown = f"{Path(PERL_CLIENT).read_text()}\nEND {{ print join(' ', keys %INC) }}"
    (tmp_path / "client.pl").write_text(shown)
    done = subprocess.run([str(PERL), str(tmp_path / "client.pl")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")


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


def test_nobody_there_aborts_a_recovery(tmp_path: Path) -> None:
    status, said = run("fetch", NAME, str(tmp_path / "out"), "--socket", str(tmp_path / "socket"))
    assert (status, "nobody answers at" in said) == (255, True)


@clients
def test_nobody_there_keeps_a_segment(tmp_path: Path, client: Sequence[str]) -> None:
    path = str(tmp_path / "socket")
    expected = f"drkit wal: {NAME} was not taken: nobody answers at {path} (is drkit serve running?)\n"
    assert run("push", f"/x/{NAME}", "--socket", path, client=client) == (2, expected)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)  # somebody was killed and left it
    assert run("push", f"/x/{NAME}", "--socket", path, client=client) == (2, expected)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 255),
        (["fetch", NAME], 255),
        (["fetch", NAME, "out"], 255),
        (["fetch", NAME, "out", "--socket", "s", "--timeout", "soon"], 255),
    ],
)
def test_wrong_usage_is_never_taken_for_the_end_of_the_log(arguments: list[str], status: int) -> None:
    assert run(*arguments)[0] == status


@clients
@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "b", "--socket", "s"],
        ["a"],
        ["--socket", "s"],
        ["a", "--socket"],
        ["a", "--socket", "s", "--timeout", "x"],
    ],
)
def test_a_push_with_wrong_usage(arguments: list[str], client: Sequence[str]) -> None:
    status, said = run("push", *arguments, client=client)
    assert (status, "usage:" in said) == (64, True)


@clients
def test_a_long_path_to_the_socket_is_no_hindrance(tmp_path: Path, client: Sequence[str]) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    with answering(folder / "socket", b"ok 0\n"):
        folder.chmod(0o300)  # to pass through is all that the server's user may
        assert run("push", f"/x/{NAME}", "--socket", str(folder / "socket"), client=client) == (0, "")


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
