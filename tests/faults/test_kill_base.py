"""SIGKILL before and after every request that a clean base backup makes to its stores, and inside its large puts.

What tests/faults/surviving.py asserts of any killed backup must hold of a base as well, and besides: the server is rid
of it (no replication slot, no session, so no backup mode), every manifest names only what is there, and what a base
leaves on this host for the next incremental one does not pile up. Neither way needs to be told that one before died.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forking import Ended, Forker, wait_until
from tests.faults.shop import ROW_WORD, TABLE_WORD, Shop, make_shop
from tests.faults.surviving import Survivor, requests_of, share
from tests.fixtures.physical import PHYSICAL
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import started

SHARDS = 2
_TRACES = """
select (select count(*) from pg_replication_slots)
     + (select count(*) from pg_stat_activity where application_name like 'drkit%' or backend_type = 'walsender')
"""
"""What a base backup has of the server while it runs; its backup mode ends with its session."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Lend a server with a table in a tablespace, and as small as one can be made: without the templates."""
    with running_postgres(segment_mib=1, **PHYSICAL) as server:
        server.execute("update pg_database set datistemplate = false where datistemplate")
        for template in ("template0", "template1"):
            server.drop_database(template)
        folder = server.folder / "space"
        subprocess.run(["install", "-d", "-m", "700", "-o", "postgres", str(folder)], check=True)
        server.execute(f"create tablespace space location '{folder}'")
        server.execute(f"create table {TABLE_WORD} tablespace space as select '{ROW_WORD} ' || 1 as word")
        yield server


def base_shop(machine: Path, forker: Forker, server: PostgresServer, rule: str, stores: tuple[str, ...]) -> Shop:
    shop = make_shop(machine, forker, server.tcp_url().reveal(), stores=stores)
    for name in stores[1:]:
        shop.site.add_store(name).mkdir(mode=0o700)
    path = shop.site.folder / "policies" / "shop.yaml"
    text = path.read_text().replace(", databases: [postgres]", "")
    path.write_text(text.replace("{method: dump}", f"{{method: base, {rule}}}"))
    return shop


class BaseSurvivor(Survivor):
    """A shop with base backups, in folders; ``server`` is what they are of."""

    def __init__(self, shop: Shop, server: PostgresServer, stores: tuple[str, ...]) -> None:
        self.folders = {"primary": shop.site.store_folder, "offsite": shop.site.folder / "offsite"}
        super().__init__(shop, self._stored, store_count=len(stores), stores=stores)
        self.server = server

    def _stored(self) -> dict[str, bytes]:
        files = (file for name in self.stores for file in self.folders[name].rglob("*") if file.is_file())
        return {str(file): file.read_bytes() for file in files}

    def judge(self, killed: Ended, point: str) -> None:
        wait_until(lambda: self.server.execute(_TRACES) == [(0,)], f"{point}: the server is not rid of it")
        for name in self.stores:
            self.judge_manifests(self.folders[name], point)
        super().judge(killed, point)

    def judge_manifests(self, folder: Path, point: str) -> None:
        """Whatever has a manifest is whole: its signature and each of its objects are there, as long as they were."""
        for path in folder.rglob("manifest.json"):
            assert path.with_name("manifest.json.sig").stat().st_size, point
            sizes = {item["key"]: item["stored_bytes"] for item in json.loads(path.read_text())["objects"]}
            assert sizes == {key: (folder / key).stat().st_size for key in sizes}, point

    def finish(self) -> None:
        super().finish()
        assert not list(self.shop.site.store_folder.parent.rglob("*.new")), "a file that nobody finished"
        kept = [path.name for path in (self.shop.site.folder / "var" / "bases" / "shop").iterdir()]
        newest = max(artifact_id for artifact_id, _ in self.shop.copies("--all"))
        assert [name.partition(".")[0] for name in kept] == [newest]

    def restore(self, artifact_id: str) -> None:
        """Bring an artifact back by a command, start what came of it, and read its row."""
        into = self.shop.host.folder / "into"
        restored = self.shop.drkit("restore", "shop", "--artifact", artifact_id, "--into", str(into))
        assert restored.status == 0, restored.said
        with started(self.server, into) as copy:
            assert copy.execute(f"select word from {TABLE_WORD}") == [(f"{ROW_WORD} 1",)]


WAYS = pytest.mark.parametrize(
    ("rule", "stores"),
    [("via: stream", ("primary", "offsite")), ("via: local, parallel: 2", ("primary",))],
    ids=["stream", "local"],
)


@WAYS
@pytest.mark.parametrize("shard", range(SHARDS))
def test_killed_at_every_request(
    machine: Path, forker: Forker, server: PostgresServer, rule: str, stores: tuple[str, ...], shard: int
) -> None:
    shop = base_shop(machine / "shop", forker, server, rule, stores)
    earlier = shop.document("backup", "shop")["artifact_id"]
    points = [point for point in requests_of(shop.drkit("backup", "shop")) if _is_worth_it(point)]
    if len(stores) == 1:
        points = [point for point in points if "/artifacts/*/" in point]  # the others are those of the other way
    assert len(points) > (25 if len(stores) == 1 else 50)
    survivor = BaseSurvivor(shop, server, stores)
    survivor.survive(share(points, shard, SHARDS))
    # What was taken before anything was killed; or the newest that stood when its own backup was.
    survivor.restore(earlier if shard == 0 else max(artifact_id for artifact_id, _ in survivor.copies))


def _is_worth_it(point: str) -> bool:
    """Leave out the inside of puts that a dump makes just as well: of copies, and of small documents."""
    return " chunk of " not in point or (" primary " in point and "/base" in point)
