"""Base backups, the log and recovery, beside pgBackRest and beside pg_basebackup | zstd | age.

Both back up the same server with zstd level 1, encryption and two processes or threads. pgBackRest is Debian's package.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from bench_log import bench_gaps
from bench_place import DRKIT, Bench, bench, make_database, peaks_kilobytes, report, settle, write_policy

from tests.fixtures.postgres import PostgresServer, as_server_user, free_port

T = TypeVar("T")

_SEGMENT_BYTES = 16 << 20
_PUSHES = 40
"""In each turn; with fewer the 95th percentile is the slowest of them."""
_READY_S = 120
_ARCHIVING = {"archive_mode": "on", "archive_command": "true", "max_wal_senders": "6"}


@dataclass(frozen=True)
class BackRest:
    """pgBackRest with a repository of its own, run as the server's user."""

    folder: Path
    config: Path

    def command(self, *words: str) -> list[str]:
        """Return its command line; options come before the command's own arguments."""
        return ["pgbackrest", f"--config={self.config}", "--stanza=bench", *words]

    def run(self, *words: str) -> float:
        """Run it and return its seconds."""
        started = time.perf_counter()
        done = subprocess.run(
            self.command(*words), check=False, capture_output=True, text=True, cwd=self.folder, **as_server_user()
        )
        if done.returncode:
            raise SystemExit(f"pgbackrest {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return time.perf_counter() - started


def make_backrest(server: PostgresServer) -> BackRest:
    """Configure pgBackRest for the server."""
    if shutil.which("pgbackrest") is None:
        raise SystemExit("pgbackrest is not installed: apt-get install pgbackrest")
    folder = server.folder / "pgbackrest"
    folder.mkdir()
    config = folder / "pgbackrest.conf"
    config.write_text(
        f"[global]\nrepo1-path={folder}/repo\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\n"
        f"compress-type=zst\ncompress-level=1\nprocess-max=2\nstart-fast=y\nlog-level-console=error\n"
        f"log-level-file=off\nlog-path={folder}\nlock-path={folder}/lock\nspool-path={folder}/spool\n"
        f"[bench]\npg1-path={server.folder}/data\npg1-port={server.port}\npg1-socket-path={server.folder}\n"
        "pg1-user=postgres\n"
    )
    for path in (folder, config):
        shutil.chown(path, "postgres", "postgres")
    made = BackRest(folder, config)
    made.run("stanza-create")
    return made


def bench_base(scale: int, repeats: int) -> None:
    """Take a base backup in both ways, against the pipe and against pgBackRest."""
    with bench(repeats, **_ARCHIVING) as place:
        size = make_database(place, "b", scale)
        rest = make_backrest(place.server)
        write_policy(place, "streamed", "{method: base, via: stream}")
        write_policy(place, "local", "{method: base, via: local, parallel: 2}")
        pipe = (
            f"pg_basebackup -D - -Ft -X fetch --checkpoint=fast -h {place.server.folder} -p {place.server.port}"
            ' -U postgres | zstd -1 -T2 -q | age -r "$RECIPIENT" > "$TARGET"'
        )
        recipient, target = place.site.restore.recipient, str(place.folder / "base.age")
        runs = place.alternately(
            {
                "pipe": lambda: place.shell(pipe, RECIPIENT=recipient, TARGET=target),
                "pgbackrest": lambda: rest.run("backup", "--type=full", "--no-archive-check"),
                "drkit stream": lambda: place.drkit("backup", "streamed", "--method", "base"),
                "drkit local": lambda: place.drkit("backup", "local", "--method", "base"),
            }
        )
        title = f"base backup of a server with {size / 1e9:.2f} GB"
        report(f"{title}, beside the pipe", runs, "pipe", {"drkit stream": 1.0})
        report(f"{title}, beside pgBackRest", runs, "pgbackrest", {"drkit local": 0.75})


@contextmanager
def serving(place: Bench, policy: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `drkit serve` until the context ends."""
    socket = place.site.folder / "var" / "wal" / policy / "socket"
    process = subprocess.Popen(
        [DRKIT, "--site", str(place.site.site_file), "serve", policy],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(socket.exists, "drkit serve listens")
        for folder in [socket.parent, *socket.parent.parents[:4]]:
            folder.chmod(folder.stat().st_mode | 0o011)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_READY_S)


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Wait until it holds; give up after two minutes."""
    until_s = time.monotonic() + _READY_S
    while not holds():
        if time.monotonic() > until_s:
            raise SystemExit(f"waited in vain until {what}")
        time.sleep(0.005)


def archive_command(place: Bench, policy: str) -> str:
    """Return the archive_command that drkit prints."""
    words = [DRKIT, "--site", str(place.site.site_file), "--json", "wal", "command", policy]
    answer = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return str(answer["settings"]["archive_command"])


def set_archiver(server: PostgresServer, command: str) -> None:
    """Give the server another archive_command."""
    server.execute("alter system set archive_command = '{}'".format(command.replace("'", "''")))
    server.execute("select pg_reload_conf()")


def fill_log(place: Bench, segments: int) -> None:
    """Let the server write some segments that wait for an archiver."""
    for _ in range(segments):
        place.server.execute(
            "insert into bench_log select repeat(md5(i::text), 20) from generate_series(1, 20000) as i"
        )
        place.server.execute("select pg_switch_wal()")


@contextmanager
def stopped(serve: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """Stop `drkit serve`, if it runs, while a backlog is made or another archiver's time is taken.

    It would store some of it before its own time is taken, or take the processors from the other.
    """
    if serve is not None:
        serve.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if serve is not None:
            serve.send_signal(signal.SIGCONT)


def drain(place: Bench, command: str, segments: int, serve: subprocess.Popen[bytes] | None) -> float:
    """Let so many segments wait, then hand them to an archiver; return the seconds until the last one is archived."""
    set_archiver(place.server, "false")
    with stopped(serve):
        fill_log(place, segments)
    place.server.execute("select pg_stat_reset_shared('archiver')")
    set_archiver(place.server, command)
    started = time.perf_counter()
    # The archiver sleeps for up to a minute after a failure, unless another segment wakes it.
    place.server.execute("select pg_switch_wal()")
    wait_until(lambda: not waiting(place), "all segments are archived")
    return time.perf_counter() - started


def waiting(place: Bench) -> list[str]:
    """Return the segments that wait for an archiver, oldest first; asked often, it takes little of a processor."""
    folder = place.server.folder / "data" / "pg_wal" / "archive_status"
    with os.scandir(folder) as entries:
        return sorted(entry.name.removesuffix(".ready") for entry in entries if entry.name.endswith(".ready"))


@contextmanager
def archiver(place: Bench) -> Iterator[Callable[[str], None]]:
    """Lend what runs a command line as the server's archiver does: from a small process of its user, by a shell.

    Python takes ten milliseconds to become another user and start a process, which no server does.
    """
    loop = 'while read -r line; do sh -c "$line" </dev/null >/dev/null 2>&1; echo $?; done'
    data = place.server.folder / "data"
    with subprocess.Popen(
        ["sh", "-c", loop], cwd=data, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **as_server_user()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def run(line: str) -> None:
            asked.write(f"{line}\n")
            asked.flush()
            if answers.readline() != "0\n":
                raise SystemExit(f"failed: {line}")

        yield run


def push(run: Callable[[str], None], command: str, name: str) -> float:
    """Push one segment as the server would; return its milliseconds."""
    line = command.replace("%p", f"pg_wal/{name}").replace("%f", name)
    started = time.perf_counter()
    run(line)
    return (time.perf_counter() - started) * 1000


def pushes(place: Bench, command: str, segments: int, serve: subprocess.Popen[bytes] | None) -> dict[str, list[float]]:
    """Push a backlog one right after the other, and then each segment as soon as the server has finished it.

    Return the milliseconds of each push. The backlog comes as fast as it is taken; the second is what a server waits
    for that writes its log at its own pace.
    """
    set_archiver(place.server, "false")
    with stopped(serve):
        fill_log(place, segments)
    with archiver(place) as run:
        took = {"of a backlog": [push(run, command, name) for name in waiting(place)], "as finished": []}
        done = set(waiting(place))
        for _ in range(segments):
            fill_log(place, 1)
            took["as finished"] += [push(run, command, name) for name in waiting(place) if name not in done]
            done.update(waiting(place))
    set_archiver(place.server, "true")
    place.server.execute("select pg_switch_wal()")
    wait_until(lambda: not waiting(place), "nothing waits any more")
    return took


def bench_wal(scale: int, repeats: int) -> None:
    """Measure what archive_command costs the server for each segment, and how fast a backlog goes."""
    del scale
    segments = 24
    with bench(repeats, **_ARCHIVING, wal_keep_size="2GB") as place:
        rest = make_backrest(place.server)
        archive_push = " ".join(rest.command("archive-push"))
        write_policy(place, "pushed", "{method: base}", "{method: wal, receive: archive}")
        place.server.execute("create table bench_log (row text)")
        with serving(place, "pushed") as serve:
            ours = archive_command(place, "pushed")
            sides = {
                "pgbackrest": f"{archive_push} %p",
                "pgbackrest async": f"{archive_push} --archive-async %p",
                "drkit": ours,
            }

            def alone(measure: Callable[..., T], name: str, count: int) -> T:
                settle(place.folder)
                if name == "drkit":
                    return measure(place, ours, count, serve)
                with stopped(serve):
                    return measure(place, sides[name], count, None)

            runs = place.alternately({name: partial(alone, drain, name, segments) for name in sides})
            megabytes = segments * _SEGMENT_BYTES / 1e6
            for name, seconds in runs.items():
                print(f"  {name:<16} {megabytes / min(seconds):7.0f} MB/s", flush=True)
            report("drain of a backlog", runs, "pgbackrest async", {"drkit": 1.0})
            took: dict[str, list[float]] = defaultdict(list)
            for name in list(sides) * repeats:
                for how, milliseconds in alone(pushes, name, _PUSHES).items():
                    took[f"{name:<16} {how:<14}"] += milliseconds
            for what in sorted(took):
                p95 = statistics.quantiles(took[what], n=20)[-1]
                print(
                    f"  push by {what} median {statistics.median(took[what]):6.1f} ms   p95 {p95:6.1f} ms", flush=True
                )
        print("promised: p95 under 30 ms and below pgBackRest's; drain at least pgBackRest's")
    bench_gaps(repeats)


def first_query(place: Bench, data: Path, user: dict[str, object]) -> None:
    """Start a restored server and ask it one question."""
    port = str(free_port())
    pg_ctl = [str(place.server.bin / "pg_ctl"), "-D", str(data), "-w", "-t", "600", "-l", str(data / "bench.log")]
    options = f"-p {port} -k {data} -c listen_addresses="
    subprocess.run([*pg_ctl, "-o", options, "start"], check=True, capture_output=True, cwd=data, **user)
    query = [str(place.server.bin / "psql"), "-h", str(data), "-p", port, "-U", "postgres", "-Atc"]
    wait_until(
        lambda: (
            subprocess.run([*query, "select pg_is_in_recovery()"], capture_output=True, check=True).stdout == b"f\n"
        ),
        "recovery has ended",
    )
    subprocess.run([*query, "select count(*) from bench_log", "postgres"], check=True, capture_output=True)
    subprocess.run([*pg_ctl, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=data, **user)


def bench_replay(scale: int, repeats: int) -> None:
    """Recover from nothing to the first query: base backup, log, replay."""
    segments = 24
    with bench(repeats, **_ARCHIVING, wal_keep_size="4GB") as place:
        size = make_database(place, "b", scale)
        rest = make_backrest(place.server)
        write_policy(place, "pushed", "{method: base, via: local, parallel: 2}", "{method: wal, receive: archive}")
        place.server.execute("create table bench_log (row text)")
        archive_push = " ".join(rest.command("archive-push"))
        with serving(place, "pushed") as serve:
            both = f"{archive_push} %p && {archive_command(place, 'pushed')}"
            set_archiver(place.server, both)
            rest.run("backup", "--type=full")
            place.drkit("backup", "pushed", "--method", "base")
            drain(place, both, segments, serve)

        shares: list[float] = []
        # Each into a folder of its own: inodes that were deleted just before make ext4 search long for others.
        numbers = count()

        def backrest() -> float:
            data = rest.folder / f"restored-{next(numbers)}"
            started = time.perf_counter()
            rest.run("restore", f"--pg1-path={data}", "--archive-mode=off", "--type=default")
            first_query(place, data, as_server_user())
            return time.perf_counter() - started

        def empty_folder() -> Path:
            data = place.server.folder / f"drkit-restored-{next(numbers)}"
            data.mkdir(mode=0o700)
            shutil.chown(data, "postgres", "postgres")
            return data

        def drkit() -> float:
            data = empty_folder()
            started = time.perf_counter()
            words = ["--site", str(place.site.site_file), "--json", "restore", "pushed", "--into", str(data)]
            done = subprocess.run([DRKIT, *words], check=True, capture_output=True)
            first_query(place, data, as_server_user())
            took_s = time.perf_counter() - started
            replayed = json.loads(done.stdout)["replayed"]
            shares.append(replayed["local_share"])
            print(f"  {replayed['segments']} segments, {shares[-1]:.1%} of them there before they were asked for")
            return took_s

        runs = place.alternately({"pgbackrest": backrest, "drkit": drkit})
        report(
            f"restore of {size / 1e9:.2f} GB and {segments} segments to the first query",
            runs,
            "pgbackrest",
            {"drkit": 0.8},
        )
        print(f"  the next segment was there in {statistics.mean(shares):.1%} of the cases   promised over 95.0%")
        own, _ = peaks_kilobytes(place, "restore", "pushed", "--into", str(empty_folder()))
        print(f"  peak of a restore with replay {own / 1024:.0f} MiB   promised under 200")
