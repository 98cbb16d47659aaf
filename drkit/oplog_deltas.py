"""What an update did, as the oplog has it, done again: the new document from the old one, over raw BSON.

There are two shapes. MongoDB's own (``$v: 2``) is a tree: a document's node deletes (``d``), updates (``u``) and
inserts (``i``) fields and has sub-nodes (``s<field>``); an array's node (``a``) may cut it (``l``) and has
``u<index>`` and ``s<index>``. SecantusDB writes the description that change streams have: dotted paths of updated and
removed fields. Which one it is shows in its keys; a key that is neither's is refused.

A delta can meet a document that is newer than the one that it was made for, while a dump's own window is replayed. What
does not fit then is left, because a later entry says what becomes of it; where that cannot be, it is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from drkit.bson_elements import ARRAY, DOCUMENT, DOUBLE, INT32, INT64, NULL, STRING
from drkit.raw_bson import Element, find_element, make_array, make_document, read_elements

_DESCRIPTION_KEYS = {b"updatedFields", b"removedFields", b"truncatedArrays", b"disambiguatedPaths"}
_TRUE = b"\x01"
_LONGEST_ARRAY = 1 << 21
"""No array of a document of 16 MiB has more elements, of nine bytes each; a delta that says so is damaged."""
_LONGEST_PLACE = len(str(_LONGEST_ARRAY))


class DeltaMismatch(Exception):
    """A delta cannot be done to a document; the text completes "the update"."""


def apply_delta(document: bytes, diff: bytes, *, strict: bool) -> bytes:
    """Return the document after an update; raise DeltaMismatch for keys that are not known.

    With ``strict`` also where the delta does not fit the document.
    """
    keys = {item.name for item in read_elements(diff)}
    try:
        if keys and keys <= _DESCRIPTION_KEYS:
            return _Description(strict).apply(document, diff)
        return _Tree(strict).apply_to_document(document, diff)
    except RecursionError as error:
        raise DeltaMismatch("is nested deeper than any server nests a document") from error


@dataclass(frozen=True)
class _Tree:
    """MongoDB's own shape; what it does is document_diff_applier.cpp's in the server's sources."""

    strict: bool

    def apply_to_document(self, document: bytes, diff: bytes) -> bytes:
        deleted: set[bytes] = set()
        updated: dict[bytes, Element] = {}
        inserted: dict[bytes, Element] = {}
        nested: dict[bytes, Element] = {}
        for item in read_elements(diff):
            if item.name == b"d" and item.kind == DOCUMENT:
                deleted = {field.name for field in read_elements(item.value)}
            elif item.name in (b"u", b"i") and item.kind == DOCUMENT:
                found = updated if item.name == b"u" else inserted
                found.update((field.name, field) for field in read_elements(item.value))
            elif item.name.startswith(b"s") and item.kind == DOCUMENT:
                nested[item.name[1:]] = item
            else:
                raise _unknown(item)
        return make_document(self._fields(document, (deleted, updated, inserted, nested)))

    def _fields(
        self,
        document: bytes,
        change: tuple[set[bytes], dict[bytes, Element], dict[bytes, Element], dict[bytes, Element]],
    ) -> Iterator[Element]:
        deleted, updated, inserted, nested = change
        seen: set[bytes] = set()
        for field in read_elements(document):
            seen.add(field.name)
            if field.name in updated:
                yield updated[field.name]
            elif field.name in nested:
                yield self._nested(field, nested[field.name])
            elif field.name not in deleted and field.name not in inserted:
                yield field
        if self.strict and not (missing := deleted | set(nested)) <= seen:
            raise DeltaMismatch(f"is of field {_shown(min(missing - seen))}, which the document does not have")
        yield from (field for name, field in updated.items() if name not in seen)
        yield from inserted.values()

    def _nested(self, field: Element, change: Element) -> Element:
        """Apply a sub-node; one for another type than the field has leaves null, as the server does."""
        wants_array = find_element(change.value, b"a") is not None
        if field.kind == (ARRAY if wants_array else DOCUMENT):
            apply = self._apply_to_array if wants_array else self.apply_to_document
            return field._replace(value=apply(field.value, change.value))
        if self.strict:
            raise DeltaMismatch(
                f"is inside of field {_shown(field.name)}, which is no {'array' if wants_array else 'document'}"
            )
        return Element(NULL, field.name, b"")

    def _apply_to_array(self, array: bytes, diff: bytes) -> bytes:
        length: int | None = None
        changes: dict[int, Element] = {}
        for item in read_elements(diff):
            place = item.name[1:]
            if item.name == b"l":
                length = _whole_number(item)
            elif item.name[:1] in (b"u", b"s") and _is_place(place):
                changes[int(place)] = item
            elif item.name != b"a" or item.value != _TRUE:
                raise _unknown(item)
        return make_array(self._values(list(read_elements(array)), length, changes))

    def _values(self, array: Sequence[Element], length: int | None, changes: dict[int, Element]) -> Iterator[Element]:
        end = max(len(array), *(place + 1 for place in changes), 0) if length is None else length
        for place in range(end):
            before = array[place] if place < len(array) else Element(NULL, b"", b"")
            change = changes.get(place)
            if change is None:
                yield before
            elif change.name.startswith(b"u"):
                yield change
            else:
                yield self._nested(before, change)


_Change = Callable[[Element | None], Element | None]
"""From the element that is there, if one is, to the one that shall be, if one shall."""


@dataclass(frozen=True)
class _Description:
    """The shape of a change stream's ``updateDescription``: updated fields, then removed ones, then cut arrays."""

    strict: bool

    def apply(self, document: bytes, diff: bytes) -> bytes:
        parts = {item.name: item for item in read_elements(diff)}
        for field in _items(parts, b"updatedFields", DOCUMENT):
            document = self._at(document, field.name, _replacing(field))
        for path in _items(parts, b"removedFields", ARRAY):
            document = self._at(document, _text(path), _removing, only_existing=True)
        for cut in _items(parts, b"truncatedArrays", ARRAY):
            facts = {item.name: item for item in read_elements(cut.value)}
            if set(facts) != {b"field", b"newSize"}:
                raise DeltaMismatch("has a cut array that is not as it should be")
            cutting = _cutting(_whole_number(facts[b"newSize"]))
            document = self._at(document, _text(facts[b"field"]), cutting, only_existing=True)
        return document

    def _at(self, document: bytes, path: bytes, change: _Change, *, only_existing: bool = False) -> bytes:
        """Change what is at a path; where it leads nowhere raise DeltaMismatch, or leave the document if that may be.

        A path does not say which of its dots are those of a field's name. One that can be read in two ways is refused.
        """
        ways = list(_ways(DOCUMENT, document, path.split(b".")))
        existing = [way for way in ways if way.exists]
        if only_existing or (existing and not any(way.plain for way in ways if not way.exists)):
            chosen = existing
        else:
            chosen = [way for way in ways if way.plain or way.exists] or (ways if self.strict else [])
        if len(chosen) > 1:
            raise DeltaMismatch(f"is of {_shown(path)}, which can be read in two ways in this document")
        if chosen:
            return _changed(DOCUMENT, document, chosen[0].names, change)
        if self.strict:
            raise DeltaMismatch(f"is of {_shown(path)}, which the document does not have")
        return document


@dataclass(frozen=True)
class _Way:
    """One reading of a path: the names from the document down; ``plain`` if no name has a dot."""

    names: tuple[bytes, ...]
    exists: bool

    @property
    def plain(self) -> bool:
        return not any(b"." in name for name in self.names)


def _ways(kind: int, container: bytes, steps: Sequence[bytes]) -> Iterator[_Way]:
    """Yield the readings of a path of which everything but the last name is there."""
    fields = {item.name: item for item in read_elements(container)}
    longest = 1 if kind == ARRAY else len(steps)
    for count in range(1, longest + 1):
        name, rest = b".".join(steps[:count]), steps[count:]
        if kind == ARRAY and not _is_place(name):
            return
        if not rest:
            yield _Way((name,), name in fields)
        elif name in fields and fields[name].kind in (DOCUMENT, ARRAY):
            for way in _ways(fields[name].kind, fields[name].value, rest):
                yield _Way((name, *way.names), way.exists)


def _changed(kind: int, container: bytes, names: Sequence[bytes], change: _Change) -> bytes:
    """Return a document or an array with another value at a place that `_ways` found."""
    name, rest = names[0], names[1:]
    fields = list(read_elements(container))
    place = next((place for place, item in enumerate(fields) if item.name == name), None)
    before = None if place is None else fields[place]
    if rest:
        assert before is not None
        after: Element | None = before._replace(value=_changed(before.kind, before.value, rest, change))
    else:
        after = change(before)
    if place is not None:
        fields[place : place + 1] = [] if after is None else [after._replace(name=name)]
    elif after is not None:
        if kind == ARRAY:
            fields += [Element(NULL, b"", b"")] * (int(name) - len(fields))
        fields.append(after._replace(name=name))
    return make_array(fields) if kind == ARRAY else make_document(fields)


def _replacing(field: Element) -> _Change:
    return lambda _: field


def _removing(_: Element | None) -> None:
    return None


def _cutting(length: int) -> _Change:
    def cut(before: Element | None) -> Element | None:
        if before is None or before.kind != ARRAY:
            raise DeltaMismatch("cuts a field that is no array")
        return before._replace(value=make_array(list(read_elements(before.value))[:length]))

    return cut


def _items(parts: Mapping[bytes, Element], name: bytes, kind: int) -> list[Element]:
    if name not in parts:
        return []
    if parts[name].kind != kind:
        raise DeltaMismatch(f"has {_shown(name)} that is not as it should be")
    return list(read_elements(parts[name].value))


def _is_place(name: bytes) -> bool:
    return name.isdigit() and len(name) <= _LONGEST_PLACE and int(name) < _LONGEST_ARRAY


def _text(item: Element) -> bytes:
    if item.kind != STRING:
        raise DeltaMismatch("names a field by something that is no text")
    return item.value[4:-1]


def _whole_number(item: Element) -> int:
    """Return a length; servers write it as any kind of number."""
    if item.kind in (INT32, INT64):
        length = int.from_bytes(item.value, "little", signed=True)
    elif item.kind == DOUBLE and (number := struct.unpack("<d", item.value)[0]).is_integer():
        length = int(number)
    else:
        raise DeltaMismatch("has a length that is no whole number")
    if not 0 <= length < _LONGEST_ARRAY:
        raise DeltaMismatch(f"has an array of {length:,} elements")
    return length


def _unknown(item: Element) -> DeltaMismatch:
    return DeltaMismatch(f"has key {_shown(item.name)} of type 0x{item.kind:02x}, which this drkit does not know")


def _shown(name: bytes) -> str:
    return f'"{name.decode(errors="replace")}"'
