"""Policies that are read from what was kept are those that their files say, and nobody else can have kept them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drkit import policy_cache
from drkit.policy import effective
from drkit.site import scan_policies
from tests.fixtures.site import ReadySite

MORE = """\
objectives: {rpo: 15m, rto: 1h 30m}
retention: {last: 3, daily: 14, recovery_window: 14d}
verify: {full_coverage_within: 30d, max_bytes_per_day: 200GB}
drills: [{name: quarterly, schedule: "0 6 1 */3 *", window: 30d, level: works}]
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(policy_cache, "_FEWEST", 1)
    return tmp_path / "policies.cache"


def test_what_was_kept_is_what_the_file_says(ready_site: ReadySite, cache: Path) -> None:
    path = ready_site.write_policy("orders", more=MORE)
    site = ready_site.load()
    first = scan_policies(site, cache)
    kept = json.loads(cache.read_text())
    again = scan_policies(site, cache).policies["orders"]
    assert len(kept["policies"]) == 1
    assert effective(again) == effective(first.policies["orders"])
    assert again == first.policies["orders"]
    assert again.path == path


def test_a_file_that_changed_is_read(ready_site: ReadySite, cache: Path) -> None:
    path = ready_site.write_policy("orders", more="objectives: {rpo: 15m}\n")
    site = ready_site.load()
    scan_policies(site, cache)
    path.write_text(path.read_text().replace("15m", "16m"))
    assert scan_policies(site, cache).policies["orders"].objectives.rpo.total_seconds() == 960  # type: ignore[union-attr]
    path.write_text(path.read_text().replace("16m", "16x"))
    assert scan_policies(site, cache).problems


def test_a_store_that_the_site_has_no_more_is_a_problem_again(ready_site: ReadySite, cache: Path) -> None:
    ready_site.add_store("offsite")
    ready_site.write_policy("orders", stores=["primary", "offsite"])
    assert not scan_policies(ready_site.load(), cache).problems
    text = ready_site.site_file.read_text()
    ready_site.site_file.write_text(text.replace("  offsite:", "  elsewhere:"))
    assert scan_policies(ready_site.load(), cache).problems


def test_sections_that_policies_share_are_kept_once_and_are_still_their_own(ready_site: ReadySite, cache: Path) -> None:
    for name, rpo in (("orders", "15m"), ("ledger", "15m"), ("shop", "20m")):
        ready_site.write_policy(name, more=f"objectives: {{rpo: {rpo}}}\n")
    site = ready_site.load()
    first = scan_policies(site, cache).policies
    kept = json.loads(cache.read_text())
    assert [part for part in kept["parts"] if "rpo" in part] == [{"rpo": "15m"}, {"rpo": "20m"}]
    again = scan_policies(site, cache).policies
    assert again == first
    assert again["orders"].objectives is again["ledger"].objectives
    assert again["shop"].objectives != again["orders"].objectives
    assert {policy.path.stem for policy in again.values()} == {"orders", "ledger", "shop"}


@pytest.mark.parametrize("harm", ["others may write", "a link", "damaged", "no object", "other numbers", "other kinds"])
def test_what_somebody_else_may_have_kept_is_not_used(ready_site: ReadySite, cache: Path, harm: str) -> None:
    ready_site.write_policy("orders", more="tier: 1\n")
    site = ready_site.load()
    scan_policies(site, cache)
    forged = cache.read_text().replace('"tier": 1', '"tier": 2')
    assert forged != cache.read_text()
    if harm == "a link":
        (cache.parent / "forged").write_text(forged)
        (cache.parent / "forged").chmod(0o600)
        cache.unlink()
        cache.symlink_to(cache.parent / "forged")
    else:
        kept = json.loads(forged)
        strange = {
            "other numbers": json.dumps({**kept, "parts": kept["parts"][:1]}),
            "other kinds": json.dumps({"parts": 7, "policies": dict.fromkeys(kept["policies"], "x")}),
        }
        cache.write_text({"others may write": forged, "damaged": forged[:-9], "no object": "[]", **strange}[harm])
        cache.chmod(0o666 if harm == "others may write" else 0o600)
    assert scan_policies(site, cache).policies["orders"].tier == 1


def test_a_few_policies_are_not_worth_a_file(ready_site: ReadySite, tmp_path: Path) -> None:
    ready_site.write_policy("orders")
    scan_policies(ready_site.load(), tmp_path / "policies.cache")
    assert not (tmp_path / "policies.cache").exists()
