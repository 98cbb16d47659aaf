"""What a batch of writes leaves of each document: the pure half of applying an oplog.

The documents as they are come in, the documents as they shall be go out, so that a batch can be written down before it
is done, and done twice without harm. Until the end of the dump that is rolled forward its documents may be newer than
an entry, so entries are taken as they can be; after it each must fit exactly, and one that does not is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from drkit.errors import IntegrityError
from drkit.oplog import OplogTs
from drkit.oplog_deltas import DeltaMismatch, apply_delta
from drkit.oplog_entries import Write

Key = tuple[str, bytes]
"""A namespace and an element ``_id``."""


class Image(NamedTuple):
    """A document before and after a batch; None where there is none."""

    namespace: str
    id: bytes
    before: bytes | None
    after: bytes | None


@dataclass
class Batch:
    """Writes in their order, and the documents that must be known to do them.

    ``strict_after`` is the last entry that the dump may already hold. Of the namespaces that ``may_forget`` names
    (capped collections drop their oldest by themselves) a document may be gone before it is deleted.
    """

    strict_after: OplogTs
    may_forget: Callable[[str], bool] = lambda _: False
    writes: list[Write] = field(default_factory=list)
    size_bytes: int = 0
    _first: dict[Key, Write] = field(default_factory=dict)

    def add(self, write: Write) -> None:
        """Take one more write."""
        self.writes.append(write)
        self.size_bytes += len(write.document) + len(write.id)
        self._first.setdefault((write.namespace, write.id), write)

    def wanted(self) -> Iterator[Key]:
        """Yield the documents to read first; not one that is inserted, which cannot be there: the server checks."""
        for key, write in self._first.items():
            if write.kind != "insert" or not self._is_strict(write):
                yield key

    def images(self, existing: Mapping[Key, bytes]) -> list[Image]:
        """Return what becomes of each document; raise IntegrityError naming the entry that does not fit."""
        after: dict[Key, bytes | None] = {key: existing.get(key) for key in self._first}
        for write in self.writes:
            key = (write.namespace, write.id)
            after[key] = self._done(write, after[key])
        return [Image(*key, existing.get(key), document) for key, document in after.items()]

    def _is_strict(self, write: Write) -> bool:
        return write.ts > self.strict_after

    def _done(self, write: Write, before: bytes | None) -> bytes | None:
        strict = self._is_strict(write)
        if write.kind == "insert":
            if strict and before is not None:
                raise misfit(write, "inserts a document that is there already")
            return write.document
        if before is None:
            if strict and not (write.kind == "delete" and self.may_forget(write.namespace)):
                words = {"delete": "deletes", "replace": "replaces", "update": "updates"}[write.kind]
                raise misfit(write, f"{words} a document that is not there")
            return None
        if write.kind == "delete":
            return None
        if write.kind == "replace":
            return write.document
        try:
            return apply_delta(before, write.document, strict=strict)
        except DeltaMismatch as error:
            raise misfit(write, str(error)) from error


def misfit(write: Write, what: str) -> IntegrityError:
    """Return the error for a write that does not fit the data; it names the entry and the document."""
    return IntegrityError(
        f"oplog entry {write.ts} of {write.namespace} {what}: _id {show_id(write.id)}",
        details=["the dump and the log that was kept after it do not belong together"],
        hints=["choose another dump to begin from: --artifact ID"],
    )


def show_id(element: bytes) -> str:
    """Write an ``_id`` for people, as Extended JSON; its bytes where it has no such form."""
    import bson
    from bson import json_util
    from bson.errors import BSONError

    document = b"%b%b\0" % ((len(element) + 5).to_bytes(4, "little"), element)
    try:
        shown = json_util.dumps(bson.decode(document)["_id"], json_options=json_util.RELAXED_JSON_OPTIONS)
    except (BSONError, ValueError, OverflowError, KeyError):
        return f"0x{element.hex()}"
    return shown if len(shown) <= _LONGEST_ID else f"{shown[:_LONGEST_ID]}…"


_LONGEST_ID = 200
