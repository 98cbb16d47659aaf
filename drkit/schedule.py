"""When something is due: cron expressions and time zones as users write them."""

from __future__ import annotations

import re
from functools import cache

_FIELDS = (
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    ("day of the week", 0, 7, "SUN MON TUE WED THU FRI SAT"),
)
_MAX_CHARS = 200
_EXAMPLE = 'write it like "0 2 * * *" (minute, hour, day of the month, month, day of the week)'


def check_cron(text: str) -> str:
    """Return ``text`` when it is a cron expression of five fields; raise ValueError saying which field is wrong.

    cronsim decides (Debian's cron, with ``L`` and ``#`` besides); this only finds the words for its verdict.
    """
    from datetime import UTC, datetime

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
