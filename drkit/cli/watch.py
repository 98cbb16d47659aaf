"""``drkit watch``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from datetime import timedelta

    from drkit.cli.output import Output
    from drkit.operations.watch import WatchReport
    from drkit.site import Site
    from drkit.stores import Store


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    from drkit.units import parse_duration

    try:
        return parse_duration(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("policy", nargs=-1)
@click.option("--store", "store_names", multiple=True, help="Look into this store only; may be given again.")
@click.option("--max-age", callback=_duration, metavar="DURATION", help="How old the newest artifact may be at most.")
@click.option("--interval", callback=_duration, metavar="DURATION", help="Go on, look this often, and tell people.")
@common_options
@click.pass_context
def watch(
    ctx: click.Context,
    policy: tuple[str, ...],
    store_names: tuple[str, ...],
    max_age: timedelta | None,
    interval: timedelta | None,
) -> None:
    """Alarm about what is absent from the stores; made for another host than the one that takes the backups.

    Needs drkit.yaml with stores and allowed signers, read access, and copies of the policy files (or --max-age). Needs
    no catalog, no database and no identity. Alarms when the newest artifact is older than schedule or RPO allow, when
    the log or the evidence is, when drkit serve is silent, and when a store cannot be read or is not as it was signed.
    With --interval it goes on until it is stopped, and tells whom the site's notify names, each problem once.
    Exit codes: 0 all is there; 12 something is not; 8 something is not as it was signed; 6 a store cannot be read.
    """
    from drkit.app import open_stores, utc_now
    from drkit.keys import load_signers
    from drkit.operations.watch import Watching, look
    from drkit.site import load_policies, load_site

    output = output_of(ctx)
    site = load_site(site_option(ctx), os.environ, Path.cwd())
    names = store_names or tuple(site.stores)
    _refuse_unknown(site, names)
    policies = load_policies(site) if site.policies_folder.is_dir() else {}
    chosen = {name: item for name, item in policies.items() if not policy or name in policy}
    watching = Watching(chosen, max_age, policy)
    signers = load_signers(site.keys.signers)
    with open_stores(site) as stores:

        def once() -> WatchReport:
            return look(stores, names, signers, watching, utc_now())

        if interval is None:
            report = once()
            output.result("watch", _document(report), "\n".join(_lines(report)))
            ctx.exit(report.exit_code)
        _reside(site, watching.policies, stores, interval.total_seconds(), once, output)


def _refuse_unknown(site: Site, names: Sequence[str]) -> None:
    from drkit.errors import ConfigError
    from drkit.words import did_you_mean

    for name in names:
        if name not in site.stores:
            raise ConfigError(f"the site has no store {name}{did_you_mean(name, tuple(site.stores))}")


def _reside(
    site: Site,
    policies: Mapping[str, Any],
    stores: Mapping[str, Store],
    interval_s: float,
    once: Callable[[], WatchReport],
    output: Output,
) -> None:
    """Look again and again; what was told is remembered in a catalog of its own, as long as the process lives."""
    import signal
    import tempfile
    import threading

    from drkit.app import utc_now
    from drkit.catalog.sqlite import open_catalog
    from drkit.operations import Workplace
    from drkit.operations.watching import reside

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="drkit-watch-") as folder:
        catalog = open_catalog(Path(folder) / "watch.db", create=True)
        try:
            place = Workplace(site, policies, (), stores, catalog, (), Path(folder), utc_now)
            reside(place, once, interval_s, stopping, lambda report: _say(report, output))
        finally:
            catalog.close()


def _say(report: WatchReport, output: Output) -> None:
    if output.json:
        output.result("watch", _document(report), "")
    else:
        for line in _lines(report):
            output.line(line)


def _lines(report: WatchReport) -> list[str]:
    from drkit.units import format_count, format_moment

    wrong = {(item.policy, item.subject.rpartition("@")[2]) for item in report.conditions}
    lines = []
    for seen in report.sightings:
        newest = max(seen.newest.values(), default=None)
        state = "ALARM" if (seen.policy, seen.store) in wrong else "ok"
        lines.append(
            f"{seen.policy}  {seen.store}  {state}  " + (f"newest {format_moment(newest)}" if newest else "empty")
        )
    lines += [f"  {line}" for item in report.conditions for line in f"{item.word}: {item.message}".splitlines()]
    return lines or [f"nothing to watch in {format_count(0, 'store')}"]


def _document(report: WatchReport) -> dict[str, Any]:
    from drkit.units import format_utc

    return {
        "at": format_utc(report.at),
        "seen": [
            {
                "policy": seen.policy,
                "store": seen.store,
                "newest": {method: format_utc(moment) for method, moment in seen.newest.items()},
                "log": format_utc(seen.log_at) if seen.log_at else None,
                "drills": {
                    name: {"ended_at": format_utc(at), "verdict": verdict}
                    for name, (at, verdict) in seen.drills.items()
                },
            }
            for seen in report.sightings
        ],
        "alarms": [item.facts for item in report.conditions],
        "exit_code": report.exit_code,
    }
