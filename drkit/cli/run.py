"""``drkit run``: what runs and what ran."""

from __future__ import annotations

import click

from drkit.cli import common_options


@click.group()
@common_options
def run() -> None:
    """List and show running and past runs."""
