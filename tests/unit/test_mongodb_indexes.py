"""What is built after the documents: definitions read by shape, indexes one by one, each with a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp, json_util
from pymongo.errors import AutoReconnect, OperationFailure

from drkit.engines.mongodb_indexes import (
    build_indexes,
    build_view,
    from_extended_json,
    indexes_to_build,
    require_built,
)
from drkit.errors import IntegrityError, SourceError

ONE = {"$numberInt": "1"}


class ScriptedServer:
    """Answers commands by a script: what each index's name raises."""

    def __init__(self, failures: Mapping[str, Exception] | None = None) -> None:
        self.failures = failures or {}
        self.commands: list[dict[str, Any]] = []

    def __getitem__(self, name: str) -> ScriptedServer:
        return self

    def command(self, command: dict[str, Any]) -> None:
        self.commands.append(command)
        for index in command.get("indexes", ()):
            if index["name"] in self.failures:
                raise self.failures[index["name"]]


def index(name: str, **more: Any) -> dict[str, Any]:
    return {"v": {"$numberInt": "2"}, "key": {name: ONE}, "name": name, **more}


def canonical(value: Any) -> Any:
    return json.loads(json_util.dumps(value, json_options=json_util.CANONICAL_JSON_OPTIONS))


@pytest.mark.parametrize(
    "value",
    [1, Int64(1), 1.5, "text", True, None, ObjectId(), Decimal128("1.50"), Timestamp(0, 0), MaxKey(), Regex("^a", "i"),
     datetime(2026, 1, 1, tzinfo=UTC), Binary(b"x", 5), [1, {"b": 1, "a": [Int64(2)]}], {"": 1}],
)  # fmt: skip
def test_values_come_back_with_their_types(value: Any) -> None:
    found = from_extended_json({"key": canonical(value)})["key"]
    assert found == value
    assert isinstance(found, Int64) == isinstance(value, Int64)


def test_a_query_operator_is_no_value_and_keys_keep_their_order() -> None:
    query = {"name": {"$regex": "^a", "$options": "i"}, "b": {"$ref": "x"}, "a": {"$type": "string"}}
    assert list(from_extended_json(query)) == ["name", "b", "a"]
    assert from_extended_json(query) == query


@pytest.mark.parametrize(
    "value", [{"$numberInt": "x"}, {"$oid": "zz"}, {"$date": {"$numberLong": "x"}}, {"$binary": 1}]
)
def test_a_value_that_is_none_is_damage(value: Any) -> None:
    with pytest.raises(IntegrityError, match="without a value of that kind"):
        from_extended_json({"a": [value]})


def test_the_index_that_every_collection_has_is_not_built() -> None:
    hashed = {"key": {"_id": "hashed"}, "name": "_id_hashed"}
    clustered = {"key": {"_id": ONE}, "name": "mine", "clustered": True}
    definition = {"indexes": [{"key": {"_id": ONE}, "name": "_id_"}, hashed, clustered, index("a")]}
    assert [item["name"] for item in indexes_to_build(definition)] == ["_id_hashed", "a"]
    assert indexes_to_build({}) == []


def test_one_that_is_refused_stops_no_other_and_is_named() -> None:
    refused = OperationFailure("E11000 duplicate key", 11000, {"errmsg": "E11000 duplicate key error: b"})
    server = ScriptedServer({"b": refused})
    definitions = [index("a"), index("b", unique=True), index("c")]
    outcomes = list(build_indexes(server, ("shop", "orders"), definitions))  # type: ignore[arg-type]
    assert [(item.label, item.words.partition(" in ")[0]) for item in outcomes] == [
        ("index shop.orders.a", "built"),
        ("index shop.orders.b", "failed: E11000 duplicate key error: b"),
        ("index shop.orders.c", "built"),
    ]
    assert [command["createIndexes"] for command in server.commands] == ["orders"] * 3
    expected = r"1 of 3 indexes and views could not be built: index shop\.orders\.b"
    with pytest.raises(SourceError, match=expected) as caught:
        require_built(outcomes)
    assert caught.value.details == ("index shop.orders.b: E11000 duplicate key error: b",)
    require_built([outcomes[0], outcomes[2]])


def test_a_server_that_is_lost_is_no_index_that_failed() -> None:
    with pytest.raises(AutoReconnect):
        list(build_indexes(ScriptedServer({"a": AutoReconnect()}), ("d", "c"), [index("a")]))  # type: ignore[arg-type]


def test_what_only_old_servers_knew_is_left_out_and_said() -> None:
    server = ScriptedServer()
    old = {"v": {"$numberInt": "0"}, "ns": "d.c", "name": "old", "safe": None, "dropDups": True}
    old["key"] = {"a": True, "b": {"$numberInt": "0"}, "c": "2d", "d": {"$numberDouble": "-1.0"}}
    (outcome,) = build_indexes(server, ("d", "c"), [old])  # type: ignore[arg-type]
    assert server.commands[0]["indexes"] == [{"name": "old", "key": {"a": 1, "b": 1, "c": "2d", "d": -1.0}}]
    assert outcome.changed == (
        "option safe left out",
        "option dropDups left out",
        "version 0 left to the server",
        "the value of a, b in its key taken for 1",
    )


def test_a_view_is_created_with_its_options_in_order() -> None:
    server = ScriptedServer()
    options = {"viewOn": "a", "pipeline": [{"$match": {"n": {"$numberLong": "1"}}}], "collation": {"locale": "de"}}
    outcome = build_view(server, ("d", "v"), options)  # type: ignore[arg-type]
    assert (outcome.label, outcome.error) == ("view d.v", "")
    (command,) = server.commands
    assert list(command) == ["create", "viewOn", "pipeline", "collation"]
    assert command["pipeline"] == [{"$match": {"n": Int64(1)}}]
