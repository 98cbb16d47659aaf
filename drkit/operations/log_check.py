"""What `drkit check` has to say of a policy's log."""

from __future__ import annotations

from collections.abc import Iterator

from drkit.errors import StoreError
from drkit.model import Finding
from drkit.operations import Workplace
from drkit.operations.check import LogSummary
from drkit.operations.timeline import Timeline, read_timeline
from drkit.units import format_duration, format_moment


def summarize_log(workplace: Workplace, policy: str) -> LogSummary:
    """Read a policy's log manifests, and what `drkit serve` saw; a store out of reach is said elsewhere."""
    try:
        found = read_timeline(workplace, policy)
    except StoreError:
        return LogSummary(None, (), None)
    newest_at = max((window.to_at for window in found.windows), default=None)
    exposed = found.exposure.duration if found.exposure else None
    links = None if found.distrusted or found.unreached else found.links
    return LogSummary(newest_at, tuple(_findings(found)), exposed, links)


def _findings(found: Timeline) -> Iterator[Finding]:
    for doubt in found.distrusted:
        yield Finding("log-untrusted", found.policy, doubt, f"drkit timeline {found.policy}")
    for gap in found.gaps:
        if gap.to_at is None:
            message = f"nothing after {format_moment(gap.from_at)} can be restored: {gap.reason}"
            yield Finding("wal-gap", found.policy, message, f"drkit backup {found.policy} --method base")
    if found.exposure is not None:
        yield from found.exposure.findings
    elif found.seen_at is not None:
        since = format_duration(found.now - found.seen_at)
        message = f"drkit serve does not run any more: it last looked at the log {since} ago"
        yield Finding("wal-stopped", found.policy, message, "drkit serve")
