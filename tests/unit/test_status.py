"""What the catalog alone says of policies: the same as the stores, as long as nobody touched these."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from drkit.app import open_app
from drkit.model import Run
from drkit.operations import Workplace
from drkit.operations.checking import check_stores
from drkit.operations.judgement import PolicyVerdict
from drkit.reports.status import read_status
from tests.fixtures.bucket import NOW, Bucket
from tests.fixtures.site import ReadySite

RULES = """\
objectives: {rpo: 48h}
drills: [{name: weekly, schedule: "0 6 * * mon", level: loads}]
"""


@dataclass
class Scene:
    """A policy with two stores, as stores and as catalog."""

    workplace: Workplace
    bucket: Bucket

    def verdicts(self) -> tuple[PolicyVerdict, PolicyVerdict]:
        """Return what the stores say and what the catalog says."""
        policies = [self.workplace.policies["orders"]]
        return tuple(  # type: ignore[return-value]
            judge(self.workplace, policies, everything=False).policies[0] for judge in (check_stores, read_status)
        )

    def add(self, **options: object) -> None:
        self.workplace.catalog.index_artifact(self.bucket.add(**options))  # type: ignore[arg-type]


@pytest.fixture
def scene(ready_site: ReadySite) -> Iterator[Scene]:
    ready_site.add_store("offsite", None, "failure_domain: cellar", "offsite: true")
    ready_site.write_policy("orders", stores=["primary", "offsite"], more=RULES)
    stores = Bucket()
    with open_app(ready_site.site_file) as workplace:
        yield Scene(
            dataclasses.replace(workplace, stores=stores.stores, signers=stores.signers, clock=lambda: NOW), stores
        )


def said(verdict: PolicyVerdict) -> tuple[object, ...]:
    return (
        verdict.state,
        [(finding.code, finding.subject) for finding in verdict.findings],
        verdict.artifacts,
        verdict.restorable_to_at,
        str(verdict.copies),
    )


def test_nothing_yet(scene: Scene) -> None:
    stores, catalog = scene.verdicts()
    assert said(stores) == said(catalog)
    assert catalog.findings[0].message == "never backed up"


def test_all_is_well(scene: Scene) -> None:
    entry = scene.bucket.add(at=NOW - timedelta(hours=1))
    scene.workplace.catalog.index_artifact(entry)
    record, digest = scene.bucket.prove(entry, at=NOW - timedelta(minutes=30))
    scene.workplace.catalog.index_evidence({**record, "drill": "weekly"}, digest, ["primary"])
    catalog = scene.verdicts()[1]
    assert (catalog.state, str(catalog.copies)) == ("ok", "3-2-1-x-0")
    assert "copies 3-2-1-x-0" in catalog.summary


def test_what_is_late_missing_or_undrilled_is_found_by_both(scene: Scene) -> None:
    scene.add(at=NOW - timedelta(days=4))
    scene.add(at=NOW - timedelta(days=3), stores=["primary"])
    stores, catalog = scene.verdicts()
    assert said(stores) == said(catalog)
    assert {finding.code for finding in catalog.findings} == {"rpo-missed", "copy-missing", "never-drilled"}
    assert str(catalog.copies) == "x-x-x-x-x"


def test_an_artifact_of_the_future_makes_nothing_look_punctual(scene: Scene) -> None:
    scene.add(at=NOW - timedelta(days=4))
    scene.add(at=NOW + timedelta(days=4))
    assert scene.verdicts()[1].restorable_to_at == NOW - timedelta(days=4)


def test_a_base_counts_where_all_that_it_builds_on_is(scene: Scene) -> None:
    full = scene.bucket.add(at=NOW - timedelta(hours=3), method="base", stores=["primary"])
    scene.workplace.catalog.index_artifact(full)
    scene.add(at=NOW - timedelta(hours=1), method="base", depends_on=(full.manifest.artifact_id,))
    stores, catalog = scene.verdicts()
    assert catalog.copies.copies.reason == stores.copies.copies.reason == "the source, primary"


def test_a_copy_is_not_missed_while_its_backup_runs(scene: Scene) -> None:
    scene.add(at=NOW - timedelta(minutes=5), stores=["primary"])
    scene.workplace.catalog.start_run(Run("R", "backup", "orders", "running", NOW - timedelta(hours=1), "h", 1, NOW))
    assert "copy-missing" not in {finding.code for finding in scene.verdicts()[1].findings}


@pytest.mark.parametrize(
    ("lines", "locked_days_ago", "met"),
    [
        (["lock_for: 10d"], None, False),
        (["lock_for: 10d", "lock_at_most: 60d"], None, True),
        (["lock_for: 10d"], 1, True),
    ],
)
def test_a_lock_counts_to_its_planned_end_and_as_it_was_extended(
    ready_site: ReadySite, lines: list[str], locked_days_ago: int | None, *, met: bool
) -> None:
    """Taken 45 days ago by a policy that keeps everything for 90."""
    ready_site.add_store("offsite", "s3://vault", "region: eu-central-1", "object_lock: compliance", *lines)
    ready_site.write_policy("orders", stores=["primary", "offsite"], more="retention: {within: 90d}\n")
    stores = Bucket()
    with open_app(ready_site.site_file) as workplace:
        opened = dataclasses.replace(workplace, stores=stores.stores, signers=stores.signers, clock=lambda: NOW)
        scene = Scene(opened, stores)
        scene.add(at=NOW - timedelta(days=45))
        if locked_days_ago is not None:
            at = NOW - timedelta(days=locked_days_ago)
            opened.catalog.finish_run(Run("L", "lock", "orders", "succeeded", at, "h", 1, at, ended_at=at))
        assert [verdict.copies.immutable.met for verdict in scene.verdicts()] == [met, met]


def test_the_commands_say_it(ready_site: ReadySite) -> None:
    ready_site.write_policy("orders", more="verify: {full_coverage_within: 30d}\n")
    report = ready_site.call("report", "status", "--json")
    assert report.returncode == 0, report.stderr
    (policy,) = json.loads(report.stdout)["policies"]
    assert [item["question"] for item in policy["copies"]][:2] == ["3 copies", "2 failure domains"]
    assert "1 immutable         no" in ready_site.call("report", "status", "orders").stdout
    assert ready_site.call("check", "--from-catalog").returncode == ready_site.call("check").returncode
    due = ready_site.call("verify", "--due")
    assert (due.returncode, "0 copies read" in due.stdout) == (0, True), due.stderr
    assert ready_site.call("verify", "--due", "--all").returncode == 2
