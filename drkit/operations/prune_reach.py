"""What can be restored before a prune and after it: single moments, and windows of which every moment comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from drkit import bucket, oplog_windows
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.oplog_log import dump_points, stored_oplog
from drkit.operations.prune_facts import Stored
from drkit.operations.stored_log import base_points, log_state, read_logs, signed_histories
from drkit.recovery_lines import leading_bases
from drkit.recovery_windows import Window, find_windows
from drkit.retention import Plan

Windows = tuple[Window | oplog_windows.OplogWindow, ...]
_BeforeAndAfter = tuple[Sequence[ArtifactEntry], Sequence[ArtifactEntry]]
_Stretch = tuple[int, str, str]


@dataclass(frozen=True)
class Reach:
    """Moments, newest first, and windows."""

    moments: tuple[datetime, ...]
    windows: Windows = ()


def reach_of(workplace: Workplace, stored: Stored, plan: Plan) -> tuple[Reach, Reach]:
    """Return what can be restored now, and what remains when everything that the plan removes is gone."""
    gone = {decision.name for decision in plan.removed}
    whole = [item.name for item in plan.artifacts]
    before, after = (_moments(stored, names) for names in (whole, [name for name in whole if name not in gone]))
    entries = stored.entries
    left = [entry for entry in entries if entry.manifest.artifact_id not in gone]
    going = _stretches(decision.name for decision in plan.removed_log)
    windows: tuple[Windows, Windows] = (), ()
    if any(entry.manifest.position for entry in entries):
        windows = _wal_windows(workplace, stored.policy.policy, (entries, left), going)
    elif any(entry.manifest.oplog for entry in entries):
        windows = _oplog_windows(workplace, stored.policy.policy, (entries, left), going)
    return Reach(before, windows[0]), Reach(after, windows[1])


def lines_of(workplace: Workplace, stored: Stored) -> dict[int, frozenset[str]]:
    """Return `Holdings.lines`; the log is read, and only where it has more than one timeline to choose from.

    A store that cannot be read has no say; that it cannot is an obstacle of its own.
    """
    keys = (bucket.parse_log_key(key) for inventory in stored.inventories.values() for key in inventory.objects)
    timelines = {place[1] for place in keys if place is not None}
    if len(timelines) < 2 or not any(entry.manifest.position for entry in stored.entries):
        return {}
    policy = stored.policy.policy
    logs = read_logs(workplace, policy)
    return leading_bases(log_state(logs, base_points(stored.entries), signed_histories(logs), policy))


def _wal_windows(
    workplace: Workplace, policy: str, entries: _BeforeAndAfter, going: Sequence[_Stretch]
) -> tuple[Windows, Windows]:
    logs = read_logs(workplace, policy)
    now = log_state(logs, base_points(entries[0]), signed_histories(logs), policy)
    files = [item for item in now.files if item.kind == "history" or not _is_in(going, item.timeline, item.name[:24])]
    left = dataclasses.replace(now, bases=base_points(entries[1]), files=files)
    return tuple(find_windows(now)), tuple(find_windows(left))


def _oplog_windows(
    workplace: Workplace, policy: str, entries: _BeforeAndAfter, going: Sequence[_Stretch]
) -> tuple[Windows, Windows]:
    slices = [item.slice for item in stored_oplog(workplace, policy).slices]
    left = [item for item in slices if not _is_in(going, item.timeline, item.name[:16], upto=False)]
    now = oplog_windows.find_windows(dump_points(entries[0]), slices)
    return tuple(now), tuple(oplog_windows.find_windows(dump_points(entries[1]), left))


def _moments(stored: Stored, names: Sequence[str]) -> tuple[datetime, ...]:
    return tuple(sorted((stored.manifest(name).covers.to_at for name in names), reverse=True))


def _stretches(keys: Iterable[str]) -> list[_Stretch]:
    """Return timeline, first and last name of log manifests by their keys."""
    places = (bucket.parse_log_manifest_key(key) for key in keys)
    return [(place.timeline, place.first[:24], place.last[:24]) for place in places if place is not None]


def _is_in(stretches: Sequence[_Stretch], timeline: int, name: str, *, upto: bool = True) -> bool:
    """Say whether a file lies in one of the stretches; without ``upto`` one that begins at an end does not."""
    return any(
        line == timeline and first <= name and (name < last or (upto and name == last))
        for line, first, last in stretches
    )
