"""An oplog whose places run backwards: what is read of a server, and what a slice holds."""

from __future__ import annotations

import hashlib
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drkit.engines.mongodb_oplog import OplogReach, Reading
from drkit.errors import IntegrityError
from drkit.operations import oplog_tail, restore_oplog
from drkit.operations.oplog_spool import Position
from drkit.operations.oplog_tail import OplogTail
from drkit.operations.restore_oplog import ReplaySteps
from drkit.oplog import Anchor, OplogSpan, OplogTs, read_ts
from drkit.oplog_windows import Slice
from tests.unit.oplog_entries import SECONDS, insert

ENTRIES = [insert(number, "shop.orders", {"_id": number}) for number in (1, 3, 2, 4)]
BEFORE, NEWEST = OplogTs(SECONDS, 1), OplogTs(SECONDS + 9, 1)


class Shipper:
    """Remembers what was sealed and lost."""

    def __init__(self) -> None:
        self.position = Position(1, Anchor(BEFORE))
        self.sealed: list[bytes] = []
        self.lost: list[tuple[OplogTs, str]] = []

    def seal(self, position: Position, span: OplogSpan, content: list[bytes]) -> Position:
        assert span.last_ts is not None
        self.sealed += content
        self.position = Position(position.timeline, Anchor(span.last_ts, span.last_sha256))
        return self.position

    def note_lost(self, to: Anchor, reason: str) -> None:
        self.lost.append((to.ts, reason))
        self.position = Position(1, to)


def test_entries_that_do_not_follow_on_each_other_are_a_named_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oplog_tail, "require_reach", lambda _: OplogReach(BEFORE, NEWEST, 0, 0))
    events: list[dict[str, Any]] = []
    told: list[tuple[str, str]] = []
    catalog = SimpleNamespace(add_event=lambda name, at, facts: events.append(facts))
    shipper, recovered = Shipper(), threading.Event()
    recovered.set()
    setting = SimpleNamespace(
        shipper=shipper,
        recovered=recovered,
        policy=SimpleNamespace(policy="orders"),
        rule=SimpleNamespace(slice_size=1 << 20),
        workplace=SimpleNamespace(catalog=catalog, clock=lambda: None),
        tell=lambda name, state, message: told.append((state, message)),
    )
    tail = OplogTail(cast("Any", setting))
    reading = Reading("continues", iter([ENTRIES[0], b"".join(ENTRIES[1:3]), ENTRIES[3]]))
    tail._read(cast("Any", None), reading, tail._current(), threading.Event())
    assert shipper.sealed == [ENTRIES[0]]
    ((to_ts, reason),) = shipper.lost
    assert to_ts == NEWEST
    assert f"entry {SECONDS + 2}:1 does not follow on {SECONDS + 3}:1" in reason
    assert [(facts["from_ts"], facts["to_ts"]) for facts in events] == [(f"{SECONDS + 1}:1", str(NEWEST))]
    ((state, message),) = told
    assert state == "disorder"
    assert "take a dump now: drkit backup orders" in message


ONE, THREE, TWO, FOUR = ENTRIES
EARLY = insert(0, "shop.orders", {"_id": 0})


@pytest.mark.parametrize(
    ("entries", "signed", "words"),
    [
        ([ONE, THREE, TWO, FOUR], 4, f"entry {SECONDS + 2}:1 does not follow on {SECONDS + 3}:1"),
        ([ONE, THREE, THREE, FOUR], 4, f"entry {SECONDS + 3}:1 does not follow on {SECONDS + 3}:1"),
        ([ONE, TWO, FOUR], 4, "does not hold the entries that its manifest says"),
        ([EARLY, TWO, FOUR], 3, "does not hold the entries that its manifest says"),
    ],
)
def test_a_signed_slice_that_holds_other_entries_than_it_says_is_refused(
    entries: list[bytes], signed: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"".join(entries)
    for name in ("fetch", "copies_passed_over", "inspect"):
        monkeypatch.setattr(restore_oplog, name, lambda *_: [])
    monkeypatch.setattr(restore_oplog, "open_slice", lambda *_: iter([content[:100], content[100:]]))
    record = SimpleNamespace(
        part="a-slice",
        entries=signed,
        last_sha256=hashlib.sha256(FOUR).hexdigest(),
        first_ts=str(read_ts(entries[0])),
    )
    stored = SimpleNamespace(record=record, slice=Slice(1, BEFORE, OplogTs(SECONDS + 4, 1)))
    plan = SimpleNamespace(restore=SimpleNamespace(identities=[], stored_bytes=0), slices=[stored], plain_bytes=1)
    reporter = SimpleNamespace(progress=lambda *_: _Progress())
    with pytest.raises(IntegrityError, match="oplog slice a-slice") as caught:
        ReplaySteps(cast("Any", SimpleNamespace(work_folder=None)), cast("Any", plan), cast("Any", reporter)).verify()
    assert words in caught.value.message


class _Progress:
    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, size_bytes: int) -> None:
        """Take note of nothing."""
