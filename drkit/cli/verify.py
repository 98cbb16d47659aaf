"""``drkit verify``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import click

from drkit.cli import common_options, output_of, site_option


@click.command()
@click.argument("artifacts", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every artifact of every policy.")
@click.option("--level", type=click.Choice(["exists", "intact"]), default="intact", show_default=True)
@click.option(
    "--identity", type=click.Path(path_type=Path), multiple=True, help="An identity file, instead of the site's."
)
@common_options
@click.pass_context
def verify(
    ctx: click.Context,
    artifacts: tuple[str, ...],
    everything: bool,
    level: Literal["exists", "intact"],
    identity: tuple[Path, ...],
) -> None:
    """Read ARTIFACTS (or the newest one of each policy) in every store and compare them with what was signed.

    Where an identity is at hand the content is decrypted and compared as well. Exit codes: 0 all sound; 6 a store
    cannot be reached; 8 something is not as it was signed.
    """
    from drkit.app import open_app
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import identities_in_reach
    from drkit.operations.verify import describe_verifications, select_entries, verify_artifact

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        keys = identities_in_reach(workplace, identity, ask_passphrase)
        entries, refused, vanished = select_entries(workplace, artifacts, everything=everything)
        results = [
            result for entry in entries for result in verify_artifact(workplace, entry, keys, output, level=level)
        ]
        document = {
            "results": [dataclasses.asdict(result) for result in results],
            "refused": [error.message for error in refused],
            "vanished": [entry.manifest.artifact_id for entry in vanished],
        }
        output.result("verify", document, describe_verifications(results, refused, vanished))
        if refused or vanished or not all(result.ok for result in results):
            ctx.exit(8)
