"""The keys of age: recipients seal the file key, identities open it again.

Three classes never mix in a file that is written: ``classic`` (X25519), ``post-quantum`` (ML-KEM-768 with X25519), and
``passphrase`` (scrypt, which stands alone). A file is only as strong as its weakest recipient (C2SP age-plugin.md,
"labels").
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from drkit import bech32
from drkit.age_header import FILE_KEY_BYTES, HeaderDamaged, Stanza, decode_base64, encode_base64, hkdf_sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

KeyClass = Literal["classic", "post-quantum", "passphrase"]

_X25519_INFO = b"age-encryption.org/v1/X25519"
_SCRYPT_SALT_PREFIX = b"age-encryption.org/v1/scrypt"
_HYBRID_INFO = b"age-encryption.org/mlkem768x25519"
_RECIPIENT_PREFIX = "age"
_HYBRID_RECIPIENT_PREFIX = "age1pq"
_IDENTITY_PREFIX = "AGE-SECRET-KEY-"
_HYBRID_IDENTITY_PREFIX = "AGE-SECRET-KEY-PQ-"
_KEY_BYTES = 32
_WRAPPED_BYTES = FILE_KEY_BYTES + 16
_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_SEED_BYTES = 64
_HYBRID_SHARE_BYTES = 1120
_SCRYPT_SALT_BYTES = 16
_WORK_FACTOR = re.compile(r"[1-9][0-9]?")
# Each wrapping key is used for one file key and no more, so the nonce may be constant (C2SP age.md, "X25519").
_ZERO_NONCE = bytes(12)


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


class X25519Recipient:
    """A classic public key, ``age1…``; raise ValueError for the few points that give everybody the same secret."""

    key_class: ClassVar[KeyClass] = "classic"

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        _exchange(X25519PrivateKey.generate(), public_key)

    def __str__(self) -> str:
        return bech32.encode(_RECIPIENT_PREFIX, self._public_key)

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
        key = hkdf_sha256(_exchange(ephemeral, self._public_key), share + self._public_key, _X25519_INFO)
        return Stanza("X25519", (encode_base64(share),), _seal_file_key(key, file_key))


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
        return bech32.encode(_IDENTITY_PREFIX, self._secret)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key of the first stanza that opens, or None."""
        for stanza in stanzas:
            if stanza.kind == "X25519" and (file_key := self._open(stanza)) is not None:
                return file_key
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        _require_shape(stanza, arguments=1)
        share = decode_base64(stanza.arguments[0], size=_KEY_BYTES)
        secret = _agree(self._private_key, share)
        return _open_file_key(hkdf_sha256(secret, share + self._public_key, _X25519_INFO), stanza.body)


class HybridRecipient:
    """A post-quantum public key, ``age1pq1…``: ML-KEM-768 and X25519 together; both must fall before the file does."""

    key_class: ClassVar[KeyClass] = "post-quantum"

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        _exchange(X25519PrivateKey.generate(), public_key[_MLKEM_PUBLIC_BYTES:])
        self._key = _hybrid_public_key(public_key)

    def __str__(self) -> str:
        return bech32.encode(_HYBRID_RECIPIENT_PREFIX, self._public_key)

    def __repr__(self) -> str:
        return f"HybridRecipient({str(self)[:20]}…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HybridRecipient) and other._public_key == self._public_key

    def __hash__(self) -> int:
        return hash(self._public_key)

    def wrap(self, file_key: bytes) -> Stanza:
        """Seal the file key by HPKE (RFC 9180, base mode)."""
        sealed = _hybrid_suite().encrypt(file_key, self._key, _HYBRID_INFO)
        return Stanza(
            "mlkem768x25519", (encode_base64(sealed[:_HYBRID_SHARE_BYTES]),), bytes(sealed[_HYBRID_SHARE_BYTES:])
        )


class HybridIdentity:
    """A post-quantum secret key, ``AGE-SECRET-KEY-PQ-1…``."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._x25519_key, self._key, self._public_key = _hybrid_private_key(seed)

    def __repr__(self) -> str:
        return f"HybridIdentity({str(self.recipient)[:20]}…)"

    @property
    def recipient(self) -> HybridRecipient:
        """Give the public key."""
        return HybridRecipient(self._public_key)

    def reveal(self) -> str:
        """Return the secret as text."""
        return bech32.encode(_HYBRID_IDENTITY_PREFIX, self._seed)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key of the first stanza that opens, or None."""
        for stanza in stanzas:
            if stanza.kind == "mlkem768x25519" and (file_key := self._open(stanza)) is not None:
                return file_key
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        _require_shape(stanza, arguments=1)
        share = decode_base64(stanza.arguments[0], size=_HYBRID_SHARE_BYTES)
        # HPKE reports a share of low order as a tag that fails, which would read as "not for me"; it is a forgery.
        _agree(self._x25519_key, share[-_KEY_BYTES:])
        try:
            return bytes(_hybrid_suite().decrypt(share + stanza.body, self._key, _HYBRID_INFO))
        except InvalidTag:
            return None


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
        return Stanza("scrypt", (encode_base64(salt), str(self._work_factor)), _seal_file_key(key, file_key))


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
        _require_shape(stanza, arguments=2)
        salt = decode_base64(stanza.arguments[0], size=_SCRYPT_SALT_BYTES)
        if not _WORK_FACTOR.fullmatch(stanza.arguments[1]) or int(stanza.arguments[1]) > self._max_work_factor:
            limit = self._max_work_factor
            raise HeaderDamaged(
                f"the header of the age file has a scrypt work factor that is not between 1 and {limit}"
            )
        return _open_file_key(_stretch(self._passphrase, salt, int(stanza.arguments[1])), stanza.body)


def parse_recipient(text: str) -> Recipient:
    """Read ``age1…`` or ``age1pq1…``; raise ValueError, which never repeats a secret key."""
    cleaned = text.strip()
    if cleaned.upper().startswith("AGE-SECRET-KEY-"):
        raise ValueError("this is a secret key where a recipient belongs; a recipient begins with age1")
    try:
        prefix, key = bech32.decode(cleaned)
    except ValueError as error:
        raise ValueError(f'"{_shortened(cleaned)}" is not an age recipient: {error}') from None
    if prefix == _RECIPIENT_PREFIX and len(key) == _KEY_BYTES:
        return X25519Recipient(key)
    if prefix == _HYBRID_RECIPIENT_PREFIX and len(key) == _MLKEM_PUBLIC_BYTES + _KEY_BYTES:
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
    if prefix == _IDENTITY_PREFIX and len(key) == _KEY_BYTES:
        return X25519Identity(key)
    if prefix == _HYBRID_IDENTITY_PREFIX and len(key) == _KEY_BYTES:
        _require_hybrid()
        return HybridIdentity(key)
    raise ValueError(
        "this is not an age identity that drkit knows; one begins with AGE-SECRET-KEY-1 or AGE-SECRET-KEY-PQ-1"
    )


def generate_identity(*, post_quantum: bool = False) -> Identity:
    """Make a new secret key; raise ValueError where a post-quantum one is asked for and cryptography has no ML-KEM."""
    if post_quantum:
        _require_hybrid()
        return HybridIdentity(os.urandom(_KEY_BYTES))
    return X25519Identity(os.urandom(_KEY_BYTES))


@functools.cache
def post_quantum_supported() -> bool:
    """Say whether this cryptography can do ML-KEM; builds against OpenSSL before 3.5 cannot."""
    try:
        _hybrid_private_key(bytes(_KEY_BYTES))
        _hybrid_suite()
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        return False
    return True


def _require_hybrid() -> None:
    if not post_quantum_supported():
        raise ValueError(
            "post-quantum keys need ML-KEM, which the installed cryptography lacks; its wheels have it from 48 on"
        )


@functools.cache
def _hybrid_suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _hybrid_public_key(public_key: bytes) -> MLKEM768X25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC_BYTES:]),
    )


def _hybrid_private_key(seed: bytes) -> tuple[X25519PrivateKey, MLKEM768X25519PrivateKey, bytes]:
    """Expand a seed as X-Wing does (draft-connolly-cfrg-xwing-kem): the X25519 half, the whole, and the public key."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

    expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + _KEY_BYTES)
    mlkem_key = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES])
    x25519_key = X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:])
    public_key = mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
    return x25519_key, MLKEM768X25519PrivateKey(mlkem_key, x25519_key), public_key


def _exchange(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise ValueError("the recipient is a point of low order, which gives no secrecy") from None


def _agree(private_key: X25519PrivateKey, share: bytes) -> bytes:
    try:
        return _exchange(private_key, share)
    except ValueError:
        raise HeaderDamaged(
            "the header of the age file has a share of low order, which no honest writer makes"
        ) from None


def _stretch(passphrase: str, salt: bytes, work_factor: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(_SCRYPT_SALT_PREFIX + salt, _KEY_BYTES, 1 << work_factor, 8, 1).derive(passphrase.encode())


def _require_shape(stanza: Stanza, *, arguments: int) -> None:
    # The body's length is checked before it is opened: it tells how many keys one body could be made to open under
    # (C2SP age.md; partitioning oracles).
    if len(stanza.arguments) != arguments or len(stanza.body) != _WRAPPED_BYTES:
        raise HeaderDamaged(f"the header of the age file has a malformed {stanza.kind} stanza")


def _seal_file_key(key: bytes, file_key: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)


def _open_file_key(key: bytes, body: bytes) -> bytes | None:
    try:
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, body, None)
    except InvalidTag:
        return None


def _shortened(text: str) -> str:
    return text if len(text) <= 70 else text[:60] + "…"
