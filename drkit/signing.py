"""Signatures that stock ``ssh-keygen -Y verify`` checks: SSHSIG over Ed25519, and the lists of signers to trust.

Source of the format: OpenSSH's PROTOCOL.sshsig; of the list: ssh-keygen(1), ALLOWED SIGNERS. Nothing here reads a file
or a clock.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from drkit.bucket import trust_key
from drkit.errors import ConfigError, IntegrityError, Problem
from drkit.model import Document, Moment
from drkit.units import format_utc

MANIFEST_NAMESPACE = "drkit-manifest"
EVIDENCE_NAMESPACE = "drkit-evidence"
TOMBSTONE_NAMESPACE = "drkit-tombstone"
NAMESPACES = (MANIFEST_NAMESPACE, EVIDENCE_NAMESPACE, TOMBSTONE_NAMESPACE)

_BEGIN = b"-----BEGIN SSH SIGNATURE-----\n"
_END = b"-----END SSH SIGNATURE-----"
_MAGIC = b"SSHSIG"
_VERSION = 1
_KEY_TYPE = b"ssh-ed25519"
_HASHES = {b"sha512": hashlib.sha512, b"sha256": hashlib.sha256}
_LINE_COLUMNS = 70
_LIST_LINE = re.compile(
    r"""(?P<principals>"[^"]+"|[^\s"]+)
        (?:\s+(?P<options>(?:[^\s"]|"[^"]*")+))?
        \s+(?P<type>[a-z0-9@.-]*(?:ssh|ecdsa)-[a-z0-9@.-]+)
        \s+(?P<key>[A-Za-z0-9+/=]+)(?:\s.*)?""",
    re.VERBOSE,
)
_OPTION = re.compile(r'([A-Za-z-]+)(?:="([^"]*)")?(?:,|$)')
_TIMESTAMP_FORMS = {9: "%Y%m%dZ", 13: "%Y%m%d%H%MZ", 15: "%Y%m%d%H%M%SZ"}


@dataclass(frozen=True)
class Signer:
    """One line of an allowed_signers file: a key, what it may sign, and from when until when.

    ``namespaces`` are patterns with ``*``, ``?`` and a leading ``!``; None allows every namespace. Both ends of the
    window belong to it.
    """

    principal: str
    key_id: str
    public_key: Ed25519PublicKey
    namespaces: tuple[str, ...] | None = None
    valid_after: datetime | None = None
    valid_before: datetime | None = None

    def may_sign(self, namespace: str) -> bool:
        """Tell whether the key is allowed in ``namespace``."""
        return self.namespaces is None or _matches(namespace, self.namespaces)

    def valid_at(self, moment: datetime) -> bool:
        """Tell whether ``moment`` is inside the window of the key."""
        after_start = self.valid_after is None or moment >= self.valid_after
        return after_start and (self.valid_before is None or moment <= self.valid_before)


class Trust(Document):
    """A public key as the bucket keeps it, ``trust/<key_id>.json``, so that a person can tell which key is meant.

    It tells, it does not decide: whoever can write to the bucket can write one. Trust comes from an allowed_signers
    file that is kept elsewhere. Retirement is a second object with ``retired_at`` set (R1: nothing is overwritten).
    """

    format: Literal["drkit-trust"] = "drkit-trust"
    version: Literal[1] = 1
    kind: Literal["recipient", "signer"]
    key_id: str
    public_key: str
    name: str | None = None
    namespaces: tuple[str, ...] | None = None
    valid_from: Moment
    retired_at: Moment | None = None

    @property
    def object_key(self) -> str:
        """Return the name of the document's object in a store."""
        return trust_key(f"{self.key_id}.retired" if self.retired_at else self.key_id)


def trust_of_signer(signer: Signer, *, valid_from: datetime) -> Trust:
    """Return the trust document of a signer."""
    return Trust(
        kind="signer",
        key_id=signer.key_id,
        public_key=public_key_text(signer.public_key),
        name=signer.principal,
        namespaces=signer.namespaces,
        valid_from=valid_from,
        retired_at=signer.valid_before,
    )


def public_key_text(key: Ed25519PublicKey) -> str:
    """Return the key as a ``.pub`` file has it, without a comment: ``ssh-ed25519 AAAA…``."""
    return f"ssh-ed25519 {base64.b64encode(_public_blob(key)).decode()}"


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key in documents: ``ssh:`` and the first 16 hex digits of the SHA-256 of its wire form."""
    return "ssh:" + hashlib.sha256(_public_blob(key)).hexdigest()[:16]


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the same digest whole, as ``ssh-keygen -lf`` prints it: ``SHA256:`` and unpadded base64."""
    digest = base64.b64encode(hashlib.sha256(_public_blob(key)).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


def allowed_signers_line(
    principal: str,
    key: Ed25519PublicKey,
    *,
    namespaces: Sequence[str] = NAMESPACES,
    valid_after: datetime | None = None,
    valid_before: datetime | None = None,
) -> str:
    """Return the line, without a newline, that makes ``key`` an allowed signer."""
    options = [f'namespaces="{",".join(namespaces)}"'] if namespaces else []
    for name, moment in (("valid-after", valid_after), ("valid-before", valid_before)):
        if moment is not None:
            options.append(f'{name}="{moment.astimezone(UTC):%Y%m%d%H%M%SZ}"')
    return " ".join([principal, *([",".join(options)] if options else []), public_key_text(key)])


def sign(message: bytes, key: Ed25519PrivateKey, namespace: str) -> bytes:
    """Return the armored signature, byte for byte what ``ssh-keygen -Y sign -n namespace`` writes."""
    signature = key.sign(_signed_bytes(message, namespace.encode(), b"sha512"))
    blob = _MAGIC + _VERSION.to_bytes(4, "big")
    for field in (
        _public_blob(key.public_key()),
        namespace.encode(),
        b"",
        b"sha512",
        _string(_KEY_TYPE) + _string(signature),
    ):
        blob += _string(field)
    return _armor(blob)


def _armor(blob: bytes) -> bytes:
    text = base64.b64encode(blob)
    lines = [text[start : start + _LINE_COLUMNS] for start in range(0, len(text), _LINE_COLUMNS)]
    return _BEGIN + b"\n".join(lines) + b"\n" + _END + b"\n"


def verify(
    message: bytes,
    signature: bytes,
    namespace: str,
    trusted: Sequence[Signer],
    *,
    what: str = "the document",
    at: datetime | None = None,
) -> Signer:
    """Return the trusted signer of ``message``, or raise IntegrityError with the one reason why there is none.

    ``what`` is the noun of the messages. ``at`` is the moment that the message says it was made, checked against the
    signer's window; without it the window is not looked at, so that a caller can verify first, then read the moment
    from the message, then verify again. Stricter than ssh-keygen: a signature has one spelling only.
    """
    found = _parse(signature, what)
    if found.namespace != namespace.encode():
        made_for = found.namespace.decode(errors="replace")
        raise IntegrityError(f'the signature of {what} was made for "{made_for}", not for "{namespace}"')
    try:
        found.key.verify(found.signature, _signed_bytes(message, found.namespace, found.hash_name))
    except InvalidSignature:
        raise IntegrityError(f"the signature of {what} does not fit it: one of the two was changed") from None
    return _trusted_signer(found.key, namespace, trusted, what=what, at=at)


def verify_moment(signer: Signer, namespace: str, trusted: Sequence[Signer], *, what: str, at: datetime) -> Signer:
    """Do the rest of `verify`, once the moment is read from a message that ``signer`` was found to have signed."""
    return _trusted_signer(signer.public_key, namespace, trusted, what=what, at=at)


def parse_allowed_signers(text: str, where: str) -> list[Signer]:
    """Read an allowed_signers file; raise ConfigError that lists every bad line of the file ``where``.

    Stricter than ssh-keygen: only Ed25519 keys, no certificate authorities, and moments need their ``Z``, because the
    same file must mean the same thing on two hosts.
    """
    signers, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            signers.append(_parse_list_line(line.strip()))
        except ValueError as error:
            problems.append(Problem(where, number, 1, "", str(error)))
    if problems:
        raise ConfigError(f"the list of allowed signers {where} cannot be used", problems=problems)
    return signers


@dataclass(frozen=True)
class _Signature:
    key: Ed25519PublicKey
    namespace: bytes
    hash_name: bytes
    signature: bytes


def _trusted_signer(
    key: Ed25519PublicKey, namespace: str, trusted: Sequence[Signer], *, what: str, at: datetime | None
) -> Signer:
    # Whole keys are compared: a key id is short enough for a stranger to make one that has it.
    known = [signer for signer in trusted if signer.public_key == key]
    if not known:
        allowed_keys = [f"allowed is {signer.principal} with {fingerprint(signer.public_key)}" for signer in trusted]
        raise IntegrityError(
            f"{what} is signed by a stranger: no allowed signer has the key {key_id(key)} ({fingerprint(key)})",
            details=allowed_keys or ["there is no allowed signer at all"],
        )
    allowed = [signer for signer in known if signer.may_sign(namespace)]
    if not allowed:
        raise IntegrityError(f'{what} is signed by {known[0].principal}, whose key may not sign "{namespace}"')
    for signer in allowed:
        if at is None or signer.valid_at(at):
            return signer
    first = allowed[0]
    window = [f"valid after {format_utc(first.valid_after)}"] if first.valid_after else []
    window += [f"valid before {format_utc(first.valid_before)}"] if first.valid_before else []
    raise IntegrityError(
        f"{what} is signed by {first.principal} outside the time in which the key {first.key_id} is valid",
        details=[*([f"signed at {format_utc(at)}"] if at else []), *window],
    )


def _parse(armored: bytes, what: str) -> _Signature:
    def damaged(reason: str) -> NoReturn:
        raise IntegrityError(f"the signature of {what} is damaged: {reason}")

    if not armored.strip():
        raise IntegrityError(f"{what} is not signed: its signature is empty")
    if not armored.startswith(_BEGIN):
        damaged("it does not begin with the line BEGIN SSH SIGNATURE")
    body, footer, rest = armored[len(_BEGIN) :].partition(b"\n" + _END)
    if not footer:
        damaged("it is cut off before the line END SSH SIGNATURE")
    if rest not in (b"", b"\n"):
        damaged("something follows the line END SSH SIGNATURE")
    text = body.replace(b"\n", b"")
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        damaged("it is not base64")
    if base64.b64encode(blob) != text:
        damaged("its base64 has stray bits at the end")
    if _armor(blob) != armored:
        damaged("its lines are not broken as ssh-keygen breaks them, or the last one is cut")
    try:
        return _parse_blob(blob)
    except ValueError as error:
        damaged(str(error))


def _parse_blob(blob: bytes) -> _Signature:
    if not blob.startswith(_MAGIC) or len(blob) < len(_MAGIC) + 4:
        raise ValueError("it is not an SSH signature")
    version = int.from_bytes(blob[6:10], "big")
    if version != _VERSION:
        raise ValueError(f"its format has version {version}, and only version {_VERSION} is known")
    fields = _strings(blob[10:], count=5)
    public, namespace, _reserved, hash_name, signature = fields
    if hash_name not in _HASHES:
        raise ValueError("its hash is neither sha512 nor sha256")
    key_type, raw_signature = _strings(signature, count=2)
    if key_type != _KEY_TYPE or len(raw_signature) != 64:
        raise ValueError("it was not made with an Ed25519 key")
    return _Signature(_parse_public_blob(public), namespace, hash_name, raw_signature)


def _parse_public_blob(blob: bytes) -> Ed25519PublicKey:
    key_type, raw = _strings(blob, count=2)
    if key_type != _KEY_TYPE or len(raw) != 32:
        raise ValueError("its key is not an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(raw)


def _strings(data: bytes, *, count: int) -> list[bytes]:
    """Read exactly ``count`` length-prefixed strings (RFC 4251 section 5), with nothing after them."""
    strings, position = [], 0
    for _ in range(count):
        size = int.from_bytes(data[position : position + 4], "big")
        start, position = position + 4, position + 4 + size
        if position > len(data):
            raise ValueError("it ends inside a field")
        strings.append(data[start:position])
    if position != len(data):
        raise ValueError("it has bytes after its last field")
    return strings


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _public_blob(key: Ed25519PublicKey) -> bytes:
    return _string(_KEY_TYPE) + _string(key.public_bytes_raw())


def _signed_bytes(message: bytes, namespace: bytes, hash_name: bytes) -> bytes:
    digest = _HASHES[hash_name](message).digest()
    return _MAGIC + _string(namespace) + _string(b"") + _string(hash_name) + _string(digest)


def _parse_list_line(line: str) -> Signer:
    match = _LIST_LINE.fullmatch(line)
    if match is None:
        raise ValueError('not a line of the form PRINCIPAL namespaces="…" ssh-ed25519 KEY')
    if match["type"] != _KEY_TYPE.decode():
        raise ValueError(f"the key is of type {match['type']}; drkit trusts ssh-ed25519 keys only")
    try:
        public_key = _parse_public_blob(base64.b64decode(match["key"], validate=True))
    except ValueError as error:
        raise ValueError("the key is damaged") from error
    options = _parse_options(match["options"] or "")
    namespaces = options.get("namespaces")
    return Signer(
        principal=match["principals"].strip('"'),
        key_id=key_id(public_key),
        public_key=public_key,
        namespaces=None if namespaces is None else tuple(namespaces.split(",")),
        valid_after=_parse_timestamp(options["valid-after"]) if "valid-after" in options else None,
        valid_before=_parse_timestamp(options["valid-before"]) if "valid-before" in options else None,
    )


def _parse_options(text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _OPTION.match(text, position)
        name = match[1].lower() if match else text[position:]
        if match is None or match[2] is None or name not in ("namespaces", "valid-after", "valid-before"):
            raise ValueError(f'the option {name} is not one of namespaces="…", valid-after="…", valid-before="…"')
        if name in options:
            raise ValueError(f"the option {name} is given twice")
        options[name] = match[2]
        position = match.end()
    return options


def _parse_timestamp(text: str) -> datetime:
    form = _TIMESTAMP_FORMS.get(len(text), "")
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f'"{text}" is not a moment in UTC; write it like 20260201Z or 20260201123000Z') from None


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """Match as ssh_config(5) PATTERNS says: one positive match is needed, and a negated one refuses outright."""
    matched = False
    for pattern in patterns:
        glob = re.escape(pattern.removeprefix("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(glob, text):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched
