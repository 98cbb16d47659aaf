"""`drkit watch` sees absence, believes signatures only, and tells each alarm once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.errors import StoreUnavailable
from drkit.operations.lookout import Condition, renew_lease
from drkit.operations.watch import Watching, WatchReport, look
from drkit.operations.watching import reside
from drkit.policy import Policy
from drkit.site import load_policies
from drkit.stores.memory import MemoryStore
from tests.fixtures.bucket import NOW, Bucket
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import telling


@pytest.fixture
def scene() -> Bucket:
    return Bucket()


@pytest.fixture
def policy(ready_site: ReadySite) -> Callable[[str], Policy]:
    def make(more: str = "", schedule: str = ', schedule: "0 2 * * *"') -> Policy:
        path = ready_site.write_policy("orders", more=more)
        path.write_text(path.read_text().replace("{method: dump}", f"{{method: dump{schedule}}}"))
        return load_policies(ready_site.load())["orders"]

    return make


def words(scene: Bucket, rules: Policy | None, *, now: datetime = NOW, **options: Any) -> list[str]:
    return [item.word for item in report(scene, rules, now=now, **options).conditions]


def report(scene: Bucket, rules: Policy | None, *, now: datetime = NOW, **options: Any) -> WatchReport:
    watching = Watching({} if rules is None else {"orders": rules}, **options)
    return look(scene.stores, ["primary"], scene.signers, watching, now)


def test_a_store_that_has_all_is_quiet(scene: Bucket, policy: Callable[..., Policy]) -> None:
    scene.add(at=NOW.replace(hour=2))
    found = report(scene, policy())
    assert (found.conditions, found.exit_code) == ((), 0)
    assert found.sightings[0].newest == {"dump": NOW.replace(hour=2)}


def test_absence_is_an_alarm(scene: Bucket, policy: Callable[..., Policy]) -> None:
    rules = policy("objectives: {rpo: 26h}\n")
    assert words(scene, rules) == ["backup-late"]
    scene.add(at=NOW.replace(hour=2))
    assert words(scene, rules) == []
    assert words(scene, rules, now=NOW + timedelta(hours=15, minutes=10)) == ["backup-late"]
    assert words(scene, rules, now=NOW + timedelta(hours=17)) == ["backup-late", "rpo-missed"]
    assert report(scene, rules, now=NOW + timedelta(hours=17)).exit_code == 12


def test_only_what_is_signed_by_a_pinned_signer_counts(scene: Bucket, policy: Callable[..., Policy]) -> None:
    scene.add(at=NOW - timedelta(days=3))
    stranger = Bucket(scene.stores, Ed25519PrivateKey.generate(), dict(scene.heads))
    stranger.add(at=NOW.replace(hour=2))
    found = report(scene, policy())
    assert [item.word for item in found.conditions] == ["untrusted", "backup-late"]
    assert found.exit_code == 8


def test_a_manifest_of_the_future_is_no_reason_for_peace(scene: Bucket, policy: Callable[..., Policy]) -> None:
    scene.add(at=NOW + timedelta(days=30))
    assert words(scene, policy()) == ["backup-late"]


def test_each_method_is_looked_for(scene: Bucket, policy: Callable[..., Policy]) -> None:
    scene.add(at=NOW - timedelta(days=2))
    scene.add(at=NOW.replace(hour=2), method="base")
    found = report(scene, policy())
    assert [item.subject for item in found.conditions] == ["orders/dump@primary"]


def test_stale_and_failed_evidence_is_an_alarm(scene: Bucket, policy: Callable[..., Policy]) -> None:
    rules = policy('drills: [{name: quarterly, schedule: "0 4 * * *"}]\n')
    entry = scene.add(at=NOW.replace(hour=2))
    assert words(scene, rules) == ["drill-late"]
    scene.prove(entry, at=NOW.replace(hour=5), run_id="01A")
    assert words(scene, rules) == []
    scene.prove(entry, "failed", at=NOW.replace(hour=6), run_id="01B")
    assert words(scene, rules) == ["drill-failed"]
    assert words(scene, rules, now=NOW + timedelta(days=2))[-1] == "drill-late"


def test_a_log_that_never_came_is_silent(scene: Bucket, ready_site: ReadySite) -> None:
    path = ready_site.write_policy("orders")
    methods = "- {method: base}\n  - {method: wal}"
    path.write_text(path.read_text().replace("- {method: dump}", methods))
    scene.add(at=NOW.replace(hour=2), method="base")
    assert words(scene, load_policies(ready_site.load())["orders"]) == ["log-silent"]


def test_without_a_policy_file_max_age_says_what_is_late(scene: Bucket) -> None:
    scene.add(at=NOW - timedelta(hours=30))
    assert words(scene, None) == ["unwatched"]
    assert words(scene, None, max_age=timedelta(hours=48)) == []
    assert words(scene, None, max_age=timedelta(hours=26)) == ["backup-late"]


def test_a_named_policy_that_is_nowhere_is_late(scene: Bucket) -> None:
    assert words(scene, None, max_age=timedelta(hours=26), only=("ledger",)) == ["backup-late"]


class _GoneStore(MemoryStore):
    def list(self, prefix: str) -> Any:
        raise StoreUnavailable("store primary cannot be reached")


def test_a_store_that_cannot_be_read_is_an_alarm(scene: Bucket, policy: Callable[..., Policy]) -> None:
    scene.stores["primary"] = _GoneStore("primary")
    found = report(scene, policy())
    assert [item.word for item in found.conditions] == ["store-unreachable"]
    assert found.exit_code == 6


def test_serve_that_died_is_seen_by_its_lease(scene: Bucket, policy: Callable[..., Policy]) -> None:
    scene.add(at=NOW.replace(hour=2))
    rules = policy()
    renew_lease(scene.stores["primary"], NOW)
    assert words(scene, rules, now=NOW + timedelta(minutes=15)) == []
    assert words(scene, rules, now=NOW + timedelta(minutes=16)) == ["serve-silent"]
    renew_lease(scene.stores["primary"], NOW + timedelta(minutes=20))
    assert words(scene, rules, now=NOW + timedelta(minutes=21)) == []


LAST, FIRST = b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00+14:00"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b'{"expires_at": "tomorrow"}', b"\xff", b"{}", b"[" * 60_000, b" " * (1 << 17)),
        b'{"renewed_at": "%b", "expires_at": "%b"}' % (LAST, FIRST),
        b'{"renewed_at": "2020-01-01T00:00:00Z", "expires_at": "%b", "holder": "\\u001b[2J"}' % LAST,
    ],
)
def test_a_lease_that_is_nonsense_is_an_alarm_and_no_crash(
    scene: Bucket, policy: Callable[..., Policy], content: bytes
) -> None:
    scene.add(at=NOW.replace(hour=2))
    scene.stores["primary"].put(bucket.lease_key("serve-x"), [content])
    (alarm,) = report(scene, policy()).conditions
    assert (alarm.word, "\x1b" in alarm.message) == ("serve-silent", False)


def test_a_lease_of_the_last_day_there_is_ends_nothing(scene: Bucket, policy: Callable[..., Policy]) -> None:
    lease = b'{"renewed_at": "%b", "expires_at": "%b"}' % (LAST, LAST)
    scene.stores["primary"].put(bucket.lease_key("serve-x"), [lease])
    assert "backup-late" in words(scene, policy())


def test_as_a_resident_it_tells_each_alarm_once_and_its_end_once(ready_site: ReadySite) -> None:
    late = Condition("backup-late", "orders/dump@primary", "orders in store primary: newest dump is 31 h old", "orders")
    looks = iter([(late,), (late,), (), ()])
    stopping = threading.Event()

    def look_again() -> WatchReport:
        told.clock.forward(minutes=5)
        conditions = next(looks)
        return WatchReport(told.clock(), (), conditions)

    def say(found: WatchReport) -> None:
        reports.append(found)
        if len(reports) == 4:
            stopping.set()

    reports: list[WatchReport] = []
    with telling(ready_site) as told:
        reside(told.workplace, look_again, 0.01, stopping, say)
        told.notifier.round()
        assert [state for state, _ in told.receiver.states()] == ["opened", "resolved"]


class TestCommand:
    @pytest.fixture
    def site(self, ready_site: ReadySite) -> ReadySite:
        """Return a watcher's site: stores and allowed signers, no catalog, no keys."""
        path = ready_site.write_policy("orders")
        path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 2 * * *"}'))
        for key in (ready_site.signing_key, ready_site.restore_identity, ready_site.escrow_identity):
            key.unlink()
        (ready_site.folder / "var" / "catalog.db").unlink()
        return ready_site

    def test_it_needs_the_store_alone(self, site: ReadySite) -> None:
        done = site.call("watch", "--json")
        assert done.returncode == 12
        document = json.loads(done.stdout)
        assert [item["condition"] for item in document["alarms"]] == ["backup-late"]
        assert not (site.folder / "var" / "catalog.db").exists()
        assert not list((site.store_folder).iterdir())

    def test_a_store_that_is_gone_is_an_alarm(self, site: ReadySite) -> None:
        site.store_folder.rmdir()
        done = site.call("watch")
        assert done.returncode == 6
        assert "store primary cannot be read" in done.stdout

    def test_wrong_words_are_refused(self, site: ReadySite) -> None:
        assert site.call("watch", "--store", "primry").returncode == 3
        assert site.call("watch", "--interval", "soon").returncode == 2

    def test_a_broken_policy_file_does_not_go_unnoticed(self, site: ReadySite) -> None:
        (site.folder / "policies" / "broken.yaml").write_text("policy: [")
        assert site.call("watch").returncode == 3
