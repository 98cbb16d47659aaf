"""``drkit list``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.units import format_bytes, format_moment, format_utc

if TYPE_CHECKING:
    from drkit.catalog import ArtifactRow

_HEADERS = ("artifact", "policy", "method", "restorable to", "plain", "stored", "stores", "proven")


@click.command("list")
@click.argument("policy", required=False)
@common_options
@click.pass_context
def listing(ctx: click.Context, policy: str | None) -> None:
    """List artifacts, newest first; those of POLICY, or all.

    The last column says how the newest drill of an artifact ended, and at which level. Exit codes: 0 done; 3 no such
    policy; 10 the catalog cannot be used.
    """
    # Only what a list needs is imported: opening the whole site would take longer than listing 10,000 artifacts.
    from drkit.catalog.sqlite import catalog_path, open_catalog
    from drkit.cli.output import table
    from drkit.site_file import find_site, read_catalog_url

    site_file = find_site(site_option(ctx), os.environ, Path.cwd())
    catalog = open_catalog(catalog_path(read_catalog_url(site_file), site_file.parent))
    try:
        rows = catalog.artifact_rows(policy)
    finally:
        catalog.close()
    if not rows and policy is not None:
        from drkit.site import load_site, policy_named

        policy_named(load_site(site_file, os.environ, Path.cwd()), policy)
    output = output_of(ctx)
    # Either form of ten thousand rows takes a fifth of the command's time: only the one that is asked for is made.
    if output.json:
        output.result("list", {"artifacts": [_document(row) for row in rows]}, "")
    else:
        output.result("list", {}, table(_HEADERS, [_cells(row) for row in rows]) if rows else _nothing(policy))


def _nothing(policy: str | None) -> str:
    return f"policy {policy} has no artifacts; drkit backup {policy}" if policy else "no artifacts; drkit backup POLICY"


def _cells(row: ArtifactRow) -> tuple[str, ...]:
    return (
        row.artifact_id,
        row.policy,
        _method(row),
        format_moment(row.restorable_to_at),
        format_bytes(row.plain_bytes),
        format_bytes(row.stored_bytes),
        ", ".join(row.stores),
        f"{row.verdict.replace('_', ' ')} ({row.level})" if row.verdict else "not drilled",
    )


def _method(row: ArtifactRow) -> str:
    given = {"incremental": row.parent, "degraded": row.degraded, "held": row.held, "leaving": row.leaving}
    marks = [mark for mark, holds in given.items() if holds]
    return f"{row.method} ({', '.join(marks)})" if marks else row.method


def _document(row: ArtifactRow) -> dict[str, Any]:
    proof = {"verdict": row.verdict, "level": row.level} if row.verdict else None
    facts = {
        name: value for name, value in row._asdict().items() if name not in {"verdict", "level", "restorable_to_at"}
    }
    return {**facts, "restorable_to": format_utc(row.restorable_to_at), "last_drill": proof}
