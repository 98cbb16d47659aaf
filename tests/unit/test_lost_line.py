"""After a failover: bases that do not lead to the timeline in use, what is said of them, and what prune keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
    assert refusal.hints == ("drkit backup orders --method base", "drkit restore orders --timeline 1 --into DIR")
    (message,) = findings(world)
    assert message == "a restore that names no timeline is refused: no base of orders leads to timeline 2"
    assert findings(world)[message] == "drkit backup orders --method base"
    world.now += DAY
    left_behind.take_base()
    assert read_timeline(world.workplace, "orders").refusal is None, "the hint was followed"


def test_prune_keeps_the_newest_base_that_leads_there_with_its_log(left_behind: LogWorld) -> None:
    world = left_behind.world
    for retention in ({"last": 1}, {"recovery_window": "1h"}):
        world.retention = {**retention, "minimum": 1, "max_removed_percent": 100}
        for _ in range(3):
            result = world.prune()
            world.now += 2 * DAY
        first, second = (entry.manifest.artifact_id for entry in left_behind.bases)
        reasons = {item.name: item.reasons for item in result.plan.artifacts}
        assert "newest base that leads to the timeline in use" in reasons[first]
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
    world.now += DAY
    world.prune()
    world.now += 2 * DAY
    assert world.prune().plan.removed == []
