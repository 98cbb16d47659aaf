"""Child processes: what they are told, how they end, and that none outlives its context."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.errors import SourceError
from drkit.process import Command, give_way, open_consumer, open_producer, run
from drkit.process_identity import ProcessIdentity, start_mark
from drkit.tied import run_tied
from drkit.units import CHUNK_BYTES
from tests.fixtures.waiting import wait_until

SOON_S = 20.0


def sh(script: str, *arguments: str) -> Command:
    return Command(["/bin/sh", "-c", script, "sh", *arguments])


@contextlib.contextmanager
def quickly(limit_s: float = SOON_S) -> Iterator[None]:
    """Require the body to take less than a limit that is far below every time-out it was given."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < limit_s


def is_running(pid: int) -> bool:
    return start_mark(pid) != ""


def written_pid(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


class TestEnvironment:
    def test_nothing_of_ours_goes_along(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@h/d")
        monkeypatch.setenv("PGPASSWORD", "secret")
        done = run(Command(["/usr/bin/env"], env={"PGSERVICE": "drkit"}))
        names = {line.partition("=")[0] for line in done.stdout.decode().splitlines()}
        assert "PGSERVICE" in names
        assert not {"DATABASE_URL", "PGPASSWORD"} & names

    def test_messages_are_english_and_times_utc(self) -> None:
        done = run(sh('echo "$LC_ALL $LANG $TZ"'))
        assert done.stdout == b"C.UTF-8 C.UTF-8 UTC\n"

    def test_a_tool_that_is_not_there(self) -> None:
        with pytest.raises(SourceError, match="cannot start /no/such/tool"):
            run(Command(["/no/such/tool"]))


class TestRun:
    def test_output_and_status(self) -> None:
        done = run(sh("cat; echo words >&2; exit 3"), stdin=b"given", check=False)
        assert (done.status, done.stdout, done.stderr) == (3, b"given", "words\n")

    def test_failure_shows_the_last_words(self) -> None:
        with pytest.raises(SourceError, match="sh failed with exit status 3") as caught:
            run(sh("for i in $(seq 100); do echo line $i >&2; done; exit 3"))
        assert caught.value.details[-1] == "line 100"
        assert len(caught.value.details) < 25

    def test_time_out_ends_the_whole_group(self, tmp_path: Path) -> None:
        with quickly(), pytest.raises(SourceError, match=r"did not end within 0\.3 s"):
            run(sh('sleep 600 & echo $! > "$1"; wait', str(tmp_path / "pid")), timeout_s=0.3)
        grandchild = written_pid(tmp_path / "pid")
        wait_until(lambda: not is_running(grandchild))

    def test_one_that_left_the_group_does_not_hold_us_up(self, tmp_path: Path) -> None:
        script = 'setsid sh -c \'echo $$ > "$1"; exec sleep 600\' sh "$1" & wait'
        with quickly(), pytest.raises(SourceError, match="did not end"):
            run(sh(script, str(tmp_path / "pid")), timeout_s=1)
        os.kill(written_pid(tmp_path / "pid"), 9)


class TestTied:
    def test_output_and_status(self) -> None:
        done = run_tied(sh("cat; echo $#; echo words >&2; exit 3", "a b"), timeout_s=60)
        assert (done.status, done.stdout, done.stderr) == (3, b"1\n", "words\n")

    def test_it_ends_with_us(self, tmp_path: Path) -> None:
        script = "import sys; from drkit.process import Command; from drkit.tied import run_tied\n"
        script += "run_tied(Command(['/bin/sh', '-c', 'echo $$ >\"$0\"; exec sleep 600', sys.argv[1]]), timeout_s=600)"
        parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "pid")])
        child = written_pid(tmp_path / "pid")
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_running(child))

    def test_a_time_out_ends_it(self, tmp_path: Path) -> None:
        with quickly(), pytest.raises(SourceError, match=r"did not end within 0\.3 s"):
            run_tied(sh('echo $$ >"$1"; exec sleep 600', str(tmp_path / "pid")), timeout_s=0.3)
        child = written_pid(tmp_path / "pid")
        wait_until(lambda: not is_running(child))


class TestProducer:
    def test_chunks(self) -> None:
        with open_producer(sh("head -c 2500000 /dev/zero"), idle_timeout_s=60) as child:
            sizes = [len(chunk) for chunk in child.chunks()]
        assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 2500000 - 2 * CHUNK_BYTES]
        assert child.status == 0

    def test_slow_pieces_make_whole_chunks(self) -> None:
        script = "for i in 1 2 3 4; do head -c 300000 /dev/zero; done"
        with open_producer(sh(script), idle_timeout_s=60) as child:
            assert [len(chunk) for chunk in child.chunks()] == [CHUNK_BYTES, 1200000 - CHUNK_BYTES]

    def test_a_failure_after_the_last_byte_is_no_end(self) -> None:
        with open_producer(sh("echo all; echo words >&2; exit 4"), idle_timeout_s=60) as child:
            chunks = child.chunks()
            assert next(chunks) == b"all\n"
            with pytest.raises(SourceError, match="sh failed with exit status 4") as caught:
                next(chunks)
        assert caught.value.details[-1] == "words"

    def test_a_signal_is_named(self) -> None:
        with (
            open_producer(sh("kill -SEGV $$"), idle_timeout_s=60) as child,
            pytest.raises(SourceError, match="SIGSEGV"),
        ):
            list(child.chunks())

    @pytest.mark.parametrize("script", ["exec sleep 600", "echo begun; exec sleep 600"])
    def test_idle(self, script: str) -> None:
        with (
            quickly(),
            open_producer(sh(script), idle_timeout_s=0.3) as child,
            pytest.raises(SourceError, match=r"moved no byte for 0\.3 s and was stopped"),
        ):
            list(child.chunks())

    def test_a_pipe_that_closes_before_its_child_ends(self) -> None:
        with (
            quickly(),
            open_producer(sh("exec >&-; exec sleep 600"), idle_timeout_s=0.3) as child,
            pytest.raises(SourceError, match=r"closed its pipe, did not end for 0\.3 s"),
        ):
            list(child.chunks())

    def test_leaving_early_ends_the_whole_group(self, tmp_path: Path) -> None:
        script = 'sleep 600 & echo $! > "$1"; yes'
        with quickly(), open_producer(sh(script, str(tmp_path / "pid")), idle_timeout_s=60) as child:
            next(child.chunks())
            grandchild = written_pid(tmp_path / "pid")
        wait_until(lambda: not is_running(grandchild))
        assert child.status is not None

    def test_what_an_ended_child_left_is_ended(self, tmp_path: Path) -> None:
        script = 'sleep 600 >/dev/null 2>&1 & echo $! > "$1"; echo all'
        with open_producer(sh(script, str(tmp_path / "pid")), idle_timeout_s=60) as child:
            assert list(child.chunks()) == [b"all\n"]
        wait_until(lambda: not is_running(written_pid(tmp_path / "pid")))

    def test_a_deaf_child_is_killed(self) -> None:
        with (
            quickly(),
            open_producer(sh("trap '' TERM; echo up; while :; do sleep 1; done"), idle_timeout_s=60) as child,
        ):
            pid = child._process.pid
            os.read(child._pipe.fileno(), 3) if _readable(child._pipe.fileno()) else None
        assert not is_running(pid)
        assert child.status == -9

    def test_a_flood_of_words(self) -> None:
        script = "yes noise | head -c 30000000 >&2; echo last words >&2; printf rest >&2; exit 1"
        with open_producer(sh(script), idle_timeout_s=60) as child, pytest.raises(SourceError) as caught:
            list(child.chunks())
        assert caught.value.details[-2:] == ("last words", "rest")
        assert len(caught.value.details) <= 21

    def test_a_line_without_end(self) -> None:
        script = "head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1"
        with open_producer(sh(script), idle_timeout_s=60) as child, pytest.raises(SourceError) as caught:
            list(child.chunks())
        assert len(caught.value.details[-1]) <= 2000


def _readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 10)[0])


class TestConsumer:
    def test_everything_arrives(self, tmp_path: Path) -> None:
        chunks = [bytes([number]) * CHUNK_BYTES for number in range(5)]
        with open_consumer(sh('cat > "$1"', str(tmp_path / "copy")), idle_timeout_s=60) as child:
            child.feed(chunks)
        assert (tmp_path / "copy").read_bytes() == b"".join(chunks)
        assert child.status == 0

    def test_a_failure_at_the_end(self) -> None:
        with (
            open_consumer(sh("cat > /dev/null; echo words >&2; exit 5"), idle_timeout_s=60) as child,
            pytest.raises(SourceError, match="exit status 5") as caught,
        ):
            child.feed([b"x"])
        assert caught.value.details[-1] == "words"

    @pytest.mark.parametrize(("status", "message"), [(0, "stopped reading before the end"), (6, "exit status 6")])
    def test_one_that_stops_reading(self, status: int, message: str) -> None:
        def endless() -> Iterator[bytes]:
            while True:
                yield b"x" * CHUNK_BYTES

        script = f"head -c 10 > /dev/null; echo words >&2; exit {status}"
        with (
            quickly(),
            open_consumer(sh(script), idle_timeout_s=60) as child,
            pytest.raises(SourceError, match=message) as caught,
        ):
            child.feed(endless())
        assert caught.value.details[-1] == "words"

    def test_idle_while_we_write(self) -> None:
        with (
            quickly(),
            open_consumer(sh("exec sleep 600"), idle_timeout_s=0.3) as child,
            pytest.raises(SourceError, match=r"moved no byte for 0\.3 s"),
        ):
            child.feed([b"x" * CHUNK_BYTES] * 8)

    def test_idle_after_we_wrote(self) -> None:
        with (
            quickly(),
            open_consumer(sh("cat > /dev/null; exec sleep 600"), idle_timeout_s=0.3) as child,
            pytest.raises(SourceError, match=r"did not end for 0\.3 s"),
        ):
            child.feed([b"x"])

    def test_a_source_that_fails_is_no_end(self, tmp_path: Path) -> None:
        """The child must not take the cut for the end of its input."""

        def failing() -> Iterator[bytes]:
            yield b"x" * CHUNK_BYTES
            raise KeyError("source")

        done = tmp_path / "done"
        with (
            open_consumer(sh('cat > /dev/null; echo done > "$1"', str(done)), idle_timeout_s=60) as child,
            pytest.raises(KeyError, match="source"),
        ):
            child.feed(failing())
        assert child.status == -15
        assert not done.exists()


def test_memory_is_constant() -> None:
    """400 MB through two pipes leaves no trace in the resident size."""
    program = """
import resource
from drkit.process import Command, open_consumer, open_producer
source = Command(["/bin/sh", "-c", "head -c 400000000 /dev/zero"])
with open_producer(source, idle_timeout_s=60) as one, open_consumer(Command(["/bin/cat"]), idle_timeout_s=60) as other:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    other.feed(one.chunks())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * 1024


class TestIdentity:
    def test_ourselves(self) -> None:
        own = ProcessIdentity.own()
        assert ProcessIdentity.parse(str(own)) == own
        assert not own.is_known_dead()

    def test_one_that_ended(self) -> None:
        with subprocess.Popen(["/bin/sleep", "600"]) as process:
            identity = ProcessIdentity(socket.gethostname(), process.pid, start_mark(process.pid))
            assert not identity.is_known_dead()
            process.kill()
            # A zombie is dead: whoever should have waited for it may have been killed as well.
            wait_until(identity.is_known_dead)
        assert identity.is_known_dead()

    def test_another_with_the_same_number(self) -> None:
        own = ProcessIdentity.own()
        assert ProcessIdentity(own.host, own.pid, "earlier").is_known_dead()

    def test_nothing_is_known_of_another_host(self) -> None:
        assert not ProcessIdentity("elsewhere", 1, "x").is_known_dead()

    @pytest.mark.parametrize("text", ["", "nonsense", "host/pid@mark", "/12"])
    def test_what_cannot_be_read_is_nobody_here(self, text: str) -> None:
        assert not ProcessIdentity.parse(text).is_known_dead()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a child as somebody else")
def test_a_child_gets_its_users_primary_group_whatever_that_is_called() -> None:
    account = next(entry for entry in pwd.getpwall() if _group_of(entry.pw_gid) not in (entry.pw_name, ""))
    done = run(Command(["/usr/bin/id", "-u"], user=account.pw_name))
    assert int(done.stdout) == account.pw_uid
    done = run(Command(["/usr/bin/id", "-G"], user=account.pw_name))
    assert [int(number) for number in done.stdout.split()] == [account.pw_gid]


def _group_of(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a child as somebody else")
def test_a_user_that_is_not_there_is_named() -> None:
    with pytest.raises(SourceError, match="there is no user nobody-of-that-name on this host"):
        run(Command(["/usr/bin/id"], user="nobody-of-that-name"))


class TestGiveWay:
    def test_a_thread_and_what_it_starts_stand_back_and_nobody_else(self) -> None:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        seen: list[int] = []

        def stand_back() -> None:
            give_way()
            seen.append(int(run(Command(["/usr/bin/nice"])).stdout))
            seen.append(os.sched_getscheduler(0))

        thread = threading.Thread(target=stand_back)
        thread.start()
        thread.join()
        assert seen == [max(own, 5), os.SCHED_BATCH]
        assert os.getpriority(os.PRIO_PROCESS, 0) == own

    def test_who_stands_further_back_stays_there(self) -> None:
        told = "import os; from drkit.process import give_way; os.nice(9); give_way(); print(os.nice(0))"
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert int(run(Command([sys.executable, "-c", told])).stdout) == own + 9


class TestLargerBuffers:
    SAID = Command(["/bin/sh", "-c", "echo out; exit 3"], buffer_bytes=1 << 16)

    def test_the_child_is_the_tool_itself_for_every_message(self) -> None:
        stdbuf, *buffers, _shell, _option, _script = self.SAID.started_as()
        assert (Path(stdbuf).name, buffers) == ("stdbuf", ["--input=65536", "--output=65536"])
        with (
            pytest.raises(SourceError, match="sh failed with exit status 3") as raised,
            open_producer(self.SAID, idle_timeout_s=5) as child,
        ):
            list(child.chunks())
        assert raised.value.details[0].startswith("command: /bin/sh")

    def test_it_does_without_where_there_is_no_stdbuf(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert run(self.SAID, check=False).stdout == b"out\n"


def test_a_listener_hears_every_line_of_a_flood_and_chooses_what_is_kept() -> None:
    heard: list[str] = []

    def listen(line: str) -> bool:
        heard.append(line)
        return line.endswith("9")

    script = "import sys; sys.stderr.write(''.join(f'line {n}\\n' for n in range(5000))); print('out')"
    with open_producer(Command([sys.executable, "-c", script], heard=listen), idle_timeout_s=60) as producer:
        assert b"".join(producer.chunks()) == b"out\n"
        kept = producer.stderr_lines
    assert heard == [f"line {number}" for number in range(5000)]
    assert kept[-2:] == ["line 4989", "line 4999"]
