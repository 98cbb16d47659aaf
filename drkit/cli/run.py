"""``drkit run``: what runs and what ran."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.model import Run


@click.group()
@common_options
def run() -> None:
    """List and show running and past runs."""


@run.command("list")
@click.argument("policy", required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=30, show_default=True, help="How many at the most.")
@common_options
@click.pass_context
def list_(ctx: click.Context, policy: str | None, limit: int) -> None:
    """List runs, newest first; those of POLICY, or all."""
    from drkit.app import open_app
    from drkit.cli.output import table
    from drkit.units import format_duration, format_moment

    with open_app(site_option(ctx)) as workplace:
        runs = workplace.catalog.runs(policy=policy, limit=limit)
        now = workplace.clock()
    rows = [
        [
            item.run_id,
            item.kind,
            item.policy,
            item.state,
            format_moment(item.started_at),
            format_duration((item.ended_at or now) - item.started_at),
            (item.error or "").partition("\n")[0][:80],
        ]
        for item in runs
    ]
    text = table(["run", "kind", "policy", "state", "started", "took", "error"], rows) if rows else "no runs yet"
    output_of(ctx).result("runs", {"runs": [_document(item) for item in runs]}, text)


@run.command()
@click.argument("run_id")
@common_options
@click.pass_context
def show(ctx: click.Context, run_id: str) -> None:
    """Show one run; RUN_ID may be the start of an id."""
    from drkit.app import open_app
    from drkit.errors import CatalogError

    with open_app(site_option(ctx)) as workplace:
        matches = [item for item in workplace.catalog.runs(limit=100_000) if item.run_id.startswith(run_id.upper())]
    if len(matches) != 1:
        raise CatalogError(f"{len(matches) or 'no'} runs begin with {run_id}", hints=["drkit run list"])
    document = _document(matches[0])
    text = "\n".join(f"{name:<13} {_shown(value)}" for name, value in _facts(document) if value is not None)
    output_of(ctx).result("run", document, text)


def _facts(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the facts of a run, the states of a base backup each in a line of its own."""
    outcome = dict(document["outcome"] or {})
    states: dict[str, str] = outcome.pop("states", {})
    outcome.pop("state", None)
    yield from ((name, value) for name, value in document.items() if name != "outcome")
    for state, at in sorted(states.items(), key=lambda item: item[1]):
        yield "base backup", f"{state:<15} {at}"
    yield "outcome", outcome or None


def _document(item: Run) -> dict[str, Any]:
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in vars(item).items()}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
