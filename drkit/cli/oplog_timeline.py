"""How ``drkit timeline`` shows a policy of MongoDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import timedelta

    from drkit.operations.oplog_timeline import OplogTimeline


def drawn(found: OplogTimeline, objective: timedelta | None) -> str:
    """Draw windows, gaps, dumps and drills, and say in words what a picture cannot."""
    from drkit.cli.timeline import terminal
    from drkit.cli.timeline_view import Proof, TimelinePicture, draw_timeline
    from drkit.units import format_duration, format_moment

    picture = TimelinePicture(
        policy=found.policy,
        now=found.now,
        windows=found.windows,
        gaps=found.gaps,
        dumps=sorted([*found.dumps, *(item.stop_at for item in found.starts)]),
        proofs=[Proof(item.moment, item.verdict) for item in found.proofs],
        coverage=found.coverage,
        objective=objective,
        log="oplog",
        start="dump",
        **terminal(),
    )
    lines = [draw_timeline(picture)]
    lines += [
        f"branch     timeline {item.timeline} began on {format_moment(item.at_ts.moment)}: {item.reason}"
        for item in found.branches
    ]
    exposure = found.exposure
    if exposure is not None:
        seen = format_duration(found.now - exposure.seen_at)
        alone = f"{format_duration(exposure.duration)} of oplog is" if exposure.duration else "no oplog is"
        keeps = f", which keeps it for {format_duration(exposure.window)}" if exposure.window else ""
        lines.append(f"exposed    {alone} on the server alone{keeps} (it is at {exposure.newest_ts}, {seen} ago)")
        lines += [f"           {finding.message}" for finding in exposure.findings]
    lines += [f"doubt      {doubt}" for doubt in found.doubts]
    return "\n".join(lines)


def document(found: OplogTimeline) -> dict[str, Any]:
    """Return the same for scripts."""
    from drkit.cli.timeline import exposure_document, proofs_document
    from drkit.units import format_utc

    exposure = found.exposure
    return {
        "policy": found.policy,
        "now": format_utc(found.now),
        "windows": [
            {
                "timeline": item.timeline,
                "from_ts": str(item.from_ts),
                "to_ts": str(item.to_ts),
                "from": format_utc(item.from_at),
                "to": format_utc(item.to_at),
            }
            for item in found.windows
        ],
        "gaps": [
            {
                "timeline": item.timeline,
                "from_ts": str(item.from_ts),
                "to_ts": str(item.to_ts) if item.to_ts else None,
                "missing_ts": str(item.missing_ts) if item.missing_ts else None,
                "from": format_utc(item.from_at),
                "to": format_utc(item.to_at) if item.to_at else None,
                "reason": item.reason,
            }
            for item in found.gaps
        ],
        "branches": [
            {
                "timeline": item.timeline,
                "from_timeline": item.from_timeline,
                "at_ts": str(item.at_ts),
                "reason": item.reason,
            }
            for item in found.branches
        ],
        "starts": [
            {
                "artifact_id": item.artifact_id,
                "timeline": item.timeline,
                "start_ts": str(item.start_ts),
                "stop_ts": str(item.stop_ts),
                "included": item.included,
                "stop": format_utc(item.stop_at),
            }
            for item in found.starts
        ],
        **proofs_document(found),
        "exposure": exposure
        and exposure_document(
            exposure,
            newest_ts=exposure.newest_ts,
            window_seconds=exposure.window.total_seconds() if exposure.window else None,
        ),
        "doubts": list(found.doubts),
    }
