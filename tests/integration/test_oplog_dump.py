"""Dumps of a whole server with the oplog of their time: what they record, and what makes them fail.

Genuine tools, compatible server: mongodump is MongoDB's own, the server is SecantusDB.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drkit.app import open_app
from drkit.credentials import Secret
from drkit.engines import BackupOptions, OplogRange
from drkit.engines.mongodb_dump import MongodbDump
from drkit.errors import SourceError
from drkit.model import ArtifactEntry
from drkit.oplog import OplogTs, read_ts
from drkit.oplog_archive import archived_entries
from tests.fixtures.mongodb import MongoServer, running_mongodb
from tests.fixtures.oplog import OplogSite, meanwhile, newest, write_orders
from tests.fixtures.site import ReadySite

ENGINE = MongodbDump()


@pytest.fixture(scope="module")
def server(mongodb_programs: None) -> Iterator[MongoServer]:
    """Lend a server with some orders, whose oplog keeps little."""
    with running_mongodb("--storage-path=:memory:", "--oplog-max-entries=400") as server:
        write_orders(server, 0, 300)
        server.client["bills"]["open"].insert_many([{"_id": number} for number in range(50)])
        yield server


def dump(url: Secret, folder: Path, **how: object) -> tuple[OplogRange | None, list[bytes]]:
    """Dump and return the range, and the archive of the only part."""
    with ENGINE.open_backup(url, BackupOptions(work_folder=folder, via="tools", **how)) as session:  # type: ignore[arg-type]
        (part,) = session.preflight.parts
        with session.open_part(part) as chunks:
            archive = list(chunks)
        return session.oplog_range, archive


def newest_artifact(site: ReadySite) -> ArtifactEntry | None:
    """Return the newest artifact of the catalog."""
    with open_app(site.site_file) as workplace:
        return next(iter(workplace.catalog.artifacts("orders")), None)


def test_a_whole_server_is_dumped_with_the_oplog_of_the_time_that_it_took(
    server: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    before = newest(server)
    numbers = iter(range(1000, 100_000))

    def order() -> None:
        write_orders(server, next(numbers), 1)
        threading.Event().wait(0.01)

    with meanwhile(order):
        found, archive = dump(server.url, tmp_path)
    assert found is not None
    assert found.included
    places = [read_ts(entry) for entry in archived_entries(archive)]
    assert [str(places[0]), str(places[-1])] == [found.start_ts, found.stop_ts]
    assert before <= places[0] <= places[-1] <= newest(server)


def test_an_artifact_says_where_in_the_oplog_it_lies_and_restores_in_a_drill(
    server: MongoServer, mongo_tools: Path, ready_site: ReadySite
) -> None:
    site = OplogSite(ready_site)
    site.write_policy(server.url.reveal())
    assert ready_site.call("backup", "orders").returncode == 0
    entry = newest_artifact(ready_site)
    assert entry is not None
    assert entry.manifest.oplog is not None
    assert (entry.manifest.oplog.timeline, entry.manifest.oplog.included) == (1, True)
    assert [item.part for item in entry.manifest.objects] == ["server"]
    shown = json.loads(ready_site.call("timeline", "orders", "--json").stdout)
    (window,) = shown["windows"]
    assert window["from_ts"] == window["to_ts"] == entry.manifest.oplog.stop_ts
    assert ready_site.call("verify", "--all").returncode == 0
    drilled = ready_site.call("drill", "orders", "--level", "same-data")
    assert drilled.returncode == 0, drilled.stdout + drilled.stderr


def test_a_dump_of_some_databases_records_the_oplog_around_it(
    server: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    before = newest(server)
    write_orders(server, 200_000, 1)
    found, archive = dump(server.url, tmp_path, databases=("bills",))
    assert found is not None
    assert not found.included
    assert before < OplogTs.parse(found.start_ts) <= OplogTs.parse(found.stop_ts) <= newest(server)
    assert list(archived_entries(archive)) == []


def test_a_rename_during_the_dump_is_a_failed_run_and_no_artifact(
    server: MongoServer, mongo_tools: Path, ready_site: ReadySite
) -> None:
    numbers = iter(range(10_000))
    shop = server.client["shop"]
    shop["renamed-0"].insert_one({"_id": 1})

    def rename() -> None:
        number = next(numbers)
        shop[f"renamed-{number}"].rename(f"renamed-{number + 1}")

    OplogSite(ready_site).write_policy(server.url.reveal())
    with meanwhile(rename):
        result = ready_site.call("backup", "orders")
    shop[f"renamed-{next(numbers)}"].drop()
    assert result.returncode == 5, result.stderr
    assert "rename" in result.stderr
    assert newest_artifact(ready_site) is None
    assert not list(ready_site.store_folder.rglob("manifest.json"))


def test_an_oplog_overrun_during_the_dump_is_a_failed_run_and_no_artifact(
    server: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    numbers = iter(range(300_000, 3_000_000, 500))

    def flood() -> None:
        first = next(numbers)
        server.client["flood"]["x"].insert_many([{"_id": first + step} for step in range(500)])

    with meanwhile(flood), pytest.raises(SourceError):
        dump(server.url, tmp_path)
    server.client.drop_database("flood")


def test_a_server_that_stands_alone_is_dumped_without_an_oplog(mongo_tools: Path, tmp_path: Path) -> None:
    with running_mongodb("--storage-path=:memory:", "--standalone") as server:
        write_orders(server, 0, 5)
        with ENGINE.open_backup(server.url, BackupOptions(work_folder=tmp_path, via="tools")) as session:
            (part,) = session.preflight.parts
            with session.open_part(part) as chunks:
                list(chunks)
            assert session.oplog_range is None
            assert "no member of a replica set" in session.preflight.warnings[0]
