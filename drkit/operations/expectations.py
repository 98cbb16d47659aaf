"""What a policy lets one expect of the stores at a moment, as plain values that `check` can judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from drkit.copy_rule import StorePlace
from drkit.operations import Workplace
from drkit.operations.lock_terms import kept_until, lock_term
from drkit.policy import BackupRule, DrillRule, Policy
from drkit.reading_plan import ReadingPromise
from drkit.schedule import Recurrence
from drkit.site import Site, StoreConfig

_LONGEST = timedelta(days=366 * 30)
_REMEMBERED = 8192
GRACE = timedelta(hours=1)
"""How long a scheduled run may take before it is missed."""


@dataclass(frozen=True)
class Due:
    """What a schedule wants done: it should have happened at or after ``since``, and happens ``every`` so often."""

    what: str
    since: datetime
    every: timedelta


@dataclass(frozen=True)
class Expectation:
    """What should be true of one policy.

    ``places`` are its stores, as far as the site is known. ``reading`` is the promise to read everything again; with
    ``shares_limit`` its limit for a day is the site's, for several policies together. ``kept_until`` tells of a method
    and a moment until when the retention is known to keep an artifact. ``is_pruned`` says that the policy has one.
    """

    policy: str
    stores: tuple[str, ...]
    rpo: timedelta | None = None
    backups: tuple[Due, ...] = ()
    drills: tuple[Due, ...] = ()
    places: tuple[StorePlace, ...] = ()
    reading: ReadingPromise | None = None
    shares_limit: bool = False
    is_pruned: bool = False
    kept_until: Callable[[str, datetime], datetime] | None = field(default=None, compare=False)


def expectation_of(
    policy: Policy, now: datetime, site: Site | None = None, extended_at: datetime | None = None
) -> Expectation:
    """Return what should be true of ``policy`` at ``now``.

    ``site`` says what its stores count for, and what is promised where the policy does not say it; ``extended_at`` is
    when the policy's locks were last extended.
    """
    places = [store_place(name, site.stores[name]) for name in policy.stores] if site else []
    rule = policy.verify or (site.verify if site else None)
    return Expectation(
        policy=policy.policy,
        stores=policy.stores,
        rpo=policy.objectives.rpo,
        backups=_dues(((rule.method, rule) for rule in policy.backups), now),
        drills=_dues(((rule.name, rule) for rule in policy.drills), now),
        places=tuple(replace(place, extended_at=extended_at) for place in places),
        reading=rule.promise if rule else None,
        shares_limit=rule is not None and policy.verify is None,
        is_pruned=policy.retention is not None,
        kept_until=partial(kept_until, policy),
    )


def expectations_of(workplace: Workplace, policies: Iterable[Policy], now: datetime) -> dict[str, Expectation]:
    """Return by name what should be true of some policies; the catalog says when their locks were last extended.

    Raise CatalogError.
    """
    site = workplace.site
    locked = workplace.catalog.overview.last_successes("lock") if site.locking_stores else {}
    return {policy.policy: expectation_of(policy, now, site, locked.get(policy.policy)) for policy in policies}


def store_place(name: str, config: StoreConfig) -> StorePlace:
    """Return what a store counts for in the rule 3-2-1-1-0, by what the site says of it and by its address."""
    at_aws = config.url.startswith("s3:") and config.endpoint is None
    if config.url.startswith("s3:"):
        default = f"aws {config.region}" if at_aws else str(config.endpoint).partition("://")[2].partition("/")[0]
    else:
        default = "this host"
    place = StorePlace(
        store=name,
        failure_domain=config.failure_domain or default,
        offsite=at_aws if config.offsite is None else config.offsite,
    )
    term = lock_term(config)
    return replace(place, lock=config.object_lock or "", term=term) if term else place


def _dues(rules: Iterable[tuple[str, BackupRule | DrillRule]], now: datetime) -> tuple[Due, ...]:
    return tuple(due_of(what, recurrence, now) for what, rule in rules if (recurrence := recurrence_of(rule)))


def recurrence_of(rule: BackupRule | DrillRule) -> Recurrence | None:
    """Return when a rule wants something done, patience with its jitter included; None when it has no schedule."""
    if rule.schedule is None:
        return None
    return Recurrence(rule.schedule, rule.timezone, rule.dst, rule.jitter or timedelta())


def interval_of(schedule: Recurrence, now: datetime) -> timedelta:
    """Return how far apart the last two moments of a schedule are."""
    before, last = _newest_two(schedule, now)
    return last - before


def due_of(what: str, schedule: Recurrence, now: datetime) -> Due:
    """Return the last time that ``schedule`` came round, a grace period ago or longer.

    What it adds to each moment (the whole of a jitter) is patience: a backup taken before that counts as well.
    """
    before, last = _newest_two(schedule, now)
    return Due(what, last - schedule.offset, last - before)


_standing: dict[Recurrence, tuple[datetime, datetime, datetime]] = {}


def _newest_two(schedule: Recurrence, now: datetime) -> tuple[datetime, datetime]:
    """Return the last two moments of a schedule; they are looked for again when its next has come.

    Thousands of policies share a few hundred schedules, and are asked of several times a minute.
    """
    until = now - GRACE
    known = _standing.get(schedule)
    if known is None or not known[1] <= until < known[2]:
        before, last = schedule.newest(now - _LONGEST, until, 2)[-2:]
        if len(_standing) >= _REMEMBERED:
            _standing.clear()
        _standing[schedule] = known = before, last, schedule.next_after(until)
    return known[0], known[1]
