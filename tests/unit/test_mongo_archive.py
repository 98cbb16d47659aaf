"""The reader of mongodump's archives: what it counts, what it refuses, and that nothing else ever comes out of it."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import tracemalloc
from pathlib import Path

import bson
import pytest
from fastcrc import crc64
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.bson_elements import LARGEST_DOCUMENT_BYTES
from drkit.errors import IntegrityError
from drkit.mongo_archive import MAGIC, ArchiveReader, ArchiveSummary, read_archive
from drkit.mongo_ids import Identifiers

GOLDEN = (Path(__file__).parent.parent / "data" / "mongodb" / "tiny.archive").read_bytes()
DOCUMENTS = [bson.encode({"_id": number, "name": name}) for number, name in enumerate(("Rock", "Jazz", "Metal"))]
END = b"\xff\xff\xff\xff"


def read(data: bytes, size: int = 1 << 20) -> ArchiveSummary:
    """Read an archive in chunks of ``size`` bytes."""
    return read_archive(data[start : start + size] for start in range(0, len(data), size))


def digest_of(documents: list[bytes]) -> str:
    """Return the digest of a collection as docs/format.md defines it."""
    return f"{sum(int.from_bytes(hashlib.sha256(item).digest()) for item in documents) % 2**256:064x}"


def header(name: str, *, documents: list[bytes] | None = None) -> bytes:
    """Return the header of a block, or with ``documents`` the one that closes the collection."""
    crc = struct.unpack("<q", struct.pack("<Q", crc64.xz(b"".join(documents or []))))[0]
    return bson.encode({"db": "d", "collection": name, "EOF": documents is not None, "CRC": bson.Int64(crc)})


def archive(*blocks: bytes, names: tuple[str, ...] = ("a",), kind: str = "collection", metadata: str = "{}") -> bytes:
    """Return an archive with these blocks."""
    prelude = [bson.encode({"concurrent_collections": 4, "version": "0.1", "server_version": "8.0"})]
    prelude += [bson.encode({"db": "d", "collection": n, "metadata": metadata, "size": 0, "type": kind}) for n in names]
    return MAGIC + b"".join(prelude) + END + b"".join(blocks)


def block(name: str, *documents: bytes) -> bytes:
    """Return one block of documents."""
    return header(name) + b"".join(documents) + END


def close(name: str, *documents: bytes) -> bytes:
    """Return the block that closes a collection."""
    return header(name, documents=list(documents)) + END


def test_an_archive_of_the_real_tool_is_counted_and_digested() -> None:
    found = read(GOLDEN)
    assert (found.server_version, found.tool_version) == ("8.2.11", "100.18.0")
    facts = {item.name: (item.database, item.kind, item.documents) for item in found.collections}
    assert facts == {
        "genre": ("tiny", "collection", 3),
        "empty": ("tiny", "collection", 0),
        "names": ("tiny", "view", 0),
    }
    genre = next(item for item in found.collections if item.name == "genre")
    assert genre.digest == digest_of(DOCUMENTS)
    assert {index["name"] for index in genre.definition["indexes"]} == {"_id_", "name_1"}
    assert len(genre.definition["uuid"]) == 32


@pytest.mark.parametrize("size", [1, 3, 7, 64, 1000])
def test_the_size_of_the_chunks_does_not_matter(size: int) -> None:
    assert read(GOLDEN, size) == read(GOLDEN)


def test_digests_are_left_out_when_only_counts_are_wanted() -> None:
    assert {item.digest for item in read_archive(iter([GOLDEN]), digests=False).collections} == {None}


def test_interleaved_blocks_are_put_together_and_their_order_does_not_matter() -> None:
    one, two, three = DOCUMENTS
    straight = archive(block("a", one, two, three), close("a", one, two, three), close("b"), names=("a", "b"))
    mixed = archive(
        block("a", two), block("b"), block("a", three, one), close("b"), close("a", two, three, one), names=("a", "b")
    )
    assert read(straight).collections == read(mixed).collections


def test_buckets_of_a_time_series_count_for_it() -> None:
    data = archive(
        block("system.buckets.a", *DOCUMENTS), close("system.buckets.a", *DOCUMENTS), names=("a",), kind="timeseries"
    )
    (found,) = read(data).collections
    assert (found.name, found.kind, found.documents) == ("a", "timeseries", 3)


def test_the_order_of_a_capped_collection_counts_and_of_no_other() -> None:
    one, two, three = DOCUMENTS

    def order(*documents: bytes, metadata: str = '{"options":{"capped":true}}') -> str | None:
        data = archive(block("a", *documents), close("a", *documents), metadata=metadata)
        (found,) = read(data, 100).collections
        assert (found.digest, found.size_bytes) == (digest_of(DOCUMENTS), sum(map(len, DOCUMENTS)))
        return found.order_digest

    assert order(one, two, three) == hashlib.sha256(one + two + three).hexdigest()
    assert order(one, three, two) != order(one, two, three)
    assert order(one, two, three, metadata='{"options":{"capped":false}}') is None


def test_a_document_without_an_id_of_its_own_is_damage_where_it_is_asked_for() -> None:
    nameless = bson.encode({"name": "Polka"})
    for wrong, words in [(nameless, "collection d.a has a document without _id"), (DOCUMENTS[1], "has an _id twice")]:
        data = archive(block("a", *DOCUMENTS, wrong), close("a", *DOCUMENTS, wrong))
        assert read(data).collections[0].documents == 4
        with pytest.raises(IntegrityError, match=words):
            read_archive(iter([data]), identifiers=Identifiers())
    read_archive(iter([GOLDEN]), identifiers=Identifiers())


def test_one_id_may_be_in_two_collections() -> None:
    data = archive(
        block("a", DOCUMENTS[0]),
        block("b", DOCUMENTS[0]),
        close("a", DOCUMENTS[0]),
        close("b", DOCUMENTS[0]),
        names=("a", "b"),
    )
    read_archive(iter([data]), identifiers=Identifiers())


def test_every_cut_is_noticed() -> None:
    for length in range(len(GOLDEN)):
        with pytest.raises(IntegrityError, match="archive is damaged"):
            read(GOLDEN[:length])


def test_every_changed_byte_is_noticed_where_documents_are_and_harmless_elsewhere() -> None:
    documents_begin = GOLDEN.index(END) + len(END)
    whole = read(GOLDEN)
    for position in range(len(GOLDEN)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(GOLDEN)
            changed[position] ^= mask
            try:
                found = read(bytes(changed))
            except IntegrityError:
                continue
            assert position < documents_begin, f"byte {position} was changed and nobody noticed"
            assert [item.digest for item in found.collections] == [item.digest for item in whole.collections]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(GOLDEN)), st.integers(0, 300))
def test_whatever_is_put_in_comes_out_as_an_integrity_error_or_a_summary(noise: bytes, at: int, drop: int) -> None:
    data = GOLDEN[:at] + noise + GOLDEN[at + drop :]
    with contextlib.suppress(IntegrityError):
        read(data, 97)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b\x08\x00", "does not begin like one"),
        (MAGIC + bson.encode({"version": "0.2"}), "format is '0.2'"),
        (archive(close("b"), close("a")), "d.b has documents and is not listed"),
        (archive(names=("a", "a")), "listed twice"),
        (archive(close("a"), block("a", DOCUMENTS[0])), "goes on after its end"),
        (archive(block("a", DOCUMENTS[0]), close("a", DOCUMENTS[1])), "not those that were dumped"),
        (archive(header("a", documents=[]) + DOCUMENTS[0] + END), "the end of collection d.a has documents"),
        (archive(header("a") + struct.pack("<i", LARGEST_DOCUMENT_BYTES + 1)), "says it has 16,793,601 bytes"),
        (archive(header("a") + b"\x05\x00\x00\x00\x01"), "has no end"),
        (archive(END), "a block has no header"),
        (archive(close("a")) + b"\x00", "ends in the middle"),
        (archive(), "ends before collection d.a does"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        read(data)


def test_memory_does_not_grow_with_the_archive() -> None:
    document = bson.encode({"_id": 1, "text": "x" * 1000})
    reader = ArchiveReader()
    reader.feed(archive(header("a")))
    piece = document * 1000
    reader.feed(piece)
    tracemalloc.start()
    for _ in range(30):
        reader.feed(piece[:-7])
        reader.feed(piece[-7:])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * len(piece)
