"""Days of `drkit serve` in minutes: databases under load, schedules, and everything killed, stopped and filled up.

``scripts/soak`` runs it for as long as one likes; test_soak.py for half a minute. Schedules run on a clock that is 432
times as fast (72 hours in ten minutes); backups, stores, databases and processes are real.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from drkit.app import open_app
from drkit.occurrences import Occurrence
from drkit.operations.init import init_site
from drkit.schedule import Recurrence
from tests.faults.shop import BUCKET_VARIABLES, bucket_lines
from tests.fixtures.ports import free_port
from tests.fixtures.postgres import PostgresServer, _start, running_postgres
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, S3Server, _versitygw, _wait_for_port
from tests.fixtures.site import ReadySite, fork_drkit

ROOT = Path(__file__).parents[2]
SPEED = 432
EPOCH = datetime(2026, 11, 22, tzinfo=UTC)
CRONS = {
    "backup/orders/dump": "*/30 * * * *",
    "backup/ledger/base": "10 */3 * * *",
    "drill/orders/often": "20 */2 * * *",
}
TOOLS = ("drkit.cli.job", "faults.soak --serve", "pg_dump", "pg_basebackup", "pg_receivewal", "psql")
DISK_BYTES = 48 << 20


def fast_clock(began_s: float) -> datetime:
    """Return what time it is for schedules."""
    return EPOCH + timedelta(seconds=(time.time() - began_s) * SPEED)


def serve(site: Path, began_s: float) -> None:
    """Do what `drkit serve` does, with schedules on the fast clock."""
    from drkit.operations.health import Health
    from drkit.operations.serve import serve as run_duties
    from drkit.scheduler import Planner, Ticker, schedules_of
    from drkit.worker import Worker

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())

    class Said:
        def line(self, text: str) -> None:
            os.write(1, f"{time.time() - began_s:7.1f} {text}\n".encode())

        def progress(self, label: str, expected_bytes: int | None = None) -> Any:
            raise NotImplementedError

    with open_app(site) as workplace:

        def clock() -> datetime:
            return fast_clock(began_s)

        policies = list(workplace.policies.values())
        planner = Planner(workplace.catalog.occurrences, schedules_of(policies, workplace.site.scheduler))
        more = [Ticker(planner, clock, Said(), tick_s=0.25), Worker(workplace, planner, policies, Said(), clock)]
        run_duties(workplace, list(workplace.policies), Said(), stopping, (Health(clock, {}), more))
    os._exit(0)


@dataclass
class Bucket:
    """A versitygw that can be stopped and started on the same port and objects."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        for name in ("objects", "versions"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        binary = _versitygw()
        assert binary is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(binary, "--quiet", "--port", f"127.0.0.1:{self.port}"),
                    *("--access", ACCESS_KEY, "--secret", SECRET_KEY, "posix"),
                    *("--versioning-dir", str(self.folder / "versions"), str(self.folder / "objects")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )
        _wait_for_port(self.port, self.process, self.folder / "log")

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def server(self) -> S3Server:
        """Return it for clients."""
        return S3Server("versitygw", f"http://127.0.0.1:{self.port}")


class Load(threading.Thread):
    """Writes small transactions, and connects again when the server was gone."""

    def __init__(self, server: PostgresServer, database: str) -> None:
        super().__init__(name="load", daemon=True)
        self._server = server
        self._database = database
        self.stopping = threading.Event()

    def run(self) -> None:
        """Write until told to stop."""
        while not self.stopping.is_set():
            with contextlib.suppress(psycopg.Error), self._server.connect(self._database) as connection:
                connection.autocommit = True
                while not self.stopping.wait(0.02):
                    connection.execute("insert into orders (text) select repeat(md5(random()::text), 20)")
                    connection.execute("delete from orders where id < (select max(id) - 2000 from orders)")


@dataclass
class Soak:
    """One soak in progress."""

    site: ReadySite
    server: PostgresServer
    bucket: Bucket
    disk: Path | None
    say: Callable[[str], None]
    began_s: float = field(default_factory=time.time)
    process: subprocess.Popen[bytes] | None = None
    peaks: list[int] = field(default_factory=list)
    blows: Counter[str] = field(default_factory=Counter)

    @property
    def environment(self) -> dict[str, str]:
        """Return what drkit's processes get."""
        return {**os.environ, **BUCKET_VARIABLES, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def start(self) -> None:
        """Start `drkit serve`."""
        with (self.site.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.soak", "--serve", str(self.site.site_file), str(self.began_s)],
                cwd=self.site.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def look(self) -> None:
        """Remember how much memory `drkit serve` takes."""
        assert self.process is not None
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            self.peaks.append(int(line.split()[1]) * 1024)

    def kill_serve(self, dice: random.Random) -> None:
        """Kill `drkit serve` and start it again."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        time.sleep(dice.uniform(0, 1))
        self.start()

    def kill_job(self, dice: random.Random) -> None:
        """Kill one job."""
        jobs = [pid for pid, command in self.processes().items() if "drkit.cli.job" in command]
        if jobs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(jobs), signal.SIGKILL)

    def crash_database(self, dice: random.Random) -> None:
        """Crash the server and start it again."""
        self.server.stop("immediate")
        time.sleep(dice.uniform(0.2, 2))
        _start(self.server, {})

    def stop_store(self, dice: random.Random) -> None:
        """Stop the S3 server for a while."""
        self.bucket.stop()
        time.sleep(dice.uniform(0.5, 4))
        self.bucket.start()

    def fill_disk(self, dice: random.Random) -> None:
        """Fill the second store's disk for a while."""
        if self.disk is None:
            return
        with contextlib.suppress(OSError), (self.disk / "ballast").open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        time.sleep(dice.uniform(0.5, 3))
        (self.disk / "ballast").unlink(missing_ok=True)

    def strike(self, dice: random.Random) -> None:
        """Let something go wrong."""
        blow = dice.choice((self.kill_serve, self.kill_job, self.crash_database, self.stop_store, self.fill_disk))
        self.blows[blow.__name__] += 1
        self.say(f"{time.time() - self.began_s:6.1f} s  {blow.__name__}")
        blow(dice)

    def stop(self) -> int:
        """Stop `drkit serve` as systemd would, and return its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def processes(self) -> dict[int, str]:
        """Return every process of this site: serve, its jobs and their tools."""
        places = (str(self.site.folder), str(self.server.folder), str(self.server.port))
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                ours = any(place in command for place in places) or str((folder / "cwd").readlink()) == places[0]
                if ours and any(tool in command for tool in TOOLS):
                    found[int(folder.name)] = command
        return found

    def history(self) -> list[Occurrence]:
        """Return the ledger."""
        with open_app(self.site.site_file) as workplace:
            return workplace.catalog.occurrences.history(limit=1_000_000)

    def drkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return fork_drkit(*arguments, cwd=self.site.folder, env={**BUCKET_VARIABLES}, timeout_s=300)


def settle(soak: Soak) -> None:
    """Let `drkit serve` run undisturbed until a dump, a base and a drill went well and nothing is dispatched."""
    since = fast_clock(soak.began_s)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        time.sleep(0.5)
        done = {item.kind for item in soak.history() if item.state == "done" and item.due_at > since}
        if {"backup", "copy"} <= done:
            return
    raise AssertionError("it does not recover:\n" + (soak.site.folder / "serve.log").read_text()[-4000:])


def judge(soak: Soak) -> dict[str, Any]:
    """Assert what must hold after any number of blows; return the figures."""
    items = soak.history()
    _every_moment_has_a_row(items)
    with open_app(soak.site.site_file) as workplace:
        runs = workplace.catalog.runs(limit=1_000_000)
        made = {run.outcome["artifact_id"] for run in runs if run.outcome and run.outcome.get("artifact_id")}
        kept = {entry.manifest.artifact_id for entry in workplace.catalog.artifacts()}
        scratches = workplace.catalog.scratches()
        for name in ("bucket", "disk"):
            workplace.stores[name].abort_leftovers(older_than=datetime.now(UTC) + timedelta(days=1))
    assert made <= kept, f"artifacts are lost: {made - kept}"
    verified = soak.drkit("verify", "--all")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert [run for run in runs if run.state == "running"] == []
    assert scratches == []
    left = soak.processes()
    assert left == {}, left
    client, uploads = soak.bucket.server.client(), []
    for bucket in client.list_buckets()["Buckets"]:
        uploads += client.list_multipart_uploads(Bucket=bucket["Name"]).get("Uploads", [])
    assert uploads == []
    folder = Path(tempfile.gettempdir())
    assert [path for path in folder.glob("drkit-work-*") if _is_of_the_dead(path)] == []
    return {
        "hours": round((time.time() - soak.began_s) * SPEED / 3600, 1),
        "blows": dict(soak.blows),
        "occurrences": dict(Counter(f"{item.kind} {item.state}" for item in items)),
        "artifacts": len(kept),
        "memory_mb": [round(peak / 1e6) for peak in _thirds(soak.peaks)],
    }


def _every_moment_has_a_row(items: list[Occurrence]) -> None:
    for name, cron in CRONS.items():
        have = {item.due_at for item in items if item.schedule == name}
        if not have:
            continue
        expected = Recurrence(cron).between(min(have) - timedelta(seconds=1), max(have))
        assert set(expected) <= have, f"{name} lacks {sorted(set(expected) - have)}"
    for item in items:
        assert item.state in ("done", "due") or item.reason, item
        assert item.state != "dispatched", item


def _is_of_the_dead(path: Path) -> bool:
    pid = path.name.removeprefix(f"drkit-work-{os.getuid()}-").partition("-")[0]
    return pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _thirds(peaks: list[int]) -> tuple[int, int]:
    third = max(len(peaks) // 3, 1)
    return max(peaks[:third], default=0), max(peaks[-third:], default=0)


def write_policies(site: ReadySite, url: str, database: str, disk: Path) -> None:
    """Write the site's stores and its two policies."""
    text = site.site_file.read_text() + (
        "scheduler: {limits: {runs: 3}, stop_within: 5s, copy_missing: '*/40 * * * *', prune: null, verify: null}\n"
    )
    site.site_file.write_text(text)
    site.add_store("disk", f"file://{disk}")
    reference = site.write_secret("database-url", url)
    orders = site.write_policy("orders", reference, stores=("bucket", "disk"), more="objectives: {rpo: 1h}\n")
    rules = f'{{method: dump, schedule: "{CRONS["backup/orders/dump"]}"}}'
    drill = f'drills: [{{name: often, level: intact, schedule: "{CRONS["drill/orders/often"]}"}}]\n'
    text = (
        orders.read_text()
        .replace("{method: dump}", rules)
        .replace(f'"{reference}"', f'"{reference}", databases: [{database}]')
    )
    orders.write_text(text + drill)
    ledger = site.write_policy("ledger", reference, stores=("bucket",))
    rules = f'{{method: base, schedule: "{CRONS["backup/ledger/base"]}"}}\n  - {{method: wal, max_unshipped: 1s}}'
    ledger.write_text(ledger.read_text().replace("{method: dump}", rules))


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """Lend a file system that is soon full; None where none can be mounted."""
    folder.mkdir()
    options = f"size={DISK_BYTES}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "drkit-soak", str(folder)], capture_output=True)
    try:
        yield folder if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@contextlib.contextmanager
def prepared(folder: Path, say: Callable[[str], None]) -> Iterator[Soak]:
    """Lend everything that a soak needs; it is gone afterwards, whatever happened."""
    with contextlib.ExitStack() as stack:
        disk_folder = folder / "small"
        disk = stack.enter_context(_small_disk(disk_folder))
        if disk is None:
            say("nothing can be mounted here: the disk will not be filled")
        server = stack.enter_context(running_postgres(max_wal_senders="10", max_replication_slots="10"))
        bucket = Bucket(folder / "s3")
        stack.callback(bucket.stop)
        bucket.start()
        made = init_site(folder / "site", principal="soak@example.org")
        made.policy_file.unlink()
        site = ReadySite(made.folder, made)
        site.add_store(
            "bucket", f"s3://{bucket.server.bucket(versions=True)}/soak", *bucket_lines(bucket.server.endpoint)
        )
        database = server.create_database("shop", "create table orders (id bigserial primary key, text text)")
        write_policies(site, server.url(database).reveal(), database, disk or disk_folder)
        load = Load(server, database)
        load.start()
        stack.callback(load.stopping.set)
        soak = Soak(site, server, bucket, disk, say)
        stack.callback(lambda: soak.process is None or soak.process.kill())
        yield soak


def run(folder: Path, lasts_s: float, *, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Soak for that long and return the figures; raise AssertionError for what must not be."""
    dice = random.Random(seed)
    os.environ.update(BUCKET_VARIABLES)
    with prepared(folder, say) as soak:
        soak.start()
        until_s = time.monotonic() + lasts_s
        while time.monotonic() < until_s:
            for _ in range(dice.randint(2, 8)):
                time.sleep(0.5)
                soak.look()
            soak.strike(dice)
        settle(soak)
        soak.look()
        assert soak.stop() == 0
        return judge(soak)


def _print(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main() -> int:
    """Parse the command line and soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long; ten minutes are 72 hours of schedules")
    parser.add_argument("--seed", type=int, default=1, help="which blows, in which order")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(Path(arguments.serve[0]), float(arguments.serve[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="drkit-soak-") as name:
        Path(name).chmod(0o755)
        figures = run(Path(name), arguments.minutes * 60, seed=arguments.seed, say=_print)
    for title, value in figures.items():
        _print(f"{title:<12} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
