"""Post-quantum age keys: ML-KEM-768 and X25519 together, sealed by HPKE (C2SP age.md, "mlkem768x25519")."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from drkit import bech32
from drkit.age_header import Stanza, decode_base64, encode_base64
from drkit.age_x25519 import KEY_BYTES, agree, exchange

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

RECIPIENT_PREFIX = "age1pq"
IDENTITY_PREFIX = "AGE-SECRET-KEY-PQ-"
SEED_BYTES = 32

_INFO = b"age-encryption.org/mlkem768x25519"
_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_SEED_BYTES = 64
_SHARE_BYTES = 1120

RECIPIENT_BYTES = _MLKEM_PUBLIC_BYTES + KEY_BYTES


class HybridRecipient:
    """A post-quantum public key, ``age1pq1…``: ML-KEM-768 and X25519 together; both must fall before the file does."""

    key_class: ClassVar[Literal["post-quantum"]] = "post-quantum"

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        exchange(X25519PrivateKey.generate(), public_key[_MLKEM_PUBLIC_BYTES:])
        self._key = _expand_recipient(public_key)

    def __str__(self) -> str:
        return bech32.encode(RECIPIENT_PREFIX, self._public_key)

    def __repr__(self) -> str:
        return f"HybridRecipient({str(self)[:20]}…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HybridRecipient) and other._public_key == self._public_key

    def __hash__(self) -> int:
        return hash(self._public_key)

    def wrap(self, file_key: bytes) -> Stanza:
        """Seal the file key by HPKE (RFC 9180, base mode)."""
        sealed = _suite().encrypt(file_key, self._key, _INFO)
        return Stanza("mlkem768x25519", (encode_base64(sealed[:_SHARE_BYTES]),), bytes(sealed[_SHARE_BYTES:]))


class HybridIdentity:
    """A post-quantum secret key, ``AGE-SECRET-KEY-PQ-1…``."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._x25519_key, self._key, self._public_key = _expand_seed(seed)

    def __repr__(self) -> str:
        return f"HybridIdentity({str(self.recipient)[:20]}…)"

    @property
    def recipient(self) -> HybridRecipient:
        """Give the public key."""
        return HybridRecipient(self._public_key)

    def reveal(self) -> str:
        """Return the secret as text."""
        return bech32.encode(IDENTITY_PREFIX, self._seed)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key of the first stanza that opens, or None."""
        for stanza in stanzas:
            if stanza.kind == "mlkem768x25519" and (file_key := self._open(stanza)) is not None:
                return file_key
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        stanza.require_shape(arguments=1)
        share = decode_base64(stanza.arguments[0], size=_SHARE_BYTES)
        # HPKE reports a share of low order as a tag that fails, which would read as "not for me"; it is a forgery.
        agree(self._x25519_key, share[-KEY_BYTES:])
        try:
            return bytes(_suite().decrypt(share + stanza.body, self._key, _INFO))
        except InvalidTag:
            return None


@functools.cache
def post_quantum_supported() -> bool:
    """Say whether this cryptography can do ML-KEM; builds against OpenSSL before 3.5 cannot."""
    try:
        _expand_seed(bytes(SEED_BYTES))
        _suite()
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        return False
    return True


@functools.cache
def _suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _expand_recipient(public_key: bytes) -> MLKEM768X25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

    try:
        mlkem_key = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES])
    except ValueError:
        raise ValueError("the recipient holds no valid ML-KEM-768 key") from None
    x25519_key = X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC_BYTES:])
    return MLKEM768X25519PublicKey(mlkem_key, x25519_key)


def _expand_seed(seed: bytes) -> tuple[X25519PrivateKey, MLKEM768X25519PrivateKey, bytes]:
    """Expand a seed as X-Wing does (draft-connolly-cfrg-xwing-kem): the X25519 half, the whole, and the public key."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

    expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + KEY_BYTES)
    mlkem_key = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES])
    x25519_key = X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:])
    public_key = mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
    return x25519_key, MLKEM768X25519PrivateKey(mlkem_key, x25519_key), public_key
