"""``drkit serve`` with a real server: the log by streaming, whatever happens to either side."""

from __future__ import annotations

import ctypes
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.wal import Segment, format_lsn, parse_lsn
from tests.fixtures.physical import standby_of
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.fixtures.s3_proxy import Fault, running_proxy
from tests.fixtures.shipping import LOGGED, LogSite, busy, flushed_lsn, make_rows, until, write_rows
from tests.fixtures.site import ReadySite


@pytest.fixture(scope="module")
def logged() -> Iterator[PostgresServer]:
    with running_postgres(segment_mib=1, **LOGGED) as server:
        make_rows(server)
        yield server


@pytest.fixture
def source(logged: PostgresServer, ready_site: ReadySite) -> Iterator[LogSite]:
    """Lend a site that streams the log of the shared server through a slot of its own."""
    site = LogSite(ready_site)
    slot = f"s{time.monotonic_ns()}"
    site.write_policy(logged.url().reveal(), f"slot: {slot}")
    yield site
    if site.process is not None:
        site.stop(signal.SIGKILL)
    drop_slot(logged, slot)


def drop_slot(server: PostgresServer, slot: str) -> None:
    where = f"from pg_replication_slots where slot_name = '{slot}'"
    server.execute(f"select pg_terminate_backend(active_pid) {where} and active_pid is not null")
    until(lambda: not server.execute(f"select 1 {where} and active"), "the slot is free")
    server.execute(f"select pg_drop_replication_slot(slot_name) {where}")


def test_a_role_that_may_not_receive_is_told_what_it_lacks(source: LogSite, logged: PostgresServer) -> None:
    role = f"reader{time.monotonic_ns()}"
    logged.execute(f"create role {role} login")
    try:
        source.write_policy(logged.url(user=role).reveal())
        with source.serving():
            source.wait_for(
                f'may not receive log: it lacks the attribute REPLICATION; hint: alter role "{role}" replication;'
            )
            assert "receiver  refused: " in source.said()
            logged.execute(f"alter role {role} replication")
            source.wait_for("receiving: ")
    finally:
        drop_slot(logged, "drkit_orders")
        logged.execute(f"drop role {role}")


def test_every_finished_segment_is_stored_signed_and_without_a_gap(source: LogSite, logged: PostgresServer) -> None:
    with source.serving():
        source.wait_for("receiving: ")
        begin_lsn = flushed_lsn(logged)
        with busy(logged):
            until(lambda: flushed_lsn(logged) - begin_lsn > 6 << 20, "six segments")
        end_lsn = flushed_lsn(logged)
        source.await_lsn(end_lsn)
    log = source.gapless()
    assert len(log.segments()) >= 6
    assert log.end_lsn() >= end_lsn
    commits = [record.last_commit_at for name in log.segments() if (record := log.files[name]).last_commit_at]
    assert commits == sorted(commits)
    assert list((source.spool / "sealed").iterdir()) == []
    assert list((source.spool / "manifests").iterdir()) == []


def test_an_unfinished_segment_is_shipped_under_names_that_are_never_used_again(
    source: LogSite, logged: PostgresServer
) -> None:
    with source.serving():
        source.wait_for("receiving: ")
        for _ in range(3):
            write_rows(logged, 20)
            lsn = flushed_lsn(logged)
            source.await_lsn(lsn)
    first = {name for name in source.check_log().files if ".partial" in name}
    assert len(first) >= 3
    with source.serving():
        source.wait_for("receiving: ")
        write_rows(logged, 20)
        lsn = flushed_lsn(logged)
        source.await_lsn(lsn)
    assert first < {name for name in source.check_log().files if ".partial" in name}


def test_an_idle_server_costs_no_objects(source: LogSite, logged: PostgresServer) -> None:
    with source.serving():
        source.wait_for("receiving: ")
        write_rows(logged, 20)
        lsn = flushed_lsn(logged)
        source.await_lsn(lsn)
        before = source.stored_names()
        time.sleep(2.5)  # two and a half times max_unshipped: nothing may happen, so there is nothing to wait for
        assert source.stored_names() == before or flushed_lsn(logged) > lsn


def test_killed_at_random_moments_it_goes_on_where_it_was(source: LogSite, logged: PostgresServer) -> None:
    dice = random.Random(3)
    begin_lsn = flushed_lsn(logged)
    with busy(logged):
        for _ in range(6):
            source.start()
            time.sleep(dice.uniform(0.8, 2.5))
            assert source.stop(signal.SIGKILL) == -signal.SIGKILL
    with source.serving():
        lsn = flushed_lsn(logged)
        source.await_lsn(lsn)
    log = source.gapless()
    first = Segment.parse(log.segments()[0], 1 << 20)
    assert first.start_lsn <= begin_lsn + (2 << 20)  # the slot keeps the log from the last checkpoint on
    assert "slot-lost" not in source.said()
    assert source.events("wal.gap") == []
    assert not list((source.spool / "sealed").iterdir())


def test_a_store_that_is_away_holds_nobody_up_and_is_caught_up_with(source: LogSite, logged: PostgresServer) -> None:
    folder, away = source.site.store_folder, source.site.folder / "away"
    with source.serving():
        source.wait_for("receiving: ")
        write_rows(logged)
        until(lambda: source.shipped().files, "something is listed")
        folder.rename(away)
        started = time.monotonic()
        write_rows(logged, 3000)
        assert time.monotonic() - started < 10
        source.wait_for("shipper   store-failed")
        received = source.spool / "received"
        until(lambda: len(list(received.iterdir())) >= 3, "it is still received")
        away.rename(folder)
        lsn = flushed_lsn(logged)
        source.await_lsn(lsn, 60)
    source.gapless()


def test_both_stores_get_the_same_and_the_spool_waits_for_the_slower(
    ready_site: ReadySite, logged: PostgresServer
) -> None:
    source = LogSite(ready_site)
    ready_site.add_store("second")
    source.write_policy(logged.url().reveal(), "slot: second_store", stores=("primary", "second"))
    try:
        with source.serving():
            source.wait_for("receiving: ")
            write_rows(logged, 1500)
            lsn = flushed_lsn(logged)
            source.await_lsn(lsn)
            assert list((source.spool / "manifests").glob("*.json"))
            (ready_site.folder / "second").mkdir()
            until(lambda: not list((source.spool / "manifests").glob("*.json")), "the second one caught up", 60)
        first, second = source.gapless(), source.gapless("second")
        assert set(second.files) == set(first.files)
    finally:
        drop_slot(logged, "second_store")


def test_a_promoted_standby_is_followed(ready_site: ReadySite) -> None:
    with running_postgres(segment_mib=1, **LOGGED) as primary, standby_of(primary) as standby:
        make_rows(primary)
        source = LogSite(ready_site)
        hosts, ports = f"{primary.folder},{standby.folder}", f"{primary.port},{standby.port}"
        source.write_policy(
            f"postgresql://postgres@/postgres?host={hosts}&port={ports}&target_session_attrs=read-write"
        )
        with source.serving():
            source.wait_for("receiving: ")
            write_rows(primary, 3000)
            acknowledged = flushed_lsn(primary)
            wait = f"select pg_last_wal_replay_lsn() >= '{format_lsn(acknowledged)}'"
            until(lambda: standby.execute(wait)[0][0], "the standby has it too")
            source.await_lsn(acknowledged)
            kill_server(primary)
            standby.execute("select pg_promote()")
            until(lambda: not standby.execute("select pg_is_in_recovery()")[0][0], "it is promoted")
            write_rows(standby, 3000)
            lsn = flushed_lsn(standby)
            source.await_lsn(lsn, 60)
        log = source.gapless(timeline=2)
        history = log.files["00000002.history"]
        assert history.ancestors is not None
        (ancestor,) = history.ancestors
        assert (ancestor.timeline, parse_lsn(ancestor.at_lsn) >= acknowledged) == (1, True)
        first = min(name for name in log.segments() if name.startswith("00000002"))
        assert Segment.parse(first, 1 << 20).start_lsn <= parse_lsn(ancestor.at_lsn)
        assert source.events("wal.gap") == []


def kill_server(server: PostgresServer) -> None:
    """Kill every process of a server at once."""
    leader = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(leader)], capture_output=True, text=True, check=False)
    for pid in [leader, *map(int, children.stdout.split())]:
        subprocess.run(["kill", "-9", str(pid)], check=False)


def test_log_that_the_server_threw_away_is_a_gap_that_is_said(ready_site: ReadySite) -> None:
    settings = {**LOGGED, "max_slot_wal_keep_size": "1MB", "max_wal_size": "4MB", "min_wal_size": "2MB"}
    with running_postgres(segment_mib=1, **settings) as server:
        make_rows(server)
        source = LogSite(ready_site)
        source.write_policy(server.url().reveal())
        with source.serving():
            source.wait_for("receiving: ")
            write_rows(server, 1500)
            lsn = flushed_lsn(server)
            source.await_lsn(lsn)
        for _ in range(6):
            write_rows(server, 1500)
            server.execute("checkpoint")
        (status,) = server.execute("select wal_status from pg_replication_slots")[0]
        assert status == "lost"
        with source.serving():
            until(lambda: source.events("wal.gap"), "the gap is said")
            write_rows(server, 1500)
            lsn = flushed_lsn(server)
            source.await_lsn(lsn)
        log = source.check_log()
        numbers = [Segment.parse(name, 1 << 20).number for name in log.segments()]
        missing = set(range(numbers[0], numbers[-1])) - set(numbers)
        (gap,) = source.events("wal.gap")
        assert min(missing) == parse_lsn(gap["from_lsn"]) >> 20
        assert (max(missing) + 1) << 20 == parse_lsn(gap["to_lsn"])
        assert not any(source.plain(log.files[name])[:24] == b"\0" * 24 for name in log.segments())


def test_a_server_of_another_cluster_is_not_followed(source: LogSite, logged: PostgresServer) -> None:
    with source.serving():
        source.wait_for("receiving: ")
        write_rows(logged, 20)
        until(lambda: source.shipped().files, "something is listed")
    before = source.shipped().files
    with running_postgres(segment_mib=1, stranger=True, **LOGGED) as stranger:
        source.write_policy(stranger.url().reveal())
        with source.serving():
            source.wait_for("receiver  wrong-server")
        assert stranger.execute("select count(*) from pg_replication_slots")[0][0] == 0
    assert source.shipped().files == before


def test_the_process_stops_when_it_is_told_to(source: LogSite, logged: PostgresServer) -> None:
    source.start()
    source.wait_for("receiving: ")
    write_rows(logged, 100)
    lsn = flushed_lsn(logged)
    source.await_lsn(lsn)
    started = time.monotonic()
    assert source.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 10
    assert source.check_log().end_lsn() >= lsn
    where = (
        "select active from pg_replication_slots where slot_name = (select max(slot_name) from pg_replication_slots)"
    )
    until(lambda: logged.execute(where) == [(False,)], "nobody receives any more")


def test_synchronous_receiving_lets_commits_wait_for_it(source: LogSite, logged: PostgresServer) -> None:
    slot = f"sync{time.monotonic_ns()}"
    source.write_policy(logged.url().reveal(), "synchronous: true", f"slot: {slot}")
    try:
        with source.serving():
            source.wait_for("receiving: ")
            logged.execute(f"alter system set synchronous_standby_names = '{slot}'")
            logged.execute("select pg_reload_conf()")
            asked = f"select sync_state from pg_stat_replication where application_name = '{slot}'"
            until(lambda: logged.execute(asked) == [("sync",)], "the server waits for it")
            write_rows(logged, 50)
            received = max((source.spool / "received").glob("*.partial"))
            assert logged.execute(
                f"select flush_lsn >= '{format_lsn(flushed_lsn(logged))}' from pg_stat_replication"
                f" where application_name = '{slot}'"
            ) == [(True,)]
            assert received.exists()
            logged.execute("alter system reset synchronous_standby_names")
            logged.execute("select pg_reload_conf()")
    finally:
        logged.execute("alter system reset synchronous_standby_names")
        logged.execute("select pg_reload_conf()")
        drop_slot(logged, slot)


def test_commits_that_wait_for_a_receiver_that_answers_now_and_then_are_said(
    source: LogSite, logged: PostgresServer
) -> None:
    try:
        with source.serving():
            source.wait_for("receiving: ")
            logged.execute("alter system set synchronous_standby_names = '*'")
            logged.execute("select pg_reload_conf()")
            source.wait_for("position  wal-stalls: commits on the server wait for seconds")
            logged.execute("alter system reset synchronous_standby_names")
            logged.execute("select pg_reload_conf()")
            source.wait_for("position  a", 60)
        assert [item["finding"] for item in source.events("wal.disagreement")] == ["wal-stalls"]
    finally:
        logged.execute("alter system reset synchronous_standby_names")
        logged.execute("select pg_reload_conf()")


def test_a_standby_that_lacked_the_end_is_followed_from_where_it_parted(ready_site: ReadySite) -> None:
    with running_postgres(segment_mib=1, **LOGGED) as primary, standby_of(primary) as standby:
        make_rows(primary)
        source = LogSite(ready_site)
        hosts, ports = f"{primary.folder},{standby.folder}", f"{primary.port},{standby.port}"
        source.write_policy(
            f"postgresql://postgres@/postgres?host={hosts}&port={ports}&target_session_attrs=read-write"
        )
        with source.serving():
            source.wait_for("receiving: ")
            write_rows(primary, 1000)
            standby.execute("alter system set primary_conninfo = ''")
            standby.execute("select pg_reload_conf()")
            until(
                lambda: (
                    not primary.execute("select 1 from pg_stat_replication where application_name <> 'drkit_orders'")
                ),
                "the standby is cut off",
            )
            write_rows(primary, 4000)
            lost = flushed_lsn(primary)
            source.await_lsn(lost)
            kill_server(primary)
            standby.execute("select pg_promote()")
            until(lambda: not standby.execute("select pg_is_in_recovery()")[0][0], "it is promoted")
            source.wait_for("receiver  diverged")
            write_rows(standby, 1000)
            lsn = flushed_lsn(standby)
            assert lsn < lost
            until(lambda: "00000002.history" in source.shipped().files, "the history is listed")
            until(lambda: shipped_to(source, 2) >= lsn, "the new timeline is listed")
        log = source.gapless(timeline=2)
        assert source.gapless(timeline=1).end_lsn() >= lost
        (ancestor,) = log.files["00000002.history"].ancestors or ()
        first = min(name for name in log.segments() if name.startswith("00000002"))
        assert Segment.parse(first, 1 << 20).start_lsn <= parse_lsn(ancestor.at_lsn) < lost
        assert source.events("wal.gap") == []


def shipped_to(source: LogSite, timeline: int) -> int:
    """Return up to where a timeline is listed."""
    files = source.shipped().files
    prefix = f"{timeline:08X}"
    ends = [
        Segment.parse(name, 1 << 20).end_lsn
        for name, item in files.items()
        if item.kind == "segment" and name.startswith(prefix)
    ]
    ends += [parse_lsn(item.end_lsn) for name, item in files.items() if item.end_lsn and name.startswith(prefix)]
    return max(ends, default=0)


def test_the_log_is_received_while_no_store_can_be_read(source: LogSite, logged: PostgresServer) -> None:
    with source.serving():
        source.wait_for("receiving: ")
        write_rows(logged)
        source.await_lsn(flushed_lsn(logged))
    away = source.site.store_folder.rename(source.site.folder / "away")
    with source.serving():
        source.wait_for("shipper   store-failed")
        source.wait_for("receiving: ")
        write_rows(logged, 1500)
        lsn = flushed_lsn(logged)
        until(lambda: len(list((source.spool / "received").iterdir())) >= 2, "segments are received")
        away.rename(source.site.store_folder)
        source.await_lsn(lsn)
    source.gapless()


def test_a_frozen_store_holds_up_neither_the_server_nor_the_end_of_the_process(
    source: LogSite, logged: PostgresServer, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_ID", ACCESS_KEY)
    monkeypatch.setenv("CLOUD_SECRET", SECRET_KEY)
    slot = f"cloud{time.monotonic_ns()}"
    with running_proxy(moto_server.endpoint) as proxy:
        keys = ['access_key: "env:CLOUD_ID"', 'secret_key: "env:CLOUD_SECRET"']
        where = ['region: "us-east-1"', f'endpoint: "{proxy.endpoint}"', "path_style: true"]
        source.site.add_store("cloud", f"s3://{moto_server.bucket()}/site", *where, *keys)
        source.write_policy(logged.url().reveal(), f"slot: {slot}", stores=("cloud",))
        try:
            source.start()
            source.wait_for("receiving: ")
            write_rows(logged)
            source.await_lsn(flushed_lsn(logged), store="cloud")
            proxy.plan.append(Fault("put", times=1_000_000, stall=True))
            started = time.monotonic()
            write_rows(logged, 3000)
            lsn = flushed_lsn(logged)
            assert time.monotonic() - started < 15
            until(lambda: len(list((source.spool / "received").iterdir())) >= 3, "it is still received")
            started = time.monotonic()
            assert source.stop(signal.SIGTERM, timeout_s=60) == 0
            assert time.monotonic() - started < 40
            proxy.plan.clear()
            proxy.released.set()
            with source.serving():
                source.await_lsn(lsn, 60, store="cloud")
        finally:
            if source.process is not None:
                source.stop(signal.SIGKILL)
            drop_slot(logged, slot)


def test_log_that_is_larger_than_the_spool_goes_through_it(source: LogSite, logged: PostgresServer) -> None:
    with source.small_spool("12m"):
        with source.serving():
            source.wait_for("receiving: ", 120)
        for _ in range(30):
            write_rows(logged, 800)
        with source.serving():
            source.await_lsn(flushed_lsn(logged), 60)
        source.gapless()


def test_a_full_spool_pauses_receiving_and_nobody_else(source: LogSite, logged: PostgresServer) -> None:
    away = source.site.folder / "away"
    with source.small_spool("12m") as spool:
        with source.serving():
            source.wait_for("receiving: ", 120)  # what the server kept for it may fill the spool at once
            write_rows(logged, 100)
            source.await_lsn(flushed_lsn(logged), 120)
            source.site.store_folder.rename(away)
            for _ in range(16):
                write_rows(logged, 800)
            source.wait_for("receiver  disk-full", 60)
            write_rows(logged, 100)  # the server waits for nobody
            time.sleep(2.5)  # it looks again meanwhile, and that is no reason to call the server gone
            assert "server-gone" not in source.said()
            held = "select wal_status from pg_replication_slots where active or wal_status is not null"
            assert all(status != "lost" for (status,) in logged.execute(held))
            away.rename(source.site.store_folder)
            source.await_lsn(flushed_lsn(logged), 120)
        source.gapless()
        assert source.events("wal.gap") == []
        assert not list((spool / "sealed").iterdir())


def test_a_stop_that_the_system_tells_another_thread_is_noticed(source: LogSite) -> None:
    process = source.start()
    source.wait_for("receiving: ")
    others = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir() if int(task.name) != process.pid]
    assert ctypes.CDLL(None).tgkill(process.pid, others[0], signal.SIGTERM) == 0
    assert process.wait(timeout=30) == 0
    source.process = None
