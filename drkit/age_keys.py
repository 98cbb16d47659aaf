"""The keys of age: recipients seal the file key, identities open it again.

Three classes never mix in a file that is written: ``classic`` (X25519), ``post-quantum`` (ML-KEM-768 with X25519), and
``passphrase`` (scrypt, which stands alone). A file is only as strong as its weakest recipient (C2SP age-plugin.md,
"labels").
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from drkit import age_hybrid, age_x25519, bech32
from drkit.age_header import (
    HeaderDamaged,
    Stanza,
    decode_base64,
    encode_base64,
    open_file_key,
    seal_file_key,
)
from drkit.age_hybrid import HybridIdentity, HybridRecipient, post_quantum_supported
from drkit.age_x25519 import X25519Identity, X25519Recipient

KeyClass = Literal["classic", "post-quantum", "passphrase"]

_SCRYPT_SALT_PREFIX = b"age-encryption.org/v1/scrypt"
_SCRYPT_SALT_BYTES = 16
_SCRYPT_KEY_BYTES = 32
_WORK_FACTOR = re.compile(r"[1-9][0-9]?")


class Recipient(Protocol):
    """Somebody to seal for. ``str()`` gives the public text; nothing of it is secret."""

    @property
    def key_class(self) -> KeyClass:
        """Say which recipients this one may share a file with."""

    def wrap(self, file_key: bytes) -> Stanza:
        """Seal the file key for this recipient, with fresh randomness."""


class Identity(Protocol):
    """Somebody who can open. ``repr()`` and ``str()`` never show the secret."""

    @property
    def recipient(self) -> Recipient:
        """Give the recipient whose files this identity opens."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None where no stanza is for this identity; raise HeaderDamaged for a broken one."""

    def reveal(self) -> str:
        """Return the secret as text."""


class ScryptRecipient:
    """A passphrase; ``work_factor`` is the base-2 logarithm of scrypt's cost: 18 takes about a second and 256 MiB."""

    key_class: ClassVar[KeyClass] = "passphrase"

    def __init__(self, passphrase: str, work_factor: int = 18) -> None:
        if not passphrase:
            raise ValueError("the passphrase is empty")
        if not 1 <= work_factor <= 30:
            raise ValueError(f"the scrypt work factor {work_factor} is not between 1 and 30")
        self._passphrase = passphrase
        self._work_factor = work_factor

    def __str__(self) -> str:
        return "a passphrase"

    def __repr__(self) -> str:
        return f"ScryptRecipient(work_factor={self._work_factor})"

    def wrap(self, file_key: bytes) -> Stanza:
        """Seal the file key under a key stretched from the passphrase and a fresh salt."""
        salt = os.urandom(_SCRYPT_SALT_BYTES)
        key = _stretch(self._passphrase, salt, self._work_factor)
        return Stanza("scrypt", (encode_base64(salt), str(self._work_factor)), seal_file_key(key, file_key))


class ScryptIdentity:
    """A passphrase that opens; a file that asks for a cost above 2^``max_work_factor`` is refused before it is paid."""

    def __init__(self, passphrase: str, max_work_factor: int = 22) -> None:
        self._passphrase = passphrase
        self._max_work_factor = max_work_factor

    def __repr__(self) -> str:
        return "ScryptIdentity()"

    @property
    def recipient(self) -> ScryptRecipient:
        """Give the recipient of the same passphrase."""
        return ScryptRecipient(self._passphrase)

    def reveal(self) -> str:
        """Return the passphrase."""
        return self._passphrase

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key of the stanza, or None where there is none or the passphrase is another."""
        for stanza in stanzas:
            if stanza.kind == "scrypt":
                return self._open(stanza)
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        stanza.require_shape(arguments=2)
        salt = decode_base64(stanza.arguments[0], size=_SCRYPT_SALT_BYTES)
        if not _WORK_FACTOR.fullmatch(stanza.arguments[1]) or int(stanza.arguments[1]) > self._max_work_factor:
            limit = self._max_work_factor
            raise HeaderDamaged(
                f"the header of the age file has a scrypt work factor that is not between 1 and {limit}"
            )
        return open_file_key(_stretch(self._passphrase, salt, int(stanza.arguments[1])), stanza.body)


def parse_recipient(text: str) -> Recipient:
    """Read ``age1…`` or ``age1pq1…``; raise ValueError, which never repeats a secret key."""
    cleaned = text.strip()
    if "SECRET-KEY" in cleaned.upper():
        raise ValueError("this is a secret key where a recipient belongs; a recipient begins with age1")
    try:
        prefix, key = bech32.decode(cleaned)
    except ValueError as error:
        raise ValueError(f'"{_shortened(cleaned)}" is not an age recipient: {error}') from None
    if prefix == age_x25519.RECIPIENT_PREFIX and len(key) == age_x25519.KEY_BYTES:
        return X25519Recipient(key)
    if prefix == age_hybrid.RECIPIENT_PREFIX and len(key) == age_hybrid.RECIPIENT_BYTES:
        _require_hybrid()
        return HybridRecipient(key)
    raise ValueError(
        f'"{_shortened(cleaned)}" is not an age recipient that drkit knows; one begins with age1 or age1pq1'
    )


def parse_identity(text: str) -> Identity:
    """Read ``AGE-SECRET-KEY-1…`` or ``AGE-SECRET-KEY-PQ-1…``; raise ValueError, which never repeats them."""
    cleaned = text.strip()
    if cleaned.startswith("age1"):
        raise ValueError(
            "this is a recipient (a public key) where an identity belongs; one begins with AGE-SECRET-KEY-"
        )
    try:
        prefix, key = bech32.decode(cleaned)
    except ValueError as error:
        raise ValueError(f"this is not an age identity: {error}") from None
    if prefix == age_x25519.IDENTITY_PREFIX and len(key) == age_x25519.KEY_BYTES:
        return X25519Identity(key)
    if prefix == age_hybrid.IDENTITY_PREFIX and len(key) == age_hybrid.SEED_BYTES:
        _require_hybrid()
        return HybridIdentity(key)
    raise ValueError(
        "this is not an age identity that drkit knows; one begins with AGE-SECRET-KEY-1 or AGE-SECRET-KEY-PQ-1"
    )


def generate_identity(*, post_quantum: bool = False) -> Identity:
    """Make a new secret key; raise ValueError where a post-quantum one is asked for and cryptography has no ML-KEM."""
    if post_quantum:
        _require_hybrid()
        return HybridIdentity(os.urandom(age_hybrid.SEED_BYTES))
    return X25519Identity(os.urandom(age_x25519.KEY_BYTES))


def _require_hybrid() -> None:
    if not post_quantum_supported():
        raise ValueError(
            "post-quantum keys need ML-KEM, which the installed cryptography lacks; its wheels have it from 48 on"
        )


def _stretch(passphrase: str, salt: bytes, work_factor: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(_SCRYPT_SALT_PREFIX + salt, _SCRYPT_KEY_BYTES, 1 << work_factor, 8, 1).derive(passphrase.encode())


def _shortened(text: str) -> str:
    return text if len(text) <= 70 else text[:60] + "…"
