"""age v1 as a stream: round trips, and every way to damage a file."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit import age
from drkit.errors import ConfigError, IntegrityError, KeyUnavailable

CHUNK = age.CHUNK_BYTES
SEALED_CHUNK = age.SEALED_CHUNK_BYTES
MIB = 1 << 20
CLASSIC = age.generate_identity()
OTHER = age.generate_identity()
HYBRID = age.generate_identity(post_quantum=True)
PATTERN = bytes(range(251)) * (4 * MIB // 251 + 1)

near_borders = st.builds(
    lambda chunks, distance: max(0, chunks * CHUNK + distance),
    st.sampled_from([0, 1, 2, 3, 15, 16, 17, 31, 32, 33]),
    st.integers(-2, 2),
)
piece_sizes = st.sampled_from([1021, CHUNK - 1, CHUNK, CHUNK + 1, SEALED_CHUNK, MIB - 1, MIB, MIB + 1, 3 * MIB])


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def seal(plain: bytes, *identities: age.Identity) -> bytes:
    return b"".join(age.encrypt([plain], [identity.recipient for identity in identities or (CLASSIC,)]))


def header_size(sealed: bytes) -> int:
    return sealed.index(b"\n", sealed.index(b"\n---") + 1) + 1


def sealed_borders(sealed: bytes) -> list[int]:
    """List where the payload's chunks begin, and the end of the file."""
    return [*range(header_size(sealed) + age.NONCE_BYTES, len(sealed), SEALED_CHUNK), len(sealed)]


def opened_before_failing(sealed: Iterable[bytes], *identities: age.Identity) -> tuple[bytes, Exception | None]:
    plain = b""
    try:
        for chunk in age.decrypt(sealed, identities or (CLASSIC,)):
            plain += chunk
    except (IntegrityError, KeyUnavailable) as error:
        return plain, error
    return plain, None


@given(size=near_borders, in_pieces=piece_sizes, out_pieces=piece_sizes, chunks=st.sampled_from([1, 4, 16]))
@settings(deadline=None, max_examples=60)
def test_round_trip_at_chunk_borders(size: int, in_pieces: int, out_pieces: int, chunks: int) -> None:
    plain = PATTERN[:size]
    blocks = list(age.encrypt(pieces(plain, in_pieces), [CLASSIC.recipient], block_bytes=chunks * CHUNK))
    sealed = b"".join(blocks)
    assert max(map(len, blocks[1:])) <= chunks * SEALED_CHUNK
    assert len(sealed) == age.sealed_size(size, header_size(sealed))
    opened = list(age.decrypt(pieces(sealed, out_pieces), [CLASSIC]))
    assert b"".join(opened) == plain
    assert all(0 < len(block) <= MIB for block in opened)


@given(plain=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000)))
@settings(deadline=None)
def test_round_trip_of_anything_cut_anyhow(plain: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), 3000]
    chunks = [plain[start:end] for start, end in itertools.pairwise(borders)]
    assert b"".join(age.decrypt(age.encrypt(chunks, [HYBRID.recipient]), [CLASSIC, HYBRID])) == plain


@given(size=st.integers(0, 1 << 50), header_bytes=st.integers(150, 1 << 16))
def test_sealed_size_grows_by_a_tag_for_each_chunk(size: int, header_bytes: int) -> None:
    full, rest = divmod(size, CHUNK)
    tags = full + bool(rest) if size else 1
    assert age.sealed_size(size, header_bytes) == header_bytes + 16 + size + 16 * tags


def test_every_recipient_opens_and_nobody_else() -> None:
    sealed = seal(b"for two", CLASSIC, OTHER)
    assert b"".join(age.decrypt([sealed], [CLASSIC])) == b"for two"
    assert b"".join(age.decrypt([sealed], [OTHER])) == b"for two"
    with pytest.raises(age.NoIdentityMatches, match=r"no identity of 1 tried opens this age file, .* for 2 X25519"):
        list(age.decrypt([sealed], [age.generate_identity()]))
    with pytest.raises(KeyUnavailable):
        list(age.decrypt([sealed], []))


def test_two_files_of_one_plaintext_share_nothing() -> None:
    first, second = seal(PATTERN[:CHUNK]), seal(PATTERN[:CHUNK])
    assert first[header_size(first) :][:64] != second[header_size(second) :][:64]


def test_a_cut_anywhere_is_found_and_only_authentic_chunks_escape() -> None:
    plain = PATTERN[: 17 * CHUNK + 100]
    sealed = seal(plain)
    borders = sealed_borders(sealed)
    beginnings = [0, 1, 21, 22, header_size(sealed), header_size(sealed) + 15]
    for cut in {*beginnings, *(border + distance for border in borders for distance in (-17, -16, -1, 0, 1))}:
        if cut >= len(sealed):
            continue
        escaped, error = opened_before_failing(pieces(sealed[:cut], MIB))
        assert isinstance(error, IntegrityError), cut
        whole_chunks = sum(border <= cut for border in borders[1:])
        assert escaped == plain[: whole_chunks * CHUNK], cut


def test_a_cut_at_a_chunk_border_is_called_a_cut() -> None:
    sealed = seal(PATTERN[: 3 * CHUNK])
    escaped, error = opened_before_failing([sealed[:-SEALED_CHUNK]])
    assert str(error) == "the age file is cut: it ends after chunk 1, which is not its last"
    assert escaped == PATTERN[: 2 * CHUNK]
    escaped, error = opened_before_failing([sealed[: 5 - SEALED_CHUNK]])
    assert str(error) == "the age file is cut: it ends inside chunk 2"
    assert escaped == PATTERN[: 2 * CHUNK]


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 16 * CHUNK, 16 * CHUNK + 1])
@pytest.mark.parametrize("tail", [b"\0", bytes(16), bytes(SEALED_CHUNK), bytes(MIB)], ids=len)
def test_bytes_after_the_end_are_found(size: int, tail: bytes) -> None:
    escaped, error = opened_before_failing([seal(PATTERN[:size]), tail])
    assert isinstance(error, age.PayloadDamaged)
    assert PATTERN.startswith(escaped)
    assert len(escaped) <= size


SEALED = {identity: seal(PATTERN[: 2 * CHUNK + 1000], identity, OTHER) for identity in (CLASSIC,)}
SEALED[HYBRID] = seal(PATTERN[: 2 * CHUNK + 1000], HYBRID)


@pytest.mark.parametrize("identity", SEALED, ids=lambda identity: identity.recipient.key_class)
@given(place=st.one_of(st.integers(0, 400), st.integers(0, 2 * CHUNK + 1200)), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=150)
def test_one_flipped_bit_is_found(identity: age.Identity, place: int, bit: int) -> None:
    sealed = bytearray(SEALED[identity])
    sealed[place] ^= 1 << bit
    escaped, error = opened_before_failing([bytes(sealed)], identity)
    assert error is not None
    assert PATTERN.startswith(escaped)
    # The flip is in the header, or after everything that escaped.
    intact = max(0, (place - header_size(SEALED[identity]) - 16) // SEALED_CHUNK) * CHUNK
    assert len(escaped) <= intact


@given(order=st.permutations(range(5)))
@settings(deadline=None)
def test_chunks_in_another_order_are_found(order: list[int]) -> None:
    plain = PATTERN[: 5 * CHUNK]
    sealed = seal(plain)
    borders = sealed_borders(sealed)
    chunks = [sealed[start:end] for start, end in itertools.pairwise(borders)]
    escaped, error = opened_before_failing([sealed[: borders[0]], *(chunks[place] for place in order)])
    in_place = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], enumerate(order)))
    assert escaped == plain[: in_place * CHUNK]
    assert isinstance(error, age.PayloadDamaged) == (in_place < 5)


@pytest.mark.parametrize("place", range(3))
def test_a_chunk_left_out_or_repeated_is_found(place: int) -> None:
    sealed = seal(PATTERN[: 2 * CHUNK + 5])
    start, end = sealed_borders(sealed)[place : place + 2]
    for altered in (sealed[:start] + sealed[end:], sealed[:end] + sealed[start:]):
        assert isinstance(opened_before_failing([altered])[1], age.PayloadDamaged)


def test_a_payload_under_the_header_of_another_file_is_found() -> None:
    first, second = seal(PATTERN[:5000]), seal(PATTERN[:5000])
    escaped, error = opened_before_failing([first[: header_size(first)], second[header_size(second) :]])
    assert isinstance(error, age.PayloadDamaged)
    assert escaped == b""


def test_a_recipient_added_to_the_header_is_found() -> None:
    sealed = seal(b"secret")
    end = sealed.index(b"\n---") + 1
    stanza = age.Stanza("X25519", ("A" * 43,), bytes(32)).encode()
    with pytest.raises(age.HeaderForged, match="its MAC does not match"):
        list(age.decrypt([sealed[:end] + stanza + sealed[end:]], [CLASSIC]))


def test_a_producer_that_fails_leaves_a_file_that_is_refused() -> None:
    def failing() -> Iterator[bytes]:
        yield PATTERN[: 2 * MIB]
        raise OSError("the disk is gone")

    sealed: list[bytes] = []
    with pytest.raises(OSError, match="the disk is gone"):
        sealed.extend(age.encrypt(failing(), [CLASSIC.recipient]))
    escaped, error = opened_before_failing(sealed)
    assert isinstance(error, age.PayloadDamaged)
    assert escaped == PATTERN[:MIB]


@pytest.mark.parametrize(
    ("junk", "message"),
    [
        (b"", "the age file is empty"),
        (b"age-encr", "the age file ends inside its header, after 8 bytes"),
        (b"age-encryption.org/v2\n-> X\n", "the first line of the age file is not exactly age-encryption.org/v1"),
        (b"PGDMP" + bytes(500), "this is not an age file: its first line is not age-encryption.org/v1"),
        (age.armor(b"anything").encode(), "the age file is in its text form"),
        (b"age-encryption.org/v1\n--- " + b"A" * 43 + b"\n" + bytes(40), "malformed at line 2"),
        (
            b"age-encryption.org/v1\n" + b"-> x\n\n" * 33 + b"--- " + b"A" * 43 + b"\n" + bytes(40),
            "33 stanzas; at most",
        ),
    ],
)
def test_what_is_not_an_age_file_is_named(junk: bytes, message: str) -> None:
    with pytest.raises(age.HeaderDamaged, match=message):
        list(age.decrypt([junk], [CLASSIC]))


@pytest.mark.parametrize(("start", "pieces_read"), [(b"", 1), (b"age-encryption.org/v1\n-> X25519 ", 66)])
def test_long_junk_is_refused_without_reading_it(start: bytes, pieces_read: int) -> None:
    junk = itertools.chain([start], itertools.repeat(b"A" * 1000, 100))
    with pytest.raises(age.HeaderDamaged):
        list(age.decrypt(junk, [CLASSIC]))
    assert sum(1 for _ in junk) == 100 - pieces_read


def test_recipients_of_two_classes_are_refused_before_anything_is_read() -> None:
    untouched = iter([b"plaintext"])
    passphrase = age.ScryptRecipient("a passphrase", 4)
    for recipients, message in (
        ([], "no recipient"),
        ([CLASSIC.recipient, HYBRID.recipient], "different classes \\(classic and post-quantum\\)"),
        ([CLASSIC.recipient, passphrase], "different classes \\(classic and passphrase\\)"),
        ([passphrase, passphrase], "a passphrase must be the only recipient"),
        ([CLASSIC.recipient] * 33, "there are 33 recipients; an age file takes at most 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            age.encrypt(untouched, recipients)
    assert list(untouched) == [b"plaintext"]


def test_as_many_hybrid_recipients_as_allowed_still_fit_the_header() -> None:
    sealed = seal(b"crowd", *[HYBRID] * 32)
    assert b"".join(age.decrypt([sealed], [HYBRID])) == b"crowd"


def test_a_passphrase_seals_and_opens() -> None:
    sealed = b"".join(age.encrypt([b"secret"], [age.ScryptRecipient("correct horse", 4)]))
    assert b"".join(age.decrypt([sealed], [CLASSIC, age.ScryptIdentity("correct horse")])) == b"secret"
    with pytest.raises(age.NoIdentityMatches, match="the passphrase does not open this age file"):
        list(age.decrypt([sealed], [age.ScryptIdentity("wrong")]))
    with pytest.raises(age.NoIdentityMatches, match="sealed with a passphrase, and none was given"):
        list(age.decrypt([sealed], [CLASSIC]))


def test_a_passphrase_dearer_than_allowed_is_refused_unpaid() -> None:
    sealed = b"".join(age.encrypt([b"secret"], [age.ScryptRecipient("correct horse", 5)]))
    with pytest.raises(age.HeaderDamaged, match="work factor that is not between 1 and 4"):
        list(age.decrypt([sealed], [age.ScryptIdentity("correct horse", max_work_factor=4)]))


@given(data=st.binary(max_size=500))
def test_armor_round_trip(data: bytes) -> None:
    text = age.armor(data)
    assert max(map(len, text.splitlines())) <= 64
    assert age.dearmor(text) == data
    assert age.dearmor("\n  \n" + text.replace("\n", "\r\n") + "\n\t") == data


@pytest.mark.parametrize("text", ["", "naïve", age.armor(b"x").replace("eA==", "eB=="), age.armor(b"x") * 2])
def test_armor_is_strict(text: str) -> None:
    with pytest.raises(age.ArmorDamaged):
        age.dearmor(text)


@pytest.mark.parametrize("piece_bytes", [MIB, 300_007])
def test_memory_does_not_grow_with_the_stream(piece_bytes: int) -> None:
    piece = PATTERN[:piece_bytes]

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in age.decrypt(age.encrypt(itertools.repeat(piece, count), [CLASSIC.recipient]), [CLASSIC]):
            pass
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    short, long = peak(16), peak(128)
    assert long < short + MIB // 2
    assert long < 9 * MIB
