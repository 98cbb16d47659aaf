"""Classic age keys: X25519 (C2SP age.md, "The X25519 recipient type")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from drkit import bech32
from drkit.age_header import (
    HeaderDamaged,
    Stanza,
    decode_base64,
    encode_base64,
    hkdf_sha256,
    open_file_key,
    seal_file_key,
)

RECIPIENT_PREFIX = "age"
IDENTITY_PREFIX = "AGE-SECRET-KEY-"
KEY_BYTES = 32

_INFO = b"age-encryption.org/v1/X25519"


class X25519Recipient:
    """A classic public key, ``age1…``; raise ValueError for the few points that give everybody the same secret."""

    key_class: ClassVar[Literal["classic"]] = "classic"

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        exchange(X25519PrivateKey.generate(), public_key)

    def __str__(self) -> str:
        return bech32.encode(RECIPIENT_PREFIX, self._public_key)

    def __repr__(self) -> str:
        return f"X25519Recipient({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, X25519Recipient) and other._public_key == self._public_key

    def __hash__(self) -> int:
        return hash(self._public_key)

    def wrap(self, file_key: bytes) -> Stanza:
        """Seal the file key under a secret shared with a key made for this stanza only."""
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        key = hkdf_sha256(exchange(ephemeral, self._public_key), share + self._public_key, _INFO)
        return Stanza("X25519", (encode_base64(share),), seal_file_key(key, file_key))


class X25519Identity:
    """A classic secret key, ``AGE-SECRET-KEY-1…``."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._private_key = X25519PrivateKey.from_private_bytes(secret)
        self._public_key = self._private_key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"X25519Identity({self.recipient})"

    @property
    def recipient(self) -> X25519Recipient:
        """Give the public key."""
        return X25519Recipient(self._public_key)

    def reveal(self) -> str:
        """Return the secret as text."""
        return bech32.encode(IDENTITY_PREFIX, self._secret)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key of the first stanza that opens, or None."""
        for stanza in stanzas:
            if stanza.kind == "X25519" and (file_key := self._open(stanza)) is not None:
                return file_key
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        stanza.require_shape(arguments=1)
        share = decode_base64(stanza.arguments[0], size=KEY_BYTES)
        secret = agree(self._private_key, share)
        return open_file_key(hkdf_sha256(secret, share + self._public_key, _INFO), stanza.body)


def exchange(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    """Agree on a secret with a recipient; raise ValueError for a point of low order."""
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise ValueError("the recipient is a point of low order, which gives no secrecy") from None


def agree(private_key: X25519PrivateKey, share: bytes) -> bytes:
    """Agree on a secret with the share in a stanza; raise HeaderDamaged for a point of low order."""
    try:
        return exchange(private_key, share)
    except ValueError:
        raise HeaderDamaged(
            "the header of the age file has a share of low order, which no honest writer makes"
        ) from None
