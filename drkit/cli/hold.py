"""``drkit hold`` and ``drkit release``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.units import format_utc

if TYPE_CHECKING:
    from drkit.operations import Workplace
    from drkit.operations.holds import HoldChange


@click.command()
@click.argument("artifact")
@click.option("--reason", required=True, help="Why it has to stay; shown wherever the artifact is.")
@common_options
@click.pass_context
def hold(ctx: click.Context, artifact: str, reason: str) -> None:
    """Keep ARTIFACT, and what it builds on, whatever the retention says, until drkit release.

    The hold is signed and lies in the stores beside the artifact. Exit codes: 0 held; 6 not every store took it, though
    it counts; 9 there is no such artifact; 10 it is not known here.
    """
    from drkit.app import open_app

    if not reason.strip():
        raise click.UsageError("say a reason: somebody will want to know why it is still there")
    with open_app(site_option(ctx)) as workplace:
        place(ctx, workplace, artifact, reason.strip())


@click.command()
@click.argument("artifact")
@common_options
@click.pass_context
def release(ctx: click.Context, artifact: str) -> None:
    """End every hold on ARTIFACT; the retention decides over it again, with a whole time of grace.

    Exit codes: 0 released; 6 not every store took it; 10 it is not held.
    """
    from drkit.app import open_app
    from drkit.operations.holds import release_artifact

    with open_app(site_option(ctx)) as workplace:
        change = release_artifact(workplace, artifact)
        name = change.entry.manifest.artifact_id
        _finish(
            ctx, change, "release", f"released {name}: the retention of {change.entry.manifest.policy} decides again"
        )


def place(ctx: click.Context, workplace: Workplace, artifact: str, reason: str) -> None:
    """Hold an artifact and say so."""
    from drkit.operations.holds import hold_artifact

    change = hold_artifact(workplace, artifact, reason)
    name = change.entry.manifest.artifact_id
    _finish(ctx, change, "hold", f"held {name}: {reason}\n  hint: drkit release {name}   (ends it)")


def _finish(ctx: click.Context, change: HoldChange, schema: str, text: str) -> None:
    output = output_of(ctx)
    document: dict[str, Any] = {
        "artifact_id": change.entry.manifest.artifact_id,
        "policy": change.entry.manifest.policy,
        "holds": [
            {
                "hold_id": item.hold_id,
                "reason": item.reason,
                "placed_at": format_utc(item.placed_at),
                "released_at": format_utc(item.released_at) if item.released_at else None,
            }
            for item in change.holds
        ],
        "failures": [item.message for item in change.failures],
    }
    output.result(schema, document, text)
    for failure in change.failures:
        output.line(f"  not stored  {failure.message}; the next drkit prune brings it there")
    ctx.exit(change.failures[0].exit_code if change.failures else 0)
