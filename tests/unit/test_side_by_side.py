"""When a processor is left over beside the streams of a backup."""

from __future__ import annotations

import pytest

from drkit.engines import Part, Preflight
from drkit.operations.side_by_side import Spare

LARGE = [Part(f"base-{number}", "data", "", 1 << 30) for number in range(3)]
LAST = Part("base", "data", "")


def spare(parallel: int, cores: int, *, local: bool = True) -> Spare:
    return Spare(Preflight("", {}, [*LARGE, LAST], parallel=parallel), local=local, cores=cores)


def test_there_is_none_while_as_many_streams_as_processors_are_left() -> None:
    found = spare(2, 2)
    for part in LARGE[:2]:
        with found.working(part) as event:
            assert not event.is_set()
    assert found.event.is_set()


def test_what_has_no_size_occupies_none() -> None:
    found = spare(2, 2)
    with found.working(LARGE[0]), found.working(LAST):
        pass
    assert not found.event.is_set()


@pytest.mark.parametrize(("parallel", "cores", "local"), [(1, 2, True), (2, 4, True), (2, 2, False)])
def test_there_is_one_at_once_where_fewer_streams_run_or_they_wait_for_a_store(
    parallel: int, cores: int, *, local: bool
) -> None:
    assert spare(parallel, cores, local=local).event.is_set()
