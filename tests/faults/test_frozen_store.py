"""A store that takes connections and answers nobody, in the middle of two base backups and of the log.

For five seconds, or as long as DRKIT_FREEZE_SECONDS says: a minute in CI, which costs no CPU. A real S3 server is
stopped and goes on afterwards. Meanwhile commits must end, and their log must be received; afterwards the bases must
complete without a second try, the log must be whole, and nothing may need to be unlocked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.wal import format_lsn
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, S3Server, running_versitygw
from tests.fixtures.shipping import LOGGED, LogSite, flushed_lsn, make_rows, until, write_rows
from tests.fixtures.site import ReadySite

FROZEN_S = float(os.environ.get("DRKIT_FREEZE_SECONDS", "5"))
_LONGEST_S = 180 + FROZEN_S
_NOISE = "create table noise as select n, sha512(n::text::bytea) from generate_series(1, 200000) n"
_UNDERWAY = "select coalesce(min(backup_streamed), 0) > 8000000 from pg_stat_progress_basebackup"
BASES = {"streamed": "via: stream, max_rate: 10MB", "copied": "via: local, parallel: 2, max_rate: 10MB"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres(segment_mib=1, **LOGGED) as server:
        make_rows(server)
        server.execute(_NOISE)
        yield server


@pytest.fixture
def source(
    server: PostgresServer, ready_site: ReadySite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LogSite, S3Server]]:
    """Lend a site with one store, and a policy each for the log and for both ways of a base, and the store's server."""
    monkeypatch.setenv("CLOUD_ID", ACCESS_KEY)
    monkeypatch.setenv("CLOUD_SECRET", SECRET_KEY)
    (tmp_path / "cloud").mkdir()
    with running_versitygw(tmp_path / "cloud") as store:
        bucket = store.bucket()
        where = ['region: "us-east-1"', f'endpoint: "{store.endpoint}"', "path_style: true"]
        keys = ['access_key: "env:CLOUD_ID"', 'secret_key: "env:CLOUD_SECRET"']
        ready_site.add_store("cloud", f"s3://{bucket}/site", *where, *keys)
        (ready_site.folder / "cloud").symlink_to(store.folder / bucket / "site")
        site = LogSite(ready_site)
        site.write_policy(server.url().reveal(), stores=("cloud",))
        for name, rule in BASES.items():
            path = ready_site.write_policy(name, "file:keys/database-url", stores=("cloud",))
            path.write_text(path.read_text().replace("{method: dump}", f"{{method: base, {rule}}}"))
        yield site, store


@contextlib.contextmanager
def backing_up(site: ReadySite, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a backup as a process of its own; what it says goes into a file of the policy's name."""
    command = [sys.executable, "-c", "from drkit.cli import main; main()", "backup", name]
    with (site.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=site.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process while the context lasts; one that is waited for too long goes on all the same, and that fails."""
    released = threading.Event()

    def rescue() -> None:
        if not released.wait(FROZEN_S + 60):
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=rescue)
    os.kill(pid, signal.SIGSTOP)
    thread.start()
    try:
        yield
        assert is_stopped(pid), "something waited for the store until it went on"
    finally:
        released.set()
        os.kill(pid, signal.SIGCONT)
        thread.join()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def received(server: PostgresServer, lsn: int) -> bool:
    """Tell whether the receiver of the log has it on its disk up to a position."""
    where = (
        f"select 1 from pg_stat_replication where application_name like 'drkit%' and flush_lsn >= '{format_lsn(lsn)}'"
    )
    return bool(server.execute(where))


def test_nobody_is_blocked_and_nothing_is_lost(source: tuple[LogSite, S3Server], server: PostgresServer) -> None:
    site, store = source
    with site.serving(), contextlib.ExitStack() as stack:
        site.wait_for("receiving: ", _LONGEST_S)
        write_rows(server)
        site.await_lsn(flushed_lsn(server), _LONGEST_S, store="cloud")
        bases = {name: stack.enter_context(backing_up(site.site, name)) for name in BASES}
        until(lambda: server.execute(_UNDERWAY) == [(True,)], "the base streams", _LONGEST_S)
        until(lambda: (site.site.folder / "copied.log").read_text().count("\n") > 1, "the other copies", _LONGEST_S)
        assert [process.poll() for process in bases.values()] == [None, None], "both are under way"
        with frozen(store.pid):
            until_s = time.monotonic() + FROZEN_S
            rounds = 0
            while rounds < 5 or time.monotonic() < until_s:
                write_rows(server, 20)
                rounds += 1
                time.sleep(FROZEN_S / 50)
            write_rows(server, 1200)  # more than a segment, which is finished while nothing can be stored
            lsn = flushed_lsn(server)
            until(lambda: received(server, lsn), "what was committed meanwhile is received", _LONGEST_S / 2)
            assert [process.poll() for process in bases.values()] == [None, None], "the bases go on waiting"
        for name, process in bases.items():
            assert process.wait(timeout=_LONGEST_S) == 0, (site.site.folder / f"{name}.log").read_text()
        site.await_lsn(lsn, _LONGEST_S, store="cloud")
        until(lambda: not any((site.spool / "sealed").iterdir()), "the spool let go of it", _LONGEST_S)
    assert site.gapless("cloud").end_lsn() >= lsn
    assert site.events("wal.gap") == []
    verified = site.site.drkit("verify", "--all")
    assert verified.returncode == 0, verified.stderr
    assert server.execute("select slot_name from pg_replication_slots") == [("drkit_orders",)]
    again = site.site.drkit("backup", "streamed")
    assert again.returncode == 0, again.stderr
