"""What `drkit check` has to say of a policy's log, of either engine; a store out of reach is said elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from drkit.errors import StoreError
from drkit.model import Finding
from drkit.operations import Workplace
from drkit.operations.check import LogSummary
from drkit.operations.oplog_log import FIRST_TIMELINE
from drkit.operations.oplog_timeline import OplogTimeline, read_oplog_timeline
from drkit.operations.timeline import Timeline, read_timeline
from drkit.units import format_duration, format_moment

_NOTHING_KNOWN = LogSummary(None, (), None)


def summarize_wal(workplace: Workplace, policy: str) -> LogSummary:
    """Read a policy's log manifests, and what `drkit serve` saw."""
    try:
        found = read_timeline(workplace, policy)
    except StoreError:
        return _NOTHING_KNOWN
    return _summary(found, _wal_findings(found))


def summarize_oplog(workplace: Workplace, policy: str) -> LogSummary:
    """Read a policy's slices, and what `drkit serve` saw."""
    try:
        found = read_oplog_timeline(workplace, policy)
    except StoreError:
        return _NOTHING_KNOWN
    return _summary(found, _oplog_findings(found))


def _summary(found: Timeline | OplogTimeline, findings: Iterable[Finding]) -> LogSummary:
    newest_at = max((window.to_at for window in found.windows), default=None)
    exposed = found.exposure.duration if found.exposure else None
    links = None if found.distrusted or found.unreached else found.links
    doubts = [
        Finding("log-untrusted", found.policy, doubt, f"drkit timeline {found.policy}") for doubt in found.distrusted
    ]
    return LogSummary(newest_at, (*doubts, *findings), exposed, links)


def _wal_findings(found: Timeline) -> Iterator[Finding]:
    for gap in found.gaps:
        if gap.to_at is None:
            message = f"nothing after {format_moment(gap.from_at)} can be restored: {gap.reason}"
            yield Finding("wal-gap", found.policy, message, f"drkit backup {found.policy} --method base")
    if found.refusal:
        message = f"a restore that names no timeline is refused: {found.refusal.message}"
        yield Finding("wal-gap", found.policy, message, f"drkit backup {found.policy} --method base")
    if found.exposure is not None:
        yield from found.exposure.findings
    elif found.seen_at is not None:
        yield Finding("wal-stopped", found.policy, _stopped(found, "log"), "drkit serve")


def _oplog_findings(found: OplogTimeline) -> Iterator[Finding]:
    numbers = [item.timeline for item in found.branches] + [item.timeline for item in found.starts]
    timeline = max(numbers, default=FIRST_TIMELINE)
    for gap in found.gaps:
        if gap.to_ts is None and gap.timeline == timeline:
            message = f"nothing after {format_moment(gap.from_at)} can be restored: {gap.reason}"
            yield Finding("oplog-gap", found.policy, message, f"drkit backup {found.policy}")
    if not any(item.timeline == timeline for item in found.starts):
        message = f"no dump has been taken since timeline {timeline} of the oplog began: it continues nothing"
        yield Finding("oplog-gap", found.policy, message, f"drkit backup {found.policy}")
    if found.exposure is not None:
        yield from found.exposure.findings
    elif found.seen_at is not None:
        yield Finding("oplog-stopped", found.policy, _stopped(found, "oplog"), "drkit serve")


def _stopped(found: Timeline | OplogTimeline, log: str) -> str:
    assert found.seen_at is not None
    since = format_duration(found.now - found.seen_at)
    return f"drkit serve does not run any more: it last looked at the {log} {since} ago"
