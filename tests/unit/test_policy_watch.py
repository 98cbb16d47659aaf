"""Policies whose files change while `drkit serve` runs: what is taken up, what is not, and who is told."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drkit.app import open_app, read_policies
from drkit.catalog.sqlite import SqliteCatalog
from drkit.errors import ConfigError
from drkit.operations import Workplace
from drkit.operations import serve as serve_module
from drkit.operations.health import Health
from drkit.operations.lookout import broken_policies
from drkit.operations.policy_watch import PolicyWatch
from drkit.operations.routes import Routes
from drkit.operations.serve import LogShippers
from drkit.policy import Policy, portable, unpack
from drkit.schedule import Recurrence
from drkit.scheduler import Planner
from drkit.site import PolicyScan
from tests.fixtures.site import ReadySite
from tests.fixtures.waiting import wait_until
from tests.integration.test_alarms import serving, until
from tests.unit.test_scheduler import HOURLY

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Scene:
    """A site with policy orders, and a watch over it that looks when told to."""

    site: ReadySite
    workplace: Workplace
    orders: Path
    said: list[str] = field(default_factory=list)
    changes: list[Mapping[str, Policy]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = PolicyWatch(
            self.workplace,
            lambda: read_policies(self.workplace.site),
            self,
            self.changes.append,
        )

    def line(self, text: str) -> None:
        self.said.append(text)

    def progress(self, label: str, expected_bytes: int | None = None) -> Any:
        raise NotImplementedError

    def edit(self, old: str, new: str) -> None:
        text = self.orders.read_text()
        assert old in text
        self.orders.write_text(text.replace(old, new))

    def look(self) -> dict[str, Any]:
        """Look twice, as a change needs; return the newest event of policies."""
        self.watch.round()
        self.watch.round()
        catalog = self.workplace.catalog
        assert isinstance(catalog, SqliteCatalog)
        return next(event for event in catalog.events() if event["name"] == "policies.loaded")


@pytest.fixture
def scene(ready_site: ReadySite) -> Iterator[Scene]:
    orders = ready_site.write_policy("orders", more="tier: 1\n")
    with open_app(ready_site.site_file) as workplace:
        yield Scene(ready_site, workplace, orders)


def test_what_is_added_changed_and_removed_counts_after_two_looks(scene: Scene) -> None:
    scene.site.write_policy("ledger")
    scene.edit("tier: 1", "tier: 2")
    scene.watch.round()
    assert (scene.changes, set(scene.workplace.policies)) == ([], {"orders"})
    event = scene.look()
    assert (event["added"], event["changed"], event["removed"], event["kept"]) == (["ledger"], ["orders"], [], [])
    assert scene.workplace.policies["orders"].tier == 2
    assert len(scene.changes) == 1
    assert scene.said == ["policies  read again: added ledger; changed orders"]
    scene.orders.unlink()
    assert scene.look()["removed"] == ["orders"]
    assert set(scene.changes[-1]) == {"ledger"}
    scene.look()
    assert len(scene.changes) == 2, "nothing is read again when nothing changed"


def test_who_asks_does_not_wait_for_a_second_look(scene: Scene) -> None:
    scene.edit("tier: 1", "tier: 2")
    scene.watch.ask()
    scene.watch.round()
    assert scene.workplace.policies["orders"].tier == 2


def test_a_broken_edit_keeps_the_last_good_policy_and_says_where(scene: Scene) -> None:
    before = scene.workplace.policies["orders"]
    scene.edit("tier: 1", "tier: many")
    event = scene.look()
    assert scene.workplace.policies["orders"] is before
    assert (event["kept"], event["removed"], event["changed"]) == (["orders"], [], [])
    (problem,) = event["problems"]
    assert "orders.yaml:" in problem
    assert "tier" in problem
    assert scene.said[-1] == "policies  as they were before: orders; hint: drkit policy check"
    (condition,) = broken_policies(scene.workplace)
    assert condition.message.startswith("not taken up, the policy goes on as it was: ")
    scene.edit("tier: many", "tier: 3")
    event = scene.look()
    assert (event["kept"], event["changed"], event["problems"]) == ([], ["orders"], [])
    assert list(broken_policies(scene.workplace)) == []


def test_a_file_that_was_never_right_is_left_out(scene: Scene) -> None:
    scene.site.write_policy("ledger", more="teir: 1\n")
    event = scene.look()
    assert (event["added"], event["kept"]) == ([], [])
    (condition,) = broken_policies(scene.workplace)
    assert condition.message.startswith("left out: ")


def test_a_name_that_a_second_file_takes_stays_with_the_first(scene: Scene) -> None:
    before = scene.workplace.policies["orders"]
    (scene.orders.parent / "again.yaml").write_text(scene.orders.read_text().replace("tier: 1", "tier: 9"))
    assert scene.look()["kept"] == ["orders"]
    assert scene.workplace.policies["orders"] is before


def test_a_file_that_is_renamed_or_becomes_another_policy(scene: Scene) -> None:
    scene.orders = scene.orders.rename(scene.orders.with_name("shop.yaml"))
    assert scene.look()["changed"] == ["orders"]
    scene.edit("policy: orders", "policy: shop")
    scene.site.write_policy("ledger", more="teir: 1\n")  # a problem elsewhere brings nothing back
    event = scene.look()
    assert (event["added"], event["removed"], event["kept"]) == (["shop"], ["orders"], [])


def test_a_folder_that_cannot_be_read_changes_nothing(scene: Scene) -> None:
    folder = scene.orders.parent
    folder.rename(folder.with_name("away"))
    scene.watch.round()
    scene.watch.round()
    assert set(scene.workplace.policies) == {"orders"}
    assert scene.said[-1].startswith("policies  not read again: cannot read the folder of policies")
    folder.with_name("away").rename(folder)
    assert scene.look()["changed"] == []


def test_what_could_not_be_read_is_read_when_it_can_be_whether_or_not_it_changes_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> PolicyScan:
        raise ConfigError("cannot read the folder of policies policies: too many open files")

    scene.edit("tier: 1", "tier: 2")
    with monkeypatch.context() as patch:
        patch.setattr(scene.watch, "_scan", refuse)
        for _ in range(4):
            scene.watch.round()
    assert len([line for line in scene.said if "too many open files" in line]) == 1, "it is said once"
    scene.watch.round()
    assert scene.workplace.policies["orders"].tier == 2


def test_a_file_that_may_be_read_now_is_read_though_it_is_as_old_as_before(scene: Scene) -> None:
    scene.orders.chmod(0o640)
    assert scene.look()["changed"] == []


def test_a_job_is_given_the_policy_whose_file_is_broken(scene: Scene) -> None:
    policy = scene.workplace.policies["orders"]
    document = json.loads(json.dumps(portable(policy)))
    assert unpack(document, scene.workplace.site.stores) == policy
    with pytest.raises(ValueError, match="primary"):
        unpack(document, ["elsewhere"])


def test_notifications_follow(scene: Scene) -> None:
    from drkit.operations.notify import Notifier

    notifier = Notifier(scene.workplace)
    assert isinstance(notifier._routes, Routes)
    scene.edit("owner@example.org", "other@example.org")
    scene.look()
    assert notifier._routes.owner("orders") == "other@example.org"


def test_schedules_that_change_mean_what_comes_after(scene: Scene) -> None:
    ledger = scene.workplace.catalog.occurrences
    gone, moved = replace(HOURLY, name="backup/gone"), replace(HOURLY, name="backup/moved")
    planner = Planner(ledger, [gone, moved])
    planner.tick(START)
    earlier = replace(moved, recurrence=Recurrence("30 * * * *"))
    planner.replace([earlier, replace(HOURLY, name="backup/new")])
    # What had come due of the former ones is written down, and nothing that the new ones would have meant before.
    news = planner.tick(START + HOUR)
    assert sorted((item.schedule.name, item.decision.due_at) for item in news) == [
        ("backup/gone", START + HOUR),
        ("backup/moved", START + HOUR),
    ]
    assert planner.is_behind
    assert planner.tick(START + HOUR) == []
    news = [item for item in planner.tick(START + 2 * HOUR) if item.decision.is_new]
    assert sorted((item.schedule.name, item.decision.due_at) for item in news) == [
        ("backup/moved", START + 1.5 * HOUR),
        ("backup/new", START + 2 * HOUR),
    ]
    assert planner.next_due("backup/gone", START) is None


def test_a_schedule_that_is_away_for_a_while_loses_no_moment(scene: Scene) -> None:
    planner = Planner(scene.workplace.catalog.occurrences, [HOURLY])
    planner.tick(START)
    for schedules, now in (([], START + HOUR / 2), ([HOURLY], START + HOUR * 1.1)):
        planner.replace(schedules)
        planner.tick(now)
    assert [item.decision.due_at for item in planner.tick(START + HOUR * 1.1)] == [START + HOUR]


class TestLogShippers:
    WAL = "backups: [{method: base}, {method: wal}]\n"

    class Shipping:
        """Notes when it runs and ends."""

        ran: list[tuple[str, str]]

        def __init__(self, _workplace: Workplace, policy: Policy, *_: Any) -> None:
            self.name = f"wal {policy.policy}"
            self._what = f"{policy.policy} {policy.tier}"

        def run(self, stopping: threading.Event) -> None:
            self.ran.append(("begins", self._what))
            stopping.wait()
            self.ran.append(("ends", self._what))

    @pytest.fixture
    def shipped(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
        self.Shipping.ran = []
        monkeypatch.setattr(serve_module, "LogShipping", self.Shipping)
        monkeypatch.setattr(serve_module, "_FOLLOW_S", 0.02)
        scene.edit("backups:\n  - {method: dump}\n", self.WAL)
        scene.look()
        stopping, told = threading.Event(), list[tuple[str, ...]]()
        shippers = LogShippers(
            scene.workplace, (), scene, lambda *words: told.append(words), Health(scene.workplace.clock, {})
        )
        thread = threading.Thread(target=shippers.run, args=[stopping])
        thread.start()
        yield self.Shipping.ran
        stopping.set()
        thread.join(10)
        assert not thread.is_alive()
        assert told == []
        assert self.Shipping.ran[-1][0] == "ends"
        assert [word for word, _ in self.Shipping.ran].count("ends") == len(self.Shipping.ran) / 2

    def test_they_are_begun_and_ended_as_policies_come_change_and_go(
        self, scene: Scene, shipped: list[tuple[str, str]]
    ) -> None:
        wait_until(lambda: shipped == [("begins", "orders 1")])
        scene.edit("tier: 1", "tier: 2")
        scene.look()
        wait_until(lambda: shipped[1:] == [("ends", "orders 1"), ("begins", "orders 2")])
        scene.edit(self.WAL, "backups: [{method: dump}]\n")
        scene.site.write_policy("ledger", more="tier: 5\n").write_text(
            scene.orders.read_text()
            .replace("policy: orders", "policy: ledger")
            .replace("[{method: dump}]", self.WAL[9:])
        )
        scene.look()
        wait_until(lambda: shipped[3:] == [("ends", "orders 2"), ("begins", "ledger 2")])


def test_a_real_serve_reads_them_again_on_sighup(ready_site: ReadySite) -> None:
    path = ready_site.write_policy("orders")
    path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 0 1 1 *"}'))
    ready_site.site_file.write_text(ready_site.site_file.read_text() + "metrics: {listen: null}\n")
    with serving(ready_site) as serve:
        until(lambda: "serve.started" in serve.names() or serve.process.poll() is not None, "it starts")
        path.write_text(path.read_text().replace("{method: dump", "{method: dmup"))
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: "policies.loaded" in serve.names(), "it read them again")
        (event,) = [event for event in serve.events if event.get("name") == "policies.loaded"]
        assert event["kept"] == ["orders"]
        assert "orders.yaml:5" in event["problems"][0]
    assert serve.process.returncode == 0
