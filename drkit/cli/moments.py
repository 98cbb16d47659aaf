"""WHEN on the command line."""

from __future__ import annotations

from datetime import datetime

import click

from drkit.units import When, parse_when


def moment_option(text: str | None) -> datetime | None:
    """Read ``--at`` for methods that only know moments; None means the newest.

    Raise a usage error for what is not a moment, and for the targets that only point-in-time recovery has.
    """
    if text is None:
        return None
    when = when_option(text)
    if when.kind not in {"latest", "time"}:
        raise click.BadParameter(f'"{text}" needs WAL, and a dump has none; give a moment or latest', param_hint="--at")
    return when.moment


def when_option(text: str | None) -> When:
    """Read ``--at`` for point-in-time recovery; None means the latest. Raise a usage error for what is no WHEN."""
    try:
        return parse_when(text or "latest")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from error
