"""A small shop to back up on a host of its own, with words in it that must not be seen anywhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from drkit.app import open_stores
from drkit.catalog.sqlite import open_catalog
from drkit.keys import load_signers
from drkit.model import Run
from drkit.operations.init import init_site
from drkit.operations.rebuild import rebuild_catalog
from drkit.units import parse_utc
from tests.faults.forking import Ended, Forker, Host, searched
from tests.fixtures.postgres import PASSWORD, PostgresServer
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY
from tests.fixtures.site import ReadySite

ROW_WORD = "a-row-nobody-may-read"
TABLE_WORD = "a_table_nobody_may_name"
_ROWS = f"""
create table {TABLE_WORD} (id int primary key, word text);
insert into {TABLE_WORD} select n, '{ROW_WORD} ' || n from generate_series(1, 40) n;
"""


def create_shop(postgres: PostgresServer, *, noise_bytes: int = 0) -> str:
    """Create the shop's database and return its name; ``noise_bytes`` of it do not compress."""
    name = postgres.create_database(statements=_ROWS)
    if noise_bytes:
        postgres.execute(
            f"create table noise as select n, sha512(n::text::bytea) from generate_series(1, {noise_bytes // 64}) n",
            name,
        )
    return name


@dataclass
class Shop:
    """A host with a site that has one policy, ``shop``."""

    site: ReadySite
    host: Host
    forker: Forker

    def with_variables(self, **variables: str) -> Shop:
        """Return the same host with more in its environment."""
        return replace(self, host=replace(self.host, variables={**self.host.variables, **variables}))

    def drkit(self, *arguments: str, **how: Any) -> Ended:
        """Run a command on the host."""
        return self.forker.run(self.host, *arguments, **how)

    def document(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """Run a command with --json, require its exit status, and return the document."""
        ended = self.drkit(*arguments, "--json")
        assert ended.status == status, ended.said
        document = json.loads(ended.stdout)
        assert isinstance(document, dict)
        return document

    @property
    def secrets(self) -> list[str]:
        """Return everything that must be read nowhere: passwords, and lines of the private keys."""
        identity = next(line for line in self.site.restore_identity.read_text().splitlines() if line.startswith("AGE-"))
        return [
            PASSWORD,
            quote(PASSWORD, safe=""),
            SECRET_KEY,
            identity,
            self.site.signing_key.read_text().splitlines()[3],
        ]

    @property
    def catalog_file(self) -> Path:
        """Return the catalog."""
        return self.site.folder / "var" / "catalog.db"

    def runs(self) -> list[Run]:
        """Return the runs, newest first, without running a command."""
        with closing(open_catalog(self.catalog_file)) as catalog:
            return catalog.runs(limit=1000)

    def scratches(self) -> int:
        """Return how many scratch servers are on the books."""
        with closing(open_catalog(self.catalog_file)) as catalog:
            return len(catalog.scratches())

    def export(self) -> bytes:
        """Return what the catalog says."""
        with closing(open_catalog(self.catalog_file)) as catalog:
            return catalog.export()

    def rebuilt_export(self) -> bytes:
        """Return what a catalog made from the stores alone says."""
        fresh = self.host.folder / "rebuilt.db"
        site = self.site.load()
        saved = dict(os.environ)
        os.environ.update(self.host.variables)
        try:
            with open_stores(site) as stores:
                at = parse_utc("2026-01-01T00:00:00+00:00")
                rebuilt = rebuild_catalog(fresh, stores, load_signers(site.keys.signers), at)
            assert rebuilt.exit_code == 0, rebuilt
            with closing(open_catalog(fresh)) as catalog:
                return catalog.export()
        finally:
            os.environ.clear()
            os.environ.update(saved)
            for file in fresh.parent.glob(fresh.name + "*"):
                file.unlink()

    def copies(self, *words: str) -> set[tuple[str, str]]:
        """Verify by a command; return (artifact id, store) of every copy, all of them sound and decrypted."""
        results = self.document("verify", *words)["results"]
        assert all(result["decrypted"] and not result["findings"] for result in results), results
        return {(result["artifact_id"], result["store"]) for result in results}

    def temporary_files(self) -> list[Path]:
        """Return everything in the host's folder for temporary files."""
        return sorted(self.host.temporary.rglob("*"))

    def seen_secrets(self, *ended: Ended) -> list[str]:
        """Return the places where a secret or the shop's rows can be read, apart from those that are for keys."""
        words = (*self.secrets, ROW_WORD)
        places = [f"printed: {word}" for item in ended for word in words if word in item.said]
        return places + searched([self.site.folder / "var", *self.host.folder.glob("std*-*")], words)


def make_shop(
    folder: Path,
    forker: Forker,
    url: str,
    *,
    stores: Sequence[str] = ("primary",),
    more: str = "",
    rule: str = "",
    **variables: str,
) -> Shop:
    """Make a host with a site in ``folder``; ``url`` is the database's and comes from the environment."""
    folder.mkdir(parents=True)
    folder.chmod(0o711)
    made = init_site(folder / "site", principal="shop@example.org")
    made.policy_file.unlink()
    site = ReadySite(made.folder, made)
    path = site.write_policy("shop", stores=stores, more=more)
    database = url.rpartition("/")[2].partition("?")[0]
    text = path.read_text().replace('DATABASE_URL"}', f'DATABASE_URL", databases: [{database}]}}')
    path.write_text(text.replace("{method: dump}", f"{{method: dump{rule}}}"))
    host = Host(folder, site.folder, {"DATABASE_URL": url, **variables})
    host.make_folders()
    return Shop(site, host, forker)


def bucket_lines(endpoint: str) -> list[str]:
    """Return the lines of drkit.yaml that lead a store to a server."""
    keys = ['access_key: "env:SHOP_ACCESS_KEY"', 'secret_key: "env:SHOP_SECRET_KEY"']
    return ['region: "us-east-1"', f'endpoint: "{endpoint}"', "path_style: true", *keys]


BUCKET_VARIABLES = {"SHOP_ACCESS_KEY": ACCESS_KEY, "SHOP_SECRET_KEY": SECRET_KEY}


def bucket_bytes(client: Any, bucket: str) -> Iterator[tuple[str, bytes]]:
    """Yield every object of a bucket with its bytes."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", ()):
            yield item["Key"], client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
