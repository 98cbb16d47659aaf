"""Pruning the log: whole log manifests with their files, when nothing that is kept needs any of them.

What is removed stays explained: signed tombstones name stretches of the chain of log manifests, and what comes before
and after each, so that the chain can be followed through what is gone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from drkit import bucket
from drkit.errors import IntegrityError
from drkit.log_documents import LogManifest, OplogManifest, SignedLog
from drkit.operations.logs import LogScan, TrustedLog, read_logs
from drkit.operations.running import new_id
from drkit.operations.signing_key import load_site_signing_key
from drkit.operations.sparing import erase, erase_in_order, put_decision
from drkit.retention import Decision
from drkit.retention_documents import BuriedRun, LogTombstone

if TYPE_CHECKING:
    from drkit.operations.prune_steps import Pruning


class LogPruning:
    """The log's share of one plan."""

    def __init__(self, pruning: Pruning) -> None:
        self._pruning = pruning
        self._stored = pruning.stored
        self._workplace = pruning.workplace
        self._policy = pruning.policy.policy

    def mark(self) -> None:
        """Write a tombstone for what nothing needs any more; a manifest that is not believed stays."""
        wanted = [item.name for item in self._pruning.plan.removed_log if not item.is_marked]
        logs = self._read(wanted) if wanted else []
        if logs and self._pruning.attempt(lambda: self._bury(logs)):
            self._pruning.done.marked_log += [log.key for log in logs]

    def due(self) -> list[Decision]:
        """Return what goes now."""
        removed = self._pruning.plan.removed_log
        return [item for item in removed if item.delete_after and item.delete_after <= self._stored.now]

    def delete(self) -> None:
        """Delete what was marked long enough ago, oldest first."""
        due = [item for item in self.due() if not self._pruning.is_read(item.delete_after or self._stored.now)]
        shared = self._shared([item.name for item in due])
        removed_bytes = 0
        for decision in due:
            stores = self._stored.log_manifests[decision.name]
            self._pruning.confirm_lease()
            if self._pruning.is_read(decision.delete_after or self._stored.now):
                break
            if self._erase_everywhere(decision.name, stores, shared):
                self._pruning.done.removed_log.append(decision.name)
                removed_bytes += decision.size_bytes * len(stores)
        self._pruning.done.removed_bytes += removed_bytes
        if self._pruning.done.removed_log:
            count = len(self._pruning.done.removed_log)
            facts = {"policy": self._policy, "manifests": count, "bytes": removed_bytes}
            self._workplace.catalog.add_event("log.removed", self._workplace.clock(), facts)

    def sweep(self) -> None:
        """Take away files in a buried stretch that no manifest's stretch reaches any more, as a crash leaves them."""
        staying: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for place in map(bucket.parse_log_manifest_key, self._stored.log_manifests):
            if place is not None:
                staying[place.timeline].append((place.first[:24], place.last[:24]))
        for grave in self._stored.log_graves:
            made_at = self._stored.grave_made_at(grave)
            due_at = made_at + self._pruning.grace
            if due_at > self._stored.now:
                continue
            for name, key, run in self._in_stretch(grave.runs):
                item = self._stored.inventories[name].objects[key]
                segment = PurePosixPath(key).name[:24]
                reached = any(first <= segment <= last for first, last in staying[run.timeline])
                # What is younger than the tombstone belongs to another cluster that began anew at low positions.
                if not reached and item.modified_at < made_at and not self._pruning.is_read(due_at):
                    self._pruning.confirm_lease()
                    self._pruning.attempt(partial(erase, self._workplace.stores[name], key))

    def _in_stretch(self, runs: Sequence[BuriedRun]) -> Iterator[tuple[str, str, BuriedRun]]:
        """Yield the store and key of every segment, and what belongs to it, that lies in one of the stretches."""
        for name, keys in self._log_keys.items():
            for run in runs:
                prefix = bucket.timeline_prefix(self._policy, run.timeline)
                low, high = bisect_left(keys, prefix + run.first_file), bisect_right(keys, prefix + run.last_file + "~")
                yield from ((name, key, run) for key in keys[low:high] if bucket.parse_log_key(key))

    @cached_property
    def _log_keys(self) -> Mapping[str, Sequence[str]]:
        prefix = bucket.logs_prefix(self._policy)
        return {
            name: sorted(key for key in inventory.objects if key.startswith(prefix))
            for name, inventory in self._stored.inventories.items()
        }

    def _bury(self, logs: Sequence[TrustedLog[SignedLog]]) -> None:
        now = self._workplace.clock()
        stone = LogTombstone(
            repo_id=logs[0].manifest.repo_id,
            policy=self._policy,
            tombstone_id=new_id(now),
            runs=tuple(_runs(logs)),
            reason=f"retention: nothing kept needs it (plan {self._pruning.plan.digest[:16]})",
            removed_at=now,
        )
        key = bucket.log_tombstone_key(self._policy, stone.tombstone_id)
        signing_key = load_site_signing_key(self._workplace.site)
        failures = put_decision(self._workplace, self._pruning.policy.stores, key, stone, signing_key)
        self._pruning.done.failures += failures

    def _read(self, keys: Sequence[str]) -> list[TrustedLog[SignedLog]]:
        """Read log manifests, in the chain's order, each from a store that has it; leave out what is not believed."""
        found: dict[str, TrustedLog[SignedLog]] = {}
        for name in self._stored.inventories:
            here = [key for key in keys if key not in found and name in self._stored.log_manifests[key]]
            scan = self._scan(name, here)
            found |= {log.key: log for log in scan.trusted}
        if len(found) < len(keys):
            unread = len(keys) - len(found)
            self._pruning.done.notes.append(f"{unread} log manifests are not believed, and stay")
        return sorted(found.values(), key=_manifest_id)

    def _erase_everywhere(self, key: str, stores: Sequence[str], shared: frozenset[str]) -> bool:
        attempts = [self._pruning.attempt(partial(self._erase, name, key, shared)) for name in stores]
        return all(attempts)

    def _erase(self, store_name: str, key: str, shared: frozenset[str]) -> None:
        """Remove one log manifest and its files from a store; what another manifest lists too stays."""
        scan = self._scan(store_name, [key])
        if scan.refused:
            raise IntegrityError(f"log manifest {key} in store {store_name} is not believed, and is not deleted")
        records = (record for log in scan.trusted for record in log.manifest.files)
        files = [record.key for record in records if record.part not in shared]
        erase_in_order(self._workplace.stores[store_name], key, files)

    def _scan(self, store_name: str, keys: Sequence[str]) -> LogScan[SignedLog]:
        """Read log manifests of a store, whichever database's they are."""
        store = self._workplace.stores[store_name]
        document: type[SignedLog] = OplogManifest if self._pruning.policy.target.engine == "mongodb" else LogManifest
        return read_logs(store, self._workplace.signers, self._policy, keys, document)

    def _shared(self, going: Sequence[str]) -> frozenset[str]:
        """Return the files that manifests list which stay, of those whose stretch meets one that goes."""
        places = [place for key in going if (place := bucket.parse_log_manifest_key(key))]
        last = {place.timeline: max(item.last[:24] for item in places) for place in places}
        staying = [
            key
            for key in set(self._stored.log_manifests) - set(going)
            if (place := bucket.parse_log_manifest_key(key)) and place.first[:24] <= last.get(place.timeline, "")
        ]
        return frozenset(record.part for log in self._read(staying) for record in log.manifest.files)


def _manifest_id(log: TrustedLog[SignedLog]) -> str:
    place = bucket.parse_log_manifest_key(log.key)
    return place.manifest_id if place else ""


def _runs(logs: Sequence[TrustedLog[SignedLog]]) -> Iterator[BuriedRun]:
    """Group log manifests, in order, into stretches of the chain on one timeline."""
    begins = [0]
    for number, (before, log) in enumerate(pairwise(logs), start=1):
        follows = log.manifest.previous == before.sha256 and log.manifest.timeline == before.manifest.timeline
        if not follows:
            begins.append(number)
    for begin, end in pairwise([*begins, len(logs)]):
        group = logs[begin:end]
        places = [place for log in group if (place := bucket.parse_log_manifest_key(log.key))]
        yield BuriedRun(
            timeline=group[0].manifest.timeline,
            first_id=_manifest_id(group[0]),
            last_id=_manifest_id(group[-1]),
            count=len(group),
            first_file=min(place.first[:24] for place in places),
            last_file=max(place.last[:24] for place in places),
            previous=group[0].manifest.previous,
            last_sha256=group[-1].sha256,
        )
