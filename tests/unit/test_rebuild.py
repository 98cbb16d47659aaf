"""A catalog from the stores alone: the same on every host, and only of what is signed and in its place."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import age, bucket
from drkit.canonical import canonical_json
from drkit.catalog import files
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.errors import CatalogError, StoreError, StoreUnavailable
from drkit.keys import KeyFile
from drkit.model import Scratch
from drkit.operations.rebuild import Rebuilt, rebuild_catalog
from drkit.signing import EVIDENCE_NAMESPACE, MANIFEST_NAMESPACE
from drkit.stores import ObjectInfo
from drkit.stores.memory import MemoryStore
from tests.fixtures.bucket import NOW, Bucket, make_manifest

HOUR = timedelta(hours=1)


@pytest.fixture
def held() -> Bucket:
    return Bucket()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "catalog.db"


def rebuild(held: Bucket, path: Path, **options: object) -> Rebuilt:
    return rebuild_catalog(path, held.stores, held.signers, NOW, **options)  # type: ignore[arg-type]


@contextmanager
def opened(path: Path) -> Iterator[SqliteCatalog]:
    with closing(open_catalog(path)) as catalog:
        yield catalog


def export(path: Path) -> bytes:
    with opened(path) as catalog:
        return catalog.export()


def codes(rebuilt: Rebuilt) -> list[str]:
    return sorted(finding.code for findings in rebuilt.findings.values() for finding in findings)


class TestTheSameEverywhere:
    def test_a_second_host_gets_the_same_export_byte_for_byte(self, held: Bucket, path: Path, tmp_path: Path) -> None:
        with closing(open_catalog(path, create=True)) as first_host:
            for number in range(5):
                entry = held.add(at=NOW + number * HOUR, stores=["primary"] if number == 2 else None)
                first_host.index_artifact(entry)
            first_host.index_artifact(held.add("ledger", mood="sunny"))
            record, digest = held.prove(entry)
            first_host.index_evidence(record, digest, sorted(held.stores))
        rebuilt = rebuild(held, tmp_path / "second.db")
        assert (rebuilt.artifacts, rebuilt.evidence, rebuilt.moved_aside) == (6, 1, None)
        assert codes(rebuilt) == []
        assert export(tmp_path / "second.db") == export(path)
        partly = [item for item in json.loads(export(path))["artifacts"] if item["manifest"]["seq"] == 3]
        assert [item["stores"] for item in partly] == [["primary"]]

    def test_rebuilding_a_sound_catalog_changes_nothing_in_the_export(self, held: Bucket, path: Path) -> None:
        held.add()
        rebuild(held, path)
        before = export(path)
        assert codes(rebuild(held, path)) == []
        assert export(path) == before

    def test_the_order_of_the_stores_does_not_matter(self, held: Bucket, path: Path, tmp_path: Path) -> None:
        held.add()
        rebuild(held, path)
        held.stores = dict(reversed(held.stores.items()))
        rebuild(held, tmp_path / "other.db")
        assert export(tmp_path / "other.db") == export(path)

    def test_empty_stores_make_an_empty_catalog(self, held: Bucket, path: Path) -> None:
        assert rebuild(held, path).artifacts == 0
        with opened(path) as catalog:
            assert catalog.artifact_rows() == []


class TestOnlyWhatIsBelieved:
    def check(self, held: Bucket, path: Path, code: str, text: str) -> None:
        good = held.add(at=NOW - HOUR)
        rebuilt = rebuild(held, path)
        found = [item for findings in rebuilt.findings.values() for item in findings]
        assert {item.code for item in found} == {code}
        assert all(text in item.message for item in found), found
        assert rebuilt.exit_code == 8
        with opened(path) as catalog:
            assert [row.artifact_id for row in catalog.artifact_rows()] == [good.manifest.artifact_id]

    def test_an_unsigned_manifest(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest()
        key = bucket.manifest_key("orders", manifest.artifact_id)
        held.stores["primary"].put(key, [manifest.to_bytes()])
        self.check(held, path, "manifest-untrusted", "is not signed")

    def test_a_strangers_manifest(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest()
        key = bucket.manifest_key("orders", manifest.artifact_id)
        held.put_signed(key, manifest.to_bytes(), MANIFEST_NAMESPACE, signed_by=Ed25519PrivateKey.generate())
        self.check(held, path, "manifest-untrusted", "signed by a stranger")

    def test_an_edited_manifest(self, held: Bucket, path: Path) -> None:
        entry = held.add()
        key = bucket.manifest_key("orders", entry.manifest.artifact_id)
        for store in held.stores.values():
            store.delete(key)
            store.put(key, [entry.manifest.to_bytes().replace(b"15.18", b"15.19")])
        self.check(held, path, "manifest-untrusted", "does not fit")

    def test_a_record_signed_as_a_manifest(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest()
        held.put_signed(bucket.manifest_key("orders", manifest.artifact_id), manifest.to_bytes(), EVIDENCE_NAMESPACE)
        self.check(held, path, "manifest-untrusted", "was made for")

    def test_a_manifest_from_after_its_signer_was_retired(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest(at=NOW + 100 * HOUR)
        held.put_signed(bucket.manifest_key("orders", manifest.artifact_id), manifest.to_bytes(), MANIFEST_NAMESPACE)
        held.add(at=NOW - HOUR)
        from dataclasses import replace

        signers = [replace(held.signers[0], valid_before=NOW)]
        rebuilt = rebuild_catalog(path, held.stores, signers, NOW)
        assert (rebuilt.artifacts, set(codes(rebuilt))) == (1, {"manifest-untrusted"})

    def test_a_manifest_of_another_policy(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest("ledger")
        held.put_signed(bucket.manifest_key("orders", manifest.artifact_id), manifest.to_bytes(), MANIFEST_NAMESPACE)
        self.check(held, path, "manifest-misplaced", "another policy, ledger")

    def test_a_manifest_of_another_repository(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest(repo_id="repo-2")
        held.put_signed(bucket.manifest_key("orders", manifest.artifact_id), manifest.to_bytes(), MANIFEST_NAMESPACE)
        self.check(held, path, "manifest-misplaced", "another repository, repo-2")

    def test_a_manifest_in_the_place_of_another_is_not_indexed(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest()
        key = bucket.manifest_key("orders", "01JDAAAAAAAAAAAAAAAAAAAAAA")
        held.put_signed(key, manifest.to_bytes(), MANIFEST_NAMESPACE)
        self.check(held, path, "manifest-misplaced", "is the manifest of another artifact")

    @pytest.mark.parametrize("data", [b"", b"[]\n", b"{", b'{"a":1,"a":1}\n', b'{"format":"drkit-manifest"}\n'])
    def test_a_signed_document_that_is_no_manifest(self, held: Bucket, path: Path, data: bytes) -> None:
        held.put_signed(bucket.manifest_key("orders", "01JD"), data, MANIFEST_NAMESPACE)
        self.check(held, path, "manifest-untrusted", "manifest.json")

    def test_a_manifest_that_needs_a_newer_drkit(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest(features=("time-travel",))
        held.put_signed(bucket.manifest_key("orders", manifest.artifact_id), manifest.to_bytes(), MANIFEST_NAMESPACE)
        self.check(held, path, "manifest-untrusted", "time-travel")

    def test_evidence_of_another_run(self, held: Bucket, path: Path) -> None:
        record = {"run_id": "r1", "policy": "orders", "ended_at": NOW.isoformat(), "kind": "drill"}
        held.put_signed(bucket.evidence_key("orders", "r2"), canonical_json(record), EVIDENCE_NAMESPACE)
        self.check(held, path, "evidence-misplaced", "run r1")

    def test_unsigned_evidence(self, held: Bucket, path: Path) -> None:
        record = {"run_id": "r1", "policy": "orders", "ended_at": NOW.isoformat(), "kind": "drill"}
        held.stores["primary"].put(bucket.evidence_key("orders", "r1"), [canonical_json(record)])
        self.check(held, path, "evidence-untrusted", "is not signed")

    def test_two_signed_manifests_of_one_id(self, held: Bucket, path: Path) -> None:
        manifest = make_manifest()
        other = make_manifest(artifact_id=manifest.artifact_id, seq=9)
        key = bucket.manifest_key("orders", manifest.artifact_id)
        held.put_signed(key, manifest.to_bytes(), MANIFEST_NAMESPACE, stores=["primary"])
        held.put_signed(key, other.to_bytes(), MANIFEST_NAMESPACE, stores=["offsite"])
        rebuilt = rebuild(held, path)
        assert codes(rebuilt) == ["chain-replay"]
        assert rebuilt.artifacts == 1


class TestTheOldCatalog:
    def test_a_sound_one_keeps_runs_leases_scratch_and_details(self, held: Bucket, path: Path) -> None:
        entry = held.add(stores=["primary"])
        scratch = Scratch("s1", "postgres", "/srv/s1", "db1", 1, "1", NOW)
        with closing(open_catalog(path, create=True)) as catalog:
            from dataclasses import replace

            catalog.index_artifact(replace(entry, details={"known": "here"}, stores=("offsite",)))
            catalog.acquire_lease("l", "a", HOUR, NOW)
            catalog.add_scratch(scratch)
            inode = path.stat().st_ino
            rebuilt = rebuild(held, path)
            assert rebuilt.moved_aside is None
            assert path.stat().st_ino == inode
            found = catalog.artifact(entry.manifest.artifact_id)
            assert (found.details, found.stores) == ({"known": "here"}, ("primary",))
            assert catalog.lease("l") is not None
            assert catalog.scratches() == [scratch]

    def test_what_no_store_has_is_forgotten_and_named(self, held: Bucket, path: Path) -> None:
        kept, gone = held.add(at=NOW - HOUR), held.add()
        rebuild(held, path)
        held.remove(gone)
        rebuilt = rebuild(held, path)
        assert rebuilt.forgotten == (gone.manifest.artifact_id,)
        assert (codes(rebuilt), rebuilt.exit_code) == (["artifact-gone"], 8)
        with opened(path) as catalog:
            assert [row.artifact_id for row in catalog.artifact_rows()] == [kept.manifest.artifact_id]

    def test_what_is_indexed_while_the_stores_are_listed_stays(self, held: Bucket, path: Path) -> None:
        held.add(at=NOW - HOUR)
        rebuild(held, path)
        late = Bucket().add(at=NOW)

        class Slow(MemoryStore):
            def list(self, prefix: str) -> Iterator[ObjectInfo]:
                listed = list(super().list(prefix))
                with opened(path) as catalog:
                    catalog.index_artifact(late)
                return iter(listed)

        slow = Slow("primary")
        slow._objects = held.stores["primary"]._objects
        held.stores["primary"] = slow
        rebuild(held, path)
        with opened(path) as catalog:
            assert late.manifest.artifact_id in {row.artifact_id for row in catalog.artifact_rows()}

    @pytest.mark.parametrize("content", [b"garbage" * 1000, b""])
    def test_a_file_that_is_no_catalog_is_kept_beside_the_new_one(
        self, held: Bucket, path: Path, content: bytes
    ) -> None:
        held.add()
        path.parent.mkdir()
        path.write_bytes(content)
        rebuilt = rebuild(held, path)
        assert rebuilt.moved_aside is not None
        assert rebuilt.moved_aside.read_bytes() == content
        with opened(path) as catalog:
            assert len(catalog.artifact_rows()) == 1
        assert path.stat().st_mode & 0o777 == 0o600

    def test_of_a_damaged_or_newer_one_everything_readable_is_carried_over(self, held: Bucket, path: Path) -> None:
        held.add()
        with closing(open_catalog(path, create=True)) as catalog:
            catalog.acquire_lease("l", "a", HOUR, NOW)
            catalog.add_scratch(Scratch("s1", "postgres", "/srv/s1", "db1", 1, "1", NOW))
            catalog._connection.execute(f"pragma user_version = {files.SCHEMA_VERSION + 1}")
        rebuilt = rebuild(held, path)
        assert rebuilt.moved_aside is not None
        assert codes(rebuilt) == []
        with opened(path) as catalog:
            assert [scratch.scratch_id for scratch in catalog.scratches()] == ["s1"]
            assert catalog.acquire_lease("l", "b", HOUR, NOW + HOUR).fence == 2

    def test_what_could_not_be_carried_over_is_said(self, held: Bucket, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"garbage" * 1000)
        rebuilt = rebuild(held, path)
        (finding,) = rebuilt.findings[""]
        assert finding.message.startswith("leases, scratch, runs, events")
        assert "could not be read" in finding.message

    def test_its_log_goes_with_it(self, held: Bucket, path: Path) -> None:
        path.parent.mkdir()
        path.with_name("catalog.db-wal").write_bytes(b"orphaned log")
        rebuilt = rebuild(held, path)
        assert rebuilt.moved_aside is not None
        assert rebuilt.moved_aside.with_name(rebuilt.moved_aside.name + "-wal").read_bytes() == b"orphaned log"

    def test_two_rebuilds_in_one_second_keep_both_old_files(self, held: Bucket, path: Path) -> None:
        path.parent.mkdir()
        for content in (b"first" * 1000, b"second" * 1000):
            path.write_bytes(content)
            rebuild(held, path)
        assert len(list(path.parent.glob("catalog.db.aside-*"))) == 2

    def test_a_locked_one_is_not_moved(self, held: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "BUSY_TIMEOUT_S", 0.1)
        open_catalog(path, create=True).close()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("pragma locking_mode = exclusive")
            other.execute("begin exclusive")
            with pytest.raises(CatalogError, match="locked"):
                rebuild(held, path)
        assert [item.name for item in path.parent.iterdir() if "aside" in item.name or "new" in item.name] == []

    def test_no_draft_is_left_when_the_new_one_cannot_be_put_in_place(
        self, held: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.parent.mkdir()
        path.write_bytes(b"garbage" * 1000)

        def refuse(*_: object) -> None:
            raise CatalogError("no")

        monkeypatch.setattr(files, "move_aside", refuse)
        with pytest.raises(CatalogError):
            rebuild(held, path)
        assert [item.name for item in path.parent.iterdir()] == ["catalog.db"]
        assert path.read_bytes() == b"garbage" * 1000


class Down(MemoryStore):
    """A store that is out of order."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise StoreUnavailable(f"store {self.name} does not answer")


class TestStoresOutOfReach:
    def test_the_other_store_is_enough_and_what_was_known_is_kept(self, held: Bucket, path: Path) -> None:
        both, only_there = held.add(at=NOW - HOUR), held.add(stores=["offsite"])
        rebuild(held, path)
        before = export(path)
        held.stores["offsite"] = Down("offsite")
        rebuilt = rebuild(held, path)
        assert (codes(rebuilt), rebuilt.exit_code, rebuilt.forgotten) == (["store-unread"], 12, ())
        assert export(path) == before
        assert both.manifest.artifact_id.encode() in before
        assert only_there.manifest.artifact_id.encode() in before

    def test_without_any_store_nothing_is_changed(self, held: Bucket, path: Path) -> None:
        held.add()
        rebuild(held, path)
        before = export(path)
        held.stores = {name: Down(name) for name in held.stores}
        with pytest.raises(StoreError, match="no store can be read") as caught:
            rebuild(held, path)
        assert caught.value.details == ("store primary does not answer", "store offsite does not answer")
        assert export(path) == before


class TestDetails:
    def test_an_identity_opens_them(self, held: Bucket, path: Path) -> None:
        mine, other = age.generate_identity(), age.generate_identity()
        for number, identity in enumerate((mine, other)):
            sealed = age.encrypt([canonical_json({"parts": {"n": {"label": f"db{number}"}}})], [identity.recipient])
            held.add(at=NOW + number * HOUR, details=age.armor(b"".join(sealed)))
        key = KeyFile("restore", Path("restore.age"), mine, "age:0011223344556677")
        rebuilt = rebuild(held, path, identities=[key])
        assert (rebuilt.opened, codes(rebuilt)) == (1, [])
        with opened(path) as catalog:
            details = [catalog.artifact(row.artifact_id).details for row in catalog.artifact_rows()]
        assert details == [None, {"parts": {"n": {"label": "db0"}}}]

    def test_damaged_ones_are_a_finding(self, held: Bucket, path: Path) -> None:
        held.add(details="not armored")
        mine = age.generate_identity()
        key = KeyFile("restore", Path("restore.age"), mine, "age:0011223344556677")
        rebuilt = rebuild(held, path, identities=[key])
        assert (codes(rebuilt), rebuilt.artifacts) == (["details-damaged"], 1)
