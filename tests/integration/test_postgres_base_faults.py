"""What goes wrong with a base backup: refused by name before it starts, and never a manifest of half of it."""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drkit.credentials import Secret
from drkit.engines import BackupOptions, BackupSession
from drkit.engines.registry import find_engine
from drkit.errors import SourceError
from tests.fixtures.physical import PHYSICAL, save_part, standby_of, start_server, take_base
from tests.fixtures.postgres import PASSWORD, PostgresServer, running_postgres
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.fixtures.s3_proxy import Fault, running_proxy
from tests.fixtures.site import ReadySite
from tests.fixtures.waiting import wait_until

ROLE = "drkit backup"
END_SESSIONS = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'drkit%'"
WAYS = pytest.mark.parametrize("via", ["stream", "local"])


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Lend a server whose data is larger than all buffers on the way."""
    with running_postgres(**PHYSICAL) as server:
        server.create_database("orders", "create table big as select md5(g::text) from generate_series(1, 300000) g")
        yield server


@pytest.fixture
def limited(server: PostgresServer) -> Iterator[str]:
    """Lend a role that may only log in."""
    server.execute(f"create role \"{ROLE}\" login password '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
    yield ROLE
    server.execute(f'drop owned by "{ROLE}"; drop role "{ROLE}"')


@contextmanager
def opened(url: Secret, folder: Path, **options: object) -> Iterator[BackupSession]:
    """Open a base backup."""
    settings = BackupOptions(work_folder=folder, **options)  # type: ignore[arg-type]
    with find_engine("postgres", "base").open_backup(url, settings) as session:
        yield session


# Preflight ------------------------------------------------------------------------------------------------------------


@WAYS
def test_a_role_without_replication_is_told_what_to_type(
    server: PostgresServer, limited: str, tmp_path: Path, via: str
) -> None:
    with pytest.raises(SourceError, match="lacks the attribute REPLICATION") as caught:
        take_base(server.url(user=limited), tmp_path, via=via)
    assert caught.value.hints == (f'alter role "{limited}" replication;',)
    server.execute(caught.value.hints[0])
    if via == "stream":
        assert take_base(server.url(user=limited), tmp_path).position


def test_local_tells_a_limited_role_its_grants_one_after_the_other(
    server: PostgresServer, limited: str, tmp_path: Path
) -> None:
    server.execute(f'alter role "{limited}" replication')
    for message in ("may not see where the data folder is", "may not start and stop a backup"):
        with pytest.raises(SourceError, match=message) as caught:
            take_base(server.url(user=limited), tmp_path, via="local")
        server.execute("".join(hint for hint in caught.value.hints if hint.startswith("grant")))
    assert take_base(server.url(user=limited), tmp_path, via="local").position


def test_a_pg_hba_without_replication_is_explained_with_the_line(
    server: PostgresServer, limited: str, tmp_path: Path
) -> None:
    server.execute(f'alter role "{limited}" replication')
    hba = server.folder / "data" / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text("\n".join(line for line in before.splitlines() if "replication" not in line) + "\n")
    try:
        server.execute("select pg_reload_conf()")
        with pytest.raises(SourceError, match=f"does not let role {limited} make a replication connection") as caught:
            take_base(server.tcp_url(user=limited), tmp_path)
        line = caught.value.hints[0].partition("pg_hba.conf of the server: ")[2]
        assert line == f'host  replication  "{limited}"  127.0.0.1/32  scram-sha-256'
        hba.write_text(f"{line}\n{hba.read_text()}")
        server.execute("select pg_reload_conf()")
        assert take_base(server.tcp_url(user=limited), tmp_path).position
    finally:
        hba.write_text(before)
        server.execute("select pg_reload_conf()")


def test_settings_that_forbid_a_base_are_refused_by_name(tmp_path: Path) -> None:
    forbidding = {"max_replication_slots": "0", "max_wal_senders": "0", "wal_level": "minimal"}
    with running_postgres(**PHYSICAL) as server:
        for name, value in forbidding.items():
            server.execute(f"alter system set {name} = '{value}'")
            server.stop("fast")
            start_server(server)
            with pytest.raises(SourceError, match=f"{name} = {value}") as caught:
                take_base(server.url(), tmp_path)
            assert "restart the server" in caught.value.hints[0]


def test_a_server_whose_senders_or_slots_are_all_taken(tmp_path: Path) -> None:
    with running_postgres(**PHYSICAL | {"max_wal_senders": "1", "max_replication_slots": "2"}) as server:
        with opened(server.url(), tmp_path), pytest.raises(SourceError, match="has no free WAL sender"):
            take_base(server.url(), tmp_path)
        server.execute("select pg_create_physical_replication_slot(name) from unnest(array['one', 'two']) as name")
        for via in ("stream", "local"):
            with pytest.raises(SourceError, match="has no free replication slot"):
                take_base(server.url(), tmp_path, via=via)


def test_a_data_folder_of_another_host_is_not_taken_for_the_servers(server: PostgresServer, tmp_path: Path) -> None:
    """A standby has the identifier of its primary, so the folder of one must not pass for that of the other."""
    pid_file = server.folder / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    other = [*lines[:3], "1", *lines[4:]]
    pid_file.write_text("\n".join(other) + "\n")
    try:
        with pytest.raises(SourceError, match="is not on this host"):
            take_base(server.url(), tmp_path, via="local")
    finally:
        pid_file.write_text("\n".join(lines) + "\n")


# Failures while it runs -----------------------------------------------------------------------------------------------


@WAYS
def test_a_session_that_is_ended_mid_way_is_a_failure(server: PostgresServer, tmp_path: Path, via: str) -> None:
    with (  # noqa: PT012
        pytest.raises(SourceError, match=r"closed the connection|ended the connection|was lost|administrator command"),
        opened(server.url(), tmp_path, via=via) as session,
    ):
        first, *rest = session.preflight.parts
        with session.open_part(first) as chunks:
            next(chunks)
            server.execute(END_SESSIONS)
            for _ in chunks:
                pass
        for part in rest:
            save_part(session, part, tmp_path)


@WAYS
def test_a_killed_server_is_a_failure(tmp_path: Path, via: str) -> None:
    with (  # noqa: PT012
        running_postgres(**PHYSICAL) as server,
        pytest.raises(SourceError),
        opened(server.url(), tmp_path, via=via) as session,
    ):
        first, *rest = session.preflight.parts
        with session.open_part(first) as chunks:
            next(chunks)
            kill_hard(server)
            for _ in chunks:
                pass
        for part in rest:
            save_part(session, part, tmp_path)


def kill_hard(server: PostgresServer) -> None:
    """Kill the postmaster and everything of it by SIGKILL."""
    pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not any(running(int(child)) for child in children))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_server_that_falls_silent_is_given_up(server: PostgresServer, tmp_path: Path) -> None:
    pids: list[int] = []
    try:
        with (  # noqa: PT012
            pytest.raises(SourceError, match="sent nothing for 1 s"),
            opened(server.url(), tmp_path, idle_timeout_s=1) as session,
        ):
            part = session.preflight.parts[0]
            with session.open_part(part) as chunks:
                next(chunks)
                (pids,) = zip(*server.execute("select pid from pg_stat_replication"), strict=True)
                os.kill(pids[0], signal.SIGSTOP)
                for _ in chunks:
                    pass
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_promoted_standby_is_a_failure(server: PostgresServer, tmp_path: Path) -> None:
    with (  # noqa: PT012
        standby_of(server) as standby,
        pytest.raises(SourceError, match="promoted"),
        opened(standby.url(), tmp_path) as session,
    ):
        first, *rest = session.preflight.parts
        with session.open_part(first) as chunks:
            next(chunks)
            standby.execute("select pg_promote()")
            for _ in chunks:
                pass
        for part in rest:
            save_part(session, part, tmp_path)


@WAYS
def test_leaving_early_ends_the_backup_on_the_server(server: PostgresServer, tmp_path: Path, via: str) -> None:
    started_s = time.monotonic()
    with opened(server.url(), tmp_path, via=via) as session, session.open_part(session.preflight.parts[0]) as chunks:
        next(chunks)
    assert time.monotonic() - started_s < 5
    wait_until(lambda: server.execute("select count(*) from pg_replication_slots") == [(0,)])


# Through the command line: no manifest --------------------------------------------------------------------------------


def base_policy(site: ReadySite, server: PostgresServer, rule: str, store: str = "primary") -> None:
    path = site.write_policy("orders", server.url().reveal(), stores=(store,))
    path.write_text(path.read_text().replace("{method: dump}", f"{{method: base, {rule}}}"))


def manifests(site: ReadySite) -> list[Path]:
    return list(site.store_folder.rglob("manifest.json"))


@pytest.mark.parametrize("rule", ["via: stream", "via: local, parallel: 2", "via: local"])
def test_the_command_commits_an_artifact_with_its_position(
    server: PostgresServer, ready_site: ReadySite, rule: str
) -> None:
    base_policy(ready_site, server, rule)
    done = ready_site.call("backup", "orders")
    assert done.returncode == 0, done.stderr
    assert re.search(r"position    consistent at [0-9A-F]+/[0-9A-F]+ on timeline 1", done.stderr)
    assert '"stop_lsn"' in manifests(ready_site)[0].read_text()
    verified = ready_site.call("verify", "--all")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("rule", ["via: stream, max_rate: 2MB", "via: local, parallel: 3, max_rate: 20MB"])
def test_a_backup_whose_session_dies_commits_nothing(server: PostgresServer, ready_site: ReadySite, rule: str) -> None:
    base_policy(ready_site, server, rule)
    underway = "select 1 from pg_stat_progress_basebackup where phase = 'streaming database files'"
    if "local" in rule:
        underway = "select 1 from pg_replication_slots"
    ended: list[bool] = []

    def end_session() -> None:
        wait_until(lambda: server.execute(underway))
        ended.extend(row[0] for row in server.execute(END_SESSIONS))

    killer = threading.Thread(target=end_session)
    killer.start()
    done = ready_site.call("backup", "orders")
    killer.join()
    assert True in ended
    assert done.returncode == 5, done.stderr
    assert manifests(ready_site) == []


@pytest.mark.parametrize("rule", ["via: stream", "via: local, parallel: 2"])
def test_a_store_that_freezes_for_a_while_holds_nobody_up(
    server: PostgresServer, ready_site: ReadySite, moto_server: S3Server, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_ID", ACCESS_KEY)
    monkeypatch.setenv("CLOUD_SECRET", SECRET_KEY)
    keys = ['access_key: "env:CLOUD_ID"', 'secret_key: "env:CLOUD_SECRET"']
    with running_proxy(moto_server.endpoint) as proxy:
        where = ['region: "us-east-1"', f'endpoint: "{proxy.endpoint}"', "path_style: true"]
        ready_site.add_store("cloud", f"s3://{moto_server.bucket()}/site", *where, *keys)
        base_policy(ready_site, server, rule, store="cloud")
        proxy.plan += [Fault(operation, first=2, times=1000, stall=True) for operation in ("put", "part", "complete")]
        written: list[bool] = []

        def thaw() -> None:
            wait_until(lambda: any(proxy.count(fault.operation) >= fault.first for fault in proxy.plan))
            written.extend(server.execute("create table frozen (); drop table frozen; select true")[0])
            proxy.plan.clear()
            proxy.released.set()

        thawing = threading.Thread(target=thaw)
        thawing.start()
        done = ready_site.call("backup", "orders")
        thawing.join()
        assert done.returncode == 0, done.stderr
        assert written == [True]
        verified = ready_site.call("verify", "--all")
        assert verified.returncode == 0, verified.stderr
        wait_until(lambda: server.execute("select count(*) from pg_replication_slots") == [(0,)])


def test_a_full_disk_commits_nothing(server: PostgresServer, ready_site: ReadySite) -> None:
    base_policy(ready_site, server, "via: local, parallel: 2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        done = ready_site.call("backup", "orders")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert done.returncode == 6, done.stderr
    assert "is full" in done.stderr
    assert manifests(ready_site) == []
    wait_until(lambda: server.execute("select count(*) from pg_replication_slots") == [(0,)])
    assert ready_site.call("backup", "orders").returncode == 0


def test_the_rate_is_kept(server: PostgresServer, tmp_path: Path) -> None:
    for via in ("stream", "local"):
        started_s = time.monotonic()
        taken = take_base(server.url(), tmp_path / via, via=via, rate_bytes_s=40_000_000)
        size_bytes = sum(path.stat().st_size for path in taken.folder.iterdir())
        assert time.monotonic() - started_s > 0.8 * size_bytes / 40_000_000
