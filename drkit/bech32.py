"""Bech32 (BIP 173) without its limit of 90 characters: how age spells keys so that a mistyped one is noticed."""

from __future__ import annotations

from collections.abc import Iterable

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_CHARACTERS = 6


def encode(prefix: str, data: bytes) -> str:
    """Spell ``data`` behind ``prefix``; the text is in capitals if the prefix is."""
    values = _regroup(data, 8, 5, pad=True)
    remainder = _polymod([*_expand(prefix.lower()), *values, *[0] * _CHECKSUM_CHARACTERS]) ^ 1
    checksum = [remainder >> 5 * (_CHECKSUM_CHARACTERS - 1 - place) & 31 for place in range(_CHECKSUM_CHARACTERS)]
    text = f"{prefix.lower()}1{''.join(_ALPHABET[value] for value in (*values, *checksum))}"
    return text.upper() if prefix.isupper() else text


def decode(text: str) -> tuple[str, bytes]:
    """Read prefix (in its own case) and data; raise ValueError, which never repeats the text, if it is malformed."""
    if text not in (text.lower(), text.upper()):
        raise ValueError("capitals and small letters are mixed")
    prefix, one, rest = text.rpartition("1")
    if not prefix or not one or len(rest) < _CHECKSUM_CHARACTERS:
        raise ValueError("it is incomplete")
    if not all("!" <= character <= "~" for character in prefix):
        raise ValueError("it has a character that does not belong there")
    try:
        values = [_VALUES[character] for character in rest.lower()]
    except KeyError:
        raise ValueError("it has a character that does not belong there") from None
    if _polymod([*_expand(prefix.lower()), *values]) != 1:
        raise ValueError("its checksum is wrong, so it is mistyped or incomplete")
    return prefix, bytes(_regroup(values[:-_CHECKSUM_CHARACTERS], 5, 8, pad=False))


def _expand(prefix: str) -> list[int]:
    return [*(ord(character) >> 5 for character in prefix), 0, *(ord(character) & 31 for character in prefix)]


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for place, generator in enumerate(_GENERATORS):
            if top >> place & 1:
                checksum ^= generator
    return checksum


def _regroup(values: Iterable[int], from_bits: int, to_bits: int, *, pad: bool) -> list[int]:
    """Cut values of ``from_bits`` into values of ``to_bits``; without ``pad`` only a few zero bits may be left over."""
    held, held_bits, regrouped = 0, 0, []
    for value in values:
        held = held << from_bits | value
        held_bits += from_bits
        while held_bits >= to_bits:
            held_bits -= to_bits
            regrouped.append(held >> held_bits)
            held &= (1 << held_bits) - 1
    if pad and held_bits:
        regrouped.append(held << to_bits - held_bits)
    elif not pad and (held_bits >= from_bits or held):
        raise ValueError("its last character carries stray bits")
    return regrouped
