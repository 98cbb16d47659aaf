"""``drkit schedule`` and what ``drkit run`` says of scheduled runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from drkit.app import open_app
from drkit.catalog.occurrences import Claim
from drkit.scheduler import Planner, schedules_of
from tests.fixtures.site import ReadySite

RULE = '{method: dump, schedule: "30 2 * * *", timezone: Asia/Tokyo, jitter: 10m}'


def write(site: ReadySite, *names: str) -> None:
    for name in names:
        path = site.write_policy(name)
        path.write_text(path.read_text().replace("{method: dump}", RULE))


@pytest.fixture(autouse=True)
def _no_housekeeping(ready_site: ReadySite) -> None:
    text = ready_site.site_file.read_text()
    ready_site.site_file.write_text(text + "scheduler: {copy_missing: null, prune: null, verify: null}\n")


def test_what_will_run_is_told_in_both_zones(ready_site: ReadySite) -> None:
    write(ready_site, "orders", "ledger")
    done = ready_site.call("schedule", "--next", "100", "--json")
    document = json.loads(done.stdout)
    assert document["schema"] == "drkit/schedule/1"
    moments = [row["due_at"] for row in document["occurrences"]]
    assert moments == sorted(moments)
    rows = [row for row in document["occurrences"] if row["kind"] == "backup"][:4]
    assert sorted(row["policy"] for row in rows) == ["ledger", "ledger", "orders", "orders"]
    for row in rows:
        local, utc = datetime.fromisoformat(row["local"]), datetime.fromisoformat(row["due_at"])
        assert (local, local.utcoffset(), local.hour) == (utc, timedelta(hours=9), 2)
    text = ready_site.call("schedule", "ledger", "--next", "100").stdout
    assert text.splitlines()[0].split() == ["local", "time", "zone", "UTC", "policy", "kind", "what", "note"]
    assert "Asia/Tokyo" in text
    assert "orders" not in text


def test_nothing_to_say(ready_site: ReadySite) -> None:
    ready_site.write_policy("orders")
    assert ready_site.call("schedule").stdout == "nothing has a schedule\n"
    assert ready_site.call("schedule", "--past").stdout == "nothing came due yet\n"
    assert ready_site.call("serve").returncode == 3


def test_what_came_due_is_told_with_its_reason(ready_site: ReadySite) -> None:
    write(ready_site, "orders")
    start = datetime(2026, 11, 1, tzinfo=UTC)
    with open_app(ready_site.site_file) as workplace:
        ledger = workplace.catalog.occurrences
        planner = Planner(ledger, schedules_of(workplace.policies.values(), workplace.site.scheduler))
        planner.tick(start)
        planner.tick(start + timedelta(days=3))
        (item,) = ledger.waiting(start + timedelta(days=3))
        assert ledger.claim(Claim(item.occurrence_id, "elsewhere/1@x", "01RUN", {}), start + timedelta(days=3))
    lines = ready_site.call("schedule", "--past").stdout.splitlines()
    assert len(lines) == 4
    assert "dispatched" in lines[1]
    assert "coalesced into the one due at" in lines[2]
    rows = json.loads(ready_site.call("schedule", "--past", "--json", "orders").stdout)["occurrences"]
    assert [row["state"] for row in rows] == ["dispatched", "coalesced", "coalesced"]
