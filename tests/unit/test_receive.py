"""What is left in the spool when receiving begins anew: pg_receivewal must not stumble over it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drkit.operations.receive import Receiver
from drkit.operations.spool import Spool
from drkit.wal import Segment
from tests.fixtures.wal_files import make_wal

SEGMENT = Segment(1, 7, 1 << 20)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "wal" / "orders")


def begin_anew(spool: Spool) -> None:
    setting: Any = SimpleNamespace(spool=spool, tell=lambda *_: None)
    position: Any = SimpleNamespace(segment_bytes=SEGMENT.segment_bytes)
    Receiver(setting)._leave_stale(position)  # the step of a round before a server is asked


def test_an_unfinished_segment_that_a_full_disk_cut_short_is_removed(spool: Spool) -> None:
    """pg_receivewal pads a new file with zeros before it writes log into it, and refuses one of another size."""
    short = spool.received / f"{SEGMENT.name}.partial"
    short.write_bytes(bytes(300_000))
    begin_anew(spool)
    assert list(spool.received.iterdir()) == []
    assert list(spool.left.iterdir()) == []
    begin_anew(spool)  # and nothing is there the next time


@pytest.mark.parametrize("size_bytes", [0, 10])
def test_one_that_has_not_even_a_header_is_removed(spool: Spool, size_bytes: int) -> None:
    (spool.received / f"{SEGMENT.name}.partial").write_bytes(bytes(size_bytes))
    begin_anew(spool)
    assert list(spool.received.iterdir()) == []


def test_what_has_log_in_it_or_is_whole_stays(spool: Spool) -> None:
    """A short one with log is not ours to judge; a whole one of zeros is where pg_receivewal goes on."""
    with_log = spool.received / f"{SEGMENT.name}.partial"
    with_log.write_bytes(make_wal(SEGMENT, pages=2)[:300_000])
    padded = spool.received / f"{SEGMENT.next().name}.partial"
    padded.write_bytes(bytes(SEGMENT.segment_bytes))
    before = with_log.read_bytes()
    begin_anew(spool)
    assert padded.stat().st_size == SEGMENT.segment_bytes
    assert (spool.left / with_log.name).read_bytes() == before, "older than what goes on: shipped from there"


@pytest.mark.parametrize(
    ("free_mib", "held", "goes_on"), [(3, True, False), (4, True, True), (5, False, False), (6, False, True)]
)
def test_nothing_is_received_on_a_full_disk_before_the_ballast_is_held_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, *, free_mib: int, held: bool, goes_on: bool
) -> None:
    """What comes fast takes the last byte between two looks; without the ballast it could never be shipped then."""
    if held:
        (spool.folder / "ballast").touch()
    monkeypatch.setattr(spool, "free_bytes", lambda: free_mib << 20)
    told: list[str] = []
    setting: Any = SimpleNamespace(spool=spool, tell=lambda _duty, state, _message: told.append(state))
    position: Any = SimpleNamespace(segment_bytes=SEGMENT.segment_bytes)
    assert Receiver(setting)._is_full(position) is not goes_on
    assert told == ([] if goes_on else ["disk-full"])
