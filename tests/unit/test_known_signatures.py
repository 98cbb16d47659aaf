"""Signatures that were verified before: not again, and nothing that a store says ever passes for one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.errors import CatalogError, IntegrityError, StoreUnavailable
from drkit.log_documents import LogManifest
from drkit.operations import signed
from drkit.operations.known_signatures import KnownSignatures
from drkit.operations.stored_log import read_logs
from drkit.operations.timeline import Timeline, read_timeline
from drkit.signing import EVIDENCE_NAMESPACE, MANIFEST_NAMESPACE, sign
from drkit.stores import read_object
from tests.fixtures.pruning import PruneWorld, prune_world
from tests.fixtures.site import ReadySite
from tests.unit.test_prune_log import LogWorld


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    """Lend a policy with four log manifests in two stores, whose timeline was read once."""
    with prune_world(ready_site, tmp_path) as made:
        logs = LogWorld(made)
        logs.pass_days(4)
        assert read_timeline(made.workplace, "orders").distrusted == []
        yield made


def manifests(world: PruneWorld) -> list[str]:
    keys = [item.key for item in world.stores["primary"].list(bucket.logs_prefix("orders"))]
    return [key for key in keys if bucket.parse_log_manifest_key(key)]


def overwrite(world: PruneWorld, key: str, content: bytes) -> None:
    """Do what somebody can do who may write to the stores."""
    for store in world.stores.values():
        store.delete(key)
        store.put(key, [content])


def forget(world: PruneWorld) -> None:
    world.catalog.signatures.remember("orders", {}, world.catalog.signatures.known("orders"))


def read(world: PruneWorld, **changes: Any) -> Timeline:
    return read_timeline(replace(world.workplace, **changes), "orders")


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note whose signatures are verified."""
    found: list[str] = []
    verify = signed.verify

    def noting(*arguments: Any, what: str, **options: Any) -> Any:
        found.append(what)
        return verify(*arguments, what=what, **options)

    monkeypatch.setattr(signed, "verify", noting)
    return found


def test_the_second_reading_verifies_nothing_and_says_the_same(world: PruneWorld, verified: list[str]) -> None:
    again = read(world)
    assert verified == []
    assert [window.to_lsn for window in again.windows] == [8 << 24]
    assert len(again.links) == 4
    forget(world)
    assert read(world) == again
    assert len(verified) == 4


@pytest.mark.parametrize("part", ["manifest", "signature"])
def test_each_byte_that_is_changed_afterwards_is_found(world: PruneWorld, part: str) -> None:
    key = manifests(world)[1] if part == "manifest" else bucket.signature_key(manifests(world)[1])
    content = read_object(world.stores["primary"], key)
    for place in range(0, len(content), 29):
        overwrite(world, key, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert read(world).distrusted, f"byte {place} of {len(content)}"
    overwrite(world, key, content)
    assert read(world).distrusted == []


def test_a_known_manifest_in_the_place_of_another_hides_nothing(world: PruneWorld) -> None:
    first, second = manifests(world)[:2]
    for suffix in ("", ".sig"):
        overwrite(world, second + suffix, read_object(world.stores["primary"], first + suffix))
    found = read(world)
    assert len(found.unsigned) == 2, "what the other one listed is signed no longer"
    forget(world)
    assert read(world) == found


def test_a_stranger_and_a_signature_for_something_else_stay_refused(world: PruneWorld) -> None:
    key = manifests(world)[0]
    data = read_object(world.stores["primary"], key)
    for signature in (
        sign(data, Ed25519PrivateKey.generate(), MANIFEST_NAMESPACE),
        sign(data, world.bucket.key, EVIDENCE_NAMESPACE),
    ):
        overwrite(world, bucket.signature_key(key), signature)
        for _ in range(2):  # what is refused is not known the next time either
            assert [doubt for doubt in read(world).distrusted if "not believed" in doubt]


def test_who_is_not_trusted_any_more_is_not_believed_for_having_been_known(world: PruneWorld) -> None:
    (signer,) = world.bucket.signers
    other = Ed25519PrivateKey.generate().public_key()
    retired = replace(signer, valid_before=world.now - timedelta(days=2))
    elsewhere = replace(signer, namespaces=(EVIDENCE_NAMESPACE,))
    for signers, told in (
        ([], "stranger"),
        ([replace(signer, public_key=other)], "stranger"),  # with the very same key id
        ([elsewhere], "may not sign"),
        ([retired], "outside the time"),
    ):
        doubts = [doubt for doubt in read(world, signers=signers).distrusted if "log manifest" in doubt]
        assert doubts
        assert all(told in doubt for doubt in doubts)
    assert read(world).distrusted == []


def test_the_end_of_one_never_passes_for_the_beginning_of_the_other(world: PruneWorld) -> None:
    key = manifests(world)[0]
    data, signature = (read_object(world.stores["primary"], name) for name in (key, bucket.signature_key(key)))
    known = KnownSignatures(world.catalog, world.bucket.signers, "orders")
    assert known.signer_of(data, signature) == world.bucket.signers[0]
    assert known.signer_of(data + signature, b"") is None
    assert known.signer_of(data + signature[:1], signature[1:]) is None
    assert KnownSignatures(world.catalog, world.bucket.signers, "other").signer_of(data, signature) is None


def test_what_is_gone_is_forgotten_unless_a_store_is_out_of_reach(
    world: PruneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = manifests(world)[-1]
    for store in world.stores.values():
        store.delete(gone)

    def unreachable(prefix: str) -> Iterator[Any]:
        raise StoreUnavailable("store offsite does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(world.stores["offsite"], "list", unreachable)
        read(world)
        assert len(world.catalog.signatures.known("orders")) == 4
    read(world)
    assert len(world.catalog.signatures.known("orders")) == 3


def test_a_catalog_that_keeps_nothing_only_costs_time(world: PruneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise CatalogError("cannot write the catalog: no room")

    forget(world)
    monkeypatch.setattr(world.catalog.signatures, "remember", full)
    assert read(world).distrusted == []
    assert world.catalog.signatures.known("orders") == {}


def test_a_feature_that_this_drkit_does_not_know_is_refused_also_in_known_bytes(world: PruneWorld) -> None:
    data = read_object(world.stores["primary"], manifests(world)[0])
    manifest = LogManifest.from_known_bytes(data, "the manifest")
    assert manifest == LogManifest.from_bytes(data, "the manifest")
    newer = manifest.model_copy(update={"features": ("holes",)}).to_bytes()
    with pytest.raises(IntegrityError, match="holes"):
        LogManifest.from_known_bytes(newer, "the manifest")
    with pytest.raises(IntegrityError, match="the manifest: field timeline"):
        LogManifest.from_known_bytes(data.replace(b'"timeline":1', b'"timeline":0'), "the manifest")


def test_readers_that_restore_verify_each_time(world: PruneWorld, verified: list[str]) -> None:
    read_logs(world.workplace, "orders")
    assert len(verified) == 4
