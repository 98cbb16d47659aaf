"""SIGKILL at every request to a store and at every change of the spool while an oplog is tailed and shipped.

After each kill, and with nothing done in between, must hold: what is listed is there, as listed, and slices follow on
each other. The next process reads the source again and finishes the work: every entry is stored once.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import bson
import pytest
from bson import Timestamp

from drkit.app import open_app
from drkit.errors import IntegrityError, SourceError, StoreError, StoreUnavailable
from drkit.keys import load_identities
from drkit.operations.oplog_branch import start_timeline
from drkit.operations.oplog_log import newest_timeline, open_slice, stored_oplog
from drkit.operations.oplog_ship import OplogShipper
from drkit.operations.oplog_spool import OplogSpool, Position, oplog_folder
from drkit.operations.sealed_files import SealedDamaged
from drkit.oplog import Anchor, OplogSpan, OplogTs, read_ts, split_entries
from tests.faults.injection import Trigger, WatchedStore
from tests.faults.test_kill_shipping import in_child
from tests.fixtures.oplog import OplogSite
from tests.fixtures.site import ReadySite

STORES = ("primary", "second")
ENTRIES = [
    bson.encode({"op": "i", "ns": "shop.a", "o": {"_id": number}, "ts": Timestamp(1_700_000_000 + number, 1)})
    for number in range(7)
]
PER_SLICE = 3


@pytest.fixture
def source(ready_site: ReadySite) -> OplogSite:
    """Lend a site with two stores; nobody asks for its server."""
    ready_site.add_store("second").mkdir()
    site = OplogSite(ready_site)
    site.write_policy("mongodb://nowhere", stores=STORES)
    return site


@contextmanager
def shipper_of(site: OplogSite, trigger: Trigger | None = None) -> Iterator[OplogShipper]:
    """Lend what ships; every request to a store passes by the trigger."""
    with open_app(site.site.site_file) as workplace:
        spool = OplogSpool(oplog_folder(workplace.site, "orders"))
        shipper = OplogShipper(workplace, workplace.policies["orders"], spool)
        if trigger is not None:
            for lane in shipper._lanes:
                lane.store = WatchedStore(lane.store, trigger)
        shipper.recover()
        yield shipper


def tail(site: OplogSite, trigger: Trigger | None = None, entries: list[bytes] = ENTRIES) -> None:
    """Do one after the other what the threads of `drkit serve` do, with a list for a server."""
    with shipper_of(site, trigger) as shipper:
        if shipper.position is None:
            shipper.begin(Anchor(read_ts(entries[0])))
        while True:
            position = shipper.position
            assert position is not None
            content = [entry for entry in entries if read_ts(entry) > position.end.ts][:PER_SLICE]
            if not content:
                break
            span = OplogSpan()
            span.add(b"".join(content))
            shipper.seal(position, span, content)
            shipper.ship()
        shipper.ship()


def check_stored(site: OplogSite) -> list[bytes]:
    """Assert that what is listed is there and follows on each other; return the entries that both stores have."""
    with open_app(site.site.site_file) as workplace:
        found = stored_oplog(workplace, "orders")
        assert found.doubts == []
        assert all(one.slice.to_ts == two.slice.from_ts for one, two in pairwise(found.slices))
        keys = load_identities([site.site.restore_identity], None)
        everywhere = [item for item in found.slices if set(item.stores) == set(STORES)]
        return [entry for item in everywhere for entry in split_entries(open_slice(workplace, keys, item))]


POINTS = 100
SHARD = 25


@pytest.mark.parametrize("start", range(0, POINTS, SHARD))
def test_killed_at_every_point_of_a_clean_run(
    source: OplogSite, tmp_path: Path, start: int, ready_site: ReadySite
) -> None:
    # After one point and before the next is the same place.
    for count in range(start + 1, start + SHARD + 1, 2):
        for folder in (ready_site.store_folder, ready_site.folder / "second", ready_site.folder / "var" / "oplog"):
            shutil.rmtree(folder / "policies" if folder.name != "oplog" else folder, ignore_errors=True)
        status = in_child(lambda trigger: tail(source, trigger, ENTRIES[:4]), tmp_path / "trace", count)
        check_stored(source)
        tail(source)
        assert check_stored(source) == ENTRIES[1:], count
        spool = OplogSpool(source.spool)
        assert (list(spool.sealed.iterdir()), list(spool.manifests.iterdir())) == ([], [])
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            break


def test_those_were_all_points(source: OplogSite, tmp_path: Path) -> None:
    assert in_child(lambda trigger: tail(source, trigger, ENTRIES[:4]), tmp_path / "trace", 0) == 0
    assert len((tmp_path / "trace").read_text().splitlines()) < POINTS


def test_a_lost_spool_goes_on_behind_what_the_store_lists(source: OplogSite) -> None:
    tail(source, entries=ENTRIES[:4])
    shutil.rmtree(source.spool)
    tail(source)
    assert check_stored(source) == ENTRIES[1:]


def test_a_store_that_is_away_loses_nothing(source: OplogSite) -> None:
    with shipper_of(source) as shipper:
        shipper.begin(Anchor(read_ts(ENTRIES[0])))
        for lane in shipper._lanes:
            with suppress(StoreUnavailable), lane.asking():
                raise StoreUnavailable("away for now")
        span = OplogSpan()
        span.add(ENTRIES[1])
        assert shipper.position is not None
        shipper.seal(shipper.position, span, [ENTRIES[1]])
        with pytest.raises(StoreUnavailable):
            shipper.ship()
        assert shipper.oldest_unstored_ts() == read_ts(ENTRIES[1])
    tail(source)
    assert check_stored(source) == ENTRIES[1:]


def test_a_damaged_slice_is_read_again(source: OplogSite) -> None:
    with shipper_of(source) as shipper:
        shipper.begin(Anchor(read_ts(ENTRIES[0])))
        span = OplogSpan()
        span.add(ENTRIES[1])
        assert shipper.position is not None
        shipper.seal(shipper.position, span, [ENTRIES[1]])
        (path,) = (item for item in (source.spool / "sealed").iterdir() if item.suffix != ".json")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(SealedDamaged):
            shipper.ship()
        assert shipper.position.end == Anchor(read_ts(ENTRIES[0]))
    tail(source)
    assert check_stored(source) == ENTRIES[1:]


def seal_one_by_one(shipper: OplogShipper, entries: list[bytes]) -> None:
    """Make a slice of each entry."""
    for entry in entries:
        span = OplogSpan()
        span.add(entry)
        assert shipper.position is not None
        shipper.seal(shipper.position, span, [entry])


@pytest.mark.parametrize("lost", [False, True], ids=["the first store has it", "no store has it"])
def test_a_damaged_slice_that_is_listed_comes_from_the_store_that_has_it(source: OplogSite, *, lost: bool) -> None:
    second, away = source.site.folder / "second", source.site.folder / "away"
    second.rename(away)
    with shipper_of(source) as shipper:
        shipper.begin(Anchor(read_ts(ENTRIES[0])))
        seal_one_by_one(shipper, ENTRIES[1:4])
        with pytest.raises(StoreError, match="of store second does not exist"):
            shipper.ship()
    damaged = min(item for item in (source.spool / "sealed").iterdir() if item.suffix != ".json")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    away.rename(second)
    if not lost:
        tail(source)
        assert check_stored(source) == ENTRIES[1:]
        assert [list((source.spool / name).iterdir()) for name in ("sealed", "manifests")] == [[], []]
        return
    min(source.site.store_folder.rglob("*.zst.age")).unlink()
    with shipper_of(source) as shipper, pytest.raises(IntegrityError, match="is missing, and a signed log manifest"):
        shipper.ship()
    assert len(list(second.rglob("*.zst.age"))) == 2, "those behind it had their turn"


def test_a_lost_stretch_is_signed_and_survives_a_restart(source: OplogSite) -> None:
    tail(source, entries=ENTRIES[:3])
    with shipper_of(source) as shipper:
        shipper.note_lost(Anchor(read_ts(ENTRIES[4])), "overrun")
    tail(source)
    with open_app(source.site.site_file) as workplace:
        found = stored_oplog(workplace, "orders")
    (gap,) = found.gaps
    assert (gap.from_ts, gap.to_ts, gap.reason) == (read_ts(ENTRIES[2]), read_ts(ENTRIES[4]), "overrun")
    assert [item.slice.to_ts for item in found.slices] == [read_ts(ENTRIES[2]), read_ts(ENTRIES[6])]


def test_a_slice_that_is_not_what_was_signed_is_not_given_out(source: OplogSite) -> None:
    tail(source)
    for folder in (source.site.store_folder, source.site.folder / "second"):
        path = min(folder.rglob("*.zst.age"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with open_app(source.site.site_file) as workplace:
        keys = load_identities([source.site.restore_identity], None)
        damaged, *others = stored_oplog(workplace, "orders").slices
        with pytest.raises(IntegrityError, match="oplog slice"):
            open_slice(workplace, keys, damaged)
        for item in others:
            assert list(split_entries(open_slice(workplace, keys, item)))


def test_a_manifest_that_nobody_signed_begins_no_timeline(source: OplogSite) -> None:
    tail(source)
    folder = source.site.store_folder / "policies" / "orders" / "logs"
    (manifest, *_) = (folder / "00000001").glob("*.json")
    forged = folder / "7FFFFFFF"
    forged.mkdir()
    shutil.copy(manifest, forged / manifest.name)
    shutil.copy(f"{manifest}.sig", forged / f"{manifest.name}.sig")
    with open_app(source.site.site_file) as workplace:
        assert newest_timeline(workplace.stores["primary"], workplace.signers, "orders") == 1
        assert any("not believed" in doubt for doubt in stored_oplog(workplace, "orders").doubts)
        assert start_timeline(workplace, workplace.policies["orders"], OplogTs(1_700_000_010, 1), "restored") == 2
        assert newest_timeline(workplace.stores["primary"], workplace.signers, "orders") == 2
    with shipper_of(source) as shipper:
        assert shipper.position is not None
        assert (shipper.position.timeline, shipper.position.end.ts) == (2, OplogTs(1_700_000_010, 1))


def test_a_full_spool_is_said_and_loses_nothing(source: OplogSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with shipper_of(source) as shipper:
        shipper.begin(Anchor(read_ts(ENTRIES[0])))
        span = OplogSpan()
        span.add(ENTRIES[1])
        assert shipper.position is not None
        with monkeypatch.context() as patch:
            patch.setattr("os.write", full)
            with pytest.raises(SourceError, match="No space left"):
                shipper.seal(shipper.position, span, [ENTRIES[1]])
    tail(source)
    assert check_stored(source) == ENTRIES[1:]


def test_what_a_lost_spool_left_in_the_store_is_taken_over_after_a_while(
    source: OplogSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shipper_of(source) as shipper:
        shipper.begin(Anchor(read_ts(ENTRIES[0])))
        assert shipper.position is not None
        span = OplogSpan()
        span.add(b"".join(ENTRIES[1:4]))
        shipper.seal(shipper.position, span, ENTRIES[1:4])
        for lane in shipper._lanes:
            for item in shipper._sealed.values():
                shipper._put(lane, item)
    shutil.rmtree(source.spool)
    with shipper_of(source) as shipper:
        shipper.begin(Anchor(read_ts(ENTRIES[0])))
    with pytest.raises(StoreUnavailable, match="by somebody else and is not listed yet"):
        tail(source)
    monkeypatch.setattr("drkit.operations.lanes._STRANGER_FOR", timedelta())
    with shipper_of(source) as shipper, pytest.raises(StoreUnavailable):
        shipper.ship()
    tail(source)
    assert check_stored(source) == ENTRIES[1:]


def test_a_slice_that_another_host_has_listed_is_not_stored_twice(source: OplogSite) -> None:
    tail(source)
    shutil.rmtree(source.spool)
    with shipper_of(source) as shipper:
        # As a host that was away for long: it believes to be at the beginning.
        position = Position(1, Anchor(read_ts(ENTRIES[0])))
        shipper._position = position
        span = OplogSpan()
        span.add(b"".join(ENTRIES[1:4]))
        shipper.seal(position, span, ENTRIES[1:4])
        shipper.ship()
        assert shipper.backlog() == 0
    assert check_stored(source) == ENTRIES[1:]


def test_a_new_timeline_or_a_lost_stretch_that_was_only_just_signed_is_not_signed_again(source: OplogSite) -> None:
    tail(source, entries=ENTRIES[:3])
    with shipper_of(source) as shipper:
        shipper._chain.write_lost(1, read_ts(ENTRIES[2]), read_ts(ENTRIES[4]), "killed before the position moved")
    with shipper_of(source) as shipper:
        assert shipper.position == Position(1, Anchor(read_ts(ENTRIES[4])))
        shipper._chain.write_branch(2, 1, read_ts(ENTRIES[5]), "killed before the position moved")
    with shipper_of(source) as shipper:
        assert shipper.position == Position(2, Anchor(read_ts(ENTRIES[5])))
        shipper.ship()
    with open_app(source.site.site_file) as workplace:
        found = stored_oplog(workplace, "orders")
    assert (len(found.gaps), len(found.branches), found.timeline) == (1, 1, 2)
