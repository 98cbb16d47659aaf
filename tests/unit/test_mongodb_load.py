"""Loading an archive without mongorestore, against a server that answers by a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import bson
import pytest
from bson import Timestamp

from drkit.credentials import Secret
from drkit.engines import RestoreOptions
from drkit.engines.mongodb_client import Endpoint, ServerFacts
from drkit.engines.mongodb_load import keeps_empty_timestamps, load_archive
from drkit.engines.mongodb_restore import LoadSession
from drkit.errors import IntegrityError, SourceError
from drkit.mongo_archive_writer import Batch, CollectionMetadata, Prelude, write_archive

GOLDEN = (Path(__file__).parent.parent / "data" / "mongodb" / "tiny.archive").read_bytes()
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class ScriptedServer:
    """Notes every command, and answers as a healthy server does unless it is told otherwise."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._database = ""
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Database:
        return Database(self, name)

    def named(self, word: str) -> list[tuple[str, dict[str, Any]]]:
        return [(database, command) for database, command in self.commands if word in command]


class Database:
    def __init__(self, server: ScriptedServer, name: str) -> None:
        self.server = server
        self.name = name

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        with self.server._lock:
            self.server.commands.append((self.name, command))
        if self.server.answer is not None:
            return self.server.answer(command)
        return {"ok": 1.0, "n": len(command.get("documents", ()))}


def load(
    server: ScriptedServer, data: bytes, targets: Mapping[str, str], version: str = "8.0.4", size: int = 1 << 20
) -> int:
    facts = ServerFacts(version, "", "", {})
    chunks = (data[start : start + size] for start in range(0, len(data), size))
    return load_archive(server, facts, targets, chunks, 2)[0]  # type: ignore[arg-type]


def archive(documents: list[dict[str, Any]], kind: str = "collection", text: str = "{}", copies: int = 1) -> bytes:
    data = b"".join(map(bson.encode, documents))
    batches: list[Batch] = [(("d", "a"), data)] * copies + [(("d", "a"), None)]
    return b"".join(write_archive(Prelude("8.0", "t", 1, [CollectionMetadata(("d", "a"), kind, text)]), batches))


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_documents_go_where_they_are_told_and_others_are_left_out(size: int) -> None:
    server = ScriptedServer()
    assert load(server, GOLDEN, {"tiny.genre": "other.kinds", "tiny.empty": "tiny.empty"}, size=size) == 3
    assert [(database, command["create"]) for database, command in server.named("create")] == [
        ("other", "kinds"),
        ("tiny", "empty"),
    ]
    inserts = server.named("insert")
    assert {(database, command["insert"]) for database, command in inserts} == {("other", "kinds")}
    documents = [document.raw for _, command in inserts for document in command["documents"]]
    names = enumerate(("Rock", "Jazz", "Metal"))
    assert sorted(documents) == sorted(bson.encode({"_id": number, "name": name}) for number, name in names)
    assert all(not command["ordered"] and command["bypassDocumentValidation"] for _, command in inserts)
    assert not any("bypassEmptyTsReplacement" in command for _, command in inserts)


def test_every_document_that_is_refused_counts() -> None:
    def refuse(command: dict[str, Any]) -> dict[str, Any]:
        count = len(command.get("documents", ()))
        errors = [{"index": number, "code": 11000, "errmsg": f"E11000 number {number}"} for number in range(count)]
        return {"ok": 1.0, "n": 0, "writeErrors": errors} if count else {"ok": 1.0}

    data = archive([{"_id": number} for number in range(2000)])
    with pytest.raises(SourceError, match=r"refused 2,000 documents of 2,000") as caught:
        load(ScriptedServer(refuse), data, {"d.a": "d.a"})
    assert caught.value.details[0] == "d.a: E11000 number 0"
    assert len(caught.value.details) == 5


def test_what_the_server_could_not_keep_is_an_error() -> None:
    def forget(command: dict[str, Any]) -> dict[str, Any]:
        return {"ok": 1.0, "n": len(command.get("documents", ())), "writeConcernError": {"errmsg": "no majority"}}

    with pytest.raises(SourceError, match=r"could not keep what was inserted into d\.a") as caught:
        load(ScriptedServer(forget), archive([{"_id": 1}]), {"d.a": "d.a"})
    assert caught.value.details == ("no majority",)


def test_an_error_of_an_insert_ends_the_load() -> None:
    def lose(command: dict[str, Any]) -> dict[str, Any]:
        if "insert" in command:
            raise ConnectionResetError
        return {"ok": 1.0}

    data = archive([{"_id": 1, "text": "x" * 500_000}], copies=60)
    with pytest.raises(ConnectionResetError):
        load(ScriptedServer(lose), data, {"d.a": "d.a"})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("insert")]


def test_a_damaged_archive_ends_the_load() -> None:
    with pytest.raises(IntegrityError):
        load(ScriptedServer(), GOLDEN[:-9], {"tiny.genre": "tiny.genre"})


def test_a_time_series_is_refused_before_anything_is_written() -> None:
    server = ScriptedServer()
    with pytest.raises(SourceError, match=r"d\.a cannot be restored without MongoDB's tools"):
        load(server, archive([{"_id": 1}], "timeseries"), {"d.a": "d.a"})
    assert server.commands == []


def test_a_capped_collection_keeps_its_order() -> None:
    server = ScriptedServer()
    text = '{"options":{"capped":true,"size":{"$numberInt":"4096"},"autoIndexId":true}}'
    documents = [{"_id": -number, "text": "x" * 1000} for number in range(20_000)]
    assert load(server, archive(documents, text=text), {"d.a": "d.a"}) == 20_000
    ((_, create),) = server.named("create")
    assert create == {"create": "a", "capped": True, "size": 4096}
    inserts = [command for _, command in server.named("insert")]
    assert all(command["ordered"] for command in inserts)
    assert [document["_id"] for command in inserts for document in command["documents"]] == [
        document["_id"] for document in documents
    ]


def test_many_documents_are_cut_into_inserts_of_a_size_that_servers_take() -> None:
    server = ScriptedServer()
    documents = [{"_id": number} for number in range(25_000)] + [{"_id": -1, "text": "x" * 15_000_000}]
    assert load(server, archive(documents), {"d.a": "d.a"}, size=1 << 30) == 25_001
    inserts = [command["documents"] for _, command in server.named("insert")]
    assert max(map(len, inserts)) == 10_000
    assert max(sum(len(document.raw) for document in item) for item in inserts) < 16_000_000


EMPTY = {"_id": 1, "at": Timestamp(0, 0), "n": 1}


def test_a_server_is_told_to_leave_empty_timestamps_alone() -> None:
    server = ScriptedServer()
    assert load(server, archive([EMPTY, {"_id": 2}]), {"d.a": "d.a"}) == 2
    ((_, command),) = server.named("insert")
    assert command["bypassEmptyTsReplacement"] is True
    assert server.named("update") == []


def test_on_an_older_server_an_empty_timestamp_is_put_right_afterwards() -> None:
    server = ScriptedServer()
    assert load(server, archive([EMPTY, {"_id": 2}]), {"d.a": "d.a"}, version="4.4.29") == 2
    ((_, insert),) = server.named("insert")
    assert "bypassEmptyTsReplacement" not in insert
    ((_, update),) = server.named("update")
    ((statement),) = update["updates"]
    assert statement["q"] == {"_id": 1}
    assert statement["u"][0]["$replaceRoot"]["newRoot"]["$literal"].raw == bson.encode(EMPTY)


@pytest.mark.parametrize(
    ("version", "keeps"),
    [("8.0.4", True), ("8.2.11", True), ("9.1.0-rc1", True), ("7.0.13", True), ("7.0.12", False), ("7.1.20", False),
     ("6.0.17", True), ("5.0.28", False), ("5.0.29", True), ("4.4.29", False), ("unknown", False)],
)  # fmt: skip
def test_which_servers_leave_empty_timestamps_alone(version: str, *, keeps: bool) -> None:
    assert keeps_empty_timestamps(version) is keeps


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (ServerFacts("8.0.4", "", "", {}, "8.0"), ""),
        (ServerFacts("8.0.4", "", "", {}, "7.0"), "feature compatibility version 8.0, and the target is 7.0"),
        (ServerFacts("8.0.4", "", "", {}), "and the target is of one that it does not say"),
        (
            ServerFacts("7.0.2", "", "", {}, "7.0"),
            "MongoDB promises a restore only between servers of one major version",
        ),
    ],
)
def test_a_target_of_another_version_is_said(target: ServerFacts, words: str) -> None:
    source = {"version": "8.0.1", "major": 8, "compatibility": "8.0"}
    options = RestoreOptions(details={"server": source, "parts": {}}, parts=())
    session = LoadSession(Endpoint(Secret("mongodb://db1/"), "db1", ""), options, target, {}, cast("Any", None))
    assert [words in warning for warning in session.result.warnings] == ([True] if words else [])
