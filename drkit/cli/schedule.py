"""``drkit schedule``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.occurrences import Occurrence


@click.command()
@click.argument("policy", nargs=-1)
@click.option("--next", "count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--past", is_flag=True, help="What came due instead, newest first, and what became of it.")
@common_options
@click.pass_context
def schedule(ctx: click.Context, policy: tuple[str, ...], count: int, past: bool) -> None:
    """Show what will run when, for every policy or for each POLICY: in the policy's time zone and in UTC.

    Log shipping has no times; it runs all the time. Exit code 0, also when nothing has a schedule.
    """
    from drkit.app import open_app
    from drkit.operations.choosing import find_policy

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = [find_policy(workplace, name) for name in policy] or list(workplace.policies.values())
        for problem in workplace.policy_problems:
            output.line(f"left out: {problem}")
        if past:
            names = {item.policy for item in chosen} if policy else None
            found = [item for item in workplace.catalog.occurrences.history(limit=100_000) if _wanted(item, names)]
            rows = [document_of(item) for item in found[:count]]
        else:
            from drkit.scheduler import coming_up, schedules_of

            site = workplace.site
            schedules = schedules_of(chosen, site.scheduler, site.locking_stores)
            rows = coming_up(schedules, workplace.clock(), count)
    output.result("schedule", {"occurrences": rows}, _past_table(rows) if past else _next_table(rows))


def _wanted(item: Occurrence, names: set[str] | None) -> bool:
    return names is None or item.policy in names


def _next_table(rows: list[dict[str, Any]]) -> str:
    from drkit.cli.output import table

    if not rows:
        return "nothing has a schedule"
    headers = ["local time", "zone", "UTC", "policy", "kind", "what", "note"]
    names = ("local", "timezone", "due_at", "policy", "kind", "what", "note")
    return table(headers, [[row[name] for name in names] for row in rows])


def _past_table(rows: list[dict[str, Any]]) -> str:
    from drkit.cli.output import table

    if not rows:
        return "nothing came due yet"
    headers = ["due", "policy", "kind", "what", "state", "attempts", "run", "reason"]
    names = ("due_at", "policy", "kind", "what", "state", "attempts", "run_id", "reason")
    return table(headers, [[str(row[name]) for name in names] for row in rows])


def document_of(item: Occurrence) -> dict[str, Any]:
    """Return an occurrence for scripts."""
    from drkit.units import format_utc

    moments = ("due_at", "decided_at", "not_before_at")
    return {
        name: format_utc(value) if name in moments else value for name, value in vars(item).items() if name != "holder"
    }
