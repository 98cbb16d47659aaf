"""What the benches share: a server, a site, a database, sides that run in turn, and how their ratio is printed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from drkit.operations.init import NewSite, init_site
from drkit.units import MIB
from tests.fixtures.postgres import PostgresServer, as_server_user, running_postgres

DRKIT = str(Path(sys.executable).parent / "drkit")
_TOUCHED_MIB = 2048
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "autovacuum": "on",
}


@dataclass(frozen=True)
class Place:
    """The site with its policies, and a folder for what is measured."""

    site: NewSite
    folder: Path
    repeats: int

    @property
    def programs(self) -> str:
        """Return the folder in which a pipeline's programs are looked for first."""
        return str(Path(sys.executable).parent)

    def shell(self, script: str, **variables: str) -> float:
        """Run a bash pipeline with pipefail and return its seconds."""
        env = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}", **variables}
        started = time.perf_counter()
        subprocess.run(["bash", "-c", f"set -euo pipefail; {script}"], check=True, env=env)
        return time.perf_counter() - started

    def drkit(self, *words: str) -> float:
        """Run the real command line and return its seconds."""
        started = time.perf_counter()
        done = subprocess.run(
            [DRKIT, "--site", str(self.site.site_file), *words], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"drkit {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return time.perf_counter() - started

    def alternately(self, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Run every side in turn, several times, and return the seconds of each."""
        runs: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(self.repeats):
            for name, run in sides.items():
                settle(self.folder)
                seconds = run()
                print(f"  run {number + 1}  {name:<16} {seconds:7.2f} s", flush=True)
                runs[name].append(seconds)
        return runs


def settle(folder: Path) -> None:
    """Give each side the same start: nothing left to be written of the side before, and memory that is there.

    The host of a virtual machine hands out memory that lay free slowly, whoever comes first.
    """
    os.sync()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_TOUCHED_MIB):
            file.write(bytes(MIB))


@dataclass(frozen=True)
class Bench(Place):
    """A place with a PostgreSQL server."""

    server: PostgresServer

    @property
    def programs(self) -> str:
        """Return the folder of the server's own programs."""
        return str(self.server.bin)


@contextmanager
def bench_place(repeats: int) -> Iterator[Place]:
    """Make a site without policies; remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="drkit-bench-") as name:
        folder = Path(name)
        site = init_site(folder / "site", principal="bench@example.org")
        site.policy_file.unlink()
        yield Place(site, folder, repeats)


@contextmanager
def bench(repeats: int, **settings: str) -> Iterator[Bench]:
    """Start a server with ordinary settings, and ``settings`` on top, and make a site; remove both at the end."""
    with running_postgres(**SETTINGS | settings) as server, bench_place(repeats) as place:
        yield Bench(place.site, place.folder, repeats, server)


def make_database(bench: Bench, name: str, scale: int) -> int:
    """Fill a pgbench database and return its size in bytes."""
    bench.server.create_database(name)
    pgbench = [str(bench.server.bin / "pgbench"), "-i", "-q", "-s", str(scale), "-I", "dtGvp"]
    url = [f"--host={bench.server.folder}", f"--port={bench.server.port}", "--username=postgres", name]
    subprocess.run([*pgbench, *url], check=True, capture_output=True, **as_server_user())
    bench.server.execute("checkpoint")
    return int(bench.server.execute("select pg_database_size(current_database())", name)[0][0])


def write_policy(bench: Bench, name: str, *rules: str, database: str = "", fingerprint: str = "digests") -> None:
    """Write a policy with the given backup rules, of one database or of the whole server."""
    databases = f", databases: [{database}]" if database else ""
    target = f"engine: postgres{databases}"
    write_policy_of(bench, name, target, bench.server.url("postgres").reveal(), *rules, fingerprint=fingerprint)


def write_policy_of(place: Place, name: str, target: str, url: str, *rules: str, fingerprint: str) -> None:
    """Write a policy; ``target`` is what its target has beside the url, which goes into a secret file."""
    secret = place.site.folder / "keys" / "bench-url"
    secret.touch(mode=0o600)
    secret.write_text(url)
    recipients = f"{place.site.restore.recipient}, {place.site.escrow.recipient}"
    (place.site.folder / "policies" / f"{name}.yaml").write_text(
        f"policy: {name}\ntarget: {{{target}, url: 'file:keys/bench-url'}}\n"
        f"backups: [{', '.join(rules)}]\nstores: [primary]\nfingerprint: {fingerprint}\n"
        f"encryption: {{recipients: [{recipients}]}}\n"
    )


def report(title: str, runs: Mapping[str, Sequence[float]], base: str, promises: Mapping[str, float]) -> None:
    """Print the best seconds of each side and two ratios to ``base``, beside the ratio that is promised.

    One is that of the best runs, the other the median of those in turn: where others use the machine too, one lucky run
    of a side decides what is best, and what lasts for a turn or longer is the same for both sides of it.
    """
    print(title)
    for name, seconds in runs.items():
        turns = [own / other for own, other in zip(seconds, runs[base], strict=True)]
        promise = f"   promised at most {promises[name]:.2f}" if name in promises else ""
        ratios = f"best {min(seconds) / min(runs[base]):.2f} x   median {statistics.median(turns):.2f} x"
        in_turn = " ".join(f"{turn:.2f}" for turn in turns)
        print(f"  {name:<16} {min(seconds):7.2f} s   {ratios}   in turn {in_turn}{promise}", flush=True)


# Linux counts what a process was before it became another program, so a small one starts what is measured. A child's
# peak is its parent's as well once it has ended, so the parent's own is looked at while it runs.
_MEASURE = """import os, sys, time
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
    file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
own = ended = 0
while not ended:
    for line in open(f"/proc/{pid}/status"):
        own = int(line.split()[1]) if line.startswith("VmHWM") else own
    time.sleep(0.02)
    ended, status, usage = os.wait4(pid, os.WNOHANG)
print(own, usage.ru_maxrss)
sys.exit(status != 0)"""


def peak_kilobytes(place: Place, *words: str) -> int:
    """Return the largest resident size of the command or any of its children, in KiB."""
    return max(peaks_kilobytes(place, *words))


def peaks_kilobytes(place: Place, *words: str) -> tuple[int, int]:
    """Return the largest resident size of the command alone, and of it or any of its children, in KiB."""
    measure = [sys.executable, "-I", "-S", "-c", _MEASURE, DRKIT, "--site", str(place.site.site_file), "--quiet"]
    done = subprocess.run([*measure, *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"drkit {' '.join(words)} failed:\n{done.stderr}")
    own, largest = map(int, done.stdout.split())
    return own, largest
