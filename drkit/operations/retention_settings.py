"""A policy's retention as the rules take it: its calendar, its guards, and when its artifacts are to come."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime, timedelta

from drkit.policy import BackupRule, Policy
from drkit.policy_retention import Retention
from drkit.retention import Guards, Rules
from drkit.schedule import Recurrence

_STALE_AT_LEAST = timedelta(days=2)
_STALE_WAITS = 3
_LOOKED_AT = timedelta(days=100)
_LOOKED_AT_RUNS = 3000


def rules_of(policy: Policy, retention: Retention) -> Rules:
    """Return the rules of a policy; periods are those of its own calendar."""
    scheduled = (rule.timezone for rule in policy.backups if rule.schedule is not None)
    return Rules(
        last=retention.last,
        hourly=retention.hourly,
        daily=retention.daily,
        weekly=retention.weekly,
        monthly=retention.monthly,
        yearly=retention.yearly,
        within=retention.within,
        recovery_window=retention.recovery_window,
        timezone=retention.timezone or next(scheduled, "UTC"),
    )


def guards_of(policy: Policy, retention: Retention) -> Guards:
    """Return the guards of a policy; a method goes stale after three of its longest waits, or as the policy says."""
    stale: dict[str, timedelta] = {
        rule.method: retention.stale_after or max(_STALE_WAITS * _longest_wait(rule), _STALE_AT_LEAST)
        for rule in policy.backups
        if rule.schedule is not None or retention.stale_after is not None
    }
    return Guards(
        minimum=retention.minimum,
        failed_keep=retention.failed_keep,
        stale_after=stale,
        max_removed_percent=retention.max_removed_percent,
        grace=retention.grace,
    )


def _longest_wait(rule: BackupRule) -> timedelta:
    """Return the longest time between two runs of a schedule within a quarter: weekends and long months count."""
    from datetime import UTC
    from itertools import islice, pairwise

    from cronsim import CronSim

    assert rule.schedule is not None
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    longest = timedelta()
    for earlier, later in pairwise(islice(CronSim(rule.schedule, begin), _LOOKED_AT_RUNS)):
        longest = max(longest, later - earlier)
        if later - begin > _LOOKED_AT:
            break
    return longest


def runs_after(policy: Policy, method: str, moment: datetime) -> Iterator[datetime]:
    """Yield when artifacts of a method are scheduled after a moment, in order; nothing where they come by hand."""
    rules = [rule for rule in policy.backups if rule.method == method and rule.schedule is not None]
    return heapq.merge(*(Recurrence(rule.schedule or "", rule.timezone, rule.dst).after(moment) for rule in rules))
