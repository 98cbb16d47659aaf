"""The stages of the data path: generators of bytes, composed by nesting, joined by threads where it pays.

    backup   source -> Meter (plain) -> compress -> age.encrypt -> Meter (stored) -> store.put
    restore  store.open -> Meter (stored) -> age.decrypt -> decompress -> Meter (plain) -> engine

Chunks are about a mebibyte: Python's cost is per call, and zstd, the AEAD, SHA-256 and system calls all release the
interpreter lock, so `prefetch` between two stages lets them run on two cores.
"""

from __future__ import annotations

import hashlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain

from drkit.errors import IntegrityError
from drkit.units import CHUNK_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_END = object()
_MARK_BYTES = 4 * CHUNK_BYTES
_POLL_S = 0.1
_ABANDON_S = 1.0


class Abandoned(Exception):
    """The stream was given up by whoever opened it; raised to a stage that still waits for more of it."""


class Meter:
    """Counts and hashes what passes through, and changes nothing."""

    def __init__(self, advance: Callable[[int], object] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._advance = advance
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """Return the digest of what has passed so far, in hex."""
        return self._hash.hexdigest()

    def measure(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass ``chunks`` on, counted and hashed."""
        for chunk in chunks:
            self._hash.update(chunk)
            self.size_bytes += len(chunk)
            if self._advance:
                self._advance(len(chunk))
            yield chunk


class Marks:
    """The digests of a stream's beginnings, noted every few mebibytes while it is read and judged as a whole.

    With them a second reading is trusted piece by piece: whoever changes the object between the two is found out before
    his bytes are used, not after. They take 40 bytes for each 4 MiB.
    """

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._digests: list[bytes] = []

    def note(self, chunks: Iterable[bytes], meter: Meter) -> Iterator[bytes]:
        """Pass on ``chunks``, which ``meter`` has measured, and note them; the notes count once the end has come."""
        for chunk in chunks:
            if meter.size_bytes >= (self._ends[-1] if self._ends else 0) + _MARK_BYTES:
                self._add(meter)
            yield chunk
        self._add(meter)

    def _add(self, meter: Meter) -> None:
        self._ends.append(meter.size_bytes)
        self._digests.append(bytes.fromhex(meter.sha256))

    def recall(self, chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
        """Pass the same stream on; raise IntegrityError naming ``what`` before any byte that was not noted."""
        changed = IntegrityError(f"{what} was changed after it had been verified")
        digest, position = hashlib.sha256(), 0
        source, rest = iter(chunks), b""
        for end, expected in zip(self._ends, self._digests, strict=True):
            held: list[bytes] = []
            while position < end:
                rest = rest or next(source, b"")
                if not rest:
                    raise changed
                held.append(rest[: end - position])
                rest = rest[end - position :]
                digest.update(held[-1])
                position += len(held[-1])
            if digest.digest() != expected:
                raise changed
            yield from held
        if rest or next(source, b""):
            raise changed


def checked(chunks: Iterable[bytes], meter: Meter, *, size_bytes: int, sha256: str, what: str) -> Iterator[bytes]:
    """Pass ``chunks`` through ``meter``; raise IntegrityError naming ``what`` at the end unless they are as recorded.

    Too many bytes are noticed as soon as they come, so a substituted object cannot make the reader swallow more.
    """
    for chunk in meter.measure(chunks):
        if meter.size_bytes > size_bytes:
            raise IntegrityError(f"{what} is longer than the {size_bytes:,} bytes that were recorded")
        yield chunk
    if meter.size_bytes != size_bytes:
        raise IntegrityError(f"{what} has {meter.size_bytes:,} bytes, {size_bytes:,} were recorded")
    if meter.sha256 != sha256:
        raise IntegrityError(f"{what} has SHA-256 {meter.sha256[:12]}…, {sha256[:12]}… was recorded")


def compress(chunks: Iterable[bytes], level: int, *, piece_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Compress into one zstd frame with a content checksum (R3: zstd accepts a cut between two frames).

    What comes out is joined to pieces of at least ``piece_bytes``, but for the last.
    """
    compressor = zstd.ZstdCompressor(
        options={zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: 1}
    )
    yield from in_chunks(_compressed(chunks, compressor), piece_bytes)


def _compressed(chunks: Iterable[bytes], compressor: zstd.ZstdCompressor) -> Iterator[bytes]:
    """Compress a stream, or what comes in one piece where it lies: zstd copies a stream into a window of its own."""
    stream = iter(chunks)
    first, second = next(stream, b""), next(stream, None)
    if second is None:
        yield compressor.compress(first, zstd.ZstdCompressor.FLUSH_FRAME)
        return
    for chunk in chain((first, second), stream):
        yield compressor.compress(chunk)
    yield compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)


def in_chunks(pieces: Iterable[bytes], chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Join small pieces until they make a chunk, of a mebibyte where nothing else is asked for."""
    held: list[bytes] = []
    held_bytes = 0
    for piece in pieces:
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes >= chunk_bytes:
            yield b"".join(held)
            held, held_bytes = [], 0
    if held_bytes:
        yield b"".join(held)


def decompress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress exactly one zstd frame; raise IntegrityError for damage, an early end, or bytes after the frame.

    Output comes in chunks of at most a mebibyte whatever the compression ratio, so a small object cannot fill memory.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        for chunk in chunks:
            if decompressor.eof:
                raise IntegrityError("there are bytes after the end of the compressed data")
            yield from _decompressed(decompressor, chunk)
    except zstd.ZstdError as error:
        raise IntegrityError(f"the compressed data is damaged: {error}") from error
    if not decompressor.eof:
        raise IntegrityError("the compressed data ends too early")
    if decompressor.unused_data:
        raise IntegrityError("there are bytes after the end of the compressed data")


def _decompressed(decompressor: zstd.ZstdDecompressor, chunk: bytes) -> Iterator[bytes]:
    while True:
        piece = decompressor.decompress(chunk, CHUNK_BYTES)
        if piece:
            yield piece
        if decompressor.eof or decompressor.needs_input:
            return
        chunk = b""


@contextmanager
def prefetch(
    chunks: Iterable[bytes], depth: int = 4, *, spare: threading.Event | None = None
) -> Iterator[Iterator[bytes]]:
    """Run the stages behind ``chunks`` in a thread of their own, up to ``depth`` chunks ahead.

    What they raise is raised to the reader. When the context ends early the thread stops at its next chunk and closes
    the generators behind it. A thread that is stuck in a read then is left to the owner of that pipe or connection,
    whose own context ends right after this one and wakes it. A stage in another thread that still waits for a chunk is
    woken by `Abandoned`, never by something that looks like the end.

    With ``spare`` the stages run in the reader's own thread until it is set: while every processor has a stream of its
    own, handing chunks from thread to thread only costs. What one thread just hashed is in its processor's cache when
    it compresses it.
    """
    ready: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopping = threading.Event()
    iterator = iter(chunks)
    worker = threading.Thread(target=_run_ahead, args=(iterator, ready, stopping), name="prefetch", daemon=True)
    if spare is None:
        worker.start()
    try:
        yield _received(ready, stopping) if spare is None else _relayed(iterator, spare, worker, ready, stopping)
    finally:
        stopping.set()
        if worker.ident is not None:
            worker.join(timeout=_ABANDON_S)
        else:
            with suppress(ValueError):  # whoever reads it is stuck in it
                _close(iterator)


def _relayed(
    iterator: Iterator[bytes],
    spare: threading.Event,
    worker: threading.Thread,
    ready: queue.Queue[object],
    stopping: threading.Event,
) -> Iterator[bytes]:
    """Read ``iterator`` here, and leave the rest of it to the worker as soon as there is a processor for it."""
    for chunk in iterator:
        yield chunk
        if spare.is_set():
            worker.start()
            yield from _received(ready, stopping)
            return


def _run_ahead(iterator: Iterator[bytes], ready: queue.Queue[object], stopping: threading.Event) -> None:
    try:
        for chunk in iterator:
            if not _offer(ready, chunk, stopping):
                break
        else:
            _offer(ready, _END, stopping)
    except BaseException as error:  # noqa: BLE001 - carried over to the reader's thread, which raises it
        _offer(ready, error, stopping)
    finally:
        _close(iterator)


def _close(iterator: Iterator[bytes]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


def _offer(ready: queue.Queue[object], item: object, stopping: threading.Event) -> bool:
    while not stopping.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False


def _received(ready: queue.Queue[object], stopping: threading.Event) -> Iterator[bytes]:
    while (item := _take(ready, stopping)) is not _END:
        if isinstance(item, BaseException):
            raise item
        assert isinstance(item, bytes)
        yield item


def _take(ready: queue.Queue[object], stopping: threading.Event) -> object:
    while True:
        try:
            return ready.get(timeout=_POLL_S)
        except queue.Empty:
            if stopping.is_set():
                raise Abandoned from None


def drain(chunks: Iterable[bytes]) -> None:
    """Read everything and keep nothing."""
    for _ in chunks:
        pass


def single(content: bytes) -> Sequence[bytes]:
    """Present a small object as a stream."""
    return [content]
