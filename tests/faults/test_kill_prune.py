"""SIGKILL before and after every request by which a prune changes its stores.

After each kill: whatever is visible is whole, with all that it builds on; nothing that should stay is gone; and the
next prune goes on without unlocking, to the same end as if nobody had killed anything.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drkit import bucket
from drkit.keys import load_signing_key
from drkit.model import Manifest
from drkit.stores.file import FileStore
from tests.faults.forking import Forker
from tests.faults.shop import Shop, make_shop
from tests.fixtures.bucket import Bucket

KILLED = -9
STORES = ("primary", "offsite")
RETENTION = "retention: {last: 1, minimum: 1, max_removed_percent: 100, grace: 1ms}\n"


class Scene:
    """A full dump, one that builds on it, and a newer one that stays; the stores can be set back."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        url = "postgresql://nobody@db.example/shop"
        self.shop: Shop = make_shop(folder / "host", forker, url, stores=STORES, more=RETENTION)
        self.shop.site.add_store("offsite").mkdir(mode=0o700)
        site = self.shop.site
        self.folders = {"primary": site.store_folder, "offsite": site.folder / "offsite"}
        self.folders["primary"].mkdir(mode=0o700, exist_ok=True)
        stores = {name: FileStore(name, path) for name, path in self.folders.items()}
        held = Bucket(stores=stores, key=load_signing_key(site.signing_key))  # type: ignore[arg-type]
        now = datetime.now(UTC)
        full = held.add("shop", at=now - timedelta(hours=3))
        child = held.add("shop", at=now - timedelta(hours=2), depends_on=(full.manifest.artifact_id,))
        self.going = [full.manifest.artifact_id, child.manifest.artifact_id]
        self.staying = held.add("shop", at=now - timedelta(hours=1)).manifest.artifact_id
        self.backup = folder / "backup"

    def save(self) -> None:
        shutil.rmtree(self.backup, ignore_errors=True)
        shutil.copytree(self.shop.site.folder, self.backup, symlinks=True)

    def set_back(self) -> None:
        shutil.rmtree(self.shop.site.folder)
        shutil.copytree(self.backup, self.shop.site.folder, symlinks=True)

    def visible(self, store: str) -> set[str]:
        """Return the artifacts of a store; each must be whole, with all that it builds on in some store."""
        root = self.folders[store]
        manifests = [
            Manifest.from_bytes(path.read_bytes(), str(path))
            for path in root.glob("policies/shop/artifacts/*/manifest.json")
        ]
        for manifest in manifests:
            assert (root / (bucket.manifest_key("shop", manifest.artifact_id) + ".sig")).is_file()
            for item in manifest.objects:
                assert hashlib.sha256((root / item.key).read_bytes()).hexdigest() == item.stored_sha256
        return {manifest.artifact_id for manifest in manifests}

    def judge(self, point: str) -> None:
        """Look at the stores as a kill left them."""
        found = {store: self.visible(store) for store in STORES}
        assert all(self.staying in ids for ids in found.values()), point
        everywhere = set.union(*found.values())
        assert self.going[1] not in everywhere or self.going[0] in everywhere, (
            f"{point}: a parent is gone before its child"
        )

    def finish(self, point: str, prunes: int) -> None:
        """Prune so often, after which nothing more is to be done, and look for anything that is left of what goes."""
        for _ in range(prunes):
            self.shop.drkit("prune", "shop")
        done = self.shop.document("prune", "shop")
        assert done["policies"][0]["marked"] == done["policies"][0]["removed"] == [], point
        for store, root in self.folders.items():
            assert self.visible(store) == {self.staying}, point
            left = [
                path for path in root.rglob("*") if path.is_file() and any(name in str(path) for name in self.going)
            ]
            assert all("/tombstones/" in str(path) for path in left), (point, left)
            assert len(left) == 4, "a tombstone and its signature of each"
            assert not list(root.rglob("~put-*")), point
        assert self.shop.document("check", status=12)["policies"][0]["state"] == "UNPROVEN", point


@pytest.fixture
def scene(machine: Path, forker: Forker) -> Scene:
    return Scene(machine, forker)


def changes(points: list[str]) -> list[str]:
    """Return the points at requests that change a store, each once."""
    wanted = (" put ", " delete ", " replace ")
    return list(
        dict.fromkeys(point for point in points if any(word in point for word in wanted) and "chunk" not in point)
    )


def survive(scene: Scene, points: list[str], *, times: int) -> None:
    """Kill a prune at each point, and the next one at the same point when it gets there: for another object then."""
    for point in points:
        scene.set_back()
        for time in range(times):
            ended = scene.shop.drkit("prune", "shop", stop_at=point)
            assert ended.status == (KILLED if time == 0 else ended.status), (point, ended.said)
            assert ended.status in (KILLED, 0), (point, ended.said)
            scene.judge(point)
        scene.finish(point, prunes=3 - times)  # where the first two were killed as they deleted, the next ends it


def test_the_run_that_marks(scene: Scene) -> None:
    scene.save()
    clean = scene.shop.drkit("prune", "shop")
    assert clean.status == 0, clean.said
    assert all(len(scene.visible(store)) == 3 for store in STORES), "the run that marks deletes nothing"
    points = changes(clean.passed)
    assert len(points) == 12
    survive(scene, points, times=1)


def test_the_run_that_deletes(scene: Scene) -> None:
    assert scene.shop.drkit("prune", "shop").status == 0
    scene.save()
    clean = scene.shop.drkit("prune", "shop")
    assert clean.status == 0, clean.said
    points = [point for point in changes(clean.passed) if " delete " in point]
    assert len(points) == 12
    survive(scene, points, times=2)


def test_a_reader_that_is_killed_needs_no_unlocking(scene: Scene) -> None:
    """The next reader takes the lease at once, or another; a prune waits until it would have been renewed."""
    assert scene.shop.drkit("prune", "shop").status == 0
    lease, usual = "primary replace leases/read.shop.0.json", scene.shop.drkit("verify", "--all").status
    for point in (f"before {lease}", f"after {lease}"):
        assert scene.shop.drkit("verify", "--all", stop_at=point).status == KILLED
        scene.judge(point)
        assert scene.shop.drkit("verify", "--all").status == usual
    assert scene.shop.drkit("verify", "--all", stop_at=f"after {lease}").status == KILLED
    (done,) = scene.shop.document("prune", "shop")["policies"]
    assert (done["removed"], len(done["notes"])) == ([], 1)
    for root in scene.folders.values():
        for path in (root / "leases").glob("~put-*"):
            path.unlink()  # of the other store's lease, cut off in its middle: it is swept away after a week
        for path in (root / "leases").glob("read.shop.*"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 16 * 60))
    scene.finish("a killed reader", prunes=1)
