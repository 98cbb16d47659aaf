"""``drkit keys`` as a user types it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drkit import age
from drkit.cli import main
from drkit.keys import load_identities, new_identity_file, write_signing_key
from drkit.signing import allowed_signers_line

PASSPHRASE = "correct horse battery staple"
DRKIT = [sys.executable, "-c", "from drkit.cli import main; main()"]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def drkit(folder: Path, *arguments: str | Path) -> Done:
    """Run a command line in this process, which spares each test the start of another."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main([str(word) for word in arguments])
        except SystemExit as stop:
            return Done(int(stop.code or 0), stdout.getvalue(), stderr.getvalue())
    raise AssertionError("main returns by SystemExit only")


def shown(folder: Path, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    done = drkit(folder, *arguments, "--json")
    assert done.returncode == status, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def write_policy(folder: Path, name: str, *recipients: str) -> None:
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / f"{name}.yaml").write_text(
        f"policy: {name}\n"
        'target: {engine: postgres, url: "env:URL"}\n'
        "backups: [{method: dump}]\n"
        "stores: [primary]\n"
        f"encryption: {{recipients: [{', '.join(recipients)}]}}\n"
    )


@pytest.fixture(autouse=True)
def no_environment_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRKIT_SITE", "DRKIT_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Make a site whose identity `restore` opens policy orders, and that of `escrow` is kept elsewhere."""
    (tmp_path / "drkit.yaml").write_text(
        'stores: {primary: {url: "file:store"}}\nkeys: {signing: keys/signing, identities: [keys/restore.age]}\n'
    )
    restore = new_identity_file(tmp_path / "keys" / "restore.age")
    escrow = new_identity_file(tmp_path / "safe" / "escrow.age")
    key = write_signing_key(tmp_path / "keys" / "signing").public_key()
    (tmp_path / "keys" / "allowed_signers").write_text(allowed_signers_line("backup@acme", key) + "\n")
    write_policy(tmp_path, "orders", restore.recipient, escrow.recipient)
    return tmp_path


def test_new_writes_an_identity_and_says_what_comes_next(site: Path) -> None:
    done = drkit(site, "keys", "new", "restore-2026")
    assert done.returncode == 0, done.stderr
    (key,) = load_identities([site / "keys" / "restore-2026.age"], None)
    assert key.recipient in done.stdout
    assert "next: drkit keys prove --identity keys/restore-2026.age" in done.stdout
    assert key.identity.reveal() not in done.stdout + done.stderr


def test_new_needs_no_site_when_it_is_told_the_folder(tmp_path: Path) -> None:
    document = shown(tmp_path, "keys", "new", "escrow", "--folder", tmp_path / "usb")
    assert document["schema"] == "drkit/key/1"
    assert document["key_class"] == "classic"
    assert (tmp_path / "usb" / "escrow.age").exists()
    done = drkit(tmp_path, "keys", "new", "escrow")
    assert (done.returncode, "there is no site" in done.stderr) == (3, True)


@pytest.mark.skipif(not age.post_quantum_supported(), reason="the installed cryptography package lacks ML-KEM")
def test_new_makes_post_quantum_identities(site: Path) -> None:
    document = shown(site, "keys", "new", "pq", "--post-quantum")
    assert document["key_class"] == "post-quantum"
    assert document["recipient"].startswith("age1pq1")


def test_new_makes_a_signing_key_and_the_line_that_trusts_it(site: Path) -> None:
    document = shown(site, "keys", "new", "signing-2026", "--signing")
    (site / "keys" / "allowed_signers").write_text(document["allowed_signers_line"] + "\n")
    (site / "message").write_text("hello")
    key = site / "keys" / "signing-2026"
    sign = ["ssh-keygen", "-Y", "sign", "-f", key, "-n", "drkit-manifest", site / "message"]
    subprocess.run(sign, check=True, capture_output=True)
    verify = ["ssh-keygen", "-Y", "verify", "-f", site / "keys" / "allowed_signers", "-I", "signing-2026"]
    verify += ["-n", "drkit-manifest", "-s", site / "message.sig"]
    assert subprocess.run(verify, input=b"hello", check=False, capture_output=True).returncode == 0


def test_a_passphrase_comes_by_reference_and_never_by_argument(site: Path) -> None:
    (site / "pass").write_text(f"{PASSPHRASE}\n")
    (site / "pass").chmod(0o600)
    done = drkit(site, "keys", "new", "locked", "--passphrase-from", "file:pass")
    assert (done.returncode, "locked by the passphrase" in done.stdout) == (0, True), done.stderr
    assert load_identities([site / "keys" / "locked.age"], lambda _: PASSPHRASE)
    done = drkit(site, "keys", "new", "other", "--passphrase-from", PASSPHRASE)
    assert (done.returncode, "never the passphrase itself" in done.stderr) == (2, True)
    assert PASSPHRASE not in done.stdout + done.stderr
    assert not (site / "keys" / "other.age").exists()


def test_without_a_terminal_a_passphrase_is_asked_of_the_variable(site: Path) -> None:
    done = subprocess.run(
        [*DRKIT, "keys", "new", "locked", "--passphrase"],
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, "DRKIT_PASSPHRASE_FILE" in done.stderr) == (7, True), done.stderr
    assert not (site / "keys" / "locked.age").exists()


def on_a_terminal(folder: Path, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execv(sys.executable, [*DRKIT, *arguments])
    seen, left = "", list(answers)
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk.decode()
        if left and seen.endswith(": "):
            os.write(terminal, left.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen


def test_a_passphrase_is_typed_twice_and_not_echoed(site: Path) -> None:
    status, seen = on_a_terminal(site, ["keys", "new", "typed", "--passphrase"], [PASSPHRASE, PASSPHRASE])
    assert status == 0, seen
    assert PASSPHRASE not in seen
    assert load_identities([site / "keys" / "typed.age"], lambda _: PASSPHRASE)


@pytest.mark.parametrize(("answers", "says"), [(["one", "two"], "the two passphrases differ"), ([""], "is empty")])
def test_a_mistyped_passphrase_makes_no_key(site: Path, answers: list[str], says: str) -> None:
    status, seen = on_a_terminal(site, ["keys", "new", "typed", "--passphrase"], answers)
    assert (status, says in seen) == (3, True), seen
    assert not (site / "keys" / "typed.age").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["../up"], 2, '"../up" is not a name'),
        (["restore"], 3, "restore.age exists; drkit never writes over a key"),
        (["x", "--signing", "--passphrase"], 2, "--signing goes with none of"),
        (["x", "--signing", "--post-quantum"], 2, "--signing goes with none of"),
        (["x", "--folder", "/proc/none"], 3, "/proc/none"),
    ],
)
def test_mistakes_are_named(site: Path, arguments: list[str], status: int, says: str) -> None:
    done = drkit(site, "keys", "new", *arguments)
    assert (done.returncode, says in done.stderr) == (status, True), done.stderr
    assert done.stdout == ""


def test_list_shows_what_is_here_and_what_is_not(site: Path) -> None:
    document = shown(site, "keys", "list")
    (identity,), (elsewhere,) = document["identities"], document["recipients"]
    assert (identity["name"], identity["state"], identity["policies"]) == ("restore", "in reach", ["orders"])
    assert elsewhere["policies"] == ["orders"]
    assert document["signing"]["key_id"] == document["signers"][0]["key_id"]
    lines = drkit(site, "keys", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["KIND", "identity", "recipient", "signing", "signer"]


def test_list_says_what_is_wrong_with_a_key(site: Path) -> None:
    (site / "keys" / "restore.age").chmod(0o644)
    (site / "keys" / "signing").unlink()
    document = shown(site, "keys", "list")
    assert "can be read or changed by others" in document["identities"][0]["state"]
    assert document["identities"][0]["policies"] == ["orders"]
    assert document["signing"]["state"] == "not on this host"


def test_list_recognises_a_locked_identity_without_its_passphrase(site: Path) -> None:
    (site / "keys" / "restore.age").unlink()
    (site / "keys" / "restore.age.pub").unlink()
    key = new_identity_file(site / "keys" / "restore.age", passphrase=PASSPHRASE)
    write_policy(site, "orders", key.recipient, str(age.generate_identity().recipient))
    (identity,) = shown(site, "keys", "list")["identities"]
    assert (identity["state"], identity["policies"]) == ("locked", ["orders"])


def test_prove_tells_who_opens_what(site: Path) -> None:
    done = drkit(site, "keys", "prove")
    assert done.returncode == 0, done.stderr
    assert "opened by restore" in done.stdout
    assert "NOT PROVEN" in done.stdout
    assert "1 of 2 recipients proven at " in done.stdout
    assert "drkit keys prove --identity FILE" in done.stdout
    document = shown(site, "keys", "prove", "--identity", "safe/escrow.age")
    assert [row["opened_by"] for row in document["recipients"]] == [["restore"], ["escrow"]]
    assert document["policies"] == {"orders": ["escrow", "restore"]}


def test_prove_fails_when_a_policy_is_shut(site: Path) -> None:
    write_policy(site, "ledger", *(str(age.generate_identity().recipient) for _ in range(2)))
    document = shown(site, "keys", "prove", status=12)
    assert document["problems"] == ["nobody in reach can open the backups of policy ledger"]
    assert document["policies"] == {"ledger": [], "orders": ["restore"]}


def test_prove_goes_on_past_a_file_that_cannot_be_used(site: Path) -> None:
    document = shown(site, "keys", "prove", "--identity", "safe/lost.age", status=12)
    assert "safe/lost.age is not on this host" in document["problems"][0]
    assert document["policies"] == {"orders": ["restore"]}


def test_prove_mentions_an_identity_that_opens_nothing(site: Path) -> None:
    new_identity_file(site / "safe" / "old.age")
    done = drkit(site, "keys", "prove", "--identity", "safe/old.age")
    assert (done.returncode, "old opens nothing that is sealed today" in done.stdout) == (0, True)


def test_prove_says_so_on_a_host_without_identities(site: Path) -> None:
    (site / "drkit.yaml").write_text('stores: {primary: {url: "file:store"}}\n')
    done = drkit(site, "keys", "prove")
    assert (done.returncode, "no identity is in reach" in done.stderr) == (7, True)
