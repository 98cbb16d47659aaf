"""Durations, sizes and moments: how users write them, and how drkit prints them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

MIB = 1 << 20
CHUNK_BYTES = MIB

_DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d|w)")
_DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_SIZE_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_OFFSET = re.compile(r"[+-]\d\d:?\d\d$|Z$")


def parse_duration(text: str) -> timedelta:
    """Read ``90s``, ``15m``, ``2h``, ``14d``, ``1h 30m``; raise ValueError with the accepted forms otherwise."""
    compact = text.strip()
    position, seconds = 0, 0.0
    for match in _DURATION.finditer(compact):
        if compact[position : match.start()].strip():
            break
        seconds += int(match[1]) * _DURATION_UNITS[match[2]]
        position = match.end()
    if not compact or compact[position:].strip():
        raise ValueError(f'"{text}" is not a duration; write it like 30s, 15m, 2h, 14d or 1h 30m')
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Write a duration as a person says it: ``0.4 s``, ``12 s``, ``0:01:52`` up to a day, then ``13 d 4 h``.

    A negative one is ``0.0 s``: nothing is younger than now, clocks differ. Whoever compares clocks says so by name.
    """
    seconds = max(duration.total_seconds(), 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 86400:
        whole = round(seconds)
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    days, rest = divmod(seconds, 86400)
    hours = int(rest // 3600)
    return f"{int(days)} d {hours} h" if hours and days < 14 else f"{int(days)} d"


def say_slow_clock(behind: timedelta) -> str:
    """Say that RPO cannot be right: the newest change is dated ``behind`` after now."""
    return (
        f"this host's clock is {format_duration(behind)} or more behind the database server's, so RPO is taken as"
        " nothing: timedatectl shows whether ours is kept right"
    )


def parse_size(text: str) -> int:
    """Read ``512``, ``16MB``, ``1.5 GiB`` as bytes; ``k`` to ``t`` are powers of 1000, with ``i`` of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'"{text}" is not a size; write it like 512, 16MB or 1.5GiB')
    unit = match[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match[1]) * base ** _SIZE_POWERS[unit.rstrip("i")])


def format_bytes(size_bytes: float) -> str:
    """Write a size with three significant figures in powers of 1000: ``999 B``, ``1.23 kB``, ``412 MB``."""
    if size_bytes < 1000:
        return f"{int(size_bytes)} B"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.5 or unit == "PB":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Write ``1 table`` and ``12,003 tables``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_moment(moment: datetime) -> str:
    """Write a moment for people: local time to the second with its numeric offset."""
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def format_utc(moment: datetime) -> str:
    """Write a moment for documents: UTC with microseconds, ``2026-11-22T01:00:03.000000+00:00``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def parse_utc(text: str) -> datetime:
    """Read what `format_utc` wrote; raise ValueError when there is no offset."""
    return parse_moment(text)


def parse_moment(text: str) -> datetime:
    """Read ISO 8601 with a numeric offset (or Z) as an aware UTC moment.

    A bare time and a named zone are refused with ValueError: which zone was meant is a guess, and a wrong guess
    restores the wrong hour (EnterpriseDB/barman#881).
    """
    cleaned = text.strip()
    try:
        moment = datetime.fromisoformat(cleaned)
    except ValueError:
        raise ValueError(f'"{text}" is not a moment; write it like 2026-11-22T13:58:00+01:00') from None
    if moment.tzinfo is None or not _OFFSET.search(cleaned):
        raise ValueError(f'"{text}" has no numeric offset; write it like 2026-11-22T13:58:00+01:00')
    return moment.astimezone(UTC)


@dataclass(frozen=True)
class When:
    """A recovery target as the user gave it; exactly the field that ``kind`` names is meaningful."""

    kind: Literal["latest", "time", "lsn", "name", "xid", "immediate"]
    moment: datetime | None = None
    text: str = ""


def parse_when(text: str) -> When:
    """Read WHEN: ``latest``, ``immediate``, a moment with a numeric offset, ``lsn:…``, ``name:…`` or ``xid:…``."""
    cleaned = text.strip()
    if cleaned == "latest":
        return When("latest")
    if cleaned == "immediate":
        return When("immediate")
    kind, colon, value = cleaned.partition(":")
    if colon and value:
        if kind == "lsn":
            return When("lsn", text=value)
        if kind == "name":
            return When("name", text=value)
        if kind == "xid":
            return When("xid", text=value)
    return When("time", moment=parse_moment(cleaned), text=cleaned)
