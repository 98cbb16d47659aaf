"""``drkit init``: make a new site, and say what to do next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drkit.cli import common_options, output_of
from drkit.errors import shell_line

if TYPE_CHECKING:
    from drkit.operations.init import NewSite


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path, file_okay=False))
@click.option("--post-quantum", is_flag=True, help="Make post-quantum identities (ML-KEM-768 with X25519).")
@common_options
@click.pass_context
def init(ctx: click.Context, folder: Path, *, post_quantum: bool) -> None:
    """Make a new site in DIR (default: here): folders, keys and an example policy.

    Nothing that exists is written over. Exit codes: 0 made; 3 a file is there already, or DIR cannot be written.
    """
    from drkit.operations.init import init_site

    site = init_site(folder, principal=_principal(), post_quantum=post_quantum)
    document = {
        "folder": str(site.folder),
        "site": str(site.site_file),
        "policy": str(site.policy_file),
        "signing_key": {"path": str(site.signing_key), "key_id": site.signing_key_id},
        "identities": [
            {"name": key.name, "path": str(key.path), "recipient": key.recipient, "fingerprint": key.fingerprint}
            for key in (site.restore, site.escrow)
        ],
    }
    output_of(ctx).result("init", document, _text(site, folder))


def _principal() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid{os.getuid()}"
    # An allowed_signers line is split at spaces and its first word at commas and wildcards.
    return "".join(
        letter if letter.isalnum() or letter in ".-_@" else "-" for letter in f"{user}@{socket.gethostname()}"
    )


def _text(site: NewSite, folder: Path) -> str:
    from drkit.operations.init import EXAMPLE_POLICY, EXAMPLE_VARIABLE

    here = folder.resolve() == Path.cwd()
    rows = [
        ("drkit.yaml", "the site: one store, the folder backups/"),
        (f"policies/{EXAMPLE_POLICY}.yaml", "an example policy; it passes drkit policy check"),
        ("keys/signing", f"signs every backup ({site.signing_key_id})"),
        ("keys/restore.age", f"opens every backup ({site.restore.fingerprint}); wanted where you restore"),
        ("keys/escrow.age", f"opens every backup ({site.escrow.fingerprint}); MOVE IT OFF THIS MACHINE"),
    ]
    width = max(len(name) for name, _ in rows)
    steps = [
        *([] if here else [shell_line("cd", folder)]),
        "move keys/escrow.age to a safe place: with the machine lost, it is the only way to open the backups",
        f"export {EXAMPLE_VARIABLE}=postgresql://USER@HOST/postgres, and edit policies/{EXAMPLE_POLICY}.yaml",
        "drkit policy check",
        f"drkit backup {EXAMPLE_POLICY}",
        f"drkit drill {EXAMPLE_POLICY}",
    ]
    lines = [f"a new site in {site.folder}"]
    lines += [f"  {name:<{width}}  {what}" for name, what in rows]
    lines += ["next:", *(f"  {number}. {step}" for number, step in enumerate(steps, start=1))]
    return "\n".join(lines)
