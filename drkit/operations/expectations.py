"""What a policy lets one expect of the stores at a moment, as plain values that `check` can judge by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit.policy import BackupRule, DrillRule, Policy
from drkit.schedule import Recurrence

_LONGEST = timedelta(days=366 * 30)
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
    """What should be true of one policy."""

    policy: str
    stores: tuple[str, ...]
    rpo: timedelta | None = None
    backups: tuple[Due, ...] = ()
    drills: tuple[Due, ...] = ()


def expectation_of(policy: Policy, now: datetime) -> Expectation:
    """Return what should be true of ``policy`` at ``now``."""
    return Expectation(
        policy=policy.policy,
        stores=policy.stores,
        rpo=policy.objectives.rpo,
        backups=_dues(((rule.method, rule) for rule in policy.backups), now),
        drills=_dues(((rule.name, rule) for rule in policy.drills), now),
    )


def _dues(rules: Iterable[tuple[str, BackupRule | DrillRule]], now: datetime) -> tuple[Due, ...]:
    return tuple(
        due_of(what, Recurrence(rule.schedule, rule.timezone, rule.dst, rule.jitter or timedelta()), now)
        for what, rule in rules
        if rule.schedule is not None
    )


def due_of(what: str, schedule: Recurrence, now: datetime) -> Due:
    """Return the last time that ``schedule`` came round, a grace period ago or longer.

    What it adds to each moment (the whole of a jitter) is patience: a backup taken before that counts as well.
    """
    before, last = schedule.newest(now - _LONGEST, now - GRACE, 2)[-2:]
    return Due(what, last - schedule.offset, last - before)
