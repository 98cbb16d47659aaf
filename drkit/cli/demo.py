"""``drkit demo``: the whole story on throw-away servers, by the commands that a user types."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drkit.cli import cli, common_options, output_of
from drkit.errors import ConfigError

if TYPE_CHECKING:
    from drkit.cli.output import Output
    from drkit.operations.init import NewSite
    from drkit.sandboxes import ScratchServer

_MARKER = ".drkit-demo"
_SOURCE_BYTES = 200_000_000
_POLICY = """\
policy: shop
owner: you@example.org
target: {{engine: postgres, url: "file:keys/source-url", databases: [shop]}}
objectives: {{rpo: 24h, rto: 10m}}
backups:
  - {{method: dump, schedule: "0 2 * * *"}}
stores: [primary]
encryption: {{recipients: [{recipients}]}}
drills:
  - name: rehearsal
    level: works
    checks:
      - {{name: every purchase has its three lines, sql: "select count(*) = 120000 from purchase_line"}}
"""


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("drkit-demo"),
    show_default=True,
    help="Where the demo's site goes; a former demo in it is replaced.",
)
@common_options
@click.pass_context
def demo(ctx: click.Context, folder: Path) -> None:
    """Back up, restore and prove a sample database on throw-away servers: PostgreSQL, then MongoDB if it is installed.

    Exit codes: 0 proven; 3 FOLDER holds something else; any other as of the command that failed.
    """
    from drkit.cli.demo_mongodb import show_mongodb
    from drkit.operations.init import init_site

    output = output_of(ctx)
    _clear(folder)
    site = init_site(folder, principal="demo@example.org")
    (site.folder / _MARKER).touch()
    site.policy_file.unlink()
    with _source(site) as server:
        _write_policy(site, server)
        evidence = _story(site, server, output)
    output.line("\nthe same with MongoDB")
    second = show_mongodb(site, output, _type)
    document = {
        "folder": str(site.folder),
        "evidence": str(evidence),
        "evidence_mongodb": str(second) if second else None,
    }
    records = f"record is {evidence}" if second is None else f"records are\n  {evidence}\n  {second}"
    text = f"\nproven; the signed {records}\nthe site stays in {folder}/ to look at"
    output.result("demo", document, text)


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise ConfigError(f"{folder} holds something that is not a demo", hints=["drkit demo --folder ANOTHER"])
        shutil.rmtree(folder)


@contextmanager
def _source(site: NewSite) -> Iterator[ScratchServer]:
    """Lend a server to play the one in production, with the sample database in it."""
    from drkit.app import open_app
    from drkit.binaries import newest_server_major
    from drkit.operations.sandboxing import sandbox_for, scratch_folder
    from drkit.sandboxes import SandboxRequest

    with open_app(site.site_file) as workplace:
        request = SandboxRequest(newest_server_major(), _SOURCE_BYTES, scratch_folder(workplace))
        with sandbox_for("postgres").open(request, workplace.catalog) as server:
            _execute(server, "postgres", "create database shop")
            _execute(server, "shop", files("drkit.cli").joinpath("sample.sql").read_text())
            yield server


def _execute(server: ScratchServer, database: str, statements: str) -> list[tuple[object, ...]]:
    import psycopg

    with psycopg.connect(_url(server, database), autocommit=True) as connection:
        cursor = connection.execute(statements.encode())
        return cursor.fetchall() if cursor.description else []


def _url(server: ScratchServer, database: str) -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo(server.url.reveal(), dbname=database)


def _write_policy(site: NewSite, server: ScratchServer) -> None:
    secret = site.folder / "keys" / "source-url"
    descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_url(server, "shop"))
    recipients = f"{site.restore.recipient}, {site.escrow.recipient}"
    (site.folder / "policies" / "shop.yaml").write_text(_POLICY.format(recipients=recipients))


def _story(site: NewSite, server: ScratchServer, output: Output) -> Path:
    """Back up, drill, lose rows, restore beside, compare; return the path of the drill's record."""
    _type(site, output, "backup", "shop")
    _type(site, output, "drill", "shop")
    (record,) = sorted((site.folder / "backups" / "policies" / "shop" / "evidence").glob("*.json"))
    _type(site, output, "evidence", "verify", str(record))
    _execute(server, "shop", "delete from purchase_line where purchase_id % 7 = 0")
    output.line(f"\nan accident in shop: {_lines(server, 'shop'):,} of 120,000 purchase lines are left")
    target = site.folder / "keys" / "restored-url"
    target.touch(mode=0o600)
    target.write_text(_url(server, "shop_restored"))
    _type(site, output, "restore", "shop", "--to", "file:keys/restored-url")
    output.line(f"\nin shop_restored: {_lines(server, 'shop_restored'):,} of 120,000 purchase lines")
    return record


def _lines(server: ScratchServer, database: str) -> int:
    (row,) = _execute(server, database, "select count(*) from purchase_line")
    return int(str(row[0]))


def _type(site: NewSite, output: Output, *words: str) -> None:
    """Run a command as a user types it; its failure ends the demo."""
    output.line(f"\n$ drkit {' '.join(words)}")
    status = cli.main(["--site", str(site.site_file), *words], prog_name="drkit", standalone_mode=False)
    if status:
        raise click.exceptions.Exit(int(status))
