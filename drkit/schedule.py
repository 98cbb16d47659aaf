"""When something is due: cron expressions and time zones as users write them, and the moments that they mean."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from itertools import islice, takewhile
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
_LONGEST_FOLD = timedelta(days=1)
_LINKS = 8

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

    def next_after(self, moment: datetime) -> datetime:
        """Return the first of `after`; quick for thousands of schedules that share a few expressions."""
        return _chain(self.cron, self.timezone, self.dst).next_after(moment - self.offset) + self.offset

    def between(self, after: datetime, until: datetime) -> list[datetime]:
        """Return the moments after ``after`` and not after ``until``."""
        return list(takewhile(lambda due_at: due_at <= until, self.after(after)))

    def newest(self, after: datetime, until: datetime, most: int) -> list[datetime]:
        """Return the last ``most`` of `between`, in order, without going through all of a long time."""
        moments = takewhile(lambda due_at: due_at > after, self._before(until))
        return list(islice(moments, most))[::-1]

    def _before(self, until: datetime) -> Iterator[datetime]:
        """Yield the moments that are not after ``until``, the newest first."""
        found = (
            self._looked_back(until - self.offset) if self._is_real_time else self._counted_back(until - self.offset)
        )
        for moment in found:
            yield moment + self.offset

    def _looked_back(self, until: datetime) -> Iterator[datetime]:
        end, look = until, _FIRST_LOOK
        while look < _LONGEST_LOOK:
            plain = Recurrence(self.cron, self.timezone, self.dst)
            yield from reversed(plain.between(end - look, end))
            end, look = end - look, look * 4

    def _counted_back(self, until: datetime) -> Iterator[datetime]:
        local = until.astimezone(self._zone)
        # In an hour that comes twice, a clock is yet to show what it has shown before.
        start = local.replace(tzinfo=None, microsecond=0, fold=0) + (_LONGEST_FOLD if local.fold else timedelta())
        last: datetime | None = None
        for label in self._labels(start + _SECOND, reverse=True):
            found = _first_instant(label, self._zone)
            if found is not None and found <= until and (last is None or found < last):
                yield found
                last = found

    def _found(self, moment: datetime) -> Iterator[datetime]:
        """Yield the moments after ``moment``, offset aside, and perhaps some before it, in order."""
        local = moment.astimezone(self._zone)
        if self._is_real_time:
            yield from (found.astimezone(UTC) for found in self._labels(local))
            return
        for label in self._labels(local.replace(tzinfo=None)):
            found = _first_instant(label, self._zone)
            if found is not None:
                yield found

    def _labels(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        minute, hour, *days = self.cron.split()
        if days == ["*", "*", "*"] and minute.isdecimal() and hour.isdecimal():
            return _daily(
                start.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0, fold=0),
                start,
                reverse=reverse,
            )
        from cronsim import CronSim

        return CronSim(self.cron, start, reverse=reverse)

    @property
    def _zone(self) -> tzinfo:
        from zoneinfo import ZoneInfo

        return UTC if self.dst == "utc" or self.timezone == "UTC" else ZoneInfo(self.timezone)

    @property
    def _is_real_time(self) -> bool:
        return self._zone is not UTC and any(field.startswith("*") for field in self.cron.split()[:2])


class _Chain:
    """A few moments of an expression that follow each other: what comes after a moment between them is known."""

    def __init__(self, rule: Recurrence) -> None:
        self._rule = rule
        self._known: tuple[datetime, ...] = ()  # replaced as a whole, so threads need not take turns

    def next_after(self, moment: datetime) -> datetime:
        known = self._known
        if known and known[0] <= moment < known[-1]:
            return known[bisect_right(known, moment)]
        if known and moment >= known[-1]:
            following = next(self._rule.after(known[-1]))
            if moment < following:
                self._known = (*known[-_LINKS:], following)
                return following
        due_at = next(self._rule.after(moment))
        later = known[known.index(due_at) :] if due_at in known else (due_at,)
        self._known = (moment, *later)
        return due_at


@lru_cache(maxsize=8192)
def _chain(cron: str, timezone: str, dst: Dst) -> _Chain:
    return _Chain(Recurrence(cron, timezone, dst))


def _daily(label: datetime, start: datetime, *, reverse: bool) -> Iterator[datetime]:
    """Yield what cronsim does of a time of every day: most schedules are one, and it goes from hour to hour."""
    day = timedelta(days=-1 if reverse else 1)
    if label >= start if reverse else label <= start:
        label += day
    while True:
        yield label
        label += day


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
