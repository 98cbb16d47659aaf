"""drkit's age against three others, both ways: Debian's age, pyrage (rage) and npm's age-encryption."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

from drkit import age

SIZES = [0, 1, 65_535, 65_536, 65_537, 131_072, 3 * (1 << 20) + 7]
PATTERN = bytes(range(251)) * 13_000
PASSPHRASE = "correct horse battery staple"
DEADLINE_S = 60

NPM_FOLDER = Path(__file__).parents[2] / ".tools" / "age-npm"
NPM_SCRIPT = Path(__file__).parent / "age_npm" / "age.mjs"

needs_age = pytest.mark.skipif(shutil.which("age") is None, reason="the age command is not installed")
needs_npm = pytest.mark.skipif(
    shutil.which("node") is None or not (NPM_FOLDER / "installed.json").exists(),
    reason="age-encryption is not installed; run scripts/install-age-npm",
)


@pytest.fixture(scope="module", params=["classic", "post-quantum"])
def identity(request: pytest.FixtureRequest) -> age.Identity:
    return age.generate_identity(post_quantum=request.param == "post-quantum")


@pytest.fixture(scope="module")
def classic() -> age.Identity:
    return age.generate_identity()


@pytest.fixture
def identity_file(classic: age.Identity, tmp_path: Path) -> Path:
    path = tmp_path / "identity.txt"
    path.write_text(f"# {classic.recipient}\n{classic.reveal()}\n")
    return path


def seal(plain: bytes, *recipients: age.Recipient) -> bytes:
    return b"".join(age.encrypt([plain], recipients))


def unseal(sealed: bytes, identity: age.Identity) -> bytes:
    return b"".join(age.decrypt([sealed], [identity]))


def run(*argv: str | Path, data: bytes = b"", **environment: str) -> bytes:
    done = subprocess.run(
        argv, input=data, capture_output=True, timeout=DEADLINE_S, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def run_with_passphrase(*argv: str | Path) -> None:
    """Run age on a terminal of its own and type the passphrase each time it asks; it reads passphrases nowhere else."""
    master, slave = pty.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, master)
        process = subprocess.Popen(["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave)
        stack.callback(process.wait)
        stack.callback(process.kill)
        os.close(slave)
        unanswered = transcript = b""
        for shown in terminal_output(master):
            unanswered += shown
            transcript += shown
            if b"passphrase" in unanswered and unanswered.rstrip(b" ").endswith(b":"):
                os.write(master, PASSPHRASE.encode() + b"\n")
                unanswered = b""
        assert process.wait(DEADLINE_S) == 0, transcript.decode()


def terminal_output(master: int) -> Iterator[bytes]:
    """Yield what appears on the terminal until its program is gone."""
    give_up_at = time.monotonic() + DEADLINE_S
    while select.select([master], [], [], max(0.0, give_up_at - time.monotonic()))[0]:
        try:
            shown = os.read(master, 4096)
        except OSError:  # Linux reports the end of a terminal as EIO
            return
        if not shown:
            return
        yield shown
    pytest.fail(f"age did not finish in {DEADLINE_S} s")


@needs_age
@pytest.mark.parametrize("size", SIZES)
def test_age_opens_what_drkit_seals(classic: age.Identity, identity_file: Path, size: int) -> None:
    other = age.generate_identity()
    sealed = seal(PATTERN[:size], other.recipient, classic.recipient)
    assert run("age", "-d", "-i", identity_file, data=sealed) == PATTERN[:size]
    assert run("age", "-d", "-i", identity_file, data=age.armor(sealed).encode()) == PATTERN[:size]


@needs_age
@pytest.mark.parametrize("size", SIZES)
def test_drkit_opens_what_age_seals(classic: age.Identity, size: int) -> None:
    other = age.generate_identity()
    recipients = ["-r", str(other.recipient), "-r", str(classic.recipient)]
    sealed = run("age", *recipients, data=PATTERN[:size])
    assert unseal(sealed, classic) == PATTERN[:size]
    armored = run("age", "-a", *recipients, data=PATTERN[:size])
    assert unseal(age.dearmor(armored), classic) == PATTERN[:size]


@needs_age
def test_age_keygen_and_drkit_agree_on_keys(classic: age.Identity, identity_file: Path) -> None:
    assert run("age-keygen", "-y", identity_file).decode().strip() == str(classic.recipient)
    generated = run("age-keygen").decode().splitlines()
    assert generated[1].endswith(str(age.parse_identity(generated[2]).recipient))


@needs_age
def test_age_refuses_what_drkit_left_unfinished(classic: age.Identity, identity_file: Path) -> None:
    unfinished = b"".join(list(age.encrypt([PATTERN], [classic.recipient]))[:-1])
    with pytest.raises(AssertionError, match=r"failed to decrypt and authenticate|unexpected EOF"):
        run("age", "-d", "-i", identity_file, data=unfinished)


@needs_age
def test_age_opens_by_passphrase_what_drkit_seals(tmp_path: Path) -> None:
    sealed, opened = tmp_path / "sealed.age", tmp_path / "opened"
    sealed.write_bytes(seal(PATTERN[:70_000], age.ScryptRecipient(PASSPHRASE, 10)))
    run_with_passphrase("age", "-d", "-o", opened, sealed)
    assert opened.read_bytes() == PATTERN[:70_000]


@needs_age
def test_drkit_opens_by_passphrase_what_age_seals(tmp_path: Path) -> None:
    plain, sealed = tmp_path / "plain", tmp_path / "sealed.age"
    plain.write_bytes(PATTERN[:70_000])
    run_with_passphrase("age", "-p", "-o", sealed, plain)
    assert unseal(sealed.read_bytes(), age.ScryptIdentity(PASSPHRASE)) == PATTERN[:70_000]


@pytest.mark.parametrize("size", SIZES)
def test_pyrage_and_drkit_open_each_other(classic: age.Identity, size: int) -> None:
    their_identity = pyrage.x25519.Identity.from_str(classic.reveal())
    their_recipient = pyrage.x25519.Recipient.from_str(str(classic.recipient))
    assert str(their_identity.to_public()) == str(classic.recipient)
    assert pyrage.decrypt(seal(PATTERN[:size], classic.recipient), [their_identity]) == PATTERN[:size]
    assert unseal(pyrage.encrypt(PATTERN[:size], [their_recipient]), classic) == PATTERN[:size]
    armored = pyrage.encrypt(PATTERN[:size], [their_recipient], armored=True)
    assert unseal(age.dearmor(armored), classic) == PATTERN[:size]


def test_pyrage_and_drkit_open_each_other_by_passphrase() -> None:
    sealed = seal(PATTERN[:70_000], age.ScryptRecipient(PASSPHRASE, 10))
    assert pyrage.passphrase.decrypt(sealed, PASSPHRASE) == PATTERN[:70_000]
    theirs = pyrage.passphrase.encrypt(PATTERN[:70_000], PASSPHRASE)
    assert unseal(theirs, age.ScryptIdentity(PASSPHRASE)) == PATTERN[:70_000]


@needs_npm
@pytest.mark.parametrize("size", [0, 65_536, 200_001])
def test_npm_and_drkit_open_each_other(identity: age.Identity, size: int) -> None:
    plain = PATTERN[:size]
    opened = run(
        "node", NPM_SCRIPT, NPM_FOLDER, "decrypt", data=seal(plain, identity.recipient), AGE_KEY=identity.reveal()
    )
    assert opened == plain
    sealed = run("node", NPM_SCRIPT, NPM_FOLDER, "encrypt", data=plain, AGE_KEY=str(identity.recipient))
    assert unseal(sealed, identity) == plain


@needs_npm
def test_npm_and_drkit_agree_on_recipients(identity: age.Identity) -> None:
    theirs = run("node", NPM_SCRIPT, NPM_FOLDER, "recipient", AGE_KEY=identity.reveal())
    assert theirs.decode() == str(identity.recipient)


@needs_npm
def test_npm_and_drkit_open_each_other_by_passphrase() -> None:
    sealed = seal(b"by phrase", age.ScryptRecipient(PASSPHRASE, 10))
    assert run("node", NPM_SCRIPT, NPM_FOLDER, "decrypt", data=sealed, AGE_PASSPHRASE=PASSPHRASE) == b"by phrase"
    theirs = run("node", NPM_SCRIPT, NPM_FOLDER, "encrypt", data=b"by phrase", AGE_PASSPHRASE=PASSPHRASE)
    assert unseal(theirs, age.ScryptIdentity(PASSPHRASE)) == b"by phrase"
