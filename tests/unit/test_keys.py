"""Key files: what is written, who may read it, what is refused; recipients and their canaries."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drkit import age
from drkit.errors import ConfigError, DrkitError, IntegrityError, KeyUnavailable
from drkit.key_files import ask_passphrase, choose_passphrase, write_key_pair
from drkit.keys import (
    KeyFile,
    load_identities,
    load_signers,
    load_signing_key,
    new_identity_file,
    opens_canary,
    prove,
    public_half,
    recipient_fingerprint,
    recipients_of,
    seal_canary,
    short,
    trust_of_recipient,
    write_signing_key,
)
from drkit.signing import MANIFEST_NAMESPACE, allowed_signers_line, parse_allowed_signers, public_key_text, verify

CREATED_AT = datetime(2026, 2, 1, 12, tzinfo=UTC)
PASSPHRASE = "correct horse battery staple"

needs_post_quantum = pytest.mark.skipif(
    not age.post_quantum_supported(), reason="the installed cryptography package lacks ML-KEM"
)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def fails(kind: type[DrkitError], action: Callable[[], object]) -> DrkitError:
    with pytest.raises(kind) as caught:
        action()
    return caught.value


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    """Lend one locked identity: scrypt is slow on purpose."""
    return new_identity_file(tmp_path_factory.mktemp("keys") / "escrow.age", passphrase=PASSPHRASE)


def test_an_identity_file_reads_like_one_of_age_keygen(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "restore-2026.age"
    key = new_identity_file(path, created_at=CREATED_AT)
    created, public, secret = path.read_text().splitlines()
    assert created == "# created: 2026-02-01T12:00:00+00:00"
    assert public == f"# public key: {key.recipient}"
    assert secret.startswith("AGE-SECRET-KEY-1")
    assert (mode_of(path), mode_of(path.parent), key.name) == (0o600, 0o700, "restore-2026")
    assert public_half(path) == key.recipient
    derived = subprocess.run(["age-keygen", "-y", path], capture_output=True, text=True, check=True)
    assert derived.stdout.strip() == key.recipient


def test_age_opens_with_the_identity_file_what_is_sealed_for_its_recipient(tmp_path: Path) -> None:
    key = new_identity_file(tmp_path / "restore.age")
    canary = seal_canary([key.identity.recipient])
    opened = subprocess.run(["age", "-d", "-i", key.path], input=canary, capture_output=True, check=True)
    assert opened.stdout.startswith(b"drkit canary")
    sealed = subprocess.run(["age", "-R", f"{key.path}.pub"], input=b"by age", capture_output=True, check=True)
    assert b"".join(age.decrypt([sealed.stdout], [key.identity])) == b"by age"


def test_an_identity_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = new_identity_file(tmp_path / "restore.age")
    (read,) = load_identities([written.path], None)
    assert read.identity.reveal() == written.identity.reveal()
    assert (read.name, read.fingerprint) == ("restore", recipient_fingerprint(written.recipient))


@needs_post_quantum
def test_a_post_quantum_identity_comes_back_too(tmp_path: Path) -> None:
    written = new_identity_file(tmp_path / "pq.age", post_quantum=True)
    (read,) = load_identities([written.path], None)
    assert read.recipient == written.recipient
    assert read.recipient.startswith("age1pq1")
    assert prove([read.identity.recipient], [read])[0].opened_by == (read,)


def test_one_file_may_hold_several_identities(tmp_path: Path) -> None:
    first, second = (new_identity_file(tmp_path / f"{name}.age") for name in "ab")
    both = tmp_path / "both.age"
    write_key_pair(both, first.path.read_text() + "\n" + second.path.read_text(), "")
    keys = load_identities([both], None)
    assert [(key.name, key.recipient) for key in keys] == [("both", first.recipient), ("both#2", second.recipient)]


def test_nothing_that_shows_a_key_shows_its_secret(tmp_path: Path, locked: KeyFile) -> None:
    for key in (new_identity_file(tmp_path / "restore.age"), locked):
        secret = key.identity.reveal()
        assert secret not in repr(key) + str(key) + repr(key.identity) + str(key.identity)
        assert secret not in Path(f"{key.path}.pub").read_text()
    assert b"AGE-SECRET-KEY" not in locked.path.read_bytes()


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    path = new_identity_file(tmp_path / "restore.age").path
    before = path.read_bytes()
    assert "never writes over a key" in fails(ConfigError, lambda: new_identity_file(path)).message
    path.rename(tmp_path / "moved")
    assert "restore.age.pub exists" in fails(ConfigError, lambda: new_identity_file(path)).message
    assert not path.exists()
    assert (tmp_path / "moved").read_bytes() == before


def test_a_key_is_not_written_through_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "restore.age").symlink_to(tmp_path / "elsewhere")
    fails(ConfigError, lambda: new_identity_file(tmp_path / "restore.age"))
    assert not (tmp_path / "elsewhere").exists()


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert mode_of(new_identity_file(tmp_path / "loose.age").path) == 0o600
        os.umask(0o777)
        assert mode_of(new_identity_file(tmp_path / "tight.age").path) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_secret_that_others_can_touch_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    identity = new_identity_file(tmp_path / "a restore.age").path
    signing = tmp_path / "a signing"
    write_signing_key(signing)
    for path, load in (
        (identity, lambda: load_identities([identity], None)),
        (signing, lambda: load_signing_key(signing)),
    ):
        path.chmod(mode)
        error = fails(ConfigError, load)
        assert f"mode {mode:04o}" in error.message
        subprocess.run(error.hints[0], shell=True, check=True)
        load()


def test_what_is_no_identity_file_is_refused_by_name(tmp_path: Path) -> None:
    def refusal(data: bytes) -> str:
        path = tmp_path / "file.age"
        path.write_bytes(data)
        path.chmod(0o600)
        return fails(DrkitError, lambda: load_identities([path], lambda _: PASSPHRASE)).message

    key = new_identity_file(tmp_path / "restore.age")
    secret = key.identity.reveal()
    sentences = [
        refusal(b""),
        refusal(b"\xff\xfe"),
        refusal(f"# x\n{key.recipient}\n".encode()),
        refusal(f"{secret[:-1]}\n".encode()),
        refusal(b"-----BEGIN AGE ENCRYPTED FILE-----\nAAAA\n"),
        refusal(bytes(2_000_000)),
    ]
    assert len(set(sentences)) == len(sentences)
    assert all("file.age" in sentence and secret[:30] not in sentence for sentence in sentences), sentences
    missing = fails(KeyUnavailable, lambda: load_identities([tmp_path / "gone.age"], None))
    assert "gone.age is not on this host" in missing.message
    assert "is a directory" in fails(ConfigError, lambda: load_identities([tmp_path], None)).message


def test_a_locked_identity_opens_with_its_passphrase_only(locked: KeyFile) -> None:
    asked: list[Path] = []

    def answer(path: Path) -> str:
        asked.append(path)
        return PASSPHRASE

    (key,) = load_identities([locked.path], answer)
    assert (key.recipient, asked) == (locked.recipient, [locked.path])
    assert public_half(locked.path) == locked.recipient
    error = fails(KeyUnavailable, lambda: load_identities([locked.path], lambda _: "something else"))
    assert error.message == f"the passphrase does not open identity file {locked.path}"
    error = fails(KeyUnavailable, lambda: load_identities([locked.path], None))
    assert "locked by a passphrase" in error.message
    assert "DRKIT_PASSPHRASE_FILE" in error.hints[0]


def test_a_damaged_locked_identity_is_told_from_a_wrong_passphrase(tmp_path: Path, locked: KeyFile) -> None:
    data = bytearray(age.dearmor(locked.path.read_text()))
    data[-1] ^= 1
    write_key_pair(tmp_path / "escrow.age", age.armor(bytes(data)), "")
    error = fails(IntegrityError, lambda: load_identities([tmp_path / "escrow.age"], lambda _: PASSPHRASE))
    assert "is damaged" in error.message


def type_into(argv: list[str | Path], lines: list[str]) -> str:
    """Run a program on a terminal of its own, answer each of its questions, and return all that it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(argv[0], [str(word) for word in argv])
    shown, answers = b"", list(lines)
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
        if answers and shown.rstrip().endswith(b":"):
            os.write(terminal, answers.pop(0).encode() + b"\n")
            shown += b"\n"
    os.close(terminal)
    os.waitpid(child, 0)
    return shown.decode()


def test_age_opens_a_locked_identity_file(tmp_path: Path, locked: KeyFile) -> None:
    canary = tmp_path / "canary.age"
    canary.write_bytes(seal_canary([locked.identity.recipient]))
    plain = tmp_path / "plain"
    type_into(["age", "-d", "-i", locked.path, "-o", plain, canary], [PASSPHRASE])
    assert plain.read_text().startswith("drkit canary")


def passphrase_file(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int = 0o600) -> Path:
    path = folder / "passphrase"
    path.write_text(text)
    path.chmod(mode)
    monkeypatch.setenv("DRKIT_PASSPHRASE_FILE", str(path))
    return path


def test_the_passphrase_can_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passphrase_file(tmp_path, monkeypatch, f"{PASSPHRASE} \n")
    assert ask_passphrase(tmp_path / "x") == choose_passphrase(tmp_path / "x") == f"{PASSPHRASE} "


@pytest.mark.parametrize(
    ("text", "mode", "says"), [("", 0o600, "is empty"), ("\n", 0o600, "is empty"), ("x", 0o644, "by others")]
)
def test_a_bad_passphrase_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int, says: str
) -> None:
    passphrase_file(tmp_path, monkeypatch, text, mode)
    assert says in fails(ConfigError, lambda: ask_passphrase(tmp_path / "x")).message


def test_a_missing_passphrase_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passphrase_file(tmp_path, monkeypatch, "x").unlink()
    assert "is missing" in fails(ConfigError, lambda: ask_passphrase(tmp_path / "x")).message


def test_ssh_keygen_reads_a_signing_key_and_signs_with_it(tmp_path: Path) -> None:
    path = tmp_path / "signing"
    key = write_signing_key(path, comment="backup@acme")
    assert mode_of(path) == 0o600
    assert Path(f"{path}.pub").read_text() == f"{public_key_text(key.public_key())} backup@acme\n"
    assert load_signing_key(path).private_bytes_raw() == key.private_bytes_raw()
    message = tmp_path / "message"
    message.write_bytes(b"manifest")
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", path, "-n", MANIFEST_NAMESPACE, message],
        check=True,
        capture_output=True,
    )
    trusted = parse_allowed_signers(allowed_signers_line("backup@acme", key.public_key()), "allowed_signers")
    assert verify(b"manifest", (tmp_path / "message.sig").read_bytes(), MANIFEST_NAMESPACE, trusted)


def test_a_key_of_ssh_keygen_is_a_signing_key(tmp_path: Path) -> None:
    path = tmp_path / "signing"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", path], check=True)
    public = public_key_text(load_signing_key(path).public_key())
    assert Path(f"{path}.pub").read_text() == f"{public} me\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [(["-t", "ed25519", "-N", "secret"], "locked by a passphrase"), (["-t", "ecdsa", "-N", ""], "not an Ed25519 key")],
)
def test_other_private_keys_are_refused(tmp_path: Path, options: list[str], says: str) -> None:
    path = tmp_path / "signing"
    subprocess.run(["ssh-keygen", "-q", *options, "-f", path], check=True)
    assert says in fails(ConfigError, lambda: load_signing_key(path)).message


def test_what_is_no_private_key_is_refused(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "signing", "ssh-ed25519 AAAA\n", "")
    assert "OpenSSH form" in fails(ConfigError, lambda: load_signing_key(tmp_path / "signing")).message
    assert "is missing" in fails(ConfigError, lambda: load_signing_key(tmp_path / "none")).message


def test_the_list_of_signers_must_be_there_and_say_something(tmp_path: Path) -> None:
    path = tmp_path / "allowed_signers"
    assert "is missing" in fails(ConfigError, lambda: load_signers(path)).message
    path.write_text("# nobody yet\n")
    assert "is empty" in fails(ConfigError, lambda: load_signers(path)).message
    path.write_bytes(b"\xff")
    assert "is not text" in fails(ConfigError, lambda: load_signers(path)).message
    path.write_text(allowed_signers_line("a", write_signing_key(tmp_path / "signing").public_key()) + "\n")
    assert load_signers(path)[0].principal == "a"


def new_recipient(*, post_quantum: bool = False) -> str:
    return str(age.generate_identity(post_quantum=post_quantum).recipient)


def test_two_distinct_recipients_are_wanted() -> None:
    one, other = new_recipient(), new_recipient()
    assert [str(recipient) for recipient in recipients_of([one, other, one], accept_single_key=False)] == [one, other]
    assert [str(recipient) for recipient in recipients_of([one], accept_single_key=True)] == [one]
    alone = fails(ConfigError, lambda: recipients_of([one], accept_single_key=False))
    twice = fails(ConfigError, lambda: recipients_of([one, one], accept_single_key=False))
    assert "only one recipient:" in alone.message
    assert "the same one twice" in twice.message
    assert "no recipient" in fails(ConfigError, lambda: recipients_of([], accept_single_key=True)).message


@needs_post_quantum
def test_recipients_are_of_one_class() -> None:
    mixed = [new_recipient(), new_recipient(post_quantum=True)]
    assert "different classes" in fails(ConfigError, lambda: recipients_of(mixed, accept_single_key=False)).message
    assert recipients_of([new_recipient(post_quantum=True) for _ in range(2)], accept_single_key=False)


def test_a_secret_key_among_the_recipients_is_not_repeated() -> None:
    secret = age.generate_identity().reveal()
    error = fails(ConfigError, lambda: recipients_of([secret, new_recipient()], accept_single_key=False))
    assert "secret key" in error.message
    assert secret[20:] not in " ".join([error.message, *error.details, *error.hints])
    assert error.__suppress_context__
    assert "age1nonsense" in fails(ConfigError, lambda: recipients_of(["age1nonsense"], accept_single_key=True)).message


def test_a_recipient_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    text = new_recipient()
    (tmp_path / "recipient").write_text(text)
    digest = subprocess.run(["sha256sum", tmp_path / "recipient"], capture_output=True, text=True, check=True).stdout
    assert recipient_fingerprint(text) == "age:" + digest[:16]
    trust = trust_of_recipient(age.parse_recipient(text), name="escrow", valid_from=CREATED_AT)
    assert (trust.key_id, trust.kind, trust.public_key) == (recipient_fingerprint(text), "recipient", text)
    assert short(text).startswith(text[:8])
    assert len(short(text)) < 20


def test_the_canary_tells_who_opens_what(tmp_path: Path) -> None:
    here, spare = (new_identity_file(tmp_path / f"{name}.age") for name in ("here", "spare"))
    elsewhere = age.parse_recipient(new_recipient())
    proven, shut = prove([here.identity.recipient, elsewhere], [here, spare])
    assert (proven.recipient, proven.opened_by) == (here.recipient, (here,))
    assert (shut.recipient, shut.opened_by) == (str(elsewhere), ())
    both = seal_canary([here.identity.recipient, elsewhere])
    assert opens_canary(both, here.identity)
    assert not opens_canary(both, spare.identity)


def test_a_canary_that_is_none_is_not_believed(tmp_path: Path) -> None:
    key = new_identity_file(tmp_path / "here.age")
    other = b"".join(age.encrypt([b"something else"], [key.identity.recipient]))
    assert "not the canary" in fails(IntegrityError, lambda: opens_canary(other, key.identity)).message
    cut = seal_canary([key.identity.recipient])[:-1]
    fails(IntegrityError, lambda: opens_canary(cut, key.identity))
