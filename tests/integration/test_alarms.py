"""Alarms of a real drkit serve: told within their bound, by the channel that was named, once, and resolved once."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from drkit.app import open_stores
from drkit.operations.lookout import Lookout
from tests.fixtures import disks
from tests.fixtures.ports import free_port
from tests.fixtures.postgres import running_postgres
from tests.fixtures.receiver import Receiver, receiving
from tests.fixtures.shipping import LOGGED, LogSite, make_rows, write_rows
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import telling, write_notify

WITHIN_S = 40.0


class Running:
    """A command that runs on and prints a line of JSON now and then."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def names(self) -> list[str]:
        return [str(event.get("name")) for event in self.events]

    def states(self) -> list[tuple[str, str]]:
        """Return duty and state of log shipping, in order."""
        return [(event["duty"], event["state"]) for event in self.events if event.get("name") == "wal.state"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@contextmanager
def serving(site: ReadySite, *arguments: str) -> Iterator[Running]:
    """Run ``drkit serve --json``, or another command that stays; end it as systemd does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DRKIT_SITE", "PG"))}
    command = [sys.executable, "-c", "from drkit.cli import main; main()", *(arguments or ("serve", "--json"))]
    with subprocess.Popen(
        command, cwd=site.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        serve = Running(process)
        try:
            yield serve
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"not within {WITHIN_S:.0f} s: {what}")


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


@pytest.fixture
def receiver(ready_site: ReadySite) -> Iterator[Receiver]:
    with receiving() as lent:
        write_notify(ready_site, lent)
        yield lent


@pytest.fixture
def port(ready_site: ReadySite, receiver: Receiver) -> int:
    chosen = free_port()
    text = ready_site.site_file.read_text()
    ready_site.site_file.write_text(f'{text}metrics: {{listen: "127.0.0.1:{chosen}", textfile: drkit.prom}}\n')
    url = ready_site.write_secret("url", f"postgresql://drkit:s3cret@127.0.0.1:{free_port()}/orders")
    path = ready_site.write_policy("orders", url)
    path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 0 1 1 *"}'))
    return chosen


def test_a_real_serve_tells_shows_and_forgets_nothing(ready_site: ReadySite, receiver: Receiver, port: int) -> None:
    failed = ("opened", "run/backup/orders/dump")
    gone = "condition/key-missing/signing"
    with serving(ready_site) as serve:
        until(lambda: "serve.started" in serve.names() or serve.process.poll() is not None, "it starts")
        (started,) = [event for event in serve.events if event["name"] == "serve.started"]
        assert started["schema"] == "drkit/event/1"
        assert {"drkit", "python", "psycopg", "pg_dump"} <= set(started["versions"])

        done = ready_site.call("backup", "orders")
        assert done.returncode == 5, done.stderr
        until(lambda: failed in receiver.states(), "the failure is told")
        until(lambda: "run.failed" in serve.names(), "it is in the log of events")

        away = ready_site.signing_key.rename(ready_site.folder / "away")
        until(lambda: ("opened", gone) in receiver.states(), "the key is missed")

        assert json.loads(get(f"http://127.0.0.1:{port}/healthz"))["ok"] is True
        text = get(f"http://127.0.0.1:{port}/metrics").decode()
        assert 'drkit_target_info{target="orders",engine="postgres",tier="",site="site"} 1.0' in text
        assert 'drkit_last_attempt_status{target="orders",kind="backup"} 0.0' in text
        until(lambda: (ready_site.folder / "drkit.prom").exists(), "the file of metrics is there")
        serve.kill()

    with serving(ready_site) as serve:
        until(lambda: "serve.started" in serve.names(), "it starts again")
        away.rename(ready_site.signing_key)
        until(lambda: ("resolved", gone) in receiver.states(), "the key is back")
        status = until(lambda: _metrics(port), "metrics are right after a restart")
        assert 'drkit_last_attempt_status{target="orders",kind="backup"} 0.0' in status

    assert len(receiver.states()) == len(set(receiver.states())), "everything once"
    assert {state for state in receiver.states() if state[1] in (failed[1], gone)} == {
        failed,
        ("opened", gone),
        ("resolved", gone),
    }
    everything = b"".join(request.body for request in receiver.requests)
    assert b"s3cret" not in everything
    assert b"hook" not in everything
    assert _leases(ready_site.store_folder), "the store knows that it lived"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Lend the mount point of a disk of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with disks.small_disk(folder, "32m") as disk:
        yield disk


def test_a_disk_that_fills_and_a_store_that_turns_read_only_are_told_once(
    ready_site: ReadySite, small_disk: Path
) -> None:
    text = ready_site.site_file.read_text()
    ready_site.site_file.write_text(text.replace('url: "file:backups"', f'url: "file://{small_disk}"'))
    with open_stores(ready_site.load()) as stores, telling(ready_site, stores=stores) as told:
        lookout = Lookout(told.workplace, lambda _: None)

        def look() -> list[tuple[str, str]]:
            before = len(told.receiver.requests)
            for _ in range(2):
                told.clock.forward(minutes=5)
                lookout.round()
                told.notifier.round()
            return [state for state in told.receiver.states()[before:] if "primary" in state[1]]

        assert look() == []
        filler = small_disk / "filler"
        filler.write_bytes(bytes(31 << 20))
        assert look() == [("opened", "condition/disk-full/store primary")]
        filler.unlink()
        assert look() == [("resolved", "condition/disk-full/store primary")]

        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert look() == [("opened", "condition/store-refused/primary")]
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert look() == [("resolved", "condition/store-refused/primary")]


def test_an_archive_that_stops_is_told_once_and_its_return_once(ready_site: ReadySite, receiver: Receiver) -> None:
    text = ready_site.site_file.read_text()
    ready_site.site_file.write_text(f"{text}metrics: {{listen: null}}\n")
    log = LogSite(ready_site)
    stuck = ("opened", "log/orders/shipper/store")
    with running_postgres(segment_mib=1, **LOGGED) as server:
        make_rows(server)
        log.write_policy(server.url().reveal())
        with serving(ready_site) as serve:
            until(lambda: ("shipper", "shipping") in serve.states(), "log is shipped")
            away = ready_site.store_folder.rename(ready_site.folder / "away")
            write_rows(server)
            until(lambda: ("shipper", "store-failed") in serve.states(), "it is not shipped any more")
            # What may pass is told after a minute. It is over now.
            until(lambda: _lift_hold(ready_site, stuck[1]), "it is to be told")
            until(lambda: stuck in receiver.states(), "it is told")
            failures = serve.states().count(("shipper", "store-failed"))
            away.rename(ready_site.store_folder)
            until(lambda: ("resolved", stuck[1]) in receiver.states(), "it is told that it is over")
    assert failures == 1, "it does not come and go"
    assert receiver.states().count(stuck) == 1


def _lift_hold(site: ReadySite, identity: str) -> int:
    """Let the time be over in which a problem may pass; return how many messages waited for that."""
    with closing(sqlite3.connect(site.folder / "var" / "catalog.db", timeout=10)) as connection, connection:
        lifted = connection.execute(
            "update outbox set due_at = made_at, facts = json_set(facts, '$.held_until', made_at)"
            " where due_at > made_at and identity = ?",
            (identity,),
        )
        return lifted.rowcount


def _metrics(port: int) -> str:
    try:
        return get(f"http://127.0.0.1:{port}/metrics").decode()
    except OSError:
        return ""


def _leases(store: Path) -> list[Path]:
    return list((store / "leases").glob("serve-*.json"))


def test_a_serve_that_dies_is_told_by_watch_once_and_its_return_once(
    ready_site: ReadySite, receiver: Receiver, port: int
) -> None:
    with serving(ready_site) as serve:
        until(lambda: _leases(ready_site.store_folder), "the store knows that it lives")
        serve.kill()
    (lease,) = _leases(ready_site.store_folder)
    silent = f"condition/serve-silent/leases/{lease.name}@primary"
    document = json.loads(lease.read_text())
    # As if it were sixteen minutes later: the watcher has the host's clock.
    lease.write_text(json.dumps({**document, "renewed_at": "2026-01-01T00:00:00.000000+00:00"}))
    with serving(ready_site, "watch", "--interval", "1s", "--max-age", "3650d", "--json") as watch:
        until(lambda: ("opened", silent) in receiver.states(), "its death is told")
        until(lambda: len(watch.events) >= 3, "it looks again and again")
        lease.write_text(json.dumps({**document, "renewed_at": datetime.now(UTC).isoformat()}))
        until(lambda: ("resolved", silent) in receiver.states(), "its return is told")
    assert [state for state, identity in receiver.states() if identity == silent] == ["opened", "resolved"]


def test_a_notifier_that_never_answers_delays_no_backup_and_no_end(
    ready_site: ReadySite, receiver: Receiver, port: int
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hook = ready_site.folder / "keys" / "hook-url"
        hook.write_text(f"http://127.0.0.1:{silent.getsockname()[1]}/\n")
        with serving(ready_site) as serve:
            until(lambda: "serve.started" in serve.names(), "it starts")
            assert ready_site.call("backup", "orders").returncode == 5
            assert json.loads(get(f"http://127.0.0.1:{port}/healthz"))["ok"] is True
    assert receiver.requests == []
