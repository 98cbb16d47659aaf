"""``drkit notify``."""

from __future__ import annotations

import click

from drkit.cli import common_options, output_of, site_option
from drkit.errors import EXIT_PROBLEMS


@click.group()
@common_options
def notify() -> None:
    """Tell people what happens; drkit serve does it by itself."""


@notify.command()
@click.argument("policy", required=False)
@common_options
@click.pass_context
def test(ctx: click.Context, policy: str | None) -> None:
    """Send a test message to every channel of the site, or of POLICY, and say which took it.

    That a channel took it is not that somebody reads it: ask them.
    Exit codes: 0 all took it; 3 there is no channel; 12 some did not.
    """
    from drkit.app import open_app
    from drkit.errors import ConfigError
    from drkit.operations.choosing import find_policy
    from drkit.operations.notify import send_test

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        name = find_policy(workplace, policy).policy if policy else ""
        results = send_test(workplace, name)
    if not results:
        raise ConfigError("nobody is told anything", hints=['in drkit.yaml: notify: {default: ["env:NTFY_URL"]}'])
    document = {"channels": [{"channel": channel, "error": error or None} for channel, error in results]}
    lines = [f"{channel}  {f'FAILED  {error}' if error else 'ok'}" for channel, error in results]
    output.result("notify-test", document, "\n".join(lines))
    ctx.exit(EXIT_PROBLEMS if any(error for _, error in results) else 0)


@notify.command()
@common_options
@click.pass_context
def send(ctx: click.Context) -> None:
    """Tell now what happened since the last time; for a timer, on hosts that do not run drkit serve.

    What does not arrive waits for the next time. Exit codes: 0 nothing waits; 12 something does.
    """
    from drkit.app import open_app
    from drkit.operations.notify import Notifier

    with open_app(site_option(ctx)) as workplace:
        Notifier(workplace).round()
        waiting = workplace.catalog.outbox.waiting()
    output_of(ctx).result("notify-send", {"waiting": waiting}, f"{waiting} waiting" if waiting else "nothing waits")
    ctx.exit(EXIT_PROBLEMS if waiting else 0)
