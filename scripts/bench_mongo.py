"""A backup of MongoDB beside mongodump | zstd | age, of the same collections on the same server, alternately.

The tools are genuine, the server is SecantusDB, which only speaks MongoDB's protocol: absolute figures are its own, the
ratio is between two ways to read it. It goes through its oplog to find the newest entry, so the oplog is kept short.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench_place import Place, bench_place, peak_kilobytes, report, write_policy_of

from drkit.mongo_binaries import mongo_binary
from tests.fixtures.mongodb import MongoServer, running_mongodb

_BATCH = 5_000
_BYTES_OF_ONE_SCALE = 2_500_000
_COLLECTIONS = (("small", 150), ("middle", 1_000), ("large", 20_000))
"""Documents of about so many bytes; each collection gets a third of all."""


def bench_mongo(scale: int, repeats: int) -> None:
    """Backup with digests against mongodump --archive | zstd -1 -T2 | age; then the peak of memory."""
    with _place(repeats) as (place, server):
        started_s = time.perf_counter()
        size = _fill(server, scale * _BYTES_OF_ONE_SCALE)
        print(f"  {size / 1e9:.2f} GB filled in {time.perf_counter() - started_s:.0f} s", flush=True)
        target, url = "engine: mongodb, databases: [b]", server.url.reveal()
        for name in ("digests", "counts"):
            write_policy_of(place, name, target, url, "{method: dump, via: tools}", fingerprint=name)
        write_policy_of(place, "native", target, url, "{method: dump, via: native, parallel: 4}", fingerprint="digests")
        best = place.alternately(
            {
                "pipe": lambda: _pipe(place, server),
                "drkit digests": lambda: place.drkit("backup", "digests"),
                "drkit counts": lambda: place.drkit("backup", "counts"),
                "drkit native": lambda: place.drkit("backup", "native"),
            }
        )
        report(f"MongoDB backup of {size / 1e9:.2f} GB", best, "pipe", {"drkit digests": 1.05})
        ratio = best["drkit native"] / best["drkit digests"]
        print(f"  drkit's own reading beside mongodump's, both with 4 collections at once: {ratio:.2f} x")
        for name, seconds in best.items():
            print(f"  {name:<16} {size / seconds / 1e6:6.1f} MB/s", flush=True)
        for words in (("backup", "digests"), ("backup", "native"), ("verify",)):
            print(
                f"  {' '.join(words):<16} peak {peak_kilobytes(place, *words) / 1024:6.1f} MiB   promised under 200 MB"
            )


@contextmanager
def _place(repeats: int) -> Iterator[tuple[Place, MongoServer]]:
    root = Path(__file__).parent.parent / ".tools"
    os.environ.setdefault("DRKIT_MONGO_BIN", f"{root}/bin:{root}/secantusdb/bin")
    with running_mongodb("--cache-size=1G", "--oplog-max-entries=1000") as server, bench_place(repeats) as place:
        yield place, server


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
