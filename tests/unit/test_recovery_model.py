"""Recovery plans, windows and gaps against a model that replays record by record, over random worlds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.errors import RecoveryGap
from drkit.recovery import RecoveryPlan, find_gaps, find_windows, plan_recovery
from drkit.units import When
from drkit.wal import format_lsn, parse_lsn
from tests.unit.wal_world import SEGMENT, UNIT, Line, World, at, worlds

NOW = at(10**6)


def plan_on(world: World, line: Line, when: When, *, inclusive: bool = True) -> RecoveryPlan | None:
    try:
        return plan_recovery(world.state, when, timeline=line.timeline, now=NOW, inclusive=inclusive)
    except RecoveryGap:
        return None


def restore(world: World, plan: RecoveryPlan) -> set[tuple[int, int]]:
    """Do what PostgreSQL does with a plan; return its records as timeline and unit, or fail as PostgreSQL does."""
    line = world.lines[plan.timeline]
    assert plan.base in world.bases_on(line)
    numbers = [item.start_lsn // SEGMENT for item in plan.files if item.kind != "history"]
    assert numbers == sorted(set(numbers)), "two files for one segment: PostgreSQL may take the wrong one"
    assert all(item.kind != "partial" for item in plan.files[:-1])
    stop = plan.base.stop_lsn // UNIT
    seen = {(line.owner(unit).timeline, unit) for unit in range(stop)}
    if plan.target.kind == "immediate":
        return seen
    for unit in world.replay(line, plan.base, list(plan.files)):
        stamp = line.stamp(unit)
        if plan.target.kind == "time":
            assert plan.target.moment is not None
            reached = stamp is not None and (
                at(stamp) > plan.target.moment or (not plan.inclusive and at(stamp) == plan.target.moment)
            )
            if reached:
                return seen
        if plan.target.kind == "lsn" and unit * UNIT >= parse_lsn(plan.target.text):
            return seen | {(line.owner(unit).timeline, unit)} if plan.inclusive else seen
        seen.add((line.owner(unit).timeline, unit))
    if plan.target.kind == "latest":
        return seen
    pytest.fail(f"recovery ended before configured recovery target was reached: {plan.target}")


def commits(line: Line, units: set[tuple[int, int]]) -> set[int]:
    """Return the stamps of the commits among some records, all of which must lie on the line."""
    assert all(line.owner(unit).timeline == timeline for timeline, unit in units)
    return {stamp for _, unit in units if (stamp := line.stamp(unit)) is not None}


def all_commits(line: Line) -> set[int]:
    return {stamp for unit in range(line.end) if (stamp := line.stamp(unit)) is not None}


def left_inside(line: Line, unit: int) -> bool:
    """Say whether the path leaves a timeline in the segment of a unit.

    The older timeline's copy of that segment goes on after the switch, so its stamps may be of commits that are not on
    the path; a plan does not trust them, and refuses more than it would have to.
    """
    return any(begin // 4 == unit // 4 and begin % 4 for _, begin, _ in line.path)


@given(worlds(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_planned_time_shows_exactly_the_commits_until_then_and_a_refused_one_is_out_of_reach(
    world: World, data: st.DataObject
) -> None:
    line = data.draw(st.sampled_from(list(world.lines.values())))
    inclusive = data.draw(st.booleans())
    second = data.draw(st.integers(0, max(all_commits(line), default=0) + 3))
    moment = at(second)
    plan = plan_on(world, line, When("time", moment=moment), inclusive=inclusive)
    if plan is not None:
        try:
            seen = commits(line, restore(world, plan))
        except pytest.fail.Exception:
            assert any("shows only at replay" in warning for warning in plan.warnings)
            return
        assert seen == {stamp for stamp in all_commits(line) if stamp < second or (stamp == second and inclusive)}
        if plan.last_commit_at is not None:
            assert plan.last_commit_at in {at(stamp) for stamp in seen}
        return
    for base in world.bases_on(line):
        if base.stop_at > moment:
            continue
        units = world.replay(line, base, list(world.state.files))
        stamps = [stamp for unit in units if (stamp := line.stamp(unit)) and not left_inside(line, unit)]
        assert base.stop_at != moment
        assert all(stamp < second for stamp in stamps), f"{base.artifact_id} leads there"


@given(worlds(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_planned_position_shows_exactly_the_records_until_there_and_a_refused_one_is_out_of_reach(
    world: World, data: st.DataObject
) -> None:
    line = data.draw(st.sampled_from(list(world.lines.values())))
    inclusive = data.draw(st.booleans())
    unit = data.draw(st.integers(0, line.end + 2))
    plan = plan_on(world, line, When("lsn", text=format_lsn(unit * UNIT)), inclusive=inclusive)
    if plan is not None:
        assert plan.target_lsn == unit * UNIT
        seen = {number for _, number in restore(world, plan)}
        after = inclusive and plan.target.kind == "lsn"
        assert seen == set(range(unit + 1 if after else unit))
    else:
        for base in world.bases_on(line):
            assert not base.stop_lsn <= unit * UNIT <= world.reach(line, base), f"{base.artifact_id} leads there"


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_latest_brings_back_all_that_is_stored_or_says_that_it_cannot(world: World) -> None:
    for line in world.lines.values():
        plan = plan_on(world, line, When("latest"))
        bases = world.bases_on(line)
        stored = [item for item in world.state.files if item.kind != "history" and item.timeline == line.timeline]
        if plan is None:
            reach = max((world.reach(line, base) for base in bases), default=None)
            assert reach is None or reach < line.begin * UNIT or stored or len(line.path) > 1
            continue
        last = max(unit for _, unit in restore(world, plan) | {(0, -1)}) + 1
        assert last * UNIT == max(world.reach(line, base) for base in bases)
        assert all(item.start_lsn < last * UNIT for item in stored)


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_windows_are_exactly_the_positions_that_can_be_reached(world: World) -> None:
    windows = find_windows(world.state)
    for line in world.lines.values():
        reaches = [(base.stop_lsn, world.reach(line, base)) for base in world.bases_on(line)]
        own = [window for window in windows if window.timeline == line.timeline]
        for unit in range(line.begin + (line.parent is not None), line.end + 3):
            reachable = any(stop <= unit * UNIT <= reach for stop, reach in reaches)
            assert reachable == any(window.from_lsn <= unit * UNIT <= window.to_lsn for window in own), unit


@given(worlds(), st.data())
@settings(max_examples=100, deadline=None)
def test_every_moment_of_a_window_can_be_planned(world: World, data: st.DataObject) -> None:
    for window in find_windows(world.state):
        assert window.from_at <= window.to_at
        span_s = int((window.to_at - window.from_at).total_seconds())
        inside = at(int((window.from_at - at(0)).total_seconds()) + data.draw(st.integers(0, span_s)))
        for moment in (window.from_at, inside, window.to_at):
            plan = plan_on(world, world.lines[window.timeline], When("time", moment=moment))
            assert plan is not None, moment
            restore(world, plan)


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_gaps_lie_between_windows_and_name_a_segment_that_is_not_there(world: World) -> None:
    gaps = find_gaps(world.state)
    windows = find_windows(world.state)
    whole = {item.name for item in world.state.files if item.kind == "segment"}
    for gap in gaps:
        assert gap.first_missing not in whole
        assert gap.first_missing in gap.reason
        assert gap.from_lsn < gap.to_lsn
        assert gap.to_at is None or gap.from_at <= gap.to_at
        own = [window for window in windows if window.timeline == gap.timeline]
        assert all(window.to_lsn <= gap.from_lsn or window.from_lsn >= gap.to_lsn for window in own)
    for timeline in world.lines:
        own_gaps = [gap for gap in gaps if gap.timeline == timeline]
        assert all(one.to_lsn <= two.from_lsn for one, two in itertools.pairwise(own_gaps))
        own = [window for window in windows if window.timeline == timeline]
        if any(item.kind != "history" for item in world.state.files):
            for before, after in itertools.pairwise(own):
                between = [gap for gap in own_gaps if gap.from_lsn == before.to_lsn and gap.to_lsn == after.from_lsn]
                lost_wal = any(item.timeline == timeline for item in world.state.files)
                assert between or before.from_lsn == before.to_lsn or not lost_wal


@given(
    worlds(),
    st.sampled_from(
        [When("latest"), When("immediate"), When("time", moment=at(20)), When("xid", text="9"), When("name", text="x")]
    ),
    st.one_of(st.none(), st.integers(1, 5)),
)
@settings(max_examples=100, deadline=None)
def test_planning_answers_with_a_plan_or_a_gap_that_says_what_to_type(
    world: World, when: When, timeline: int | None
) -> None:
    try:
        plan = plan_recovery(world.state, when, timeline=timeline, now=NOW)
    except RecoveryGap as refused:
        gap = refused
    else:
        assert plan.base in world.bases_on(world.lines[plan.timeline])
        return
    assert gap.message.startswith("2026-") or gap.message[0].islower()
    assert gap.hints or "no timeline" in gap.message or "no base" in gap.message
