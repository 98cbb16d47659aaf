"""Documents taken apart into elements that carry their bytes, and put together again; no value is ever decoded.

Whatever a value is (a double with a NaN of its own, a type that drivers have forgotten, a date outside of years), it
keeps its bytes. `drkit.bson_elements` finds where elements are; here they leave their document.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from drkit.bson_elements import elements

_INT32 = struct.Struct("<i")
_EMPTY_DOCUMENT_BYTES = 5


class Element(NamedTuple):
    """One element by itself: its type, its name without the end, and the bytes of its value."""

    kind: int
    name: bytes
    value: bytes

    def __bytes__(self) -> bytes:
        """Return the element as it is in a document."""
        return b"%c%b\0%b" % (self.kind, self.name, self.value)


def read_elements(document: bytes) -> Iterator[Element]:
    """Yield the elements of a document or an array in order; raise IntegrityError where it is not BSON."""
    for kind, name, start, end in elements(document):
        yield Element(kind, name, document[start:end])


def make_document(fields: Iterable[Element]) -> bytes:
    """Put a document together."""
    body = b"".join(map(bytes, fields))
    return b"%b%b\0" % (_INT32.pack(len(body) + _EMPTY_DOCUMENT_BYTES), body)


def make_array(values: Iterable[Element]) -> bytes:
    """Put an array together; its elements are renamed to their places."""
    return make_document(Element(item.kind, b"%d" % place, item.value) for place, item in enumerate(values))


def find_element(document: bytes, name: bytes) -> Element | None:
    """Return the first element of a name; None where there is none."""
    return next((item for item in read_elements(document) if item.name == name), None)
