"""The numbers of a site, as Prometheus reads them: from the catalog each time, so that a restart changes nothing.

docs/monitoring/README.md lists the names; rules and a dashboard lie beside it. No label has values without an end:
artifact ids, positions and file names are in none.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from drkit import __version__
from drkit.catalog.measures import Measures, NewestArtifact
from drkit.catalog.sums import DURATION_BUCKETS_S
from drkit.operations import Workplace
from drkit.operations.expectations import store_place
from drkit.operations.exposition import Exposition, Family
from drkit.operations.health import Health
from drkit.operations.keys_in_reach import KeysInReach
from drkit.operations.lookout import CLOCK_MARGIN, free_and_size_bytes, restorable_to, watched_folders
from drkit.operations.metrics_promises import Promises
from drkit.policy import Policy

_CACHED_S = 5.0
_FEWEST_SIZES = 5

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "drkit_build_info": ("This drkit.", ("version",)),
    "drkit_target_info": ("A policy that is there.", ("target", "engine", "tier", "site")),
    "drkit_last_success_timestamp_seconds": ("When a run of that kind last succeeded.", ("target", "kind")),
    "drkit_last_attempt_status": (
        "1 when the newest run of that kind that ended succeeded, else 0.",
        ("target", "kind"),
    ),
    "drkit_last_duration_seconds": ("How long the newest run of that kind took.", ("target", "kind")),
    "drkit_newest_artifact_timestamp_seconds": ("The moment of the newest artifact.", ("target", "method")),
    "drkit_schedule_interval_seconds": ("How often the schedule wants a backup.", ("target", "method")),
    "drkit_restorable_from_timestamp_seconds": ("The oldest artifact's moment.", ("target",)),
    "drkit_restorable_until_timestamp_seconds": ("The newest moment that can be restored.", ("target",)),
    "drkit_rpo_exposure_seconds": (
        "What a disaster now would cost, as time; proof=proven counts only what a drill has shown.",
        ("target", "proof"),
    ),
    "drkit_rpo_target_seconds": ("The policy's RPO.", ("target",)),
    "drkit_chain_gap_count": ("Gaps in the log that no base backup has ended yet.", ("target",)),
    "drkit_backup_bytes": ("Bytes of the newest artifact: plain or stored.", ("target", "method", "stage")),
    "drkit_backup_size_zscore": (
        "How far the newest artifact's size is from the median of those before, in robust deviations.",
        ("target", "method"),
    ),
    "drkit_copies": (
        "How many copies of the newest artifact are in a failure domain.",
        ("target", "failure_domain", "immutable"),
    ),
    "drkit_copies_target": ("How many stores the policy names.", ("target",)),
    "drkit_retention_lock_until_timestamp_seconds": (
        "Until when the newest artifact is locked in a store with object_lock, at the least, as was asked for.",
        ("target", "store"),
    ),
    "drkit_unopenable_artifacts": (
        "Artifacts that no identity of this host opens; only where the site names identities.",
        ("target",),
    ),
    "drkit_damaged_copies": ("Copies that were not sound when they were read last.", ("target",)),
    "drkit_oldest_reading_timestamp_seconds": (
        "When the copy that was read the longest ago was read; before its first time, when it was made.",
        ("target",),
    ),
    "drkit_reading_promise_seconds": ("Within how long the policy promises to read every copy.", ("target",)),
    "drkit_drill_last_timestamp_seconds": (
        "When a drill last ended, and how.",
        ("target", "drill", "level", "verdict"),
    ),
    "drkit_drill_interval_seconds": ("How often the schedule wants a drill.", ("target", "drill")),
    "drkit_drill_checks": ("Levels of the newest drill, by their result.", ("target", "drill", "result")),
    "drkit_drill_rto_seconds": ("RTO of the newest drill.", ("target", "drill", "stage")),
    "drkit_drill_rto_target_seconds": ("The policy's RTO.", ("target",)),
    "drkit_scratch_active": ("Scratch servers that are there.", ()),
    "drkit_scratch_leaked": ("Scratch servers that could not be taken away: copies of data.", ()),
    "drkit_run_heartbeat_timestamp_seconds": (
        "When the run that was silent for the longest of those that go on last showed that it lives.",
        (),
    ),
    "drkit_worker_last_heartbeat_timestamp_seconds": (
        "When the process that does what is due last went round and wrote to the catalog; of several, the newest.",
        (),
    ),
    "drkit_queue_depth": ("Scheduled things that could run now and wait.", ()),
    "drkit_queue_oldest_seconds": ("How long the first of them has waited.", ()),
    "drkit_healthy": ("1 when /healthz answers 200, else 0.", ()),
    "drkit_duty_last_tick_timestamp_seconds": ("When a duty of drkit serve last went round.", ("duty",)),
    "drkit_key_age_seconds": ("Age of the signing key's file.", ("key",)),
    "drkit_notification_last_proof_timestamp_seconds": ("When a notification last arrived.", ()),
    "drkit_notifications_waiting": ("Notifications that did not arrive yet.", ()),
    "drkit_problems": ("Problems that are open, by level.", ("level",)),
    "drkit_volume_free_bytes": ("Room on the volume of a folder that drkit writes to.", ("volume",)),
    "drkit_volume_size_bytes": ("Size of that volume.", ("volume",)),
}
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "drkit_occurrences_total": ("Moments of schedules, by what became of them.", ("outcome",)),
    "drkit_lease_lost_total": ("Runs whose lease another run took while they stood still.", ()),
}
HISTOGRAM = "drkit_backup_duration_seconds"
_HISTOGRAM_HELP = "How long backups took that succeeded, since the catalog begins."
OUTCOMES = ("done", "failed", "missed", "coalesced", "skipped")


class Collector:
    """Reads the numbers; what was read is good for a few seconds, so that several who ask cost one reading."""

    def __init__(self, workplace: Workplace, health: Health) -> None:
        self._workplace = workplace
        self._health = health
        self._turn = threading.Lock()
        self._promises: Promises | None = None
        self._in_reach = KeysInReach(workplace.site.keys.identities)
        self._collected: Exposition | None = None
        self._collected_s = 0.0

    def collect(self) -> Exposition:
        """Return all numbers as of one moment; raise CatalogError when the catalog cannot be read."""
        with self._turn:
            if self._collected is None or time.monotonic() - self._collected_s > _CACHED_S:
                self._collected = self._read()
                self._collected_s = time.monotonic()
            return self._collected

    def _read(self) -> Exposition:
        workplace, policies = self._workplace, self._workplace.policies
        if self._promises is None or self._promises.policies is not policies:
            self._promises = Promises(policies, workplace.site, _family)
        with workplace.catalog.glance() as measures:
            return _Reading(workplace, self._health, measures, self._promises, self._in_reach).exposition()


def _family(name: str) -> Family:
    return Family(name, *GAUGES[name])


class _Reading:
    """One reading of everything; each method adds the samples of one subject."""

    def __init__(
        self, workplace: Workplace, health: Health, measures: Measures, promises: Promises, in_reach: KeysInReach
    ) -> None:
        self._workplace = workplace
        self._health = health
        self._measures = measures
        self._problems = workplace.catalog.outbox.problems()
        self._in_reach = in_reach
        self._promises = promises
        self._policies = promises.policies
        self._extended: dict[str, datetime] = {}
        self._now = workplace.clock()
        self._gauges = {name: _family(name) for name in GAUGES} | promises.families(self._now)
        self._counters = {name: Family(name, text, labels, "counter") for name, (text, labels) in COUNTERS.items()}
        self._durations = Family(HISTOGRAM, _HISTOGRAM_HELP, ("target",), "histogram")

    def exposition(self) -> Exposition:
        subjects: tuple[Callable[[], None], ...] = (
            *(self._site, self._runs, self._artifacts, self._targets, self._keys, self._drills),
            *(self._scratches, self._telling, self._volumes),
        )
        for subject in subjects:
            subject()
        return Exposition([*self._gauges.values(), *self._counters.values(), self._durations])

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._gauges[name].add(value, *labels)

    def _site(self) -> None:
        self._set("drkit_build_info", 1, __version__)
        self._set("drkit_healthy", self._health.report()["ok"])
        for duty, ticked_at in self._health.last_ticks().items():
            self._set("drkit_duty_last_tick_timestamp_seconds", ticked_at.timestamp(), duty)
        signing = self._workplace.site.keys.signing
        if signing is not None and signing.exists():
            self._set("drkit_key_age_seconds", self._now.timestamp() - signing.stat().st_mtime, "signing")
        count, since = self._measures.waiting(self._now)
        self._set("drkit_queue_depth", count)
        self._set("drkit_queue_oldest_seconds", (self._now - since).total_seconds() if since else 0)

    def _runs(self) -> None:
        worker_at = self._workplace.catalog.workers.last_beat()
        if worker_at is not None:
            self._set("drkit_worker_last_heartbeat_timestamp_seconds", worker_at.timestamp())
        beat_at = self._measures.oldest_heartbeat()
        if beat_at is not None:
            self._set("drkit_run_heartbeat_timestamp_seconds", beat_at.timestamp())
        for took in self._measures.durations():
            self._durations.add_histogram(DURATION_BUCKETS_S, (*took.within, took.many), took.sum_s, took.policy)
        moments = self._measures.totals("occurrence")
        for outcome in OUTCOMES:
            self._counters["drkit_occurrences_total"].add(moments.get(outcome, 0), outcome)
        events = self._measures.totals("event")
        self._counters["drkit_occurrences_total"].add(events.get("occurrence.late", 0), "late")
        self._counters["drkit_lease_lost_total"].add(events.get("lease.lost", 0))
        for run in self._measures.last_runs():
            if run.succeeded_at is not None:
                if run.kind == "lock":
                    self._extended[run.policy] = run.succeeded_at
                self._set("drkit_last_success_timestamp_seconds", run.succeeded_at.timestamp(), run.policy, run.kind)
            self._set("drkit_last_attempt_status", run.last_state == "succeeded", run.policy, run.kind)
            self._set("drkit_last_duration_seconds", run.last_duration_s, run.policy, run.kind)

    def _artifacts(self) -> None:
        self._newest: dict[str, list[NewestArtifact]] = {}
        for item in self._measures.newest_artifacts(self._now + CLOCK_MARGIN, self._policies):
            self._newest.setdefault(item.policy, []).append(item)
            labels = (item.policy, item.method)
            self._set("drkit_newest_artifact_timestamp_seconds", item.restorable_to_at.timestamp(), *labels)
            self._set("drkit_backup_bytes", item.plain_bytes, *labels, "plain")
            self._set("drkit_backup_bytes", item.stored_bytes, *labels, "stored")
            score = size_zscore(item.sizes)
            if score is not None:
                self._set("drkit_backup_size_zscore", score, *labels)

    def _targets(self) -> None:
        names = self._policies.keys()
        proven = self._measures.proven(names)
        gaps = Counter(item.policy for item in self._problems if item.level == "gap")
        damaged = Counter(policy for policy, _, _ in self._measures.damaged_copies(names))
        read_at = self._measures.oldest_readings(self._now + CLOCK_MARGIN, names)
        for name, policy in self._policies.items():
            self._set("drkit_chain_gap_count", gaps[name], name)
            self._set("drkit_damaged_copies", damaged[name], name)
            if name in read_at:
                self._set("drkit_oldest_reading_timestamp_seconds", read_at[name].timestamp(), name)
            self._copies(policy)
            newest = self._newest.get(name)
            if newest:
                oldest_at = min(item.oldest_at for item in newest)
                self._set("drkit_restorable_from_timestamp_seconds", oldest_at.timestamp(), name)
                self._exposure(name, restorable_to(self._workplace, policy, newest), proven.get(name))

    def _copies(self, policy: Policy) -> None:
        newest = max(self._newest.get(policy.policy, ()), key=lambda item: item.restorable_to_at, default=None)
        domains: dict[tuple[str, str], int] = {}
        for name in policy.stores:
            store = self._workplace.site.stores[name]
            key = (store.failure_domain or name, "yes" if store.object_lock else "no")
            is_there = newest is not None and name in newest.stores
            domains[key] = domains.get(key, 0) + is_there
            if newest is not None and is_there and store.object_lock:
                place = replace(store_place(name, store), extended_at=self._extended.get(policy.policy))
                until = self._promises.locked_until(policy, place, newest.method, newest.restorable_to_at)
                self._set("drkit_retention_lock_until_timestamp_seconds", until.timestamp(), policy.policy, name)
        for (domain, immutable), count in domains.items():
            self._set("drkit_copies", count, policy.policy, domain, immutable)

    def _exposure(self, target: str, until: datetime | None, proven_to_at: datetime | None) -> None:
        if until is not None:
            self._set("drkit_restorable_until_timestamp_seconds", until.timestamp(), target)
        for proof, moment in (("unproven", until), ("proven", proven_to_at)):
            if moment is not None:
                exposed = max(self._now - moment, timedelta())
                self._set("drkit_rpo_exposure_seconds", exposed.total_seconds(), target, proof)

    def _keys(self) -> None:
        if not self._workplace.site.keys.identities:
            return  # a host that only backs up opens nothing, on purpose
        in_reach, shut = self._in_reach.fingerprints(), Counter[str]()
        for policy, recipients, many in self._measures.sealed_for():
            shut[policy] += 0 if recipients & in_reach else many
        for name in self._policies:
            self._set("drkit_unopenable_artifacts", shut[name], name)

    def _drills(self) -> None:
        for item in self._measures.last_drills(self._policies):
            labels = (item.policy, item.drill, item.level, item.verdict)
            self._set("drkit_drill_last_timestamp_seconds", item.ended_at.timestamp(), *labels)
            for result, count in item.levels.items():
                self._set("drkit_drill_checks", count, item.policy, item.drill, result)
            if item.rto_s is not None:
                self._set("drkit_drill_rto_seconds", item.rto_s, item.policy, item.drill, "verified")

    def _scratches(self) -> None:
        self._set("drkit_scratch_active", len(self._workplace.catalog.scratches()))
        self._set("drkit_scratch_leaked", sum(item.level == "leaked" for item in self._problems))

    def _telling(self) -> None:
        outbox = self._workplace.catalog.outbox
        sent_at = outbox.last_sent_at()
        if sent_at is not None:
            self._set("drkit_notification_last_proof_timestamp_seconds", sent_at.timestamp())
        self._set("drkit_notifications_waiting", outbox.waiting())
        for level, count in sorted(Counter(problem.level for problem in self._problems).items()):
            self._set("drkit_problems", count, level)

    def _volumes(self) -> None:
        for volume, folder in watched_folders(self._workplace).items():
            try:
                free, size = free_and_size_bytes(folder)
            except OSError:
                continue
            self._set("drkit_volume_free_bytes", free, volume)
            self._set("drkit_volume_size_bytes", size, volume)


def size_zscore(sizes: Sequence[int]) -> float | None:
    """Return how far the first size is from the median of the others, in robust deviations; None for too few.

    The deviation is 1.4826 times the median absolute deviation, and a hundredth of the median at the least: sizes that
    were all the same must not make a byte more an alarm.
    """
    newest, before = (sizes[0] if sizes else 0), sizes[1:]
    if len(before) < _FEWEST_SIZES:
        return None
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(size - median) for size in before)
    return (newest - median) / max(deviation, median / 100, 1.0)


def write_textfile(path: Path, collector: Collector) -> None:
    """Put the numbers into a file, whole or not at all; whoever reads the file needs no other rights."""
    text, _ = collector.collect().text()
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_bytes(text)
    unfinished.chmod(0o644)
    unfinished.replace(path)
