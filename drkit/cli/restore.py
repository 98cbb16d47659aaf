"""``drkit restore``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from drkit.cli import common_options, output_of, site_option


@click.command()
@click.argument("policy")
@click.option("--artifact", help="The start of an artifact's id.")
@click.option("--at", "at", help="The newest artifact not after WHEN: ISO 8601 with an offset, or latest.")
@click.option("--to", "target", help="Where to: a URL without a password, or env:NAME or file:PATH of one.")
@click.option("--database", "databases", multiple=True, help="Only this database of the artifact.")
@click.option("--table", "tables", multiple=True, help="Only this table, as schema.table.")
@click.option(
    "--identity", type=click.Path(path_type=Path), multiple=True, help="An identity file, instead of the site's."
)
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="How many indexes at once.")
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done, and change nothing.")
@common_options
@click.pass_context
def restore(
    ctx: click.Context,
    policy: str,
    artifact: str | None,
    at: str | None,
    target: str | None,
    databases: tuple[str, ...],
    tables: tuple[str, ...],
    identity: tuple[Path, ...],
    jobs: int,
    plan_only: bool,
) -> None:
    """Restore an artifact of POLICY into an empty database.

    Every stored byte is compared with what was signed before the target is written to. Exit codes: 0 restored; 5 the
    target is not empty, or the load failed; 7 no identity opens it; 8 an object is not as it was signed; 9 there is no
    such artifact.
    """
    from drkit.app import open_app
    from drkit.cli.moments import moment_option
    from drkit.credentials import resolve
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import identities_in_reach
    from drkit.operations.restore import RestoreRequest, plan_restore
    from drkit.operations.restore import restore as run_restore
    from drkit.units import format_duration, format_moment

    output = output_of(ctx)
    if not target and not plan_only:
        raise click.UsageError("say where to with --to, or look first with --plan", ctx)
    request = RestoreRequest(policy, artifact, moment_option(at), databases, tables, jobs)
    with open_app(site_option(ctx)) as workplace:
        keys = identities_in_reach(workplace, identity, ask_passphrase)
        plan = plan_restore(workplace, request, keys)
        if plan_only:
            text = plan.describe() + "\nnothing was changed. Run again without --plan, with --to URL, to start."
            output.result("restore-plan", plan.document(), text)
            return
        assert target is not None
        url = resolve(target, folder=workplace.site.folder)
        result = run_restore(workplace, plan, request, url, output)
        for warning in result.loaded.warnings:
            output.line(f"  warning     {warning}")
        document = {
            **plan.document(),
            "loaded": result.loaded.loaded,
            "warnings": result.loaded.warnings,
            "took_s": round(result.took_s, 3),
            "run_id": result.run_id,
        }
        to_at = format_moment(plan.entry.manifest.covers.to_at)
        took = format_duration(timedelta(seconds=result.took_s))
        output.result("restore", document, f"restored {policy} as of {to_at} in {took}")
