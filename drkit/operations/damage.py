"""What is not as it was signed, or is gone: stores, manifests, objects, chain and records against each other.

Nothing is read here and no clock is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drkit import bucket
from drkit.chain import Link, audit_chain
from drkit.model import Finding, Manifest
from drkit.operations.inventory import StoreInventory
from drkit.operations.log_audit import audit_log_chain
from drkit.operations.policy_facts import PolicyFacts


@dataclass(frozen=True)
class Damage:
    """What is wrong, and the artifacts that some store has whole, with all that they build on."""

    findings: tuple[Finding, ...]
    sound: tuple[Manifest, ...]


def find_damage(facts: PolicyFacts) -> Damage:
    """Compare everything that was found of one policy."""
    objects = list(_broken_objects(facts))
    broken = {(finding.subject, store) for store, finding in objects}
    whole = [
        copies[0].manifest
        for artifact_id, copies in facts.copies.items()
        if any((artifact_id, copy.store) not in broken for copy in copies)
    ]
    unusable = _parts_missing(facts, whole)
    findings = (
        *_untrusted(facts),
        *_chain(facts),
        *(finding for _, finding in objects),
        *_gone_copies(facts),
        *_gone_evidence(facts),
        *_gone_holds(facts),
        *_gone_log(facts),
        *_parents_lost(facts, unusable),
    )
    return Damage(findings, tuple(manifest for manifest in whole if manifest.artifact_id not in unusable))


def _untrusted(facts: PolicyFacts) -> Iterator[Finding]:
    for inventory in facts.inventories:
        yield from inventory.findings.get(facts.policy, ())


def _chain(facts: PolicyFacts) -> Iterator[Finding]:
    """Audit the chain over all stores together: a manifest that any of them has is not lost."""
    links = {link for inventory in facts.inventories for link in inventory.links.get(facts.policy, ())}
    remembered = []
    for entry in facts.remembered.values():
        manifest = entry.manifest
        link = Link(manifest.artifact_id, entry.manifest_sha256, manifest.seq, manifest.parents)
        # What lies in a store that could not be read is believed to be there still.
        if facts.unread & set(entry.stores):
            links.add(Link(link.artifact_id, link.sha256, link.seq, link.parents, link.artifact_id))
        else:
            remembered.append(link)
    stones = {stone for inventory in facts.inventories for stone in inventory.tombstones.get(facts.policy, ())}
    present = {
        artifact_id
        for folders in facts.folders.values()
        for artifact_id, names in folders.items()
        if "manifest.json" in names
    }
    order = sorted(links, key=lambda link: (link.seq, link.artifact_id, link.sha256, link.found_under or ""))
    for finding in audit_chain(order, sorted(stones, key=lambda stone: stone.seq), remembered=remembered):
        # A manifest that is there and not believed was reported as that; it is not gone.
        if finding.code not in {"chain-gap", "chain-rollback"} or finding.subject not in present:
            yield finding


def _broken_objects(facts: PolicyFacts) -> Iterator[tuple[str, Finding]]:
    inventories = {inventory.name: inventory for inventory in facts.inventories}
    for artifact_id, copies in sorted(facts.copies.items()):
        for copy in copies:
            for message, code in _broken(copy.manifest, inventories[copy.store]):
                hint = f"drkit verify {artifact_id}"
                yield copy.store, Finding(code, artifact_id, f"artifact {artifact_id}: {message}", hint)


def _parts_missing(facts: PolicyFacts, whole: Sequence[Manifest]) -> dict[str, list[str]]:
    """Return, by artifact, what an incremental base builds on and no store has whole.

    A store that was not read may have it.
    """
    there = {item.artifact_id for item in whole}
    there |= {name for name, entry in facts.remembered.items() if facts.unread & set(entry.stores)}
    missing = {item.artifact_id: [name for name in item.depends_on if name not in there] for item in whole}
    return {artifact_id: names for artifact_id, names in missing.items() if names}


def _parents_lost(facts: PolicyFacts, unusable: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for artifact_id, missing in sorted(unusable.items()):
        message = f"artifact {artifact_id} cannot be restored: no store has {missing[0]} whole, which it builds on"
        yield Finding("parent-lost", artifact_id, message, f"drkit backup {facts.policy} --method base")


def _gone_copies(facts: PolicyFacts) -> Iterator[Finding]:
    for artifact_id, entry in sorted(facts.remembered.items()):
        here = {copy.store for copy in facts.copies.get(artifact_id, ())}
        if not here or artifact_id in facts.tombstones:
            continue
        for name in sorted({item.name for item in facts.inventories} & set(entry.stores) - here):
            if "manifest.json" not in facts.folders[name].get(artifact_id, {}):
                message = f"artifact {artifact_id} was in store {name} and is gone from it without a tombstone"
                yield Finding("copy-gone", artifact_id, message, "drkit store copy")


def _gone_evidence(facts: PolicyFacts) -> Iterator[Finding]:
    """Find records that the catalog or a later record knows: a failed drill must not be made unhappened."""
    hint = f"drkit drills {facts.policy}"
    for entry in facts.remembered_evidence:
        if entry.sha256 not in facts.evidence and not facts.unread & set(entry.stores):
            run_id = str(entry.record.get("run_id"))
            message = f"the record of run {run_id} was in {', '.join(entry.stores)} and is gone"
            yield Finding("evidence-gone", run_id, message, hint)
    remembered = {entry.sha256 for entry in facts.remembered_evidence}
    for item in sorted(facts.evidence.values(), key=lambda item: str(item.record.get("run_id"))):
        previous = item.record.get("previous")
        if previous is not None and previous not in facts.evidence and previous not in remembered and not facts.unread:
            run_id = str(item.record.get("run_id"))
            message = f"the record before that of run {run_id} is gone (sha256:{previous})"
            yield Finding("evidence-gap", run_id, message, hint)


def _gone_holds(facts: PolicyFacts) -> Iterator[Finding]:
    """Find holds that the catalog knows and no store has: nobody removes a hold, it is released."""
    for hold in () if facts.unread else facts.holds:
        key = bucket.hold_key(facts.policy, hold.hold_id)
        if not any(key in inventory.objects for inventory in facts.inventories):
            message = f"the hold on artifact {hold.artifact_id} ({hold.reason}) was in the stores and is gone"
            yield Finding("hold-gone", hold.artifact_id, message, f"drkit hold {hold.artifact_id}")


def _gone_log(facts: PolicyFacts) -> Iterator[Finding]:
    """Find log manifests that were taken away: a store that could not be read may have them, or what explains it."""
    if facts.log is not None and facts.log.links is not None and not facts.unread:
        graves = {
            grave.tombstone_id: grave
            for inventory in facts.inventories
            for grave in inventory.log_graves.get(facts.policy, ())
        }
        yield from audit_log_chain(facts.policy, facts.log.links, list(graves.values()))


def _broken(manifest: Manifest, inventory: StoreInventory) -> Iterator[tuple[str, str]]:
    prefix = bucket.artifact_prefix(manifest.policy, manifest.artifact_id)
    for record in manifest.objects:
        stored = inventory.objects.get(record.key)
        if not record.key.startswith(prefix):
            yield f"its manifest names an object that is not its own, {record.key}", "object-foreign"
        elif stored is None:
            yield f"{record.key} is missing from store {inventory.name}", "object-missing"
        elif stored.size_bytes != record.stored_bytes:
            seen = f"{stored.size_bytes:,} bytes in store {inventory.name}, {record.stored_bytes:,} in its manifest"
            yield f"{record.key} has {seen}", "object-size"
