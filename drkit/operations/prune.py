"""`drkit prune`: plan from a fresh listing, mark what goes, and delete what was marked long enough ago.

Nothing is deleted in the run that marks it. Each run plans anew from what the stores hold then, so what is deleted is
unwanted by two plans that lie a time of grace apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime

from drkit import bucket
from drkit.errors import ConfigError, StoreError
from drkit.operations import Reporter, Workplace
from drkit.operations.orphans import Orphan
from drkit.operations.prune_facts import Stored, take_stock
from drkit.operations.prune_locks import extend_locks, kept_by
from drkit.operations.prune_reach import lines_of
from drkit.operations.prune_steps import Pruning
from drkit.operations.retention_settings import guards_of, rules_of
from drkit.operations.running import recorded_run
from drkit.operations.sparing import locked_until
from drkit.operations.store_lease import StoreLease, store_lease
from drkit.policy import Policy
from drkit.retention import CLOCK_SKEW, Plan, plan_retention
from drkit.units import format_duration


@dataclass(frozen=True)
class PruneOptions:
    """``dry_run`` writes nothing. ``confirmed`` is the digest (or its beginning) of a plan that somebody agreed to."""

    dry_run: bool = False
    confirmed: str | None = None


@dataclass(frozen=True)
class PruneResult:
    """What a prune decided and did.

    ``blocked`` says why a plan was not carried out. ``marked``, ``removed`` and ``revived`` are artifact ids,
    ``removed_log`` keys of log manifests, ``removed_orphans`` what backups had left that did not finish. ``notes`` are
    for people: what waits, and for what.
    """

    policy: str
    plan: Plan
    stored: Stored
    dry_run: bool
    blocked: str = ""
    marked: Sequence[str] = ()
    removed: Sequence[str] = ()
    revived: Sequence[str] = ()
    marked_log: Sequence[str] = ()
    removed_log: Sequence[str] = ()
    removed_orphans: Sequence[Orphan] = ()
    removed_bytes: int = 0
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def state(self) -> str:
        """Return ``blocked``, ``suspended`` or ``ok``."""
        return "blocked" if self.blocked else "suspended" if self.plan.suspended else "ok"


def prune(workplace: Workplace, policy: Policy, reporter: Reporter, options: PruneOptions | None = None) -> PruneResult:
    """Apply a policy's retention once.

    Raise ConfigError when the policy has none, Busy when another prune of it runs, and StoreError when a store did not
    delete or take what it should, after everything else was done; the next run goes on.
    """
    options = options or PruneOptions()
    if policy.retention is None:
        raise ConfigError(
            f"policy {policy.policy} has no retention, so everything stays", hints=["retention: {last: 3, daily: 14}"]
        )
    if options.dry_run:
        stored, plan = plan_prune(workplace, policy)
        return PruneResult(policy.policy, plan, stored, dry_run=True, blocked=_blocked(plan, options))
    with ExitStack() as stack:
        running = stack.enter_context(recorded_run(workplace.catalog, workplace.clock, "prune", policy.policy))
        leases, unheld = _take_leases(workplace, policy, stack)
        before = _last_state(workplace, policy.policy, running.run_id)
        stored, plan = plan_prune(workplace, policy, [*_clocks_apart(leases), *unheld])
        blocked = _blocked(plan, options)
        pruning = Pruning(workplace, stored, plan, running, leases)
        extend_locks(workplace, stored, kept_by(plan, stored), pruning.attempt)
        if not blocked:
            pruning.carry_out(reporter)
        result = _result(plan, stored, pruning, blocked)
        running.outcome = {
            "state": result.state,
            "plan": plan.digest,
            "marked": len(result.marked),
            "removed": len(result.removed),
            "removed_log": len(result.removed_log),
            "removed_orphans": len(result.removed_orphans),
            "removed_bytes": result.removed_bytes,
        }
        _tell(workplace, result, before)
        pruning.raise_failures()
        return result


def plan_prune(workplace: Workplace, policy: Policy, obstacles: Sequence[str] = ()) -> tuple[Stored, Plan]:
    """Return what is stored of a policy and the plan for it; nothing is written.

    Locks are asked for only where something would go: what is locked stays, and with it what it needs.
    """
    assert policy.retention is not None
    rules, guards = rules_of(policy, policy.retention), guards_of(policy, policy.retention)
    stored = take_stock(workplace, policy, obstacles)
    stored = replace(stored, lines=lines_of(workplace, stored))
    plan = plan_retention(stored.holdings(), rules, guards, stored.now)
    locks = dict(_locks(workplace, stored, plan))
    if locks:
        stored = stored.with_locks(locks)
        plan = plan_retention(stored.holdings(), rules, guards, stored.now)
    return stored, plan


def _blocked(plan: Plan, options: PruneOptions) -> str:
    if options.confirmed is not None:
        if plan.digest.startswith(options.confirmed.lower()):
            return ""
        return f"the plan is another by now: {plan.digest[:16]}, not {options.confirmed[:16]}"
    return plan.excess


def _locks(workplace: Workplace, stored: Stored, plan: Plan) -> Iterator[tuple[str, datetime]]:
    """Yield until when something that would go is locked, in whichever store for the longest."""
    policy = stored.policy.policy
    for decision in plan.removed:
        keys = [item.key for item in stored.manifest(decision.name).objects]
        keys.append(bucket.manifest_key(policy, decision.name))
        yield from _locked(workplace, decision.name, keys, stored.holders(decision.name))
    for decision in plan.removed_log:
        yield from _locked(workplace, decision.name, [decision.name], stored.log_manifests[decision.name])


def _locked(
    workplace: Workplace, name: str, keys: Sequence[str], stores: Sequence[str]
) -> Iterator[tuple[str, datetime]]:
    ends = [locked_until(workplace.stores[store], keys) for store in stores]
    known = [end for end in ends if end is not None]
    if known:
        yield name, max(known)


def _take_leases(workplace: Workplace, policy: Policy, stack: ExitStack) -> tuple[list[StoreLease], list[str]]:
    """Take the lease of this prune in each store that can keep one; return them, and which could not be asked.

    A store may answer again a moment later: without its lease it is an obstacle all the same.
    """
    leases: list[StoreLease] = []
    unheld: list[str] = []
    for name in policy.stores:
        store = workplace.stores[name]
        try:
            if store.traits.compare_and_swap:
                lease = store_lease(store, f"prune-{policy.policy}", workplace.clock)
                leases.append(stack.enter_context(lease))
        except StoreError as error:
            unheld.append(f"the lease of this prune could not be taken in store {name}: {error.message}")
    return leases, unheld


def _clocks_apart(leases: Sequence[StoreLease]) -> Iterator[str]:
    """Say whose clock is another than ours: then no age is right, neither an artifact's nor that of a mark."""
    for lease in leases:
        apart = abs(lease.store_now - lease.taken_at)
        if apart > CLOCK_SKEW:
            yield f"the clocks of this host and of store {lease.store.name} are {format_duration(apart)} apart"


def _result(plan: Plan, stored: Stored, pruning: Pruning, blocked: str) -> PruneResult:
    done = pruning.done
    return PruneResult(
        policy=plan.policy,
        plan=plan,
        stored=stored,
        dry_run=False,
        blocked=blocked,
        marked=done.marked,
        removed=done.removed,
        revived=done.revived,
        marked_log=done.marked_log,
        removed_log=done.removed_log,
        removed_orphans=done.removed_orphans,
        removed_bytes=done.removed_bytes,
        notes=done.notes,
    )


def _last_state(workplace: Workplace, policy: str, run_id: str) -> str:
    """Return the state in which the prune before this one ended, empty for the first."""
    runs = workplace.catalog.runs(policy=policy, kind="prune", state="succeeded", limit=2)
    return next((str((run.outcome or {}).get("state", "")) for run in runs if run.run_id != run_id), "")


def _tell(workplace: Workplace, result: PruneResult, before: str) -> None:
    """Keep as an event when a policy's prune comes into another state."""
    if result.state == before or (result.state == "ok" and not before):
        return
    message = result.blocked or "; ".join(result.plan.suspended) or "artifacts are removed again"
    facts = {"policy": result.policy, "state": result.state, "before": before or None, "message": message}
    workplace.catalog.add_event("prune.state", workplace.clock(), {**facts, "plan": result.plan.digest})
