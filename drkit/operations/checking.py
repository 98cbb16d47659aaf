"""`drkit check` as one call: read what is there of some policies, and judge it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from drkit.operations import Workplace
from drkit.operations.check import gather
from drkit.operations.expectations import expectations_of
from drkit.operations.judgement import CheckReport, judge
from drkit.operations.log_check import summarize_oplog, summarize_wal
from drkit.operations.promises import shared_limit
from drkit.operations.verify_due import stored_copies
from drkit.policy import Policy
from drkit.reading_plan import ReadingFact, reading_fact


def check_stores(workplace: Workplace, policies: Sequence[Policy], *, everything: bool) -> CheckReport:
    """Judge policies by what their stores hold; with ``everything``, also what no policy speaks of any more."""
    now = workplace.clock()
    stores = dict(workplace.stores)
    if not everything:
        wanted = {name for policy in policies for name in policy.stores}
        stores = {name: store for name, store in stores.items() if name in wanted}
    asked = None if everything else {policy.policy for policy in policies}
    observed = gather(stores, workplace.signers, workplace.catalog, asked)
    logs = {policy.policy: summarize_wal(workplace, policy.policy) for policy in policies if policy.rule("wal")}
    logs |= {policy.policy: summarize_oplog(workplace, policy.policy) for policy in policies if policy.rule("oplog")}
    readings = _readings(workplace, policies)
    expectations = expectations_of(workplace, policies, now)
    report = judge(dataclasses.replace(observed, logs=logs, readings=readings), expectations, now)
    limits = tuple(shared_limit(expectations.values(), readings)) if everything else ()
    return dataclasses.replace(report, stores=(*report.stores, *limits))


def _readings(workplace: Workplace, policies: Sequence[Policy]) -> Mapping[str, ReadingFact]:
    """Sum up when the copies of each policy with a promise were read."""
    facts: dict[str, ReadingFact] = {}
    for policy in policies:
        if policy.verify or workplace.site.verify:
            fact = reading_fact(list(stored_copies(workplace, [policy])))
            if fact is not None:
                facts[policy.policy] = fact
    return facts
