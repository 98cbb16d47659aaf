"""How long the scheduler's tick takes with thousands of policies; prints milliseconds, asserts nothing."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from drkit.catalog.sqlite import open_catalog
from drkit.occurrences import Schedule
from drkit.schedule import Recurrence, spread
from drkit.scheduler import Planner

_POLICIES = 5000
_START = datetime(2026, 11, 22, 12, tzinfo=UTC)
_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Sydney")


def _schedules(*, jitter: timedelta) -> list[Schedule]:
    """Return three schedules for each policy: a nightly dump, a weekly drill, hourly copies."""
    found = []
    for number in range(_POLICIES):
        zone = _ZONES[number % len(_ZONES)]
        for kind, cron, within in (
            ("backup", "0 2 * * *", jitter),
            ("drill", "0 6 * * sat", jitter),
            ("copy", "15 * * * *", timedelta(hours=1)),
        ):
            name = f"{kind}/p{number}"
            rule = Recurrence(cron, zone, offset=spread(name, within))
            found.append(Schedule(name, kind, f"p{number}", "", rule))
    return found


def _tick(planner: Planner, now: datetime) -> tuple[list[float], int]:
    """Tick until nothing is left that is due; return how long each tick took, and how many rows were written."""
    ticks_s, written = [], 0
    while not ticks_s or planner.is_behind:
        began_s = time.perf_counter()
        written += len(planner.tick(now))
        ticks_s.append(time.perf_counter() - began_s)
    return ticks_s, written


def bench_schedule(_scale: int, _repeats: int) -> None:
    """Begin, catch up with twelve hours, then tick every ten seconds for an hour: spread, and with all due at once."""
    for title, jitter in (("spread over half an hour", timedelta(minutes=30)), ("not spread", timedelta())):
        schedules = _schedules(jitter=jitter)
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.closing(open_catalog(Path(folder) / "catalog.db", create=True)) as catalog,
        ):
            planner = Planner(catalog.occurrences, schedules)
            print(f"{_POLICIES} policies, {len(schedules)} schedules, {title}")
            _say("begin", *_tick(planner, _START))
            now = _START + timedelta(hours=12, minutes=59, seconds=50)
            _say("after twelve hours", *_tick(planner, now))
            hour_s, written = [], 0
            for _ in range(360):
                now += timedelta(seconds=10)
                ticks_s, rows = _tick(planner, now)
                hour_s, written = hour_s + ticks_s, written + rows
            _say("an hour", hour_s, written)


def _say(what: str, ticks_s: list[float], written: int) -> None:
    ordered = [seconds * 1000 for seconds in sorted(ticks_s)]
    print(
        f"  {what:<20} {written:6,} rows in {len(ordered):4} ticks, {sum(ordered) / 1000:6.2f} s;"
        f" median {statistics.median(ordered):6.1f} ms, 95 percent {ordered[int(len(ordered) * 0.95)]:6.1f},"
        f" slowest {ordered[-1]:6.1f}   promised under 100",
        flush=True,
    )
