"""Object Lock for as long as an artifact is kept: what was locked when it was written is locked anew in time.

When a lock is made nobody knows how long the rules will want the artifact, and a lock cannot be taken back. So each one
is short, and each prune extends those of what it keeps, once half of their time is over.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from drkit import bucket
from drkit.model import Manifest
from drkit.operations import Workplace
from drkit.operations.artifacts import recorded_version
from drkit.operations.prune_facts import Stored
from drkit.retention_facts import Plan
from drkit.stores import Store
from drkit.stores.opening import LOCK_FOR

_Attempt = Callable[[Callable[[], object]], bool]


def extend_locks(workplace: Workplace, stored: Stored, plan: Plan, attempt: _Attempt) -> None:
    """Extend the locks of everything that the plan keeps, its parents included, in each store that locks.

    What is marked is left to run out. ``attempt`` takes one copy at a time, and keeps its failure.
    """
    for name in (item.name for item in plan.artifacts if item.action == "keep" and not item.is_marked):
        for copy in stored.copies[name]:
            period = _period(workplace, copy.store)
            written_at = stored.inventories[copy.store].objects[_key(copy.manifest)].modified_at
            if period is not None and written_at + period / 2 < stored.now:
                store = workplace.stores[copy.store]
                attempt(partial(_extend, store, copy.manifest, stored.now + period / 2, stored.now + period))


def _extend(store: Store, manifest: Manifest, enough: datetime, until: datetime) -> None:
    """Extend one copy; its manifest comes last, so its lock tells of all the others."""
    key = _key(manifest)
    locked_until = store.head(key).locked_until
    if locked_until is None or locked_until < enough:
        for item in manifest.objects:
            store.extend_lock(item.key, until, version_id=recorded_version(store, manifest, item))
        store.extend_lock(bucket.signature_key(key), until)
        store.extend_lock(key, until)


def _period(workplace: Workplace, store: str) -> timedelta | None:
    """Return how long a store's locks are, None where it makes none."""
    config = workplace.site.stores.get(store)
    return (config.lock_for or LOCK_FOR) if config is not None and config.object_lock else None


def _key(manifest: Manifest) -> str:
    return bucket.manifest_key(manifest.policy, manifest.artifact_id)
