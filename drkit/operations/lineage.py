"""What an incremental base builds on: without all of it, it restores nothing."""

from __future__ import annotations

from drkit.errors import IntegrityError, RecoveryGap, StoreUnavailable
from drkit.model import ArtifactEntry
from drkit.operations.selection import PolicyArtifacts


def lineage(found: PolicyArtifacts, entry: ArtifactEntry) -> list[ArtifactEntry]:
    """Return what an artifact builds on, the full base first; empty for a full one.

    Raise RecoveryGap naming the first that no store has, IntegrityError for one that is there and not believed,
    StoreUnavailable for one whose stores cannot be asked.
    """
    manifest = entry.manifest
    there = {item.manifest.artifact_id: item for item in found.entries}
    for needed in manifest.depends_on:
        if needed in there:
            continue
        words = f"base {manifest.artifact_id} cannot be restored: it builds on {needed}"
        hints = [f"drkit check {manifest.policy}", f"drkit backup {manifest.policy} --method base   (a full one)"]
        refused = next((item for item in found.refused if item.artifact_id == needed), None)
        if refused is not None:
            raise IntegrityError(f"{words}, which is not believed", details=[refused.message], hints=hints)
        if any(item.manifest.artifact_id == needed for item in found.out_of_reach):
            unreached = [error.message for error in found.unreachable]
            raise StoreUnavailable(f"{words}, which is in a store that cannot be reached", details=unreached)
        raise RecoveryGap(f"{words}, which is in no store", hints=hints)
    return [there[needed] for needed in manifest.depends_on]


def why_unrestorable(found: PolicyArtifacts, entry: ArtifactEntry) -> str:
    """Return what is missing of the chain that an artifact is the end of, or the empty string."""
    try:
        lineage(found, entry)
    except (RecoveryGap, IntegrityError, StoreUnavailable) as error:
        return error.message
    return ""


def restorable(found: PolicyArtifacts) -> list[ArtifactEntry]:
    """Return the artifacts of which no part of the chain is missing."""
    return [entry for entry in found.entries if not why_unrestorable(found, entry)]
