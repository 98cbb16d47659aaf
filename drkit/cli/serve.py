"""``drkit serve``."""

from __future__ import annotations

import click

from drkit.cli import common_options, output_of, site_option


@click.command()
@click.argument("policy", nargs=-1)
@common_options
@click.pass_context
def serve(ctx: click.Context, policy: tuple[str, ...]) -> None:
    """Run what has to run all the time: receive and ship the log of every policy with method wal, or of each POLICY.

    Runs until SIGTERM or Ctrl-C, and then ships what it has. A process that was killed leaves nothing to clean up.
    Exit codes: 0 stopped; 3 no policy has anything to do here.
    """
    import os
    import signal
    import threading

    from drkit.app import open_app
    from drkit.errors import ConfigError
    from drkit.operations.choosing import find_policy
    from drkit.operations.serve import serve as run_duties

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        for problem in workplace.policy_problems:
            output.line(f"left out: {problem}")
        named = [find_policy(workplace, name) for name in policy] or workplace.policies.values()
        chosen = [item for item in named if item.rule("wal")]
        if not chosen:
            raise ConfigError("no policy has method wal", hints=["add to a policy's backups: {method: wal}"])
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        run_duties(workplace, chosen, output, stopping)
    if threading.active_count() > 1:
        # Some thread waits for a store that never answers, and Python would wait for it. It can be cut anywhere.
        os._exit(0)
