"""MongoDB from a policy file to a proven restore: genuine tools, compatible server; and what must turn red."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest

from drkit.credentials import Secret
from drkit.engines import BackupOptions, RestoreOptions
from drkit.engines.mongodb_dump import MongodbDump
from drkit.errors import ConfigError, IntegrityError, SourceError
from drkit.fingerprint import compare_fingerprints
from tests.fixtures.mongodb import MongoServer
from tests.fixtures.site import ReadySite

ENGINE = MongodbDump()
MORE = """\
drills:
  - name: rehearsal
    level: works
    checks:
      - {name: invoices are there, collection: Invoice, pipeline: [{$count: n}], expect: 412}
      - {name: it adds up, collection: Invoice, pipeline: [{$match: {CustomerId: 2}}, {$count: n}], expect: 7}
"""


@pytest.fixture
def shop(mongodb: MongoServer, mongo_tools: Path) -> Iterator[str]:
    """A database with the smaller collections of Chinook, an index, a validator and a view."""
    yield mongodb.fill("shop", most_documents=300)
    mongodb.client.drop_database("shop")


@pytest.fixture
def whole_shop(mongodb: MongoServer, mongo_tools: Path) -> Iterator[str]:
    """A database with all of Chinook."""
    yield mongodb.fill("shop")
    mongodb.client.drop_database("shop")


@pytest.fixture
def site(ready_site: ReadySite, mongodb: MongoServer, whole_shop: str) -> ReadySite:
    """A site whose policy ``shop`` is of the database."""
    shop = whole_shop
    url = ready_site.write_secret("source-url", mongodb.url.reveal())
    path = ready_site.write_policy("shop", url, more=MORE)
    path.write_text(path.read_text().replace("engine: postgres,", f"engine: mongodb, databases: [{shop}],"))
    return ready_site


def dump(url: Secret, work_folder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Take a backup with the engine alone; return its details and the archives."""
    with ENGINE.open_backup(url, BackupOptions(work_folder=work_folder, **options)) as session:
        archives = {}
        for part in session.preflight.parts:
            with session.open_part(part) as chunks:
                archives[part.name] = b"".join(chunks)
        assert [child.exit_status for child in session.children] == [0] * len(archives)
        return session.details(), archives


def load(url: Secret, details: dict[str, Any], archives: dict[str, bytes], **options: Any) -> RestoreOptions:
    """Load archives with the engine alone; return the options."""
    chosen = RestoreOptions(details=details, parts=tuple(archives), **options)
    with ENGINE.open_restore(url, chosen) as session:
        for part, data in archives.items():
            session.load(part, iter([data]))
        session.finish()
    return chosen


def test_a_backup_is_drilled_verified_and_restored(site: ReadySite, mongodb: MongoServer) -> None:
    shop = "shop"
    done = site.drkit("backup", "shop")
    assert done.returncode == 0, done.stderr
    assert "12 collections, 15,607 documents, counts and digests" in done.stderr

    verified = site.drkit("verify")
    assert verified.returncode == 0, verified.stdout
    assert "read, decrypted, digests equal" in verified.stdout

    done = site.drkit("drill", "shop", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "passed"), done.stderr
    assert {name: level["result"] for name, level in document["levels"].items()} == {
        "exists": "passed",
        "intact": "passed",
        "loads": "passed",
        "replays": "not run",
        "same-data": "passed",
        "works": "passed",
    }
    assert "12 of 12 collections equal in count and digest" in document["levels"]["same-data"]["summary"]
    assert "a compatible server" in document["levels"]["loads"]["summary"]
    assert list((site.folder / "scratch").iterdir()) == []

    refused = site.drkit("restore", "shop", "--to", "file:keys/source-url")
    assert refused.returncode == 5
    assert "refused: database shop" in refused.stderr
    assert mongodb.client[shop]["Invoice"].count_documents({}) == 412

    mongodb.client.drop_database(shop)
    restored = site.drkit("restore", "shop", "--to", "file:keys/source-url")
    assert restored.returncode == 0, restored.stderr
    assert mongodb.client[shop]["InvoiceLine"].count_documents({}) == 2240
    assert len(list(mongodb.client[shop]["Names"].find())) == 275


def test_what_came_back_is_equal_in_documents_options_indexes_and_views(
    mongodb: MongoServer, shop: str, tmp_path: Path
) -> None:
    details, archives = dump(mongodb.url, tmp_path, databases=(shop,))
    recorded = details["parts"]["database-1"]["fingerprint"]
    assert details["server"]["compatibility"].startswith(details["server"]["version"].split(".")[0])
    assert set(recorded) == {"collection", "view", "index"}
    mongodb.client.drop_database(shop)
    options = load(mongodb.url, details, archives, work_folder=tmp_path)

    def compare() -> list[tuple[str, str, str]]:
        found = ENGINE.fingerprint(mongodb.url, options)["database-1"]
        return [(item.kind, item.name, item.fact) for item in compare_fingerprints(recorded, found, ENGINE.expected)]

    assert compare() == []
    mongodb.client[shop]["Genre"].update_one({"_id": 0}, {"$set": {"Name": "Polka"}})
    mongodb.client[shop]["Artist"].drop_index("by name")
    mongodb.client[shop]["MediaType"].delete_one({"_id": 0})
    mongodb.client[shop]["Names"].drop()
    assert compare() == [
        ("collection", "shop.Genre", "digest"),
        ("collection", "shop.MediaType", "digest"),
        ("collection", "shop.MediaType", "rows"),
        ("index", "shop.Artist.by name", "presence"),
        ("view", "shop.Names", "presence"),
    ]
    assert list(tmp_path.iterdir()) == [], "no file with a connection string stays"


def test_a_tool_is_told_the_password_in_a_private_file_only(mongodb: MongoServer, shop: str, tmp_path: Path) -> None:
    url = Secret(mongodb.url.reveal())
    with ENGINE.open_backup(url, BackupOptions(databases=(shop,), work_folder=tmp_path)) as session:
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]
        with session.open_part(session.preflight.parts[0]) as chunks:
            next(chunks)
            commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
            assert not any(b"mongodump" in command and b"mongodb://" in command for command in commands)


@pytest.fixture
def failing_cursor(mongodb: MongoServer) -> Iterator[Callable[[], None]]:
    """Return a function that makes the server close the connection of the next getMore."""

    def arm() -> None:
        mongodb.client.admin.command(
            {
                "configureFailPoint": "failCommand",
                "mode": {"times": 100},
                "data": {"failCommands": ["getMore"], "closeConnection": True},
            }
        )

    yield arm
    mongodb.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def test_a_cursor_that_breaks_is_no_backup(
    mongodb: MongoServer, shop: str, tmp_path: Path, failing_cursor: Callable[[], None]
) -> None:
    failing_cursor()
    with pytest.raises(SourceError, match="mongodump failed with exit status"):
        dump(mongodb.url, tmp_path, databases=(shop,))


def test_documents_that_mongodump_left_out_are_missed(mongodb: MongoServer, shop: str, tmp_path: Path) -> None:
    # A dump of a smaller collection stands for one that skipped documents, as mongodump before 100.4 did (TOOLS-2931).
    options = BackupOptions(databases=(shop,), work_folder=tmp_path)
    with ENGINE.open_backup(mongodb.url, options) as session:
        (part,) = session.preflight.parts
        (plan,) = session._contents[part.name]  # type: ignore[attr-defined]
        session._contents[part.name] = (  # type: ignore[attr-defined]
            type(plan)(plan.name, plan.size_bytes, plan.collections, ("Genre",)),
        )
        left_out = pytest.raises(SourceError, match="Genre has 25 documents, and mongodump left it out")
        with left_out, session.open_part(part) as chunks:
            list(chunks)
        assert session.details()["parts"] == {}


def test_a_load_that_loses_documents_and_exits_with_0_fails_and_leaves_nothing(
    mongodb: MongoServer, shop: str, tmp_path: Path
) -> None:
    details, archives = dump(mongodb.url, tmp_path, databases=(shop,))
    mongodb.client.drop_database(shop)
    # Documents of one collection twice in the archive: mongorestore refuses them and is content.
    (data,) = archives.values()
    archives = {"database-1": _with_repeated_documents(data)}
    with pytest.raises(SourceError, match=r"could not restore .* and still exited with 0"):
        load(mongodb.url, details, archives, work_folder=tmp_path)
    assert shop not in mongodb.client.list_database_names()


def _with_repeated_documents(data: bytes) -> bytes:
    """Return an archive that has its first block of documents twice, with the right checksum."""
    from fastcrc import crc64

    end = b"\xff\xff\xff\xff"
    prelude, _, blocks = data.partition(end)
    position, first, out = 0, None, prelude + end
    while position < len(blocks):
        header, documents, position = _block(blocks, position)
        if first is None and documents:
            first, repeated = header["collection"], documents
            documents += documents
        if header["EOF"] and header["collection"] == first:
            crc = crc64.xz(repeated * 2)
            header["CRC"] = bson.Int64(crc - (1 << 64) if crc >> 63 else crc)
        out += bson.encode(header) + documents + end
    return out


def _block(blocks: bytes, position: int) -> tuple[dict[str, Any], bytes, int]:
    length = int.from_bytes(blocks[position : position + 4], "little")
    header = bson.decode(blocks[position : position + length])
    position += length
    start = position
    while (length := int.from_bytes(blocks[position : position + 4], "little", signed=True)) != -1:
        position += length
    return header, blocks[start:position], position + 4


def test_an_archive_that_is_cut_stops_the_load_and_leaves_nothing(
    mongodb: MongoServer, shop: str, tmp_path: Path
) -> None:
    details, archives = dump(mongodb.url, tmp_path, databases=(shop,))
    mongodb.client.drop_database(shop)
    (data,) = archives.values()
    with pytest.raises(IntegrityError, match="ends in the middle"):
        load(mongodb.url, details, {"database-1": data[: len(data) // 2]}, work_folder=tmp_path)
    assert shop not in mongodb.client.list_database_names()


def test_one_collection_can_be_restored_and_others_left_out(mongodb: MongoServer, shop: str, tmp_path: Path) -> None:
    details, archives = dump(mongodb.url, tmp_path, databases=(shop,), exclude_tables=("shop.Pl*t",))
    assert details["parts"]["database-1"]["excluded"] == ["Playlist"]
    mongodb.client[shop]["Genre"].drop()
    load(mongodb.url, details, archives, work_folder=tmp_path, tables=("shop.Genre",))
    assert mongodb.client[shop]["Genre"].count_documents({}) == 25


def test_what_cannot_be_is_said(mongodb: MongoServer, shop: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no database nowhere") as caught:
        dump(mongodb.url, tmp_path, databases=("nowhere",))
    assert "shop" in caught.value.details[0]
    with pytest.raises(ConfigError, match="not a MongoDB connection string") as wrong:
        dump(Secret("mongodb:/me:sesame@db1/"), tmp_path)
    assert "sesame" not in str([wrong.value.message, wrong.value.details, wrong.value.hints])


def test_documents_of_every_type_come_back_byte_for_byte(
    mongodb: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

    values: list[Any] = [
        Decimal128("NaN"), Decimal128("1.500"), 1, Int64(1), 1.0, -0.0, float("inf"), Timestamp(5, 1), ObjectId(),
        Binary(b"x", 0), Binary(b"x", 2), Binary(b"y" * 16, 4), Binary(b"z", 128), Code("f()", {"a": 1}), MinKey(),
        Regex("a", "im"), MaxKey(), {"": 1}, {"a.b": 1, "$c": 2}, "nul\0inside", {"b": 1, "a": 2}, [[], {}], None, True,
    ]  # fmt: skip
    database = mongodb.client["types"]
    database["all"].insert_many([{"_id": number, "value": value} for number, value in enumerate(values)])
    details, archives = dump(mongodb.url, tmp_path, databases=("types",))
    mongodb.client.drop_database("types")
    options = load(mongodb.url, details, archives, work_folder=tmp_path)
    assert ENGINE.fingerprint(mongodb.url, options)["database-1"] == details["parts"]["database-1"]["fingerprint"]
    mongodb.client.drop_database("types")


def test_a_time_series_that_the_server_loses_while_everybody_says_success_turns_red(
    mongodb: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    database = mongodb.client["sensors"]
    database.create_collection("heat", timeseries={"timeField": "at", "metaField": "room"})
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    database["heat"].insert_many([{"at": moment, "room": "a", "value": number} for number in range(5)])
    details, archives = dump(mongodb.url, tmp_path, databases=("sensors",))
    mongodb.client.drop_database("sensors")
    options = load(mongodb.url, details, archives, work_folder=tmp_path)
    assert database["heat"].count_documents({}) == 0, "the server no longer loses them: another lie is needed here"
    recorded = details["parts"]["database-1"]["fingerprint"]
    found = ENGINE.fingerprint(mongodb.url, options)["database-1"]
    differences = compare_fingerprints(recorded, found, ENGINE.expected)
    assert [(item.name, item.fact, item.expected_by) for item in differences] == [
        ("sensors.heat", "digest", ""),
        ("sensors.heat", "rows", ""),
    ]
    mongodb.client.drop_database("sensors")
