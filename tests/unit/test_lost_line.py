"""After a failover: bases that do not lead to the timeline in use, what is said of them, and what prune keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit import bucket
from drkit.cli.timeline import _document, _drawn
from drkit.operations.log_check import summarize_wal
from drkit.operations.timeline import read_timeline
from tests.fixtures.log_world import LogWorld
from tests.fixtures.pruning import DAY, PruneWorld, prune_world
from tests.fixtures.site import ReadySite


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path, retention={"last": 1, "minimum": 1, "max_removed_percent": 100}) as made:
        yield made


@pytest.fixture
def left_behind(world: PruneWorld) -> LogWorld:
    """A base before a failover, one that the old primary finished after it, and the log of both lines."""
    logs = LogWorld(world)
    logs.pass_days(1)
    logs.ship(2)
    world.now += DAY
    logs.ship(4)
    logs.take_base()
    world.now += DAY
    logs.fork(at_segment=5)
    logs.ship(4)
    return logs


def findings(world: PruneWorld) -> dict[str, str]:
    return {item.message: item.hint for item in summarize_wal(world.workplace, "orders").findings}


def test_that_no_base_leads_to_the_timeline_in_use_is_said(left_behind: LogWorld) -> None:
    world = left_behind.world
    assert read_timeline(world.workplace, "orders").refusal is None
    assert findings(world) == {}
    world.bucket.remove(left_behind.bases[0])
    world.bucket.bury(left_behind.bases[0])
    refusal = read_timeline(world.workplace, "orders").refusal
    assert refusal is not None
    assert refusal.message == "no base of orders leads to timeline 2"
    assert refusal.hints == ("drkit restore orders --timeline 1 --into DIR", "drkit backup orders --method base")
    (message,) = findings(world)
    assert message == "a restore that names no timeline is refused: no base of orders leads to timeline 2"
    assert findings(world)[message] == "drkit backup orders --method base"
    world.now += DAY
    left_behind.take_base()
    assert read_timeline(world.workplace, "orders").refusal is None, "the hint was followed"


def test_a_timeline_whose_history_is_not_stored_is_said(left_behind: LogWorld) -> None:
    world = left_behind.world
    key = next(key for key, manifest in left_behind.manifests if manifest.files[0].kind == "history")
    for store in world.stores.values():
        for item in (key, bucket.signature_key(key), bucket.log_key("orders", 2, "00000002.history")):
            store.delete(item)
    assert "00000002.history is not stored" in str(read_timeline(world.workplace, "orders").refusal)
    assert "drkit backup orders --method base" in findings(world).values()
    first = left_behind.bases[0].manifest.artifact_id
    world.prune()
    world.now += 2 * DAY
    world.prune()
    assert first not in world.ids(), "nothing says that it leads there"


def test_what_is_refused_is_drawn_with_what_to_type(left_behind: LogWorld) -> None:
    world = left_behind.world
    world.bucket.remove(left_behind.bases[0])
    world.bucket.bury(left_behind.bases[0])
    drawn = _drawn(read_timeline(world.workplace, "orders"), None)
    assert "refused    a restore that names no timeline: no base of orders leads to timeline 2\n" in drawn
    assert "\n           hint: drkit backup orders --method base" in drawn
    document = _document(read_timeline(world.workplace, "orders"))
    assert document["refusal"]["hints"][-1] == "drkit backup orders --method base"


@pytest.mark.parametrize("retention", [{"last": 1}, {"recovery_window": "1h"}])
def test_prune_keeps_the_newest_base_that_leads_there_with_its_log(
    left_behind: LogWorld, retention: dict[str, object]
) -> None:
    world = left_behind.world
    world.retention = {**retention, "minimum": 1, "max_removed_percent": 100}
    for _ in range(3):
        result = world.prune()
        world.now += 2 * DAY
    first, second = (entry.manifest.artifact_id for entry in left_behind.bases)
    reasons = {item.name: item.reasons for item in result.plan.artifacts}
    assert "newest base that leads to timeline 2" in reasons[first]
    assert world.ids() == {first, second}
    assert result.plan.removed_log == []
    left_behind.take_base()
    for _ in range(2):
        result = world.prune()
        world.now += 2 * DAY
    assert first not in world.ids(), "the way there is shorter now"
    assert left_behind.bases[2].manifest.artifact_id in world.ids()


def test_while_nothing_tells_which_timeline_is_in_use_a_way_to_each_stays(left_behind: LogWorld) -> None:
    world = left_behind.world
    world.now += DAY
    left_behind.timeline, left_behind.segments = 1, 8
    left_behind.ship(1)
    refusal = read_timeline(world.workplace, "orders").refusal
    assert refusal is not None
    assert "were written to at the same time" in refusal.message
    (hint,) = findings(world).values()
    assert hint == refusal.hints[-1] == "drkit backup orders --method base"
    world.now += DAY
    world.prune()
    world.now += 2 * DAY
    assert world.prune().plan.removed == []
