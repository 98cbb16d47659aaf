"""The scheduler: what the policies want when, written into the ledger as it comes due.

`Planner.tick` is all of it, and is told what time it is. APScheduler only ticks: its own cron arithmetic loses the day
after clocks are put forward (agronholm/apscheduler#606), and its job stores are not made for several processes.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from drkit.catalog.occurrences import Book, OccurrenceLedger
from drkit.errors import DrkitError
from drkit.jobs import KINDS
from drkit.occurrences import Decision, Schedule, decide, summarise
from drkit.operations import Reporter
from drkit.policy import BackupRule, DrillRule, Policy
from drkit.schedule import Recurrence, spread
from drkit.site_scheduler import SchedulerConfig
from drkit.units import format_duration, format_utc

TICK_S = 10
_KEPT = 100
"""How many missed moments of one schedule get a row each; those before share one."""
_PLACED_AT_ONCE = 500
_PLANNED_AT_ONCE = 100
_WRITTEN_AT_ONCE = 150
"""A tick plans so many schedules, or writes so many rows, which it may pass by those of one schedule."""
_BETWEEN_PIECES_S = 0.05
_WATCH_S = 0.2
_LEAP_S = 60.0
_OLD_NEWS = timedelta(days=1)
_GAPS: Mapping[str, str] = {"wal.gap": "base", "oplog.gap": "dump", "oplog.timeline": "dump"}
"""Events after which nothing can be restored until there is a new backup of that method."""


def schedules_of(
    policies: Iterable[Policy], config: SchedulerConfig, locking: AbstractSet[str] = frozenset()
) -> list[Schedule]:
    """Return everything that comes round by itself: backups, drills and housekeeping of every policy.

    ``locking`` are the names of the stores whose locks are to be extended.
    """
    found: list[Schedule] = []
    for policy in policies:
        found += (*_backups(policy), *_drills(policy), *_housekeeping(policy, config, locking))
    return found


def _backups(policy: Policy) -> Iterable[Schedule]:
    seen: dict[str, int] = {}
    for rule in policy.backups:
        seen[rule.method] = seen.get(rule.method, 0) + 1
        if rule.schedule is not None:
            yield _schedule("backup", policy, name_of_rule(rule.method, seen[rule.method]), rule)


def name_of_rule(method: str, number: int) -> str:
    """Return how a backup rule is called: by its method, those after the first of one method with a number."""
    return method if number == 1 else f"{method}-{number}"


def _drills(policy: Policy) -> Iterable[Schedule]:
    for rule in policy.drills:
        if rule.schedule is not None:
            yield _schedule("drill", policy, rule.name, rule)


def _schedule(kind: str, policy: Policy, what: str, rule: BackupRule | DrillRule) -> Schedule:
    name = f"{kind}/{policy.policy}/{what}"
    assert rule.schedule is not None
    recurrence = Recurrence(rule.schedule, rule.timezone, rule.dst, spread(name, rule.jitter))
    return _of_kind(name, kind, policy, what, recurrence, rule.catch_up)


def _housekeeping(policy: Policy, config: SchedulerConfig, locking: AbstractSet[str]) -> Iterable[Schedule]:
    for kind, job in KINDS.items():
        cron = job.cron(config)
        if cron is not None and job.wanted(policy, locking):
            name = f"{kind}/{policy.policy}"
            recurrence = Recurrence(cron, config.timezone, offset=spread(name, timedelta(hours=1)))
            yield _of_kind(name, kind, policy, "", recurrence, None)


def _of_kind(
    name: str, kind: str, policy: Policy, what: str, recurrence: Recurrence, catch_up: timedelta | None
) -> Schedule:
    job = KINDS[kind]
    return Schedule(name, kind, policy.policy, what, recurrence, job.missed, catch_up or job.catch_up)


def coming_up(schedules: Iterable[Schedule], now: datetime, count: int) -> list[dict[str, str]]:
    """Return the next ``count`` moments of all schedules in order, in UTC and on the clock of each schedule's zone."""
    from zoneinfo import ZoneInfo

    rows = []
    streams = [_moments(item, now) for item in schedules]
    for due_at, _, item in islice(heapq.merge(*streams), count):
        rule = item.recurrence
        local = due_at.astimezone(ZoneInfo(rule.timezone))
        rows.append(
            {
                "due_at": format_utc(due_at).replace(".000000", ""),
                "local": local.isoformat(sep=" ", timespec="seconds"),
                "timezone": rule.timezone,
                "policy": item.policy,
                "kind": item.kind,
                "what": item.what,
                "schedule": item.name,
                "cron": rule.cron,
                "note": _note(rule, local),
            }
        )
    return rows


def _moments(schedule: Schedule, after: datetime) -> Iterator[tuple[datetime, str, Schedule]]:
    for due_at in schedule.recurrence.after(after):
        yield due_at, schedule.name, schedule


def _note(rule: Recurrence, local: datetime) -> str:
    """Say what moved a moment: the spread, and clocks that were changed within the day before."""
    notes = [f"spread by {format_duration(rule.offset)}"] if rule.offset else []
    now = local.utcoffset()
    before = (local.astimezone(UTC) - timedelta(days=1)).astimezone(local.tzinfo).utcoffset()
    if now is not None and before is not None and now != before:
        notes.append(f"clocks went {'forward' if now > before else 'back'}")
    return ", ".join(notes)


@dataclass(frozen=True)
class Planned:
    """One decision that was news to the ledger."""

    schedule: Schedule
    decision: Decision


class Planner:
    """Plans the schedules of one site into a ledger that other planners may write to at the same time.

    A tick does a bounded piece of what is to be done: it holds the catalog's one place for writers. `is_behind` tells
    that there is more, for the next tick, which may come at once.
    """

    def __init__(self, ledger: OccurrenceLedger, schedules: Sequence[Schedule]) -> None:
        self._ledger = ledger
        self._schedules = {item.name: item for item in schedules}
        self._unplaced: list[Schedule] = []
        self._next: list[tuple[datetime, str]] = []
        self._seen_at: datetime | None = None
        self._leapt = False
        self._incoming: dict[str, Schedule] | None = None

    @property
    def is_behind(self) -> bool:
        """Tell whether the last tick left something to do that is due."""
        due = self._seen_at is not None and bool(self._next) and self._next[0][0] <= self._seen_at
        return bool(self._unplaced) or due

    def tick(self, now: datetime, *, leapt: bool = False) -> list[Planned]:
        """Write down what came due up to ``now``, and what becomes of it; return what nobody had written before.

        What is due first is written first; nothing is before all schedules are known to stand where they do. Any number
        of processes may tick, at any distance in time: what nobody saw meanwhile is decided now. ``leapt`` says that
        the clock was just put forward.
        """
        self._leapt = leapt or (self._leapt and self.is_behind)
        # None until the end: after an error each schedule stands where the ledger says, and not where it was to stand.
        seen_at, self._seen_at = self._seen_at, None
        if seen_at is None or now < seen_at:
            self._begin(now)
        news = self._after_gaps(now)
        self._place(now)
        if not self._unplaced:
            news += self._plan_due(now)
        self._seen_at = now
        if self._incoming is not None and not self.is_behind:
            self._adopt(self._incoming, now)
        return news

    def replace(self, schedules: Sequence[Schedule]) -> None:
        """Plan these from the next tick on, in which what came due of the former ones is still written down."""
        self._incoming = {item.name: item for item in schedules}

    def _adopt(self, schedules: dict[str, Schedule], now: datetime) -> None:
        """Go on with other schedules; one that means other moments now means those after ``now``."""
        former = self._schedules
        moved = [
            name for name in schedules.keys() & former.keys() if schedules[name].recurrence != former[name].recurrence
        ]
        with self._ledger.planning() as book:
            for name in moved:
                book.move(name, now)
        self._schedules, self._incoming = schedules, None
        self._next, self._unplaced = [], list(schedules.values())

    def next_due(self, name: str, after: datetime) -> datetime | None:
        """Return when a schedule comes round next; None when there is no such schedule."""
        schedule = self._schedules.get(name)
        return schedule.recurrence.next_after(after) if schedule else None

    def _begin(self, now: datetime) -> None:
        """Find out anew where each schedule stands. A clock that was put back is followed."""
        with self._ledger.planning() as book:
            book.turn_back(now)
        self._next = []
        self._unplaced = list(self._schedules.values())

    def _place(self, now: datetime) -> None:
        """Find where some schedules stand; a new one begins now."""
        chosen = self._unplaced[-_PLACED_AT_ONCE:]
        if not chosen:
            return
        with self._ledger.planning() as book:
            cursors = book.begin([item.name for item in chosen], now)
        for schedule in chosen:
            self._await(schedule, cursors[schedule.name])
        del self._unplaced[-_PLACED_AT_ONCE:]

    def _await(self, schedule: Schedule, after: datetime) -> None:
        heapq.heappush(self._next, (schedule.recurrence.next_after(after), schedule.name))

    def _plan_due(self, now: datetime) -> list[Planned]:
        news: list[Planned] = []
        if not self._next or self._next[0][0] > now:
            return news
        planned = 0
        with self._ledger.planning() as book:
            while self._next and self._next[0][0] <= now:
                if planned == _PLANNED_AT_ONCE or len(news) >= _WRITTEN_AT_ONCE:
                    break
                schedule = self._schedules[heapq.heappop(self._next)[1]]
                news += self._plan(book, schedule, now)
                self._await(schedule, now)
                planned += 1
        return news

    def _plan(self, book: Book, schedule: Schedule, now: datetime) -> list[Planned]:
        cursor = book.cursor(schedule.name) or now
        first = schedule.recurrence.next_after(cursor)
        if first > now:
            return []
        moments = [first]
        if schedule.recurrence.next_after(first) <= now:
            moments = schedule.recurrence.newest(cursor, now, _KEPT)
        decisions = decide(schedule, moments, now, book.unfinished(schedule.name), leapt=self._leapt)
        if first < moments[0]:
            decisions.insert(0, summarise(cursor, moments[0]))
        news = book.write(schedule, decisions, now)
        book.move(schedule.name, moments[-1])
        _tell(book, schedule, news, now)
        return [Planned(schedule, item) for item in news]

    def _after_gaps(self, now: datetime) -> list[Planned]:
        """Have a backup taken at once where the log has a gap: until then no later moment can be restored."""
        news: list[Planned] = []
        with self._ledger.planning() as book:
            for name, at, facts in book.read_events("scheduler", list(_GAPS)):
                policy = json.loads(facts).get("policy")
                if not isinstance(policy, str) or now - at > _OLD_NEWS:
                    continue
                method = _GAPS[name]
                schedule_name = f"backup/{policy}/{method}"
                schedule = self._schedules.get(schedule_name) or Schedule(
                    schedule_name, "backup", policy, method, Recurrence("0 0 1 1 *")
                )
                extra = Decision(
                    at, "due", f"{name}: a {method} at once, because no later moment can be restored without one"
                )
                waiting = [item for item in book.unfinished(schedule_name) if item.state == "due" and item.due_at < at]
                covered = [
                    Decision(item.due_at, "coalesced", f"a {method} is taken because of {name}", is_new=False)
                    for item in waiting
                ]
                news += [Planned(schedule, item) for item in book.write(schedule, [*covered, extra], now)]
        return news


def _tell(book: Book, schedule: Schedule, news: Sequence[Decision], now: datetime) -> None:
    """Add one event for all that will not be run, however many they are."""
    lost = [item for item in news if item.state in ("missed", "skipped", "coalesced")]
    if not lost:
        return
    newest = lost[-1]
    facts = {
        "schedule": schedule.name,
        "kind": schedule.kind,
        "policy": schedule.policy,
        "what": schedule.what or schedule.kind,
        "due_at": format_utc(newest.due_at),
        "state": newest.state,
        "reason": newest.reason,
        "count": len(lost),
    }
    book.add_event("occurrence.missed", now, facts)


class Ticker:
    """The duty that ticks: APScheduler calls, the planner plans."""

    name = "scheduler"

    def __init__(
        self,
        planner: Planner,
        clock: Callable[[], datetime],
        reporter: Reporter,
        tick_s: float = TICK_S,
        ticked: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._planner = planner
        self._clock = clock
        self._reporter = reporter
        self._tick_s = tick_s
        self._ticked = ticked
        self._before: tuple[datetime, float] | None = None
        self._failure: Exception | None = None

    def run(self, stopping: threading.Event) -> None:
        """Tick until ``stopping``; what ends a tick unforeseen ends the duty, which serve begins again."""
        from apscheduler.schedulers.background import BackgroundScheduler

        self._failure = None
        ended = threading.Event()
        scheduler = BackgroundScheduler(timezone=UTC)
        job = scheduler.add_job(
            self._tick,
            "interval",
            args=[ended],
            seconds=self._tick_s,
            next_run_time=datetime.now(UTC),
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
        )
        scheduler.start()
        try:
            while not stopping.wait(_WATCH_S) and not ended.is_set():
                now = datetime.now(UTC)
                # APScheduler waits for a time of day; after a clock was put back that is hours away, or years.
                if job.next_run_time - now > timedelta(seconds=2 * self._tick_s):
                    job.modify(next_run_time=now)
        finally:
            ended.set()
            scheduler.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure

    def _tick(self, ended: threading.Event) -> None:
        try:
            self._plan()
            # Others write to the catalog too, and get their turn between two pieces of much work.
            while self._planner.is_behind and not ended.wait(_BETWEEN_PIECES_S):
                self._plan()
        except DrkitError as error:
            self._reporter.line(f"scheduler  failed: {error.message}")
        except Exception as error:  # noqa: BLE001 - APScheduler would only log it; serve begins the duty again
            self._failure = error
            ended.set()

    def _plan(self) -> None:
        now, now_s = self._clock(), time.monotonic()
        leapt = False
        if self._before is not None:
            passed_s = (now - self._before[0]).total_seconds()
            leapt = passed_s - (now_s - self._before[1]) > _LEAP_S
        news = self._planner.tick(now, leapt=leapt)
        self._ticked(self.name)
        self._before = (now, now_s)
        for item in news:
            if item.decision.reason:
                due = format_utc(item.decision.due_at)
                self._reporter.line(
                    f"scheduler  {item.schedule.name} due {due}: {item.decision.state}: {item.decision.reason}"
                )
