"""``drkit catalog``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.cli.output import Output
    from drkit.keys import KeyFile
    from drkit.operations.rebuild import Rebuilt


@click.group()
@common_options
def catalog() -> None:
    """Rebuild or export the catalog: an index that can be made again from the stores."""


@catalog.command()
@click.option(
    "--identity", type=click.Path(path_type=Path), multiple=True, help="An identity file to open details with."
)
@common_options
@click.pass_context
def rebuild(ctx: click.Context, identity: tuple[Path, ...]) -> None:
    """Make the catalog again from the stores alone.

    A sound catalog is brought up to date; a damaged one, or one of a newer drkit, is kept beside the new one. With an
    identity in reach the names of databases and tables are known again too.
    Exit codes: 0 done; 6 no store can be read; 8 something in a store is not as it was signed; 12 a store was left out.
    """
    from drkit.app import open_stores, utc_now
    from drkit.catalog.sqlite import catalog_path
    from drkit.keys import load_signers
    from drkit.operations.rebuild import rebuild_catalog
    from drkit.site import load_site

    output = output_of(ctx)
    site = load_site(site_option(ctx), os.environ, Path.cwd())
    path = catalog_path(site.catalog, site.folder)
    keys = _identities([*identity, *site.keys.identities], identity, output)
    with open_stores(site) as stores:
        rebuilt = rebuild_catalog(path, stores, load_signers(site.keys.signers), utc_now(), identities=keys)
    output.result("catalog-rebuild", _document(path, rebuilt), "\n".join(_lines(path, rebuilt)))
    ctx.exit(rebuilt.exit_code)


def _identities(paths: Sequence[Path], given: Sequence[Path], output: Output) -> list[KeyFile]:
    """Read identities; one of the site's that cannot be read costs only the details, one given by hand is an error."""
    from drkit.errors import DrkitError
    from drkit.key_files import ask_passphrase
    from drkit.keys import load_identities

    keys: list[KeyFile] = []
    for path in paths:
        try:
            keys += load_identities([path], ask_passphrase)
        except DrkitError as error:
            if path in given:
                raise
            output.line(f"going on without an identity: {error.message}")
    return keys


def _lines(path: Path, rebuilt: Rebuilt) -> list[str]:
    from drkit.units import format_count

    lines = [
        f"{path}: {format_count(rebuilt.artifacts, 'artifact')}, {format_count(rebuilt.evidence, 'evidence record')}"
        + (f", details of {rebuilt.opened} opened" if rebuilt.opened else "")
    ]
    if rebuilt.moved_aside is not None:
        lines.append(f"the old file is kept as {rebuilt.moved_aside}")
    lines += [
        f"  {policy or '(store)'}  {finding.message}" + (f"\n    hint: {finding.hint}" if finding.hint else "")
        for policy, findings in sorted(rebuilt.findings.items())
        for finding in findings
    ]
    return lines


def _document(path: Path, rebuilt: Rebuilt) -> dict[str, Any]:
    return {
        "catalog": str(path),
        "artifacts": rebuilt.artifacts,
        "evidence": rebuilt.evidence,
        "details_opened": rebuilt.opened,
        "forgotten": [*rebuilt.forgotten],
        "moved_aside": str(rebuilt.moved_aside) if rebuilt.moved_aside else None,
        "findings": [
            {"policy": policy or None, **vars(finding)}
            for policy, findings in sorted(rebuilt.findings.items())
            for finding in findings
        ],
    }


@catalog.command()
@common_options
@click.pass_context
def export(ctx: click.Context) -> None:
    """Print what the stores say, as canonical JSON: the same bytes on every host whose catalog is up to date."""
    from drkit.catalog.sqlite import catalog_path, open_catalog
    from drkit.site_file import find_site, read_catalog_url

    site_file = find_site(site_option(ctx), os.environ, Path.cwd())
    index = open_catalog(catalog_path(read_catalog_url(site_file), site_file.parent))
    try:
        click.echo(index.export(), nl=False)
    finally:
        index.close()
