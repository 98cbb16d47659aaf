"""Writing mongodump's archive format 0.1, so that mongorestore and `mongo_archive` read it (common/archive/spec.md).

The layout is the one that mongodump 100 writes: see `mongo_archive`. Documents pass as they came from the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import bson
from fastcrc import crc64

from drkit.mongo_archive import FORMAT_VERSION, MAGIC, Namespace
from drkit.stream import in_chunks
from drkit.units import CHUNK_BYTES

_END = b"\xff\xff\xff\xff"
_SIGN_BIT = 63

Batch = tuple[Namespace, bytes | None]
"""Documents of one collection, one after another; None when the collection has no more."""


@dataclass(frozen=True)
class CollectionMetadata:
    """One collection of the prelude; ``text`` is its options, indexes and UUID as canonical Extended JSON."""

    namespace: Namespace
    kind: str
    text: str


@dataclass(frozen=True)
class Prelude:
    """What an archive says before its first document; ``parallel`` is how many collections were read at once."""

    server_version: str
    tool_version: str
    parallel: int
    collections: Sequence[CollectionMetadata]


def write_archive(prelude: Prelude, batches: Iterable[Batch]) -> Iterator[bytes]:
    """Yield an archive in chunks of about a mebibyte; batches of different collections may come in any order."""
    return in_chunks(_pieces(prelude, batches))


def _pieces(prelude: Prelude, batches: Iterable[Batch]) -> Iterator[bytes]:
    yield _prelude(prelude)
    checksums: dict[Namespace, int] = {}
    current: Namespace | None = None
    for namespace, documents in batches:
        if current is not None and (documents is None or namespace != current):
            yield _END
        if documents is None:
            if namespace not in checksums:
                yield _header(namespace) + _END  # as mongodump does for one without documents
            yield _header(namespace, checksums.get(namespace, 0), last=True) + _END
            current = None
            continue
        if namespace != current:
            yield _header(namespace)
            current = namespace
        checksums[namespace] = crc64.xz(documents, checksums.get(namespace, 0))
        for start in range(0, len(documents), CHUNK_BYTES):
            yield documents[start : start + CHUNK_BYTES]


def _prelude(prelude: Prelude) -> bytes:
    header = {
        "concurrent_collections": prelude.parallel,
        "version": FORMAT_VERSION,
        "server_version": prelude.server_version,
        "tool_version": prelude.tool_version,
    }
    pieces = [MAGIC, bson.encode(header)]
    for item in prelude.collections:
        database, name = item.namespace
        document = {"db": database, "collection": name, "metadata": item.text, "size": 0, "type": item.kind}
        pieces.append(bson.encode(document))
    return b"".join(pieces) + _END


def _header(namespace: Namespace, checksum: int = 0, *, last: bool = False) -> bytes:
    database, name = namespace
    signed = checksum - (checksum >> _SIGN_BIT << (_SIGN_BIT + 1))
    return bson.encode({"db": database, "collection": name, "EOF": last, "CRC": bson.Int64(signed)})
