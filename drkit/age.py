"""age v1 files, written and read as streams in constant memory (https://c2sp.org/age).

`encrypt` and `decrypt` are the whole story for callers; keys are in `age_keys`, the header in `age_header`. Stock
``age -d`` opens what `encrypt` writes, and the other way round. age's algorithms are not approved by FIPS 140.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from drkit.age_header import (
    ARMOR_BEGIN,
    FILE_KEY_BYTES,
    MAX_STANZAS,
    NONCE_BYTES,
    ArmorDamaged,
    HeaderDamaged,
    HeaderForged,
    NoIdentityMatches,
    PayloadDamaged,
    Stanza,
    encode_header,
    hkdf_sha256,
    parse_header,
    take_header,
)
from drkit.age_hybrid import post_quantum_supported
from drkit.age_keys import (
    Identity,
    Recipient,
    ScryptIdentity,
    ScryptRecipient,
    generate_identity,
    parse_identity,
    parse_recipient,
)
from drkit.errors import ConfigError

__all__ = [
    "ArmorDamaged",
    "HeaderDamaged",
    "HeaderForged",
    "Identity",
    "NoIdentityMatches",
    "PayloadDamaged",
    "Recipient",
    "ScryptIdentity",
    "ScryptRecipient",
    "Stanza",
    "armor",
    "dearmor",
    "decrypt",
    "encrypt",
    "generate_identity",
    "parse_identity",
    "parse_recipient",
    "post_quantum_supported",
    "sealed_size",
]

CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES

# Python's cost is per call, so chunks of age travel in blocks of 16: 1 MiB of plaintext.
_CHUNKS_PER_BLOCK = 16
_BLOCK_BYTES = _CHUNKS_PER_BLOCK * CHUNK_BYTES

_ARMOR_END = b"-----END AGE ENCRYPTED FILE-----"
_ARMOR_COLUMNS = 64


def encrypt(
    chunks: Iterable[bytes], recipients: Sequence[Recipient], *, block_bytes: int = _BLOCK_BYTES
) -> Iterator[bytes]:
    """Seal a stream for ``recipients``: yield the header first, then blocks of about ``block_bytes``, 64 KiB or more.

    Raise ConfigError, before anything is read, unless all recipients are of one class, and a passphrase alone. Whoever
    stops before the end leaves a file that every reader refuses as cut.
    """
    _require_one_class(recipients)
    file_key = os.urandom(FILE_KEY_BYTES)
    nonce = os.urandom(NONCE_BYTES)
    header = encode_header([recipient.wrap(file_key) for recipient in recipients], file_key)
    payload_key = hkdf_sha256(file_key, nonce, b"payload")
    return _sealed(header + nonce, _seal_payload(chunks, payload_key, block_bytes // CHUNK_BYTES))


def decrypt(chunks: Iterable[bytes], identities: Sequence[Identity]) -> Iterator[bytes]:
    """Open a stream: yield plaintext in blocks of up to 1 MiB, each of them authenticated before it is yielded.

    Raise NoIdentityMatches (a KeyUnavailable), or HeaderDamaged, HeaderForged or PayloadDamaged (IntegrityErrors). A
    cut shows only where the bytes end, so what was yielded is the whole plaintext only once the iterator is exhausted.
    """
    source = iter(chunks)
    raw_header, nonce, rest = take_header(source)
    header = parse_header(raw_header)
    file_key = _unwrap(header.stanzas, identities)
    header.verify(file_key)
    yield from _open_payload(itertools.chain((rest,), source), hkdf_sha256(file_key, nonce, b"payload"))


def sealed_size(plain_bytes: int, header_bytes: int) -> int:
    """Predict the size in bytes of an age file from its plaintext's and its header's (without the nonce)."""
    sealed_chunks = max(1, -(-plain_bytes // CHUNK_BYTES))
    return header_bytes + NONCE_BYTES + plain_bytes + TAG_BYTES * sealed_chunks


def armor(data: bytes) -> str:
    """Spell an age file as text: strict PEM with age's label. The whole file is held in memory."""
    text = base64.b64encode(data)
    lines = [text[start : start + _ARMOR_COLUMNS] for start in range(0, len(text), _ARMOR_COLUMNS)]
    return b"\n".join([ARMOR_BEGIN, *lines, _ARMOR_END, b""]).decode("ascii")


def dearmor(text: str | bytes) -> bytes:
    """Read the text form of an age file; raise ArmorDamaged unless it is strict (C2SP age.md, "ASCII armor").

    White space is accepted before and after the file, and CRLF as the end of a line; nothing else that `armor` would
    not write.
    """
    raw = text.encode() if isinstance(text, str) else text
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    while lines and not lines[0].strip():
        del lines[0]
    while lines and not lines[-1].strip():
        del lines[-1]
    if len(lines) < 2 or lines[0] != ARMOR_BEGIN or lines[-1] != _ARMOR_END:
        raise ArmorDamaged("the armor of the age file does not begin and end with its marker lines")
    *full, last = lines[1:-1] or [b""]
    if any(len(line) != _ARMOR_COLUMNS for line in full) or len(last) > _ARMOR_COLUMNS or (full and not last):
        raise ArmorDamaged(f"the armor of the age file has a line that is not {_ARMOR_COLUMNS} characters long")
    joined = b"".join((*full, last))
    try:
        data = base64.b64decode(joined, validate=True)
    except binascii.Error:
        raise ArmorDamaged("the armor of the age file is not base64") from None
    if base64.b64encode(data) != joined:
        raise ArmorDamaged("the armor of the age file is not in canonical base64")
    return data


def _require_one_class(recipients: Sequence[Recipient]) -> None:
    if not recipients:
        raise ConfigError("there is no recipient to encrypt for")
    if len(recipients) > MAX_STANZAS:
        raise ConfigError(f"there are {len(recipients)} recipients; an age file takes at most {MAX_STANZAS}")
    classes = sorted({recipient.key_class for recipient in recipients})
    if len(classes) > 1:
        raise ConfigError(
            f"the recipients are of different classes ({' and '.join(classes)}); one file takes one class"
        )
    if classes == ["passphrase"] and len(recipients) > 1:
        raise ConfigError("a passphrase must be the only recipient of a file")


def _unwrap(stanzas: Sequence[Stanza], identities: Sequence[Identity]) -> bytes:
    for identity in identities:
        if (file_key := identity.unwrap(stanzas)) is not None:
            return file_key
    if stanzas[0].kind == "scrypt":
        given = any(isinstance(identity, ScryptIdentity) for identity in identities)
        raise NoIdentityMatches(
            "the passphrase does not open this age file"
            if given
            else "this age file is sealed with a passphrase, and none was given"
        )
    known = Counter(stanza.kind if stanza.kind in ("X25519", "mlkem768x25519") else "unknown" for stanza in stanzas)
    sealed_for = ", ".join(f"{count} {kind}" for kind, count in sorted(known.items()))
    raise NoIdentityMatches(
        f"no identity of {len(identities)} tried opens this age file, which is sealed for {sealed_for}"
    )


def _sealed(header: bytes, payload: Iterator[bytes]) -> Iterator[bytes]:
    yield header
    yield from payload


def _seal_payload(chunks: Iterable[bytes], key: bytes, chunks_per_block: int) -> Iterator[bytes]:
    cipher = ChaCha20Poly1305(key)
    # One buffer for all blocks: a fresh result for each chunk takes twice as long as the cipher itself.
    sealed = memoryview(bytearray(chunks_per_block * SEALED_CHUNK_BYTES))
    counter = 0
    for block, is_last in _in_blocks(chunks, chunks_per_block * CHUNK_BYTES):
        size = 0
        # An empty payload still has its one, empty, final chunk.
        for start in range(0, len(block) or 1, CHUNK_BYTES):
            plain = block[start : start + CHUNK_BYTES]
            final = is_last and start + CHUNK_BYTES >= len(block)
            end = size + len(plain) + TAG_BYTES
            cipher.encrypt_into(_chunk_nonce(counter, final=final), plain, None, sealed[size:end])
            size, counter = end, counter + 1
        yield bytes(sealed[:size])


def _open_payload(chunks: Iterable[bytes], key: bytes) -> Iterator[bytes]:
    cipher = ChaCha20Poly1305(key)
    plain = memoryview(bytearray())
    counter = 0
    for block, is_last in _in_blocks(chunks, _CHUNKS_PER_BLOCK * SEALED_CHUNK_BYTES):
        if len(plain) < len(block):  # the first block: none is longer, and thousands of streams are a few bytes
            plain = memoryview(bytearray(len(block)))
        size, problem = 0, ""
        for start in range(0, len(block) or 1, SEALED_CHUNK_BYTES):
            sealed = block[start : start + SEALED_CHUNK_BYTES]
            at_end = is_last and start + SEALED_CHUNK_BYTES >= len(block)
            opened, problem = _open_chunk(cipher, counter, sealed, plain[size:], at_end=at_end)
            size, counter = size + opened, counter + 1
            if problem:
                break
        if size:
            yield bytes(plain[:size])
        if problem:
            raise PayloadDamaged(problem)


def _open_chunk(
    cipher: ChaCha20Poly1305, counter: int, sealed: memoryview, plain: memoryview, *, at_end: bool
) -> tuple[int, str]:
    """Open one chunk into ``plain``; return how many bytes are authentic, and what is wrong, if anything.

    A chunk knows whether it is the final one. One that is whole and says otherwise than its place is authentic all the
    same, and tells a cut or lengthened file from an altered one.
    """
    size = len(sealed) - TAG_BYTES
    if size < 0:
        return 0, f"the age file is cut: it ends inside chunk {counter}"
    if _opens(cipher, _chunk_nonce(counter, final=at_end), sealed, plain[:size]):
        if at_end and counter and not size:
            return 0, f"the age file ends in an empty chunk {counter}, which no honest writer makes"
        return size, ""
    if size == CHUNK_BYTES and _opens(cipher, _chunk_nonce(counter, final=not at_end), sealed, plain[:size]):
        return size, (
            f"the age file is cut: it ends after chunk {counter}, which is not its last"
            if at_end
            else f"the age file has bytes after chunk {counter}, its last"
        )
    return 0, f"the age file is altered or cut at chunk {counter}: it does not authenticate"


def _opens(cipher: ChaCha20Poly1305, nonce: bytes, sealed: memoryview, plain: memoryview) -> bool:
    try:
        cipher.decrypt_into(nonce, sealed, None, plain)
    except InvalidTag:
        return False
    return True


def _chunk_nonce(counter: int, *, final: bool) -> bytes:
    """Build a chunk's nonce: eleven bytes of counter, and one that is set on the final chunk."""
    return (counter << 8 | final).to_bytes(12, "big")


def _in_blocks(chunks: Iterable[bytes], block_bytes: int) -> Iterator[tuple[memoryview, bool]]:
    """Cut a stream into blocks of ``block_bytes``; the last, marked True, may be shorter, or empty in an empty stream.

    A full block is held back until another byte comes, because only then is it known not to be the last. A chunk of
    exactly one block passes through uncopied. A block is valid until the next one is asked for.
    """
    gathered = memoryview(bytearray())
    filled = 0
    full: memoryview | None = None
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            if full is not None:
                yield full, False
                full, filled = None, 0
            missing = block_bytes - filled
            taken, rest = rest[:missing], rest[missing:]
            if len(taken) == block_bytes:
                full = taken
            else:
                if filled + len(taken) > len(gathered):  # a short stream is often one chunk
                    longer = memoryview(bytearray(block_bytes if filled else len(taken)))
                    longer[:filled] = gathered[:filled]
                    gathered = longer
                gathered[filled : filled + len(taken)] = taken
                filled += len(taken)
                full = gathered if filled == block_bytes else None
    yield gathered[:filled] if full is None else full, True
