"""Uploads and reads of any length take the same memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

from tests.fixtures.s3 import SMALLEST_PART_BYTES, S3Server

MIB = 1 << 20
IN_FLIGHT = 2 * SMALLEST_PART_BYTES


def fresh(chunks: int) -> Iterator[bytes]:
    for number in range(chunks):
        yield bytes([number % 256]) * MIB


def test_memory_does_not_grow_with_the_object(versitygw_server: S3Server) -> None:
    store = versitygw_server.store(versitygw_server.bucket(), in_flight_bytes=IN_FLIGHT)
    store.put("warm", [b"1"])
    tracemalloc.start()
    try:
        store.put("large", fresh(80))
        with store.open("large") as chunks:
            size_bytes = sum(map(len, chunks))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size_bytes == 80 * MIB
    # Parts in flight, the one that waits for its turn, the next one's pieces, and what the HTTP library holds.
    assert peak_bytes < IN_FLIGHT + 2 * SMALLEST_PART_BYTES + 6 * MIB
