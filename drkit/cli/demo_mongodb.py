"""The second half of ``drkit demo``: the same story with MongoDB, where its tools and a server are installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drkit.mongo_binaries import FOLDERS_VARIABLE, find_mongo_binary

if TYPE_CHECKING:
    from drkit.cli.output import Output
    from drkit.engines.mongodb_client import Client
    from drkit.operations.init import NewSite
    from drkit.sandboxes import ScratchServer

_SOURCE_BYTES = 200_000_000
_BASKETS = 4_000
_POLICY = """\
policy: baskets
owner: you@example.org
target: {{engine: mongodb, url: "file:keys/baskets-url", databases: [shop]}}
objectives: {{rpo: 24h, rto: 10m}}
backups:
  - {{method: dump, schedule: "0 2 * * *"}}
stores: [primary]
encryption: {{recipients: [{recipients}]}}
drills:
  - name: rehearsal
    level: works
    checks:
      - {{name: every basket has its three lines, collection: basket, pipeline: [{{$unwind: $lines}}, {{$count: n}}],
         expect: {lines}}}
"""


def missing_programs() -> list[str]:
    """Return what the story needs and what is not installed."""
    missing = [name for name in ("mongodump", "mongorestore") if find_mongo_binary(name) is None]
    if not any(find_mongo_binary(name) for name in ("mongod", "secantusd-py")):
        missing.append("a server (mongod, or SecantusDB, which is compatible)")
    return missing


def show_mongodb(site: NewSite, output: Output, run: Callable[..., None]) -> Path | None:
    """Back up, drill, lose documents, restore beside, compare; return the path of the drill's record.

    ``run`` types a command. Where something is missing, say what and how to get it, and return None.
    """
    missing = missing_programs()
    if missing:
        output.line(f"\nMongoDB is left out: {', '.join(missing)} not found")
        output.line("  hint: scripts/install-mongo-tools builds and installs them in a copy of drkit's repository")
        output.line(f"  hint: or name their folders: export {FOLDERS_VARIABLE}=/path/to/bin")
        return None
    with _source(site) as server:
        _write_policy(site, server)
        run(site, output, "backup", "baskets")
        run(site, output, "drill", "baskets")
        (record,) = sorted((site.folder / "backups" / "policies" / "baskets" / "evidence").glob("*.json"))
        run(site, output, "evidence", "verify", str(record))
        with _connected(server) as client:
            client["shop"]["basket"].delete_many({"_id": {"$mod": [7, 0]}})
            output.line(f"\nan accident in shop: {_count(client, 'shop'):,} of {_BASKETS:,} baskets are left")
        run(site, output, "restore", "baskets", "--to", "file:keys/baskets-url", "--rename", "shop=shop_restored")
        with _connected(server) as client:
            output.line(f"\nin shop_restored: {_count(client, 'shop_restored'):,} of {_BASKETS:,} baskets")
    return record


@contextmanager
def _source(site: NewSite) -> Iterator[ScratchServer]:
    """Lend a server to play the one in production, with the sample data in it."""
    from drkit.app import open_app
    from drkit.operations.sandboxing import sandbox_for, scratch_folder
    from drkit.sandboxes import SandboxRequest

    with open_app(site.site_file) as workplace:
        request = SandboxRequest(major=0, need_bytes=_SOURCE_BYTES, folder=scratch_folder(workplace))
        with sandbox_for("mongodb").open(request, workplace.catalog) as server:
            with _connected(server) as client:
                _fill(client)
            yield server


@contextmanager
def _connected(server: ScratchServer) -> Iterator[Client]:
    from drkit.engines.mongodb_client import connect, parse_url

    with connect(parse_url(server.url)) as client:
        yield client


def _fill(client: Client) -> None:
    shop = client["shop"]
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def basket(number: int) -> dict[str, Any]:
        lines = [{"product": (number * 31 + line) % 500, "quantity": 1 + line} for line in range(3)]
        return {"_id": number, "customer": number % 500, "at": start + timedelta(minutes=number), "lines": lines}

    shop["basket"].insert_many([basket(number) for number in range(_BASKETS)])
    shop["basket"].create_index([("customer", 1), ("at", -1)], name="by customer")
    shop["customer"].insert_many([{"_id": number, "name": f"customer {number}"} for number in range(500)])
    shop["customer"].create_index("name", unique=True)
    shop.create_collection("first", viewOn="basket", pipeline=[{"$match": {"_id": {"$lt": 10}}}])


def _count(client: Client, database: str) -> int:
    return client[database]["basket"].count_documents({})


def _write_policy(site: NewSite, server: ScratchServer) -> None:
    secret = site.folder / "keys" / "baskets-url"
    with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(server.url.reveal())
    recipients = f"{site.restore.recipient}, {site.escrow.recipient}"
    policy = _POLICY.format(recipients=recipients, lines=3 * _BASKETS)
    (site.folder / "policies" / "baskets.yaml").write_text(policy)
