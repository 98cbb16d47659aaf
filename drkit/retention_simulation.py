"""What a retention will have kept, day by day, if every scheduled backup is taken: pure, by the real plan."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from drkit.retention import Candidate, Guards, Holdings, Rules, plan_retention

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Series:
    """The backups of one method: when they are taken, in order and without an end, and how large each is."""

    method: str
    taken_at: Iterable[datetime]
    size_bytes: int
    replayable: bool = False


@dataclass(frozen=True)
class Sample:
    """What is stored at a moment, what is marked included; ``window_from`` is from when on every moment comes back.

    ``window_from`` is None where no log is kept.
    """

    at: datetime
    artifacts: int
    size_bytes: int
    marked: int
    oldest_at: datetime
    window_from: datetime | None


def simulate(series: Sequence[Series], rules: Rules, guards: Guards, start_at: datetime, days: int) -> Iterator[Sample]:
    """Yield what is stored at the end of each of so many days, with a prune a day."""
    runs = heapq.merge(*(_runs(number, item) for number, item in enumerate(series)))
    stored: list[Candidate] = []
    upcoming = next(runs, None)
    for day in range(1, days + 1):
        now = start_at + day * _DAY
        while upcoming is not None and upcoming[0] <= now:
            at, number = upcoming
            stored.append(_candidate(series[number], at, len(stored)))
            upcoming = next(runs, None)
        stored = _pruned(stored, rules, guards, now)
        if stored:
            yield _sample(stored, now, rules)


def _runs(number: int, series: Series) -> Iterator[tuple[datetime, int]]:
    for at in series.taken_at:
        yield at, number


def _candidate(series: Series, at: datetime, number: int) -> Candidate:
    span = (int(at.timestamp()), int(at.timestamp())) if series.replayable else None
    name = f"{at:%Y%m%dT%H%M}-{series.method}-{number}"
    return Candidate(name, series.method, at, series.size_bytes, span=span)


def _pruned(stored: list[Candidate], rules: Rules, guards: Guards, now: datetime) -> list[Candidate]:
    plan = plan_retention(Holdings("simulated", stored), rules, guards, now)
    decisions = {item.name: item for item in plan.removed}
    left = []
    for item in stored:
        decision = decisions.get(item.artifact_id)
        if decision is None:
            left.append(item if item.marked_at is None else replace(item, marked_at=None))
        elif decision.delete_after is None or decision.delete_after > now:
            left.append(item if item.marked_at else replace(item, marked_at=now))
    return left


def _sample(stored: Sequence[Candidate], now: datetime, rules: Rules) -> Sample:
    replayable = sorted(item.at for item in stored if item.span is not None)
    window_from = replayable[0] if replayable else None
    if window_from is not None and rules.recovery_window is not None:
        window_from = max((at for at in replayable if at <= now - rules.recovery_window), default=window_from)
    return Sample(
        at=now,
        artifacts=len(stored),
        size_bytes=sum(item.size_bytes for item in stored),
        marked=sum(item.marked_at is not None for item in stored),
        oldest_at=min(item.at for item in stored),
        window_from=window_from,
    )
