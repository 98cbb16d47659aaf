"""Whether a server's snapshot is one: what it answers, by a script, and what is made of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Timestamp
from pymongo.errors import AutoReconnect, OperationFailure

from drkit.engines.mongodb_snapshot import ClusterTimeConcern, Sentinel, find_snapshot, moved

NOW = Timestamp(1_700_000_000, 7)
Concern = Mapping[str, Any]


class ScriptedServer:
    """Answers reads by their read concern: with a cluster time, with none, or with an error."""

    def __init__(self, answer: Callable[[Concern], Any]) -> None:
        self.answer = answer
        self.asked: list[Concern] = []

    def __getitem__(self, name: str) -> ScriptedServer:
        return self

    def command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(command["readConcern"])
        cluster_time = self.answer(command["readConcern"])
        return {"cursor": {"firstBatch": [], **({"atClusterTime": cluster_time} if cluster_time else {})}}


def isolating(concern: Concern) -> Any:
    """Answer as MongoDB does: it has no history of 1970."""
    if concern.get("atClusterTime", NOW) < NOW:
        raise OperationFailure("Read timestamp is older than the oldest available timestamp", 239)
    return NOW


def test_a_server_with_snapshots_gives_a_moment_that_every_read_names() -> None:
    server = ScriptedServer(isolating)
    found = find_snapshot(server, "shop", "orders")  # type: ignore[arg-type]
    assert (found.cluster_time, found.why_not) == (NOW, "")
    assert found.at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert found.concern is not None
    assert found.concern.document == {"level": "snapshot", "atClusterTime": NOW}
    assert server.asked == [{"level": "snapshot"}, {"level": "snapshot", "atClusterTime": Timestamp(1, 1)}]


def _refusing(concern: Concern) -> Any:
    raise OperationFailure("x", 246, {"errmsg": "Snapshot read concern is not supported on standalone\nmore"})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_refusing, "Snapshot read concern is not supported on standalone"),
        (lambda _: None, "its answer names no cluster time"),
        (lambda _: NOW, "answers for one of 1970, so it does not isolate"),
    ],
)
def test_a_server_without_is_found_out(answer: Callable[[Concern], Any], words: str) -> None:
    found = find_snapshot(ScriptedServer(answer), "shop", "orders")  # type: ignore[arg-type]
    assert (found.cluster_time, found.concern, found.at) == (None, None, None)
    assert words in found.why_not


def test_a_server_that_is_lost_is_no_answer() -> None:
    def lose(concern: Concern) -> Any:
        raise AutoReconnect

    with pytest.raises(AutoReconnect):
        find_snapshot(ScriptedServer(lose), "shop", "orders")  # type: ignore[arg-type]


def test_what_changed_inside_of_a_snapshot_is_named() -> None:
    before = {"d.a": Sentinel(10, "x"), "d.b": Sentinel(5, "y"), "d.c": Sentinel(1, "z")}
    after = {"d.a": Sentinel(14, "x"), "d.b": Sentinel(5, "other"), "d.c": Sentinel(1, "z")}
    assert moved(before, after) == ["d.a (10 documents, then 14)", "d.b (5 documents, then 5)"]
    assert moved(before, before) == []


def test_a_read_concern_with_a_moment_is_equal_to_its_like_only() -> None:
    assert ClusterTimeConcern(NOW) == ClusterTimeConcern(NOW)
    assert ClusterTimeConcern(NOW) != ClusterTimeConcern(Timestamp(1, 1))
