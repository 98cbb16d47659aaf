"""``drkit run``: what runs, what ran, and how to end it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.cli.schedule import document_of

if TYPE_CHECKING:
    from drkit.catalog.occurrences import Attempt
    from drkit.model import Run


@click.group()
@common_options
def run() -> None:
    """List, show and cancel runs."""


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
    from drkit.operations.cancelling import find_run

    with open_app(site_option(ctx)) as workplace:
        found = find_run(workplace.catalog, run_id)
        ledger = workplace.catalog.occurrences
        occurrence = ledger.of_run(found.run_id)
        attempts = ledger.attempts(occurrence.occurrence_id) if occurrence else []
    document = _document(found)
    if occurrence is not None:
        document |= {"occurrence": document_of(occurrence), "attempts": [_document(item) for item in attempts]}
    text = "\n".join(f"{name:<13} {_shown(value)}" for name, value in _facts(document) if value is not None)
    output_of(ctx).result("run", document, text)


def _facts(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the facts of a run, the states of a base backup each in a line of its own."""
    outcome = dict(document["outcome"] or {})
    attempts = document.pop("attempts", [])
    occurrence = document.pop("occurrence", None)
    states: dict[str, str] = outcome.pop("states", {})
    outcome.pop("state", None)
    advice = [(name, line) for name in ("detail", "hint") for line in outcome.pop(f"{name}s", [])]
    yield from ((name, value) for name, value in document.items() if name != "outcome")
    yield from advice
    for state, at in sorted(states.items(), key=lambda item: item[1]):
        yield "base backup", f"{state:<15} {at}"
    yield "outcome", outcome or None
    if occurrence is not None:
        yield "occurrence", f"{occurrence['schedule']} due {occurrence['due_at']}: {occurrence['state']}"
        yield "reason", occurrence["reason"] or None
    for item in attempts:
        ended = f"{item['failure'] or 'succeeded'}  {item['error']}".rstrip() if item["ended_at"] else "runs"
        yield "attempt", f"{item['number']}  {item['started_at']}  {item['run_id']}  {ended}"


@run.command()
@click.argument("run_id")
@common_options
@click.pass_context
def cancel(ctx: click.Context, run_id: str) -> None:
    """End a run that is in progress on this host; RUN_ID may be the start of an id.

    It ends as by Ctrl-C: its children are ended, its queries cancelled, its uploads aborted, its scratch server taken
    away. A scheduled one is not tried again before it is due the next time. Exit codes: 0 it has ended; 4 it is part
    of drkit serve, of another host, or did not end within a minute; 10 there is no such run, or it is over.
    """
    from drkit.app import open_app
    from drkit.operations.cancelling import cancel_run

    with open_app(site_option(ctx)) as workplace:
        ended = cancel_run(workplace, run_id)
    output_of(ctx).result("run", _document(ended), f"run {ended.run_id} has ended: {ended.state}")


def _document(item: Run | Attempt) -> dict[str, Any]:
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in vars(item).items()}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
