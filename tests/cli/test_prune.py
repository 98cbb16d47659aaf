"""``drkit prune``, ``hold``, ``release`` and ``retention simulate`` as they are typed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drkit.keys import load_signing_key
from drkit.stores.file import FileStore
from tests.fixtures.bucket import Bucket
from tests.fixtures.site import ReadySite

RETENTION = "retention: {last: 2, grace: 1ms, max_removed_percent: 100}\n"


@pytest.fixture
def artifacts(ready_site: ReadySite) -> list[str]:
    """Put five artifacts of policy `orders` into the site's store and return their ids, oldest first."""
    ready_site.write_policy("orders", more=RETENTION)
    ready_site.store_folder.mkdir(mode=0o700, exist_ok=True)
    store = FileStore("primary", ready_site.store_folder)
    held = Bucket(stores={"primary": store}, key=load_signing_key(ready_site.signing_key))  # type: ignore[dict-item]
    now = datetime.now(UTC)
    made = [held.add(at=now - timedelta(hours=hours)).manifest.artifact_id for hours in (5, 4, 3, 2, 1)]
    rebuild(ready_site)
    return made


def rebuild(site: ReadySite) -> None:
    """Make the catalog anew; that these artifacts have no details worth the name is what it complains of."""
    done = site.call("catalog", "rebuild")
    assert done.returncode in (0, 8), done.stderr


def document(site: ReadySite, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = site.call(*arguments, "--json")
    assert done.returncode == status, done.stderr + done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def ids(site: ReadySite) -> list[str]:
    folder = site.store_folder / "policies/orders/artifacts"
    return sorted(path.name for path in folder.iterdir() if (path / "manifest.json").exists())


def test_the_plan_has_a_reason_for_each_artifact_and_says_what_remains(
    ready_site: ReadySite, artifacts: list[str]
) -> None:
    done = ready_site.call("prune", "orders", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.count("no rule wants it") == 3
    assert f"{artifacts[4]}  dump" in done.stdout
    assert "last 1 of 2; newest dump; the chain goes on from it" in done.stdout
    assert "  before      5 artifacts, " in done.stdout
    assert "  after       2 artifacts, " in done.stdout
    assert "3 of 5 artifacts go (99 B); nothing was changed: this was a dry run" in done.stdout
    assert ids(ready_site) == artifacts
    assert not (ready_site.store_folder / "policies/orders/tombstones").exists()


def test_marking_taking_back_and_deleting(ready_site: ReadySite, artifacts: list[str]) -> None:
    number = document(ready_site, "prune", "--dry-run")["policies"][0]["plan"]
    (first,) = document(ready_site, "prune", "orders", "--plan", number[:12])["policies"]
    assert (first["plan"], sorted(first["marked"]), first["removed"]) == (number, artifacts[:3], [])
    assert "(leaving)" in ready_site.call("list").stdout
    shown = ready_site.call("show", artifacts[0]).stdout
    assert "leaving     no rule wants it, goes after" in shown
    assert f"hint: drkit prune --undo {artifacts[0]}" in shown
    assert ready_site.call("prune", "--undo", artifacts[0]).returncode == 0
    (second,) = document(ready_site, "prune")["policies"]
    assert sorted(second["removed"]) == artifacts[1:3]
    assert ids(ready_site) == [artifacts[0], *artifacts[3:]]
    assert "(held)" in ready_site.call("list").stdout
    assert "held        since" in ready_site.call("show", artifacts[0]).stdout
    assert ready_site.call("check").returncode == 12
    assert [item["artifact_id"] for item in document(ready_site, "list")["artifacts"]] == ids(ready_site)[::-1]


def test_holding_and_releasing(ready_site: ReadySite, artifacts: list[str]) -> None:
    held = ready_site.call("hold", artifacts[0], "--reason", "lawsuit 17")
    assert (held.returncode, held.stdout.splitlines()[0]) == (0, f"held {artifacts[0]}: lawsuit 17")
    assert "held: lawsuit 17" in ready_site.call("prune", "--dry-run").stdout
    assert document(ready_site, "show", artifacts[0])["holds"][0]["reason"] == "lawsuit 17"
    # Another host, or this one after its catalog was lost, knows of it by the store.
    for file in ready_site.folder.glob("var/catalog.db*"):
        file.unlink()
    rebuild(ready_site)
    assert "(held)" in ready_site.call("list").stdout
    assert ready_site.call("release", artifacts[0]).returncode == 0
    assert "held" not in ready_site.call("prune", "--dry-run").stdout
    again = ready_site.call("release", artifacts[0])
    assert (again.returncode, f"artifact {artifacts[0]} is not held" in again.stderr) == (10, True)


def test_words_that_make_no_sense(ready_site: ReadySite, artifacts: list[str]) -> None:
    assert artifacts
    for words, status, said in (
        (("hold", "01ZZZZ", "--reason", "x"), 10, "no artifact starts with"),
        (("hold", artifacts[0]), 2, "--reason"),
        (("hold", artifacts[0], "--reason", " "), 2, "say a reason"),
        (("prune", "--plan", "12345678"), 2, "the plan of one policy"),
        (("prune", "orders", "--plan", "123"), 2, "at least the first 8 digits"),
        (("prune", "nobody"), 3, "there is no policy"),
        (("prune", "orders", "--plan", "0123456789abcdef"), 12, ""),
    ):
        done = ready_site.call(*words)
        assert (done.returncode, said in done.stderr) == (status, True), words
    assert ids(ready_site) == artifacts
    ready_site.write_policy("orders")
    assert "has no retention, so everything stays" in ready_site.call("prune", "orders").stderr


def test_a_policy_that_fails_does_not_stop_the_others(ready_site: ReadySite, artifacts: list[str]) -> None:
    ready_site.add_store("gone")
    ready_site.write_policy("absent", stores=("gone",), more=RETENTION)
    done = ready_site.call("prune", "--json")
    found = {item["policy"]: item for item in json.loads(done.stdout)["policies"]}
    assert sorted(found["orders"]["marked"]) == artifacts[:3]
    assert "gone" in str(found["absent"])
    ready_site.signing_key.unlink()
    failed = ready_site.call("prune")
    assert failed.returncode == 3
    assert failed.stdout.count("signing key") == 2


def test_simulating_three_years(ready_site: ReadySite) -> None:
    path = ready_site.write_policy("orders", more="retention: {last: 3, daily: 7, monthly: 6}\n")
    path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 2 * * *"}'))
    done = ready_site.call("retention", "simulate", "orders")
    assert done.returncode == 0, done.stderr
    assert "orders   3 years ahead" in done.stdout
    samples = document(ready_site, "retention", "simulate", "orders", "--years", "1")["samples"]
    assert len(samples) == 365
    assert 12 <= samples[-1]["artifacts"] <= 15
    ready_site.write_policy("orders", more=RETENTION)
    assert "has no schedule to simulate" in ready_site.call("retention", "simulate", "orders").stderr
