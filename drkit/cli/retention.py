"""``drkit retention``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.units import format_bytes, format_duration, format_utc

if TYPE_CHECKING:
    from drkit.operations.retention_forecast import Forecast
    from drkit.retention_simulation import Sample

_LINES = 24


@click.group()
@common_options
def retention() -> None:
    """Look ahead at what a policy's retention will keep."""


@retention.command()
@click.argument("policy")
@click.option("--years", type=click.IntRange(1, 30), default=3, show_default=True, help="How far ahead.")
@common_options
@click.pass_context
def simulate(ctx: click.Context, policy: str, years: int) -> None:
    """Show how much POLICY will keep over time if every scheduled backup is taken.

    Each day is planned as drkit prune does it. An artifact is taken to be as large as the newest one of its method; the
    log is not counted. Exit codes: 0 done; 3 the policy has no retention or no schedule.
    """
    from drkit.app import open_app
    from drkit.operations.choosing import find_policy
    from drkit.operations.retention_forecast import forecast

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        found = forecast(workplace, find_policy(workplace, policy), years)
    document = {"policy": policy, "sizes": found.sizes, "samples": [_document(item) for item in found.samples]}
    output.result("retention-simulate", document, "\n".join(_lines(policy, years, found)))


def _lines(policy: str, years: int, found: Forecast) -> Iterator[str]:
    from drkit.cli.output import table

    sizes = ", ".join(
        f"{method} {format_bytes(size) if size else 'of unknown size'}" for method, size in found.sizes.items()
    )
    yield f"{policy}   {years} years ahead, each {sizes}"
    step = max(1, -(-len(found.samples) // _LINES))
    shown = [*found.samples[step - 1 :: step], *found.samples[-1:]]
    rows = [_row(item) for item in dict.fromkeys(shown)]
    yield table(("on", "artifacts", "marked", "stored", "oldest", "every moment of the last"), rows)
    most = max(found.samples, key=lambda item: item.size_bytes or item.artifacts)
    yield f"at most {most.artifacts} artifacts, {format_bytes(most.size_bytes)}, on {most.at.astimezone():%Y-%m-%d}"


def _row(sample: Sample) -> tuple[str, ...]:
    window = sample.at - sample.window_from if sample.window_from else None
    return (
        f"{sample.at.astimezone():%Y-%m-%d}",
        str(sample.artifacts),
        str(sample.marked),
        format_bytes(sample.size_bytes),
        f"{sample.oldest_at.astimezone():%Y-%m-%d}",
        format_duration(window) if window else "",
    )


def _document(sample: Sample) -> dict[str, Any]:
    return {
        "at": format_utc(sample.at),
        "artifacts": sample.artifacts,
        "marked": sample.marked,
        "bytes": sample.size_bytes,
        "oldest": format_utc(sample.oldest_at),
        "window_from": format_utc(sample.window_from) if sample.window_from else None,
    }
