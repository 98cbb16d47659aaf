"""Keys of age as text: Bech32, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit import age, age_hybrid, bech32

SECRET = "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0"  # a published test vector
HYBRID_SECRET = "AGE-SECRET-KEY-PQ-1HZLGZUPT4ETPKDEV8HSGFDCYZ4E522W0A7PU2LHT8EH9W6YLNC3SW78XKG"


@pytest.mark.parametrize(
    "text",
    [  # BIP 173, "Test vectors", valid Bech32 whose data part is whole bytes or empty
        "A12UEL5L",
        "a12uel5l",
        "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
        "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
        "?1ezyfcl",
    ],
)
def test_bech32_reads_and_respells_the_vectors_of_its_specification(text: str) -> None:
    assert bech32.encode(*bech32.decode(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A1G7SGD8", "checksum is wrong"),
        ("x1b4n0q5v", "does not belong"),
        ("\x7f1axkwrx", "does not belong"),
        ("10a06t8", "incomplete"),
        ("1qzzfhee", "incomplete"),
        ("pzry9x0s0muk", "incomplete"),
        ("li1dgmt3", "incomplete"),
        ("A12uEL5L", "mixed"),
        ("", "incomplete"),
    ],
)
def test_bech32_refuses_the_invalid_vectors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bech32.decode(text)


@pytest.mark.parametrize("values", [[31, 31], [0, 1], [0], [0, 0, 0]])
def test_bech32_refuses_bits_that_are_no_byte(values: list[int]) -> None:
    remainder = bech32._polymod([*bech32._expand("age"), *values, *[0] * 6]) ^ 1
    checksum = [remainder >> 5 * (5 - place) & 31 for place in range(6)]
    text = "age1" + "".join(bech32._ALPHABET[value] for value in [*values, *checksum])
    with pytest.raises(ValueError, match="stray bits"):
        bech32.decode(text)


@given(data=st.binary(max_size=100), prefix=st.sampled_from(["age", "AGE-SECRET-KEY-", "age1pq"]))
def test_bech32_round_trip(data: bytes, prefix: str) -> None:
    assert bech32.decode(bech32.encode(prefix, data)) == (prefix, data)


@given(place=st.integers(0, len(SECRET) - 1), character=st.sampled_from("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"))
def test_one_mistyped_character_is_noticed(place: int, character: str) -> None:
    mistyped = SECRET[:place] + character + SECRET[place + 1 :]
    if mistyped != SECRET:
        with pytest.raises(ValueError, match="is not an age identity"):
            age.parse_identity(mistyped)


@pytest.mark.parametrize("post_quantum", [False, True])
def test_keys_survive_as_text(post_quantum: bool) -> None:
    identity = age.generate_identity(post_quantum=post_quantum)
    again = age.parse_identity(f"  {identity.reveal()}\n")
    assert again.reveal() == identity.reveal()
    assert again.recipient == identity.recipient
    assert age.parse_recipient(str(identity.recipient)) == identity.recipient
    assert len({identity.recipient, again.recipient}) == 1
    assert identity.recipient.key_class == ("post-quantum" if post_quantum else "classic")


def test_keys_of_two_people_differ() -> None:
    assert age.generate_identity().recipient != age.generate_identity().recipient


@pytest.mark.parametrize("secret", [SECRET, HYBRID_SECRET])
def test_no_secret_is_shown(secret: str) -> None:
    identity = age.parse_identity(secret)
    body = secret.rpartition("1")[2]
    assert body not in repr(identity) + str(identity) + f"{identity}" + repr(identity.recipient)
    phrase = "correct horse battery staple"
    shown = (repr(key) + str(key) for key in (age.ScryptIdentity(phrase), age.ScryptRecipient(phrase)))
    assert phrase not in "".join(shown)


@pytest.mark.parametrize(
    "text",
    [SECRET, SECRET.lower(), HYBRID_SECRET, SECRET[1:], f"key: {SECRET}", SECRET[:-1], SECRET[:-1] + "q"],
)
def test_a_secret_in_the_place_of_a_recipient_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="this is a secret key where a recipient belongs") as caught:
        age.parse_recipient(text)
    assert "EGTZ" not in str(caught.value).upper()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text", [SECRET[:-1], SECRET[:-1] + "Q", SECRET.lower(), SECRET.title(), "AGE-PLUGIN-YUBIKEY-1QQ", ""]
)
def test_a_malformed_identity_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="not an age identity") as caught:
        age.parse_identity(text)
    assert "EGTZ" not in str(caught.value).upper()


def test_a_recipient_in_the_place_of_an_identity_is_named() -> None:
    with pytest.raises(ValueError, match="this is a recipient"):
        age.parse_identity(str(age.parse_identity(SECRET).recipient))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age1", "is not an age recipient: it is incomplete"),
        ("alice", "is not an age recipient: it is incomplete"),
        ("age1" + "q" * 58, "checksum is wrong"),
        ("ssh-ed25519 AAAA", "is not an age recipient"),
        (bech32.encode("age", bytes(31)), "not an age recipient that drkit knows"),
        (bech32.encode("age1tag", bytes(33)), "not an age recipient that drkit knows"),
        (bech32.encode("age", bytes(32)), "low order"),
        (bech32.encode("age1pq", bytes(1216)), "low order"),
        (bech32.encode("age1pq", b"\xff" * 1184 + b"\x09" + bytes(31)), "no valid ML-KEM-768 key"),
    ],
)
def test_a_malformed_recipient_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        age.parse_recipient(text)


def test_an_empty_passphrase_and_an_absurd_cost_are_refused() -> None:
    with pytest.raises(ValueError, match="the passphrase is empty"):
        age.ScryptRecipient("")
    with pytest.raises(ValueError, match="work factor 31 is not between"):
        age.ScryptRecipient("x", 31)


def test_without_ml_kem_post_quantum_keys_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    recipient = str(age.parse_identity(HYBRID_SECRET).recipient)
    age_hybrid.post_quantum_supported.cache_clear()
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mlkem", None)
    try:
        assert not age.post_quantum_supported()
        for attempt in (
            lambda: age.parse_recipient(recipient),
            lambda: age.parse_identity(HYBRID_SECRET),
            lambda: age.generate_identity(post_quantum=True),
        ):
            with pytest.raises(
                ValueError, match="post-quantum keys need ML-KEM, which the installed cryptography lacks"
            ):
                attempt()
        assert age.generate_identity().recipient.key_class == "classic"
    finally:
        age_hybrid.post_quantum_supported.cache_clear()
