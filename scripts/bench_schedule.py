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


def bench_schedule(_scale: int, _repeats: int) -> None:
    """Tick every ten seconds for an hour, spread; then the worst case, every policy due at once."""
    for title, jitter in (("spread over half an hour", timedelta(minutes=30)), ("not spread", timedelta())):
        schedules = _schedules(jitter=jitter)
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.closing(open_catalog(Path(folder) / "catalog.db", create=True)) as catalog,
        ):
            planner = Planner(catalog.occurrences, schedules)
            began_s = time.perf_counter()
            planner.tick(_START)
            first_s = time.perf_counter() - began_s
            ticks_s, written, now = [], 0, _START + timedelta(hours=12, minutes=59, seconds=50)
            planner.tick(now)
            for _ in range(360):
                now += timedelta(seconds=10)
                began_s = time.perf_counter()
                written += len(planner.tick(now))
                ticks_s.append(time.perf_counter() - began_s)
        ordered = sorted(ticks_s)
        print(f"{_POLICIES} policies, {len(schedules)} schedules, {title}: {written} due in an hour of ticks")
        print(f"  first tick  {first_s * 1000:8.1f} ms")
        print(f"  median      {statistics.median(ticks_s) * 1000:8.1f} ms")
        print(f"  95 percent  {ordered[int(len(ordered) * 0.95)] * 1000:8.1f} ms")
        print(f"  slowest     {ordered[-1] * 1000:8.1f} ms")
