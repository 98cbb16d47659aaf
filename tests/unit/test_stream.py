"""The stages of the data path: nothing lost, nothing taken for an end that is none, nobody kept waiting."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from drkit.errors import IntegrityError, SourceError, StoreError
from drkit.process import Command, open_producer
from drkit.stream import Meter, checked, compress, decompress, prefetch
from drkit.units import CHUNK_BYTES

# The same noise every time: names of tests come from sizes, and all processes of a run have to agree on them.
TEXT = [b"some text that is easily compressed " * 3000, random.Random(1).randbytes(300_000), b"", b"end"]
PLAIN = b"".join(TEXT)
PACKED = b"".join(compress(TEXT, 1))


def wait_until_gone(thread: threading.Thread) -> None:
    thread.join(timeout=5)
    assert not thread.is_alive()


def stages() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "prefetch"}


class TestMeter:
    def test_measures_and_changes_nothing(self) -> None:
        seen: list[int] = []
        meter = Meter(seen.append)
        assert list(meter.measure(TEXT)) == TEXT
        assert meter.size_bytes == len(PLAIN) == sum(seen)

    def test_a_longer_stream_is_refused_as_soon_as_it_is_longer(self) -> None:
        def endless() -> Iterator[bytes]:
            while True:
                yield b"x"

        with pytest.raises(IntegrityError, match="this is longer than the 5 bytes"):
            list(checked(endless(), Meter(), size_bytes=5, sha256="", what="this"))

    def test_a_shorter_stream_and_another_one_are_refused(self) -> None:
        meter = Meter()
        list(meter.measure([b"abc"]))
        with pytest.raises(IntegrityError, match="this has 2 bytes, 3 were recorded"):
            list(checked([b"ab"], Meter(), size_bytes=3, sha256=meter.sha256, what="this"))
        with pytest.raises(IntegrityError, match="this has SHA-256"):
            list(checked([b"abd"], Meter(), size_bytes=3, sha256=meter.sha256, what="this"))
        assert list(checked([b"abc"], Meter(), size_bytes=3, sha256=meter.sha256, what="this")) == [b"abc"]


class TestCompression:
    def test_there_and_back(self) -> None:
        for size in (1, 17, CHUNK_BYTES):
            pieces = (PACKED[start : start + size] for start in range(0, min(len(PACKED), 4000 * size), size))
            if 4000 * size >= len(PACKED):
                assert b"".join(decompress(pieces)) == PLAIN

    def test_nothing_is_a_frame_too(self) -> None:
        assert b"".join(decompress(compress([], 1))) == b""

    def test_one_frame_with_a_checksum(self) -> None:
        assert PACKED[:4] == b"\x28\xb5\x2f\xfd"
        assert PACKED[4] & 0b100  # Content_Checksum_flag, RFC 8878 section 3.1.1.1.1.5
        assert PACKED.count(b"\x28\xb5\x2f\xfd") == 1

    @pytest.mark.parametrize("pieces", [1, 2, 3])
    def test_one_piece_or_several(self, pieces: int) -> None:
        step = -(-len(PLAIN) // pieces)
        packed = b"".join(compress((PLAIN[start : start + step] for start in range(0, len(PLAIN), step)), 1))
        assert packed[4] & 0b100  # Content_Checksum_flag
        assert b"".join(decompress([packed])) == PLAIN
        with pytest.raises(IntegrityError):
            list(decompress([packed[:-1]]))

    def test_small_pieces_are_joined(self) -> None:
        noise = os.urandom(3 * CHUNK_BYTES)
        pieces = [noise[start : start + 1000] for start in range(0, len(noise), 1000)]
        for piece_bytes in (CHUNK_BYTES, CHUNK_BYTES // 4):
            packed = list(compress(pieces, 1, piece_bytes=piece_bytes))
            assert all(piece_bytes <= len(chunk) < 2 * CHUNK_BYTES for chunk in packed[:-1])
            assert b"".join(decompress(packed)) == noise

    @pytest.mark.parametrize("cut", [0, 1, 4, 5, 100, len(PACKED) - 4, len(PACKED) - 1])
    def test_truncation(self, cut: int) -> None:
        with pytest.raises(IntegrityError, match="ends too early"):
            list(decompress([PACKED[:cut]]))

    @pytest.mark.parametrize("rest", [[PACKED], [b"x"], [b"\0"]])
    def test_bytes_after_the_frame(self, rest: list[bytes]) -> None:
        with pytest.raises(IntegrityError, match="after the end"):
            list(decompress([PACKED, *rest]))
        with pytest.raises(IntegrityError, match="after the end"):
            list(decompress([PACKED + b"".join(rest)]))

    # Not byte 5: a larger window changes nothing of what comes out.
    @pytest.mark.parametrize("place", [0, 6, 50, len(PACKED) // 2, len(PACKED) - 1])
    def test_a_flipped_bit(self, place: int) -> None:
        damaged = bytearray(PACKED)
        damaged[place] ^= 1
        with pytest.raises(IntegrityError):
            list(decompress([bytes(damaged)]))

    def test_a_bomb_comes_in_chunks(self) -> None:
        """A small object cannot fill memory: a gigabyte of zeros in 33 kB, read with 24 MB at the most."""
        program = """
import resource, sys
from drkit.stream import compress, decompress
bomb = list(compress((bytes(1 << 20) for _ in range(1000)), 1))
assert sum(map(len, bomb)) < 1 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
largest = total = 0
for chunk in decompress(bomb):
    largest, total = max(largest, len(chunk)), total + len(chunk)
print(largest, total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        largest, total, grown_kib = map(int, done.stdout.split())
        assert largest <= CHUNK_BYTES
        assert total == 1000 << 20
        assert grown_kib < 24 * 1024


class TestPrefetch:
    def test_order(self) -> None:
        chunks = [bytes([number % 256]) for number in range(1000)]
        with prefetch(chunks) as one, prefetch(one) as other:
            assert list(other) == chunks

    def test_no_more_than_so_far_ahead(self) -> None:
        made: list[int] = []

        def source() -> Iterator[bytes]:
            for number in range(100):
                made.append(number)
                yield b"x"

        with prefetch(source(), depth=3) as ahead:
            next(ahead)
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                assert len(made) <= 1 + 3 + 1
                time.sleep(0.01)
        assert len(made) == 5

    def test_an_error_comes_after_what_came_before_it(self) -> None:
        def failing() -> Iterator[bytes]:
            yield b"one"
            raise SourceError("the source broke")

        with prefetch(failing()) as one, prefetch(one) as other:
            assert next(other) == b"one"
            with pytest.raises(SourceError, match="the source broke"):
                next(other)

    def test_leaving_early_closes_the_source(self) -> None:
        closed = threading.Event()

        def source() -> Iterator[bytes]:
            try:
                while True:
                    yield b"x"
            finally:
                closed.set()

        before = stages()
        with prefetch(source()) as ahead:
            next(ahead)
            (stage,) = stages() - before
        assert closed.is_set()
        wait_until_gone(stage)

    def test_a_source_that_is_stuck_keeps_nobody_waiting(self) -> None:
        """The stage that reads from a stuck one is woken by an error that cannot be taken for the end."""
        release, ends = threading.Event(), []

        def stuck() -> Iterator[bytes]:
            yield b"one"
            release.wait(60)

        def watching(chunks: Iterator[bytes]) -> Iterator[bytes]:
            try:
                yield from chunks
            except BaseException as error:
                ends.append(type(error).__name__)
                raise
            ends.append("end")

        before = stages()
        began_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(prefetch(stuck()))
            other = stack.enter_context(prefetch(watching(one)))
            assert next(other) == b"one"
            first, second = sorted(stages() - before, key=lambda thread: thread.native_id or 0)
        assert time.monotonic() - began_s < 20
        wait_until_gone(second)
        assert ends == ["Abandoned"]
        release.set()
        wait_until_gone(first)

    def test_stages_run_in_the_readers_thread_until_there_is_a_processor_for_them(self) -> None:
        threads: list[str] = []

        def source() -> Iterator[bytes]:
            for number in range(8):
                threads.append(threading.current_thread().name)
                yield bytes([number])

        spare, before = threading.Event(), stages()
        with prefetch(source(), spare=spare) as one, prefetch(one, spare=spare) as other:
            got = [next(other), next(other)]
            assert stages() == before
            spare.set()
            got += other
        assert got == [bytes([number]) for number in range(8)]
        mine = threading.current_thread().name
        assert threads[:2] == [mine, mine]
        assert threads[3:] == ["prefetch"] * 5

    @pytest.mark.parametrize("handed_over", [False, True])
    def test_leaving_early_closes_a_source_that_runs_in_the_readers_thread(self, *, handed_over: bool) -> None:
        closed, spare, before = threading.Event(), threading.Event(), stages()

        def source() -> Iterator[bytes]:
            try:
                while True:
                    yield b"x"
            finally:
                closed.set()

        with prefetch(source(), spare=spare) as ahead:
            next(ahead)
            if handed_over:
                spare.set()
                next(ahead)
        assert closed.wait(10)
        for stage in stages() - before:
            wait_until_gone(stage)

    def test_an_error_in_the_readers_thread_is_raised_to_the_reader(self) -> None:
        def failing() -> Iterator[bytes]:
            yield b"one"
            raise SourceError("the source broke")

        spare = threading.Event()
        with prefetch(failing(), spare=spare) as one, prefetch(one, spare=spare) as other:
            assert next(other) == b"one"
            with pytest.raises(SourceError, match="the source broke"):
                next(other)

    def test_a_child_that_is_stuck_is_ended_when_the_store_fails(self) -> None:
        before = stages()
        began_s = time.monotonic()
        command = Command(["/bin/sh", "-c", "head -c 2000000 /dev/zero; exec sleep 600"])
        with (
            pytest.raises(StoreError),
            open_producer(command, idle_timeout_s=600) as child,
            prefetch(child.chunks()) as ahead,
            prefetch(compress(ahead, 1)),
        ):
            raise StoreError("the store is full")
        assert time.monotonic() - began_s < 30
        assert child.status is not None
        for stage in stages() - before:
            wait_until_gone(stage)
