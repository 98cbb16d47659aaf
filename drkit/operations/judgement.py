"""`drkit check`, the deciding half: stores, manifests, chain and catalog against each other and the policies.

Nothing is read here and no clock is asked: the same facts get the same verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from drkit import bucket
from drkit.copy_rule import CopyRule
from drkit.errors import EXIT_PROBLEMS, IntegrityError
from drkit.model import Finding, Manifest
from drkit.operations.check import Observed
from drkit.operations.damage import find_damage
from drkit.operations.expectations import Expectation
from drkit.operations.inventory import StoreInventory
from drkit.operations.orphans import find_orphans
from drkit.operations.policy_facts import CLOCK_MARGIN, PolicyFacts, sort_facts
from drkit.operations.promises import DrillFact, Missing, Standing, broken_promises, copy_rule, drill_fact, summarize
from drkit.units import format_count, format_duration, format_moment, parse_utc

_STATES: Mapping[str, str] = {
    "backup-late": "LATE",
    "wal-gap": "GAP",
    "wal-lied": "LATE",
    "wal-behind": "LATE",
    "wal-slot": "LATE",
    "wal-stalls": "LATE",
    "wal-archiver": "LATE",
    "wal-stopped": "LATE",
    "oplog-gap": "GAP",
    "oplog-behind": "LATE",
    "oplog-window": "LATE",
    "oplog-stopped": "LATE",
    "rpo-missed": "MISSED",
    "misdated": "MISDATED",
    "copy-missing": "INCOMPLETE",
    "object-unlisted": "INCOMPLETE",
    "orphan": "INCOMPLETE",
    "drill-failed": "FAILED",
    "drill-late": "UNPROVEN",
    "never-drilled": "UNPROVEN",
    "verify-late": "UNREAD",
    "verify-limit": "UNREAD",
}
"""What a policy is called by its worst finding, worst first; every other code is damage."""


@dataclass(frozen=True)
class PolicyVerdict:
    """How one policy stands; ``summary`` is the line after its state, ``copies`` the rule 3-2-1-1-0."""

    policy: str
    state: str
    summary: str
    artifacts: int
    restorable_to_at: datetime | None
    findings: tuple[Finding, ...]
    copies: CopyRule


@dataclass(frozen=True)
class CheckReport:
    """The outcome of a check; ``stores`` are findings about whole stores."""

    policies: tuple[PolicyVerdict, ...]
    stores: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """Return 0, 8 when something is damaged, 12 for every other problem."""
        findings = [*self.stores, *(finding for verdict in self.policies for finding in verdict.findings)]
        if any(is_damage(finding) for finding in findings):
            return IntegrityError.exit_code
        return EXIT_PROBLEMS if findings else 0


def is_damage(finding: Finding) -> bool:
    """Say whether a finding is about bytes that are not what was recorded, and not about something late or missing."""
    return finding.code not in _STATES and finding.code != "store-unread"


def judge(observed: Observed, expectations: Mapping[str, Expectation], now: datetime) -> CheckReport:
    """Say how each policy stands; policies that only the stores or the catalog know are judged by what is there."""
    verdicts = [_verdict(facts) for facts in sort_facts(observed, expectations, now)]
    return CheckReport(tuple(verdicts), tuple(_about_stores(observed.inventories.values())))


def _about_stores(inventories: Iterable[StoreInventory]) -> Iterator[Finding]:
    for inventory in inventories:
        probe = f"drkit store probe {inventory.name}"
        if inventory.error is not None:
            yield Finding("store-unread", f"store {inventory.name}", inventory.error.message, probe)
        yield from inventory.findings.get("", ())
        if inventory.artifacts and inventory.repo_id is None and not inventory.findings.get(""):
            message = f"{bucket.REPO_KEY} is gone from store {inventory.name}, which holds artifacts"
            yield Finding("repo-missing", f"store {inventory.name}", message, probe)


def _verdict(facts: PolicyFacts) -> PolicyVerdict:
    damage = find_damage(facts)
    standing = _standing(facts, damage.sound)
    findings = (
        *damage.findings,
        *broken_promises(standing),
        *_misdated(facts, damage.sound),
        *_unlisted(facts),
        *_orphans(facts),
    )
    return verdict_of(standing, findings, len(facts.copies))


def verdict_of(standing: Standing, findings: Sequence[Finding], artifacts: int) -> PolicyVerdict:
    """Put findings and standing of one policy into words."""
    worst = _worst(findings)
    others = f" (and {format_count(len(findings) - 1, 'more problem')})" if len(findings) > 1 else ""
    return PolicyVerdict(
        policy=standing.policy,
        state=_state(findings) if standing.is_readable else "UNKNOWN",
        summary=worst.message + others if worst is not None else summarize(standing),
        artifacts=artifacts,
        restorable_to_at=standing.restorable_to_at,
        findings=tuple(findings),
        copies=copy_rule(standing),
    )


def _standing(facts: PolicyFacts, sound: Sequence[Manifest]) -> Standing:
    newest: dict[str, datetime] = {}
    dated = facts.dated(sound)
    last = max(dated, key=lambda item: (item.covers.to_at, item.artifact_id), default=None)
    for manifest in dated:
        at = manifest.covers.to_at
        newest[manifest.method] = max(at, newest.get(manifest.method, at))
    return Standing(
        policy=facts.policy,
        now=facts.now,
        expectation=facts.expectation,
        known=len(facts.copies) + len(facts.remembered),
        sound=len(sound),
        newest=newest,
        last_run=facts.last_run,
        log=facts.log,
        drills=[drill for drill in _drills(facts) if drill.ended_at <= facts.now + CLOCK_MARGIN],
        missing=dict(_missing(facts, sound)),
        is_readable=facts.is_readable,
        taken_at=last.covers.to_at if last else None,
        holders=_holders(facts, last) if last else (),
        verified=_verified(facts),
        damaged=facts.damaged,
        reading=facts.reading,
    )


def _drills(facts: PolicyFacts) -> Iterator[DrillFact]:
    for item in facts.evidence.values():
        drill = drill_fact(item.record)
        if drill is not None:
            yield drill


def _holders(facts: PolicyFacts, manifest: Manifest) -> list[str]:
    """Return the stores that have an artifact and all that it builds on.

    One that could not be read is believed to have what it had.
    """
    holders = set(facts.expectation.stores if facts.expectation else ()) | facts.folders.keys() | facts.unread
    for name in (manifest.artifact_id, *manifest.depends_on):
        entry = facts.remembered.get(name)
        holders &= {copy.store for copy in facts.copies.get(name, ())} | (
            facts.unread & set(entry.stores if entry else ())
        )
    return sorted(holders)


def _verified(facts: PolicyFacts) -> bool | None:
    """Return whether the newest verification passed, None where there was none."""
    read = (item.record for item in facts.evidence.values() if item.record.get("kind") == "verification")
    records = [record for record in read if parse_utc(str(record["ended_at"])) <= facts.now + CLOCK_MARGIN]
    newest = max(records, key=lambda record: str(record["ended_at"]), default=None)
    return None if newest is None else newest.get("verdict") == "passed"


def _missing(facts: PolicyFacts, sound: Sequence[Manifest]) -> Iterator[tuple[str, Missing]]:
    """Count, by store, the artifacts that never were in a store that should have them."""
    for name in facts.expectation.stores if facts.expectation else ():
        if name in facts.unread or name not in facts.folders:
            continue
        ids = [
            manifest.artifact_id
            for manifest in sound
            if name not in {copy.store for copy in facts.copies[manifest.artifact_id]}
            and not _was_in(facts, manifest.artifact_id, name)
            and "manifest.json" not in facts.folders[name].get(manifest.artifact_id, {})
            and manifest.artifact_id not in facts.tombstones
            and not facts.is_being_copied(manifest)
        ]
        yield name, Missing(len(ids), ids[:3])


def _was_in(facts: PolicyFacts, artifact_id: str, store: str) -> bool:
    entry = facts.remembered.get(artifact_id)
    return entry is not None and store in entry.stores


def _misdated(facts: PolicyFacts, sound: Sequence[Manifest]) -> Iterator[Finding]:
    for manifest in sound:
        ahead = manifest.covers.to_at - facts.now
        if ahead > CLOCK_MARGIN:
            message = (
                f"artifact {manifest.artifact_id} is of {format_moment(manifest.covers.to_at)}, which is"
                f" {format_duration(ahead)} from now: a clock was wrong then, or this host's is now"
            )
            yield Finding("misdated", manifest.artifact_id, message, "timedatectl")


def _unlisted(facts: PolicyFacts) -> Iterator[Finding]:
    """Find objects in the folders of artifacts that their manifests do not name."""
    for inventory in facts.inventories:
        named = {
            item.key
            for copies in facts.copies.values()
            for copy in copies
            if copy.store == inventory.name
            for item in copy.manifest.objects
        }
        for artifact_id, names in sorted(facts.folders[inventory.name].items()):
            if inventory.name in {copy.store for copy in facts.copies.get(artifact_id, ())}:
                documents = {"manifest.json", "manifest.json.sig"}
                extra = sorted(name for name, key in names.items() if key not in named and name not in documents)
                for name in extra:
                    message = f"{names[name]} in store {inventory.name} is not named by its manifest"
                    yield Finding("object-unlisted", artifact_id, message, f"drkit show {artifact_id}")


def _orphans(facts: PolicyFacts) -> Iterator[Finding]:
    """Find what an artifact left that never came to be; that a known one is gone is said elsewhere."""
    inventories = {inventory.name: inventory for inventory in facts.inventories}
    folders = {
        store: {artifact_id: list(keys.values()) for artifact_id, keys in found.items()}
        for store, found in facts.folders.items()
    }
    runs = [facts.last_run] if facts.last_run else []
    hint = "drkit run list   (which backup was that?)"
    if facts.expectation is not None and facts.expectation.is_pruned:
        hint = f"drkit prune {facts.policy} --dry-run   (says whether it is taken away, and when)"
    for orphan in find_orphans(inventories, folders, facts.remembered, runs, facts.now):
        since = format_moment(orphan.newest_at)
        message = f"{orphan} without a manifest: a backup that did not finish on {since}, or it was deleted"
        yield Finding("orphan", orphan.artifact_id, message, hint)


def _worst(findings: Sequence[Finding]) -> Finding | None:
    ranks = list(_STATES)
    return min(findings, key=lambda item: ranks.index(item.code) if item.code in _STATES else -1, default=None)


def _state(findings: Sequence[Finding]) -> str:
    worst = _worst(findings)
    return "ok" if worst is None else _STATES.get(worst.code, "DAMAGED")
