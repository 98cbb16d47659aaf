"""Carrying out a plan: marks, then what was marked long enough ago; each step can be the last before a crash.

Delete order (R2 of docs/format.md): tombstone, time of grace, then per artifact the manifest, its signature, its data.
What builds on others goes before them, so that everything that is visible can be restored at every moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial

from drkit import bucket
from drkit.errors import Busy, DrkitError, IntegrityError, StoreError
from drkit.model import ArtifactEntry, Run, Tombstone
from drkit.operations import Reporter, Workplace
from drkit.operations.holds import HoldChange, decision_stores, place_hold, release_holds
from drkit.operations.orphans import Orphan
from drkit.operations.prune_facts import Stored
from drkit.operations.prune_log import LogPruning
from drkit.operations.reader_lease import HELD_UP_AT_MOST, live_reader
from drkit.operations.running import RunningRun
from drkit.operations.signing_key import load_site_signing_key
from drkit.operations.sparing import copy_decision, erase_all, erase_in_order, locked_until, put_decision
from drkit.operations.store_lease import StoreLease
from drkit.retention import Decision, Plan
from drkit.units import format_bytes, format_moment

_READERS = ("restore", "drill", "verify")
_READ_AT_MOST = timedelta(days=1)
"""One that runs for longer holds up nothing any more: otherwise one that hangs would fill the stores."""

_MOST_RUNS = 1000  # with more of them, what is due is found soon
_SUSPENDED = ("removal is suspended",)


@dataclass
class Done:
    """What was done so far."""

    marked: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    marked_log: list[str] = field(default_factory=list)
    removed_log: list[str] = field(default_factory=list)
    removed_orphans: list[Orphan] = field(default_factory=list)
    removed_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    failures: list[DrkitError] = field(default_factory=list)


class Pruning:
    """One plan that is carried out."""

    def __init__(
        self, workplace: Workplace, stored: Stored, plan: Plan, running: RunningRun, leases: Sequence[StoreLease]
    ) -> None:
        self.workplace = workplace
        self.stored = stored
        self.plan = plan
        self.policy = stored.policy
        self.done = Done()
        self._running = running
        self._leases = leases
        self._signing_key = load_site_signing_key(workplace.site)
        self._spread: dict[str, set[str]] = {}
        self._seen_reader = False

    def carry_out(self, reporter: Reporter) -> None:
        """Do what the plan says, as far as it is due."""
        workplace = self.workplace
        workplace.catalog.holds.remember(self.stored.known_holds)
        if self.stored.obstacles:
            return
        self._spread_decisions()
        for decision in self.plan.artifacts:
            self._mark_or_revive(decision)
        log = LogPruning(self)
        log.mark()
        self._delete(self._due(), reporter)
        log.delete()
        if not self.plan.suspended:
            self._sweep()
            self._sweep_orphans(reporter)
            log.sweep()
        self._remember_marks()

    @property
    def grace(self) -> timedelta:
        """Return how long what is marked can be taken back."""
        assert self.policy.retention is not None
        return self.policy.retention.grace

    def raise_failures(self) -> None:
        """Raise the first failure; the others are its details."""
        failures = self.done.failures
        if failures:
            raise type(failures[0])(
                f"not all of policy {self.policy.policy} was pruned: {failures[0].message}",
                details=[*failures[0].details, *(item.message for item in failures[1:])],
                hints=[*failures[0].hints, f"drkit prune {self.policy.policy}   (goes on)"],
            )

    def attempt(self, step: Callable[[], object]) -> bool:
        """Take a step; keep its failure, so that the others have their turn."""
        try:
            step()
        except (StoreError, IntegrityError) as error:
            self.done.failures.append(error)
            return False
        return True

    def confirm_lease(self) -> None:
        """Make sure, before each deletion, that nobody else prunes by now; raise Busy if so."""
        lease = self.workplace.catalog.lease(self._running.lease.name)
        own = self._running.lease
        if lease is None or (lease.holder, lease.fence) != (own.holder, own.fence):
            raise Busy(f"the lease {own.name} was lost, so nothing more is deleted", hints=["drkit run list"])
        for held in self._leases:
            held.keep()

    def confirm_holds(self) -> None:
        """Make sure, before an artifact is deleted, that no hold was placed meanwhile; raise Busy if one was."""
        prefix = bucket.holds_prefix(self.policy.policy)
        for name, inventory in self.stored.inventories.items():
            known = {key for key in inventory.objects if key.startswith(prefix)} | self._spread.get(name, set())
            if {item.key for item in self.workplace.stores[name].list(prefix)} - known:
                raise Busy(
                    f"a hold was placed on policy {self.policy.policy} meanwhile, so nothing more is deleted",
                    hints=[f"drkit prune {self.policy.policy}"],
                )

    def is_read(self, due_at: datetime) -> bool:
        """Tell whether a run, or a reader's lease in any store, keeps what is due from being deleted; say so once.

        Looked for before each deletion. One that is seen counts until the end of this run; none counts for ever, nor do
        many of them, one after the other.
        """
        if self._overdue_since(due_at) + HELD_UP_AT_MOST <= self.stored.now:
            return False
        if not self._seen_reader:
            running = self._reader()
            if running:
                self._seen_reader = True
                self.done.notes.append(f"what is due is not deleted now: {running}")
                return True
            for name in self.stored.inventories:
                key = live_reader(self.workplace.stores[name], self.policy.policy, self.workplace.clock())
                if key:
                    self._seen_reader = True
                    self._say_read(name, key)
                    break
        return self._seen_reader

    def _overdue_since(self, due_at: datetime) -> datetime:
        """Return when the first prune came that found it due: one that comes once a month waits for readers as well."""
        if len(self._runs) == _MOST_RUNS:
            return due_at
        return min((run.started_at for run in self._runs if run.started_at >= due_at), default=self.stored.now)

    @cached_property
    def _runs(self) -> Sequence[Run]:
        return self.workplace.catalog.runs(policy=self.policy.policy, kind="prune", limit=_MOST_RUNS)

    def _say_read(self, store: str, key: str) -> None:
        days = HELD_UP_AT_MOST.days
        self.done.notes.append(
            f"what is due is not deleted now: the lease {key} in store {store} says that it may be being read;"
            f" that holds up nothing for longer than {days} days"
        )
        facts = {"policy": self.policy.policy, "store": store, "lease": key}
        self.workplace.catalog.add_event("prune.held_up", self.workplace.clock(), facts)

    # Decisions ------------------------------------------------------------------------------------------------------

    def _spread_decisions(self) -> None:
        """Bring every tombstone, hold and release that one store has to the others of the policy."""
        have: dict[str, list[str]] = {}
        for name, inventory in self.stored.inventories.items():
            for key in inventory.decisions(self.policy.policy):
                have.setdefault(key, []).append(name)
        for key, names in sorted(have.items()):
            for name in set(self.policy.stores) - set(names):
                source, target = self.workplace.stores[names[0]], self.workplace.stores[name]
                if self.attempt(partial(copy_decision, source, target, key)):
                    self._note_spread(name, key)

    def _note_spread(self, store: str, key: str) -> None:
        self._spread.setdefault(store, set()).update((key, bucket.signature_key(key)))

    def _mark_or_revive(self, decision: Decision) -> None:
        name = decision.name
        revived = self.stored.held(name, kind="revived")
        if decision.action == "keep" and decision.is_marked and decision.reasons != _SUSPENDED:
            reason = f"wanted again: {decision.reasons[0]}"
            if self.attempt(lambda: self._note_holds(place_hold(self.workplace, self._entry(name), reason, "revived"))):
                self.done.revived.append(name)
        elif decision.action == "remove" and not decision.is_marked:
            entry = self._entry(name)
            if revived:
                marked = self.attempt(lambda: self._note_holds(release_holds(self.workplace, entry, revived)))
            else:
                marked = self.attempt(lambda: self._bury(entry, decision))
            if marked:
                self.done.marked.append(name)

    def _note_holds(self, change: HoldChange) -> None:
        """Take note of documents of our own, which are no hold that somebody placed meanwhile."""
        self.done.failures += change.failures
        for hold in change.holds:
            key = bucket.hold_key(hold.policy, hold.hold_id)
            if hold.released_at is not None:
                key = bucket.release_key(hold.policy, hold.hold_id)
            for name in self.stored.inventories:
                self._note_spread(name, key)

    def _bury(self, entry: ArtifactEntry, decision: Decision) -> None:
        manifest, now = entry.manifest, self.workplace.clock()
        reason = f"retention: {decision.reasons[0]} (plan {self.plan.digest[:16]})"
        stone = Tombstone(
            repo_id=manifest.repo_id,
            policy=manifest.policy,
            artifact_id=manifest.artifact_id,
            manifest_sha256=entry.manifest_sha256,
            seq=manifest.seq,
            parents=manifest.parents,
            reason=reason,
            removed_at=now,
        )
        key = bucket.tombstone_key(manifest.policy, manifest.artifact_id)
        names = decision_stores(self.workplace, manifest.policy, entry.stores)
        self.done.failures += put_decision(self.workplace, names, key, stone, self._signing_key)
        facts = {"policy": manifest.policy, "artifact_id": manifest.artifact_id, "reason": decision.reasons[0]}
        self.workplace.catalog.add_event("artifact.marked", now, facts)

    def _entry(self, artifact_id: str) -> ArtifactEntry:
        copies = self.stored.copies[artifact_id]
        return ArtifactEntry(copies[0].manifest, copies[0].sha256, tuple(copy.store for copy in copies))

    # Deletion -------------------------------------------------------------------------------------------------------

    def _due(self) -> list[Decision]:
        """Return what goes now, what builds on others before them."""
        due = [
            item for item in self.plan.removed if item.delete_after is not None and item.delete_after <= self.stored.now
        ]
        return sorted(due, key=lambda item: len(self.stored.manifest(item.name).depends_on), reverse=True)

    def _reader(self) -> str:
        """Say what reads artifacts of the policy right now (pgmoneta#371 deleted what was being restored)."""
        for run in self.workplace.catalog.runs(policy=self.policy.policy, state="running"):
            if run.kind in _READERS and abs(self.stored.now - run.started_at) < _READ_AT_MOST:
                return f"a {run.kind} runs since {format_moment(run.started_at)}; the next prune deletes them"
        return ""

    def _delete(self, due: Sequence[Decision], reporter: Reporter) -> None:
        stuck: set[str] = set()
        for decision in due:
            name = decision.name
            self.confirm_lease()
            self.confirm_holds()
            spared = name in stuck or self.is_read(decision.delete_after or self.stored.now)
            attempts = [] if spared else [self.attempt(step) for step in self._erasures(name)]
            if not attempts or not all(attempts):
                stuck.update((name, *self.stored.manifest(name).depends_on))
                continue
            manifest = self.stored.manifest(name)
            self.workplace.catalog.forget_artifact(name)
            stores = self.stored.holders(name)
            facts = {"policy": manifest.policy, "artifact_id": name, "stores": stores, "bytes": manifest.stored_bytes}
            self.workplace.catalog.add_event("artifact.removed", self.workplace.clock(), facts)
            self.done.removed.append(name)
            self.done.removed_bytes += manifest.stored_bytes * len(stores)
            reporter.line(f"  removed     {name}  {format_bytes(manifest.stored_bytes)}  {', '.join(stores)}")

    def _erasures(self, artifact_id: str) -> Iterator[Callable[[], None]]:
        """Yield the removal of an artifact from each store that has anything of it."""
        policy = self.policy.policy
        for name in self.stored.inventories:
            if artifact_id in self.stored.folders[name]:
                yield partial(self._erase_folder, name, policy, artifact_id)

    def _erase_folder(self, store_name: str, policy: str, artifact_id: str) -> None:
        store = self.workplace.stores[store_name]
        keys = [item.key for item in store.list(bucket.artifact_prefix(policy, artifact_id))]
        erase_in_order(store, bucket.manifest_key(policy, artifact_id), keys)

    def _sweep(self) -> None:
        """Take away the data of what was buried, where a crash left some behind its manifest."""
        policy = self.policy.policy
        for artifact_id in sorted(self.stored.graves):
            marked_at = self.stored.marked_at(artifact_id)
            left = any(artifact_id in folders for folders in self.stored.folders.values())
            manifest_key = bucket.manifest_key(policy, artifact_id)
            # One that is there and not believed was changed by somebody: that is looked at, not swept away.
            visible = any(manifest_key in inventory.objects for inventory in self.stored.inventories.values())
            due_at = marked_at + self.grace if marked_at is not None else None
            if not visible and due_at is not None and due_at <= self.stored.now:
                if left and self.is_read(due_at):
                    continue
                for step in self._erasures(artifact_id) if left else ():
                    self.confirm_lease()
                    self.attempt(step)
                self.workplace.catalog.forget_artifact(artifact_id)

    def _sweep_orphans(self, reporter: Reporter) -> None:
        """Take away what failed backups left, once it is old enough and nothing locks it."""
        for orphan in self.stored.orphans:
            if orphan.goes_at is not None and orphan.goes_at <= self.stored.now:
                self.confirm_lease()
                self.attempt(partial(self._erase_orphan, orphan, reporter))

    def _erase_orphan(self, orphan: Orphan, reporter: Reporter) -> None:
        store, now = self.workplace.stores[orphan.store], self.workplace.clock()
        there = [item.key for item in store.list(bucket.artifact_prefix(self.policy.policy, orphan.artifact_id))]
        until = locked_until(store, orphan.keys)
        if sorted(there) != list(orphan.keys) or (until is not None and until > self.stored.now):
            return  # somebody has written to it since: it is looked at anew by the next prune
        erase_all(store, orphan.keys)
        facts = {"policy": self.policy.policy, "artifact_id": orphan.artifact_id, "store": orphan.store}
        self.workplace.catalog.add_event("orphan.removed", now, {**facts, "bytes": orphan.size_bytes})
        self.done.removed_orphans.append(orphan)
        self.done.removed_bytes += orphan.size_bytes
        reporter.line(f"  removed     {orphan} without a manifest")

    def _remember_marks(self) -> None:
        leaving = {item.name: item.delete_after for item in self.plan.removed if item.name not in self.done.removed}
        now = self.workplace.clock()
        leaving |= {name: leaving.get(name) or now + self.grace for name in self.done.marked}
        self.workplace.catalog.holds.mark(self.policy.policy, leaving)
