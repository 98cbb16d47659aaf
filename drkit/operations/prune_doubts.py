"""Reasons for which nothing of a policy may be removed now: what its stores show is not all, or not to be trusted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from drkit import bucket
from drkit.operations.inventory import StoredArtifact, StoreInventory
from drkit.policy import Policy
from drkit.retention_facts import CLOCK_SKEW
from drkit.units import format_duration, format_moment


def unread_stores(policy: Policy, inventories: Iterable[StoreInventory], remembered: Collection[str]) -> Iterator[str]:
    """Say which store could not be read, of those that are the policy's or had an artifact of it."""
    for item in inventories:
        if item.error is not None and (item.name in policy.stores or item.name in remembered):
            yield f"store {item.name} cannot be read, and a hold may be in it: {item.error.message}"


def hold_doubts(inventories: Iterable[StoreInventory], policy: str) -> Iterator[str]:
    """Say which hold is not as it was signed: until somebody looked, it may stand."""
    for inventory in inventories:
        for finding in inventory.findings.get(policy, ()):
            if finding.code in {"hold-untrusted", "hold-misplaced"}:
                yield f"a hold is not believed: {finding.message}"


def manifest_doubts(inventories: Iterable[StoreInventory], settled: Collection[str]) -> Iterator[str]:
    """Say which manifest is there and not believed in any store: what it builds on and its log look superfluous then.

    One flipped bit does that, and so does a signer who went missing from the list of allowed ones. ``settled`` are the
    artifacts that are believed somewhere, and those that go anyway.
    """
    for inventory in inventories:
        places = filter(None, map(bucket.parse_manifest_key, inventory.objects))
        strange = [artifact_id for _, artifact_id in places if artifact_id not in settled]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            what = f"the manifest of {strange[0]}{more} in store {inventory.name}"
            yield f"{what} is not believed, so what it needs is not known"


def strange_places(
    policy: Policy,
    read: Mapping[str, StoreInventory],
    copies: Mapping[str, Sequence[StoredArtifact]],
    remembered: Collection[str],
) -> Iterator[str]:
    """Say which store is not the one that it was: a disk that is not mounted, or the bucket of another repository."""
    for name, inventory in read.items():
        if name in policy.stores and name in remembered and not inventory.artifacts:
            yield f"store {name} has no artifact of the policy any more: is it another folder or bucket than before"
    repositories = sorted({copy.manifest.repo_id for found in copies.values() for copy in found})
    if len(repositories) > 1:
        yield f"the stores hold artifacts of different repositories: {', '.join(repositories)}"


def clock_doubts(inventories: Iterable[StoreInventory], now: datetime) -> Iterator[str]:
    """Say by which store's clock an object was written in our future: one of the two clocks is wrong."""
    for inventory in inventories:
        newest = max((item.modified_at for item in inventory.objects.values()), default=now)
        if newest > now + CLOCK_SKEW:
            ahead = f"{format_duration(newest - now)} ahead of this host's clock"
            yield f"store {inventory.name} took an object at {format_moment(newest)}, {ahead}"
