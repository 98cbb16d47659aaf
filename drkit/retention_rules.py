"""What a policy's rules want to keep of a series of artifacts: pure, by local calendar periods.

Only periods that have an artifact are counted, as in restic: a rule never takes away because time passes, only because
something newer came. ``within`` and ``recovery_window`` count from the newest artifact where that is older than now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo


class Dated(Protocol):
    """Something that was taken at a moment."""

    @property
    def artifact_id(self) -> str:
        """Return its id."""

    @property
    def at(self) -> datetime:
        """Return the moment that it brings back."""


@dataclass(frozen=True)
class Rules:
    """What to keep, as `drkit.policy_retention.Retention` words it; ``timezone`` is of the calendar's periods."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None
    recovery_window: timedelta | None = None
    timezone: str = "UTC"


Period = tuple[int, ...]

_PERIODS: tuple[tuple[str, str, Callable[[datetime], Period]], ...] = (
    ("hourly", "{}-{:02}-{:02} {:02}h", lambda moment: (moment.year, moment.month, moment.day, moment.hour)),
    ("daily", "{}-{:02}-{:02}", lambda moment: (moment.year, moment.month, moment.day)),
    ("weekly", "{}-W{:02}", lambda moment: moment.isocalendar()[:2]),
    ("monthly", "{}-{:02}", lambda moment: (moment.year, moment.month)),
    ("yearly", "{}", lambda moment: (moment.year,)),
)


def wanted(series: Sequence[Dated], rules: Rules, newest_at: datetime) -> Iterator[tuple[str, str]]:
    """Yield (artifact id, reason) for everything that a rule wants of ``series``, which is sorted newest first.

    ``newest_at`` is the moment of the newest, or now where that is earlier. In an hour that comes
    twice (the end of summer time) two artifacts share a period, and the newer one is kept.
    """
    for place, item in enumerate(series[: rules.last], start=1):
        yield item.artifact_id, f"last {place} of {rules.last}"
    zone = ZoneInfo(rules.timezone)
    local = [(item, item.at.astimezone(zone)) for item in series]
    for name, words, period_of in _PERIODS:
        for artifact_id, period in _newest_of_each(local, getattr(rules, name), period_of):
            yield artifact_id, f"{name} {words.format(*period)}"
    if rules.within is not None:
        since = newest_at - rules.within
        for item in series:
            if item.at >= since:
                yield item.artifact_id, "within the time that keeps all"
    if rules.recovery_window is not None:
        for item in in_window(series, newest_at - rules.recovery_window):
            yield item.artifact_id, "recovery window"


def in_window(series: Sequence[Dated], since: datetime) -> Iterator[Dated]:
    """Yield everything after ``since``, and the newest that is not: without it the window's first moments are lost.

    https://github.com/EnterpriseDB/barman/issues/274 is about users who took that one for a mistake.
    """
    for item in series:
        yield item
        if item.at <= since:
            return


def _newest_of_each(
    series: Sequence[tuple[Dated, datetime]], count: int, period_of: Callable[[datetime], Period]
) -> Iterator[tuple[str, Period]]:
    seen: set[Period] = set()
    for item, moment in series:
        if len(seen) == count:
            return
        period = period_of(moment)
        if period not in seen:
            seen.add(period)
            yield item.artifact_id, period
