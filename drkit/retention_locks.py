"""Until when objects are to be locked: as long as the retention is known to keep them, up to a store's most. Pure.

A lock cannot be taken back. So only that counts which no later backup can change, if they come as scheduled: what is
kept for longer after all is locked for longer in time, and what goes earlier is deferred until its lock has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from drkit.retention_rules import Rules

_NEVER = datetime(9999, 12, 31, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_MOST_HOURS = 10**8  # more than there are


@dataclass(frozen=True)
class LockTerm:
    """How long a store locks: always ``least`` from when it is asked, and to a planned end at ``most`` from then."""

    least: timedelta
    most: timedelta

    @property
    def is_planned(self) -> bool:
        """Tell whether a planned end makes a difference."""
        return self.most > self.least

    def until(self, planned_end: datetime, now: datetime) -> datetime:
        """Return until when something is locked now."""
        return max(now + self.least, min(planned_end, _later(now, self.most)))

    def enough(self, planned_end: datetime, now: datetime) -> datetime:
        """Return how long a lock must last not to be extended now: one look in half of ``least`` finds each in time."""
        return max(now + self.least / 2, min(planned_end, _later(now, self.most / 2)))

    def known_until(self, planned_end: datetime, locked_at: datetime, extended_at: datetime | None) -> datetime:
        """Return until when something is locked at the least that was locked once, and that a later look found kept."""
        at_first = self.until(planned_end, locked_at)
        return at_first if extended_at is None else max(at_first, self.enough(planned_end, extended_at))


def planned_end(at: datetime, rules: Rules, minimum: int, coming: Iterator[datetime]) -> datetime:
    """Return until when the rules are known to keep an artifact of the moment ``at``, in whole seconds.

    ``coming`` are the moments after ``at`` for which artifacts of its method are scheduled; without any, nothing is
    known of the rules that count. An artifact is the newest of its day when the next one is due on another, and stays
    at least until so many newer days can have begun: fewer artifacts than scheduled only make it stay longer.
    """
    ends = [at, *(_later(at, period) for period in (rules.within, rules.recovery_window) if period is not None)]
    upcoming = list(islice(coming, max(rules.last, minimum, 1)))
    if upcoming:
        ends.append(upcoming[-1])
        zone = ZoneInfo(rules.timezone)
        local, following = at.astimezone(zone), upcoming[0].astimezone(zone)
        for count, begin in _counted(rules):
            if count and begin(following, 0) > begin(local, 0):
                ends.append(begin(local, count))
    return max(ends).astimezone(UTC).replace(microsecond=0)


def closed_over(ends: Mapping[str, datetime], depends_on: Mapping[str, Sequence[str]]) -> dict[str, datetime]:
    """Return the same ends, but none earlier than that of what builds on it."""
    closed = dict(ends)
    for child in sorted(ends, key=lambda name: len(depends_on.get(name, ())), reverse=True):
        for parent in depends_on.get(child, ()):
            if parent in closed:
                closed[parent] = max(closed[parent], closed[child])
    return closed


_Begin = Callable[[datetime, int], datetime]


def _counted(rules: Rules) -> Iterable[tuple[int, _Begin]]:
    """Yield how many periods each rule counts, and where the one so many after that of a local moment begins."""
    yield rules.hourly, _hour
    yield rules.daily, _day
    yield rules.weekly, lambda local, count: _day(local, 7 * count - local.weekday())
    yield rules.monthly, lambda local, count: _month(local, local.month - 1 + count)
    yield rules.yearly, lambda local, count: _month(local, 12 * count)


def _hour(local: datetime, count: int) -> datetime:
    """Return it for hours; one that comes twice, at the end of summer time, is one period, as the rules have it."""
    begin = local.replace(minute=0, second=0, microsecond=0, fold=0)
    return _later(begin.astimezone(UTC), min(count, _MOST_HOURS) * _HOUR)


def _day(local: datetime, count: int) -> datetime:
    try:
        return _midnight(local.date() + timedelta(days=count), local)
    except OverflowError:
        return _NEVER


def _month(local: datetime, months: int) -> datetime:
    """Return the beginning of the month that lies so many after January of a moment's year."""
    years, month = divmod(months, 12)
    return _midnight(date(local.year + years, month + 1, 1), local) if local.year + years < _NEVER.year else _NEVER


def _midnight(day: date, local: datetime) -> datetime:
    return datetime.combine(day, time.min, local.tzinfo).astimezone(UTC)


def _later(moment: datetime, period: timedelta) -> datetime:
    try:
        return moment + period
    except OverflowError:
        return _NEVER
