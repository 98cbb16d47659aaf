"""Backups that are killed one after the other, and what must hold after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from drkit import bucket
from tests.faults.forking import Ended, searched, wait_until
from tests.faults.shop import ROW_WORD, TABLE_WORD, Shop

KILLED = -9


def requests_of(ended: Ended) -> list[str]:
    """Return the points that a clean run passed, without those that are no requests to stores, each once."""
    assert ended.status == 0, ended.said
    return list(dict.fromkeys(point for point in ended.passed if not point.startswith(("started", "begin", "end"))))


def share(points: list[str], shard: int, shards: int) -> list[str]:
    """Return one of the consecutive shares of ``points``."""
    size = -(-len(points) // shards)
    return points[shard * size : (shard + 1) * size]


def _changes_a_store(point: str) -> bool:
    """Tell whether the stores are any different from what they were at the point before."""
    return (point.startswith("after ") and " put " in point) and not (" chunk of " in point and "age" not in point)


class Survivor:
    """A shop whose backups are killed one after the other, and what was restorable so far.

    ``stored`` returns every byte of the stores that are looked into at the end, ``store_count`` of them; ``stores`` are
    those of the policy.
    """

    def __init__(
        self,
        shop: Shop,
        stored: Callable[[], dict[str, bytes]],
        *,
        store_count: int = 1,
        stores: Sequence[str] = ("primary", "offsite"),
    ) -> None:
        self.shop = shop
        self.store_count = store_count
        self.stores = stores
        self.stored = stored
        self.copies: set[tuple[str, str]] = set()

    def survive(self, points: list[str]) -> None:
        """Kill a backup at each of the points, and finish."""
        for point in points:
            killed = self.shop.drkit("backup", "shop", stop_at=point)
            assert killed.status == KILLED, f"{point} was not reached: {killed.said}"
            self.judge(killed, point)
        self.finish()

    def judge(self, killed: Ended, point: str) -> None:
        """Assert what must hold after a backup was killed at a point; the dear part only where a store has changed."""
        shop = self.shop
        wait_until(lambda: not shop.host.processes(), f"{point}: still running: {shop.host.processes()}")
        self.judge_temporary_files(point)
        if not _changes_a_store(point):
            return
        newest = shop.copies()
        assert shop.temporary_files() == [], point
        run = shop.runs()[0]
        assert (run.kind, run.state, run.pid) == ("backup", "lost", killed.pid), point
        export = shop.export()
        assert export == shop.rebuilt_export(), point
        copies = {
            (item["manifest"]["artifact_id"], name)
            for item in json.loads(export)["artifacts"]
            for name in item["stores"]
        }
        assert copies >= self.copies | newest, point
        assert shop.seen_secrets(killed) == [], point
        self.copies = copies

    def judge_temporary_files(self, point: str) -> None:
        """A dead process leaves its private folder; what its tools needed to connect is for its user's eyes only."""
        for path in self.shop.temporary_files():
            assert path.stat().st_mode & 0o077 == 0, (point, path)
            assert path.is_dir() or path.name in {"service.conf", "pass"}, (point, path)
        assert searched([self.shop.host.temporary], [ROW_WORD, TABLE_WORD]) == [], point

    def finish(self) -> None:
        """Complete the copies, take a last backup, and look into every stored byte."""
        shop = self.shop
        before = shop.copies("--all")
        assert before >= self.copies
        artifacts = {artifact_id for artifact_id, _ in before}
        copied = shop.document("store", "copy")
        assert {(item["artifact_id"], item["store"]) for item in copied["copied"]} == {
            (artifact_id, name)
            for artifact_id in artifacts
            for name in self.stores
            if (artifact_id, name) not in before
        }
        last = shop.document("backup", "shop")
        artifacts.add(last["artifact_id"])
        assert shop.copies("--all") == {(name, store) for name in artifacts for store in self.stores}
        assert shop.runs()[0].state == "succeeded"
        report = shop.document("check", status=12)
        codes = {finding["code"] for policy in report["policies"] for finding in policy["findings"]}
        assert codes <= {"never-drilled", "orphan"}, report
        assert report["stores"] == []
        for name, content in self.stored().items():
            words = [word for word in (*shop.secrets, ROW_WORD, TABLE_WORD) if word.encode() in content]
            assert words == [], name
            assert not name.endswith(".zst.age") or content.startswith(b"age-encryption.org/v1\n"), name
        once_a_store = [name for name in self.stored() if name.endswith((bucket.RECOVERY_KEY, bucket.REPO_KEY))]
        assert len(once_a_store) == 2 * self.store_count
