"""Beginning a new timeline of a policy's oplog: a source that was restored has another history from then on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from drkit.errors import StoreError
from drkit.log_documents import OplogManifest
from drkit.operations import Workplace
from drkit.operations.lanes import make_lanes
from drkit.operations.oplog_log import newest_timeline
from drkit.operations.oplog_ship import OplogChain
from drkit.oplog import OplogTs
from drkit.policy import Policy


def start_timeline(workplace: Workplace, policy: Policy, at_ts: OplogTs, reason: str) -> int:
    """Begin a new timeline at ``at_ts``, the source's newest entry before it is changed; return its number.

    `drkit serve` goes over to it within `slice` of the policy, wherever it runs, and keeps what it read until then as
    the old timeline's. Raise StoreError when a store of the policy does not take it; asking again begins another one,
    which does no harm.
    """
    stores = [workplace.stores[name] for name in policy.stores]
    with tempfile.TemporaryDirectory(prefix="timeline-", dir=workplace.work_folder) as folder:
        chain = OplogChain(workplace, policy, Path(folder), make_lanes(stores), OplogManifest)
        chain.take_up()
        before = newest_timeline(stores[0], workplace.signers, policy.policy)
        chain.write_branch(before + 1, before, at_ts, reason)
        if not chain.deliver({}):
            raise StoreError(f"the new timeline {before + 1} of policy {policy.policy} does not stand in every store")
    facts = {
        "policy": policy.policy,
        "timeline": before,
        "from_ts": str(at_ts),
        "to_ts": str(at_ts),
        "reason": reason,
    }
    workplace.catalog.add_event("oplog.timeline", workplace.clock(), facts)
    return before + 1
