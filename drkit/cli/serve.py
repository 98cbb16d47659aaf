"""``drkit serve``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.policy import Policy


@click.command()
@click.argument("policy", nargs=-1)
@common_options
@click.pass_context
def serve(ctx: click.Context, policy: tuple[str, ...]) -> None:
    """Run what has to run all the time, for every policy or for each POLICY.

    It takes the backups and runs the drills that the schedules want (drkit schedule shows them), and ships the
    log of methods wal and oplog. Several may run on one catalog: each thing that is due is done once.

    It tells people what happens (docs/notifications.md) and shows its numbers (docs/monitoring). With --json every
    event is a line of JSON. Policies that change are read again, at once on SIGHUP; while a file has problems its
    policy goes on as it was. What the site file says counts from the next start. Runs until SIGTERM or Ctrl-C, and then
    ships what it has. A process that was killed leaves nothing to clean up.
    Exit codes: 0 stopped; 3 no policy has anything to do here.
    """
    import os
    import signal
    import threading

    from drkit.app import open_app, read_policies
    from drkit.errors import ConfigError
    from drkit.operations.choosing import find_policy
    from drkit.operations.health import Health
    from drkit.operations.policy_watch import PolicyWatch
    from drkit.operations.serve import serve as run_duties
    from drkit.operations.site_duties import PATIENCE, say_start, site_duties
    from drkit.worker import has_schedules, scheduler_duties

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        for problem in workplace.policy_problems:
            output.line(f"left out: {problem}")
        chosen = [find_policy(workplace, name) for name in policy] or list(workplace.policies.values())
        if not has_schedules(workplace, chosen) and not any(item.continuous_rule for item in chosen):
            hint = 'add to a backup of a policy: schedule: "0 2 * * *"'
            raise ConfigError("no policy has a schedule, or a method that runs all the time", hints=[hint])
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        health = Health(workplace.clock, PATIENCE)
        duties, replace = scheduler_duties(workplace, chosen, output, health)

        def changed(policies: Mapping[str, Policy]) -> None:
            replace([item for name, item in policies.items() if not policy or name in policy])

        watch = PolicyWatch(workplace, lambda: read_policies(workplace.site), output, changed)
        signal.signal(signal.SIGHUP, lambda *_: watch.ask())
        more = [*site_duties(workplace, health, output, output.event if output.json else None), *duties, watch]
        say_start(workplace, output)
        run_duties(workplace, policy, output, stopping, (health, more))
    if threading.active_count() > 1:
        # Some thread waits for a store that never answers, and Python would wait for it. It can be cut anywhere.
        os._exit(0)
