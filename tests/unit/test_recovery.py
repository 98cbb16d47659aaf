"""What a plan has to get right by PostgreSQL's rules, one small log at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from drkit.errors import RecoveryGap
from drkit.recovery import LogFile, LogState, RecoveryPlan, find_gaps, find_windows, plan_recovery
from drkit.recovery_coverage import measure_coverage
from drkit.units import When, parse_when
from drkit.wal import Switch, format_lsn
from tests.unit.wal_world import SEGMENT, UNIT, at, base, history, log, partial, run, segment

NOW = at(10**7)
AFTER_1 = 1 * SEGMENT + UNIT
"""A quarter into segment 1, where most bases here become consistent."""


def plan(state: LogState, when: When | str, *, timeline: int | None = None, inclusive: bool = True) -> RecoveryPlan:
    wanted = parse_when(when) if isinstance(when, str) else when
    return plan_recovery(state, wanted, timeline=timeline, now=NOW, inclusive=inclusive)


def refusal(state: LogState, when: When | str, *, timeline: int | None = None) -> RecoveryGap:
    with pytest.raises(RecoveryGap) as caught:
        plan(state, when, timeline=timeline)
    return caught.value


def moment(seconds: float) -> When:
    return When("time", moment=at(seconds))


def names(files: Sequence[LogFile]) -> list[str]:
    return [item.name for item in files]


def numbers(found: RecoveryPlan) -> list[int]:
    return [item.start_lsn // SEGMENT for item in found.files if item.kind != "history"]


def without(files: list[LogFile], *gone: int) -> list[LogFile]:
    return [item for item in files if item.start_lsn // SEGMENT not in gone]


CALM = log([base(AFTER_1, 12, artifact_id="OLD"), base(5 * SEGMENT + UNIT, 52, artifact_id="NEW")], run(range(1, 10)))
"""Segments 1 to 9, and a base in segments 1 and 5."""


# The base is chosen, and only what is needed is planned.


def test_a_moment_takes_the_newest_base_before_it() -> None:
    found = plan(CALM, moment(75))
    assert found.base.artifact_id == "NEW"
    assert numbers(found) == [5, 6, 7, 8]
    assert found.target == moment(75)
    assert found.last_commit_at == at(70)
    assert found.stored_bytes == 1000 + 4 * 100
    assert found.end_lsn == 9 * SEGMENT


def test_a_moment_between_two_bases_takes_the_older() -> None:
    assert plan(CALM, moment(51)).base.artifact_id == "OLD"
    assert plan(CALM, moment(52)).base.artifact_id == "NEW"


def test_a_base_later_than_the_moment_is_refused() -> None:
    gap = refusal(CALM, moment(11))
    assert "no base is older" in gap.message
    assert f"restorable from     {format_lsn(AFTER_1)}, {at(12).astimezone().isoformat()}" in gap.details
    assert gap.hints == (f"drkit restore orders --at {at(12).astimezone().isoformat()} --into DIR",)


def test_a_base_later_than_the_position_is_refused() -> None:
    assert "no base is older" in refusal(CALM, f"lsn:{format_lsn(AFTER_1 - 1)}").message


def test_a_pinned_base_later_than_the_moment_is_refused() -> None:
    assert "no base is older" in refusal(replace(CALM, bases=CALM.bases[1:]), moment(30)).message


def test_no_base_at_all_is_refused_with_the_command_that_makes_one() -> None:
    gap = refusal(log([], run(range(3))), "latest")
    assert gap.hints == ("drkit backup orders",)


def test_immediate_needs_no_log() -> None:
    found = plan(replace(CALM, files=()), "immediate")
    assert (found.base.artifact_id, found.files, found.target_lsn) == ("NEW", (), 5 * SEGMENT + UNIT)


def test_latest_replays_everything() -> None:
    found = plan(CALM, "latest")
    assert numbers(found) == [5, 6, 7, 8, 9]
    assert found.last_commit_at == at(99)


def test_what_is_planned_does_not_depend_on_the_order_of_the_listing() -> None:
    assert plan(replace(CALM, files=CALM.files[::-1], bases=CALM.bases[::-1]), moment(75)) == plan(CALM, moment(75))


# T36: what inclusive means, and what a target waits for.


def test_inclusive_waits_for_a_commit_after_the_moment_and_exclusive_for_one_at_it() -> None:
    assert numbers(plan(CALM, moment(79))) == [5, 6, 7, 8, 9]
    assert numbers(plan(CALM, moment(79), inclusive=False)) == [5, 6, 7, 8]
    assert plan(CALM, moment(79)).last_commit_at == at(79)
    assert plan(CALM, moment(79), inclusive=False).last_commit_at == at(70)


def test_a_position_takes_one_segment_more_than_the_one_that_it_lies_in() -> None:
    found = plan(CALM, f"lsn:{format_lsn(6 * SEGMENT + 1)}", inclusive=False)
    assert numbers(found) == [5, 6, 7]
    assert (found.target_lsn, found.inclusive, found.last_commit_at) == (6 * SEGMENT + 1, False, at(59))


def test_the_very_end_of_the_log_is_latest_because_postgres_would_wait_for_a_record_after_it() -> None:
    found = plan(CALM, f"lsn:{format_lsn(10 * SEGMENT)}")
    assert (found.target.kind, found.target_lsn) == ("latest", 10 * SEGMENT)


def test_a_position_after_the_end_is_refused() -> None:
    gap = refusal(CALM, f"lsn:{format_lsn(10 * SEGMENT + 1)}")
    assert f"last good position  {format_lsn(10 * SEGMENT)}" in gap.details
    assert "first missing       00000001000000000000000A (not stored yet)" in gap.details


def test_nonsense_for_a_position_is_refused_with_an_example() -> None:
    assert "write it like 0/3000028" in refusal(CALM, "lsn:nowhere").message


@pytest.mark.parametrize("when", ["name:before_migration", "xid:4711"])
def test_what_a_listing_cannot_locate_is_planned_to_the_end_and_said(when: str) -> None:
    found = plan(CALM, when, inclusive=False)
    assert numbers(found) == [5, 6, 7, 8, 9]
    assert (found.target, found.inclusive, found.last_commit_at) == (parse_when(when), False, None)
    assert "shows only at replay" in found.warnings[0]
    assert "--artifact" in found.warnings[1]


def test_what_cannot_be_located_is_warned_of_a_gap() -> None:
    found = plan(replace(CALM, files=without(run(range(1, 10)), 8)), "xid:4711")
    assert numbers(found) == [5, 6, 7]
    assert "000000010000000000000008" in found.warnings[-1]


# T37: after the last commit.


def test_a_moment_after_the_last_commit_is_refused_and_the_commit_shown() -> None:
    gap = refusal(CALM, moment(100))
    assert f"the last commit that is stored is of {at(99).astimezone().isoformat()}" in gap.message
    assert gap.hints[0] == f"drkit restore orders --at {at(99).astimezone().isoformat()} --into DIR"


def test_that_a_later_segment_was_stored_proves_nothing_about_commits() -> None:
    quiet = segment(10)._replace(made_at=at(5000))
    assert "last commit" in refusal(replace(CALM, files=[*CALM.files, quiet]), moment(4000)).message


def test_the_moment_of_the_last_commit_is_capped_to_the_end() -> None:
    found = plan(CALM, moment(99))
    assert (found.target.kind, found.last_commit_at) == ("latest", at(99))
    assert plan(CALM, moment(99), inclusive=False).target == moment(99)


def test_a_moment_to_come_is_refused() -> None:
    assert "still to come" in refusal(CALM, When("time", moment=at(10**7 + 1))).message


def test_the_moment_of_the_base_itself_needs_no_commit_after_it() -> None:
    found = plan(log([base(AFTER_1, 12)], []), moment(12))
    assert (found.target.kind, found.target_lsn, found.files) == ("immediate", AFTER_1, ())


def test_a_base_without_any_log_reaches_no_later_moment() -> None:
    assert "no commit after the base is stored" in refusal(log([base(AFTER_1, 12)], []), moment(13)).message


def test_a_log_without_stamps_is_planned_to_its_end_and_said() -> None:
    state = log([base(AFTER_1, 12)], [segment(1), segment(2), segment(3)._replace(made_at=at(100))])
    found = plan(state, moment(60))
    assert numbers(found) == [1, 2, 3]
    assert found.target == moment(60)
    assert "shows only at replay" in found.warnings[0]


def test_a_log_without_stamps_holds_nothing_from_after_it_was_stored() -> None:
    state = log([base(AFTER_1, 12)], [segment(1), segment(2)])
    assert "no commit after the base is stored" in refusal(state, moment(60)).message


def test_a_clock_that_was_set_back_is_said() -> None:
    files = [segment(1, 10, 19), segment(2, 20, 400), segment(3, 100, 109), segment(4, 410, 419)]
    found = plan(log([base(AFTER_1, 12)], files), moment(300))
    assert numbers(found) == [1, 2, 3]
    assert "clock was set back" in found.warnings[0]


# T32: a partial segment.


def test_a_partial_segment_is_the_end_of_the_plan() -> None:
    state = log([base(AFTER_1, 12)], [*run(range(1, 3)), partial(3, 2, 30, 33)])
    assert names(plan(state, "latest").files)[-1] == "000000010000000000000003.partial-1"
    assert plan(state, "latest").last_commit_at == at(33)


def test_the_longest_copy_of_a_partial_segment_is_taken() -> None:
    copies = [partial(2, 1, 20), partial(2, 3, 20, 27, count=3), partial(2, 2, 20, 24, count=2)]
    assert names(plan(log([base(AFTER_1, 12)], [segment(1, 10, 19), *copies]), "latest").files) == [
        "000000010000000000000001",
        "000000010000000000000002.partial-3",
    ]


def test_a_partial_segment_gives_way_to_the_whole_one() -> None:
    state = log([base(AFTER_1, 12)], [*run(range(1, 4)), partial(2, 3, 20, 27)])
    assert names(plan(state, "latest").files) == names(run(range(1, 4)))


def test_a_partial_segment_never_stands_in_for_a_whole_one() -> None:
    state = log([base(AFTER_1, 12)], [*without(run(range(1, 6)), 3), partial(3, 3, 30, 37)])
    gap = refusal(state, "latest")
    assert "segment 000000010000000000000003 is missing (only its beginning is there)" in gap.message
    assert names(plan(state, moment(36)).files)[-1].endswith(".partial-1")
    assert "000000010000000000000003" in refusal(state, moment(45)).message


@pytest.mark.parametrize("end_lsn", [2 * SEGMENT, 3 * SEGMENT - 1, 4 * SEGMENT])
def test_a_file_that_is_no_whole_segment_is_not_taken_for_one(end_lsn: int) -> None:
    odd = segment(2, 20, 29)._replace(end_lsn=end_lsn)
    assert (
        "000000010000000000000002 is missing"
        in refusal(log([base(AFTER_1, 12)], [*run(range(1, 2)), odd, segment(3)]), "latest").message
    )


def test_a_file_that_begins_inside_a_segment_is_not_taken_for_one() -> None:
    odd = segment(2, 20, 29)._replace(start_lsn=2 * SEGMENT + UNIT, end_lsn=3 * SEGMENT + UNIT)
    state = log([base(AFTER_1, 12)], [segment(1, 10, 19), odd, segment(3)])
    assert "000000010000000000000002 is missing" in refusal(state, "latest").message


# T41: gaps.

HOLED = replace(CALM, files=without(run(range(1, 10)), 3))


def test_a_moment_behind_a_gap_is_refused_by_name_with_the_moments_on_both_sides() -> None:
    gap = refusal(HOLED, moment(45))
    assert gap.exit_code == 9
    assert "segment 000000010000000000000003 is missing" in gap.message
    assert f"last good position  {format_lsn(3 * SEGMENT)}" in gap.details
    assert "first missing       000000010000000000000003" in gap.details
    assert [hint.split()[4] for hint in gap.hints] == [at(29).astimezone().isoformat(), at(52).astimezone().isoformat()]


def follow(state: LogState, hint: str) -> RecoveryPlan:
    """Do what a hint says."""
    words = hint.split()
    assert words[:3] == ["drkit", "restore", "orders"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options.pop("--into") == "DIR"
    timeline = options.pop("--timeline", None)
    return plan(state, options.get("--at", "latest"), timeline=int(timeline) if timeline else None)


def test_every_hint_of_a_refusal_can_be_followed() -> None:
    for hint in refusal(HOLED, moment(45)).hints:
        follow(HOLED, hint)
    for hint in refusal(PROMOTED, moment(165), timeline=1).hints:
        follow(PROMOTED, hint)
    assert follow(PROMOTED, refusal(PROMOTED, moment(165), timeline=1).hints[0]).timeline == 1


def test_earlier_moments_and_later_ones_from_the_next_base_are_still_fine() -> None:
    assert numbers(plan(HOLED, moment(25))) == [1, 2]
    assert numbers(plan(HOLED, moment(65))) == [5, 6, 7]
    assert plan(HOLED, "latest").base.artifact_id == "NEW"


def test_latest_does_not_quietly_stop_at_a_gap() -> None:
    state = replace(CALM, bases=CALM.bases[:1], files=without(run(range(1, 10)), 3, 4, 7))
    gap = refusal(state, "latest")
    assert "2 segments are missing, 000000010000000000000003 .. 000000010000000000000004" in gap.message
    assert "restorable again    not before the next base" in gap.details


def test_a_gap_lies_between_the_last_good_moment_and_the_next_base() -> None:
    (gap,) = find_gaps(HOLED)
    assert (gap.from_lsn, gap.to_lsn, gap.from_at, gap.to_at) == (3 * SEGMENT, 5 * SEGMENT + UNIT, at(29), at(52))
    assert (gap.timeline, gap.first_missing) == (1, "000000010000000000000003")
    assert gap.reason == "segment 000000010000000000000003 is missing"
    assert [(window.from_at, window.to_at) for window in find_windows(HOLED)] == [(at(12), at(29)), (at(52), at(99))]


def test_a_gap_without_a_base_behind_it_is_open() -> None:
    (gap,) = find_gaps(replace(HOLED, bases=HOLED.bases[:1]))
    assert (gap.to_lsn, gap.to_at) == (10 * SEGMENT, None)


def test_a_log_that_ended_before_a_base_leaves_a_gap() -> None:
    (gap,) = find_gaps(replace(CALM, files=run(range(1, 3))))
    assert (gap.from_at, gap.to_at, gap.reason) == (at(29), at(52), "no WAL is stored from 000000010000000000000003 on")


def test_bases_alone_promise_nothing_in_between() -> None:
    assert find_gaps(replace(CALM, files=())) == []
    assert [(window.from_at, window.to_at) for window in find_windows(replace(CALM, files=()))] == [
        (at(12), at(12)),
        (at(52), at(52)),
    ]


def test_what_is_not_stored_yet_is_no_gap() -> None:
    assert find_gaps(CALM) == []
    assert find_windows(CALM)[0].to_lsn == 10 * SEGMENT


def test_what_was_stored_before_the_first_base_is_no_gap() -> None:
    assert find_gaps(log([base(5 * SEGMENT + UNIT, 52)], without(run(range(1, 10)), 3))) == []


# T39: timelines. The primary (1) dies in segment 5; the standby goes on as 2 from the middle of it.

SWITCH = 5 * SEGMENT + 2 * UNIT
PROMOTED = log(
    [base(AFTER_1, 12)],
    [
        *run(range(1, 5)),
        partial(5, 2, 50, 53),
        history(2),
        segment(5, 50, 159, timeline=2),
        *(segment(number, number * 10 + 100, number * 10 + 109, timeline=2) for number in range(6, 9)),
    ],
    {2: (Switch(1, SWITCH),)},
)


def test_a_promoted_standby_is_followed() -> None:
    found = plan(PROMOTED, "latest")
    assert found.timeline == 2
    assert names(found.files) == [
        "00000002.history",
        *names(run(range(1, 5))),
        *names([segment(number, timeline=2) for number in range(5, 9)]),
    ]


@pytest.mark.parametrize(
    ("seconds", "last"), [(35, [1, 2, 3, 4]), (55, [1, 2, 3, 4, 5, 6]), (165, [1, 2, 3, 4, 5, 6, 7])]
)
def test_moments_before_between_and_after_a_promotion(seconds: float, last: list[int]) -> None:
    assert numbers(plan(PROMOTED, moment(seconds))) == last


def test_the_old_timeline_can_be_pinned() -> None:
    found = plan(PROMOTED, "latest", timeline=1)
    assert names(found.files) == [*names(run(range(1, 5))), "000000010000000000000005.partial-1"]
    assert found.last_commit_at == at(53)


def test_a_moment_after_the_switch_is_refused_on_the_old_timeline_and_the_new_one_named() -> None:
    gap = refusal(PROMOTED, moment(165), timeline=1)
    assert f"timeline 2 goes on from {format_lsn(SWITCH)}" in gap.details
    assert "drkit restore orders --timeline 2 --into DIR" in gap.hints


def test_a_timeline_that_was_left_before_the_base_was_consistent_is_refused() -> None:
    state = replace(PROMOTED, bases=[base(SWITCH + UNIT, 54)])
    gap = refusal(state, "latest", timeline=2)
    assert "no base of orders leads to timeline 2" in gap.message
    assert f"it left timeline 1 at {format_lsn(SWITCH)}, before the oldest base there" in gap.details[0]
    assert gap.hints == ("drkit restore orders --timeline 1 --into DIR",)


def test_a_base_that_became_consistent_at_the_switch_leads_on() -> None:
    assert numbers(plan(replace(PROMOTED, bases=[base(SWITCH, 54)]), "latest")) == [5, 6, 7, 8]


def test_a_timeline_that_is_not_stored_is_refused() -> None:
    assert refusal(PROMOTED, "latest", timeline=7).message == "orders has no timeline 7; stored are 1, 2"


def test_a_timeline_whose_history_is_not_stored_is_refused_and_the_file_named() -> None:
    gap = refusal(replace(PROMOTED, histories={}), "latest")
    assert "00000002.history is not stored" in gap.message
    assert gap.hints == ("drkit restore orders --timeline 1 --into DIR", "drkit backup orders --method base")


def test_a_base_on_a_timeline_brings_that_far_without_its_history() -> None:
    state = replace(PROMOTED, bases=[base(6 * SEGMENT + UNIT, 162, timeline=2)], histories={})
    assert numbers(plan(state, "latest")) == [6, 7, 8]


def test_a_gap_before_the_switch_keeps_the_new_timeline_out_of_reach() -> None:
    state = replace(PROMOTED, files=[item for item in PROMOTED.files if item.name != segment(4).name])
    assert "000000010000000000000004 is missing" in refusal(state, "latest").message
    gaps = find_gaps(state)
    assert {(gap.timeline, gap.first_missing) for gap in gaps} == {(1, segment(4).name), (2, segment(4).name)}


def test_the_new_timelines_copy_of_the_switch_segment_is_asked_for() -> None:
    state = replace(PROMOTED, files=[item for item in PROMOTED.files if item.name != segment(5, timeline=2).name])
    gap = refusal(state, "latest")
    assert "segment 000000020000000000000005 is missing" in gap.message
    assert f"last good position  {format_lsn(SWITCH)}" in gap.details


def test_what_the_old_timeline_wrote_after_the_switch_counts_for_nothing() -> None:
    files = [item for item in PROMOTED.files if item.name != segment(5, timeline=2).name]
    state = replace(PROMOTED, files=[*files, segment(5, 50, 59)])
    gap = refusal(state, moment(55), timeline=2)
    assert f"last good position  {format_lsn(SWITCH)}" in gap.details
    assert f"restorable moments  {at(12).astimezone().isoformat()} .. {at(49).astimezone().isoformat()}" in gap.details


def test_the_segment_of_the_switch_is_no_line_of_its_own() -> None:
    assert plan(replace(PROMOTED, files=[*PROMOTED.files, segment(5, 50, 59)]), moment(55)).warnings == ()


def test_a_gap_that_ended_before_the_switch_is_told_once() -> None:
    late = Switch(1, 8 * SEGMENT + UNIT)
    files = [*HOLED.files, segment(8, 80, 199, timeline=2), segment(9, 200, 209, timeline=2)]
    assert [gap.timeline for gap in find_gaps(replace(HOLED, files=files, histories={2: (late,)}))] == [1]


def test_the_log_of_a_standby_that_was_never_stored_is_missed() -> None:
    state = replace(PROMOTED, files=[item for item in PROMOTED.files if item.timeline == 1])
    assert plan(state, "latest").timeline == 1
    cut = replace(state, files=without(list(state.files), 5))
    assert "cannot be brought to the end of the log" in refusal(cut, "latest", timeline=2).message


def stray(first_s: float, *, switch: int = 3 * SEGMENT + UNIT) -> LogState:
    """Return the calm log and a clone that went its own way from segment 3, archiving from ``first_s`` on."""
    files = [
        history(2),
        segment(3, first_s, first_s + 1, timeline=2),
        segment(4, first_s + 2, first_s + 3, timeline=2),
    ]
    return replace(CALM, files=[*CALM.files, *files], histories={2: (Switch(1, switch),)})


def test_a_clone_that_archives_beside_the_living_source_is_not_followed_in_silence() -> None:
    state = log(CALM.bases[:1], [*run(range(1, 30)), *stray(130).files[-3:]], stray(130).histories)
    gap = refusal(state, "latest")
    assert gap.message == "timelines 1, 2 of orders were written to at the same time; say which one"
    pins = [f"drkit restore orders --timeline {timeline} --into DIR" for timeline in (1, 2)]
    assert gap.hints == (*pins, "drkit backup orders --method base")
    assert plan(state, "latest", timeline=1).last_commit_at == at(299)


def test_a_base_taken_after_a_clone_was_seen_settles_which_line_is_the_sources() -> None:
    clone = stray(130)
    bases = [*CALM.bases, base(20 * SEGMENT + UNIT, 202)]
    state = log(bases, [*run(range(1, 30)), *clone.files[-3:]], clone.histories)
    assert plan(state, "latest").timeline == 1


def test_a_source_that_was_itself_brought_back_in_time_is_followed() -> None:
    found = plan(replace(stray(5000), bases=CALM.bases[:1]), "latest")
    assert (found.timeline, found.last_commit_at) == (2, at(5003))


def test_a_moment_of_which_another_line_knows_more_is_said() -> None:
    state = replace(stray(5000), bases=CALM.bases[:1])
    found = plan(state, moment(75))
    assert found.timeline == 2
    assert "timeline 1 was written to at that moment too" in found.warnings[0]
    assert plan(state, moment(75), timeline=1).warnings == ()
    assert plan(state, moment(15)).warnings == ()


def test_immediate_stays_on_the_bases_own_timeline() -> None:
    found = plan(stray(5000), "immediate")
    assert (found.timeline, found.base.artifact_id, found.files) == (1, "NEW", ())


def test_windows_of_two_timelines_share_no_position() -> None:
    one, two = find_windows(PROMOTED)
    assert (one.timeline, one.from_lsn, one.to_lsn) == (1, AFTER_1, SWITCH)
    assert (two.timeline, two.from_lsn, two.to_lsn) == (2, SWITCH, 9 * SEGMENT)
    assert (two.from_at, two.to_at) == (at(49), at(189))


# Other segment sizes, and large logs.


@pytest.mark.parametrize("factor", [1, 4, 64])
def test_segments_of_another_size(factor: int) -> None:
    size = factor * SEGMENT
    files = [
        item._replace(start_lsn=number * size, end_lsn=(number + 1) * size)
        for number, item in enumerate(run(range(1, 6)), 1)
        if number != 4
    ]
    state = LogState([base(size + UNIT, 12)], files, {}, segment_bytes=size, policy="orders")
    assert len(plan(state, moment(25)).files) == 3
    (gap,) = find_gaps(state)
    assert gap.from_lsn == 4 * size
    assert gap.first_missing == "000000010000000000000004"


def test_a_base_that_was_taken_after_the_clock_was_set_back_is_past_the_moments_that_came_twice() -> None:
    bases = [base(SEGMENT, 5), base(3 * SEGMENT + UNIT, 24)]
    files = [segment(1, 10, 19), segment(2, 20, 40), segment(3, 22, 23), segment(4, 25, 45)]
    plan = plan_recovery(log(bases, files), When("time", at(30)), now=NOW)
    assert plan.base == bases[0], "the newer one holds what was committed at 40"
    assert plan.target.moment == at(30)
    assert plan_recovery(log(bases, files), When("time", at(41)), now=NOW).base == bases[1]
    with pytest.raises(RecoveryGap, match="no base is older"):
        plan_recovery(log(bases[1:], files), When("time", at(30)), now=NOW)


def test_a_hundred_thousand_segments_are_planned_and_checked_for_gaps_quickly() -> None:
    files = run(range(1, 100_001))
    del files[50_000]
    state = log(
        [base(AFTER_1, 12), *(base(number * SEGMENT, number * 10 + 1) for number in range(300, 100_000, 300))], files
    )
    started_s = time.process_time()
    (gap,) = find_gaps(state)
    windows = find_windows(state)
    found = plan(state, "latest")
    assert time.process_time() - started_s < 5
    assert gap.first_missing == run(range(50_001, 50_002))[0].name
    assert len(windows) == 2
    assert len(found.files) == 101


# Coverage.


def span(start: float, end: float) -> tuple[datetime, datetime]:
    return at(start), at(end)


def test_the_proven_share_counts_what_was_replayed_once() -> None:
    windows = find_windows(HOLED)
    found = measure_coverage(windows, [span(12, 20), span(15, 22), span(52, 62), span(30, 40)])
    assert found.share == pytest.approx((10 + 10) / (17 + 47))
    assert found.largest_unproven == span(62, 99)


def test_all_proven_leaves_no_stretch() -> None:
    found = measure_coverage(find_windows(CALM), [span(0, 1000)])
    assert (found.share, found.largest_unproven) == (1, None)


def test_nothing_promised_is_nothing_proven() -> None:
    assert measure_coverage([], [span(0, 1)]).share == 0
