"""``drkit timeline``."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from datetime import timedelta

    from drkit.operations.oplog_timeline import OplogExposure, OplogTimeline
    from drkit.operations.timeline import Exposure, Timeline


@click.command()
@click.argument("policy")
@common_options
@click.pass_context
def timeline(ctx: click.Context, policy: str) -> None:
    """Draw which moments of POLICY can be restored: bases, log, gaps, drills and dumps along one axis of time.

    Reads listings and signed manifests, no data; it needs no identity, and no policy file.
    """
    from drkit.app import open_app
    from drkit.cli import oplog_timeline
    from drkit.operations.oplog_timeline import has_oplog, read_oplog_timeline
    from drkit.operations.timeline import read_timeline

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = workplace.policies.get(policy)
        objective = chosen.objectives.rpo if chosen else None
        if has_oplog(workplace, policy):
            oplog = read_oplog_timeline(workplace, policy)
            drawn = "" if output.json else oplog_timeline.drawn(oplog, objective)
            output.result("timeline", oplog_timeline.document(oplog), drawn)
            return
        found = read_timeline(workplace, policy)
    output.result("timeline", _document(found), "" if output.json else _drawn(found, objective))


def _drawn(found: Timeline, objective: timedelta | None) -> str:
    from drkit.cli.timeline_view import Proof, TimelinePicture, draw_timeline
    from drkit.units import format_count, format_duration

    picture = TimelinePicture(
        policy=found.policy,
        now=found.now,
        windows=found.windows,
        gaps=found.gaps,
        bases=[base.stop_at for base in found.bases],
        dumps=found.dumps,
        proofs=[Proof(item.moment, item.verdict) for item in found.proofs],
        coverage=found.coverage,
        objective=objective,
        **terminal(),
    )
    lines = [draw_timeline(picture)]
    if found.refusal:
        lines.append(f"refused    a restore that names no timeline: {found.refusal.message}")
        lines += [f"           {line}" for line in found.refusal.details]
        lines += [f"           hint: {hint}" for hint in found.refusal.hints]
    exposure = found.exposure
    if exposure is not None:
        seen = format_duration(found.now - exposure.seen_at)
        where = f"the server is at {exposure.flushed_lsn}, the store at {exposure.stored_lsn}, {seen} ago"
        alone = f"{format_duration(exposure.duration)} of log is" if exposure.duration else "no log is"
        lines.append(f"exposed    {alone} on the server alone ({where})")
        lines += [f"           {finding.message}" for finding in exposure.findings]
    if found.unsigned:
        lines.append(
            f"unsigned   {format_count(len(found.unsigned), 'file')} of the last minute, not in a manifest yet"
        )
    lines += [f"doubt      {doubt}" for doubt in found.doubts]
    return "\n".join(lines)


def terminal() -> dict[str, Any]:
    """Return how wide a picture may be, and whether it has to be plain ASCII."""
    speaks_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or not speaks_unicode
    return {"columns": shutil.get_terminal_size((100, 24)).columns, "plain": plain}


def proofs_document(found: Timeline | OplogTimeline) -> dict[str, Any]:
    """Return the dumps and drills of any timeline for scripts."""
    from drkit.units import format_utc

    return {
        "dumps": [format_utc(moment) for moment in found.dumps],
        "proofs": [{"moment": format_utc(item.moment), "verdict": item.verdict} for item in found.proofs],
        "proven_share": round(found.coverage.share, 4),
    }


def exposure_document(exposure: Exposure | OplogExposure, **positions: Any) -> dict[str, Any]:
    """Return for scripts what only the server has, with its ``positions`` in the database's own words."""
    from drkit.units import format_utc

    return {
        "seen": format_utc(exposure.seen_at),
        "seconds": exposure.duration.total_seconds(),
        **positions,
        "findings": [vars(finding) for finding in exposure.findings],
    }


def _document(found: Timeline) -> dict[str, Any]:
    from drkit.units import format_utc
    from drkit.wal import format_lsn

    exposure = found.exposure
    return {
        "policy": found.policy,
        "now": format_utc(found.now),
        "windows": [
            {
                "timeline": item.timeline,
                "from_lsn": format_lsn(item.from_lsn),
                "to_lsn": format_lsn(item.to_lsn),
                "from": format_utc(item.from_at),
                "to": format_utc(item.to_at),
            }
            for item in found.windows
        ],
        "gaps": [
            {
                "timeline": item.timeline,
                "from_lsn": format_lsn(item.from_lsn),
                "to_lsn": format_lsn(item.to_lsn),
                "from": format_utc(item.from_at),
                "to": format_utc(item.to_at) if item.to_at else None,
                "first_missing": item.first_missing,
                "reason": item.reason,
            }
            for item in found.gaps
        ],
        "bases": [
            {
                "artifact_id": item.artifact_id,
                "timeline": item.timeline,
                "stop_lsn": format_lsn(item.stop_lsn),
                "stop": format_utc(item.stop_at),
            }
            for item in found.bases
        ],
        **proofs_document(found),
        "exposure": exposure
        and exposure_document(exposure, flushed_lsn=exposure.flushed_lsn, stored_lsn=exposure.stored_lsn),
        "refusal": found.refusal
        and {
            "message": found.refusal.message,
            "details": list(found.refusal.details),
            "hints": list(found.refusal.hints),
        },
        "unsigned": list(found.unsigned),
        "doubts": list(found.doubts),
    }
