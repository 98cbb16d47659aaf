"""Cutting pg_restore's script into pieces: nothing lost, nothing split in a row, whatever the chunks are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.engines import postgres_rows
from drkit.engines.postgres_rows import Piece, split_script
from drkit.errors import SourceError

SCRIPT = b"""--
-- PostgreSQL database dump
--

\\restrict abc

SET statement_timeout = 0;
SET client_encoding = 'LATIN1';
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Data for Name: COPY t FROM stdin;; Type: TABLE DATA
--

COPY public.t (a, b) FROM stdin;
1\tone
2\t\\\\.
\\N\tx\\nCOPY y FROM stdin;
\\.


--
-- Data for Name: empty; Type: TABLE DATA
--

COPY public.empty (a) FROM stdin;
\\.


COPY public."odd
COPY x FROM stdin;
""name" ("a
b") FROM stdin;
\xe9\tz
\\.


COPY app.nothing  FROM stdin;


\\.


\\unrestrict abc
"""

EXPECTED = {
    b"": b"SET statement_timeout = 0;\nSET client_encoding = 'LATIN1';\n"
    b"SELECT pg_catalog.set_config('search_path', '', false);\n",
    b"COPY public.t (a, b) FROM stdin;\n": b"1\tone\n2\t\\\\.\n\\N\tx\\nCOPY y FROM stdin;\n",
    b'COPY public."odd\nCOPY x FROM stdin;\n""name" ("a\nb") FROM stdin;\n': b"\xe9\tz\n",
    b"COPY app.nothing  FROM stdin;\n": b"\n\n",
}


@pytest.fixture(autouse=True, scope="module", params=[1, 1 << 18], ids=["every chunk", "joined"])
def piece_bytes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cut after every chunk, so that each place of a cut is tried, and as it is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_rows, "_PIECE_BYTES", request.param)
        yield


def cut_at(script: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % len(script) for cut in cuts), len(script)]
    return [script[a:b] for a, b in pairwise(places) if a < b]


def joined(pieces: list[Piece]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for piece in pieces:
        found[piece.statement] = found.get(piece.statement, b"") + piece.rows
    return found


@given(st.lists(st.integers(min_value=0), max_size=30))
def test_any_chunks_give_the_same_rows(cuts: list[int]) -> None:
    pieces = list(split_script(cut_at(SCRIPT, cuts)))
    assert joined(pieces) == EXPECTED
    assert pieces[0].statement == b"", "the settings come first"
    assert all(piece.whole and piece.rows.endswith(b"\n") for piece in pieces)


def test_byte_by_byte() -> None:
    assert joined(list(split_script(SCRIPT[n : n + 1] for n in range(len(SCRIPT))))) == EXPECTED


def test_a_script_without_rows_is_only_settings() -> None:
    assert list(split_script([b"SET a = 1;\n\n--\n"])) == [Piece(b"", b"SET a = 1;\n")]
    assert list(split_script([])) == [Piece(b"", b"")]


@pytest.mark.parametrize("share", [0.55, 0.6, 0.7, 0.8])
def test_a_script_that_ends_early_is_an_error(share: float) -> None:
    start = SCRIPT.index(b"COPY public.t")
    end = SCRIPT.index(b"\\.\n", start)
    with pytest.raises(SourceError, match="ends within"):
        list(split_script([SCRIPT[: start + int((end - start) * share)]]))


@pytest.mark.parametrize(
    "text",
    [b"DROP TABLE x;\n", b"COPY t FROM stdin;\n1\n\\.\nSET search_path = evil;\n", b"COPY t FROM PROGRAM 'x';\n"],
)
def test_any_other_statement_is_refused(text: bytes) -> None:
    with pytest.raises(SourceError):
        list(split_script([text]))


@given(st.integers(min_value=1, max_value=3), st.integers(min_value=1, max_value=40))
def test_a_row_that_is_longer_than_what_is_held_goes_on_in_the_next_piece(rows: int, chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_rows, "_MOST_HELD_BYTES", 10)
        content = b"".join(b"%d\t" % n + b"x" * 100 + b"\n" for n in range(rows))
        script = b"COPY t FROM stdin;\n" + content + b"\\.\n"
        chunks = [script[at : at + chunk_bytes] for at in range(0, len(script), chunk_bytes)]
        pieces = list(split_script(chunks))
    assert joined(pieces)[b"COPY t FROM stdin;\n"] == content
    assert [piece.whole for piece in pieces] == [piece.rows.endswith(b"\n") or not piece.rows for piece in pieces]
    assert pieces[-1].whole
