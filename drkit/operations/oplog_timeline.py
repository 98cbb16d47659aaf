"""What of a MongoDB policy can be restored, and what was proven: the facts of `drkit timeline`.

Needs no identity: the places of slices and dumps are signed in the clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit.model import Finding
from drkit.operations import Workplace
from drkit.operations.lineage import restorable
from drkit.operations.log_audit import LogLink
from drkit.operations.oplog_log import Branch, dump_points, stored_oplog
from drkit.operations.oplog_spool import read_oplog_state
from drkit.operations.selection import find_artifacts
from drkit.operations.timeline import FRESH, ProvenMoment, clock_doubts, finding_of, proofs_of, proven_spans
from drkit.oplog_windows import DumpPoint, OplogGap, OplogWindow, find_gaps, find_windows
from drkit.recovery_coverage import Coverage, measure_coverage
from drkit.units import parse_utc

ENGINE = "mongodb"


@dataclass(frozen=True)
class OplogExposure:
    """What `drkit serve` saw last: for how long entries have been on the server alone, at ``seen_at``.

    ``window`` is how long the server keeps an entry, where it says so.
    """

    seen_at: datetime
    duration: timedelta
    newest_ts: str
    window: timedelta | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class OplogTimeline:
    """Everything there is to draw; ``starts`` are the dumps that the oplog goes on from, ``dumps`` the others.

    ``distrusted`` says what was not believed, ``unreached`` what could not be asked. ``seen_at`` is when `drkit serve`
    last looked from this host, None when it never did.
    """

    policy: str
    now: datetime
    windows: Sequence[OplogWindow]
    gaps: Sequence[OplogGap]
    branches: Sequence[Branch]
    starts: Sequence[DumpPoint]
    dumps: Sequence[datetime]
    proofs: Sequence[ProvenMoment]
    coverage: Coverage
    exposure: OplogExposure | None
    seen_at: datetime | None
    distrusted: Sequence[str]
    unreached: Sequence[str]
    links: Sequence[LogLink] = ()

    @property
    def doubts(self) -> list[str]:
        """Return what was not believed and what was not reached."""
        newest_at = max((window.to_at for window in self.windows), default=self.now)
        return [*self.distrusted, *self.unreached, *clock_doubts(newest_at, self.now)]


def has_oplog(workplace: Workplace, policy: str) -> bool:
    """Tell whether a policy is of MongoDB, by its file, or without one by what it left in the stores."""
    if policy in workplace.policies:
        return workplace.policies[policy].target.engine == ENGINE
    return any(entry.manifest.engine == ENGINE for entry in find_artifacts(workplace, policy).entries)


def read_oplog_timeline(workplace: Workplace, policy: str) -> OplogTimeline:
    """Read a policy's artifacts, oplog manifests and drills; raise StoreError when no store can be reached."""
    found = find_artifacts(workplace, policy)
    oplog = stored_oplog(workplace, policy, {entry.manifest.repo_id for entry in found.entries})
    starts = sorted(dump_points(restorable(found)), key=lambda item: (item.timeline, item.stop_ts))
    slices = [item.slice for item in oplog.slices]
    windows = find_windows(starts, slices)
    exposure = _last_seen(workplace, policy)
    stops = {item.artifact_id: item.stop_at for item in starts}
    return OplogTimeline(
        policy=policy,
        now=workplace.clock(),
        windows=windows,
        gaps=find_gaps(windows, slices, oplog.gaps),
        branches=oplog.branches,
        starts=starts,
        dumps=[entry.manifest.covers.to_at for entry in found.entries if entry.manifest.oplog is None],
        proofs=list(proofs_of(workplace.catalog, policy)),
        coverage=measure_coverage(windows, proven_spans(workplace.catalog, policy, stops)),
        exposure=exposure if exposure and workplace.clock() - exposure.seen_at <= FRESH else None,
        seen_at=exposure.seen_at if exposure else None,
        distrusted=oplog.doubts,
        unreached=[f"not reached: {error.message}" for error in oplog.unreachable],
        links=oplog.links,
    )


def _last_seen(workplace: Workplace, policy: str) -> OplogExposure | None:
    """Return what `drkit serve` on this host saw last, None when it never did."""
    state = read_oplog_state(workplace.site, policy)
    if "exposure_ms" not in state:
        return None
    window_s = state.get("window_s")
    return OplogExposure(
        seen_at=parse_utc(str(state["at"])),
        duration=timedelta(milliseconds=int(state["exposure_ms"])),
        newest_ts=str(state["newest_ts"]),
        window=None if window_s is None else timedelta(seconds=int(window_s)),
        findings=tuple(finding_of(item) for item in state.get("findings", ())),
    )
