"""How each policy stands by what the catalog knows: on time, copied by the rule 3-2-1-1-0, read again, drilled.

The stores are not asked: what only a look at them can tell (something was taken away or changed, the log) is for
`drkit check` without ``--from-catalog``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from drkit.catalog.overview import PolicyOverview
from drkit.operations import Workplace
from drkit.operations.expectations import Expectation, expectations_of
from drkit.operations.judgement import CheckReport, PolicyVerdict, verdict_of
from drkit.operations.policy_facts import CLOCK_MARGIN
from drkit.operations.promises import DrillFact, Missing, Standing, broken_promises, shared_limit
from drkit.policy import Policy


def judge_catalog(
    known: Mapping[str, PolicyOverview], expectations: Mapping[str, Expectation], now: datetime
) -> CheckReport:
    """Say how each policy stands that is expected, or known to the catalog."""
    verdicts = [
        _verdict(known.get(name, PolicyOverview(name)), expectations.get(name), now)
        for name in sorted({*expectations, *known})
    ]
    facts = {name: overview.reading for name, overview in known.items() if overview.reading is not None}
    return CheckReport(tuple(verdicts), tuple(shared_limit(expectations.values(), facts)))


def read_status(workplace: Workplace, policies: Sequence[Policy], *, everything: bool) -> CheckReport:
    """Ask the catalog how policies stand; with ``everything``, also those that no policy speaks of any more."""
    now = workplace.clock()
    expectations = expectations_of(workplace, policies, now)
    one = policies[0].policy if len(policies) == 1 and not everything else None
    known = workplace.catalog.overview.policies(one, now + CLOCK_MARGIN, workplace.site.stores)
    if not everything:
        known = {name: overview for name, overview in known.items() if name in expectations}
    for name, overview in known.items():
        promise = expectations[name].reading if name in expectations else None
        limit = promise.max_bytes_per_day if promise else None
        if overview.reading is not None and limit is not None and overview.reading.largest_bytes > limit:
            overview.reading = overview.reading._replace(largest=workplace.catalog.overview.largest(name))
    return judge_catalog(known, expectations, now)


def _verdict(overview: PolicyOverview, expectation: Expectation | None, now: datetime) -> PolicyVerdict:
    standing = _standing(overview, expectation, now)
    return verdict_of(standing, list(broken_promises(standing)), overview.artifacts)


def _standing(overview: PolicyOverview, expectation: Expectation | None, now: datetime) -> Standing:
    newest = overview.newest_artifact
    return Standing(
        policy=overview.policy,
        now=now,
        expectation=expectation,
        known=overview.artifacts,
        sound=overview.artifacts,
        newest=overview.newest,
        last_run=overview.last_run,
        drills=[
            DrillFact(drill.name, drill.verdict.removesuffix("_with_findings"), drill.ended_at)
            for drill in overview.drills
        ],
        missing=dict(_missing(overview, expectation)),
        taken_at=newest.taken_at if newest else None,
        holders=newest.stores if newest else (),
        verified=None if overview.verified is None else overview.verified == "passed",
        damaged=overview.damaged,
        reading=overview.reading,
    )


def _missing(overview: PolicyOverview, expectation: Expectation | None) -> Iterator[tuple[str, Missing]]:
    """Count what is not in a store that should have it; of a backup that runs, the copies are on their way."""
    on_its_way = 1 if overview.last_run is not None and overview.last_run.state == "running" else 0
    for name in expectation.stores if expectation else ():
        yield name, Missing(max(overview.artifacts - overview.held.get(name, 0) - on_its_way, 0))
