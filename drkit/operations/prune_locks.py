"""Object Lock for as long as something is kept: what was locked when it was written is locked anew in time.

A lock cannot be taken back, and what the rules will want in a year nobody knows. So a lock is made as long as the store
always locks, or to the end that the rules are known to keep an artifact to where the store allows it (`lock_at_most`),
and is extended once half of its time is over and the thing is still kept. What is to go is left to run out.

Documents that are never removed stay locked as long as anything of the policy is: a tombstone explains a gap in the
chain for ever, a record is what an auditor asks for, and without the public keys no signature can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from drkit import bucket
from drkit.errors import IntegrityError, StoreError, StoreMissing, StoreUnavailable
from drkit.log_documents import LogManifest, OplogManifest, SignedLog
from drkit.model import Manifest
from drkit.operations import Workplace
from drkit.operations.artifacts import recorded_version
from drkit.operations.lock_terms import kept_until, lock_term
from drkit.policy import Policy
from drkit.retention_locks import LockTerm, closed_over
from drkit.stores import Store
from drkit.units import format_count

if TYPE_CHECKING:
    from drkit.operations.inventory import StoreInventory
    from drkit.operations.prune_facts import Stored
    from drkit.retention_facts import Plan

_AT_ONCE = 8
_SHOWN = 5

_Attempt = Callable[[Callable[[], object]], bool]
_Version = tuple[str, str | None]
_Document = tuple[str, str | None]
"""The key of a document, and that of its signature if it is signed."""
_Item = TypeVar("_Item")


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
    """Extend the locks of everything that is kept, of the holds that stand and of documents that are never removed.

    ``attempt`` takes one copy of an artifact, one store's log, or its documents at a time, and keeps its failure.
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
    last = max(ends.values(), default=stored.now)
    for name, term in terms.items():
        lock = _Lock(workplace.stores[name], term, stored.now)
        here = [key for key in sorted(kept.log) if name in stored.log_manifests[key]]
        attempt(partial(_extend_log, workplace, stored, lock, here))
        documents = [*_signed_documents(stored, stored.inventories[name]), *_bucket_documents(workplace, stored)]
        attempt(partial(_extend_each, "document", partial(lock.extend_document, last), documents))


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
        lock.extend_artifact(manifest, kept_until(policy, manifest.method, manifest.covers.to_at))
    except StoreError as error:
        facts = {"policy": manifest.policy, "artifact_id": manifest.artifact_id, "store": store_name}
        workplace.catalog.add_event("lock.failed", workplace.clock(), {**facts, "error": error.message})


def _planned_ends(stored: Stored, names: Iterable[str]) -> Mapping[str, datetime]:
    manifests = {name: stored.manifest(name) for name in names}
    if stored.policy.retention is None:
        return dict.fromkeys(manifests, stored.now)
    ends = {name: kept_until(stored.policy, item.method, item.covers.to_at) for name, item in manifests.items()}
    return closed_over(ends, {name: manifest.depends_on for name, manifest in manifests.items()})


@dataclass(frozen=True)
class _Lock:
    """What one store is asked for at one moment."""

    store: Store
    term: LockTerm
    now: datetime

    def extend_artifact(self, manifest: Manifest, end: datetime) -> None:
        """Lock an artifact for longer where its manifest, or one of its objects, says that it is time.

        Whoever may write to the store can lock the manifest alone, so that nobody looks at the data behind it any more.
        Each day has an object whose turn it is, so that all of them are looked at before a lock has run out.
        """
        key = bucket.manifest_key(manifest.policy, manifest.artifact_id)
        objects = [(item.key, recorded_version(self.store, manifest, item)) for item in manifest.objects]
        turn = self.now.toordinal() % max(len(objects), 1)
        due = self.is_due(key, end)
        with suppress(StoreMissing):
            due = due or any(self.is_due(name, end, version_id) for name, version_id in objects[turn : turn + 1])
        if due:
            self.extend(key, objects, end)

    def extend_document(self, end: datetime, document: _Document) -> None:
        """Lock a document after its signature, if it has one; what is missing is for `drkit check` to tell of."""
        key, signature_key = document
        with suppress(StoreMissing):
            if self.is_due(key, end):
                until = self.term.until(end, self.now)
                for name in filter(None, (signature_key, key)):
                    self.store.extend_lock(name, until)

    def is_due(self, key: str, end: datetime, version_id: str | None = None) -> bool:
        """Tell whether an object is to be locked for longer."""
        locked_until = self.store.head(key, version_id=version_id).locked_until
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
    """Extend the locks of one store's log; what has no `recovery_window` has no planned end."""
    from drkit.operations.stored_log import read_trusted_log  # what a backup need not load

    retention, store = stored.policy.retention, lock.store
    window = retention.recovery_window if retention else None
    objects = stored.inventories[store.name].objects
    document: type[SignedLog] = OplogManifest if stored.policy.target.engine == "mongodb" else LogManifest

    def extend(key: str) -> None:
        end = objects[key].modified_at.replace(microsecond=0) + window if window else lock.now
        if lock.is_due(key, end):
            log, _ = read_trusted_log(store, workplace.signers, stored.policy.policy, key, document)
            versions = [(file.key, file.version_id if log.written_to == store.name else None) for file in log.files]
            lock.extend(key, versions, end)

    _extend_each("log manifest", extend, keys)


def _signed_documents(stored: Stored, inventory: StoreInventory) -> Iterator[_Document]:
    """Yield what is believed of a policy's tombstones and records in a store, and the holds that stand."""
    policy = stored.policy.policy
    holds = (bucket.hold_key(policy, hold.hold_id) for hold in stored.holds)
    keys = (
        *(bucket.tombstone_key(policy, grave.artifact_id) for grave in inventory.graves.get(policy, ())),
        *(bucket.log_tombstone_key(policy, grave.tombstone_id) for grave in inventory.log_graves.get(policy, ())),
        *(bucket.evidence_key(policy, str(item.record["run_id"])) for item in inventory.evidence),
        *(key for key in holds if key in inventory.objects),
    )
    return ((key, bucket.signature_key(key)) for key in keys)


def _bucket_documents(workplace: Workplace, stored: Stored) -> Iterator[_Document]:
    """Yield what says of a whole bucket what it is, how to recover from it, and whose keys were used."""
    yield bucket.RECOVERY_KEY, bucket.signature_key(bucket.RECOVERY_KEY)
    manifests = (copies[0].manifest for copies in stored.copies.values())
    used = {recipient.fingerprint for manifest in manifests for recipient in manifest.encryption.recipients}
    for key_id in sorted(used | {signer.key_id for signer in workplace.signers}):
        yield bucket.trust_key(key_id), None
    yield bucket.REPO_KEY, None


def _extend_each(noun: str, extend: Callable[[_Item], None], items: Iterable[_Item]) -> None:
    """Extend several at a time; raise the first failure after all were tried, or the store does not answer."""

    def attempted(item: _Item) -> StoreError | IntegrityError | None:
        try:
            extend(item)
        except StoreUnavailable:
            raise
        except (StoreError, IntegrityError) as error:
            return error
        return None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lock") as pool:
        failures = [error for error in pool.map(attempted, items) if error is not None]
    if failures:
        first, *others = failures
        details = [*first.details, *(error.message for error in others[:_SHOWN])]
        what = format_count(len(failures), f"{noun} was", f"{noun}s were")
        raise type(first)(f"{what} not locked anew: {first.message}", details=details)
