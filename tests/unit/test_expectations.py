"""What a policy lets one expect, read from a policy as users write it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from drkit.operations.expectations import Due, Expectation, expectation_of
from drkit.site import load_policies
from tests.fixtures.site import ReadySite

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def test_of_a_policy_without_schedules_only_the_copies(make_site: Callable[[str], ReadySite]) -> None:
    site = make_site("site")
    site.write_policy("orders")
    policy = load_policies(site.load())["orders"]
    assert expectation_of(policy, NOW) == Expectation("orders", ("primary",))


def test_schedules_and_objectives(make_site: Callable[[str], ReadySite]) -> None:
    site = make_site("site")
    drills = 'drills: [{name: quarterly, schedule: "0 6 1 */3 *"}, {name: by-hand}]'
    path = site.write_policy("orders", more=f"objectives: {{rpo: 26h}}\n{drills}\n")
    path.write_text(
        path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 2 * * *", timezone: Europe/Berlin}')
    )
    expectation = expectation_of(load_policies(site.load())["orders"], NOW)
    assert expectation.rpo == timedelta(hours=26)
    assert expectation.backups == (Due("dump", datetime(2026, 11, 22, 1, 0, tzinfo=UTC), timedelta(days=1)),)
    assert expectation.drills == (Due("quarterly", datetime(2026, 10, 1, 6, 0, tzinfo=UTC), timedelta(days=92)),)
