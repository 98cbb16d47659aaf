"""Ten years of a policy in a few seconds each: whatever happens, the guards hold and what was promised is restorable.

What must be true is said here a second time, and in another way than in the plan: by looking at what was there before a
prune and what is there after it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drkit.retention import Candidate, Guards, Holdings, LogPiece, Plan, Rules, plan_retention

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
YEARS = 10
STEPS = 40
START = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Chatham")


def rarely(count: int) -> st.SearchStrategy[int]:
    """Mostly nothing: with every rule at once, none would ever decide alone."""
    return st.sampled_from([0, 0, 0, 1, count])


RULES = st.builds(
    Rules,
    last=rarely(5),
    hourly=rarely(30),
    daily=rarely(20),
    weekly=rarely(10),
    monthly=rarely(14),
    yearly=rarely(8),
    within=st.none() | st.sampled_from([DAY, 40 * DAY]),
    recovery_window=st.none() | st.sampled_from([DAY, 30 * DAY]),
    timezone=st.sampled_from(ZONES),
)
GUARDS = st.builds(
    Guards,
    minimum=st.integers(1, 4),
    failed_keep=st.integers(1, 10).map(lambda days: days * DAY),
    stale_after=st.sampled_from([{}, {"base": 5 * DAY, "dump": 5 * DAY}, {"dump": 3 * DAY}]),
    max_removed_percent=st.sampled_from([10, 30, 100]),
    grace=st.sampled_from([HOUR, DAY, 7 * DAY]),
)


@dataclass
class Site:
    """A store in a few lists: it deletes what a plan says and is due, unless a lock refuses it."""

    rules: Rules
    guards: Guards
    seed: int
    now: datetime = START
    wrong_by: timedelta = timedelta()
    artifacts: dict[str, Candidate] = field(default_factory=dict)
    log: dict[str, LogPiece] = field(default_factory=dict)
    position: int = 0
    taken: int = 0
    refusals: int = 0
    broken_clock_removed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def clock(self) -> datetime:
        """Return what the host believes that it is."""
        return self.now + self.wrong_by

    def take(self, method: str, state: str = "verified") -> None:
        """Take a backup; a base often builds on the one before."""
        self.taken += 1
        name = f"{method}{self.taken:05}"
        bases = [item for item in self.artifacts.values() if item.method == "base" and item.state == "verified"]
        parent = max(bases, key=lambda item: item.at, default=None)
        depends_on: tuple[str, ...] = ()
        if method == "base" and parent is not None and len(parent.depends_on) < 6 and self.random.random() < 0.7:
            depends_on = (*parent.depends_on, parent.artifact_id)
        span = (self.position, self.position + 3) if method == "base" else None
        size = self.random.choice([100, 100, 110, 90, 4])
        self.artifacts[name] = Candidate(
            *(name, method, self.clock, size, state),
            depends_on=depends_on,
            span=span,  # type: ignore[arg-type]
        )

    def write_log(self) -> None:
        self.position += 5
        piece = LogPiece(f"log{self.position:06}", self.position - 5, self.position, 10)
        self.log[piece.piece_id] = piece

    def plan(self) -> Plan:
        held = Holdings("orders", list(self.artifacts.values()), list(self.log.values()))
        return plan_retention(held, self.rules, self.guards, self.clock)

    def prune(self) -> Plan:
        """Plan, confirm what has to be, mark, and delete what is due, what builds on others before them."""
        plan = self.plan()
        before, log_before = dict(self.artifacts), dict(self.log)
        stuck: set[str] = set()
        for decision in sorted(plan.removed, key=lambda item: -len(self.artifacts[item.name].depends_on)):
            item = self.artifacts[decision.name]
            if item.marked_at is None:
                self.artifacts[item.artifact_id] = replace(item, marked_at=self.clock)
            elif decision.delete_after is None or decision.delete_after > self.clock:
                continue
            elif item.artifact_id in stuck or self.random.random() < 0.05:
                # Refused by a lock that nobody knew of; then what it builds on has to stay as well.
                self.refusals += 1
                self.artifacts[item.artifact_id] = replace(item, locked_until=self.clock + 20 * DAY)
                stuck.update(item.depends_on)
            else:
                del self.artifacts[item.artifact_id]
        for name in {item.name for item in plan.artifacts if item.action == "keep" and item.is_marked}:
            self.artifacts[name] = replace(self.artifacts[name], marked_at=None)
        for decision in plan.removed_log:
            piece = self.log[decision.name]
            if piece.marked_at is None:
                self.log[piece.piece_id] = replace(piece, marked_at=self.clock)
            elif decision.delete_after is not None and decision.delete_after <= self.clock:
                del self.log[piece.piece_id]
        judge(self, plan, before, log_before)
        return plan


def sound(items: Iterable[Candidate], clock: datetime) -> list[Candidate]:
    """Return those that count, newest first."""
    found = list(items)
    there = {item.artifact_id for item in found}
    good = [
        item
        for item in found
        if item.state == "verified" and item.at <= clock + timedelta(minutes=5) and set(item.depends_on) <= there
    ]
    return sorted(good, key=lambda item: (item.at, item.artifact_id), reverse=True)


def judge(site: Site, plan: Plan, before: dict[str, Candidate], log_before: dict[str, LogPiece]) -> None:
    """Say what a prune must have left of what was there before it."""
    gone = set(before) - set(site.artifacts)
    counted: dict[str, list[Candidate]] = defaultdict(list)
    for item in sound(before.values(), site.clock):
        counted[item.method].append(item)
    for series in counted.values():
        left = [item for item in series if item.artifact_id not in gone]
        assert len(left) >= min(site.guards.minimum, len(series)), "fewer than the minimum"
        assert series[0] in left, "the newest is gone"
        assert promised(series, site) <= {item.artifact_id for item in left}, "a promised point is gone"
    drilled = [item for item in sound(before.values(), site.clock) if item.drilled]
    assert not drilled or drilled[0].artifact_id not in gone, "the newest proven one is gone"
    for name in gone:
        assert not before[name].hold, "a held one is gone"
        assert before[name].locked_until is None or before[name].locked_until <= site.clock
        assert before[name].marked_at is not None
        assert before[name].marked_at + site.guards.grace <= site.clock, "gone before its time"
        assert before[name].state != "suspect"
    if any(item.at > site.clock + timedelta(minutes=5) and item.state != "suspect" for item in before.values()):
        assert not gone, "removed by a clock that is behind"
    for item in site.artifacts.values():
        missing = set(item.depends_on) - set(site.artifacts)
        assert missing == set(item.depends_on) - set(before), "something that is there cannot be restored any more"
    judge_log(site, before, log_before)
    if any("no base is" in reason or "still to come" in reason for reason in plan.suspended):
        assert not set(log_before) - set(site.log), "log goes while bases do not"


def promised(series: list[Candidate], site: Site) -> set[str]:
    """Return what the rules promise of a series: the newest of each of the last so many periods, and windows."""
    rules, zone = site.rules, ZoneInfo(site.rules.timezone)
    wanted = {item.artifact_id for item in series[: rules.last]}
    for count, form in (
        *((rules.hourly, "%Y-%m-%d-%H"), (rules.daily, "%Y-%m-%d"), (rules.weekly, "%G-%V")),
        *((rules.monthly, "%Y-%m"), (rules.yearly, "%Y")),
    ):
        newest: dict[str, Candidate] = {}
        for item in series:
            newest.setdefault(item.at.astimezone(zone).strftime(form), item)
        wanted |= {newest[label].artifact_id for label in sorted(newest, reverse=True)[:count]}
    if rules.within is not None:
        wanted |= {item.artifact_id for item in series if item.at >= site.clock - rules.within}
    if rules.recovery_window is not None:
        edge = site.clock - rules.recovery_window
        older = [item for item in series if item.at <= edge]
        wanted |= {item.artifact_id for item in series if item.at > edge} | {item.artifact_id for item in older[:1]}
    return wanted


def judge_log(site: Site, before: dict[str, Candidate], log_before: dict[str, LogPiece]) -> None:
    """Assert that from every base of the window every later position can still be reached, and each base itself."""
    lost = [piece for name, piece in log_before.items() if name not in site.log]
    bases = [item for item in sound(site.artifacts.values(), site.clock) if item.span is not None]
    if not bases:
        return
    window = site.rules.recovery_window
    edge = min(site.clock, bases[0].at) - window if window is not None else datetime.min.replace(tzinfo=UTC)
    inside = [item for item in bases if item.at > edge] + [item for item in bases if item.at <= edge][:1]
    if window is None:
        inside = bases
    for item in inside:
        assert item.span is not None
        assert all(piece.to_position <= item.span[0] for piece in lost), "log of the recovery window is gone"
    for item in bases:
        assert item.span is not None
        start, stop = item.span
        assert all(piece.to_position <= start or piece.from_position > stop for piece in lost), "a base lacks its log"


class Decade(RuleBasedStateMachine):
    """Each step lets some months pass, with a backup of each method on most days and a prune every few days."""

    @initialize(rules=RULES, guards=GUARDS, seed=st.integers(0, 2**32))
    def begin(self, rules: Rules, guards: Guards, seed: int) -> None:
        self.site = Site(rules, guards, seed)

    def pass_days(self, days: int, *, states: tuple[str, ...] = ("verified",), every: int = 3) -> None:
        site = self.site
        for day in range(days):
            site.now += DAY
            site.write_log()
            site.take("dump", site.random.choice(states))
            if day % 4 == 0:
                site.take("base", site.random.choice(states))
            if day % every == 0:
                site.prune()

    @rule(days=st.integers(30, 120))
    def months_pass(self, days: int) -> None:
        self.pass_days(days, every=5)

    @rule(days=st.integers(5, 60))
    def everything_fails(self, days: int) -> None:
        self.pass_days(days, states=("failed", "unverified", "suspect"))

    @rule(days=st.integers(5, 30))
    def some_fail(self, days: int) -> None:
        self.pass_days(days, states=("verified", "failed", "unverified"))

    @rule(days=st.integers(3, 60))
    def no_backup_at_all(self, days: int) -> None:
        for _ in range(days):
            self.site.now += DAY
            self.site.prune()

    @rule(hours=st.integers(-24 * 400, 24 * 400), days=st.integers(1, 5))
    def the_clock_jumps_and_comes_back(self, hours: int, days: int) -> None:
        self.site.wrong_by = hours * HOUR
        self.pass_days(days, every=1)
        self.site.wrong_by = timedelta()
        # Operations see by the chain which of two dates is wrong; what is of the future is not believed from then on.
        for name, item in self.site.artifacts.items():
            if item.at > self.site.now + HOUR:
                self.site.artifacts[name] = replace(item, state="suspect")
        self.site.prune()

    @rule(share=st.floats(0, 1), state=st.sampled_from(["verified", "failed", "unverified"]), drilled=st.booleans())
    def one_is_judged(self, share: float, state: str, drilled: bool) -> None:
        item = self.some(share)
        if item is not None:
            proven = drilled and state == "verified"
            self.site.artifacts[item.artifact_id] = replace(item, state=state, drilled=proven)  # type: ignore[arg-type]

    @rule(share=st.floats(0, 1), hold=st.sampled_from(["", "lawsuit"]))
    def one_is_held_or_released(self, share: float, hold: str) -> None:
        item = self.some(share)
        if item is not None:
            self.site.artifacts[item.artifact_id] = replace(item, hold=hold)

    @rule(share=st.floats(0, 1), days=st.integers(1, 400))
    def one_is_locked(self, share: float, days: int) -> None:
        item = self.some(share)
        if item is not None:
            until = self.site.clock + days * DAY
            self.site.artifacts[item.artifact_id] = replace(item, locked_until=until)

    @rule(rules=RULES)
    def the_policy_is_changed(self, rules: Rules) -> None:
        self.site.rules = rules
        self.site.prune()

    def some(self, share: float) -> Candidate | None:
        names = sorted(self.site.artifacts)
        return self.site.artifacts[names[int(share * (len(names) - 1))]] if names else None

    @invariant()
    def the_same_facts_have_the_same_plan(self) -> None:
        if hasattr(self, "site") and self.site.taken % 7 == 0:
            shuffled = list(self.site.artifacts.values())
            self.site.random.shuffle(shuffled)
            held = Holdings("orders", shuffled, list(self.site.log.values())[::-1])
            again = plan_retention(held, self.site.rules, self.site.guards, self.site.clock)
            assert again.digest == self.site.plan().digest


TestDecade = Decade.TestCase
TestDecade.settings = settings(
    max_examples=8,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)


def test_ten_years_of_an_ordinary_policy_stay_small_and_keep_every_promise() -> None:
    rules = Rules(last=3, daily=14, weekly=8, monthly=12, yearly=7, timezone="Europe/Berlin")
    site = Site(rules, Guards(stale_after={"dump": 3 * DAY}), seed=1)
    for day in range(YEARS * 365):
        site.now += DAY
        site.take("dump", "failed" if day % 50 == 0 else "verified")
        if day % 2 == 0:
            site.prune()
    assert len(site.artifacts) < 60
    assert site.refusals > 50
    oldest = min(item.at for item in site.artifacts.values())
    assert site.now - oldest > 2000 * DAY, "seven years, each with its newest"


def test_a_year_without_any_rule_keeps_the_minimum() -> None:
    site = Site(Rules(), Guards(minimum=4), seed=2)
    for _ in range(365):
        site.now += DAY
        site.take("dump")
        site.prune()
    assert len(sound(site.artifacts.values(), site.clock)) >= 4
    assert len(site.artifacts) < 12
