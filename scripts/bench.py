"""Measure drkit beside the plain shell pipelines and pgBackRest; print seconds, bytes and ratios, assert nothing.

Both sides run alternately on one server with one database. Two ratios are printed: of the best run of each, and the
median of those in turn.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench_catalog import bench_catalog
from bench_mongo import bench_mongo
from bench_place import DRKIT, Bench, bench, make_database, peak_kilobytes, report, write_policy
from bench_recovery import bench_base, bench_replay, bench_wal
from bench_retention import bench_retention
from bench_schedule import bench_schedule

from drkit.operations.init import NewSite, init_site


def pipe_of_dump(bench: Bench, database: str, target: Path) -> Callable[[], float]:
    """Return the shell's way of a backup."""
    script = 'pg_dump -Fc -Z0 "$DB" | zstd -1 -T2 -q | age -r "$RECIPIENT" > "$TARGET"'
    recipient = bench.site.restore.recipient
    return lambda: bench.shell(script, DB=bench.server.url(database).reveal(), RECIPIENT=recipient, TARGET=str(target))


def bench_backup(scale: int, repeats: int) -> None:
    """Backup with counts and with digests, against pg_dump | zstd | age."""
    with bench(repeats) as place:
        size = make_database(place, "b", scale)
        write_policy(place, "counts", "{method: dump}", database="b", fingerprint="counts")
        write_policy(place, "digests", "{method: dump}", database="b", fingerprint="digests")
        runs = place.alternately(
            {
                "pipe": pipe_of_dump(place, "b", place.folder / "pipe.age"),
                "drkit counts": lambda: place.drkit("backup", "counts"),
                "drkit digests": lambda: place.drkit("backup", "digests"),
            }
        )
        report(f"backup of {size / 1e9:.2f} GB", runs, "pipe", {"drkit counts": 1.0})


def bench_restore(scale: int, repeats: int) -> None:
    """Restore and a drill's load phase, against age -d | zstd -d | pg_restore."""
    with bench(repeats) as place:
        size = make_database(place, "b", scale)
        write_policy(place, "counts", "{method: dump}", database="b", fingerprint="counts")
        sealed = place.folder / "pipe.age"
        pipe_of_dump(place, "b", sealed)()
        place.drkit("backup", "counts")

        def pipe() -> float:
            place.server.create_database("piped")
            return place.shell(
                'age -d -i "$KEY" "$SEALED" | zstd -d | pg_restore -d "$DB"',
                KEY=str(place.site.restore.path),
                SEALED=str(sealed),
                DB=place.server.url("piped").reveal(),
            )

        def restore() -> float:
            place.server.drop_database("restored")
            target = place.site.folder / "keys" / "target-url"
            target.touch(mode=0o600)
            target.write_text(place.server.url("restored").reveal())
            return place.drkit("restore", "counts", "--to", "file:keys/target-url")

        def drill_load() -> float:
            return drill_phase(place, "load")

        runs = place.alternately({"pipe": pipe, "drkit restore": restore, "drill load": drill_load})
        report(f"restore of {size / 1e9:.2f} GB", runs, "pipe", {"drkit restore": 1.0, "drill load": 0.75})


def drill_phase(place: Bench, phase: str) -> float:
    """Run a drill and return the seconds of one phase as its own record has them."""
    import json

    words = [DRKIT, "--site", str(place.site.site_file), "--json", "drill", "counts", "--level", "loads"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the drill failed:\n{done.stdout}{done.stderr}")
    return float(json.loads(done.stdout)["phases_s"][phase])


def bench_memory(scale: int, repeats: int) -> None:
    """Peak resident memory of a backup and of a restore, for one size and for four times that."""
    del repeats
    with bench(1) as place:
        for name, factor in (("one", 1), ("four", 4)):
            size = make_database(place, name, scale * factor)
            write_policy(place, name, "{method: dump}", database=name, fingerprint="digests")
            for words in (("backup", name), ("verify",)):
                peak = peak_kilobytes(place, *words)
                print(f"  {' '.join(words):<14} {size / 1e9:5.2f} GB   peak {peak / 1024:6.1f} MiB", flush=True)
        print("promised: under 150 MB, and the same for four times the data")


def bench_startup(scale: int, repeats: int) -> None:
    """``drkit --help``, and ``drkit list`` of 10,000 artifacts."""
    del scale
    with tempfile.TemporaryDirectory(prefix="drkit-bench-") as name:
        site = init_site(Path(name) / "site", principal="bench@example.org")
        fill_catalog(site, 10_000)
        best: dict[str, float] = {}
        for words in (["--help"], ["--site", str(site.site_file), "list"]):
            for _ in range(max(repeats, 5)):
                started = time.perf_counter()
                subprocess.run([DRKIT, *words], check=True, capture_output=True)
                seconds = time.perf_counter() - started
                best[words[-1]] = min(seconds, best.get(words[-1], seconds))
        print(f"  drkit --help                  {best['--help']:.3f} s   promised under 0.25")
        print(f"  drkit list, 10,000 artifacts  {best['list']:.3f} s   promised under 0.5")


def fill_catalog(site: NewSite, count: int) -> None:
    """Index made-up artifacts."""
    from drkit.catalog.sqlite import open_catalog
    from drkit.model import ArtifactEntry, Compression, Coverage, Encryption, Manifest, ObjectRecord
    from drkit.operations.running import new_id

    catalog = open_catalog(site.folder / "var" / "catalog.db", create=True)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        at = start + timedelta(minutes=number)
        artifact_id = new_id(at)
        item = ObjectRecord(
            part="database-1",
            kind="database",
            key=f"policies/p/artifacts/{artifact_id}/database-1.zst.age",
            stored_bytes=1000,
            stored_sha256="0" * 64,
            plain_bytes=9000,
            plain_sha256="0" * 64,
        )
        manifest = Manifest(
            repo_id="r",
            policy="p",
            artifact_id=artifact_id,
            run_id=artifact_id,
            engine="postgres",
            method="dump",
            seq=number + 1,
            started_at=at,
            ended_at=at,
            covers=Coverage(from_at=at, to_at=at),
            objects=(item,),
            compression=Compression(level=1),
            encryption=Encryption(recipients=()),
            tools={},
            written_to="primary",
            details="",
        )
        catalog.index_artifact(ArtifactEntry(manifest, f"{number:064x}", ("primary",)))
    catalog.close()


BENCHES = {
    "backup": bench_backup,
    "restore": bench_restore,
    "memory": bench_memory,
    "startup": bench_startup,
    "catalog": bench_catalog,
    "base": bench_base,
    "wal": bench_wal,
    "replay": bench_replay,
    "mongo": bench_mongo,
    "retention": bench_retention,
    "schedule": bench_schedule,
}


_SCALES = {"backup": 160, "base": 160}
"""Twice the size where drkit's start, about a second whatever the size, would be a tenth of what is measured."""
_SCALE = 80


def main() -> None:
    """Run one bench, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHES, "all"])
    parser.add_argument(
        "--scale", type=int, help="pgbench's scale: 80 is 1.2 GB, and 0.16 GB for mongo; 160 for backup and base"
    )
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs, in turn")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if shutil.which("age") is None:
        raise SystemExit("age is not installed; scripts/setup --tests installs it")
    for name, run in BENCHES.items():
        if arguments.what in {name, "all"}:
            print(f"== {name}", flush=True)
            run(arguments.scale or _SCALES.get(name, _SCALE), arguments.repeats)


if __name__ == "__main__":
    main()
