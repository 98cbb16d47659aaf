"""Copies: all that a policy's stores should hold, by signed digests, and nothing that is not as it was signed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from drkit import bucket
from drkit.app import open_app
from drkit.cli.output import Output
from drkit.errors import IntegrityError, StoreUnavailable
from drkit.log_documents import LogManifest, LogRecord
from drkit.model import ArtifactEntry, Compression, Encryption, ObjectRecord
from drkit.operations import Workplace
from drkit.operations.copy_result import CopyResult
from drkit.operations.copying import catch_up
from drkit.operations.running import new_id
from drkit.operations.verify import verify_artifact
from drkit.retention_documents import BuriedRun, Hold, LogTombstone, Release
from drkit.signing import MANIFEST_NAMESPACE, TOMBSTONE_NAMESPACE
from drkit.stores import ObjectInfo, read_object
from drkit.stores.memory import MemoryStore
from drkit.units import MIB
from tests.fixtures.bucket import NOW, Bucket
from tests.fixtures.site import ReadySite

SILENT = Output(quiet=True)


@dataclass
class Watched(MemoryStore):
    """A store that counts what is read, and fails for the keys that it is told to fail for."""

    name: str
    read: list[str] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__(self.name)

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:
        self.read.append(key)
        with super().open(key, version_id=version_id) as chunks:
            yield chunks

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        if key in self.refuses:
            raise StoreUnavailable(f"store {self.name} went away")
        return super().put(key, chunks)


@dataclass
class Scene:
    """A policy with two stores, one of which missed things."""

    workplace: Workplace
    bucket: Bucket
    primary: Watched
    offsite: Watched

    def catch_up(self) -> CopyResult:
        return catch_up(self.workplace, [self.workplace.policies["orders"]], SILENT)

    def change(self, key: str, content: bytes, store: MemoryStore | None = None) -> None:
        store = store or self.primary
        store.delete(key)
        store.put(key, [content])

    def add(self, *parts: str) -> ArtifactEntry:
        """Commit an artifact of several objects to the first store alone."""
        artifact_id = new_id(NOW)
        records = []
        for part in parts or ("database-1",):
            content = f"sealed {part}".encode()
            digest = hashlib.sha256(content).hexdigest()
            key = bucket.part_key("orders", artifact_id, part)
            records.append(
                ObjectRecord(
                    part=part,
                    kind="dump",
                    key=key,
                    stored_bytes=len(content),
                    stored_sha256=digest,
                    plain_bytes=1,
                    plain_sha256=digest,
                )
            )
        entry = self.bucket.add(artifact_id=artifact_id, objects=tuple(records), stores=["primary"])
        for record in records:
            self.change(record.key, f"sealed {record.part}".encode())
        return entry

    def add_log(self, *numbers: int, stores: Sequence[str] = ("primary",)) -> str:
        """Store WAL segments with the manifest that lists them; return its key."""
        names = [f"0000000100000000{number:08X}" for number in numbers]
        records = []
        for name in names:
            content = f"sealed {name}".encode()
            digest = hashlib.sha256(content).hexdigest()
            key = bucket.log_key("orders", 1, name)
            for store in stores:
                self.bucket.stores[store].put(key, [content])
            sizes = {"stored_bytes": len(content), "plain_bytes": 16 * MIB}
            digests = {"stored_sha256": digest, "plain_sha256": digest}
            records.append(LogRecord(part=name, kind="segment", key=key, **sizes, **digests))
        manifest = LogManifest(
            repo_id="repo-1",
            policy="orders",
            engine="postgres",
            timeline=1,
            segment_bytes=16 * MIB,
            from_lsn=f"0/{numbers[0]:X}000000",
            to_lsn=f"0/{numbers[-1] + 1:X}000000",
            files=tuple(records),
            made_at=NOW,
            compression=Compression(level=1),
            encryption=Encryption(recipients=()),
            written_to="primary",
        )
        key = bucket.log_manifest_key("orders", 1, names[0], names[-1], new_id(NOW + timedelta(seconds=numbers[0])))
        self.bucket.put_signed(key, manifest.to_bytes(), MANIFEST_NAMESPACE, stores=stores)
        return key


@pytest.fixture
def scene(ready_site: ReadySite) -> Iterator[Scene]:
    ready_site.add_store("offsite")
    ready_site.write_policy("orders", stores=["primary", "offsite"])
    primary, offsite = Watched("primary"), Watched("offsite")
    stores = Bucket(stores={"primary": primary, "offsite": offsite})
    with open_app(ready_site.site_file) as workplace:
        place = dataclasses.replace(workplace, stores=stores.stores, signers=stores.signers, clock=lambda: NOW)
        yield Scene(place, stores, primary, offsite)


def keys_under(store: MemoryStore, part: str) -> set[str]:
    return {item.key for item in store.list("policies/") if part in item.key}


class TestArtifacts:
    def test_a_copy_is_made_and_verifies(self, scene: Scene) -> None:
        entry = scene.add("database-1", "globals")
        result = scene.catch_up()
        assert ([item.store for item in result.copied], result.failed) == (["offsite"], [])
        copied = scene.workplace.catalog.artifact(entry.manifest.artifact_id)
        assert copied.stores == ("offsite", "primary")
        assert all(item.ok for item in verify_artifact(scene.workplace, copied, [], SILENT, level="exists"))
        assert scene.catch_up().made == 0

    @pytest.mark.parametrize("content", [b"sealed database-X", b"short", b"sealed database-1 and more"])
    def test_altered_bytes_are_not_spread(self, scene: Scene, content: bytes) -> None:
        entry = scene.add()
        scene.change(entry.manifest.objects[0].key, content)
        (failure,) = scene.catch_up().failed
        assert isinstance(failure.error, IntegrityError)
        assert failure.subject == entry.manifest.artifact_id
        assert keys_under(scene.offsite, "artifacts") == set()

    def test_an_altered_manifest_is_not_spread(self, scene: Scene) -> None:
        entry = scene.add()
        key = bucket.manifest_key("orders", entry.manifest.artifact_id)
        scene.workplace.catalog.index_artifact(entry)
        scene.change(key, read_object(scene.primary, key).replace(b"postgres", b"postgraz"))
        scene.catch_up()
        assert keys_under(scene.offsite, "artifacts") == set()

    def test_a_cut_copy_goes_on_with_the_object_that_it_was_at(self, scene: Scene) -> None:
        entry = scene.add("database-1", "database-2", "database-3")
        first, second, third = (item.key for item in entry.manifest.objects)
        scene.offsite.refuses = {second}
        (failure,) = scene.catch_up().failed
        assert isinstance(failure.error, StoreUnavailable)
        assert keys_under(scene.offsite, "artifacts") == {first}
        scene.offsite.refuses = set()
        scene.primary.read.clear()
        assert scene.catch_up().failed == []
        assert [key for key in scene.primary.read if key.endswith(".age")] == [second, third]

    def test_what_lies_in_the_way_is_left_and_named(self, scene: Scene) -> None:
        entry = scene.add()
        key = entry.manifest.objects[0].key
        scene.offsite.put(key, [b"sealed database-X"])
        (failure,) = scene.catch_up().failed
        assert isinstance(failure.error, IntegrityError)
        assert f"{key} in store offsite" in failure.error.message
        assert read_object(scene.offsite, key) == b"sealed database-X"
        assert keys_under(scene.offsite, "manifest.json") == set()

    def test_a_store_that_goes_away_is_left_alone_and_asked_again(self, scene: Scene) -> None:
        entries = [scene.bucket.add(at=NOW - timedelta(hours=hour), stores=["primary"]) for hour in (3, 2, 1)]
        scene.offsite.refuses = {item.key for entry in entries for item in entry.manifest.objects}
        assert [failure.store for failure in scene.catch_up().failed] == ["offsite"]
        (run,) = scene.workplace.catalog.runs(kind="copy")
        assert run.state == "failed"
        scene.offsite.refuses = set()
        assert len(scene.catch_up().copied) == 3

    def test_what_was_buried_stays_buried(self, scene: Scene) -> None:
        entry = scene.add()
        scene.bucket.bury(entry)
        assert scene.catch_up().copied == []


class TestLogs:
    def test_files_and_manifests_reach_the_other_store_in_order(self, scene: Scene) -> None:
        keys = [scene.add_log(5, 6), scene.add_log(7)]
        result = scene.catch_up()
        assert [(item.key, item.files) for item in result.logs] == [(keys[0], 2), (keys[1], 1)]
        assert keys_under(scene.offsite, "/logs/") == keys_under(scene.primary, "/logs/")
        assert scene.catch_up().made == 0

    def test_it_goes_both_ways(self, scene: Scene) -> None:
        key = scene.add_log(5, stores=["offsite"])
        assert [(item.key, item.store) for item in scene.catch_up().logs] == [(key, "primary")]

    def test_an_altered_segment_is_not_spread_nor_vouched_for(self, scene: Scene) -> None:
        bad, good = scene.add_log(5, 6), scene.add_log(7)
        scene.change(bucket.log_key("orders", 1, f"0000000100000000{6:08X}"), b"sealed 0000000100000000000000XX")
        result = scene.catch_up()
        assert [failure.subject for failure in result.failed] == [bad]
        assert isinstance(result.failed[0].error, IntegrityError)
        assert [item.key for item in result.logs] == [good]
        assert bad not in keys_under(scene.offsite, "/logs/")

    def test_a_manifest_of_a_stranger_is_not_spread(self, scene: Scene) -> None:
        key = scene.add_log(5)
        scene.change(key, read_object(scene.primary, key) + b" ")
        assert [failure.subject for failure in scene.catch_up().failed] == [key]
        assert keys_under(scene.offsite, "/logs/") == set()

    def test_a_file_that_one_store_lost_comes_back(self, scene: Scene) -> None:
        key = scene.add_log(5, 6, stores=["primary", "offsite"])
        lost = bucket.log_key("orders", 1, f"0000000100000000{5:08X}")
        scene.primary.delete(lost)
        scene.offsite.read.clear()
        assert [(item.key, item.files) for item in scene.catch_up().logs] == [(key, 1)]
        assert lost in keys_under(scene.primary, "/logs/")
        assert [read for read in scene.offsite.read if read.endswith(".age")] == [lost]

    def test_what_no_manifest_lists_is_not_copied(self, scene: Scene) -> None:
        scene.primary.put(bucket.log_key("orders", 1, f"0000000100000000{9:08X}"), [b"a stranger's"])
        assert scene.catch_up().made == 0
        assert keys_under(scene.offsite, "/logs/") == set()

    def test_what_was_buried_stays_buried(self, scene: Scene) -> None:
        gone, stays = scene.add_log(5), scene.add_log(6)
        place = bucket.parse_log_manifest_key(gone)
        assert place is not None
        run = BuriedRun(
            timeline=1,
            first_id=place.manifest_id,
            last_id=place.manifest_id,
            count=1,
            first_file=place.first,
            last_file=place.last,
            previous=None,
            last_sha256="0" * 64,
        )
        stone = LogTombstone(
            repo_id="repo-1", policy="orders", tombstone_id="T1", runs=(run,), reason="retention", removed_at=NOW
        )
        key = bucket.log_tombstone_key("orders", "T1")
        scene.bucket.put_signed(key, stone.to_bytes(), TOMBSTONE_NAMESPACE, stores=["offsite"])
        assert [item.key for item in scene.catch_up().logs] == [stays]


class TestDocuments:
    def test_holds_and_their_releases_reach_the_other_store(self, scene: Scene) -> None:
        facts = {"repo_id": "repo-1", "policy": "orders", "artifact_id": "A", "hold_id": "H1"}
        hold = Hold(**facts, reason="audit", placed_at=NOW)
        release = Release(**facts, released_at=NOW)
        for key, document in ((bucket.hold_key("orders", "H1"), hold), (bucket.release_key("orders", "H1"), release)):
            scene.bucket.put_signed(key, document.to_bytes(), TOMBSTONE_NAMESPACE, stores=["offsite"])
        assert {item.kind for item in scene.catch_up().records} == {"hold", "release"}
        assert keys_under(scene.primary, "/holds/") == keys_under(scene.offsite, "/holds/")

    def test_records_and_tombstones_reach_the_other_store(self, scene: Scene) -> None:
        entry = scene.add()
        scene.bucket.prove(entry)
        scene.bucket.bury(entry)
        for key in [*keys_under(scene.offsite, "/evidence/"), *keys_under(scene.offsite, "/tombstones/")]:
            scene.offsite.delete(key)
        assert {item.kind for item in scene.catch_up().records} == {"record", "tombstone"}
        for part in ("/evidence/", "/tombstones/"):
            assert keys_under(scene.offsite, part) == keys_under(scene.primary, part)

    def test_an_edited_record_is_not_spread(self, scene: Scene) -> None:
        scene.bucket.prove(scene.add(), "failed")
        (key,) = {item for item in keys_under(scene.primary, "/evidence/") if item.endswith(".json")}
        for item in keys_under(scene.offsite, "/evidence/"):
            scene.offsite.delete(item)
        scene.change(key, read_object(scene.primary, key).replace(b'"failed"', b'"passed"'))
        assert [failure.subject for failure in scene.catch_up().failed] == [key]
        assert keys_under(scene.offsite, "/evidence/") == set()
