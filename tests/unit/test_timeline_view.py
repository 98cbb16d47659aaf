"""The drawing of a timeline: the right mark in the right column, nothing wider than the terminal, no gap invisible."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.cli.timeline_view import Proof, TimelinePicture, draw_timeline
from drkit.operations.timeline import Timeline
from drkit.recovery import Gap, Window
from drkit.recovery_coverage import Coverage

WINTER = timezone(timedelta(hours=1))


def november(day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, second, tzinfo=WINTER)


LOST = Gap(
    timeline=3,
    from_lsn=1,
    to_lsn=2,
    from_at=november(15, 3, 12, 44),
    to_at=november(15, 5, 0, 10),
    first_missing="0000000300000009000000A1",
    reason="segment 0000000300000009000000A1 is missing",
)
PICTURE = TimelinePicture(
    policy="orders",
    now=november(22, 14, 3),
    windows=[
        Window(3, 0, 1, november(8, 3), LOST.from_at),
        Window(3, 2, 3, november(15, 5, 0, 10), november(22, 14, 2, 41)),
    ],
    gaps=[LOST],
    bases=[november(day, 3) for day in range(8, 23, 2)],
    dumps=[november(day, 4) for day in (8, 15, 22)],
    proofs=[
        Proof(november(9, 7), "passed"),
        Proof(november(12, 7), "passed_with_findings"),
        Proof(november(14, 7), "failed"),
    ],
    coverage=Coverage(0.9829, (november(13, 18), november(15, 1))),
    objective=timedelta(minutes=15),
    columns=100,
    plain=True,
    zone=WINTER,
)


def row(drawn: str, label: str) -> str:
    return next(line[11:] for line in drawn.splitlines() if line.startswith(label))


def test_the_whole_picture() -> None:
    assert draw_timeline(PICTURE).splitlines() == [
        "orders   now 2026-11-22 14:03+01:00      restorable to 14:02:41 (RPO 19 s, objective 0:15:00)",
        "                     11-10     11-12      11-14     11-16      11-18     11-20",
        "bases      |          |         |          |         |          |         |          |",
        "wal        ===================================== =======================================  timeline 3",
        "proven           x               ?         !",
        "                                                ^",
        "           gap 11-15 03:12:44 .. 05:00:10: segment 0000000300000009000000A1 is missing",
        "dumps      o                                    o                                    o",
        "drills: x passed, ? passed with findings, ! failed",
        "proven share of the window 98.2 %, largest unproven stretch 1 d 7 h (11-13 18:00:00 .. 11-15",
        "  01:00:00)",
    ]


def test_plain_is_ascii_and_otherwise_only_the_marks_differ() -> None:
    plain, rich = draw_timeline(PICTURE), draw_timeline(replace(PICTURE, plain=False))
    assert plain.isascii()
    assert not rich.isascii()
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in rich.splitlines()]


@settings(deadline=None)
@given(st.integers(0, 300))
def test_nothing_is_wider_than_the_terminal(columns: int) -> None:
    drawn = draw_timeline(replace(PICTURE, columns=columns))
    assert max(map(len, drawn.splitlines())) <= max(columns, 80)


@settings(deadline=None)
@given(
    st.integers(80, 200),
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4, unique=True).map(sorted),
    st.sampled_from([1, 60, 86400]),
)
def test_every_gap_is_seen_and_pointed_at(columns: int, seconds: list[int], unit_s: int) -> None:
    start, lost, again, end = (november(1) + timedelta(seconds=second * unit_s) for second in seconds)
    picture = TimelinePicture(
        policy="orders",
        now=end,
        windows=[Window(1, 0, 1, start, lost), Window(1, 2, 3, again, end)],
        gaps=[replace(LOST, timeline=1, from_at=lost, to_at=again)],
        columns=columns,
        plain=True,
        zone=UTC,
    )
    drawn = draw_timeline(picture).splitlines()
    wal = next(line for line in drawn if line.startswith("wal"))
    pointer = next(line.index("^") for line in drawn if "^" in line)
    assert wal[pointer] == " "


def test_an_open_gap_says_that_only_a_base_ends_it() -> None:
    drawn = draw_timeline(replace(PICTURE, windows=PICTURE.windows[:1], gaps=[replace(LOST, to_at=None)], columns=160))
    assert "gap 11-15 03:12:44 until the next base: segment" in drawn
    assert "restorable to 2026-11-15 03:12:44" in drawn
    assert "objective 0:15:00: MISSED)" in drawn


def test_the_oldest_of_many_gaps_are_counted() -> None:
    gaps = [replace(LOST, from_at=november(day, 3), to_at=november(day, 5)) for day in range(8, 20)]
    drawn = draw_timeline(replace(PICTURE, gaps=gaps))
    assert drawn.count("gap 11-") == 6
    assert "gap 11-19" in drawn
    assert "and 6 older gaps (--json lists them)" in drawn


def test_each_timeline_has_a_row_of_its_own() -> None:
    picture = replace(PICTURE, windows=[*PICTURE.windows, Window(4, 3, 4, november(20), november(22))])
    drawn = draw_timeline(picture).splitlines()
    assert [line.split("timeline ")[1] for line in drawn if "  timeline " in line] == ["3", "4"]
    assert sum(line.startswith("wal") for line in drawn) == 1


def test_a_failed_drill_is_not_hidden_by_a_passed_one_of_the_same_hour() -> None:
    at = november(12, 7)
    assert "!" in row(draw_timeline(replace(PICTURE, proofs=[Proof(at, "failed"), Proof(at, "passed")])), "proven")


def test_only_passed_drills_need_no_legend() -> None:
    assert "drills:" not in draw_timeline(replace(PICTURE, proofs=PICTURE.proofs[:1]))


def test_nothing_to_draw_is_said() -> None:
    empty = TimelinePicture("orders", november(22, 14, 3), [], zone=WINTER)
    assert draw_timeline(empty) == "orders   now 2026-11-22 14:03+01:00      no moment can be restored from a log"


def test_dumps_alone_are_drawn() -> None:
    drawn = draw_timeline(TimelinePicture("orders", november(22), [], dumps=[november(20), november(21)], plain=True))
    assert row(drawn, "dumps").count("o") == 2
    assert "wal" not in drawn


@pytest.mark.parametrize(
    ("hours", "ticks"),
    [
        (0.05, ["12:00", "12:01", "12:02"]),
        (3, ["12:00", "12:30", "13:00", "13:30", "14:00", "14:30"]),
        (24 * 1000, ["2027-05", "2027-11", "2028-05", "2028-11"]),
    ],
)
def test_ticks_are_round_moments_of_the_local_clock(hours: float, ticks: list[str]) -> None:
    start = november(22, 12)
    window = Window(1, 0, 1, start, start + timedelta(hours=hours))
    drawn = draw_timeline(TimelinePicture("orders", window.to_at, [window], zone=WINTER))
    assert drawn.splitlines()[1].split()[: len(ticks)] == ticks


def test_ticks_stay_round_when_summer_time_ends() -> None:
    zone = ZoneInfo("Europe/Berlin")
    window = Window(1, 0, 1, datetime(2026, 10, 24, tzinfo=zone), datetime(2026, 10, 26, tzinfo=zone))
    drawn = draw_timeline(TimelinePicture("orders", window.to_at, [window], columns=190, zone=zone))
    day = ["03:00", "06:00", "09:00", "12:00", "15:00", "18:00", "21:00"]
    assert drawn.splitlines()[1].split() == ["10-24", *day, "10-25", *day]


@pytest.mark.parametrize(("ahead", "doubts"), [(timedelta(hours=1), 1), (timedelta(minutes=4), 0)])
def test_a_slow_clock_makes_no_negative_rpo_and_is_named(ahead: timedelta, doubts: int) -> None:
    now = PICTURE.windows[-1].to_at - ahead
    drawn = draw_timeline(replace(PICTURE, now=now))
    assert "(RPO 0.0 s, objective 0:15:00)" in drawn
    found = Timeline("orders", now, PICTURE.windows, [], [], [], [], PICTURE.coverage, None, None, [], [], [])
    assert ["1:00:00 or more behind the database server's" in doubt for doubt in found.doubts] == [True] * doubts
