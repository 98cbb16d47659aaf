"""How long a store locks, and until when a policy is known to keep an artifact: what locks are made and judged by."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from drkit.operations.retention_settings import rules_of, runs_after
from drkit.policy import Policy
from drkit.retention_locks import LockTerm, planned_end
from drkit.stores.opening import LOCK_FOR

if TYPE_CHECKING:
    from drkit.site import StoreConfig


def lock_term(config: StoreConfig | None) -> LockTerm | None:
    """Return how long a store locks, None where it does not."""
    if config is None or config.object_lock is None:
        return None
    least = config.lock_for or LOCK_FOR
    return LockTerm(least, max(config.lock_at_most or least, least))


def kept_until(policy: Policy, method: str, at: datetime) -> datetime:
    """Return until when a policy's retention is known to keep an artifact; its own moment where there is none."""
    if policy.retention is None:
        return at
    coming = runs_after(policy, method, at)
    return planned_end(at, rules_of(policy, policy.retention), policy.retention.minimum, coming)
