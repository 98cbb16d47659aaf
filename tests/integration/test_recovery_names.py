"""Names of databases that the blocks of the document have to cope with, to the letter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.site import ReadySite
from tests.integration.test_recovery_by_hand import ONE_DATABASE, WHOLE_SERVER, Recovery, databases, link_tools

NAMES = [
    "two  spaces",
    " around ",
    "-dash",
    "--version",
    "a=b",
    "dbname=postgres",
    "postgresql://x/y",
    "\"'\\$HOME`id`*",
]


@pytest.fixture(scope="module")
def source() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def target() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sections", [WHOLE_SERVER, ONE_DATABASE], ids=["all", "one"])
def test_an_odd_name_comes_back(
    name: str,
    sections: tuple[str, ...],
    source: PostgresServer,
    target: PostgresServer,
    ready_site: ReadySite,
    tmp_path: Path,
) -> None:
    source.create_database(name, "create table t as select generate_series(1, 7) as a")
    try:
        policy = ready_site.write_policy("odd", ready_site.write_secret("url", source.url().reveal()))
        chosen = f"engine: postgres, databases: [{json.dumps(name)}],"
        policy.write_text(policy.read_text().replace("engine: postgres,", chosen))
        assert ready_site.drkit("backup", "odd").returncode == 0
        (artifact,) = (ready_site.store_folder / "policies/odd/artifacts").iterdir()
        (tmp_path / "tools").mkdir()
        person = Recovery(
            tmp_path,
            link_tools(tmp_path / "tools"),
            ready_site.store_folder,
            "odd",
            artifact.name,
            ready_site.escrow_identity,
            ready_site.allowed_signers,
            target,
            part="database-1",
            database=name,
        )
        done = person.follow(sections)
        assert done.returncode == 0, done.stderr
        assert databases(target) == {name}
        assert target.execute("select count(*) from t", name) == [(7,)]
        assert "every table has as many rows" in done.stdout
    finally:
        source.drop_database(name)
        for other in databases(target):
            target.drop_database(other)
