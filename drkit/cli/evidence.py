"""``drkit evidence``: signed records, checked offline."""

from __future__ import annotations

from pathlib import Path

import click

from drkit.cli import common_options, output_of, site_option


@click.group()
@common_options
def evidence() -> None:
    """Check signed records offline."""


@evidence.command("verify")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--signers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An allowed_signers file to trust."
)
@common_options
@click.pass_context
def verify(ctx: click.Context, file: Path, signers: Path | None) -> None:
    """Check the record FILE against FILE.sig and the pinned signers; reads nothing else.

    Exit codes: 0 it is as it was signed; 8 it is not.
    """
    import os

    from drkit.keys import load_signers
    from drkit.operations.evidence import verify_record
    from drkit.site import load_site

    output = output_of(ctx)
    path = signers or load_site(site_option(ctx), os.environ, Path.cwd()).keys.signers
    record, signer = verify_record(file, load_signers(path))
    levels = ", ".join(f"{name} {result}" for name, result in record.get("levels", {}).items())
    text = (
        f"{file.name} is as {signer.principal} ({signer.key_id}) signed it\n"
        f"  {record.get('kind')} {record.get('drill')} of {record.get('policy')}, artifact {record.get('artifact_id')}:"
        f" {str(record.get('verdict')).replace('_', ' ')}\n  {levels}"
    )
    document = {"file": str(file), "signer": signer.principal, "key_id": signer.key_id, "record": record}
    output.result("evidence-verify", document, text)
