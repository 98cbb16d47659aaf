"""Reading mongodump's archive format 0.1 while it streams by: what is in it, and whether all of it is there.

An archive is a magic number, a prelude (one header, one metadata document per collection) and blocks. A block is a
header that names a collection, raw documents, and a terminator; blocks of different collections are interleaved. Each
collection is closed by a block without documents whose header carries the checksum of all its documents
(mongo-tools, common/archive/spec.md). The checksum is CRC-64/XZ, written as a signed number.

Documents are cut by their length and hashed, never decoded: no value can change its type on the way. What is wrong
raises IntegrityError; at most one document of the largest size that MongoDB knows is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import bson
from bson.errors import BSONError
from fastcrc import crc64

from drkit.bson_elements import LARGEST_DOCUMENT_BYTES
from drkit.errors import IntegrityError

if TYPE_CHECKING:
    from drkit.mongo_ids import Identifiers

MAGIC = b"\x6d\xe2\x99\x81"
TERMINATOR = -1
FORMAT_VERSION = "0.1"
_SMALLEST_DOCUMENT_BYTES = 5
_MOST_COLLECTIONS = 1_000_000
_LARGEST_HEADER_BYTES = 1 << 16
_LARGEST_PRELUDE_BYTES = 256 << 20
"""What the definitions of all collections may have together: they are held in memory until the end."""
_LENGTH = struct.Struct("<i")
_DIGEST_MODULUS = 1 << 256
_CRC_MODULUS = 1 << 64

Namespace = tuple[str, str]
"""Database and collection."""

OPLOG: Namespace = ("", "oplog")
"""Under which name an archive holds what ``mongodump --oplog`` took from the oplog."""


@dataclass(frozen=True)
class CollectionSummary:
    """What an archive holds of one collection.

    ``digest`` is the sum modulo 2^256 of the SHA-256 of each document, as 64 hex digits; None when it was not asked
    for. ``definition`` is the collection's metadata: options, indexes and UUID, their keys in the server's order.
    ``order_digest`` is the SHA-256 over the documents of a capped collection as they come, None for any other, and
    ``size_bytes`` the size of all documents.
    """

    database: str
    name: str
    kind: str
    documents: int
    digest: str | None
    definition: Mapping[str, Any]
    order_digest: str | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class ArchiveSummary:
    """What a whole and sound archive holds; ``collections`` are in the order of the prelude.

    ``oplog_entries`` are counted apart; None when the archive was made without ``--oplog``.
    """

    server_version: str
    tool_version: str
    collections: tuple[CollectionSummary, ...]
    oplog_entries: int | None = None


@dataclass
class _Content:
    """What came of one collection so far."""

    database: str
    kind: str
    definition: Mapping[str, Any]
    documents: int = 0
    size_bytes: int = 0
    digest: int = 0
    crc: int = 0
    order: Any = None
    closed: bool = False


class ArchiveSink(Protocol):
    """Takes what an archive holds while it is read, before its checksums were compared."""

    def begin(self, collections: Sequence[CollectionSummary]) -> None:
        """Take the definitions of all collections; their documents are still to come."""

    def take(self, namespace: Namespace, documents: bytes, ends: Sequence[int]) -> None:
        """Take whole documents of one collection, one after another, and where each ends."""


class ArchiveReader:
    """Takes an archive in chunks of any size and says at the end what it holds.

    ``feed`` raises IntegrityError at the first byte that cannot be right, ``finish`` when the archive is cut short.
    With ``identifiers`` also for a document without an ``_id`` of its own. ``on_oplog`` is given the entries of the
    archive's oplog as they pass, whole ones; their checksum comes after them. A ``sink`` is given all the rest.
    """

    def __init__(
        self,
        *,
        digests: bool = True,
        identifiers: Identifiers | None = None,
        on_oplog: Callable[[bytes], None] | None = None,
        sink: ArchiveSink | None = None,
    ) -> None:
        self._digests = digests
        self._identifiers = identifiers
        self._on_oplog = on_oplog
        self._sink = sink
        self._buffer = bytearray()
        self._consumed_bytes = 0
        self._step: Callable[[], bool] = self._read_magic
        self._header: Mapping[str, Any] | None = None
        self._contents: dict[Namespace, _Content] = {}
        self._current: _Content | None = None
        self._current_namespace: Namespace = ("", "")
        self._current_name = ""

    def feed(self, chunk: bytes) -> None:
        """Read on."""
        self._buffer += chunk
        while self._step():
            pass

    def finish(self) -> ArchiveSummary:
        """Return what the archive holds; raise IntegrityError when its end is missing."""
        if self._header is None or self._step != self._read_header_of_block or self._buffer:
            raise self._damage("it ends in the middle")
        unclosed = [_label(namespace) for namespace, content in self._contents.items() if not content.closed]
        if unclosed:
            raise self._damage(f"it ends before collection {unclosed[0]} does")
        oplog = self._contents.pop(OPLOG, None)
        summaries = [self._summary(namespace, content) for namespace, content in self._contents.items()]
        version = (str(self._header.get("server_version", "")), str(self._header.get("tool_version", "")))
        return ArchiveSummary(*version, tuple(summaries), oplog.documents if oplog else None)

    def _summary(self, namespace: Namespace, content: _Content) -> CollectionSummary:
        digest = f"{content.digest:064x}" if self._digests else None
        order = content.order.hexdigest() if self._digests and content.order is not None else None
        return CollectionSummary(
            *namespace, content.kind, content.documents, digest, content.definition, order, content.size_bytes
        )

    def _read_magic(self) -> bool:
        if len(self._buffer) < len(MAGIC):
            return False
        if not self._buffer.startswith(MAGIC):
            raise self._damage("it does not begin like one (a plain archive of mongodump is wanted, not gzip)")
        self._drop(len(MAGIC))
        self._step = self._read_header
        return True

    def _read_header(self) -> bool:
        document = self._take_document("the header", _LARGEST_HEADER_BYTES)
        if document is None:
            return False
        if document.get("version") != FORMAT_VERSION:
            raise self._damage(f"its format is {document.get('version')!r}, and {FORMAT_VERSION!r} can be read")
        self._header = document
        self._step = self._read_metadata
        return True

    def _read_metadata(self) -> bool:
        if self._at_terminator():
            self._drop(_LENGTH.size)
            self._step = self._read_header_of_block
            if self._sink is not None:
                self._sink.begin([self._summary(*item) for item in self._contents.items()])
            return True
        room_bytes = _LARGEST_PRELUDE_BYTES - self._consumed_bytes
        document = self._take_document("the metadata of a collection", min(LARGEST_DOCUMENT_BYTES, room_bytes))
        if document is None:
            return False
        namespace = self._namespace_of(document)
        if namespace in self._contents:
            raise self._damage(f"collection {_label(namespace)} is listed twice")
        if len(self._contents) == _MOST_COLLECTIONS:
            raise self._damage(f"it lists more than {_MOST_COLLECTIONS:,} collections")
        kind, definition = str(document.get("type", "")), self._definition_of(document, namespace)
        order = hashlib.sha256() if _is_capped(definition) else None
        self._contents[namespace] = _Content(namespace[0], kind, definition, order=order)
        return True

    def _definition_of(self, document: Mapping[str, Any], namespace: Namespace) -> Mapping[str, Any]:
        text = document.get("metadata")
        try:
            definition = json.loads(text) if isinstance(text, str) and text else {}
        except (ValueError, RecursionError):
            definition = None
        if not isinstance(definition, dict):
            raise self._damage(f"the metadata of collection {_label(namespace)} is no JSON object")
        return definition

    def _read_header_of_block(self) -> bool:
        if self._at_terminator():
            raise self._damage("a block has no header")
        document = self._take_document("the header of a block", _LARGEST_HEADER_BYTES)
        if document is None:
            return False
        namespace = self._namespace_of(document)
        content = self._contents.get(namespace) or self._buckets_of(namespace)
        self._current_namespace, self._current_name = namespace, _label(namespace)
        if content is None:
            raise self._damage(f"collection {self._current_name} has documents and is not listed")
        if content.closed:
            raise self._damage(f"collection {self._current_name} goes on after its end")
        if document.get("EOF") is True:
            self._close(content, document)
            self._step = self._read_end_of_collection
        elif document.get("EOF") is False and document.get("CRC") == 0:
            self._current = content
            self._step = self._read_documents
        else:
            raise self._damage(f"a header of collection {self._current_name} is not as mongodump writes it")
        return True

    def _buckets_of(self, namespace: Namespace) -> _Content | None:
        """Return the time series whose buckets these are: before MongoDB 8.3 they are listed without the prefix."""
        database, name = namespace
        plain = self._contents.get((database, name.removeprefix("system.buckets.")))
        return plain if plain is not None and plain.kind == "timeseries" else None

    def _close(self, content: _Content, document: Mapping[str, Any]) -> None:
        recorded = document.get("CRC")
        if not isinstance(recorded, int) or recorded % _CRC_MODULUS != content.crc:
            raise self._damage(f"the documents of collection {self._current_name} are not those that were dumped")
        if self._identifiers is not None:
            self._require_sound(self._identifiers.close(self._current_name))
        content.closed = True

    def _read_end_of_collection(self) -> bool:
        if len(self._buffer) < _LENGTH.size:
            return False
        if not self._at_terminator():
            raise self._damage(f"the end of collection {self._current_name} has documents")
        self._drop(_LENGTH.size)
        self._step = self._read_header_of_block
        return True

    def _read_documents(self) -> bool:
        """Take as many whole documents as there are, and the terminator when it is reached."""
        content = self._current
        assert content is not None
        ends, terminated = self._boundaries()
        if ends:
            with memoryview(self._buffer) as view:
                documents = bytes(view[: ends[-1]])
            self._take_documents(content, documents, ends)
            self._drop(ends[-1])
        if terminated:
            self._drop(_LENGTH.size)
            self._step = self._read_header_of_block
        return terminated

    def _boundaries(self) -> tuple[list[int], bool]:
        """Return where the whole documents at the front end, and whether a terminator follows the last.

        This loop runs once for every document of a database, so it calls nothing that it can do without.
        """
        buffer, unpack, position = self._buffer, _LENGTH.unpack_from, 0
        available = len(buffer)
        ends: list[int] = []
        note = ends.append
        while available - position >= 4:
            length = unpack(buffer, position)[0]
            if not _SMALLEST_DOCUMENT_BYTES <= length <= LARGEST_DOCUMENT_BYTES:
                if length == TERMINATOR:
                    return ends, True
                raise self._damage(self._bad_length(length), position)
            position += length
            if position > available:
                break
            if buffer[position - 1]:
                raise self._damage(f"a document of collection {self._current_name} has no end", position - length)
            note(position)
        return ends, False

    def _take_documents(self, content: _Content, documents: bytes, ends: list[int]) -> None:
        """Count and hash whole documents that lie one after another."""
        content.crc = crc64.xz(documents, content.crc)
        content.documents += len(ends)
        content.size_bytes += len(documents)
        if self._digests:
            content.digest = (content.digest + sum_of_digests(documents, ends)) % _DIGEST_MODULUS
            if content.order is not None:
                content.order.update(documents)
        if self._on_oplog is not None and content is self._contents.get(OPLOG):
            self._on_oplog(documents)
        if self._identifiers is not None and content.database:
            self._require_sound(self._identifiers.take(self._current_name, documents, ends))
        if self._sink is not None and content.database:
            self._sink.take(self._current_namespace, documents, ends)

    def _require_sound(self, fault: str) -> None:
        if fault:
            raise self._damage(f"collection {self._current_name} {fault}")

    def _bad_length(self, length: int) -> str:
        return f"a document of collection {self._current_name} says it has {length:,} bytes"

    def _take_document(self, what: str, largest_bytes: int) -> Mapping[str, Any] | None:
        """Take a document of the format's own from the front and decode it; None when it is not all there yet."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not _SMALLEST_DOCUMENT_BYTES <= length <= largest_bytes:
            raise self._damage(f"{what} says it has {length:,} bytes")
        if len(self._buffer) < length:
            return None
        try:
            document = bson.decode(bytes(self._buffer[:length]))
        except (BSONError, ValueError, OverflowError, RecursionError) as error:
            raise self._damage(f"{what} is no BSON document") from error
        self._drop(length)
        return document

    def _namespace_of(self, document: Mapping[str, Any]) -> Namespace:
        database, collection = document.get("db"), document.get("collection")
        # Code is a str as well, and is none here.
        if type(database) is not str or type(collection) is not str or not collection:
            raise self._damage("a header names no collection")
        return database, collection

    def _at_terminator(self) -> bool:
        return len(self._buffer) >= _LENGTH.size and _LENGTH.unpack_from(self._buffer)[0] == TERMINATOR

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._consumed_bytes += size

    def _damage(self, what: str, offset: int = 0) -> IntegrityError:
        place = self._consumed_bytes + offset
        return IntegrityError(f"the archive is damaged at byte {place:,}: {what}")


def sum_of_digests(documents: bytes, ends: Sequence[int]) -> int:
    """Return the sum of the SHA-256 of each document, read as big-endian numbers; ``ends`` are where they end."""
    sha256 = hashlib.sha256
    return sum(map(int.from_bytes, [sha256(documents[start:end]).digest() for start, end in pairwise((0, *ends))]))


def _label(namespace: Namespace) -> str:
    return ".".join(part for part in namespace if part)


def _is_capped(definition: Mapping[str, Any]) -> bool:
    options = definition.get("options")
    return isinstance(options, dict) and options.get("capped") is True


def read_archive(
    chunks: Iterator[bytes], *, digests: bool = True, identifiers: Identifiers | None = None
) -> ArchiveSummary:
    """Read an archive to its end and return what it holds; raise IntegrityError when it is not whole and sound."""
    reader = ArchiveReader(digests=digests, identifiers=identifiers)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()
