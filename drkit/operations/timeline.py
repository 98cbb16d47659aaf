"""What of a policy can be restored, and what was proven: the facts of `drkit timeline`.

Needs no identity: how timelines follow on each other is signed in the clear beside the history files.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from drkit import bucket
from drkit.catalog import Catalog
from drkit.errors import RecoveryGap
from drkit.model import Finding
from drkit.operations import Workplace
from drkit.operations.known_signatures import KnownSignatures
from drkit.operations.lineage import restorable
from drkit.operations.log_audit import LogLink
from drkit.operations.policy_facts import CLOCK_MARGIN
from drkit.operations.selection import find_artifacts
from drkit.operations.spool import Spool, spool_folder
from drkit.operations.stored_log import base_points, log_state, read_logs, signed_histories
from drkit.recovery_coverage import Coverage, measure_coverage
from drkit.recovery_lines import why_refused
from drkit.recovery_path import BasePoint
from drkit.recovery_windows import Gap, Window, find_gaps, find_windows
from drkit.units import format_moment, parse_utc, say_slow_clock

Verdict = Literal["passed", "passed_with_findings", "failed"]

_VERDICTS: Mapping[str, Verdict] = {
    "passed": "passed",
    "passed_with_findings": "passed_with_findings",
    "failed": "failed",
}
FRESH = timedelta(minutes=5)
"""How long what `drkit serve` saw last counts as now."""


@dataclass(frozen=True)
class Exposure:
    """What `drkit serve` saw last: for how long log has been on the server alone, at ``seen_at``."""

    seen_at: datetime
    duration: timedelta
    flushed_lsn: str
    stored_lsn: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class ProvenMoment:
    """The moment that a drill restored to, and its verdict."""

    moment: datetime
    verdict: Verdict


@dataclass(frozen=True)
class Timeline:
    """Everything there is to draw; ``distrusted`` says what was not believed, ``unreached`` what could not be asked.

    ``seen_at`` is when `drkit serve` last looked from this host, None when it never did. ``refusal`` says why a restore
    that names no timeline is refused, None where it is not.
    """

    policy: str
    now: datetime
    windows: Sequence[Window]
    gaps: Sequence[Gap]
    bases: Sequence[BasePoint]
    dumps: Sequence[datetime]
    proofs: Sequence[ProvenMoment]
    coverage: Coverage
    exposure: Exposure | None
    seen_at: datetime | None
    unsigned: Sequence[str]
    distrusted: Sequence[str]
    unreached: Sequence[str]
    links: Sequence[LogLink] = ()
    damaged: Sequence[str] = ()
    refusal: RecoveryGap | None = None

    @property
    def doubts(self) -> list[str]:
        """Return what was not believed, what was not reached, and what was not as it was signed when it was read."""
        newest_at = max((window.to_at for window in self.windows), default=self.now)
        return [*self.distrusted, *self.unreached, *self.damaged, *clock_doubts(newest_at, self.now)]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let Python look for no cycles meanwhile: it takes a fifth of the time that a long log is read in, in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def read_timeline(workplace: Workplace, policy: str) -> Timeline:
    """Read a policy's artifacts, log manifests and drills; raise StoreError when no store can be reached."""
    found = find_artifacts(workplace, policy)
    known = KnownSignatures(workplace.catalog, workplace.signers, policy)
    logs = read_logs(workplace, policy, {entry.manifest.repo_id for entry in found.entries}, known)
    known.keep(complete=not logs.unreachable)
    bases = base_points(restorable(found))
    state = log_state(logs, bases, signed_histories(logs), policy)
    windows = find_windows(state)
    exposure = _last_seen(workplace, policy)
    unreached = [f"not reached: {error.message}" for error in logs.unreachable]
    stops = {
        entry.manifest.artifact_id: entry.manifest.covers.to_at for entry in found.entries if entry.manifest.position
    }
    return Timeline(
        policy=policy,
        now=workplace.clock(),
        windows=windows,
        gaps=find_gaps(state),
        bases=bases,
        dumps=[entry.manifest.covers.to_at for entry in found.entries if entry.manifest.position is None],
        proofs=list(proofs_of(workplace.catalog, policy)),
        coverage=measure_coverage(windows, proven_spans(workplace.catalog, policy, stops)),
        exposure=exposure if exposure and workplace.clock() - exposure.seen_at <= FRESH else None,
        seen_at=exposure.seen_at if exposure else None,
        unsigned=logs.unsigned,
        distrusted=[doubt for doubt in logs.doubts if doubt not in unreached],
        unreached=unreached,
        links=logs.links,
        damaged=list(damaged_stretches(workplace.catalog, policy)),
        refusal=why_refused(state),
    )


def damaged_stretches(catalog: Catalog, policy: str) -> Iterator[str]:
    """Say of which stretches of the log a store had something else than was signed, when it was read last."""
    for (subject, store), reading in sorted(catalog.verified.readings(policy).items()):
        place = bucket.parse_log_manifest_key(subject)
        if place is not None and not reading.sound:
            span = place.first if place.first == place.last else f"{place.first} .. {place.last}"
            yield f"{span} in store {store}: not as it was signed when it was read on {format_moment(reading.at)}"


def clock_doubts(newest_at: datetime, now: datetime) -> list[str]:
    """Say that RPO cannot be right where the newest moment is dated after now."""
    ahead = newest_at - now
    return [say_slow_clock(ahead)] if ahead > CLOCK_MARGIN else []


def proofs_of(catalog: Catalog, policy: str) -> Iterator[ProvenMoment]:
    """Yield the moments that drills restored to."""
    for record in catalog.evidence(policy=policy):
        verdict = _VERDICTS.get(str(record.get("verdict")))
        if record.get("restored_to_at") and verdict is not None:
            yield ProvenMoment(parse_utc(str(record["restored_to_at"])), verdict)


def proven_spans(catalog: Catalog, policy: str, stops: Mapping[str, datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Yield from where to where a drill that passed has replayed; ``stops`` are the first moments of artifacts."""
    for record in catalog.evidence(policy=policy):
        stop_at = stops.get(str(record.get("artifact_id")))
        if stop_at and record.get("restored_to_at") and str(record.get("verdict")).startswith("passed"):
            yield stop_at, max(stop_at, parse_utc(str(record["restored_to_at"])))


def _last_seen(workplace: Workplace, policy: str) -> Exposure | None:
    """Return what `drkit serve` on this host saw last, None when it never did."""
    state = Spool.read_state(spool_folder(workplace.site, policy))
    if "exposure_ms" not in state:
        return None
    return Exposure(
        seen_at=parse_utc(str(state["at"])),
        duration=timedelta(milliseconds=int(state["exposure_ms"])),
        flushed_lsn=str(state["flushed_lsn"]),
        stored_lsn=str(state["stored_lsn"]),
        findings=tuple(finding_of(item) for item in state.get("findings", ())),
    )


def finding_of(item: Mapping[str, Any]) -> Finding:
    """Return a finding that `drkit serve` wrote down."""
    return Finding(*(str(item.get(name, "")) for name in ("code", "subject", "message", "hint")))
