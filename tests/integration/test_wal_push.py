"""archive_command with a real server: what is acknowledged is in the stores, what is something else is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit import wal_client
from drkit.wal import Segment
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.shipping import LOGGED, LogSite, flushed_lsn, make_rows, until, write_rows
from tests.fixtures.site import ReadySite

ARCHIVING = {**LOGGED, "archive_mode": "on", "archive_command": "/bin/false"}
CLIENT = Path(wal_client.__file__)


@pytest.fixture(scope="module")
def archiving() -> Iterator[PostgresServer]:
    with running_postgres(segment_mib=1, **ARCHIVING) as server:
        make_rows(server)
        yield server


@pytest.fixture
def source(archiving: PostgresServer, ready_site: ReadySite) -> Iterator[LogSite]:
    """Lend a site that is handed the log of the shared server; the server does not archive yet."""
    archive_by(archiving, "/bin/false")
    site = LogSite(ready_site)
    site.write_policy(archiving.url().reveal(), "receive: archive")
    yield site
    archive_by(archiving, "/bin/false")


def archive_by(server: PostgresServer, command: str) -> None:
    server.execute("alter system set archive_command = '{}'".format(command.replace("'", "''")))
    server.execute("select pg_reload_conf()")


def open_the_way(site: LogSite) -> None:
    """Let the server's user come as far as the socket, as the documentation asks for."""
    for folder in [site.spool, *site.spool.parents]:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(folder.stat().st_mode | 0o011)


def command_of(site: LogSite) -> str:
    """Return the archive_command that drkit prints."""
    done = site.site.call("wal", "command", "orders", "--json")
    assert done.returncode == 0, done.stderr
    command: str = json.loads(done.stdout)["settings"]["archive_command"]
    return command


def finished_segments(server: PostgresServer, count: int) -> list[Path]:
    """Have the server finish some segments, and return their files."""
    folder = server.folder / "data" / "pg_wal"
    first = Segment(1, flushed_lsn(server) >> 20, 1 << 20)
    while flushed_lsn(server) >> 20 < first.number + count:
        write_rows(server)
    return [folder / Segment(1, first.number + step, 1 << 20).name for step in range(count)]


def push(site: LogSite, path: Path) -> int:
    return wal_client.push(str(path), str(site.spool / "socket"), 30)


def test_the_server_archives_through_the_printed_command(source: LogSite, archiving: PostgresServer) -> None:
    with source.serving():
        source.wait_for("push      listening")
        open_the_way(source)
        archive_by(archiving, command_of(source))
        names = [path.name for path in finished_segments(archiving, 4)]
        archived = "select last_archived_wal from pg_stat_archiver"
        until(lambda: (archiving.execute(archived)[0][0] or "") >= names[-1], "the server says that they are archived")
        assert set(names) <= source.stored_names()
    log = source.gapless()
    assert set(names) <= set(log.files)


def test_the_same_again_is_success_and_anything_else_is_refused(
    source: LogSite, archiving: PostgresServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (segment,) = finished_segments(archiving, 1)
    copy = tmp_path / segment.name
    shutil.copy(segment, copy)
    with source.serving():
        source.wait_for("push      listening")
        assert push(source, segment) == 0
        assert push(source, segment) == 0
        assert push(source, copy) == 0
        content = bytearray(copy.read_bytes())
        content[9000] ^= 1
        copy.write_bytes(content)
        capfd.readouterr()
        assert push(source, copy) == 1
        assert "was stored before with other content: SHA-256" in capfd.readouterr().err
        until(lambda: source.shipped().files, "it is listed")
    with source.serving():  # and a process that has forgotten all about it
        source.wait_for("push      listening")
        assert push(source, segment) == 0
        assert push(source, copy) == 1
    (refused,) = {item["file"] for item in source.events("wal.refused")}
    assert refused == segment.name
    assert source.plain(source.check_log().files[segment.name]) == segment.read_bytes()


def test_what_is_older_than_all_that_is_remembered_is_compared_too(
    source: LogSite, archiving: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drkit.operations import log_chain

    first, second = finished_segments(archiving, 2)
    copy = tmp_path / first.name
    shutil.copy(first, copy)
    with source.serving():
        source.wait_for("push      listening")
        for path in (first, second):
            assert push(source, path) == 0
            until(lambda path=path: path.name in source.shipped().files, "listed in a manifest of its own")
    content = bytearray(copy.read_bytes())
    content[9000] ^= 1
    monkeypatch.setattr(log_chain, "_NEWEST_MANIFESTS", 1)
    with source.serving():
        source.wait_for("push      listening")
        assert push(source, copy) == 0
        copy.write_bytes(content)
        assert push(source, copy) == 1
    assert not list((source.spool / "sealed").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("000000010000000000000009", b"\0" * (1 << 20), "does not begin as a WAL segment does"),
        ("000000010000000000000009", b"", "is empty"),
        ("../../etc/passwd", b"root", "is not a name that PostgreSQL gives"),
        ("00000002.history", b"nonsense\n", "not an entry"),
    ],
)
def test_what_is_no_log_is_refused(
    source: LogSite, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / Path(name).name
    path.write_bytes(content)
    with source.serving():
        source.wait_for("push      listening")
        capfd.readouterr()
        assert push(source, path) == 1
        assert reason in capfd.readouterr().err
    assert source.stored_names() == set()


def test_the_log_of_another_cluster_is_refused(
    source: LogSite, archiving: PostgresServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with source.serving(), running_postgres(segment_mib=1, stranger=True, **LOGGED) as stranger:
        source.wait_for("push      listening")
        make_rows(stranger)
        (segment,) = finished_segments(stranger, 1)
        capfd.readouterr()
        assert push(source, segment) == 1
        assert "is of another cluster" in capfd.readouterr().err
    assert source.stored_names() == set()


def test_histories_and_backup_labels_are_kept(source: LogSite, tmp_path: Path) -> None:
    history = tmp_path / "00000002.history"
    history.write_bytes('1\t0/5000000\tat restore point "après"\n'.encode("latin-1"))
    label = tmp_path / "000000010000000000000002.00000028.backup"
    label.write_text(
        "START WAL LOCATION: 0/200028 (file 000000010000000000000002)\nSTOP WAL LOCATION: 0/200138 (file x)\n"
    )
    with source.serving():
        source.wait_for("push      listening")
        assert push(source, history) == 0
        assert push(source, label) == 0
        assert push(source, history) == 0
    files = source.check_log().files
    assert {name: record.kind for name, record in files.items()} == {history.name: "history", label.name: "backup"}
    assert source.plain(files[label.name]) == label.read_bytes()
    assert json.loads(source.site.call("timeline", "orders", "--json").stdout)["doubts"] == []


def test_nothing_is_acknowledged_while_a_store_is_away(source: LogSite, archiving: PostgresServer) -> None:
    (segment,) = finished_segments(archiving, 1)
    with source.serving():
        source.wait_for("push      listening")
        away = source.site.store_folder.rename(source.site.folder / "away")
        assert push(source, segment) == 1
        source.wait_for("push      failing")
        away.rename(source.site.store_folder)
        until(lambda: push(source, segment) == 0, "it is taken")
    assert segment.name in source.check_log().files


def test_a_full_spool_acknowledges_nothing_and_holds_up_no_commit(source: LogSite, archiving: PostgresServer) -> None:
    with source.small_spool("2m") as spool:
        segments = finished_segments(archiving, 3)
        with source.serving():
            source.wait_for("push      listening")
            # Before the first is pushed: the others lie ready, and would be shipped ahead of a disk that fills.
            with contextlib.suppress(OSError), (spool / "filler").open("wb", buffering=0) as file:
                while file.write(b"?" * 4096):
                    pass
            assert [push(source, path) for path in segments] == [1, 1, 1]
            assert not {path.name for path in segments} & source.stored_names()
            source.wait_for("No space left on device")
            write_rows(archiving)  # the server keeps its log, and waits for nobody
            (spool / "filler").unlink()
            assert [push(source, path) for path in segments] == [0, 0, 0]
        log = source.gapless()
        assert {path.name for path in segments} <= log.files.keys()
        assert not list((spool / "sealed").iterdir())


def test_what_lies_ready_is_shipped_ahead_and_answered_at_once(source: LogSite, archiving: PostgresServer) -> None:
    segments = finished_segments(archiving, 7)  # ready, because the server's own command fails
    with source.serving():
        source.wait_for("push      listening")
        assert push(source, segments[0]) == 0
        until(lambda: {path.name for path in segments} <= source.stored_names(), "the others were looked ahead at")
        took_s = []
        for path in segments[1:]:
            started = time.monotonic()
            assert push(source, path) == 0
            took_s.append(time.monotonic() - started)
        assert sorted(took_s)[len(took_s) // 2] < 0.05
    source.gapless()


def test_the_client_by_itself_says_when_nobody_is_there(source: LogSite, tmp_path: Path) -> None:
    segment = tmp_path / "000000010000000000000001"
    segment.write_bytes(b"x")
    line = [sys.executable, "-I", "-S", str(CLIENT), "push", str(segment), "--socket", str(source.spool / "socket")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nobody answers at" in done.stderr
    assert "is drkit serve running?" in done.stderr


def test_an_archiver_that_lies_is_found_within_two_periods(source: LogSite, archiving: PostgresServer) -> None:
    with source.serving():
        source.wait_for("push      listening")
        archive_by(archiving, "/bin/true")
        finished_segments(archiving, 1)
        believed = "select last_archived_wal from pg_stat_archiver where last_archived_time > now() - interval '5 s'"
        until(lambda: archiving.execute(believed), "the server believes that it is archived")
        started = time.monotonic()
        until(lambda: "wal-lied" in {item["finding"] for item in source.events("wal.disagreement")}, "it is found")
        assert time.monotonic() - started < 4  # two periods of max_unshipped, and the time that a look takes
    assert (
        archiving.execute("select failed_count from pg_stat_archiver where last_failed_time > last_archived_time") == []
    )
    assert any("says yes to what it does not do" in item["message"] for item in source.events("wal.state"))


def test_only_the_owner_of_the_database_may_push(source: LogSite, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can ask as somebody else")
    path = tmp_path / "000000010000000000000001"
    path.write_bytes(b"x")
    with source.serving():
        source.wait_for("push      listening")
        open_the_way(source)
        (source.spool / "socket").chmod(0o666)
        line = [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-I", "-S", "-"]
        program = (
            f"import os, socket\nos.chdir({str(source.spool)!r})\n"
            "s = socket.socket(socket.AF_UNIX)\ns.connect('socket')\n"
            f"s.sendall(b'push {path}\\n')\nprint(s.recv(1000).decode())\n"
        )
        done = subprocess.run(line, input=program, capture_output=True, text=True, check=False, user="nobody", cwd="/")
        assert done.stdout.startswith("no this socket answers the user that owns the database"), done.stderr
