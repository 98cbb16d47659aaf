"""Extending locks without a prune: of policies that remove nothing, and where nobody prunes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from drkit.errors import IntegrityError, StoreError
from drkit.operations import Workplace
from drkit.operations.prune import plan_prune
from drkit.operations.prune_facts import take_stock
from drkit.operations.prune_locks import extend_locks, kept_by
from drkit.operations.running import recorded_run
from drkit.policy import Policy

_HINTS = ["drkit check"]


def keep_locked(workplace: Workplace, policy: Policy) -> Mapping[str, int]:
    """Extend the locks of all that a policy keeps, as a recorded run of kind ``lock``; remove and mark nothing.

    Raise the first failure of a store after everything else was done; the next run goes on.
    """
    with recorded_run(workplace.catalog, workplace.clock, "lock", policy.policy) as running:
        if policy.retention is None:
            stored, plan = take_stock(workplace, policy), None
        else:
            stored, plan = plan_prune(workplace, policy)
        kept = kept_by(plan, stored)
        failures: list[StoreError | IntegrityError] = []

        def attempt(step: Callable[[], object]) -> bool:
            try:
                step()
            except (StoreError, IntegrityError) as error:
                failures.append(error)
            return True

        extend_locks(workplace, stored, kept, attempt)
        failures += [
            StoreError(f"store {name} could not be listed, and what it has locked was not locked anew", hints=_HINTS)
            for name in policy.stores
            if name in workplace.site.locking_stores and name not in stored.inventories
        ]
        facts = {"artifacts": len(kept.artifacts), "log_manifests": len(kept.log)}
        running.outcome = dict(facts)
        for failure in failures:
            raise failure
        return facts
