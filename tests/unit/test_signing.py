"""SSHSIG against stock ssh-keygen, in both directions, and everything that must be refused."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.bucket import trust_key
from drkit.errors import ConfigError, IntegrityError
from drkit.signing import (
    MANIFEST_NAMESPACE,
    Signer,
    Trust,
    allowed_signers_line,
    fingerprint,
    key_id,
    parse_allowed_signers,
    public_key_text,
    sign,
    trust_of_signer,
    verify,
)

MESSAGE = b'{"artifact_id":"01JD2K6Z8Q"}\n'
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
NOON = datetime(2026, 2, 1, 12, tzinfo=UTC)


def signers(line: str) -> list[Signer]:
    return parse_allowed_signers(line + "\n", "allowed_signers")


TRUSTED = signers(allowed_signers_line("backup@acme", KEY.public_key()))
SIGNATURE = sign(MESSAGE, KEY, MANIFEST_NAMESPACE)


def write_key(path: Path, key: Ed25519PrivateKey = KEY) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


def ssh_keygen(*arguments: str | Path, message: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *map(str, arguments)], input=message, capture_output=True, check=False)


def ssh_verifies(folder: Path, signature: bytes, line: str, *options: str, message: bytes = MESSAGE) -> bool:
    (folder / "allowed_signers").write_text(line + "\n")
    (folder / "message.sig").write_bytes(signature)
    done = ssh_keygen(
        *("-Y", "verify", "-f", folder / "allowed_signers", "-I", "backup@acme", "-n", MANIFEST_NAMESPACE),
        *("-s", folder / "message.sig", *options),
        message=message,
    )
    return done.returncode == 0


def refusal(message: bytes, signature: bytes, trusted: list[Signer] = TRUSTED, **options: object) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify(message, signature, MANIFEST_NAMESPACE, trusted, what="manifest 01JD2K", **options)  # type: ignore[arg-type]
    return caught.value.message


def blob_of(signature: bytes) -> bytes:
    return base64.b64decode(b"".join(signature.splitlines()[1:-1]))


def armored(blob: bytes) -> bytes:
    text = base64.b64encode(blob)
    lines = [text[start : start + 70] for start in range(0, len(text), 70)]
    return b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""])


def test_ssh_keygen_verifies_what_drkit_signs(tmp_path: Path) -> None:
    line = allowed_signers_line("backup@acme", KEY.public_key())
    assert ssh_verifies(tmp_path, SIGNATURE, line)
    assert not ssh_verifies(tmp_path, SIGNATURE, line, message=MESSAGE + b" ")


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_drkit_writes_byte_for_byte_what_ssh_keygen_writes(tmp_path: Path, size: int) -> None:
    message = bytes(size)
    (tmp_path / "message").write_bytes(message)
    key = write_key(tmp_path / "key")
    done = ssh_keygen("-Y", "sign", "-f", key, "-n", MANIFEST_NAMESPACE, tmp_path / "message")
    assert done.returncode == 0, done.stderr
    by_ssh = (tmp_path / "message.sig").read_bytes()
    assert by_ssh == sign(message, KEY, MANIFEST_NAMESPACE)
    assert verify(message, by_ssh, MANIFEST_NAMESPACE, TRUSTED).principal == "backup@acme"


def test_a_signature_over_sha256_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(MESSAGE)
    key = write_key(tmp_path / "key")
    ssh_keygen("-Y", "sign", "-O", "hashalg=sha256", "-f", key, "-n", MANIFEST_NAMESPACE, tmp_path / "message")
    signature = (tmp_path / "message.sig").read_bytes()
    assert b"sha256" in blob_of(signature)
    assert verify(MESSAGE, signature, MANIFEST_NAMESPACE, TRUSTED) == TRUSTED[0]


def test_fingerprint_and_public_key_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    path = write_key(tmp_path / "key")
    assert ssh_keygen("-y", "-f", path).stdout.decode().strip() == public_key_text(KEY.public_key())
    assert ssh_keygen("-l", "-f", path).stdout.decode().split()[1] == fingerprint(KEY.public_key())


def test_every_refusal_has_its_own_sentence() -> None:
    stranger = sign(MESSAGE, OTHER_KEY, MANIFEST_NAMESPACE)
    evidence_only = signers(allowed_signers_line("auditor", KEY.public_key(), namespaces=["drkit-evidence"]))
    retired = signers(allowed_signers_line("retired", KEY.public_key(), valid_before=NOON))
    flipped = bytearray(blob_of(SIGNATURE))
    flipped[-1] ^= 1
    newer = bytearray(blob_of(SIGNATURE))
    newer[9] = 2
    sentences = [
        refusal(MESSAGE, b""),
        refusal(MESSAGE, b"not a signature\n"),
        refusal(MESSAGE, SIGNATURE[:-20]),
        refusal(MESSAGE, SIGNATURE + b"x"),
        refusal(MESSAGE, SIGNATURE.replace(b"\nU1NI", b"\n*1NI")),
        refusal(MESSAGE, armored(b"PGPSIG" + blob_of(SIGNATURE)[6:])),
        refusal(MESSAGE, armored(bytes(newer))),
        refusal(MESSAGE, armored(blob_of(SIGNATURE) + b"x")),
        refusal(MESSAGE, armored(blob_of(SIGNATURE)[:-1])),
        refusal(MESSAGE, armored(blob_of(SIGNATURE).replace(b"sha512", b"sha999"))),
        refusal(MESSAGE, armored(blob_of(SIGNATURE).replace(b"ssh-ed25519", b"ssh-ed25518"))),
        refusal(MESSAGE, sign(MESSAGE, KEY, "drkit-evidence")),
        refusal(MESSAGE, armored(bytes(flipped))),
        refusal(MESSAGE, stranger),
        refusal(MESSAGE, SIGNATURE, evidence_only),
        refusal(MESSAGE, SIGNATURE, retired, at=datetime(2026, 2, 2, tzinfo=UTC)),
    ]
    assert len(set(sentences)) == len(sentences)
    assert all("manifest 01JD2K" in sentence and sentence[0] in "tm" for sentence in sentences), sentences
    assert refusal(MESSAGE + b" ", SIGNATURE) == refusal(MESSAGE, armored(bytes(flipped)))


def test_a_signature_has_one_spelling_only() -> None:
    signature = next(sign(MESSAGE, KEY, "x" * size) for size in (1, 2, 3) if b"=" in sign(MESSAGE, KEY, "x" * size))
    end = signature.index(b"=")
    respelled = signature[: end - 1] + bytes([signature[end - 1] + 1]) + signature[end:]
    assert blob_of(respelled) == blob_of(signature)
    assert "stray bits" in refusal(MESSAGE, respelled)


def test_a_stranger_is_named_beside_those_who_are_allowed() -> None:
    with pytest.raises(IntegrityError) as caught:
        verify(MESSAGE, sign(MESSAGE, OTHER_KEY, MANIFEST_NAMESPACE), MANIFEST_NAMESPACE, TRUSTED)
    assert key_id(OTHER_KEY.public_key()) in caught.value.message
    assert fingerprint(OTHER_KEY.public_key()) in caught.value.message
    assert fingerprint(KEY.public_key()) in caught.value.details[0]


def test_a_key_with_the_id_of_an_allowed_one_is_still_a_stranger() -> None:
    twin = Signer("backup@acme", key_id(OTHER_KEY.public_key()), KEY.public_key())
    assert "stranger" in refusal(MESSAGE, sign(MESSAGE, OTHER_KEY, MANIFEST_NAMESPACE), [twin])


@pytest.mark.parametrize("length", range(0, len(SIGNATURE) - 1, 7))
def test_every_cut_is_refused(length: int) -> None:
    refusal(MESSAGE, SIGNATURE[:length])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(blob_of(SIGNATURE)) * 8 - 1))
def test_every_flipped_bit_is_refused(bit: int) -> None:
    blob = bytearray(blob_of(SIGNATURE))
    blob[bit // 8] ^= 1 << bit % 8
    refusal(MESSAGE, armored(bytes(blob)))


@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_signature_or_crash(blob: bytes) -> None:
    refusal(MESSAGE, blob)
    refusal(MESSAGE, armored(blob))
    refusal(MESSAGE, armored(blob_of(SIGNATURE)[:10] + blob))


WINDOW = 'valid-after="20260101Z",valid-before="20260201120000Z"'


@pytest.mark.parametrize(
    ("options", "moment", "accepted"),
    [
        ("", "20260301Z", True),
        ('namespaces="drkit-manifest"', "20260301Z", True),
        ('namespaces="git,drkit-*"', "20260301Z", True),
        ('namespaces="drkit-m?nifest"', "20260301Z", True),
        ('namespaces="drkit-*,!drkit-manifest"', "20260301Z", False),
        ('namespaces="drkit-evidence"', "20260301Z", False),
        ('namespaces=""', "20260301Z", False),
        ('Namespaces="drkit-manifest"', "20260301Z", True),
        (WINDOW, "20251231235959Z", False),
        (WINDOW, "20260101000000Z", True),
        (WINDOW, "20260201120000Z", True),
        (WINDOW, "20260201120001Z", False),
        ('valid-before="202602011200Z",namespaces="drkit-manifest"', "20260201120001Z", False),
        ('valid-before="202602011200Z",namespaces="drkit-manifest"', "202601011200Z", True),
    ],
)
def test_a_line_means_to_drkit_what_it_means_to_ssh_keygen(
    tmp_path: Path, options: str, moment: str, *, accepted: bool
) -> None:
    line = " ".join(filter(None, ["backup@acme", options, public_key_text(KEY.public_key()), "a comment"]))
    form = {9: "%Y%m%dZ", 13: "%Y%m%d%H%MZ", 15: "%Y%m%d%H%M%SZ"}[len(moment)]
    at = datetime.strptime(moment, form).replace(tzinfo=UTC)
    assert ssh_verifies(tmp_path, SIGNATURE, line, f"-Overify-time={moment}") is accepted
    if accepted:
        assert verify(MESSAGE, SIGNATURE, MANIFEST_NAMESPACE, signers(line), at=at)
    else:
        refusal(MESSAGE, SIGNATURE, signers(line), at=at)


def test_without_a_moment_the_window_is_not_looked_at() -> None:
    retired = signers(allowed_signers_line("retired", KEY.public_key(), valid_before=NOON))
    assert verify(MESSAGE, SIGNATURE, MANIFEST_NAMESPACE, retired) == retired[0]


def test_the_same_key_may_have_two_windows() -> None:
    key = KEY.public_key()
    both = signers(
        allowed_signers_line("old", key, valid_before=NOON)
        + "\n"
        + allowed_signers_line("new", key, valid_after=datetime(2026, 3, 1, tzinfo=UTC))
    )
    assert verify(MESSAGE, SIGNATURE, MANIFEST_NAMESPACE, both, at=NOON).principal == "old"
    assert verify(MESSAGE, SIGNATURE, MANIFEST_NAMESPACE, both, at=datetime(2026, 4, 1, tzinfo=UTC)).principal == "new"
    assert "outside" in refusal(MESSAGE, SIGNATURE, both, at=datetime(2026, 2, 15, tzinfo=UTC))


def test_a_written_line_is_read_back_whole() -> None:
    line = allowed_signers_line("backup@acme", KEY.public_key(), valid_after=NOON, valid_before=NOON)
    (signer,) = signers(f"# a comment\n\n  {line}")
    assert signer.valid_after == signer.valid_before == NOON
    assert signer.namespaces == ("drkit-manifest", "drkit-evidence", "drkit-tombstone")
    assert signer.public_key == KEY.public_key()


GOOD_KEY = public_key_text(KEY.public_key())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("backup@acme", "not a line of the form"),
        (GOOD_KEY, "not a line of the form"),
        (f"a namespaces=drkit {GOOD_KEY}", "namespaces=drkit is not one of"),
        (f"a cert-authority {GOOD_KEY}", "cert-authority is not one of"),
        (f'a valid-until="20260101Z" {GOOD_KEY}', "valid-until"),
        (f'a valid-after="20260101" {GOOD_KEY}', "not a moment in UTC"),
        (f'a valid-after="20261301Z" {GOOD_KEY}', "not a moment in UTC"),
        (f'a namespaces="a",namespaces="b" {GOOD_KEY}', "given twice"),
        (f"a {GOOD_KEY[:-6]}", "damaged"),
        ("a ssh-rsa AAAAB3NzaC1yc2E=", "ssh-rsa; drkit trusts ssh-ed25519 keys only"),
        ("a sk-ssh-ed25519@openssh.com AAAAB3NzaC1yc2E=", "sk-ssh-ed25519@openssh.com"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_allowed_signers(f"# keys\n{line}\n\nb nonsense\n", "keys/allowed_signers")
    first, second = caught.value.problems
    assert (first.file, first.line, second.line) == ("keys/allowed_signers", 2, 4)
    assert says in first.message


def test_trust_documents_say_who_and_until_when() -> None:
    signer = signers(allowed_signers_line("backup@acme", KEY.public_key(), valid_before=NOON))[0]
    trust = trust_of_signer(signer, valid_from=NOON)
    assert Trust.from_bytes(trust.to_bytes(), "trust") == trust
    assert trust.object_key == trust_key(f"{signer.key_id}.retired")
    active = trust_of_signer(TRUSTED[0], valid_from=NOON)
    assert active.object_key == trust_key(signer.key_id)
    assert active.public_key == public_key_text(KEY.public_key())
