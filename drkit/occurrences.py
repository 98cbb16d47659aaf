"""What becomes of each moment that a schedule means: run, waited for, coalesced into a later one, missed, skipped.

Pure rules: no clock, no catalog. The ledger (`drkit.catalog.occurrences`) keeps what is decided here, one row for each
moment of a schedule, and that there is only one row is what makes a dispatch happen once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from drkit.schedule import Recurrence
from drkit.units import format_count, format_duration, format_utc

State = Literal["due", "dispatched", "done", "failed", "missed", "coalesced", "skipped"]
MissedRule = Literal["latest_only", "resume", "all_within"]
ON_TIME = timedelta(minutes=1)
"""A moment that is seen within this long was not late."""


@dataclass(frozen=True)
class Schedule:
    """Something that comes round: ``name`` is unique in a site and the same in every process and version.

    ``missed`` says what is done with moments that nobody saw: the newest alone (latest_only), the newest however late
    it is, because it goes on where the last one ended (resume), or all that are not older than ``catch_up``.
    """

    name: str
    kind: str
    policy: str
    what: str
    recurrence: Recurrence
    missed: MissedRule = "latest_only"
    catch_up: timedelta = timedelta(days=31)


@dataclass(frozen=True)
class Occurrence:
    """One row of the ledger: what was due when, and what became of it.

    ``seen`` is how many moments the row stands for: more than one where too many were missed to keep each. A dispatched
    one is ``holder``'s, which runs it as ``run_id``; a due one is not begun before ``not_before_at``.
    """

    occurrence_id: int
    schedule: str
    kind: str
    policy: str
    what: str
    due_at: datetime
    state: State
    reason: str
    decided_at: datetime
    not_before_at: datetime
    attempts: int = 0
    seen: int = 1
    holder: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Decision:
    """What is to become of the moment ``due_at``; ``is_new`` where the ledger has no row of it yet."""

    due_at: datetime
    state: State
    reason: str = ""
    seen: int = 1
    is_new: bool = True


def decide(
    schedule: Schedule,
    moments: Sequence[datetime],
    now: datetime,
    unfinished: Sequence[Occurrence],
    *,
    leapt: bool = False,
) -> list[Decision]:
    """Decide on the moments of ``schedule`` that came up to ``now``, in order, oldest first.

    ``unfinished`` are its rows that are due or dispatched. After the clock ``leapt`` forward nothing is run but the
    newest: hours that never were need no catching up.
    """
    if not moments:
        return []
    if schedule.missed == "all_within" and not leapt:
        return [_within(schedule, due_at, now) for due_at in moments]
    *older, newest = moments
    running = next((item for item in unfinished if item.state == "dispatched"), None)
    if schedule.missed != "resume" and now - newest > max(schedule.catch_up, ON_TIME):
        return [_missed(schedule, due_at, now) for due_at in moments]
    into = f"coalesced into the one due at {_told(newest)}"
    decisions = [Decision(due_at, "coalesced", f"{_absent(leapt=leapt)}; {into}") for due_at in older]
    if running is not None:
        return [
            *decisions,
            Decision(newest, "skipped", f"overlap: the one due at {_told(running.due_at)} has not ended"),
        ]
    decisions += [
        Decision(item.due_at, "coalesced", f"not begun before the next was due; {into}", is_new=False)
        for item in unfinished
    ]
    return [*decisions, Decision(newest, "due", _late(newest, now))]


def _within(schedule: Schedule, due_at: datetime, now: datetime) -> Decision:
    if now - due_at > max(schedule.catch_up, ON_TIME):
        return _missed(schedule, due_at, now)
    return Decision(due_at, "due", _late(due_at, now))


def _missed(schedule: Schedule, due_at: datetime, now: datetime) -> Decision:
    late = f"{format_duration(now - due_at)} ago, longer than catch_up allows ({format_duration(schedule.catch_up)})"
    return Decision(due_at, "missed", f"{_absent(leapt=False)}; it was due {late}")


def _late(due_at: datetime, now: datetime) -> str:
    return "" if now - due_at <= ON_TIME else f"late by {format_duration(now - due_at)}: {_absent(leapt=False)}"


def _absent(*, leapt: bool) -> str:
    return "the clock was put forward" if leapt else "no drkit serve was running, or it stood still"


def _told(moment: datetime) -> str:
    return format_utc(moment).replace(".000000", "")


def summarise(after: datetime, first_kept: datetime) -> Decision:
    """Return the one row for all the moments after ``after`` and before ``first_kept``, too many to keep each.

    Its own moment is a second before the first that is kept, where no expression of five fields has one besides.
    """
    span = format_duration(first_kept - after)
    reason = f"no drkit serve was running for {span}: one row for everything between {_told(after)} and here"
    return Decision(first_kept - timedelta(seconds=1), "missed", reason, seen=0)


AttemptClass = Literal["transient", "capacity", "auth", "data", "conflict", "interrupted", "lost"]
_FIRST_WAIT: dict[str, timedelta] = {
    "transient": timedelta(seconds=30),
    "lost": timedelta(seconds=5),
    "capacity": timedelta(minutes=5),
    "conflict": timedelta(minutes=1),
    "interrupted": timedelta(),
}
_LONGEST_WAIT = timedelta(hours=1)
_SHORTEST_BOUND = timedelta(seconds=30)


def next_attempt(
    failure: AttemptClass, attempts: int, ended_at: datetime, *, moot_at: datetime, rpo: timedelta | None
) -> datetime | None:
    """Return when to try again what failed ``attempts`` times, or None when it is over.

    Waits double, up to an hour and a quarter of the RPO. Wrong settings and wrong data do not become right by waiting.
    From ``moot_at`` on, when the next one is due, there is nothing to try any more.
    """
    first = _FIRST_WAIT.get(failure)
    if first is None:
        return None
    longest = min(_LONGEST_WAIT, max(rpo / 4, _SHORTEST_BOUND)) if rpo is not None else _LONGEST_WAIT
    at = ended_at + min(first * 2 ** min(attempts - 1, 16), longest)
    return at if at < moot_at else None


def tell_attempts(count: int) -> str:
    """Say how many attempts there were."""
    return format_count(count, "attempt")
