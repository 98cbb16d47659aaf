"""``drkit wal``: what PostgreSQL calls, and the line with which it does."""

from __future__ import annotations

from pathlib import Path

import click

from drkit.cli import common_options, output_of, site_option

_PERL = Path("/usr/bin/perl")
_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")


@click.group()
@common_options
def wal() -> None:
    """Hand over or fetch one file of PostgreSQL's log; show how PostgreSQL is told to do that.

    These are for trying things out: PostgreSQL calls a client of a few lines without the rest of drkit, which starts
    a hundred times as fast. `drkit wal command POLICY` prints that line.
    """


@wal.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--policy", help="Whose log it is; the only policy that is served by default.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Where drkit serve answers.")
@click.option("--timeout", "timeout_s", type=float, default=60, show_default=True, help="How long to wait, in seconds.")
@common_options
@click.pass_context
def push(ctx: click.Context, path: Path, policy: str | None, socket_path: Path | None, timeout_s: float) -> None:
    """Hand the file at PATH to drkit serve, and wait until it is durable in every store of the policy.

    Exit codes: 0 it is; 1 it was refused; 2 drkit serve was not reached or did not answer in time.
    """
    from drkit import wal_client

    ctx.exit(wal_client.push(str(path), str(socket_path or _find_socket(ctx, policy)), timeout_s))


@wal.command()
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), required=True, help="Where a restore answers."
)
@click.option(
    "--timeout", "timeout_s", type=float, default=600, show_default=True, help="How long to wait, in seconds."
)
@common_options
@click.pass_context
def fetch(ctx: click.Context, name: str, path: Path, socket_path: Path, timeout_s: float) -> None:
    """Fetch the file NAME of the log from a running restore, and write it to PATH.

    Exit codes: 0 it was written; 1 there is no such file; 255 it cannot be had now, which must abort a recovery.
    """
    from drkit import wal_client

    ctx.exit(wal_client.fetch(name, str(path), str(socket_path), timeout_s))


@wal.command()
@click.argument("policy")
@common_options
@click.pass_context
def command(ctx: click.Context, policy: str) -> None:
    """Print the settings with which PostgreSQL hands its log to drkit serve, for a rule with receive: archive."""
    import os
    import shlex

    from drkit.operations.spool import spool_folder
    from drkit.site import load_site, policy_named

    site = load_site(site_option(ctx), os.environ, Path.cwd())
    chosen = policy_named(site, policy)
    socket_path = spool_folder(site, chosen.policy) / "socket"
    words = shlex.join([*_pushing_client(), "push"]), shlex.join(["--socket", str(socket_path)])
    line = " %p ".join(word.replace("%", "%%") for word in words)
    quoted = line.replace("\\", "\\\\").replace("'", "''")  # as postgresql.conf has it
    settings = {"archive_mode": "on", "archive_command": line, "archive_timeout": "60s"}
    text = f"archive_mode = on\narchive_command = '{quoted}'\narchive_timeout = 60s"
    output_of(ctx).result("wal-command", {"policy": chosen.policy, "settings": settings}, text)


def _pushing_client() -> list[str]:
    """Return how a shell starts the client that starts fastest on this host.

    Without exec the shell would wait beside it. Perl says nothing of a locale that is not installed with PERL_BADLANG=0
    (perlrun), and takes its arguments as bytes with -C0, whatever the server's environment has.
    """
    import sys

    from drkit import wal_client

    folder = Path(wal_client.__file__).resolve().parent
    if sys.platform == "linux" and _PERL.exists():
        return ["PERL_BADLANG=0", "exec", str(_PERL), "-C0", str(folder / "wal_push.pl")]
    python = next((name for name in _PYTHONS if Path(name).exists()), sys.executable)
    return ["exec", python, "-I", "-S", str(folder / "wal_client.py")]


def _find_socket(ctx: click.Context, policy: str | None) -> Path:
    """Return where the policy is served, or the only one that is."""
    import os

    from drkit.errors import ConfigError
    from drkit.site_file import find_site

    folder = find_site(site_option(ctx), os.environ, Path.cwd()).parent / "var" / "wal"
    if policy is not None:
        return folder / policy / "socket"
    sockets = sorted(folder.glob("*/socket"))
    if len(sockets) == 1:
        return sockets[0]
    served = ", ".join(path.parent.name for path in sockets) or "none"
    raise ConfigError(
        f"which policy's log is it? {served} is being served",
        hints=["drkit serve", "drkit wal push PATH --policy NAME"],
    )
