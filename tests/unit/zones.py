"""Daily jobs in every time zone: what must hold of their moments, told by looking at clocks only.

``python -m tests.unit.zones`` looks at every day of three years in every zone, which takes minutes; the test looks at
the days around every change of clocks.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from drkit.schedule import Recurrence

FIRST, LAST = date(2025, 1, 1), date(2027, 12, 31)
TIMES = ("00:00", "00:30", "01:30", "02:00", "02:30", "23:59")
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@functools.cache
def zones() -> list[list[str]]:
    """Return every zone of tzdata, those with the same rules together."""
    same: dict[bytes, list[str]] = {}
    tzdata = importlib.resources.files("tzdata")
    for name in tzdata.joinpath("zones").read_text().split():
        same.setdefault(tzdata.joinpath("zoneinfo", *name.split("/")).read_bytes(), []).append(name)
    return list(same.values())


def days_around_changes(zone: ZoneInfo) -> Iterator[tuple[date, date]]:
    """Yield spans of days around each change of clocks; the first days of all besides."""
    day = FIRST
    while day <= LAST:
        here, there = (datetime(d.year, d.month, d.day, tzinfo=UTC).astimezone(zone) for d in (day, day + DAY))
        if here.utcoffset() != there.utcoffset() or day == FIRST + 2 * DAY:
            yield day - DAY, day + 2 * DAY
        day += DAY


def violations(name: str, at: str, first: date, last: date) -> Iterator[str]:
    """Yield what is wrong with a daily job from the first to the last day."""
    zone, (hour, minute) = ZoneInfo(name), map(int, at.split(":"))
    labels = [
        datetime.combine(day, time(hour, minute))
        for day in (first + number * DAY for number in range((last - first).days + 1))
    ]
    start = datetime(first.year, first.month, first.day, tzinfo=UTC) - DAY
    found = Recurrence(f"{minute} {hour} * * *", name).between(start, labels[-1].replace(tzinfo=UTC) + 2 * DAY)
    if any(later <= earlier for earlier, later in itertools.pairwise(found)):
        yield f"{name} {at}: not strictly increasing"
    found = [moment for moment in found if _shown(moment, zone) >= labels[0]]
    inside = [moment for moment in found if _shown(moment, zone) < labels[-1] + HOUR]
    if not len(inside) <= len(labels) <= len(found):
        yield f"{name} {at}: not {len(labels)} moments on as many days"
    for label, moment in zip(labels, found, strict=False):
        if not _is_first(moment, label, zone):
            yield f"{name} {at}: {label} is {moment}"


def _shown(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _is_first(moment: datetime, label: datetime, zone: ZoneInfo) -> bool:
    """Tell whether ``moment`` is the first at which a clock of the zone shows ``label``, or has gone past it."""
    earlier = (MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 24 * HOUR)
    return _shown(moment, zone) >= label and all(_shown(moment - ago, zone) < label for ago in earlier)


def main() -> int:
    """Look at every day of every zone; return the exit status."""
    wrong, looked = 0, 0
    for names in zones():
        for at in TIMES:
            for problem in violations(names[0], at, FIRST, LAST):
                wrong += 1
                sys.stdout.write(problem + "\n")
            looked += ((LAST - FIRST).days + 1) * len(names)
    counts = f"{sum(map(len, zones()))} zones ({len(zones())} different), {looked:,} occurrences, {wrong} wrong"
    sys.stdout.write(counts + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
