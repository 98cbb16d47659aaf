"""The way of MongoDB to a moment: a dump, its own piece of the oplog, and stored slices behind it.

Planned from signed manifests, and refused with the place that is missing; nothing of MongoDB's is loaded for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from drkit.errors import RecoveryGap
from drkit.keys import KeyFile
from drkit.operations import Workplace
from drkit.operations.dump_plan import USERS_KIND, RestorePlan, RestoreRequest, plan_restore
from drkit.operations.oplog_log import StoredOplog, StoredSlice, dump_points, stored_oplog
from drkit.operations.selection import PolicyArtifacts, find_artifacts
from drkit.oplog_path import ReplayPath, StoredLog, find_path, path_to_stop
from drkit.units import format_bytes, format_count, format_moment, format_utc

_SILENT = "SecantusDB"


@dataclass(frozen=True)
class OplogPlan:
    """What a restore to a moment will do, as data; made without changing anything.

    ``notes`` say what was passed over on the way to it. ``undumped_timeline`` is a newer timeline than all dumps'.
    """

    restore: RestorePlan
    path: ReplayPath
    slices: tuple[StoredSlice, ...]
    notes: tuple[str, ...] = ()
    undumped_timeline: int | None = None

    @property
    def newer_history(self) -> str:
        """Say that the end of the log that is restored is not what the source had last; empty where it is."""
        if self.undumped_timeline is None or self.path.until is not None:
            return ""
        return (
            f"timeline {self.undumped_timeline} of the oplog has no dump yet: what is restored is timeline"
            f" {self.path.dump.timeline}, the history before it"
        )

    @property
    def users_note(self) -> str:
        """Say that users and roles are older than the data; empty where none come, or where the oplog has them."""
        if not any(item.kind == USERS_KIND for item in self.restore.objects):
            return ""
        product = str(self.restore.details["server"].get("product", ""))
        if not product.startswith(_SILENT):
            return ""
        return f"users and roles are those of the dump: {product} writes nothing of them into its oplog"

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of the slices in a store."""
        return sum(item.record.stored_bytes for item in self.slices)

    @property
    def plain_bytes(self) -> int:
        """Return the bytes of their entries."""
        return sum(item.record.plain_bytes for item in self.slices)

    def document(self) -> dict[str, Any]:
        """Return the plan for scripts."""
        path, dump = self.path, self.path.dump
        replay = {
            "timeline": dump.timeline,
            "until": format_utc(path.until) if path.until else None,
            "dump": {"start_ts": str(dump.start_ts), "stop_ts": str(dump.stop_ts), "included": dump.included},
            "reaches_ts": str(path.reaches_ts),
            "slices": [
                {
                    "name": item.record.part,
                    "from_ts": item.record.from_ts,
                    "to_ts": item.record.to_ts,
                    "entries": item.record.entries,
                    "stored_bytes": item.record.stored_bytes,
                    "stores": list(item.stores),
                }
                for item in self.slices
            ],
        }
        restores_to = format_utc(path.until or path.reaches_ts.moment)
        return {
            **self.restore.document(),
            "restores_to": restores_to,
            "replay": replay,
            "notes": [note for note in (*self.notes, self.newer_history, self.users_note) if note],
        }

    def describe(self) -> str:
        """Return the plan for people."""
        path, dump = self.path, self.path.dump
        policy = self.restore.entry.manifest.policy
        _, *lines = self.restore.describe().splitlines()
        end = path.until or path.reaches_ts.moment
        lines.insert(0, f"to bring {policy} to {format_moment(end)} (timeline {dump.timeline})")
        entries = format_count(sum(item.record.entries for item in self.slices), "entry", "entries")
        own = "the oplog of the dump's own time" if dump.included else "no oplog in the dump itself"
        slices = format_count(len(self.slices), "slice")
        lines.append(
            f"  replay     {own}; {slices} with {entries}, {format_bytes(self.stored_bytes)} stored,"
            f" up to {path.reaches_ts} ({format_moment(path.reaches_ts.moment)})"
        )
        lines += [f"  note       {note}" for note in (*self.notes, self.newer_history, self.users_note) if note]
        return "\n".join(lines)


def plan_oplog_restore(
    workplace: Workplace, request: RestoreRequest, identities: Sequence[KeyFile], *, to_moment: bool
) -> OplogPlan | None:
    """Decide how to come to a moment; None where the policy's dumps have no place in an oplog: they stand alone.

    With ``to_moment`` the log is followed up to ``request.at``, or as far as it goes; without it only as far as the
    dump needs it to be consistent. Raise RecoveryGap naming the first place that is missing.
    """
    found = find_artifacts(workplace, request.policy)
    if not dump_points(found.entries):
        return None
    oplog = stored_oplog(workplace, request.policy, {entry.manifest.repo_id for entry in found.entries})
    log = _log_of(request.policy, found, oplog)
    if to_moment:
        chosen = _chosen_id(found, request)
        path = find_path(log, request.at, chosen)
    else:
        entry = plan_restore(workplace, request, identities).entry
        if entry.manifest.oplog is None:
            return None
        try:
            path = path_to_stop(log, entry.manifest.artifact_id)
        except RecoveryGap:
            if entry.manifest.oplog.included:
                raise
            # No slices make it consistent: it is restored as any dump of some databases, each at its own moment.
            return None
    request = dataclasses.replace(request, artifact_id=path.dump.artifact_id, replays=True)
    plan = plan_restore(workplace, request, identities)
    names = {(item.timeline, item.name) for item in path.slices}
    slices = tuple(item for item in oplog.slices if (item.slice.timeline, item.slice.name) in names)
    newest = max(item.timeline for item in log.dumps)
    undumped = oplog.timeline if oplog.timeline > newest else None
    return OplogPlan(plan, path, slices, tuple(_notes(found, oplog)), undumped)


def read_stored_log(workplace: Workplace, policy: str) -> StoredLog:
    """Return the dumps and slices of a policy, as planning looks at them."""
    found = find_artifacts(workplace, policy)
    return _log_of(policy, found, stored_oplog(workplace, policy, {entry.manifest.repo_id for entry in found.entries}))


def _log_of(policy: str, found: PolicyArtifacts, oplog: StoredOplog) -> StoredLog:
    return StoredLog(policy, dump_points(found.entries), [item.slice for item in oplog.slices], oplog.gaps)


def _chosen_id(found: PolicyArtifacts, request: RestoreRequest) -> str | None:
    """Return the whole id of the artifact that is asked for, None where none is."""
    if request.artifact_id is None:
        return None
    prefix = request.artifact_id.upper()
    matches = [entry.manifest for entry in found.entries if entry.manifest.artifact_id.startswith(prefix)]
    if len(matches) == 1 and matches[0].oplog is None:
        raise RecoveryGap(
            f"artifact {matches[0].artifact_id} has no place in the oplog: nothing can be replayed after it"
        )
    return matches[0].artifact_id if len(matches) == 1 else request.artifact_id


def _notes(found: PolicyArtifacts, oplog: StoredOplog) -> Iterator[str]:
    yield from (f"not believed: {refusal.message}" for refusal in found.refused)
    yield from oplog.doubts
    yield from (f"not reached: {error.message}" for error in oplog.unreachable)
