"""``drkit keys``: make keys, see which there are, prove that they open what is sealed for them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.errors import EXIT_PROBLEMS, ConfigError, IntegrityError, KeyUnavailable

if TYPE_CHECKING:
    from drkit.keys import KeyFile
    from drkit.site import Site

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@click.group()
@common_options
def keys() -> None:
    """Make, list and prove keys."""


@keys.command()
@click.argument("name")
@click.option("--passphrase", is_flag=True, help="Lock the identity; asked for on the terminal.")
@click.option(
    "--passphrase-from", metavar="REFERENCE", help="Lock it with the passphrase in file:PATH or env:NAME instead."
)
@click.option("--post-quantum", is_flag=True, help="ML-KEM-768 with X25519; all recipients of a policy must be so.")
@click.option("--signing", is_flag=True, help="A key that signs manifests, not an identity that opens backups.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write it; default: keys/ of the site. Needs no site.",
)
@common_options
@click.pass_context
def new(ctx: click.Context, /, name: str, folder: Path | None, *, signing: bool, **lock: Any) -> None:
    """Make a new key called NAME; nothing that exists is written over.

    Exit codes: 0 made; 2 wrong usage; 3 the file exists, or the folder cannot be written; 7 no way to ask for the
    passphrase.
    """
    if not _NAME.fullmatch(name):
        raise click.BadParameter(f'"{name}" is not a name: letters, digits, ".", "_" and "-"', param_hint="NAME")
    where = folder or _site(ctx).folder / "keys"
    if signing:
        if any(lock.values()):
            raise click.UsageError("--signing goes with none of --passphrase, --passphrase-from and --post-quantum")
        _new_signing_key(ctx, where / name)
    else:
        _new_identity(ctx, where / f"{name}.age", **lock)


def _new_identity(
    ctx: click.Context, path: Path, *, passphrase: bool, passphrase_from: str | None, post_quantum: bool
) -> None:
    from drkit.keys import new_identity_file

    secret = _passphrase_for(path, passphrase_from) if passphrase or passphrase_from is not None else None
    key = new_identity_file(path, post_quantum=post_quantum, passphrase=secret)
    document = {
        "name": key.name,
        "path": str(path),
        "recipient": key.recipient,
        "fingerprint": key.fingerprint,
        "key_class": key.identity.recipient.key_class,
        "locked": secret is not None,
    }
    locked = "locked by the passphrase" if secret else "not locked"
    lines = [
        f"identity   {_shown(path)}  ({locked}; only its owner can read it)",
        f"recipient  {key.recipient}",
        f"           {key.fingerprint}, also in {_shown(path)}.pub",
        "next: add the recipient to encryption.recipients of the policies whose backups it shall open",
        "next: keep a copy of the identity elsewhere; a host that restores names it in drkit.yaml, keys.identities",
        f"next: drkit keys prove --identity {_shown(path)}",
    ]
    output_of(ctx).result("key", document, "\n".join(lines))


def _passphrase_for(path: Path, reference: str | None) -> str:
    from drkit.credentials import resolve
    from drkit.key_files import choose_passphrase

    if reference is None:
        return choose_passphrase(path)
    if not reference.startswith(("file:", "env:")):
        # Not repeated in the message: it may be the passphrase itself.
        raise click.BadParameter(
            "what is given is no reference; write file:PATH or env:NAME, never the passphrase itself",
            param_hint="--passphrase-from",
        )
    secret = resolve(reference, folder=Path.cwd()).reveal()
    if not secret:
        raise ConfigError(f"{reference} holds no passphrase")
    return secret


def _new_signing_key(ctx: click.Context, path: Path) -> None:
    from drkit.keys import write_signing_key
    from drkit.signing import allowed_signers_line, fingerprint, key_id

    key = write_signing_key(path, comment=path.name).public_key()
    line = allowed_signers_line(path.name, key)
    document = {
        "name": path.name,
        "path": str(path),
        "key_id": key_id(key),
        "fingerprint": fingerprint(key),
        "allowed_signers_line": line,
    }
    lines = [
        f"signing key  {_shown(path)}  (only its owner can read it)",
        f"key id       {key_id(key)}  {fingerprint(key)}, also in {_shown(path)}.pub",
        "next: on every host that checks backups, add this line to the site's list of allowed signers:",
        f"  {line}",
        f"next: then name it in drkit.yaml, keys.signing: {_shown(path)}",
    ]
    output_of(ctx).result("key", document, "\n".join(lines))


@keys.command("list")
@common_options
@click.pass_context
def list_(ctx: click.Context) -> None:
    """List the identities here, the recipients of the policies, the signing key and the allowed signers.

    Exit codes: 0 listed; 3 the site, a policy or a key file is wrong.
    """
    from drkit.cli.key_views import keys_document, keys_text
    from drkit.site import load_policies

    site = _site(ctx)
    document = keys_document(site, load_policies(site))
    output_of(ctx).result("keys", document, keys_text(document))


@keys.command()
@click.option(
    "--identity",
    "identities",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also try the identities in this file; may be repeated.",
)
@common_options
@click.pass_context
def prove(ctx: click.Context, identities: tuple[Path, ...]) -> None:
    """Seal a canary for every recipient of the policies, and open it with each identity in reach.

    Exit codes: 0 every policy's backups can be opened here; 3 configuration; 7 no identity in reach; 12 a policy's
    backups cannot be opened here, or an identity file cannot be used.
    """
    from drkit.cli.key_views import policies_by_recipient, proof_document, proof_text
    from drkit.keys import prove as prove_keys
    from drkit.keys import recipients_of
    from drkit.site import load_policies

    site = _site(ctx)
    policies = load_policies(site)
    paths = list(dict.fromkeys([*site.keys.identities, *identities]))
    if not paths:
        raise KeyUnavailable(
            "no identity is in reach: this host can take backups, and open none",
            hints=["drkit keys prove --identity FILE", "or name the file in drkit.yaml, keys.identities"],
        )
    found, problems = _load_each(paths)
    # One by one: two policies may use different classes of keys, though a single one may not.
    recipients = [recipients_of([text], accept_single_key=True)[0] for text in policies_by_recipient(policies)]
    document = proof_document(policies, prove_keys(recipients, found), found, problems)
    output_of(ctx).result("keys-proof", document, proof_text(document))
    if document["problems"]:
        ctx.exit(EXIT_PROBLEMS)


def _site(ctx: click.Context) -> Site:
    from drkit.site import load_site

    return load_site(site_option(ctx), os.environ, Path.cwd())


def _shown(path: Path) -> str:
    from drkit.documents import shown_path

    return shown_path(path)


def _load_each(paths: Sequence[Path]) -> tuple[list[KeyFile], list[str]]:
    """Load what can be loaded: one file that cannot be used must not keep the others from being proven."""
    from drkit.key_files import ask_passphrase
    from drkit.keys import load_identities

    found: list[KeyFile] = []
    problems: list[str] = []
    for path in paths:
        try:
            found += load_identities([path], ask_passphrase)
        except (ConfigError, IntegrityError, KeyUnavailable) as error:
            problems.append("; ".join([error.message, *error.hints]))
    return found, problems
