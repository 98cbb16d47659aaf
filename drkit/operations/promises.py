"""What a policy promises against what is there: backups on time, RPO, copies, drills.

The same questions are asked of what the stores hold (`judgement`) and of what the catalog knows (`standing`), so they
look at plain facts, and at no manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from drkit.copy_rule import CopyRule, Proof, StorePlace, Taken, judge_copies
from drkit.model import Finding, Run
from drkit.operations.check import LogSummary
from drkit.operations.expectations import Due, Expectation
from drkit.reading_plan import ReadingFact, ReadingPromise
from drkit.units import format_bytes, format_count, format_duration, format_moment, parse_utc

_CONCLUSIVE = frozenset({"passed", "passed_with_findings", "failed"})
"""The verdicts of drills that judged their artifact; the others say something about the drill itself."""

RAISE_LIMIT = "raise verify.max_bytes_per_day, or full_coverage_within"


class DrillFact(NamedTuple):
    """A drill that came to a conclusion; ``verdict`` is passed or failed."""

    name: str
    verdict: str
    ended_at: datetime


def drill_fact(record: Mapping[str, Any]) -> DrillFact | None:
    """Read what a record says of a drill; None for one without a conclusion, and for other records."""
    if record.get("kind") != "drill" or record.get("verdict") not in _CONCLUSIVE:
        return None
    verdict = str(record["verdict"]).removesuffix("_with_findings")
    return DrillFact(str(record.get("drill")), verdict, parse_utc(record["ended_at"]))


class Missing(NamedTuple):
    """How many artifacts are not in a store, and the first few of them, where somebody looked."""

    artifacts: int
    first: Sequence[str] = ()


@dataclass(frozen=True)
class Standing:
    """Where one policy stands.

    ``known`` counts the artifacts that anybody knows of, also of those that are gone; ``sound`` those that can be
    restored. ``newest`` is the newest moment by method, none of the future. ``missing`` is by store. ``holders`` are
    the stores that have the newest artifact, of ``taken_at``, and all that it builds on. ``verified`` says whether the
    newest verification passed; ``damaged`` are subject and store of copies that were not sound when they were read.
    """

    policy: str
    now: datetime
    expectation: Expectation | None
    known: int
    sound: int
    newest: Mapping[str, datetime]
    last_run: Run | None = None
    log: LogSummary | None = None
    drills: Sequence[DrillFact] = ()
    missing: Mapping[str, Missing] = field(default_factory=dict)
    is_readable: bool = True
    taken_at: datetime | None = None
    holders: Sequence[str] = ()
    verified: bool | None = None
    damaged: Sequence[tuple[str, str]] = ()
    reading: ReadingFact | None = None

    @property
    def restorable_to_at(self) -> datetime | None:
        """Return the newest moment that can be brought back, by an artifact alone or with the log."""
        moments = list(self.newest.values())
        if moments and self.log is not None and self.log.restorable_to_at is not None:
            moments.append(self.log.restorable_to_at)
        return max(moments, default=None)

    def at_risk(self, newest: datetime) -> timedelta:
        """Return how much would be lost now: less than the age of the newest moment, where the log is watched."""
        exposed = self.log.exposed if self.log else None
        return self.now - newest if exposed is None else min(exposed, self.now - newest)

    def last_drill(self, name: str | None = None) -> DrillFact | None:
        """Return the newest drill that came to a conclusion, of that name or of any."""
        found = (drill for drill in self.drills if name in (None, drill.name))
        return max(found, key=lambda drill: drill.ended_at, default=None)


def broken_promises(standing: Standing) -> Iterator[Finding]:
    """Find what is late, lost to too long a gap, not copied, not drilled or not read again, in this order."""
    late = list(_late(standing))
    yield from late
    yield from standing.log.findings if standing.log else ()
    if not late:
        yield from _rpo(standing)
    yield from _missing_copies(standing)
    yield from _drills(standing)
    yield from _readings(standing)


def _late(standing: Standing) -> Iterator[Finding]:
    if standing.expectation is None or not standing.is_readable:
        return
    if not standing.known:
        yield _late_finding(standing, "never backed up")
        return
    running = standing.last_run is not None and standing.last_run.state == "running"
    for due in standing.expectation.backups:
        newest = standing.newest.get(due.what)
        if newest is not None and (newest >= due.since or running):
            continue
        age = f"newest {due.what} {format_duration(standing.now - newest)} old" if newest else f"no {due.what} yet"
        yield _late_finding(standing, f"{age}, due every {format_duration(due.every)}")


def _late_finding(standing: Standing, message: str) -> Finding:
    run = standing.last_run
    if run is not None and run.state not in {"succeeded", "running"}:
        message += f"; last attempt {run.state}" + (f": {run.error}" if run.error else "")
    return Finding("backup-late", standing.policy, message, f"drkit backup {standing.policy}")


def _rpo(standing: Standing) -> Iterator[Finding]:
    newest = standing.restorable_to_at
    rpo = standing.expectation.rpo if standing.expectation else None
    if rpo is None or newest is None or standing.at_risk(newest) <= rpo:
        return
    message = f"RPO {format_duration(standing.at_risk(newest))} of {format_duration(rpo)}"
    dues: Sequence[Due] = standing.expectation.backups if standing.expectation and not standing.log else ()
    slow = [due for due in dues if due.every > rpo]
    if slow:
        message += f": a {slow[0].what} every {format_duration(slow[0].every)} cannot meet it"
    yield Finding("rpo-missed", standing.policy, message, f"drkit backup {standing.policy}")


def _missing_copies(standing: Standing) -> Iterator[Finding]:
    for name, missing in standing.missing.items():
        if not missing.artifacts:
            continue
        more = missing.artifacts - len(missing.first)
        first = ": " + ", ".join(missing.first) + (f" and {more} more" if more else "") if missing.first else ""
        verb = "is" if missing.artifacts == 1 else "are"
        message = f"{format_count(missing.artifacts, 'artifact')} {verb} not in store {name}{first}"
        yield Finding("copy-missing", f"store {name}", message, "drkit store copy")


def _drills(standing: Standing) -> Iterator[Finding]:
    if standing.expectation is None or not standing.sound:
        return
    policy, last = standing.policy, standing.last_drill()
    hint = f"drkit drill {policy}"
    if last is None:
        yield Finding("never-drilled", policy, f"never drilled; {format_count(standing.sound, 'artifact')}", hint)
        return
    if last.verdict == "failed":
        since = format_duration(standing.now - last.ended_at)
        yield Finding("drill-failed", policy, f"last drill failed {since} ago", hint)
        return
    for due in standing.expectation.drills:
        newest = standing.last_drill(due.what)
        if newest is None or newest.ended_at < due.since:
            since = f"{format_duration(standing.now - newest.ended_at)} ago" if newest else "never"
            message = f"drill {due.what} last came to a verdict {since}, due every {format_duration(due.every)}"
            yield Finding("drill-late", policy, message, f"{hint} --name {due.what}")


def _readings(standing: Standing) -> Iterator[Finding]:
    for subject, store in standing.damaged:
        message = f"{subject} in store {store} was not as it was signed when it was read last"
        yield Finding("copy-damaged", subject, message, f"drkit verify {subject}" if "/" not in subject else "")
    promise = standing.expectation.reading if standing.expectation else None
    fact = standing.reading
    if promise is None or fact is None:
        return
    age = standing.now - fact.oldest_at
    if age > promise.within:
        within = format_duration(promise.within)
        message = f"{fact.oldest} was not read for {format_duration(age)}, promised within {within}"
        yield Finding("verify-late", standing.policy, message, f"drkit verify --due {standing.policy}")
    if promise.max_bytes_per_day is not None and fact.largest_bytes > promise.max_bytes_per_day:
        limit = format_bytes(promise.max_bytes_per_day)
        message = f"{fact.largest} has {format_bytes(fact.largest_bytes)} and is never read: more than {limit} in a day"
        yield Finding("verify-limit", standing.policy, message, RAISE_LIMIT)
    elif not (standing.expectation and standing.expectation.shares_limit):
        yield from _beyond_limit(standing.policy, promise, fact.stored_bytes)


def _beyond_limit(subject: str, promise: ReadingPromise, stored_bytes: int) -> Iterator[Finding]:
    """Find a limit for a day that cannot be enough to read ``stored_bytes`` within the promised time."""
    needed_bytes = stored_bytes / (promise.within / timedelta(days=1))
    if promise.max_bytes_per_day is not None and needed_bytes > promise.max_bytes_per_day:
        limit = format_bytes(promise.max_bytes_per_day)
        message = (
            f"to read {format_bytes(stored_bytes)} within {format_duration(promise.within)} takes"
            f" {format_bytes(needed_bytes)} a day, and verify.max_bytes_per_day is {limit}"
        )
        yield Finding("verify-limit", subject, message, RAISE_LIMIT)


def shared_limit(expectations: Iterable[Expectation], facts: Mapping[str, ReadingFact]) -> Iterator[Finding]:
    """Find a limit of the site that cannot be enough for all the policies that share it."""
    sharing = [item for item in expectations if item.shares_limit and item.reading is not None]
    total_bytes = sum(facts[item.policy].stored_bytes for item in sharing if item.policy in facts)
    if sharing and sharing[0].reading is not None:
        yield from _beyond_limit("site", sharing[0].reading, total_bytes)


def copy_rule(standing: Standing) -> CopyRule:
    """Answer the rule 3-2-1-1-0 for a policy's newest artifact."""
    known = {place.store: place for place in (standing.expectation.places if standing.expectation else ())}
    last = standing.last_drill()
    proof = Proof(
        drilled=None if last is None else last.verdict == "passed",
        verified=standing.verified,
        damaged=sorted({store for _, store in standing.damaged}),
    )
    places = [known.get(name, StorePlace(name, name)) for name in standing.holders]
    return judge_copies(places, _taken(standing), proof, standing.now)


def _taken(standing: Standing) -> Taken | None:
    at, expectation = standing.taken_at, standing.expectation
    if at is None:
        return None
    method = next((name for name, newest in standing.newest.items() if newest == at), "")
    known = expectation.kept_until if expectation else None
    # Where no store locks to a planned end, none is looked for: that takes a walk through the schedule.
    is_planned = any(place.term.is_planned for place in (expectation.places if expectation else ()))
    return Taken(at, known(method, at) if known and is_planned else at)


def summarize(standing: Standing) -> str:
    """Say in a line how a policy stands that has no problem."""
    if not standing.is_readable:
        return "no store of it could be read"
    newest = standing.restorable_to_at
    if newest is None:
        return "no artifacts"
    last = standing.last_drill()
    drilled = f"; last drill {last.verdict} {format_duration(standing.now - last.ended_at)} ago" if last else ""
    alone = "" if standing.expectation else "; no policy file"
    rpo = format_duration(standing.at_risk(newest))
    return f"restorable to {format_moment(newest)}, RPO {rpo}{drilled}; copies {copy_rule(standing)}{alone}"
