"""How much processor time the plans of a day take: of thousands of policies, and of one that holds very many."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from drkit.retention import Candidate, Guards, Holdings, LogPiece, Rules, plan_retention

_NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
_RULES = Rules(
    last=3,
    daily=14,
    weekly=8,
    monthly=12,
    yearly=7,
    recovery_window=timedelta(days=14),
    timezone="Europe/Berlin",
)
_POLICIES, _EACH = 5_000, 100


def bench_retention(_scale: int, _repeats: int) -> None:
    """Plan 5,000 policies with 500,000 artifacts, and a single one with ever more artifacts and log."""
    began_s = time.process_time()
    kept = sum(len(_plan(_EACH, pieces=0)) for _ in range(_POLICIES))
    seconds = time.process_time() - began_s
    print(
        f"  {_POLICIES:,} policies, {_POLICIES * _EACH:,} artifacts: {seconds:6.2f} s of processor,"
        f" {seconds / _POLICIES * 1000:.2f} ms a policy; {kept:,} stay",
        flush=True,
    )
    for count in (1_000, 10_000, 50_000):
        began_s = time.process_time()
        _plan(count, pieces=count)
        seconds = time.process_time() - began_s
        print(f"  one policy, {count:,} artifacts and as many log manifests: {seconds:6.2f} s of processor", flush=True)


def _plan(count: int, pieces: int) -> list[str]:
    artifacts = [
        Candidate(f"{number:08}", "base", _NOW - timedelta(hours=6 * number), 1000, span=_span(count - number))
        for number in range(count)
    ]
    log = [LogPiece(f"l{number:08}", *_span(number), 10) for number in range(pieces)]
    made = plan_retention(Holdings("bench", artifacts, log), _RULES, Guards(max_removed_percent=100), _NOW)
    return [item.name for item in made.artifacts if item.action == "keep"]


def _span(place: int) -> tuple[int, int]:
    return place * 100, place * 100 + 100
