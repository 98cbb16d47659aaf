"""When something is due: cron expressions and time zones as users write them, and the moments that they mean."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from itertools import takewhile
from typing import Literal

_FIELDS = (
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    ("day of the week", 0, 7, "SUN MON TUE WED THU FRI SAT"),
)
_MAX_CHARS = 200
_SECOND = timedelta(seconds=1)
_FIRST_LOOK = timedelta(hours=6)
_LONGEST_LOOK = timedelta(days=366 * 50)

Dst = Literal["wall", "utc"]
_EXAMPLE = 'write it like "0 2 * * *" (minute, hour, day of the month, month, day of the week)'


@dataclass(frozen=True)
class Recurrence:
    """The moments that a cron expression means, in UTC and strictly increasing.

    With ``dst`` wall, times of day are those of ``timezone``: one that does not exist, because clocks are put forward,
    is the first moment after the gap; one that comes twice is meant the first time; a day that does not exist has none.
    An expression whose minute or hour begins with ``*`` counts real time through both changes, as Debian's cron does.
    With ``dst`` utc, the times are UTC, and the zone is only for reading. ``offset`` is added to each moment.
    """

    cron: str
    timezone: str = "UTC"
    dst: Dst = "wall"
    offset: timedelta = timedelta()

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the moments after ``moment``, without end."""
        last = moment
        for found in self._found(moment - self.offset):
            due_at = found + self.offset
            if due_at > last:
                yield due_at
                last = due_at

    def between(self, after: datetime, until: datetime) -> list[datetime]:
        """Return the moments after ``after`` and not after ``until``."""
        return list(takewhile(lambda due_at: due_at <= until, self.after(after)))

    def newest(self, after: datetime, until: datetime, most: int) -> list[datetime]:
        """Return the last ``most`` of `between`, or a few more, without going through all of a long time."""
        look = _FIRST_LOOK
        while True:
            start = max(after, until - look)
            found = self.between(start, until)
            if len(found) >= most or start == after or look > _LONGEST_LOOK:
                return found
            look *= 4

    def _found(self, moment: datetime) -> Iterator[datetime]:
        from zoneinfo import ZoneInfo

        from cronsim import CronSim

        minute, hour, *_ = self.cron.split()
        if self.dst == "utc" or self.timezone == "UTC":
            yield from CronSim(self.cron, moment.astimezone(UTC))
            return
        zone = ZoneInfo(self.timezone)
        local = moment.astimezone(zone)
        if minute.startswith("*") or hour.startswith("*"):
            yield from (found.astimezone(UTC) for found in CronSim(self.cron, local))
            return
        for label in CronSim(self.cron, local.replace(tzinfo=None)):
            found = _first_instant(label, zone)
            if found is not None:
                yield found


def _first_instant(label: datetime, zone: tzinfo) -> datetime | None:
    """Return when a clock of ``zone`` first shows ``label`` or skips it; None when that whole day is skipped."""
    instant = label.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None, fold=0) == label:
        return instant
    # PEP 495: of a time in a gap, fold 1 gives a moment before the change and fold 0 one not before it.
    before, after = label.replace(tzinfo=zone, fold=1).astimezone(UTC), instant
    if after - before >= timedelta(days=1):
        return None
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


def spread(name: str, within: timedelta | None) -> timedelta:
    """Return a whole number of seconds from 0 up to ``within``, always the same for ``name``, evenly over names."""
    if within is None or within < _SECOND:
        return timedelta()
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return timedelta(seconds=digest % int(within.total_seconds()))


@lru_cache(maxsize=8192)
def check_cron(text: str) -> str:
    """Return ``text`` when it is a cron expression of five fields; raise ValueError saying which field is wrong.

    cronsim decides (Debian's cron, with ``L`` and ``#`` besides); this only finds the words for its verdict.
    """
    from cronsim import CronSim, CronSimError

    if len(text) > _MAX_CHARS:
        raise ValueError(f"{len(text)} characters are no cron expression; {_EXAMPLE}")
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f'"{text}" is not a cron expression: it has {_counted(len(fields))}, not 5; {_EXAMPLE}')
    try:
        next(CronSim(text, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError:
        raise ValueError(f'"{text}" is not a cron expression: {_reason(fields)}') from None
    except StopIteration:
        raise ValueError(f'"{text}" never comes: no such day is in any year') from None
    return text


def check_timezone(name: str) -> str:
    """Return ``name`` when it is a zone of the tz database; raise ValueError with the nearest zone otherwise."""
    from zoneinfo import ZoneInfo

    from drkit.words import nearest

    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        zones = _zone_names()
        by_city = {zone.rpartition("/")[2].casefold(): zone for zone in reversed(zones)}
        guess = nearest(name, zones) or by_city.get(nearest(name.casefold(), list(by_city)) or "")
        suggestion = f'; did you mean "{guess}"?' if guess else '; write it like "Europe/Berlin" or "UTC"'
        raise ValueError(f'"{name}" is not a time zone{suggestion}') from None
    return name


@cache
def _zone_names() -> list[str]:
    from zoneinfo import available_timezones

    return sorted(available_timezones())


def _counted(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _reason(fields: list[str]) -> str:
    for text, (noun, low, high, names) in zip(fields, _FIELDS, strict=True):
        for term in text.upper().split(","):
            reason = _term_reason(term, noun, low, high, names.split())
            if reason:
                return reason
    return "no month has that day"


def _term_reason(term: str, noun: str, low: int, high: int, names: list[str]) -> str | None:
    span, _, step = term.partition("/")
    if "/" in term and (not step.isdecimal() or int(step[:9]) == 0):
        return f'{noun} step "{step.lower()}" is not a number from 1'
    # L, LW (day of the month), 5L and 5#2 (day of the week) are cronsim's and need no explanation here.
    if span == "*" or (noun == "day of the month" and span in {"L", "LW"}):
        return None
    if noun == "day of the week":
        span = re.sub(r"L$|#[1-5]$", "", span)
    values = []
    for word in span.split("-") if "-" in span else [span]:
        if word in names:
            values.append(names.index(word) + low)
        elif not word.isdecimal():
            return f'{noun} "{word.lower()}" is not a number' + (
                f" or one of {' '.join(names).lower()}" if names else ""
            )
        elif not low <= int(word[:9]) <= high:
            return f"{noun} {word} is not within {low}-{high}"
        else:
            values.append(int(word))
    if len(values) > 2 or (len(values) == 2 and values[1] < values[0]):
        return f"{noun} range {span.lower()} runs backwards"
    return None
