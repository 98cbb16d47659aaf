"""What we sent, piece by piece: parts, their digests, and the checksum that the store should then name."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drkit.model import Checksum
from drkit.units import MIB

_EQUAL_PARTS = 5_000
_PARTS_PER_DOUBLING = 500
_LARGEST_PART_BYTES = 5 << 30


def part_size_bytes(index: int, first_bytes: int = 8 * MIB) -> int:
    """Return the size of part ``index`` (from 0) so that 10,000 parts suffice for a stream of any length.

    5,000 equal parts (40 GiB of 8 MiB each), then twice as large every 500 parts: more than 5 TiB in all. Memory is
    constant for the equal ones; a stream of terabytes needs parts of hundreds of MiB, however it is cut.
    """
    doublings = 0 if index < _EQUAL_PARTS else (index - _EQUAL_PARTS) // _PARTS_PER_DOUBLING + 1
    return min(first_bytes << doublings, _LARGEST_PART_BYTES)


def cut(chunks: Iterable[bytes], size_of: Callable[[int], int]) -> Iterator[bytes]:
    """Yield parts of exactly ``size_of(index)`` bytes, the last one shorter; an empty stream is one empty part."""
    index, held_bytes = 0, 0
    held: list[bytes] = []
    for chunk in chunks:
        start = 0
        while held_bytes + len(chunk) - start >= size_of(index):
            end = start + size_of(index) - held_bytes
            held.append(chunk[start:end])
            yield _joined(held)
            index, held_bytes, start = index + 1, 0, end
        if start < len(chunk):
            held.append(chunk[start:])
            held_bytes += len(chunk) - start
    if held or index == 0:
        yield _joined(held)


def _joined(held: list[bytes]) -> bytes:
    """Return the pieces as one, and let go of them before the part is waited for."""
    part = b"".join(held)
    held.clear()
    return part


@dataclass(frozen=True)
class Algorithm:
    """A digest that a request carries, so that the server refuses bytes that were damaged on the way.

    ``name`` is what the server calls an algorithm that it also keeps; Content-MD5 is only looked at and forgotten.
    """

    field: str
    digest: Callable[[bytes], bytes]
    name: Literal["SHA256", "CRC32"] | None = None

    def argument(self, digest: bytes) -> dict[str, str]:
        """Return the argument that a request of a body with that digest has."""
        return {self.field: _text(digest)}


def _sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _crc32(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big")


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


ALGORITHMS = (
    Algorithm("ChecksumSHA256", _sha256, "SHA256"),
    Algorithm("ChecksumCRC32", _crc32, "CRC32"),
    Algorithm("ContentMD5", _md5),
)
"""In order of preference; a server that refuses one is asked with the next."""


@dataclass(frozen=True)
class Content:
    """The bytes of one object that was sent, by its parts' digests: enough to recognise them in the store again."""

    algorithm: Algorithm
    size_of: Callable[[int], int]
    multipart: bool
    size_bytes: int
    digests: Sequence[bytes]

    @property
    def checksum(self) -> Checksum | None:
        """Return what the store should name when asked, or None when it keeps no checksum of this kind.

        For a multipart object that is the digest of the parts' digests, with their count:
        https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
        """
        if self.algorithm.name is None:
            return None
        if not self.multipart:
            return Checksum(algorithm=self.algorithm.name, kind="full", value=_text(self.digests[0]))
        value = f"{_text(self.algorithm.digest(b''.join(self.digests)))}-{len(self.digests)}"
        equal_bytes = self.size_of(0) if self.size_of(len(self.digests) - 1) == self.size_of(0) else None
        return Checksum(algorithm=self.algorithm.name, kind="composite", value=value, part_size_bytes=equal_bytes)

    def equals(self, chunks: Iterable[bytes]) -> bool:
        """Compare with a stream, part by part."""
        return [self.algorithm.digest(part) for part in cut(chunks, self.size_of)] == list(self.digests)


def checksum_from(answer: dict[str, Any]) -> Checksum | None:
    """Return the checksum that an answer to HEAD names, if any.

    SHA digests of a multipart object are always of the composite kind, also where a server forgets to say so or leaves
    out the count of parts, which the ETag has too.
    """
    parts = answer["ETag"].strip('"').partition("-")[2]
    for name in ("SHA256", "CRC64NVME", "CRC32C", "CRC32", "SHA1"):
        value = answer.get(f"Checksum{name}")
        if value:
            said = answer.get("ChecksumType") == "COMPOSITE" or "-" in value
            composite = said or bool(parts and name.startswith("SHA"))
            if composite and parts and "-" not in value:
                value = f"{value}-{parts}"
            return Checksum(algorithm=name, kind="composite" if composite else "full", value=value)
    return None


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
