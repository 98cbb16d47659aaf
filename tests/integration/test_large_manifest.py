"""A database with so many or so long definitions that what is recorded of it makes the manifest large."""

from __future__ import annotations

import re

import pytest

from drkit import stores
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.site import ReadySite

VIEWS = """
do $$ begin for i in 1..17 loop
  execute format('create view v_%s as select %L::text as t', i, repeat('x', 1 << 20));
end loop; end $$"""
"""As much as 20,000 tables have, and made in a second."""


def manifests(site: ReadySite) -> list[str]:
    return [path.name for path in (site.store_folder / "policies/shop/artifacts").glob("*/manifest.json*")]


@pytest.fixture
def shop(postgres: PostgresServer, ready_site: ReadySite) -> ReadySite:
    database = postgres.create_database(statements=VIEWS)
    policy = ready_site.write_policy("shop", ready_site.write_secret("url", postgres.url(database).reveal()))
    policy.write_text(policy.read_text().replace("engine: postgres,", f"engine: postgres, databases: [{database}],"))
    return ready_site


def test_a_large_manifest_is_read_again(shop: ReadySite) -> None:
    assert shop.drkit("backup", "shop").returncode == 0
    assert len(manifests(shop)) == 2
    verified = shop.drkit("verify", "--all")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_one_that_could_not_be_read_again_is_never_written(shop: ReadySite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LARGEST_DOCUMENT_BYTES", 16 << 20)
    done = shop.call("backup", "shop")
    assert (done.returncode, manifests(shop)) == (5, []), done.stderr
    assert re.search(
        "drkit: the manifest of shop would have [0-9,]+ bytes, and no more than 16,777,216 can", done.stderr
    )
    assert "hint: share out the databases of shop among several policies" in done.stderr
