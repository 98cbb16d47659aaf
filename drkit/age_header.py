"""The header of an age v1 file: stanzas that wrap the file key, and the MAC over them (C2SP age.md, "Header")."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from drkit.errors import IntegrityError, KeyUnavailable

FILE_KEY_BYTES = 16
NONCE_BYTES = 16
ARMOR_BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"

# The specification sets no limits. Without any, a file of junk would be read into memory whole in search of the end of
# its header. A post-quantum stanza takes 1.6 kB, so 32 of them fit.
MAX_HEADER_BYTES = 64 * 1024
MAX_STANZAS = 32

_VERSION = b"age-encryption.org/v1\n"
_VERSION_PREFIX = b"age-encryption.org/"
_STANZA = re.compile(rb"-> ([!-~]+(?: [!-~]+)*)\n((?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n)")
_END = re.compile(rb"--- ([A-Za-z0-9+/]{43})\n")
_BODY_COLUMNS = 64
_WRAPPED_BYTES = FILE_KEY_BYTES + 16
# Each wrapping key is used for one file key and no more, so the nonce may be constant (C2SP age.md, "X25519").
_ZERO_NONCE = bytes(12)


class HeaderDamaged(IntegrityError):
    """The header of an age file does not follow the specification, or ends too early."""


class HeaderForged(IntegrityError):
    """The header of an age file is well-formed and opens, but its MAC says that it was changed."""


class PayloadDamaged(IntegrityError):
    """The payload of an age file is altered, cut or has bytes after its end; what was yielded before is authentic."""


class ArmorDamaged(IntegrityError):
    """The text form of an age file is not strict PEM with the age label."""


class NoIdentityMatches(KeyUnavailable):
    """The header of an age file is well-formed, and none of the identities opens one of its stanzas."""


@dataclass(frozen=True)
class Stanza:
    """The file key wrapped for one recipient: a kind, its arguments, and a body."""

    kind: str
    arguments: tuple[str, ...]
    body: bytes

    def require_shape(self, *, arguments: int) -> None:
        """Raise HeaderDamaged unless the stanza has so many arguments, and a body that wraps one file key.

        The body's length is checked before it is opened: a longer one can be made to open under many keys, and then
        whether it opened tells an attacker about the key (partitioning oracles; C2SP age.md).
        """
        if len(self.arguments) != arguments or len(self.body) != _WRAPPED_BYTES:
            raise HeaderDamaged(f"the header of the age file has a malformed {self.kind} stanza")

    def encode(self) -> bytes:
        """Spell the stanza as it stands in a header."""
        text = encode_base64(self.body)
        # A body ends in a line shorter than 64 columns, so one that fills its lines is followed by an empty line.
        lines = [text[start : start + _BODY_COLUMNS] for start in range(0, len(text) + 1, _BODY_COLUMNS)]
        return "\n".join([" ".join(("->", self.kind, *self.arguments)), *lines, ""]).encode("ascii")


@dataclass(frozen=True)
class Header:
    """A parsed header: ``authenticated`` are the bytes, as they were read, that ``mac`` covers."""

    stanzas: tuple[Stanza, ...]
    authenticated: bytes
    mac: bytes

    def verify(self, file_key: bytes) -> None:
        """Raise HeaderForged unless the MAC was made with ``file_key`` over these very bytes."""
        if not hmac.compare_digest(self.mac, _mac(self.authenticated, file_key)):
            raise HeaderForged("the header of the age file was changed after it was written: its MAC does not match")


def encode_header(stanzas: Sequence[Stanza], file_key: bytes) -> bytes:
    """Spell a header and seal it with its MAC."""
    authenticated = _VERSION + b"".join(stanza.encode() for stanza in stanzas) + b"---"
    return authenticated + f" {encode_base64(_mac(authenticated, file_key))}\n".encode("ascii")


def parse_header(data: bytes) -> Header:
    """Read one whole header; raise HeaderDamaged naming the line that breaks the specification."""
    _require_version(data)
    stanzas: list[Stanza] = []
    position = len(_VERSION)
    while match := _STANZA.match(data, position):
        kind, *arguments = match[1].decode("ascii").split(" ")
        stanzas.append(Stanza(kind, tuple(arguments), decode_base64(match[2].replace(b"\n", b"").decode("ascii"))))
        position = match.end()
    end = _END.fullmatch(data, position)
    if end is None or not stanzas:
        line = data.count(b"\n", 0, position) + 1
        raise HeaderDamaged(f"the header of the age file is malformed at line {line}")
    if len(stanzas) > MAX_STANZAS:
        raise HeaderDamaged(f"the header of the age file has {len(stanzas)} stanzas; at most {MAX_STANZAS} are read")
    if len(stanzas) > 1 and any(stanza.kind == "scrypt" for stanza in stanzas):
        raise HeaderDamaged("the header of the age file mixes a passphrase with other recipients")
    return Header(tuple(stanzas), data[: position + 3], decode_base64(end[1].decode("ascii"), size=32))


def take_header(chunks: Iterator[bytes]) -> tuple[bytes, bytes, bytes]:
    """Take the header and the payload's nonce off the front of a file; return both and what was read beyond them.

    Raise HeaderDamaged as soon as it is clear that no header comes, so that junk of any length costs little to refuse.
    """
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        if len(buffer) >= len(_VERSION):
            _require_version(buffer)
        end = _header_end(buffer)
        if end > MAX_HEADER_BYTES or (not end and len(buffer) > MAX_HEADER_BYTES):
            raise HeaderDamaged(f"the header of the age file has no end within {MAX_HEADER_BYTES:,} bytes")
        if end and len(buffer) >= end + NONCE_BYTES:
            nonce_end = end + NONCE_BYTES
            return bytes(buffer[:end]), bytes(buffer[end:nonce_end]), bytes(buffer[nonce_end:])
    _require_version(buffer)
    raise HeaderDamaged(f"the age file ends inside its header, after {len(buffer):,} bytes")


def encode_base64(data: bytes) -> str:
    """Spell bytes in standard base64 without padding."""
    return base64.b64encode(data).decode("ascii").rstrip("=")


def decode_base64(text: str, *, size: int | None = None) -> bytes:
    """Read canonical base64 without padding, of ``size`` bytes if given; raise HeaderDamaged for anything else."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise HeaderDamaged("the header of the age file has a value that is not base64") from None
    # Python's decoder takes padding and stray low bits in its stride; one value must have one spelling only.
    if encode_base64(data) != text:
        raise HeaderDamaged("the header of the age file has a value that is not in canonical base64")
    if size is not None and len(data) != size:
        raise HeaderDamaged(f"the header of the age file has a value of {len(data)} bytes where {size} belong")
    return data


def hkdf_sha256(key_material: bytes, salt: bytes, info: bytes) -> bytes:
    """Derive 32 bytes (RFC 5869)."""
    return HKDF(SHA256(), 32, salt, info).derive(key_material)


def seal_file_key(key: bytes, file_key: bytes) -> bytes:
    """Wrap the file key under a key that is used for nothing else."""
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)


def open_file_key(key: bytes, body: bytes) -> bytes | None:
    """Unwrap the file key; None where it was wrapped under another key."""
    try:
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, body, None)
    except InvalidTag:
        return None


def _mac(authenticated: bytes, file_key: bytes) -> bytes:
    return hmac.digest(hkdf_sha256(file_key, b"", b"header"), authenticated, "sha256")


def _header_end(buffer: bytearray) -> int:
    """Find the end of the MAC line; 0 while it is not there. No earlier line of a header can begin with ``---``."""
    start = buffer.find(b"\n---")
    return buffer.find(b"\n", start + 1) + 1 if start >= 0 else 0


def _require_version(data: bytes | bytearray) -> None:
    if data.startswith(_VERSION):
        return
    if not data:
        raise HeaderDamaged("the age file is empty")
    if _VERSION.startswith(data):
        raise HeaderDamaged(f"the age file ends inside its header, after {len(data):,} bytes")
    if data.startswith(ARMOR_BEGIN):
        raise HeaderDamaged("the age file is in its text form (armor), and a binary one was expected")
    if data.startswith(_VERSION_PREFIX):
        raise HeaderDamaged("the first line of the age file is not exactly age-encryption.org/v1")
    raise HeaderDamaged("this is not an age file: its first line is not age-encryption.org/v1")
