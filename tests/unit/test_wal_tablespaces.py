"""Records that create a tablespace are found wherever they lie, also over the borders of pages and segments."""

from __future__ import annotations

import struct

import pytest

from drkit.wal_tablespaces import TablespaceCreation, find_across, find_creations

PAGE = 8192


def record(oid: int, path: str, *, origin: bool = False) -> bytes:
    data = struct.pack("<I", oid) + path.encode() + b"\0"
    head = b"\xff" + bytes([len(data)]) if len(data) < 256 else b"\xfe" + struct.pack("<I", len(data))
    body = (b"\xfd\x01\x00" if origin else b"") + head + data
    header = struct.pack("<IIQBBH", 24 + len(body), 700, 0x2000028, 0, 5, 0) + b"\x12\x34\x56\x78"
    return header + body


def segment(payload: bytes, pages: int = 4) -> bytes:
    """Put a payload into pages: the first has a long header."""
    out, rest = b"", payload
    for page in range(pages):
        size = 40 if page == 0 else 24
        head = struct.pack("<HHIQI", 0xD110, 2 if page == 0 else 0, 1, page * PAGE, 0).ljust(size, b"\0")
        room = PAGE - size
        out += head + rest[:room].ljust(room, b"\0")
        rest = rest[room:]
    return out


@pytest.mark.parametrize("before", [0, 8000, 8104, 8112, 8120, 8136, 16304])
@pytest.mark.parametrize("path", ["/x", "/srv/" + "long/" * 80 + "end"])
def test_a_creation_is_found_at_any_place(before: int, path: str) -> None:
    found, _ = find_creations(segment(bytes(before) + record(16402, path)))
    assert found == [TablespaceCreation(16402, path)]


def test_one_with_an_origin_and_several_are_found() -> None:
    payload = record(1, "/a", origin=True).ljust(80, b"\5") + record(2, "/b")
    assert [item.path for item in find_creations(segment(payload))[0]] == ["/a", "/b"]


@pytest.mark.parametrize("part", [8, 16, 24, 32])
def test_one_that_crosses_into_the_next_segment_is_found(part: int) -> None:
    whole = record(16402, "/srv/fast")
    room = 4 * PAGE - 40 - 3 * 24
    _, before = find_creations(segment(bytes(room - part) + whole[:part]))
    found, after = find_creations(segment(whole[part:]))
    assert found == []
    assert find_across(before, after) == [TablespaceCreation(16402, "/srv/fast")]
    _, whole_inside = find_creations(segment(whole))
    assert find_across(before, whole_inside) == [], "that one is the next segment's own"


@pytest.mark.parametrize("before", range(-4200, 64, 8))
def test_each_is_found_once_around_the_border_of_what_is_looked_at_together(before: int) -> None:
    border = 32 * (PAGE - 24) - 16
    found, _ = find_creations(segment(bytes(border + before) + record(16402, "/srv/fast"), pages=40))
    assert found == [TablespaceCreation(16402, "/srv/fast")]


QUIET = segment(bytes(index % 251 for index in range(40 * PAGE)).replace(b"\5", b"\6"), pages=40)


@pytest.mark.parametrize("length", [0, 30, PAGE, 3 * PAGE, 40 * PAGE, 40 * PAGE - 100])
def test_the_ends_of_a_segment_without_any_are_those_of_its_payload(length: int) -> None:
    content = QUIET[:length]
    payload = b"".join(content[page + (24 if page else 40) : page + PAGE] for page in range(0, length, PAGE))
    found, ends = find_creations(content)
    assert (found, ends.head, ends.tail) == ([], payload[:4096], payload[-4096:])


def test_the_ends_are_the_same_when_something_looks_like_one() -> None:
    middle = 2 * PAGE + 1040
    suspect = QUIET[:middle] + b"\0\5\0\0" + QUIET[middle + 4 :]
    assert find_creations(suspect) == find_creations(QUIET)


def test_what_only_looks_like_one_is_not_taken_for_it() -> None:
    wrong_length = bytearray(record(1, "/a"))
    wrong_length[0] += 1
    wrong_manager = bytearray(record(1, "/a"))
    wrong_manager[17] = 4
    assert find_creations(segment(bytes(wrong_length)))[0] == []
    assert find_creations(segment(bytes(wrong_manager)))[0] == []
    assert find_creations(bytes(4 * PAGE))[0] == []
