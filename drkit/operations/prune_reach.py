"""What can be restored before a prune and after it: single moments, and windows of which every moment comes back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from drkit import bucket
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.prune_facts import Stored
from drkit.operations.stored_log import base_points, log_state, read_logs, signed_histories
from drkit.recovery_path import LogFile, LogState
from drkit.recovery_windows import Window, find_windows
from drkit.retention import Plan


@dataclass(frozen=True)
class Reach:
    """Moments, newest first, and windows."""

    moments: tuple[datetime, ...]
    windows: tuple[Window, ...] = ()


def reach_of(workplace: Workplace, stored: Stored, plan: Plan) -> tuple[Reach, Reach]:
    """Return what can be restored now, and what remains when everything that the plan removes is gone."""
    gone = {decision.name for decision in plan.removed}
    whole = [item.name for item in plan.artifacts]
    before, after = (_moments(stored, names) for names in (whole, [name for name in whole if name not in gone]))
    if not any(copies[0].manifest.position for copies in stored.copies.values()):
        return Reach(before), Reach(after)
    entries = [ArtifactEntry(copies[0].manifest, copies[0].sha256, ()) for copies in stored.copies.values()]
    logs = read_logs(workplace, stored.policy.policy)
    now = log_state(logs, base_points(entries), signed_histories(logs), stored.policy.policy)
    left = LogState(
        bases=[base for base in now.bases if base.artifact_id not in gone],
        files=_remaining(now.files, {decision.name for decision in plan.removed_log}),
        histories=now.histories,
        segment_bytes=now.segment_bytes,
        policy=now.policy,
    )
    return Reach(before, tuple(find_windows(now))), Reach(after, tuple(find_windows(left)))


def _moments(stored: Stored, names: Sequence[str]) -> tuple[datetime, ...]:
    return tuple(sorted((stored.manifest(name).covers.to_at for name in names), reverse=True))


def _remaining(files: Sequence[LogFile], gone: Collection[str]) -> list[LogFile]:
    stretches = [
        (place.timeline, place.first[:24], place.last[:24])
        for place in map(bucket.parse_log_manifest_key, gone)
        if place is not None
    ]
    return [
        item
        for item in files
        if item.kind == "history"
        or not any(line == item.timeline and first <= item.name[:24] <= last for line, first, last in stretches)
    ]
