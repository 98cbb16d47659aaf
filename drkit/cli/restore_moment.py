"""The half of ``drkit restore`` that goes on behind a dump: MongoDB, with its oplog."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from drkit.cli.output import Output

if TYPE_CHECKING:
    from drkit.credentials import Secret
    from drkit.operations import Workplace
    from drkit.operations.dump_plan import RestoreRequest
    from drkit.operations.oplog_plan import OplogPlan
    from drkit.operations.restore_oplog import OplogResult


def look_at_target_of(workplace: Workplace, plan: OplogPlan, request: RestoreRequest, url: Secret) -> str:
    """Check a target and return a line that names it; what it takes is only loaded for it."""
    from drkit.operations.restore_oplog import look_at_target

    return look_at_target(workplace, plan, request, url)


def restore_to_moment(
    output: Output, workplace: Workplace, plan: OplogPlan, request: RestoreRequest, url: Secret
) -> None:
    """Do it, and say what came of it."""
    from drkit.operations.restore_oplog import restore_oplog
    from drkit.units import format_count, format_duration, format_moment

    result = restore_oplog(workplace, plan, request, url, output)
    for name, words in result.loaded.built.items():
        output.line(f"  {name}  {words}")
    for warning in result.loaded.warnings:
        output.line(f"  warning     {warning}")
    end = plan.path.until or plan.path.reaches_ts.moment
    took = format_duration(timedelta(seconds=result.took_s))
    replayed = result.replayed
    last = f"the last of {format_moment(replayed.last_at)}" if replayed.last_at else "none was needed"
    text = (
        f"restored {request.policy} to {format_moment(end)} in {took}:"
        f" {format_count(replayed.operations, 'operation')} replayed, {last}"
    )
    output.result("restore", {**plan.document(), **_document(result)}, text)


def _document(result: OplogResult) -> dict[str, Any]:
    from drkit.units import format_utc

    replayed = result.replayed
    return {
        "loaded": result.loaded.loaded,
        "built": result.loaded.built,
        "warnings": result.loaded.warnings,
        "replayed": {
            "entries": replayed.entries,
            "operations": replayed.operations,
            "skipped": replayed.skipped,
            "resumed_after": replayed.resumed_after,
            "last_ts": str(replayed.last_ts) if replayed.last_ts else None,
            "last_at": format_utc(replayed.last_at) if replayed.last_at else None,
            "split_transactions": [str(ts) for ts in replayed.split],
            "unfinished_transactions": [str(ts) for ts in replayed.unfinished],
        },
        "took_s": round(result.took_s, 3),
        "run_id": result.run_id,
    }
