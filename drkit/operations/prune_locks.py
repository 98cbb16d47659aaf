"""Object Lock for as long as something is kept: what was locked when it was written is locked anew in time.

A lock cannot be taken back, and what the rules will want in a year nobody knows. So a lock is made as long as the store
always locks, or to the end that the rules are known to keep an artifact to where the store allows it (`lock_at_most`),
and is extended once half of its time is over and the thing is still kept. What is to go is left to run out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from drkit import bucket
from drkit.errors import IntegrityError, StoreError, StoreMissing, StoreUnavailable
from drkit.log_documents import LogManifest, OplogManifest, SignedLog
from drkit.model import Manifest
from drkit.operations import Workplace
from drkit.operations.artifacts import recorded_version
from drkit.operations.retention_settings import guards_of, rules_of, runs_after
from drkit.policy import Policy
from drkit.retention_locks import LockTerm, closed_over, planned_end
from drkit.stores import Store
from drkit.stores.opening import LOCK_FOR

if TYPE_CHECKING:
    from drkit.operations.prune_facts import Stored
    from drkit.retention_facts import Plan
    from drkit.site import StoreConfig

_AT_ONCE = 8
_SHOWN = 5

_Attempt = Callable[[Callable[[], object]], bool]
_Version = tuple[str, str | None]


@dataclass(frozen=True)
class Kept:
    """What stays: artifact ids, and keys of log manifests."""

    artifacts: Collection[str]
    log: Collection[str]


def kept_by(plan: Plan | None, stored: Stored) -> Kept:
    """Return what a plan keeps, also what is marked and wanted again; without one, where nothing goes, everything."""
    decisions = (*plan.artifacts, *plan.log) if plan else ()
    going = {item.name for item in decisions if item.action != "keep"}
    return Kept(
        [name for name in stored.copies if name not in going], [key for key in stored.log_manifests if key not in going]
    )


def extend_locks(workplace: Workplace, stored: Stored, kept: Kept, attempt: _Attempt) -> None:
    """Extend the locks of everything that is kept, and of the holds that stand, in each store that locks.

    ``attempt`` takes one copy of an artifact, or one store's log, at a time, and keeps its failure.
    """
    terms = {name: term for name in stored.inventories if (term := lock_term(workplace.site.stores.get(name)))}
    if any(term.is_planned for term in terms.values()):
        ends = _planned_ends(stored, kept.artifacts)
    else:
        ends = dict.fromkeys(kept.artifacts, stored.now)
    for name in kept.artifacts:
        for copy in stored.copies[name]:
            if copy.store in terms:
                lock = _Lock(workplace.stores[copy.store], terms[copy.store], stored.now)
                attempt(partial(lock.extend_artifact, copy.manifest, ends[name]))
    for name, term in terms.items():
        lock = _Lock(workplace.stores[name], term, stored.now)
        here = [key for key in sorted(kept.log) if name in stored.log_manifests[key]]
        attempt(partial(_extend_log, workplace, stored, lock, here))
        for hold in stored.holds:
            key = bucket.hold_key(hold.policy, hold.hold_id)
            if key in stored.inventories[name].objects:
                attempt(partial(lock.extend_hold, key))


def lock_as_planned(workplace: Workplace, policy: Policy | None, manifest: Manifest, store_name: str) -> None:
    """Lock a new artifact in a store to the end that the policy's retention is known to keep it to.

    It is locked already, as everything that is written there. So nothing fails because of it: an event tells of a store
    that did not do it, and the next extension does.
    """
    term = lock_term(workplace.site.stores.get(store_name))
    if term is None or not term.is_planned or policy is None or policy.retention is None:
        return
    lock = _Lock(workplace.stores[store_name], term, workplace.clock())
    try:
        lock.extend_artifact(manifest, _planned_end(policy, manifest))
    except StoreError as error:
        facts = {"policy": manifest.policy, "artifact_id": manifest.artifact_id, "store": store_name}
        workplace.catalog.add_event("lock.failed", workplace.clock(), {**facts, "error": error.message})


def lock_term(config: StoreConfig | None) -> LockTerm | None:
    """Return how long a store locks, None where it does not."""
    if config is None or config.object_lock is None:
        return None
    least = config.lock_for or LOCK_FOR
    return LockTerm(least, max(config.lock_at_most or least, least))


def _planned_end(policy: Policy, manifest: Manifest) -> datetime:
    assert policy.retention is not None
    at = manifest.covers.to_at
    guards = guards_of(policy, policy.retention)
    return planned_end(at, rules_of(policy, policy.retention), guards.minimum, runs_after(policy, manifest.method, at))


def _planned_ends(stored: Stored, names: Iterable[str]) -> Mapping[str, datetime]:
    manifests = {name: stored.manifest(name) for name in names}
    if stored.policy.retention is None:
        return dict.fromkeys(manifests, stored.now)
    ends = {name: _planned_end(stored.policy, manifest) for name, manifest in manifests.items()}
    return closed_over(ends, {name: manifest.depends_on for name, manifest in manifests.items()})


@dataclass(frozen=True)
class _Lock:
    """What one store is asked for at one moment."""

    store: Store
    term: LockTerm
    now: datetime

    def extend_artifact(self, manifest: Manifest, end: datetime) -> None:
        key = bucket.manifest_key(manifest.policy, manifest.artifact_id)
        if self.is_due(key, end):
            objects = [(item.key, recorded_version(self.store, manifest, item)) for item in manifest.objects]
            self.extend(key, objects, end)

    def extend_hold(self, key: str) -> None:
        if self.is_due(key, self.now):
            self.extend(key, (), self.now)

    def is_due(self, key: str, end: datetime) -> bool:
        """Tell whether a document, and all that it names, is to be locked for longer: a look at one tells of all."""
        locked_until = self.store.head(key).locked_until
        return locked_until is None or locked_until < self.term.enough(end, self.now)

    def extend(self, key: str, objects: Sequence[_Version], end: datetime) -> None:
        """Lock what a document names, its signature and the document, in this order: its own lock tells of all.

        An object that is missing is for `drkit check` to tell of: the others are locked all the same.
        """
        until = self.term.until(end, self.now)
        for name, version_id in objects:
            with suppress(StoreMissing):
                self.store.extend_lock(name, until, version_id=version_id)
        self.store.extend_lock(bucket.signature_key(key), until)
        self.store.extend_lock(key, until)


def _extend_log(workplace: Workplace, stored: Stored, lock: _Lock, keys: Sequence[str]) -> None:
    """Extend the locks of one store's log, several manifests at a time; raise the first failure after all were tried.

    A store that does not answer is not asked for the rest. What has no `recovery_window` has no planned end.
    """
    from drkit.operations.stored_log import read_trusted_log  # what a backup need not load

    retention, store = stored.policy.retention, lock.store
    window = retention.recovery_window if retention else None
    objects = stored.inventories[store.name].objects
    document: type[SignedLog] = OplogManifest if stored.policy.target.engine == "mongodb" else LogManifest

    def extend(key: str) -> StoreError | IntegrityError | None:
        try:
            end = objects[key].modified_at.replace(microsecond=0) + window if window else lock.now
            if lock.is_due(key, end):
                log, _ = read_trusted_log(store, workplace.signers, stored.policy.policy, key, document)
                versions = [(file.key, file.version_id if log.written_to == store.name else None) for file in log.files]
                lock.extend(key, versions, end)
        except StoreUnavailable:
            raise
        except (StoreError, IntegrityError) as error:
            return error
        return None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lock") as pool:
        failures = [error for error in pool.map(extend, keys) if error is not None]
    if failures:
        first, *others = failures
        details = [*first.details, *(error.message for error in others[:_SHOWN])]
        raise type(first)(f"{len(failures)} log manifests were not locked anew: {first.message}", details=details)
