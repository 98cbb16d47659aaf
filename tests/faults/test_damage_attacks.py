"""An attacker who may write anything into the bucket, and has no key: what he swaps, replays or deletes is found.

He knows the format, the recipients (they are public) and everything that was ever in the bucket.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import age, bucket
from drkit.canonical import canonical_json
from drkit.model import Tombstone
from drkit.operations.copying import catch_up
from drkit.signing import EVIDENCE_NAMESPACE, MANIFEST_NAMESPACE, TOMBSTONE_NAMESPACE, sign
from drkit.stores import Store
from drkit.stream import compress, decompress
from tests.faults.damage_scene import (
    OBJECTS,
    SILENT,
    TARGET,
    Scene,
    check,
    drill,
    identities,
    try_restore,
    verify,
)

NEW_ID = "01ZZZZZZZZZZZZZZZZZZZZZZZZ"
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def edit(path: Path, **changes: Any) -> bytes:
    """Change fields of a manifest in place; return its new bytes."""
    data = canonical_json({**json.loads(path.read_bytes()), **changes})
    path.write_bytes(data)
    return data


def open_object(place: Scene, path: Path) -> bytes:
    """Return what an object holds, decrypted and decompressed."""
    with place.open() as workplace:
        keys = [key.identity for key in identities(workplace)]
    return b"".join(decompress(age.decrypt([path.read_bytes()], keys)))


def seal(place: Scene, packed: bytes) -> bytes:
    """Seal something for the site's recipients, as anybody can."""
    return b"".join(age.encrypt([packed], [age.parse_recipient(text) for text in place.site.recipients]))


def pack(plain: bytes) -> bytes:
    return b"".join(compress([plain], 1))


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


# What was done to the newest artifact; each returns the level at which it must show.


def data_of_an_older_artifact(place: Scene) -> str:
    swap(place.folder(place.orders[2]) / OBJECTS[1], place.folder(place.orders[0]) / OBJECTS[1])
    return "any"


def parts_swapped(place: Scene) -> str:
    folder = place.folder(place.orders[2])
    swap(folder / OBJECTS[0], folder / OBJECTS[1])
    return "exists"


def data_of_another_policy(place: Scene) -> str:
    for name in OBJECTS[:2]:
        swap(place.folder(place.orders[2]) / name, place.folder(place.ledger, "ledger") / name)
    return "any"


def manifests_swapped(place: Scene) -> str:
    for name in OBJECTS[2:]:
        swap(place.folder(place.orders[2]) / name, place.folder(place.orders[1]) / name)
    return "exists"


def signatures_swapped(place: Scene) -> str:
    swap(place.folder(place.orders[2]) / OBJECTS[3], place.folder(place.orders[1]) / OBJECTS[3])
    return "exists"


def older_artifact_in_its_place(place: Scene) -> str:
    newest = place.folder(place.orders[2])
    shutil.rmtree(newest)
    shutil.copytree(place.folder(place.orders[0]), newest)
    return "exists"


def same_content_sealed_again(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[1]
    with place.open() as workplace:
        packed = b"".join(age.decrypt([path.read_bytes()], [key.identity for key in identities(workplace)]))
    sealed = seal(place, packed)
    assert len(sealed) == path.stat().st_size
    path.write_bytes(sealed)
    return "intact"


def other_content_sealed_for_the_recipients(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[1]
    path.write_bytes(seal(place, pack(open_object(place, path) + b"\0")))
    return "any"


def bomb_of_the_same_size(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[1]
    room = path.stat().st_size - len(seal(place, b"")) - 16 * (path.stat().st_size // 65552)
    # Half a gigabyte of zeros fits in many times; the rest of the size is a frame that a decoder skips.
    bomb = pack(bytes(512 << 20))
    filler = b"\x50\x2a\x4d\x18" + (room - len(bomb) - 8).to_bytes(4, "little") + bytes(room - len(bomb) - 8)
    sealed = seal(place, filler + bomb)
    assert len(sealed) == path.stat().st_size
    path.write_bytes(sealed)
    return "intact"


def object_a_gigabyte_longer(place: Scene) -> str:
    with (place.folder(place.orders[2]) / OBJECTS[1]).open("ab") as file:
        file.truncate(1 << 30)
    return "exists"


def manifest_edited(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[2]
    edit(path, covers={"from_at": "2031-01-01T00:00:00Z", "to_at": "2031-01-01T00:00:00Z"})
    return "exists"


def manifest_edited_and_signed_by_a_stranger(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[2]
    data = edit(path, objects=json.loads((place.folder(place.orders[0]) / OBJECTS[2]).read_bytes())["objects"])
    path.with_name(OBJECTS[3]).write_bytes(sign(data, STRANGER, MANIFEST_NAMESPACE))
    return "exists"


def manifest_signed_by_a_stranger(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[2]
    path.with_name(OBJECTS[3]).write_bytes(sign(path.read_bytes(), STRANGER, MANIFEST_NAMESPACE))
    return "exists"


def manifest_signed_as_evidence(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[2]
    path.with_name(OBJECTS[3]).write_bytes(place.sign(path.read_bytes(), EVIDENCE_NAMESPACE))
    return "exists"


def signature_removed(place: Scene) -> str:
    (place.folder(place.orders[2]) / OBJECTS[3]).unlink()
    return "exists"


def details_of_another_artifact(place: Scene) -> str:
    older = json.loads((place.folder(place.orders[0]) / OBJECTS[2]).read_bytes())
    edit(place.folder(place.orders[2]) / OBJECTS[2], details=older["details"])
    return "exists"


def data_deleted(place: Scene) -> str:
    (place.folder(place.orders[2]) / OBJECTS[1]).unlink()
    return "exists"


def globals_deleted(place: Scene) -> str:
    (place.folder(place.orders[2]) / OBJECTS[0]).unlink()
    return "exists"


def data_is_a_pipe(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[1]
    path.unlink()
    os.mkfifo(path)
    return "exists"


def signature_is_a_pipe(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[3]
    path.unlink()
    os.mkfifo(path)
    return "exists"


def data_is_a_folder(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[1]
    path.unlink()
    path.mkdir()
    return "exists"


def data_is_an_endless_device(place: Scene) -> str:
    path = place.folder(place.orders[2]) / OBJECTS[1]
    path.unlink()
    path.symlink_to("/dev/zero")
    return "exists"


def repository_claims_another_id(place: Scene) -> str:
    shutil.copy2(place.other_repository / bucket.REPO_KEY, place.bucket / bucket.REPO_KEY)
    return "exists"


ATTACKS: tuple[Callable[[Scene], str], ...] = (
    data_of_an_older_artifact,
    parts_swapped,
    data_of_another_policy,
    manifests_swapped,
    signatures_swapped,
    older_artifact_in_its_place,
    same_content_sealed_again,
    other_content_sealed_for_the_recipients,
    bomb_of_the_same_size,
    object_a_gigabyte_longer,
    manifest_edited,
    manifest_edited_and_signed_by_a_stranger,
    manifest_signed_by_a_stranger,
    manifest_signed_as_evidence,
    signature_removed,
    details_of_another_artifact,
    data_deleted,
    globals_deleted,
    data_is_a_pipe,
    signature_is_a_pipe,
    data_is_a_folder,
    data_is_an_endless_device,
    repository_claims_another_id,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_what_is_done_to_an_artifact_is_found_and_stops_a_restore(
    place: Scene, attack: Callable[[Scene], str], *, fresh: bool
) -> None:
    newest = place.orders[2]
    level = attack(place)
    with place.open(fresh=fresh) as workplace:
        exists = verify(workplace, newest, level="exists")
        assert exists.code == 8 if level == "exists" else level == "any" or exists.code == 0, exists
        assert newest in exists.text
        for answer in (
            verify(workplace, newest),
            verify(workplace, keys=False),
            try_restore(workplace, TARGET),
            try_restore(workplace, TARGET, artifact_id=newest[:20]),
        ):
            assert answer.code == 8, answer
            assert newest in answer.text
        report = check(workplace)
        if exists.code:
            assert report.code == 8, report
            assert newest in report.text or bucket.REPO_KEY in report.text
        answer, outcome = drill(workplace)
        assert answer.code == 11
        assert outcome.failed_level == ("exists" if exists.code else "intact")
        assert f"FAILED at level {outcome.failed_level}" in answer.text
        assert newest in answer.text
        assert outcome.scratch == {}
    assert TARGET not in place.databases()


# What was added to the bucket; the newest artifact is as it was.


def manifest_replayed_under_a_new_id(place: Scene) -> str:
    place.folder(NEW_ID).mkdir()
    for name in OBJECTS[2:]:
        shutil.copy2(place.folder(place.orders[0]) / name, place.folder(NEW_ID) / name)
    return NEW_ID


def older_artifact_under_a_new_id(place: Scene) -> str:
    shutil.copytree(place.folder(place.orders[0]), place.folder(NEW_ID))
    return NEW_ID


def artifact_of_another_policy(place: Scene) -> str:
    shutil.copytree(place.folder(place.ledger, "ledger"), place.folder(place.ledger))
    return place.ledger


def artifact_of_another_repository(place: Scene) -> str:
    source = place.other_repository / bucket.artifact_prefix("orders", place.stranger_id)
    shutil.copytree(source, place.folder(place.stranger_id))
    return place.stranger_id


def artifact_of_another_repository_and_none_named(place: Scene) -> str:
    (place.bucket / bucket.REPO_KEY).unlink()
    return artifact_of_another_repository(place)


def artifact_made_up(place: Scene) -> str:
    folder = place.folder(NEW_ID)
    shutil.copytree(place.folder(place.orders[2]), folder)
    manifest = json.loads((folder / OBJECTS[2]).read_bytes())
    objects = [{**item, "key": item["key"].replace(place.orders[2], NEW_ID)} for item in manifest["objects"]]
    data = edit(folder / OBJECTS[2], artifact_id=NEW_ID, objects=objects)
    (folder / OBJECTS[3]).write_bytes(sign(data, STRANGER, MANIFEST_NAMESPACE))
    return NEW_ID


def manifest_of_junk(place: Scene) -> str:
    place.folder(NEW_ID).mkdir()
    (place.folder(NEW_ID) / OBJECTS[2]).write_bytes(b"{}")
    return NEW_ID


ADDITIONS: tuple[Callable[[Scene], str], ...] = (
    manifest_replayed_under_a_new_id,
    older_artifact_under_a_new_id,
    artifact_of_another_policy,
    artifact_of_another_repository,
    artifact_of_another_repository_and_none_named,
    artifact_made_up,
    manifest_of_junk,
)


@pytest.mark.parametrize("attack", ADDITIONS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_what_is_put_into_the_bucket_is_never_restored(
    place: Scene, attack: Callable[[Scene], str], *, fresh: bool
) -> None:
    added = attack(place)
    with place.open(fresh=fresh) as workplace:
        for answer in (
            verify(workplace, added),
            verify(workplace, level="exists"),
            check(workplace),
            try_restore(workplace, TARGET),
            try_restore(workplace, TARGET, artifact_id=added),
        ):
            assert answer.code == 8, answer
            assert added in answer.text
        assert f"drkit restore orders --artifact {place.orders[2]}" in try_restore(workplace, TARGET).text
        answer, outcome = drill(workplace)
        assert (answer.code, outcome.failed_level) == (11, "exists")
        assert drill(workplace, level="intact", artifact_id=place.orders[2])[0].code == 0
        assert TARGET not in place.databases()
        assert try_restore(workplace, TARGET, artifact_id=place.orders[2]).code == 0


# Deletions.


@pytest.mark.parametrize("age", [0, 1, 2], ids=["oldest", "middle", "newest"])
def test_a_deleted_artifact_is_missed(place: Scene, age: int) -> None:
    gone = place.orders[age]
    with place.open() as workplace:
        before = check(workplace)
    assert before.code == 12
    shutil.rmtree(place.folder(gone))
    with place.open() as workplace:
        for answer in (
            check(workplace),
            verify(workplace, level="exists"),
            verify(workplace, gone),
            try_restore(workplace, TARGET, artifact_id=gone),
        ):
            assert answer.code == 8, answer
            assert gone in answer.text
        assert drill(workplace, artifact_id=gone)[1].failed_level == "exists"
        assert try_restore(workplace, TARGET).code == (8 if gone == place.orders[2] else 0)


@pytest.mark.parametrize("age", [0, 1], ids=["oldest", "middle"])
def test_the_chain_alone_shows_that_an_artifact_is_gone(place: Scene, age: int) -> None:
    digest = "sha256:"
    shutil.rmtree(place.folder(place.orders[age]))
    with place.open(fresh=True) as workplace:
        report = check(workplace)
        assert report.code == 8
        assert "chain-gap" in report.text
        assert digest in report.text
        assert place.orders[age + 1] in report.text


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_an_older_artifact_never_takes_the_place_of_one_that_is_gone(place: Scene, *, fresh: bool) -> None:
    moment = place.manifest(place.orders[1]).covers.to_at + timedelta(milliseconds=1)
    shutil.rmtree(place.folder(place.orders[1]))
    with place.open(fresh=fresh) as workplace:
        answer = try_restore(workplace, TARGET, at=moment)
        assert answer.code == 8, answer
        assert f"drkit restore orders --artifact {place.orders[0]}" in answer.text
        assert drill(workplace, at=moment)[1].failed_level == "exists"
        assert TARGET not in place.databases()
        assert try_restore(workplace, TARGET, at=moment - timedelta(hours=1)).code in (8, 9)
        assert try_restore(workplace, TARGET, artifact_id=place.orders[0]).code == 0


def bury(place: Scene, artifact_id: str, *, key: Ed25519PrivateKey | None = None, under: str | None = None) -> None:
    """Write the tombstone of an artifact, signed by the site unless another key is given."""
    manifest = place.manifest(artifact_id)
    stone = Tombstone(
        repo_id=manifest.repo_id,
        policy="orders",
        artifact_id=artifact_id,
        manifest_sha256=manifest_digest(place, artifact_id),
        seq=manifest.seq,
        parents=manifest.parents,
        reason="retention",
        removed_at=manifest.ended_at,
    ).to_bytes()
    path = place.bucket / bucket.tombstone_key("orders", under or artifact_id)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(stone)
    signature = sign(stone, key, TOMBSTONE_NAMESPACE) if key else place.sign(stone, TOMBSTONE_NAMESPACE)
    path.with_name(path.name + ".sig").write_bytes(signature)


def manifest_digest(place: Scene, artifact_id: str) -> str:
    import hashlib

    return hashlib.sha256((place.folder(artifact_id) / OBJECTS[2]).read_bytes()).hexdigest()


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_a_tombstone_explains_what_is_gone(place: Scene, *, fresh: bool) -> None:
    moment = place.manifest(place.orders[1]).covers.to_at + timedelta(milliseconds=1)
    bury(place, place.orders[1])
    shutil.rmtree(place.folder(place.orders[1]))
    with place.open(fresh=fresh) as workplace:
        assert check(workplace).code == 12
        assert verify(workplace).code == 0
        answer = try_restore(workplace, TARGET, at=moment)
        assert (answer.code, answer.text) == (0, place.orders[0])


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
@pytest.mark.parametrize("forgery", ["stranger", "of another artifact"])
def test_a_forged_tombstone_explains_nothing(place: Scene, forgery: str, *, fresh: bool) -> None:
    moment = place.manifest(place.orders[1]).covers.to_at + timedelta(milliseconds=1)
    if forgery == "stranger":
        bury(place, place.orders[1], key=STRANGER)
    else:
        bury(place, place.orders[0], under=place.orders[1])
    shutil.rmtree(place.folder(place.orders[1]))
    with place.open(fresh=fresh) as workplace:
        assert check(workplace).code == 8
        assert try_restore(workplace, TARGET, at=moment).code == 8
    assert TARGET not in place.databases()


def test_a_bucket_that_is_emptied_or_rolled_back_is_missed(place: Scene) -> None:
    for name in ("artifacts", ""):
        shutil.rmtree(place.bucket / "policies" / "orders" / name)
        with place.open() as workplace:
            report = check(workplace)
            assert report.code == 8
            assert all(artifact_id in report.text for artifact_id in place.orders)
            assert try_restore(workplace, TARGET).code == 8
            answer = verify(workplace, level="exists")
            assert answer.code == 8
            assert all(artifact_id in answer.text for artifact_id in place.orders)
        place.reset()


# Two copies.


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_a_sound_copy_makes_up_for_a_damaged_one_and_hides_nothing(place: Scene, name: str, *, fresh: bool) -> None:
    path = place.offsite / bucket.artifact_prefix("pair", place.pair) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with place.open(fresh=fresh) as workplace:
        assert next(iter(workplace.stores)) == "offsite"
        for answer in (verify(workplace, place.pair), verify(workplace)):
            assert answer.code == 8
            assert "in store offsite" in answer.text
        restored = try_restore(workplace, TARGET, policy="pair")
        assert restored.code == 0, restored
        answer, outcome = drill(workplace, "pair", level="intact")
        said = "\n".join([answer.text, *outcome.findings])
        assert "in store offsite" in said
        assert outcome.verdict != "passed"
        if name.endswith(".age"):
            assert f"{place.pair}/{name} in store offsite" in restored.text
            assert answer.code == 0
        elif not fresh:
            assert f"artifact {place.pair} in store offsite" in restored.text
            assert (outcome.failed_level, outcome.blames) == ("exists", "copy")
    assert TARGET in place.databases()


def test_each_object_may_come_from_another_copy(place: Scene) -> None:
    damaged = [
        place.folder(place.pair, "pair") / OBJECTS[0],
        place.offsite / bucket.artifact_prefix("pair", place.pair) / OBJECTS[1],
    ]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with place.open() as workplace:
        answer = try_restore(workplace, TARGET, policy="pair")
        assert answer.code == 0
        assert answer.text.count("passed over") == 1
        both = verify(workplace, place.pair)
        assert both.code == 8
        assert "2 damaged" in both.text


def test_damage_in_every_copy_stops_a_restore(place: Scene) -> None:
    for folder in (place.folder(place.pair, "pair"), place.offsite / bucket.artifact_prefix("pair", place.pair)):
        path = folder / OBJECTS[1]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with place.open() as workplace:
        assert try_restore(workplace, TARGET, policy="pair").code == 8
    assert TARGET not in place.databases()


def test_a_copy_that_is_gone_is_missed_and_made_again(place: Scene) -> None:
    shutil.rmtree(place.folder(place.pair, "pair"))
    with place.open() as workplace:
        for answer in (verify(workplace, place.pair), verify(workplace), check(workplace, "pair")):
            assert answer.code == 8, answer
            assert place.pair in answer.text
            assert "store primary" in answer.text
        assert "drkit store copy" in check(workplace, "pair").text
        assert try_restore(workplace, TARGET, policy="pair").code == 0
        _, outcome = drill(workplace, "pair", level="intact")
        assert outcome.verdict == "passed_with_findings"
        result = catch_up(workplace, [workplace.policies["pair"]], SILENT)
        assert result.failed == []
        assert verify(workplace, place.pair).code == 0


# Between the reading that verifies and the reading that loads.


class Swapping:
    """A store whose objects are changed by somebody after they were read once."""

    def __init__(self, store: Store, later: Mapping[str, bytes]) -> None:
        self._store = store
        self._later = later
        self._opened: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:
        if key in self._opened and key in self._later:
            yield iter([self._later[key]])
            return
        self._opened.add(key)
        with self._store.open(key, version_id=version_id) as chunks:
            yield chunks


def test_what_changes_after_it_was_verified_is_not_loaded(place: Scene) -> None:
    """Anybody can seal a dump for the public recipients; loading it would run whatever statements it holds."""
    path = place.folder(place.orders[2]) / OBJECTS[1]
    evil = seal(place, pack(open_object(place, path)))
    assert evil != path.read_bytes()
    key = path.relative_to(place.bucket).as_posix()
    place.server.create_database(TARGET)
    with place.open() as workplace:
        swapping: Any = Swapping(workplace.stores["primary"], {key: evil})
        workplace = dataclasses.replace(workplace, stores={"primary": swapping})
        answer = try_restore(workplace, TARGET)
    assert answer.code == 8
    assert f"object {key} in store primary was changed after it had been verified" in answer.text
    assert place.server.execute("select count(*) from pg_class where oid >= 16384", TARGET) == [(0,)]
