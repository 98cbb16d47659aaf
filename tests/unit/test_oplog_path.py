"""Which dump and which slices lead to a moment, and what is said where nothing does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from drkit.engines.mongodb_apply import Replayed
from drkit.errors import RecoveryGap
from drkit.operations.oplog_plan import OplogPlan
from drkit.operations.replay_words import describe_doubts
from drkit.operations.restore_oplog import ReplaySteps
from drkit.oplog import OplogTs
from drkit.oplog_path import ReplayPath, StoredLog, find_path, path_to_stop
from drkit.oplog_windows import DumpPoint, KnownGap, Slice

BEGUN_AT = datetime(2026, 11, 22, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGUN_AT + timedelta(seconds=seconds)


def ts(seconds: int, increment: int = 1) -> OplogTs:
    return OplogTs(int(at(seconds).timestamp()), increment)


def piece(begin: int, end: int, timeline: int = 1) -> Slice:
    return Slice(timeline, ts(begin), ts(end), f"{begin}-{end}")


def dump(name: str, start: int, stop: int, timeline: int = 1, *, included: bool = True) -> DumpPoint:
    return DumpPoint(name, timeline, ts(start), ts(stop), included)


LOG = StoredLog(
    "shop",
    [dump("one", 0, 10), dump("two", 100, 110), dump("bare", 200, 210, included=False)],
    [piece(5, 60), piece(60, 120), piece(120, 180), piece(180, 240)],
)


def names(path: ReplayPath) -> list[str]:
    return [path.dump.artifact_id, *(item.name for item in path.slices)]


@pytest.mark.parametrize(
    ("seconds", "way"),
    [
        (10.0, ["one", "5-60"]),
        (59.9, ["one", "5-60"]),
        (60.0, ["one", "5-60", "60-120"]),
        (110.5, ["one", "5-60", "60-120"]),
        (111.0, ["two", "60-120"]),
        (199.0, ["two", "60-120", "120-180", "180-240"]),
        (240.9, ["bare", "180-240"]),
    ],
)
def test_the_newest_dump_that_is_whole_before_the_moment_is_rolled_forward(seconds: float, way: list[str]) -> None:
    path = find_path(LOG, at(seconds))
    assert names(path) == way
    assert path.until == at(seconds)


def test_the_latest_is_the_end_of_the_log_and_a_dump_alone_is_its_own_end() -> None:
    path = find_path(LOG, None)
    assert (names(path), path.reaches_ts, path.until) == (["bare", "180-240"], ts(240), None)
    assert names(path_to_stop(LOG, "one")) == ["one"]
    assert names(path_to_stop(LOG, "bare")) == ["bare", "180-240"]


def test_a_dump_that_is_asked_for_is_the_one_that_is_taken() -> None:
    assert names(find_path(LOG, at(111), "one"))[0] == "one"
    with pytest.raises(RecoveryGap, match="is consistent at"):
        find_path(LOG, at(111), "bare")


def test_what_is_missing_is_named_before_anything_is_done() -> None:
    broken = StoredLog(
        "shop", LOG.dumps[:1], [piece(5, 60), piece(120, 180)], [KnownGap(1, ts(60), ts(120), "overrun")]
    )
    assert names(find_path(broken, at(60))) == ["one", "5-60"]
    with pytest.raises(RecoveryGap, match="go on after"):
        find_path(broken, None)
    with pytest.raises(RecoveryGap) as caught:
        find_path(broken, at(130))
    assert f"goes up to {ts(60)}" in caught.value.message
    assert f"go on after {ts(120)}" in caught.value.message
    assert caught.value.details == ("overrun",)


def test_a_log_that_goes_on_behind_what_is_replayed_is_told_from_one_that_just_ends() -> None:
    assert not find_path(LOG, at(240.9)).goes_on
    assert find_path(LOG, at(59.9)).goes_on, "a slice was left out, because its places are later than the moment"
    beyond = StoredLog("shop", LOG.dumps[:1], [piece(5, 60), Slice(1, ts(60, 9), ts(70), "beyond")])
    lost = StoredLog("shop", LOG.dumps[:1], [piece(5, 60)], [KnownGap(1, ts(60), ts(60, 9), "overrun")])
    for broken in (beyond, lost):
        assert find_path(broken, at(60.5)).goes_on, "a gap within one second"


@pytest.mark.parametrize(
    ("seconds", "words"), [(9.9, "the oldest dump"), (241.0, "and .* is wanted"), (9999, "is wanted")]
)
def test_a_moment_outside_of_what_is_there_is_refused(seconds: float, words: str) -> None:
    with pytest.raises(RecoveryGap, match=words):
        find_path(LOG, at(seconds))


def test_without_a_dump_there_is_no_way() -> None:
    with pytest.raises(RecoveryGap, match="has no dump that the oplog goes on from"):
        find_path(StoredLog("shop", [], LOG.slices), None)


def test_no_slice_of_another_timeline_is_used() -> None:
    later = StoredLog(
        "shop", [*LOG.dumps, dump("new", 300, 310, timeline=2)], [*LOG.slices, piece(310, 400, timeline=2)]
    )
    assert names(find_path(later, None)) == ["new", "310-400"]
    with pytest.raises(RecoveryGap):
        find_path(later, at(305))


def test_a_replay_that_meets_a_gap_before_the_moment_ends_is_refused() -> None:
    path = ReplayPath(dump("bare", 0, 0, included=False), (), at(60.5), ts(60), goes_on=True)
    plan: Any = SimpleNamespace(
        path=path,
        slices=(),
        plain_bytes=0,
        restore=SimpleNamespace(entry=SimpleNamespace(manifest=Mock(policy="shop"))),
    )
    session = Mock()
    session.replay.side_effect = list
    with pytest.raises(RecoveryGap, match="the log goes on behind it"):
        ReplaySteps(Mock(), plan, MagicMock()).replay(session)


def test_the_end_of_an_older_history_is_not_taken_for_the_latest_in_silence() -> None:
    restore: Any = Mock(objects=())
    path = find_path(LOG, None)
    said = describe_doubts(OplogPlan(restore, path, (), undumped_timeline=2), Replayed())
    assert said == ["timeline 2 of the oplog has no dump yet: what is restored is timeline 1, the history before it"]
    assert describe_doubts(OplogPlan(restore, path, ()), Replayed()) == []
    asked = OplogPlan(restore, find_path(LOG, at(60)), (), undumped_timeline=2)
    assert describe_doubts(asked, Replayed(passed=True)) == []
