"""The C2SP CCTV vectors for age: the class of each failure, and exactly the plaintext that may escape before it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drkit import age
from drkit.age_header import encode_header, hkdf_sha256, parse_header, take_header
from drkit.errors import DrkitError

FOLDER = Path(__file__).parent / "age"
FAILURES: dict[str, type[DrkitError]] = {
    "header failure": age.HeaderDamaged,
    "HMAC failure": age.HeaderForged,
    "payload failure": age.PayloadDamaged,
    "armor failure": age.ArmorDamaged,
    "no match": age.NoIdentityMatches,
}
KNOWN_FIELDS = {"expect", "compressed", "payload", "identity", "passphrase", "armored", "file key", "comment"}
# Byte by byte through megabytes would take minutes and show nothing new: the middle of a long file goes in odd steps.
CREEP_BYTES = 70_001


@dataclass(frozen=True)
class Vector:
    name: str
    fields: dict[str, list[str]]
    content: bytes

    @property
    def expect(self) -> str:
        return self.fields["expect"][0]

    @property
    def identities(self) -> list[age.Identity]:
        keys = [age.parse_identity(text) for text in self.fields.get("identity", [])]
        return [*keys, *(age.ScryptIdentity(text) for text in self.fields.get("passphrase", []))]

    def binary(self) -> bytes:
        return age.dearmor(self.content) if "armored" in self.fields else self.content


def load(path: Path) -> Vector:
    head, _, content = path.read_bytes().partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode().splitlines():
        key, value = line.split(": ", 1)
        assert key in KNOWN_FIELDS
        fields.setdefault(key, []).append(value)
    return Vector(path.name, fields, zlib.decompress(content) if "compressed" in fields else content)


VECTORS = [load(path) for path in sorted(FOLDER.iterdir()) if path.name != "LICENSE"]
SUCCESSES = [vector for vector in VECTORS if vector.expect == "success"]
WELL_FORMED = [vector for vector in VECTORS if vector.expect not in ("header failure", "armor failure", "HMAC failure")]


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def whole(content: bytes) -> Iterator[bytes]:
    yield content


def byte_by_byte(content: bytes) -> Iterator[bytes]:
    yield from pieces(content[:CREEP_BYTES], 1)
    yield from pieces(content[CREEP_BYTES:-CREEP_BYTES], 65_551)
    yield from pieces(content[max(CREEP_BYTES, len(content) - CREEP_BYTES) :], 1)


def odd_pieces(content: bytes) -> Iterator[bytes]:
    """Every third piece is empty: an empty chunk is not the end of a stream."""
    for piece in pieces(content, 8_191):
        yield from (piece[:1_021], b"", piece[1_021:])


def named(vector: Vector) -> str:
    return vector.name


def test_the_set_is_complete() -> None:
    assert len(VECTORS) == 143
    assert {vector.expect for vector in VECTORS} == {"success", *FAILURES}


@pytest.mark.parametrize("chunking", [whole, byte_by_byte, odd_pieces])
@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_vector(vector: Vector, chunking: Callable[[bytes], Iterator[bytes]]) -> None:
    assert b"".join(chunking(vector.content)) == vector.content
    escaped = hashlib.sha256()
    outcome: type[DrkitError] | None = None
    try:
        for chunk in age.decrypt(chunking(vector.binary()), vector.identities):
            assert chunk
            escaped.update(chunk)
    except DrkitError as error:
        outcome = type(error)
    assert outcome is FAILURES.get(vector.expect)
    nothing = hashlib.sha256().hexdigest()
    assert escaped.hexdigest() == vector.fields.get("payload", [nothing])[0]


@pytest.mark.parametrize("vector", WELL_FORMED, ids=named)
def test_header_is_spelled_as_it_was_read(vector: Vector) -> None:
    raw, _, _ = take_header(iter([vector.binary()]))
    header = parse_header(raw)
    assert encode_header(header.stanzas, bytes.fromhex(vector.fields["file key"][0])) == raw


@pytest.mark.parametrize("chunks_per_block", [1, 4, 16])
@pytest.mark.parametrize("vector", SUCCESSES, ids=named)
def test_payload_is_sealed_as_it_was_written(vector: Vector, chunks_per_block: int) -> None:
    raw, nonce, rest = take_header(iter([vector.binary()]))
    plain = b"".join(age.decrypt([vector.binary()], vector.identities))
    key = hkdf_sha256(bytes.fromhex(vector.fields["file key"][0]), nonce, b"payload")
    assert b"".join(age._seal_payload([plain], key, chunks_per_block)) == rest
    assert age.sealed_size(len(plain), len(raw)) == len(vector.binary())


@pytest.mark.parametrize("vector", [vector for vector in SUCCESSES if "armored" in vector.fields], ids=named)
def test_armor_is_spelled_as_it_was_read(vector: Vector) -> None:
    assert age.armor(vector.binary()).splitlines() == vector.content.decode().strip().splitlines()
