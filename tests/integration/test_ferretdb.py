"""A second server that speaks MongoDB's protocol as a source: FerretDB, which shares no code with SecantusDB.

Optional: `scripts/install-ferretdb` builds it, in two minutes. It has no oplog, no views and few types of values.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Int64, ObjectId, Regex, Timestamp
from pymongo import MongoClient

from drkit.engines import RestoreOptions
from drkit.errors import SourceError
from drkit.fingerprint import compare_fingerprints
from tests.fixtures.mongodb import ROOT, MongoServer
from tests.fixtures.ports import free_port
from tests.integration.test_mongodb_native import ENGINE, dump

PROGRAM = ROOT / ".tools" / "bin" / "ferretdb"
DOCUMENTS: list[dict[str, Any]] = [
    *({"_id": number, "text": "x" * number, "nested": {"list": [number, {"deep": True}]}} for number in range(500)),
    *({"_id": f"type {number}", "v": value} for number, value in enumerate([Int64(1), 1, 1.5, None, Regex("a", "i")])),
    {"_id": ObjectId(), "": "an empty key", "binary": Binary(b"x", 3), "ts": Timestamp(1, 2)},
]


@pytest.fixture
def ferretdb(tmp_path: Path, mongo_tools: Path) -> Iterator[MongoServer]:
    if not PROGRAM.exists():
        pytest.skip("ferretdb is not here: it is optional, and scripts/install-ferretdb builds it")
    port, data = free_port(), tmp_path / "ferretdb"
    data.mkdir()
    with (tmp_path / "ferretdb.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, f"127.0.0.1:{port}", data], stdout=log, stderr=log, cwd=tmp_path)
        try:
            client: MongoClient[dict[str, Any]] = MongoClient(f"mongodb://127.0.0.1:{port}/?directConnection=true")
            with client:
                yield MongoServer(port, client)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("via", ["tools", "native"])
def test_what_another_server_holds_is_dumped_and_restored_equal(
    via: Any, ferretdb: MongoServer, mongodb: MongoServer, tmp_path: Path
) -> None:
    source = ferretdb.client["foreign"]
    source["orders"].insert_many(DOCUMENTS)
    source["orders"].create_index([("text", 1)], name="by text")
    source.create_collection("empty")
    details, archives, warnings = dump(ferretdb.url, tmp_path, via=via, databases=("foreign",))
    assert details["server"]["product"].startswith("FerretDB")
    assert any("no member of a replica set" in words or "no snapshot" in words for words in warnings)
    recorded = details["parts"]["database-1"]["fingerprint"]
    assert recorded["collection"]["foreign.orders"]["rows"] == len(DOCUMENTS)
    mongodb.client.drop_database("foreign")
    options = RestoreOptions(details=details, parts=("database-1",), work_folder=tmp_path, via=via)
    with ENGINE.open_restore(mongodb.url, options) as session:
        session.load("database-1", iter([archives["database-1"]]))
        session.finish()
    found = ENGINE.fingerprint(mongodb.url, options)["database-1"]
    assert compare_fingerprints(recorded, found, ENGINE.expected) == []
    mongodb.client.drop_database("foreign")


def test_what_a_server_does_not_take_fails_the_restore_by_name(ferretdb: MongoServer, tmp_path: Path) -> None:
    ferretdb.client["foreign"]["orders"].insert_many(DOCUMENTS[:3])
    details, archives, _ = dump(ferretdb.url, tmp_path, via="tools", databases=("foreign",))
    ferretdb.client.drop_database("foreign")
    options = RestoreOptions(details=details, parts=("database-1",), work_folder=tmp_path, via="tools")
    with ENGINE.open_restore(ferretdb.url, options) as session, pytest.raises(SourceError) as caught:
        session.load("database-1", iter([archives["database-1"]]))
    assert any("bypassEmptyTsReplacement" in line for line in caught.value.details), caught.value
    assert ferretdb.client["foreign"].list_collection_names() == []
