"""How a dump divides its reading, by what a server's metadata say; no server is needed for that."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pymongo.errors import OperationFailure

from drkit.engines.mongodb_client import Client
from drkit.engines.mongodb_raw import Estimate, RawCollection, estimate
from drkit.engines.mongodb_reading import Reading, _plan


def collections() -> list[RawCollection]:
    kinds = {"small": "collection", "large": "collection", "view": "view"}
    return [RawCollection(("d", name), kind, None, "") for name, kind in kinds.items()]


class Scripted:
    """A server that answers ``dataSize`` as told, and counts five documents in everything."""

    def __init__(self, answer: dict[str, Any] | None) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def __getitem__(self, _: str) -> Scripted:
        return self

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(command)
        if self.answer is None:
            raise OperationFailure("no such command: 'dataSize'", 59)
        return self.answer

    def estimated_document_count(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"size": 1000, "numObjects": 10, "millis": 0, "ok": 1.0}, Estimate(10, 1000)),
        ({"size": 0, "numObjects": 0, "ok": 1.0}, Estimate(0, 0)),
        ({"ok": 1.0}, Estimate(5)),
        (None, Estimate(5)),
    ],
)
def test_a_size_is_asked_of_the_metadata_and_not_of_documents(
    answer: dict[str, Any] | None, expected: Estimate
) -> None:
    server = Scripted(answer)
    assert estimate(cast("Client", server), collections()) == {("d", "small"): expected, ("d", "large"): expected}
    assert server.asked[0] == {"dataSize": "d.small", "estimate": True}


@pytest.mark.parametrize(
    ("told", "batch"),
    [
        (Estimate(0), 100),
        (Estimate(1000), 100),
        (Estimate(0, 0), 100),
        (Estimate(1000, 1_000_000), 2097),
        (Estimate(10, 100_000_000), 1),
        (Estimate(10_000_000, 50_000_000), 20_000),
    ],
)
def test_a_batch_has_two_mebibytes_as_far_as_is_known(told: Estimate, batch: int) -> None:
    only = RawCollection(("d", "small"), "collection", None, "")
    reading = Reading(1, estimates={only.namespace: told})
    (task,) = _plan(cast("Client", None), [only], reading)
    assert task.batch_documents == batch


@pytest.mark.parametrize("size", [None, 1])
def test_the_largest_is_read_first_and_what_has_no_documents_last(size: int | None) -> None:
    sizes = {("d", "small"): Estimate(3, size and 300), ("d", "large"): Estimate(4, size and 400)}
    tasks = _plan(cast("Client", None), collections(), Reading(4, estimates=sizes))
    assert [task.namespace[1] for task in tasks] == ["large", "small", "view"]
    assert [task.batch_documents > 0 for task in tasks] == [True, True, False]
