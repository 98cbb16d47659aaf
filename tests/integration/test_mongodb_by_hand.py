"""A dump of MongoDB comes back with stock tools alone, by the blocks of the document for recovery by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import bson
import pytest

from drkit.oplog import OplogTs, split_entries
from tests.fixtures.apply_ops import with_apply_ops
from tests.fixtures.mongodb import ROOT, MongoServer, running_mongodb
from tests.fixtures.oplog import OplogSite, newest, server_entries, write_orders
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite
from tests.integration.test_recovery_by_hand import RECOVERY_TOOLS, SHELL_TOOLS, Recovery

RECOVERY = ROOT / "docs" / "recovery-by-hand.md"
STEPS = ("1", "2", "3", "4c")


@dataclass(frozen=True)
class MongoRecovery(Recovery):
    """A person who has no PostgreSQL, and a file with a connection string instead."""

    config: Path = Path()

    def values(self) -> dict[str, str]:
        """Return what the person puts in for the document's variables."""
        server = {"PGHOST": "", "PGPORT": "", "PGUSER": ""}
        own = {"BUCKET": self.bucket, "POLICY": self.policy, "ARTIFACT": self.artifact, "IDENTITY": self.identity}
        more = {"ALLOWED_SIGNERS": self.signers, "WORK": self.folder / "work", "MONGO_CONFIG": self.config}
        return {**server, **{name: str(value) for name, value in {**own, **more}.items()}}


@pytest.fixture
def person(ready_site: ReadySite, mongodb: MongoServer, mongo_tools: Path, tmp_path: Path) -> MongoRecovery:
    """A person with the bucket of a backup of database ``byhand``, and a server that has lost it."""
    mongodb.fill("byhand", most_documents=300)
    url = ready_site.write_secret("source-url", mongodb.url.reveal())
    path = ready_site.write_policy("byhand", url)
    path.write_text(path.read_text().replace("engine: postgres,", "engine: mongodb, databases: [byhand],"))
    done = ready_site.drkit("backup", "byhand")
    assert done.returncode == 0, done.stderr
    mongodb.client.drop_database("byhand")
    (artifact,) = (ready_site.store_folder / "policies/byhand/artifacts").iterdir()
    return _person(ready_site, mongodb, mongo_tools, tmp_path, "byhand", artifact.name)


def _person(
    ready_site: ReadySite, mongodb: MongoServer, mongo_tools: Path, tmp_path: Path, policy: str, artifact: str
) -> MongoRecovery:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in SHELL_TOOLS + RECOVERY_TOOLS:
        found = shutil.which(name)
        assert found, f"{name} is not installed; run scripts/setup --tests"
        (tools / name).symlink_to(found)
    (tools / "mongorestore").symlink_to(mongo_tools / "mongorestore")
    config = tmp_path / "mongo.yaml"
    config.touch(mode=0o600)
    config.write_text(f'uri: "{mongodb.url.reveal()}"\n')
    return MongoRecovery(
        tmp_path,
        tools,
        ready_site.store_folder,
        policy,
        artifact,
        ready_site.escrow_identity,
        ready_site.allowed_signers,
        server=None,  # type: ignore[arg-type]  # there is no PostgreSQL in this story
        config=config,
    )


def test_a_database_comes_back_and_a_refused_document_is_noticed(person: MongoRecovery, mongodb: MongoServer) -> None:
    done = person.follow(STEPS)
    assert done.returncode == 0, done.stderr
    assert "0 document(s) failed to restore" in done.stdout
    assert mongodb.client["byhand"]["Artist"].count_documents({}) == 275
    assert set(mongodb.client["byhand"]["Artist"].index_information()) == {"_id_", "by name"}

    again = person.follow(STEPS)
    assert again.returncode != 0, "every document was there already, and mongorestore was content"
    mongodb.client.drop_database("byhand")


def test_slices_of_the_oplog_make_an_oplog_that_stock_tools_read(
    mongo_tools: Path, mongodb_programs: None, ready_site: ReadySite, tmp_path: Path
) -> None:
    site = OplogSite(ready_site)
    with running_mongodb("--storage-path=:memory:") as server:
        write_orders(server, 0, 10)
        site.write_policy(server.url.reveal())
        done = ready_site.call("backup", "orders")
        assert done.returncode == 0, done.stderr
        with site.serving():
            site.wait_for("tail      tailing")
            write_orders(server, 100, 30)
            until(lambda: site.stored().slices, "the first slice")
            write_orders(server, 200, 30)
            end = newest(server)
            until(lambda: site.reached(end), "the last slice")
        (artifact,) = (ready_site.store_folder / "policies/orders/artifacts").iterdir()
        stop_ts = json.loads((artifact / "manifest.json").read_text())["oplog"]["stop_ts"]
        wanted = server_entries(server, OplogTs.parse(stop_ts), end)
        someone = _person(ready_site, server, mongo_tools, tmp_path, "orders", artifact.name)
        done = someone.follow(("1", "2", "3", "4d"))
    assert done.returncode == 0, done.stderr
    assert f"up to second {end.seconds} since 1970" in done.stdout
    oplog = tmp_path / "work" / "dump" / "oplog.bson"
    assert list(split_entries([oplog.read_bytes()])) == wanted
    shown = subprocess.run([mongo_tools / "bsondump", oplog], capture_output=True, text=True, check=True)
    assert len(shown.stdout.splitlines()) == len(wanted)
    _replay_by_the_document(mongo_tools, artifact, wanted, tmp_path)


def _replay_by_the_document(mongo_tools: Path, artifact: Path, wanted: list[bytes], folder: Path) -> None:
    """Restore the dump as step 4c does and replay the oplog by the last command of step 4d, up to a moment."""
    entries = [bson.decode(raw) for raw in wanted if bson.decode(raw)["op"] != "n"]
    limit = entries[len(entries) // 2]["ts"].time
    kept = [entry["o"]["_id"] for entry in entries if entry["ts"].time < limit]
    (replay,) = [line for line in RECOVERY.read_text().splitlines() if "--oplogReplay --oplogLimit" in line]
    with running_mongodb("--storage-path=:memory:") as empty, with_apply_ops(empty) as between:
        config = folder / "new.yaml"
        config.touch(mode=0o600)
        config.write_text(f'uri: "mongodb://127.0.0.1:{between.port}/?directConnection=true"\n')
        (archive,) = [item for item in (folder / "work" / "plain").iterdir() if item.name != "users"]
        variables = {"MONGO_CONFIG": str(config), "UNTIL": str(limit), "PATH": f"{mongo_tools}:{os.environ['PATH']}"}
        # A whole server's archive has the oplog of its own time, which 4c says to replay.
        restore = 'mongorestore --config="$MONGO_CONFIG" --archive="$ARCHIVE" --oplogReplay'
        for script in (restore, replay):
            done = subprocess.run(
                ["bash", "-euc", script],
                cwd=folder / "work",
                env={**variables, "ARCHIVE": str(archive)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        held = {item["_id"] for item in empty.client["shop"]["orders"].find()}
    assert kept
    assert [entry["o"]["_id"] for entry in between.applied][-len(kept) :] == kept
    assert held == {*range(10), *kept}
