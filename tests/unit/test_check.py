"""`drkit check`: everything that can be wrong between stores, chain, catalog and policy is found and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from drkit.errors import StoreUnavailable
from drkit.model import ArtifactEntry, Run
from drkit.operations.check import gather
from drkit.operations.expectations import Due, Expectation, due_of
from drkit.operations.judgement import CheckReport, PolicyVerdict, judge
from drkit.operations.running import new_id
from drkit.schedule import Recurrence
from drkit.signing import MANIFEST_NAMESPACE
from drkit.stores import ObjectInfo
from drkit.stores.memory import MemoryStore
from tests.fixtures.bucket import NOW, Bucket

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EXPECTED = Expectation("orders", ("primary", "offsite"))


class Down(MemoryStore):
    """A store that is out of order."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise StoreUnavailable(f"store {self.name} does not answer")


class Scene:
    """A bucket with three artifacts, all in the catalog, the newest one proven; and the check of it."""

    def __init__(self, catalog: SqliteCatalog) -> None:
        self.catalog = catalog
        self.held = Bucket()
        self.artifacts = [self.add(at=NOW - days * DAY) for days in (3, 2, 1)]
        record, digest = self.held.prove(self.artifacts[-1], at=NOW - HOUR)
        catalog.index_evidence(record, digest, ["offsite", "primary"])

    def add(self, **options: object) -> ArtifactEntry:
        entry = self.held.add(**options)  # type: ignore[arg-type]
        self.catalog.index_artifact(entry)
        return entry

    def check(self, expected: Expectation = EXPECTED, now: datetime = NOW) -> CheckReport:
        observed = gather(self.held.stores, self.held.signers, self.catalog)
        return judge(observed, {expected.policy: expected}, now)

    def verdict(self, expected: Expectation = EXPECTED, now: datetime = NOW) -> PolicyVerdict:
        (verdict,) = self.check(expected, now).policies
        return verdict

    def key(self, number: int, name: str = "manifest.json") -> str:
        return bucket.artifact_prefix("orders", self.artifacts[number].manifest.artifact_id) + name

    def change(self, key: str, content: bytes, stores: Sequence[str] = ("primary",)) -> None:
        for name in stores:
            self.held.stores[name].delete(key)
            self.held.stores[name].put(key, [content])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        yield Scene(catalog)


def codes(verdict: PolicyVerdict) -> list[str]:
    return sorted(finding.code for finding in verdict.findings)


def test_all_is_well(scene: Scene) -> None:
    report = scene.check()
    (verdict,) = report.policies
    assert (verdict.state, verdict.findings, report.stores, report.exit_code) == ("ok", (), (), 0)
    assert verdict.artifacts == 3
    assert verdict.restorable_to_at == NOW - DAY
    assert "RPO 1 d" in verdict.summary
    assert "last drill passed 1:00:00 ago" in verdict.summary


class TestDamage:
    """Each is found, named, has a hint, makes the state DAMAGED and the exit code 8."""

    def expect(self, scene: Scene, *expected: str, subject: str | None = None) -> PolicyVerdict:
        report = scene.check()
        (verdict,) = report.policies
        assert codes(verdict) == sorted(expected)
        assert (verdict.state, report.exit_code) == ("DAMAGED", 8)
        assert all(finding.hint and finding.message for finding in verdict.findings)
        if subject is not None:
            assert {finding.subject for finding in verdict.findings} == {subject}
        return verdict

    def test_a_missing_part(self, scene: Scene) -> None:
        scene.held.stores["primary"].delete(scene.key(1, "database-1.zst.age"))
        verdict = self.expect(scene, "object-missing", subject=scene.artifacts[1].manifest.artifact_id)
        assert "missing from store primary" in verdict.findings[0].message

    @pytest.mark.parametrize("content", [b"", b"sealed", b"x" * 100])
    def test_a_part_of_another_size(self, scene: Scene, content: bytes) -> None:
        scene.change(scene.key(1, "database-1.zst.age"), content, ["offsite"])
        verdict = self.expect(scene, "object-size", subject=scene.artifacts[1].manifest.artifact_id)
        assert f"{len(content)} bytes in store offsite" in verdict.findings[0].message

    def test_a_part_that_is_gone_everywhere_moves_the_restorable_moment_back(self, scene: Scene) -> None:
        for store in scene.held.stores.values():
            store.delete(scene.key(2, "database-1.zst.age"))
        verdict = self.expect(scene, "object-missing", "object-missing")
        assert verdict.restorable_to_at == NOW - 2 * DAY

    def test_what_an_incremental_base_builds_on_is_gone_everywhere(self, scene: Scene) -> None:
        parent = scene.artifacts[2].manifest.artifact_id
        child = scene.add(at=NOW - HOUR, depends_on=(parent,)).manifest.artifact_id
        assert scene.verdict().restorable_to_at == NOW - HOUR
        for store in scene.held.stores.values():
            store.delete(scene.key(2, "database-1.zst.age"))
        verdict = self.expect(scene, "object-missing", "object-missing", "parent-lost")
        assert [item.subject for item in verdict.findings if item.code == "parent-lost"] == [child]
        assert verdict.restorable_to_at == NOW - 2 * DAY

    def test_an_unsigned_manifest_is_reported_once_and_not_as_gone(self, scene: Scene) -> None:
        scene.held.stores["primary"].delete(scene.key(1, "manifest.json.sig"))
        self.expect(scene, "manifest-untrusted")

    def test_an_edited_manifest_in_every_store(self, scene: Scene) -> None:
        data = scene.artifacts[1].manifest.to_bytes()
        scene.change(scene.key(1), data.replace(b"15.18", b"15.19"), ["primary", "offsite"])
        self.expect(scene, "manifest-untrusted", "manifest-untrusted")

    def test_a_manifest_signed_by_a_stranger(self, scene: Scene) -> None:
        data = scene.artifacts[1].manifest.to_bytes()
        for name in ("manifest.json", "manifest.json.sig"):
            scene.held.stores["primary"].delete(scene.key(1, name))
        scene.held.put_signed(
            scene.key(1), data, MANIFEST_NAMESPACE, stores=["primary"], signed_by=Ed25519PrivateKey.generate()
        )
        verdict = self.expect(scene, "manifest-untrusted")
        assert "stranger" in verdict.findings[0].message

    def test_a_replayed_manifest(self, scene: Scene) -> None:
        for name in ("manifest.json", "manifest.json.sig"):
            scene.held.stores["primary"].delete(scene.key(2, name))
        scene.held.put_signed(
            scene.key(2), scene.artifacts[0].manifest.to_bytes(), MANIFEST_NAMESPACE, stores=["primary"]
        )
        self.expect(scene, "manifest-misplaced")

    def test_objects_swapped_between_artifacts_of_another_size(self, scene: Scene) -> None:
        scene.change(scene.key(0, "database-1.zst.age"), b"longer than the one that was here, by far")
        self.expect(scene, "object-size")

    @pytest.mark.parametrize("data", [True, False])
    def test_an_artifact_in_the_middle_is_gone(self, scene: Scene, data: bool) -> None:
        scene.held.remove(scene.artifacts[1], data=data)
        self.expect(scene, "chain-gap", subject=scene.artifacts[1].manifest.artifact_id)

    def test_an_artifact_in_the_middle_is_gone_and_the_catalog_is_new(self, scene: Scene) -> None:
        scene.held.remove(scene.artifacts[1])
        scene.catalog.forget_artifact(scene.artifacts[1].manifest.artifact_id)
        self.expect(scene, "chain-gap", subject=f"sha256:{scene.artifacts[1].manifest_sha256}")

    def test_the_newest_artifact_is_gone_rollback(self, scene: Scene) -> None:
        scene.held.remove(scene.artifacts[2])
        self.expect(scene, "chain-rollback", subject=scene.artifacts[2].manifest.artifact_id)

    def test_every_artifact_is_gone(self, scene: Scene) -> None:
        for entry in scene.artifacts:
            scene.held.remove(entry)
        verdict = scene.verdict()
        assert codes(verdict).count("chain-rollback") == 3
        assert verdict.state == "DAMAGED"
        assert verdict.restorable_to_at is None

    def test_a_copy_that_was_there_is_gone(self, scene: Scene) -> None:
        scene.held.remove(scene.artifacts[1], stores=["offsite"])
        verdict = self.expect(scene, "copy-gone", subject=scene.artifacts[1].manifest.artifact_id)
        assert "store offsite" in verdict.findings[0].message

    def test_a_record_of_a_drill_is_gone(self, scene: Scene) -> None:
        for store in scene.held.stores.values():
            for item in list(store.list(bucket.evidence_prefix("orders"))):
                store.delete(item.key)
        verdict = scene.verdict()
        assert codes(verdict) == ["evidence-gone", "never-drilled"]
        assert verdict.state == "DAMAGED"

    def test_a_record_that_the_catalog_forgot_is_missed_by_the_next_one(self, scene: Scene) -> None:
        scene.held.prove(scene.artifacts[2], previous="0" * 64)
        self.expect(scene, "evidence-gap", subject="run-20261122T120000")

    def test_the_description_of_the_repository_is_gone(self, scene: Scene) -> None:
        scene.held.stores["offsite"].delete(bucket.REPO_KEY)
        report = scene.check()
        assert [finding.code for finding in report.stores] == ["repo-missing"]
        assert report.exit_code == 8

    def test_a_fork_of_two_hosts_is_legal(self, scene: Scene) -> None:
        last = scene.artifacts[-1]
        for minutes in (1, 2):
            scene.held.heads["orders"] = (4, (last.manifest_sha256,))
            scene.add(at=NOW - minutes * HOUR)
        assert scene.verdict().state == "ok"

    def test_a_removal_with_a_tombstone_is_explained(self, scene: Scene) -> None:
        for number in (0, 2):
            scene.held.bury(scene.artifacts[number])
            scene.held.remove(scene.artifacts[number])
        verdict = scene.verdict()
        assert (verdict.state, verdict.findings) == ("ok", ())
        assert verdict.restorable_to_at == NOW - 2 * DAY

    def test_a_tombstone_of_a_stranger_explains_nothing(self, scene: Scene) -> None:
        stranger = Bucket(stores=scene.held.stores)
        stranger.bury(scene.artifacts[1])
        scene.held.remove(scene.artifacts[1])
        self.expect(scene, "chain-gap", "tombstone-untrusted", "tombstone-untrusted")


class TestProblems:
    def expect(self, scene: Scene, code: str, state: str, expected: Expectation = EXPECTED) -> str:
        report = scene.check(expected)
        (verdict,) = report.policies
        assert (codes(verdict), verdict.state, report.exit_code) == ([code], state, 12)
        (finding,) = verdict.findings
        assert verdict.summary == finding.message
        assert finding.hint.startswith("drkit ")
        return finding.message

    def test_a_copy_that_never_was(self, scene: Scene) -> None:
        entry = scene.add(at=NOW - HOUR, stores=["primary"])
        message = self.expect(scene, "copy-missing", "INCOMPLETE")
        assert message == f"1 artifact is not in store offsite: {entry.manifest.artifact_id}"

    def test_a_policy_that_got_another_store(self, scene: Scene) -> None:
        scene.held.stores["third"] = MemoryStore("third")
        expected = replace(EXPECTED, stores=("primary", "offsite", "third"))
        assert self.expect(scene, "copy-missing", "INCOMPLETE", expected).startswith(
            "3 artifacts are not in store third"
        )

    def test_a_copy_is_not_missed_while_its_backup_runs(self, scene: Scene) -> None:
        scene.catalog.start_run(Run("r", "backup", "orders", "running", NOW - HOUR, "db1", 1, NOW))
        scene.add(at=NOW - HOUR, stores=["primary"])
        assert scene.verdict().state == "ok"

    def test_what_an_unfinished_backup_left(self, scene: Scene) -> None:
        scene.held.stores["primary"] = self.older(scene.held.stores["primary"])
        scene.held.stores["primary"].put("policies/orders/artifacts/01JD/database-1.zst.age", [b"half"])
        message = self.expect(scene, "orphan", "INCOMPLETE")
        assert "1 object (4 B) of 01JD in store primary without a manifest: a backup that did not finish on" in message

    def test_what_a_backup_that_runs_has_written_is_no_orphan(self, scene: Scene) -> None:
        scene.held.stores["primary"] = self.older(scene.held.stores["primary"])
        begun_at = NOW - 3 * DAY
        key = bucket.part_key("orders", new_id(begun_at), "database-1")
        scene.held.stores["primary"].put(key, [b"half"])
        scene.catalog.start_run(Run("r", "backup", "orders", "running", begun_at, "db1", 1, NOW))
        assert scene.verdict().state == "ok"
        scene.catalog.finish_run(Run("r", "backup", "orders", "lost", begun_at, "db1", 1, NOW, ended_at=NOW))
        self.expect(scene, "orphan", "INCOMPLETE")

    def older(self, store: MemoryStore) -> MemoryStore:
        """Return a store with the same objects, whose clock is two days behind."""
        other = MemoryStore(store.name, now=lambda: NOW - 2 * DAY)
        other._objects = store._objects
        return other

    def test_what_may_still_be_written_is_no_orphan(self, scene: Scene) -> None:
        store = MemoryStore("primary", now=lambda: NOW - HOUR)
        store._objects = scene.held.stores["primary"]._objects
        scene.held.stores["primary"] = store
        store.put("policies/orders/artifacts/01JD/database-1.zst.age", [b"half"])
        assert scene.verdict().state == "ok"

    def test_an_object_that_no_manifest_names(self, scene: Scene) -> None:
        scene.held.stores["primary"].put(scene.key(0, "notes.txt"), [b"?"])
        assert "notes.txt in store primary" in self.expect(scene, "object-unlisted", "INCOMPLETE")

    def test_never_drilled(self, scene: Scene) -> None:
        ledger = Expectation("ledger", ("primary", "offsite"))
        scene.held.add("ledger")
        verdicts = {item.policy: item for item in scene.check(ledger).policies}
        assert (verdicts["ledger"].state, verdicts["ledger"].summary) == ("UNPROVEN", "never drilled; 1 artifact")
        assert verdicts["orders"].state == "ok"

    def test_a_drill_that_passed_in_the_future_hides_none_that_failed(self, scene: Scene) -> None:
        for verdict, at, run_id in (("passed", NOW + 365 * DAY, "ahead"), ("failed", NOW - HOUR / 2, "now")):
            record, digest = scene.held.prove(scene.artifacts[-1], verdict, at=at, run_id=run_id)
            scene.catalog.index_evidence(record, digest, ["offsite", "primary"])
        assert self.expect(scene, "drill-failed", "FAILED") == "last drill failed 0:30:00 ago"

    def test_the_last_drill_failed(self, scene: Scene) -> None:
        scene.held.prove(scene.artifacts[1], "failed", at=NOW - HOUR / 2)
        assert self.expect(scene, "drill-failed", "FAILED") == "last drill failed 0:30:00 ago"

    def test_an_inconclusive_drill_neither_proves_nor_fails(self, scene: Scene) -> None:
        scene.held.prove(scene.artifacts[1], "inconclusive", at=NOW - HOUR / 2)
        assert scene.verdict().state == "ok"

    def test_a_drill_is_overdue(self, scene: Scene) -> None:
        expected = replace(EXPECTED, drills=(Due("quarterly", NOW - HOUR / 2, 90 * DAY),))
        assert "drill quarterly last came to a verdict 1:00:00 ago" in self.expect(
            scene, "drill-late", "UNPROVEN", expected
        )

    def test_a_scheduled_backup_did_not_come(self, scene: Scene) -> None:
        expected = replace(EXPECTED, backups=(Due("dump", NOW - 3 * HOUR, DAY),))
        assert self.expect(scene, "backup-late", "LATE", expected) == "newest dump 1 d old, due every 1 d"

    def test_the_failure_of_the_last_attempt_is_said(self, scene: Scene) -> None:
        run = Run("r", "backup", "orders", "failed", NOW, "db1", 1, NOW, NOW, "permission denied for table audit")
        scene.catalog.finish_run(run)
        expected = replace(EXPECTED, backups=(Due("dump", NOW - 3 * HOUR, DAY),))
        message = self.expect(scene, "backup-late", "LATE", expected)
        assert message.endswith("; last attempt failed: permission denied for table audit")

    def test_a_backup_on_time(self, scene: Scene) -> None:
        expected = replace(EXPECTED, backups=(Due("dump", NOW - DAY, DAY),))
        assert scene.verdict(expected).state == "ok"

    def test_another_method_does_not_count(self, scene: Scene) -> None:
        expected = replace(EXPECTED, backups=(Due("base", NOW - 2 * DAY, 7 * DAY),))
        assert self.expect(scene, "backup-late", "LATE", expected) == "no base yet, due every 7 d"

    def test_never_backed_up(self, scene: Scene) -> None:
        report = scene.check(Expectation("ledger", ("primary",)))
        verdict = next(item for item in report.policies if item.policy == "ledger")
        assert (verdict.state, verdict.summary) == ("LATE", "never backed up")
        assert verdict.findings[0].hint == "drkit backup ledger"

    def test_an_objective_that_the_schedule_cannot_meet(self, scene: Scene) -> None:
        expected = replace(EXPECTED, rpo=timedelta(minutes=15), backups=(Due("dump", NOW - DAY, DAY),))
        message = self.expect(scene, "rpo-missed", "MISSED", expected)
        assert message == "RPO 1 d of 0:15:00: a dump every 1 d cannot meet it"

    def test_an_objective_that_is_met(self, scene: Scene) -> None:
        assert scene.verdict(replace(EXPECTED, rpo=DAY)).state == "ok"

    def test_a_policy_without_a_file_is_judged_by_what_is_there(self, scene: Scene) -> None:
        observed = gather(scene.held.stores, scene.held.signers, scene.catalog)
        (verdict,) = judge(observed, {}, NOW).policies
        assert verdict.state == "ok"
        assert verdict.summary.endswith("; no policy file")


class TestStoresOutOfReach:
    def test_nothing_is_concluded_from_silence(self, scene: Scene) -> None:
        scene.add(at=NOW - HOUR, stores=["offsite"])
        scene.held.stores["offsite"] = Down("offsite")
        report = scene.check()
        assert [finding.code for finding in report.stores] == ["store-unread"]
        assert report.exit_code == 12
        assert [verdict.findings for verdict in report.policies] == [()]

    def test_damage_in_the_other_store_is_still_found(self, scene: Scene) -> None:
        scene.held.stores["offsite"] = Down("offsite")
        scene.held.stores["primary"].delete(scene.key(1, "database-1.zst.age"))
        assert scene.check().exit_code == 8

    def test_no_store_at_all(self, scene: Scene) -> None:
        scene.held.stores = {name: Down(name) for name in scene.held.stores}
        report = scene.check()
        assert report.exit_code == 12
        assert [verdict.summary for verdict in report.policies] == ["no store of it could be read"]
        assert [verdict.state for verdict in report.policies] == ["UNKNOWN"]


def test_only_the_policies_asked_for_are_read(scene: Scene) -> None:
    scene.held.add("ledger")
    observed = gather(scene.held.stores, scene.held.signers, scene.catalog, {"ledger"})
    assert {key.split("/")[1] for key in observed.inventories["primary"].objects} == {"ledger"}
    assert [verdict.policy for verdict in judge(observed, {}, NOW).policies] == ["ledger"]


@pytest.mark.parametrize(
    ("now", "since"),
    [
        ("2026-11-22T01:30", "2026-11-21T01:00"),  # the grace period of the dump at 02:00 Berlin has not passed
        ("2026-11-22T02:30", "2026-11-22T01:00"),
        ("2026-03-29T05:00", "2026-03-29T01:00"),  # the night in which 02:00 does not exist there
        ("2026-10-25T05:00", "2026-10-25T00:00"),  # the night in which it comes twice
    ],
)
def test_what_was_due_last(now: str, since: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    due = due_of("dump", Recurrence("0 2 * * *", "Europe/Berlin"), moment)
    assert due == Due("dump", datetime.fromisoformat(since).replace(tzinfo=UTC), DAY)
