"""The half of ``drkit restore`` that loads a database: from a dump, and for MongoDB from its oplog behind it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from drkit.cli.output import Output

if TYPE_CHECKING:
    from drkit.credentials import Secret
    from drkit.operations import Workplace
    from drkit.operations.dump_plan import RestorePlan, RestoreRequest
    from drkit.operations.oplog_plan import OplogPlan
    from drkit.operations.restore import RestoreResult
    from drkit.operations.restore_oplog import OplogResult


def nothing_changed(missing: str = "") -> str:
    """Return the last line of a plan: how to carry it out, with the option that was not given yet."""
    return f"nothing was changed. Run again without --plan{f', with {missing},' if missing else ''} to start."


def show_plan(output: Output, plan: RestorePlan | OplogPlan, look: Callable[[], str] | None) -> None:
    """Say what would be done and, where there is a target to ``look`` at, whether it can take it.

    What is in its way is the error, after the plan.
    """
    from drkit.errors import SourceError

    try:
        target = look() if look else None
    except SourceError:
        if not output.json:
            click.echo(plan.describe())
        raise
    lines = [plan.describe(), nothing_changed("" if target else "--to URL")]
    if target:
        lines.insert(1, f"  target     {target}; it can take this")
    output.result("restore-plan", {**plan.document(), "target": target}, "\n".join(lines))


def restore_dump(output: Output, workplace: Workplace, plan: RestorePlan, request: RestoreRequest, url: Secret) -> None:
    """Load a dump, and say what came of it."""
    from drkit.operations.restore import restore
    from drkit.units import format_duration, format_moment

    result = restore(workplace, plan, request, url, output)
    _say_loaded(output, result)
    to_at = format_moment(plan.entry.manifest.covers.to_at)
    took = format_duration(timedelta(seconds=result.took_s))
    text = f"restored {request.policy} as of {to_at} in {took}"
    output.result("restore", {**plan.document(), **_loaded_document(result)}, text)


def restore_to_moment(
    output: Output, workplace: Workplace, plan: OplogPlan, request: RestoreRequest, url: Secret
) -> None:
    """Load a dump and replay the oplog behind it, and say what came of it."""
    from drkit.operations.restore_oplog import restore_oplog
    from drkit.units import format_count, format_duration, format_moment

    result = restore_oplog(workplace, plan, request, url, output)
    _say_loaded(output, result)
    end = plan.path.until or plan.path.reaches_ts.moment
    took = format_duration(timedelta(seconds=result.took_s))
    replayed = result.replayed
    last = f"the last of {format_moment(replayed.last_at)}" if replayed.last_at else "none was needed"
    text = (
        f"restored {request.policy} to {format_moment(end)} in {took}:"
        f" {format_count(replayed.operations, 'operation')} replayed, {last}"
    )
    document = {**plan.document(), **_loaded_document(result), "replayed": _replayed_document(result)}
    output.result("restore", document, text)


def _say_loaded(output: Output, result: RestoreResult | OplogResult) -> None:
    for name, words in result.loaded.built.items():
        output.line(f"  {name}  {words}")
    for warning in result.loaded.warnings:
        output.line(f"  warning     {warning}")


def _loaded_document(result: RestoreResult | OplogResult) -> dict[str, Any]:
    return {
        "loaded": result.loaded.loaded,
        "built": result.loaded.built,
        "warnings": result.loaded.warnings,
        "took_s": round(result.took_s, 3),
        "run_id": result.run_id,
    }


def _replayed_document(result: OplogResult) -> dict[str, Any]:
    from drkit.units import format_utc

    replayed = result.replayed
    return {
        "entries": replayed.entries,
        "operations": replayed.operations,
        "skipped": replayed.skipped,
        "resumed_after": replayed.resumed_after,
        "last_ts": str(replayed.last_ts) if replayed.last_ts else None,
        "last_at": format_utc(replayed.last_at) if replayed.last_at else None,
        "split_transactions": [str(ts) for ts in replayed.split],
        "unfinished_transactions": [str(ts) for ts in replayed.unfinished],
    }
