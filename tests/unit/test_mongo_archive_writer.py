"""The writer of archives: what it writes is what mongodump writes, and what the reader reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.mongo_archive import Namespace, read_archive
from drkit.mongo_archive_writer import Batch, CollectionMetadata, Prelude, write_archive
from drkit.units import CHUNK_BYTES

GOLDEN = (Path(__file__).parent.parent / "data" / "mongodb" / "tiny.archive").read_bytes()
A, B = ("d", "a"), ("d", "b")
END = b"\xff\xff\xff\xff"


def prelude_of(*namespaces: Namespace) -> Prelude:
    return Prelude("8.0.4", "drkit", 4, [CollectionMetadata(item, "collection", "{}") for item in namespaces])


def documents_of(count: int, text: str = "") -> list[bytes]:
    return [bson.encode({"_id": number, "text": text}) for number in range(count)]


def written(batches: Sequence[Batch], *namespaces: Namespace) -> bytes:
    return b"".join(write_archive(prelude_of(*namespaces), batches))


def test_it_is_byte_for_byte_what_mongodump_wrote() -> None:
    found = read_archive(iter([GOLDEN]))
    texts = {item["collection"]: item for item in _metadata_of(GOLDEN)}
    metadata = [CollectionMetadata(("tiny", name), item["type"], item["metadata"]) for name, item in texts.items()]
    documents = b"".join(
        bson.encode({"_id": number, "name": name}) for number, name in enumerate(("Rock", "Jazz", "Metal"))
    )
    batches: list[Batch] = [(("tiny", name), None) for name in ("names", "empty")]
    batches += [(("tiny", "genre"), documents), (("tiny", "genre"), None)]
    archive = b"".join(write_archive(Prelude(found.server_version, found.tool_version, 4, metadata), batches))
    assert archive == GOLDEN


def _metadata_of(archive: bytes) -> list[dict[str, str]]:
    prelude = archive[4 : archive.index(END)]
    return bson.decode_all(prelude)[1:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(1, 5)), max_size=12))
def test_however_batches_are_mixed_the_reader_finds_them_all(order: list[tuple[Namespace, int]]) -> None:
    batches: list[Batch] = [(namespace, b"".join(documents_of(count))) for namespace, count in order]
    found = read_archive(iter([written([*batches, (A, None), (B, None)], A, B)]))
    expected = {name: sum(count for namespace, count in order if namespace[1] == name) for name in ("a", "b")}
    assert {item.name: item.documents for item in found.collections} == expected


def test_chunks_are_about_a_mebibyte_however_large_the_batches() -> None:
    large = b"".join(documents_of(5, "x" * 3_000_000))
    small: list[Batch] = [(B, document) for document in documents_of(50)]
    chunks = list(write_archive(prelude_of(A, B), [(A, large), *small, (A, None), (B, None)]))
    assert max(map(len, chunks)) < CHUNK_BYTES + 1000
    assert len(chunks) == len(large) // CHUNK_BYTES + 1
    assert [item.documents for item in read_archive(iter(chunks)).collections] == [5, 50]


@pytest.mark.parametrize("documents", [0, 1])
def test_a_checksum_with_its_highest_bit_is_written_as_a_negative_number(documents: int) -> None:
    seen = set()
    for number in range(40):
        batch = bson.encode({"_id": number}) * documents
        archive = written([(A, batch)] * documents + [(A, None)], A)
        assert read_archive(iter([archive])).collections[0].documents == documents
        seen.add(bson.decode(archive[_last_header(archive) : -4])["CRC"] < 0)
    assert seen == ({True, False} if documents else {False})


def _last_header(archive: bytes) -> int:
    return archive.rindex(END, 0, -4) + 4
