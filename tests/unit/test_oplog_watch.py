"""What is asked of the oplog before a dump and after it."""

from __future__ import annotations

import bson
import pytest
from bson import Timestamp

from drkit.engines.mongodb_oplog import OplogReach
from drkit.engines.mongodb_oplog_watch import OplogWatch, forecast
from drkit.errors import SourceError
from drkit.oplog import OplogTs


def at(seconds: int) -> OplogTs:
    """Return a place."""
    return OplogTs(seconds, 1)


def watch(*entries: int, begun: int = 10, reading: int = 12) -> OplogWatch:
    """Return what was seen of a dump whose archive has entries of some seconds."""
    seen = OplogWatch()
    seen.begin(at(begun))
    seen.reading_ts = at(reading)
    for seconds in entries:
        seen.span.add(bson.encode({"op": "n", "ts": Timestamp(seconds, 1)}))
    return seen


REACH = OplogReach(at(1), at(20), 0, 0)


def test_a_dump_holds_the_oplog_from_its_begin_to_its_end() -> None:
    found = watch(10, 11, 15).require_covered(3, REACH)
    assert (found.start_ts, found.stop_ts, found.included) == ("10:1", "15:1", True)
    # A transaction that was open when the dump began makes it start earlier.
    assert watch(7, 10).require_covered(2, REACH).start_ts == "7:1"


@pytest.mark.parametrize(
    ("seen", "entries", "reach", "message"),
    [
        (watch(), 0, REACH, "wrote no entry"),
        (watch(), None, REACH, "wrote no entry"),
        (watch(13, 15), 2, REACH, "does not cover the dump"),
        (watch(7, 9), 2, REACH, "does not cover the dump"),
        (watch(10, 15), 2, OplogReach(at(11), at(20), 0, 0), "was overrun while the dump ran"),
    ],
)
def test_an_oplog_that_does_not_cover_the_dump_fails_it(
    seen: OplogWatch, entries: int | None, reach: OplogReach, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        seen.require_covered(entries, reach)


def test_a_dump_is_refused_that_would_not_fit_and_warned_of_that_may_not() -> None:
    # A tenth of the oplog is full after an hour: an entry stays for ten hours.
    reach = OplogReach(at(0), at(3600), 100_000_000, 1_000_000_000)
    assert forecast(reach, 1000) == ("oplog of 1:00:00 at 100 MB an hour", ())
    assert forecast(reach, 10**15, 60)[1] == ()
    (warning,) = forecast(reach, 0, 6 * 3600)[1]
    assert warning == "the dump is thought to take 6:00:00, and the oplog holds 10:00:00: more than half of it"
    with pytest.raises(SourceError, match="it would be overrun"):
        forecast(reach, 0, 11 * 3600)
    with pytest.raises(SourceError, match="it would be overrun"):
        forecast(reach, 20_000_000 * 11 * 3600)


def test_where_a_server_does_not_say_how_large_its_oplog_may_get_nothing_is_guessed() -> None:
    assert forecast(OplogReach(at(0), at(60), 0, 0), 10**15) == ("oplog of 0:01:00", ())


def test_a_dump_of_a_part_of_a_server_needs_what_lies_around_it() -> None:
    seen = watch()
    seen.begin(at(11))
    found = seen.around(at(30))
    assert found is not None
    assert (found.start_ts, found.stop_ts, found.included) == ("10:1", "30:1", False)
    assert OplogWatch().around(at(30)) is None
