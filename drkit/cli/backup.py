"""``drkit backup``."""

from __future__ import annotations

import click

from drkit.cli import common_options, output_of, site_option


@click.command()
@click.argument("policy")
@click.option("--method", help="Which of the policy's methods; its first one by default.")
@click.option("--incremental", is_flag=True, help="Method base: only what changed since the newest base.")
@common_options
@click.pass_context
def backup(ctx: click.Context, policy: str, method: str | None, incremental: bool) -> None:
    """Take a backup of POLICY now.

    Exit codes: 0 committed in every store of the policy; 4 a backup of it is running; 5 the database or its tool
    failed; 6 a store failed. With --incremental also: 7 what the newest base was made of cannot be read here; 8 it is
    damaged; 9 there is none. After a failure no half backup exists.
    """
    from drkit.app import open_app
    from drkit.operations.backup import back_up
    from drkit.operations.choosing import find_policy, find_rule
    from drkit.operations.kept_bases import BASE
    from drkit.units import format_moment, format_utc

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = find_policy(workplace, policy)
        rule = find_rule(chosen, method or (BASE if incremental else None))
        result = back_up(workplace, chosen, rule, output, incremental=incremental)
        manifest = result.entry.manifest
        document = {
            "policy": manifest.policy,
            "method": manifest.method,
            "artifact_id": manifest.artifact_id,
            "depends_on": list(manifest.depends_on),
            "run_id": result.run_id,
            "restorable_to": format_utc(manifest.covers.to_at),
            "plain_bytes": manifest.plain_bytes,
            "stored_bytes": manifest.stored_bytes,
            "stores": list(result.entry.stores),
            "took_s": {name: round(seconds, 3) for name, seconds in result.took_s.items()},
            "warnings": list(result.warnings),
        }
        output.result("backup", document, f"restorable to {format_moment(manifest.covers.to_at)}")
