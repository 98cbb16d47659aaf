"""`drkit prune` on stores in memory: marks, grace, order of deletion, holds, and everything that forbids it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.pruning import HOUR, PruneWorld, prune_world
from tests.fixtures.site import ReadySite


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path) as made:
        yield made


def names(entries: list) -> list[str]:
    return [entry.manifest.artifact_id for entry in entries]


def test_what_goes_is_marked_first_and_deleted_after_its_grace(world: PruneWorld) -> None:
    entries = world.back_up(6)
    first = world.prune()
    assert sorted(first.marked) == names(entries)[:3]
    assert (first.removed, first.state) == ([], "ok")
    assert world.ids() == set(names(entries))
    world.now += 23 * HOUR
    assert world.prune().removed == []
    world.now += 2 * HOUR
    second = world.prune()
    assert sorted(second.removed) == names(entries)[:3]
    assert world.ids() == world.ids("offsite") == set(names(entries)[3:])
    assert not any(
        name in key
        for keys in world.keys().values()
        for key in keys
        for name in names(entries)[:3]
        if "/artifacts/" in key
    )
    third = world.prune()
    assert (third.marked, third.removed, third.plan.removed) == ([], [], [])
