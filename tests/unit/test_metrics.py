"""The numbers are right at once, from the catalog; they are served, kept in a file, and named in the documents."""

from __future__ import annotations

import json
import re
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from drkit.keys import load_identities, new_identity_file
from drkit.model import Encryption, RecipientRecord, Run
from drkit.operations.exposition import Exposition, Family
from drkit.operations.health import Health
from drkit.operations.keys_in_reach import KeysInReach
from drkit.operations.metrics import COUNTERS, GAUGES, HISTOGRAM, Collector, size_zscore, write_textfile
from drkit.operations.metrics_server import answering
from drkit.policy_retention import Retention
from tests.fixtures.bucket import NOW, entry_of, make_manifest
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import Telling, telling

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def told(ready_site: ReadySite) -> Iterator[Telling]:
    more = "objectives: {rpo: 26h, rto: 2h}\ndrills: [{name: weekly, schedule: '0 4 * * sun'}]\n"
    more += "verify: {full_coverage_within: 30d}\n"
    ready_site.add_store("vault", "s3://vault", "region: eu-central-1", "object_lock: compliance", "lock_for: 40d")
    path = ready_site.write_policy("orders", stores=("primary", "vault"), more=more)
    path.write_text(path.read_text().replace("{method: dump}", '{method: dump, schedule: "0 2 * * *"}'))
    with telling(ready_site) as lent:
        yield lent


def health_of(told: Telling) -> Health:
    return Health(told.clock, {"notifier": timedelta(minutes=5)})


def fill(told: Telling) -> None:
    """Let a week of backups, a drill and a failure have happened."""
    for day in range(7, 0, -1):
        at = NOW - timedelta(days=day)
        told.catalog.index_artifact(entry_of(make_manifest(at=at, content=b"x" * (1000 + day)), ["primary", "vault"]))
        run = Run(f"R{day}", "backup", "orders", "succeeded", at, "h", 1, at, ended_at=at + timedelta(seconds=90))
        told.catalog.finish_run(run)
    failed = Run("R0", "backup", "orders", "failed", NOW, "h", 1, NOW, ended_at=NOW + timedelta(seconds=5), error="no")
    told.catalog.finish_run(failed)
    told.catalog.start_run(Run("R9", "drill", "orders", "running", NOW, "h", 1, NOW))
    copy = {"subject": "gone", "store": "primary", "verified_at": NOW.isoformat(), "size_bytes": 7, "sound": False}
    verified = {"kind": "verification", "policy": "orders", "run_id": "V", "verdict": "failed", "copies": [copy]}
    told.catalog.index_evidence({**verified, "ended_at": NOW.isoformat()}, "1" * 64, ["primary"])
    record: dict[str, Any] = {
        "kind": "drill",
        "policy": "orders",
        "drill": "weekly",
        "verdict": "passed",
        "run_id": "D",
    }
    levels = {"exists": "passed", "intact": "passed", "works": "not run"}
    record |= {"levels": levels, "selection": {"level": "works"}, "rto_ms": 112_000, "artifact_id": "A"}
    record |= {"ended_at": "2026-11-21T12:00:00.000000+00:00", "restored_to_at": "2026-11-20T12:00:00.000000+00:00"}
    told.catalog.index_evidence(record, "0" * 64, ["primary"])
    told.catalog.workers.beat("host/1@x", NOW - timedelta(seconds=7))
    told.event("run.failed", run_id="R0", kind="backup", policy="orders", method="dump", error="no")


def samples_of(told: Telling) -> Samples:
    text, _ = Collector(told.workplace, health_of(told)).collect().text()
    families = list(text_string_to_metric_families(text.decode()))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[(name, tuple(sorted(labels.items())))]


def test_artifacts_that_no_identity_here_opens_are_counted(told: Telling) -> None:
    name, orders = "drkit_unopenable_artifacts", {"target": "orders"}
    (path,) = told.workplace.site.keys.identities
    (key,) = load_identities([path], None)
    ours = Encryption(recipients=(RecipientRecord(fingerprint="age:0"), RecipientRecord(fingerprint=key.fingerprint)))
    entries = [entry_of(make_manifest(at=NOW - timedelta(days=day), encryption=ours), ["primary"]) for day in range(3)]
    strange = [entry_of(make_manifest(at=NOW - timedelta(days=day)), ["primary"]) for day in range(3, 8)]
    for entry in [*entries, *strange, strange[0]]:  # one of them is found a second time
        told.catalog.index_artifact(entry)
    assert value(samples_of(told), name, **orders) == 5
    told.catalog.forget_artifact(strange[0].manifest.artifact_id)
    assert value(samples_of(told), name, **orders) == 4
    away = path.rename(path.with_name("away"))
    assert value(samples_of(told), name, **orders) == 7
    away.rename(path)
    assert value(samples_of(told), name, **orders) == 4
    path.write_text("not a key")
    assert value(samples_of(told), name, **orders) == 7
    site = told.workplace.site
    told.workplace.site = site.model_copy(update={"keys": site.keys.model_copy(update={"identities": ()})})
    assert not any(sample == name for sample, _ in samples_of(told)), "who only backs up opens nothing, on purpose"


def test_a_locked_identity_counts_by_its_public_half(tmp_path: Path) -> None:
    path = tmp_path / "restore.age"
    key = new_identity_file(path, post_quantum=False, passphrase="correct horse")
    assert KeysInReach([path]).fingerprints() == {key.fingerprint}
    path.with_name("restore.age.pub").unlink()
    assert KeysInReach([path]).fingerprints() == frozenset()


def test_a_lock_is_told_to_its_planned_end_and_for_as_long_as_it_was_extended(told: Telling) -> None:
    fill(told)
    newest, site = NOW - timedelta(days=1), told.workplace.site
    vault = site.stores["vault"].model_copy(update={"lock_at_most": timedelta(days=400)})
    told.workplace.site = site.model_copy(update={"stores": {**site.stores, "vault": vault}})
    policy = told.workplace.policies["orders"]
    told.workplace.policies = {"orders": policy.model_copy(update={"retention": Retention(within=timedelta(days=100))})}
    lock = {"target": "orders", "store": "vault"}
    name = "drkit_retention_lock_until_timestamp_seconds"
    assert value(samples_of(told), name, **lock) == (newest + timedelta(days=100)).timestamp()
    told.workplace.site = site
    told.catalog.finish_run(Run("L0", "lock", "orders", "succeeded", NOW, "h", 1, NOW, ended_at=NOW))
    assert value(samples_of(told), name, **lock) == (newest + timedelta(days=40)).timestamp()
    late = NOW + timedelta(days=30)
    told.catalog.finish_run(Run("L1", "lock", "orders", "succeeded", late, "h", 1, late, ended_at=late))
    assert value(samples_of(told), name, **lock) == (late + timedelta(days=20)).timestamp()


def test_they_are_what_the_catalog_says(told: Telling) -> None:
    fill(told)
    found = samples_of(told)
    newest = (NOW - timedelta(days=1)).timestamp()
    assert value(found, "drkit_newest_artifact_timestamp_seconds", target="orders", method="dump") == newest
    assert value(found, "drkit_restorable_until_timestamp_seconds", target="orders") == newest
    oldest = (NOW - timedelta(days=7)).timestamp()
    assert value(found, "drkit_restorable_from_timestamp_seconds", target="orders") == oldest
    assert value(found, "drkit_rpo_exposure_seconds", target="orders", proof="unproven") == 86400
    assert value(found, "drkit_rpo_exposure_seconds", target="orders", proof="proven") == 2 * 86400
    assert value(found, "drkit_rpo_target_seconds", target="orders") == 26 * 3600
    assert value(found, "drkit_last_attempt_status", target="orders", kind="backup") == 0
    succeeded = newest + 90
    assert value(found, "drkit_last_success_timestamp_seconds", target="orders", kind="backup") == succeeded
    assert value(found, "drkit_last_duration_seconds", target="orders", kind="backup") == pytest.approx(5, abs=0.01)
    assert value(found, "drkit_backup_bytes", target="orders", method="dump", stage="stored") == 1001
    assert value(found, "drkit_schedule_interval_seconds", target="orders", method="dump") == 86400
    assert value(found, "drkit_drill_rto_seconds", target="orders", drill="weekly", stage="verified") == 112
    drill = {"target": "orders", "drill": "weekly", "level": "works", "verdict": "passed"}
    assert value(found, "drkit_drill_last_timestamp_seconds", **drill) == (NOW - timedelta(days=1)).timestamp()
    domain = told.workplace.site.stores["primary"].failure_domain or "primary"
    assert value(found, "drkit_copies", target="orders", failure_domain=domain, immutable="no") == 1
    until = newest + timedelta(days=40).total_seconds()  # to when its lock lasts that was made when it was written
    assert value(found, "drkit_retention_lock_until_timestamp_seconds", target="orders", store="vault") == until
    assert value(found, "drkit_damaged_copies", target="orders") == 1
    assert value(found, "drkit_oldest_reading_timestamp_seconds", target="orders") == oldest
    assert value(found, "drkit_reading_promise_seconds", target="orders") == 30 * 86400
    checks = {"target": "orders", "drill": "weekly"}
    assert value(found, "drkit_drill_checks", result="passed", **checks) == 2
    assert value(found, "drkit_drill_checks", result="not run", **checks) == 1
    assert value(found, "drkit_worker_last_heartbeat_timestamp_seconds") == NOW.timestamp() - 7
    assert value(found, "drkit_run_heartbeat_timestamp_seconds") == NOW.timestamp()
    assert value(found, "drkit_healthy") == 1
    assert value(found, "drkit_problems", level="failed") == 1
    assert value(found, "drkit_notification_last_proof_timestamp_seconds") == NOW.timestamp()
    assert value(found, f"{HISTOGRAM}_bucket", target="orders", le="60.0") == 0
    assert value(found, f"{HISTOGRAM}_bucket", target="orders", le="300.0") == 7
    assert value(found, f"{HISTOGRAM}_count", target="orders") == 7


def test_a_policy_without_artifacts_is_there_too(told: Telling) -> None:
    found = samples_of(told)
    info = {"target": "orders", "engine": "postgres", "tier": "", "site": "site"}
    assert value(found, "drkit_target_info", **info) == 1
    assert not [name for name, _ in found if name == "drkit_newest_artifact_timestamp_seconds"]


def test_no_label_has_values_without_an_end(told: Telling) -> None:
    fill(told)
    artifact_ids = {entry.manifest.artifact_id for entry in told.catalog.artifacts()}
    labels = {text for _, pairs in samples_of(told) for _, text in pairs}
    assert not labels & artifact_ids


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 100, 100], None),
        ([1000] * 6, 0.0),
        ([1005] + [1000] * 6, 0.5),
        ([0] + [1000] * 6, -100.0),
        ([500, 1000, 1010, 990, 1000, 1005], -67.4),
    ],
)
def test_how_far_a_size_is_from_those_before(sizes: list[int], expected: float | None) -> None:
    found = size_zscore(sizes)
    assert found == (None if expected is None else pytest.approx(expected, abs=20 if expected < -50 else 0.01))


def test_events_and_moments_are_counted(told: Telling) -> None:
    told.event("lease.lost", run_id="R", kind="backup", policy="orders", lease="backup/orders", holder="other")
    told.event("occurrence.late", schedule="s", kind="backup", policy="orders", what="dump", late_s=900.0)
    found = samples_of(told)
    assert value(found, "drkit_lease_lost_total") == 1
    assert value(found, "drkit_occurrences_total", outcome="late") == 1
    assert value(found, "drkit_occurrences_total", outcome="done") == 0


def test_both_formats_are_read_as_they_were_meant() -> None:
    odd = 'back\\slash "quoted"\nnewline, {brace} ü'
    gauge = Family("drkit_some", "Text\nwith \\.", ("target", "kind"))
    gauge.add(True, odd, "x")
    gauge.add(1.7e9 + 0.123456, "plain", "")
    counter = Family("drkit_things_total", "Things.", (), "counter")
    counter.add(3)
    histogram = Family("drkit_took_seconds", "Took.", ("target",), "histogram")
    histogram.add_histogram((10, 60), (1, 2, 4), 99.5, odd)
    shown = Exposition([gauge, counter, histogram])
    for parse, accept in (
        (text_string_to_metric_families, ""),
        (openmetrics_families, "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"),
    ):
        text, content_type = shown.text(accept)
        assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
        families = {family.name: family for family in parse(text.decode())}
        assert {name: family.type for name, family in families.items()} == {
            "drkit_some": "gauge",
            "drkit_things": "counter",
            "drkit_took_seconds": "histogram",
        }
        first, second = families["drkit_some"].samples
        assert (first.labels, first.value) == ({"target": odd, "kind": "x"}, 1)
        assert (second.labels["target"], second.value) == ("plain", 1.7e9 + 0.123456)
        assert [sample.value for sample in families["drkit_things"].samples] == [3]
        buckets = {s.labels.get("le", s.name): s.value for s in families["drkit_took_seconds"].samples}
        assert buckets == {
            "10.0": 1,
            "60.0": 2,
            "+Inf": 4,
            "drkit_took_seconds_count": 4,
            "drkit_took_seconds_sum": 99.5,
        }


class TestServed:
    def get(self, url: str, **headers: str) -> tuple[int, str, bytes]:
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read()

    def test_metrics_and_health(self, told: Telling) -> None:
        fill(told)
        health = health_of(told)
        with answering("127.0.0.1:0", Collector(told.workplace, health), health) as (host, port):
            base = f"http://{host}:{port}"
            status, kind, body = self.get(f"{base}/metrics")
            assert (status, b"drkit_build_info{" in body) == (200, True)
            assert kind.startswith("text/plain")
            status, kind, body = self.get(f"{base}/metrics", Accept="application/openmetrics-text; version=1.0.0")
            assert (status, body[-6:]) == (200, b"# EOF\n")
            assert kind.startswith("application/openmetrics-text")
            assert self.get(f"{base}/healthz")[0] == 200
            assert self.get(f"{base}/secrets")[0] == 404
            told.clock.forward(minutes=6)
            status, _, body = self.get(f"{base}/healthz")
            assert status == 503
            assert json.loads(body)["duties"][0]["state"] == "silent"
            health.tick("notifier")
            assert self.get(f"{base}/healthz")[0] == 200

    @pytest.mark.parametrize("half", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"])
    def test_who_hangs_up_is_no_news(self, told: Telling, half: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        fill(told)
        health = health_of(told)
        with answering("127.0.0.1:0", Collector(told.workplace, health), health) as (host, port):
            for _ in range(5):
                with socket.create_connection((host, port), timeout=5) as client:
                    client.sendall(half)
                    # Reset, and not closed in good order: what is written then fails.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert self.get(f"http://{host}:{port}/healthz")[0] == 200
        assert capfd.readouterr().err == ""

    def test_a_bug_is_still_said(self, told: Telling, capfd: pytest.CaptureFixture[str]) -> None:
        class Broken:
            def report(self) -> None:
                raise ZeroDivisionError

        collector = Collector(told.workplace, health_of(told))
        with answering("127.0.0.1:0", collector, Broken()) as (host, port), pytest.raises(OSError, match="closed"):  # type: ignore[arg-type]
            self.get(f"http://{host}:{port}/healthz")
        assert "ZeroDivisionError" in capfd.readouterr().err

    def test_a_catalog_that_cannot_be_read_is_no_numbers(self, told: Telling) -> None:
        health = health_of(told)
        told.catalog.path.write_bytes(b"not a catalog" * 1000)
        with answering("127.0.0.1:0", Collector(told.workplace, health), health) as (host, port):
            assert self.get(f"http://{host}:{port}/metrics")[0] == 503

    def test_the_file_is_whole_and_others_can_read_it(self, told: Telling, tmp_path: Path) -> None:
        path = tmp_path / "drkit.prom"
        path.write_text("old")
        write_textfile(path, Collector(told.workplace, health_of(told)))
        assert path.read_text().startswith("# HELP")
        assert path.stat().st_mode & 0o777 == 0o644
        assert [item.name for item in tmp_path.glob("*.prom*")] == ["drkit.prom"]


class TestDocuments:
    def exported(self, told: Telling) -> set[str]:
        fill(told)
        told.event("sandbox.leaked", scratch_id="S", locator="/srv/s", error="no")
        return {name for name, _ in samples_of(told)}

    def test_all_metrics_are_exported(self, told: Telling) -> None:
        assert set(GAUGES) - self.exported(told) <= {"drkit_backup_size_zscore"} - self.exported(told)

    @pytest.mark.parametrize("name", ["rules.yml", "rules_test.yml", "dashboard.json"])
    def test_every_metric_that_is_named_is_exported(self, told: Telling, name: str) -> None:
        named = set(re.findall(r"\bdrkit_[a-z_]+", (MONITORING / name).read_text()))
        assert named - {"drkit_backup_duration_seconds"} <= self.exported(told)

    def test_every_metric_is_documented_with_its_labels_and_nothing_else(self) -> None:
        rows = re.findall(r"^\| `(drkit_\w+)` \| ([^|]*) \|", (MONITORING / "README.md").read_text(), re.MULTILINE)
        documented = {name: tuple(part for part in labels.split(", ") if part) for name, labels in rows}
        assert documented == {name: labels for name, (_, labels) in GAUGES.items()} | {
            HISTOGRAM: ("target",),
            **{name: labels for name, (_, labels) in COUNTERS.items()},
        }
