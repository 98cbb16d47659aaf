"""Holds: an artifact stays, whatever the rules say, until somebody releases it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from drkit import bucket
from drkit.catalog.holds import HoldEntry
from drkit.errors import CatalogError, StoreError
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.inventory import read_holds
from drkit.operations.running import new_id
from drkit.operations.selection import choose_artifact, find_artifacts
from drkit.operations.signing_key import load_site_signing_key
from drkit.operations.sparing import put_decision
from drkit.retention_documents import Hold, Release


@dataclass(frozen=True)
class HoldChange:
    """Holds that were placed or released; ``failures`` are of stores that did not take it."""

    entry: ArtifactEntry
    holds: tuple[HoldEntry, ...]
    failures: tuple[StoreError, ...]


def hold_artifact(workplace: Workplace, prefix: str, reason: str) -> HoldChange:
    """Hold the artifact whose id starts with ``prefix``, in every store of its policy and every one that has it.

    It counts as soon as one store has it, and the next prune brings it to the others. Raise RecoveryGap or
    IntegrityError when there is no such artifact, or not any more; StoreError when no store takes the hold.
    """
    entry = _find(workplace, prefix)
    held = place_hold(workplace, entry, reason)
    # A prune that was deleting it meanwhile did not see the hold.
    found = find_artifacts(workplace, entry.manifest.policy)
    choose_artifact(found, entry.manifest.policy, artifact_id=entry.manifest.artifact_id)
    return held


def place_hold(
    workplace: Workplace, entry: ArtifactEntry, reason: str, kind: Literal["hold", "revived"] = "hold"
) -> HoldChange:
    """Sign a hold and put it into the stores."""
    manifest, now = entry.manifest, workplace.clock()
    hold = Hold(
        repo_id=manifest.repo_id,
        policy=manifest.policy,
        artifact_id=manifest.artifact_id,
        hold_id=new_id(now),
        kind=kind,
        reason=reason,
        placed_at=now,
    )
    key = bucket.hold_key(hold.policy, hold.hold_id)
    signing_key = load_site_signing_key(workplace.site)
    failures = put_decision(
        workplace, decision_stores(workplace, manifest.policy, entry.stores), key, hold, signing_key
    )
    held = HoldEntry(hold.hold_id, hold.policy, hold.artifact_id, kind, reason, now)
    workplace.catalog.holds.remember([held])
    facts = {"policy": hold.policy, "artifact_id": hold.artifact_id, "hold_id": hold.hold_id, "reason": reason}
    workplace.catalog.add_event("hold.placed", now, {**facts, "kind": kind})
    return HoldChange(entry, (held,), tuple(failures))


def release_artifact(workplace: Workplace, prefix: str) -> HoldChange:
    """End every hold on the artifact whose id starts with ``prefix``; raise CatalogError when there is none.

    What a prune had marked before gets its whole time of grace anew.
    """
    entry = _find(workplace, prefix)
    manifest = entry.manifest
    standing = [hold for hold in _standing(workplace, manifest.policy) if hold.artifact_id == manifest.artifact_id]
    if not standing:
        raise CatalogError(
            f"artifact {manifest.artifact_id} is not held",
            hints=[f"drkit list {manifest.policy}   (marks what is held)"],
        )
    return release_holds(workplace, entry, standing)


def release_holds(workplace: Workplace, entry: ArtifactEntry, holds: Sequence[HoldEntry]) -> HoldChange:
    """Sign the end of these holds and put it into the stores."""
    signing_key = load_site_signing_key(workplace.site)
    failures: list[StoreError] = []
    released = []
    for hold in holds:
        now = workplace.clock()
        release = Release(
            repo_id=entry.manifest.repo_id,
            policy=hold.policy,
            artifact_id=hold.artifact_id,
            hold_id=hold.hold_id,
            released_at=now,
        )
        key = bucket.release_key(hold.policy, hold.hold_id)
        names = decision_stores(workplace, hold.policy, entry.stores)
        failures += put_decision(workplace, names, key, release, signing_key)
        released.append(replace(hold, released_at=now))
        workplace.catalog.holds.remember(released[-1:])
        facts = {"policy": hold.policy, "artifact_id": hold.artifact_id, "hold_id": hold.hold_id}
        workplace.catalog.add_event("hold.released", now, facts)
    return HoldChange(entry, tuple(released), tuple(failures))


def decision_stores(workplace: Workplace, policy: str, holders: Iterable[str]) -> list[str]:
    """Return the stores that a decision over an artifact belongs in: the policy's, and those that have it."""
    known = workplace.policies.get(policy)
    return list(dict.fromkeys((*(known.stores if known else ()), *holders)))


def known_holds(holds: Iterable[Hold], releases: Iterable[Release], remembered: Iterable[HoldEntry]) -> list[HoldEntry]:
    """Return every hold that the stores or the catalog know; a release ends the very hold that it names."""
    entries = {entry.hold_id: entry for entry in remembered}
    for hold in holds:
        known = entries.get(hold.hold_id)
        released_at = known.released_at if known else None
        entries[hold.hold_id] = HoldEntry(
            *(hold.hold_id, hold.policy, hold.artifact_id, hold.kind, hold.reason, hold.placed_at, released_at)
        )
    for release in releases:
        entry = entries.get(release.hold_id)
        if entry is not None and entry.artifact_id == release.artifact_id and entry.released_at is None:
            entries[release.hold_id] = replace(entry, released_at=release.released_at)
    return [entries[hold_id] for hold_id in sorted(entries)]


def _find(workplace: Workplace, prefix: str) -> ArtifactEntry:
    known = workplace.catalog.artifact(prefix).manifest
    found = find_artifacts(workplace, known.policy)
    return choose_artifact(found, known.policy, artifact_id=known.artifact_id)


def _standing(workplace: Workplace, policy: str) -> list[HoldEntry]:
    """Return the holds that stand: of those that the catalog or any store knows, the ones that no release names."""
    holds: list[Hold] = []
    releases: list[Release] = []
    for store in workplace.stores.values():
        with suppress(StoreError):  # what cannot be read now is not released now
            found = read_holds(store, workplace.signers, policy)
            holds += found[0]
            releases += found[1]
    entries = known_holds(holds, releases, workplace.catalog.holds.entries(policy=policy))
    return [entry for entry in entries if entry.released_at is None]
