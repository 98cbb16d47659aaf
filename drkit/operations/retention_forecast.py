"""`drkit retention simulate`: the schedules of a policy and the sizes of its newest artifacts, carried on in time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

from drkit.errors import ConfigError
from drkit.operations import Workplace
from drkit.operations.retention_settings import guards_of, rules_of
from drkit.policy import METHODS, Policy
from drkit.retention_simulation import Sample, Series, simulate

DAYS_A_YEAR = 365


@dataclass(frozen=True)
class Forecast:
    """Samples of the end of each day; ``sizes`` are the bytes that were taken for an artifact of each method."""

    samples: tuple[Sample, ...]
    sizes: dict[str, int]


def forecast(workplace: Workplace, policy: Policy, years: int) -> Forecast:
    """Simulate so many years of a policy from now on; raise ConfigError when nothing is scheduled or removed."""
    if policy.retention is None:
        raise ConfigError(f"policy {policy.policy} has no retention, so everything stays")
    scheduled = [rule for rule in policy.backups if rule.schedule is not None]
    if not scheduled:
        raise ConfigError(f"policy {policy.policy} has no schedule to simulate", hints=["drkit policy show NAME"])
    now = workplace.clock()
    sizes: dict[str, int] = {}
    for entry in reversed(workplace.catalog.artifacts(policy.policy)):
        if not entry.manifest.depends_on:
            sizes[entry.manifest.method] = entry.manifest.stored_bytes
    methods = METHODS[policy.target.engine]
    has_log = {methods[rule.method].needs for rule in policy.backups}
    series = []
    for method in dict.fromkeys(rule.method for rule in scheduled):
        runs = [_runs(rule.schedule or "", rule.timezone, now) for rule in scheduled if rule.method == method]
        series.append(Series(method, heapq.merge(*runs), sizes.get(method, 0), replayable=method in has_log))
    guards = guards_of(policy, policy.retention)
    samples = simulate(series, rules_of(policy, policy.retention), guards, now, years * DAYS_A_YEAR)
    return Forecast(tuple(samples), {item.method: item.size_bytes for item in series})


def _runs(schedule: str, timezone: str, now: datetime) -> Iterator[datetime]:
    for moment in CronSim(schedule, now.astimezone(ZoneInfo(timezone))):
        yield moment.astimezone(UTC)
