"""A backup of MongoDB beside mongodump | zstd | age, of the same collections on the same server, alternately.

The tools are genuine, the server is SecantusDB, which only speaks MongoDB's protocol: absolute figures are its own, the
ratio is between two ways to read it. It is what both sides wait for, at about 9 MB/s, so that the second in which drkit
starts weighs by the size of the data: 0.16 GB by default. It goes through its oplog to find the newest entry, so there
is a short one only.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from bench_place import Place, bench_place, peaks_kilobytes, report, write_policy_of

from drkit.mongo_binaries import mongo_binary
from tests.fixtures.mongodb import MongoServer, running_mongodb

_RULES = {"tools": "{method: dump, via: tools}", "native": "{method: dump, via: native, parallel: 4}"}
_BATCH = 5_000
_BYTES_OF_ONE_SCALE = 2_000_000
_COLLECTIONS = (("small", 150), ("middle", 1_000), ("large", 20_000))
"""Documents of about so many bytes; each collection gets a third of all."""


def bench_mongo(scale: int, repeats: int) -> None:
    """Backup with digests against mongodump --archive | zstd -1 -T2 | age; and the peak of memory."""
    with _place(repeats, scale * _BYTES_OF_ONE_SCALE) as (place, server, size):
        target, url = "engine: mongodb, databases: [b]", server.url.reveal()
        for name, rule in _RULES.items():
            write_policy_of(place, name, target, url, rule, fingerprint="digests")
        peaks = dict.fromkeys(_RULES, (0, 0))
        sides = {f"drkit {name}": partial(_backup, place, name, peaks) for name in _RULES}
        runs = place.alternately({"pipe": lambda: _pipe(place, server), **sides})
        report(f"MongoDB backup of {size / 1e9:.2f} GB with digests", runs, "pipe", {"drkit tools": 1.05})
        ratio = min(runs["drkit native"]) / min(runs["drkit tools"])
        print(f"  drkit's own reading beside mongodump's, both with 4 collections at once: {ratio:.2f} x")
        for name, seconds in runs.items():
            print(f"  {name:<16} {size / min(seconds) / 1e6:6.1f} MB/s", flush=True)
        peaks["verify"] = peaks_kilobytes(place, "verify")
        for name, (own, largest) in peaks.items():
            tool = f"; mongodump itself {largest / 1024:.1f} MiB" if largest > own else ""
            print(f"  drkit {name:<10} peak {own / 1024:6.1f} MiB   promised under 200 MB{tool}")


@contextmanager
def _place(repeats: int, size_bytes: int) -> Iterator[tuple[Place, MongoServer, int]]:
    """Lend a site and a filled server; it is filled while it keeps no oplog, which takes half the time."""
    root = Path(__file__).parent.parent / ".tools"
    os.environ.setdefault("DRKIT_MONGO_BIN", f"{root}/bin:{root}/secantusdb/bin")
    with tempfile.TemporaryDirectory(prefix="drkit-bench-") as folder:
        data, started_s = Path(folder) / "data", time.perf_counter()
        with running_mongodb("--cache-size=1G", "--standalone", data=data) as server:
            size = _fill(server, size_bytes)
            server.client.admin.command("fsync")
        print(f"  {size / 1e9:.2f} GB filled in {time.perf_counter() - started_s:.0f} s", flush=True)
        with running_mongodb("--cache-size=1G", data=data) as server, bench_place(repeats) as place:
            server.client["other"]["written"].insert_one({"_id": 1})
            yield place, server, size


def _backup(place: Place, policy: str, peaks: dict[str, tuple[int, int]]) -> float:
    """Take a backup and return its seconds; note the most memory that drkit had, and a process of it."""
    started_s = time.perf_counter()
    peaks[policy] = max(peaks[policy], peaks_kilobytes(place, "backup", policy))
    return time.perf_counter() - started_s


def _fill(server: MongoServer, size_bytes: int) -> int:
    """Fill database ``b`` with documents of several sizes; return the bytes of all of them."""
    import bson

    rng = random.Random(7)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))).decode() for _ in range(4000)]
    start, filled = datetime(2026, 1, 1, tzinfo=UTC), 0
    for name, document_bytes in _COLLECTIONS:
        count = size_bytes // len(_COLLECTIONS) // document_bytes
        for first in range(0, count, _BATCH):
            batch: list[dict[str, Any]] = [
                {
                    "_id": bson.ObjectId(number.to_bytes(12, "big")),
                    "number": number,
                    "at": start + timedelta(seconds=number),
                    "paid": number % 3 == 0,
                    "text": " ".join(rng.choices(words, k=max((document_bytes - 75) // 7, 1))),
                }
                for number in range(first, min(first + _BATCH, count))
            ]
            filled += sum(len(bson.encode(document)) for document in batch)
            server.client["b"][name].insert_many(batch)
    return filled


def _pipe(place: Place, server: MongoServer) -> float:
    script = '"$DUMP" --quiet --uri="$URL" --db=b --archive | zstd -1 -T2 -q | age -r "$RECIPIENT" > "$TARGET"'
    return place.shell(
        script,
        DUMP=str(mongo_binary("mongodump")),
        URL=server.url.reveal(),
        RECIPIENT=place.site.restore.recipient,
        TARGET=str(place.folder / "pipe.age"),
    )
