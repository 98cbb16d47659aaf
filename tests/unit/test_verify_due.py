"""Keeping the promise to read everything: what is read, what is recorded, and what becomes of damage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drkit import age, bucket
from drkit.app import open_app
from drkit.cli.output import Output
from drkit.errors import IntegrityError, StoreUnavailable
from drkit.keys import recipients_of
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.checking import check_stores
from drkit.operations.copying import catch_up
from drkit.operations.judgement import CheckReport
from drkit.operations.rebuild import rebuild_catalog
from drkit.operations.verify_due import ReadResult, verify_due
from drkit.reports.status import read_status
from drkit.signing import EVIDENCE_NAMESPACE, verify
from drkit.stores import read_object
from tests.fixtures.bucket import NOW, Bucket
from tests.fixtures.site import ReadySite

SILENT = Output(quiet=True)
DAY = timedelta(days=1)


@dataclass
class Scene:
    """A policy with two stores and a clock that can be put forward."""

    workplace: Workplace
    bucket: Bucket
    site: ReadySite
    now: datetime = NOW

    def add(self, days_ago: float, **options: object) -> ArtifactEntry:
        recipients = recipients_of(self.site.recipients, accept_single_key=False)
        details = age.armor(b"".join(age.encrypt([b"{}"], recipients)))
        entry = self.bucket.add(at=self.now - days_ago * DAY, details=details, **options)  # type: ignore[arg-type]
        self.workplace.catalog.index_artifact(entry)
        return entry

    def read(self) -> ReadResult:
        return verify_due(self.workplace, [self.workplace.policies["orders"]], [], SILENT)

    def check(self) -> CheckReport:
        return check_stores(self.workplace, [self.workplace.policies["orders"]], everything=False)

    def codes(self) -> set[str]:
        return {finding.code for finding in self.check().policies[0].findings}

    def damage(self, entry: ArtifactEntry, store: str = "offsite") -> None:
        key = entry.manifest.objects[0].key
        content = read_object(self.bucket.stores[store], key)
        self.bucket.stores[store].delete(key)
        self.bucket.stores[store].put(key, [content[:-1] + b"?"])


@pytest.fixture
def make(ready_site: ReadySite) -> Iterator[Callable[[str], Scene]]:
    opened = []

    def build(promise: str) -> Scene:
        ready_site.add_store("offsite")
        ready_site.write_policy("orders", stores=["primary", "offsite"], more=f"verify: {promise}\n")
        app = open_app(ready_site.site_file)
        workplace = app.__enter__()
        opened.append(app)
        stores = Bucket()
        scene = Scene(workplace, stores, ready_site)
        scene.workplace = dataclasses.replace(
            workplace, stores=stores.stores, signers=[*stores.signers, *workplace.signers], clock=lambda: scene.now
        )
        return scene

    yield build
    for app in opened:
        app.__exit__(None, None, None)


def subjects(result: ReadResult) -> list[tuple[str, str]]:
    return sorted((copy.subject, copy.store) for copy, _ in result.read)


def test_every_copy_is_read_within_the_time_and_recorded(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 10d}")
    entries = [scene.add(days) for days in (8, 7, 6, 5)]
    read: set[tuple[str, str]] = set()
    for _ in range(10):
        read |= set(subjects(scene.read()))
        scene.now += DAY
        assert "verify-late" not in scene.codes()
    assert read == {(entry.manifest.artifact_id, name) for entry in entries for name in ("primary", "offsite")}


def test_a_reading_of_the_future_keeps_no_copy_from_being_read(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 10d}")
    entry = scene.add(20)
    scene.now += 365 * DAY
    assert len(scene.read().read) == 2
    scene.now -= 365 * DAY
    assert "verify-late" in scene.codes()
    (standing,) = read_status(scene.workplace, [scene.workplace.policies["orders"]], everything=False).policies
    assert "verify-late" in {finding.code for finding in standing.findings}
    assert {subject for subject, _ in subjects(scene.read())} == {entry.manifest.artifact_id}


def test_a_copy_that_was_sound_in_the_future_is_found_damaged_today(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 10d}")
    entry = scene.add(20)
    scene.now += 100_000 * DAY
    scene.read()
    scene.now -= 100_000 * DAY
    scene.damage(entry)
    assert len(scene.read().failed) == 1
    assert "copy-damaged" in scene.codes()
    (standing,) = read_status(scene.workplace, [scene.workplace.policies["orders"]], everything=False).policies
    assert "copy-damaged" in {finding.code for finding in standing.findings}


def test_the_record_is_signed_and_in_every_store_and_says_what_was_read(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 10d}")
    scene.add(20)
    assert len(scene.read().read) == 2
    (entry,) = scene.workplace.catalog.evidence_entries(policy="orders")
    assert entry.stores == ("offsite", "primary")
    key = bucket.evidence_key("orders", entry.record["run_id"])
    for store in scene.bucket.stores.values():
        data, signature = read_object(store, key), read_object(store, bucket.signature_key(key))
        verify(data, signature, EVIDENCE_NAMESPACE, scene.workplace.signers, what=key, at=scene.now)
    assert [item["sound"] for item in entry.record["copies"]] == [True, True]
    assert entry.record["verdict"] == "passed"
    assert scene.codes() <= {"backup-late", "never-drilled"}


def test_a_rebuilt_catalog_knows_what_was_read(make: Callable[[str], Scene], tmp_path: Path) -> None:
    scene = make("{full_coverage_within: 10d}")
    scene.add(20)
    scene.read()
    path = scene.site.folder / "var" / "catalog.db"
    before = scene.workplace.catalog.verified.readings("orders")
    rebuild_catalog(path, scene.bucket.stores, scene.workplace.signers, scene.now)
    assert scene.workplace.catalog.verified.readings("orders") == before
    assert before
    assert scene.read().read == []


def test_damage_is_told_once_and_found_by_every_check_until_it_is_mended(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 10d}")
    entry = scene.add(20)
    scene.damage(entry)
    result = scene.read()
    assert isinstance(result.failed["orders"], IntegrityError)
    assert [copy.store for copy, _ in result.damaged] == ["offsite"]
    assert [item["store"] for item in scene.workplace.catalog.events() if item["name"] == "copy.damaged"] == ["offsite"]  # type: ignore[attr-defined]
    assert "copy-damaged" in scene.codes()
    report = read_status(scene.workplace, [scene.workplace.policies["orders"]], everything=False)
    assert report.policies[0].state == "DAMAGED"
    assert not report.policies[0].copies.errors.met
    scene.bucket.remove(entry, stores=["offsite"])
    assert catch_up(scene.workplace, [scene.workplace.policies["orders"]], SILENT).failed == []
    assert "copy-damaged" not in scene.codes()


def test_what_was_not_read_in_time_is_found(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 10d}")
    entry = scene.add(11)
    (late,) = [finding for finding in scene.check().policies[0].findings if finding.code == "verify-late"]
    assert entry.manifest.artifact_id in late.message
    scene.read()
    assert "verify-late" not in scene.codes()


def test_a_limit_that_is_too_little_is_found_and_kept(make: Callable[[str], Scene]) -> None:
    scene = make("{full_coverage_within: 2d, max_bytes_per_day: 33kB}")
    entries = [scene.add(days, content=b"x" * 30_000) for days in (4, 3)]
    for entry in entries:
        for store in scene.bucket.stores.values():
            store.delete(entry.manifest.objects[0].key)
            store.put(entry.manifest.objects[0].key, [b"x" * 30_000])
    large = scene.add(2, content=b"x" * 40_000)
    codes = {finding.code: finding.message for finding in scene.check().policies[0].findings}
    assert large.manifest.artifact_id in codes["verify-limit"]
    for _ in range(6):
        assert sum(copy.size_bytes for copy, _ in scene.read().read) <= 33_000
        assert scene.read().read == []
        scene.now += 1.01 * DAY


def test_a_store_out_of_reach_is_not_judged(make: Callable[[str], Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make("{full_coverage_within: 10d}")
    scene.add(20)

    def away(key: str, *, version_id: str | None = None) -> None:
        raise StoreUnavailable("store offsite went away")

    monkeypatch.setattr(scene.bucket.stores["offsite"], "open", away)
    result = scene.read()
    assert isinstance(result.failed["orders"], StoreUnavailable)
    assert [copy.store for copy, _ in result.read] == ["primary"]
    assert [key[1] for key in scene.workplace.catalog.verified.readings("orders")] == ["primary"]


def test_without_a_promise_nothing_is_read(make: Callable[[str], Scene]) -> None:
    scene = make("null")
    scene.add(100)
    assert scene.read() == ReadResult()
