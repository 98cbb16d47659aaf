"""Archives that somebody changed: whatever it is, an IntegrityError or the truth comes of it, in bounded memory."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.errors import IntegrityError
from drkit.mongo_archive import MAGIC, ArchiveReader, ArchiveSummary, CollectionSummary, Namespace
from drkit.mongo_archive_writer import Batch, CollectionMetadata, Prelude, write_archive

END = b"\xff\xff\xff\xff"
DOCUMENTS = [bson.encode({"_id": number, "n": number}) for number in range(2)]
A = ("d", "a")


def golden() -> bytes:
    batches: list[Batch] = [(A, b"".join(DOCUMENTS)), (A, None)]
    return b"".join(write_archive(Prelude("8", "t", 1, [CollectionMetadata(A, "collection", "{}")]), batches))


GOLDEN = golden()
DOCUMENTS_BEGIN = GOLDEN.index(END) + len(END)


class Collected:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []

    def begin(self, collections: Sequence[CollectionSummary]) -> None:
        self.definitions = collections

    def take(self, namespace: Namespace, documents: bytes, ends: Sequence[int]) -> None:
        self.documents += [documents[start:end] for start, end in itertools.pairwise((0, *ends))]


def read(data: bytes) -> tuple[ArchiveSummary, list[bytes]]:
    sink = Collected()
    reader = ArchiveReader(sink=sink)
    reader.feed(data)
    return reader.finish(), sink.documents


TRUTH, TAKEN = read(GOLDEN)


def require_refused_or_true(data: bytes, what: str) -> None:
    try:
        found, documents = read(data)
    except IntegrityError:
        return
    assert documents == TAKEN, f"{what} and nobody noticed"
    assert [item.digest for item in found.collections] == [item.digest for item in TRUTH.collections]


def test_every_value_of_every_byte_is_refused_or_does_not_matter() -> None:
    for position in range(len(GOLDEN)):
        for value in range(256):
            changed = GOLDEN[:position] + bytes([value]) + GOLDEN[position + 1 :]
            if changed != GOLDEN:
                require_refused_or_true(changed, f"byte {position} became {value}")


def _refused(data: bytes) -> bool:
    with contextlib.suppress(IntegrityError):
        read(data)
        return False
    return True


def test_every_cut_and_every_byte_too_few_or_too_many_is_refused() -> None:
    for position in range(len(GOLDEN)):
        assert _refused(GOLDEN[:position]), f"cut at {position}"
        require_refused_or_true(GOLDEN[:position] + GOLDEN[position + 1 :], f"byte {position} was taken out")
        require_refused_or_true(GOLDEN[:position] + b"\0" + GOLDEN[position:], f"a byte was put in at {position}")
    assert _refused(GOLDEN + b"\0")
    assert _refused(GOLDEN + GOLDEN[DOCUMENTS_BEGIN:])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN)), st.integers(0, 40), st.binary(max_size=40)), max_size=4))
def test_pieces_of_noise_are_refused_or_do_not_matter(edits: list[tuple[int, int, bytes]]) -> None:
    data = GOLDEN
    for at, drop, noise in edits:
        data = data[:at] + noise + data[at + drop :]
    require_refused_or_true(data, "noise came in")


def metadata(number: int, text: str) -> bytes:
    return bson.encode({"db": "d", "collection": str(number), "metadata": text, "size": 0, "type": "collection"})


def begun() -> bytes:
    return MAGIC + bson.encode({"version": "0.1"})


def endless_prelude() -> Iterator[bytes]:
    yield begun()
    text = json.dumps({"options": "x" * 1_000_000})
    for number in itertools.count():
        yield metadata(number, text)


def endless_document() -> Iterator[bytes]:
    yield GOLDEN[: GOLDEN.index(DOCUMENTS[0])]
    yield struct.pack("<i", (16 << 20) + (16 << 10))
    while True:
        yield b"\1" * (1 << 20)


def endless_header() -> Iterator[bytes]:
    yield MAGIC + struct.pack("<i", 16 << 20)
    while True:
        yield b"\1" * (1 << 20)


def deep_metadata() -> Iterator[bytes]:
    yield begun() + metadata(1, "[" * 4_000_000)


@pytest.mark.parametrize(
    ("chunks", "most_bytes"),
    [(endless_prelude, 700 << 20), (endless_document, 80 << 20), (endless_header, 4 << 20), (deep_metadata, 80 << 20)],
)
def test_what_has_no_end_is_refused_before_it_fills_the_memory(
    chunks: Callable[[], Iterator[bytes]], most_bytes: int
) -> None:
    reader = ArchiveReader()
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            collections.deque(map(reader.feed, chunks()), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()
