"""`drkit check`, the deciding half: stores, manifests, chain and catalog against each other and the policies.

Nothing is read here and no clock is asked: the same facts get the same verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit import bucket
from drkit.chain import Link, audit_chain
from drkit.errors import EXIT_PROBLEMS, IntegrityError
from drkit.model import Finding, Manifest
from drkit.operations.check import Observed
from drkit.operations.expectations import Due, Expectation
from drkit.operations.inventory import StoredArtifact, StoredEvidence, StoreInventory
from drkit.units import format_bytes, format_count, format_duration, format_moment, parse_utc

ORPHAN_MARGIN = timedelta(hours=24)
"""Data without a manifest that is younger than this may be a backup in progress, on any host."""

CLOCK_MARGIN = timedelta(minutes=5)
"""How far two clocks may differ before an artifact is of the future."""

_STATES: Mapping[str, str] = {
    "backup-late": "LATE",
    "wal-gap": "GAP",
    "wal-lied": "LATE",
    "wal-behind": "LATE",
    "wal-slot": "LATE",
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
}
"""What a policy is called by its worst finding, worst first; every other code is damage."""


@dataclass(frozen=True)
class PolicyVerdict:
    """How one policy stands; ``summary`` is the line after its state."""

    policy: str
    state: str
    summary: str
    artifacts: int
    restorable_to_at: datetime | None
    findings: tuple[Finding, ...]


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
    names = {*expectations, *observed.policies}
    verdicts = [_Judgement(name, observed, expectations.get(name), now).verdict() for name in sorted(names)]
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


class _Judgement:
    """The facts of one policy, sorted; each method is one question to them."""

    def __init__(self, policy: str, observed: Observed, expectation: Expectation | None, now: datetime) -> None:
        self.policy = policy
        self.expectation = expectation
        self.now = now
        self.last_run = observed.last_runs.get(policy)
        self.log = observed.logs.get(policy)
        self.unread = {name for name, inventory in observed.inventories.items() if inventory.error is not None}
        self.inventories = [item for name, item in observed.inventories.items() if name not in self.unread]
        self.remembered = {
            entry.manifest.artifact_id: entry for entry in observed.remembered if entry.manifest.policy == policy
        }
        self.copies: dict[str, list[StoredArtifact]] = defaultdict(list)
        self.evidence: dict[str, StoredEvidence] = {}
        for inventory in self.inventories:
            for item in inventory.artifacts:
                if item.manifest.policy == policy:
                    self.copies[item.manifest.artifact_id].append(item)
            self.evidence |= {record.sha256: record for record in inventory.evidence if record.policy == policy}
        self.tombstones = {
            stone.artifact_id: stone for inventory in self.inventories for stone in inventory.tombstones.get(policy, ())
        }
        self.remembered_evidence = [
            entry for entry in observed.remembered_evidence if entry.record.get("policy") == policy
        ]
        self.holds = [hold for hold in observed.holds if hold.policy == policy]
        self.folders = {inventory.name: _folders(inventory, policy) for inventory in self.inventories}

    def verdict(self) -> PolicyVerdict:
        damage = [
            *(*self._untrusted(), *self._chain(), *self._objects(), *self._gone_copies()),
            *self._gone_evidence(),
            *self._gone_holds(),
        ]
        broken = {(finding.subject, store) for store, finding in self._broken_objects()}
        whole = [
            copies[0].manifest
            for artifact_id, copies in self.copies.items()
            if any((artifact_id, copy.store) not in broken for copy in copies)
        ]
        unusable = {manifest.artifact_id: missing for manifest in whole if (missing := self._missing(manifest, whole))}
        damage += self._parents_lost(unusable)
        sound = [manifest for manifest in whole if manifest.artifact_id not in unusable]
        questions: tuple[Callable[[Sequence[Manifest]], Iterable[Finding]], ...] = (
            *(self._late, self._logs, self._rpo, self._misdated, self._missing_copies),
            *(self._unlisted, self._drills),
        )
        problems = [finding for question in questions for finding in question(sound)]
        restorable_to_at = self._restorable_to_at(sound)
        return PolicyVerdict(
            policy=self.policy,
            state=_state([*damage, *problems]) if self._readable() else "UNKNOWN",
            summary=self._summary([*damage, *problems], restorable_to_at),
            artifacts=len(self.copies),
            restorable_to_at=restorable_to_at,
            findings=(*damage, *problems),
        )

    def _untrusted(self) -> Iterator[Finding]:
        for inventory in self.inventories:
            yield from inventory.findings.get(self.policy, ())

    def _chain(self) -> Iterator[Finding]:
        """Audit the chain over all stores together: a manifest that any of them has is not lost."""
        links = {link for inventory in self.inventories for link in inventory.links.get(self.policy, ())}
        remembered = []
        for entry in self.remembered.values():
            manifest = entry.manifest
            link = Link(manifest.artifact_id, entry.manifest_sha256, manifest.seq, manifest.parents)
            # What lies in a store that could not be read is believed to be there still.
            if self.unread & set(entry.stores):
                links.add(Link(link.artifact_id, link.sha256, link.seq, link.parents, link.artifact_id))
            else:
                remembered.append(link)
        stones = {stone for inventory in self.inventories for stone in inventory.tombstones.get(self.policy, ())}
        present = {
            artifact_id
            for folders in self.folders.values()
            for artifact_id, names in folders.items()
            if "manifest.json" in names
        }
        order = sorted(links, key=lambda link: (link.seq, link.artifact_id, link.sha256, link.found_under or ""))
        for finding in audit_chain(order, sorted(stones, key=lambda stone: stone.seq), remembered=remembered):
            # A manifest that is there and not believed was reported as that; it is not gone.
            if finding.code not in {"chain-gap", "chain-rollback"} or finding.subject not in present:
                yield finding

    def _objects(self) -> Iterator[Finding]:
        for _, finding in self._broken_objects():
            yield finding

    def _broken_objects(self) -> Iterator[tuple[str, Finding]]:
        inventories = {inventory.name: inventory for inventory in self.inventories}
        for artifact_id, copies in sorted(self.copies.items()):
            for copy in copies:
                for message, code in _broken(copy.manifest, inventories[copy.store]):
                    hint = f"drkit verify {artifact_id}"
                    yield copy.store, Finding(code, artifact_id, f"artifact {artifact_id}: {message}", hint)

    def _missing(self, manifest: Manifest, whole: Sequence[Manifest]) -> list[str]:
        """Return what an incremental base builds on and no store has whole; a store that was not read may have it."""
        there = {item.artifact_id for item in whole}
        if self.unread:
            there |= {name for name, entry in self.remembered.items() if self.unread & set(entry.stores)}
        return [needed for needed in manifest.depends_on if needed not in there]

    def _parents_lost(self, unusable: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
        for artifact_id, missing in sorted(unusable.items()):
            message = f"artifact {artifact_id} cannot be restored: no store has {missing[0]} whole, which it builds on"
            yield Finding("parent-lost", artifact_id, message, f"drkit backup {self.policy} --method base")

    def _gone_copies(self) -> Iterator[Finding]:
        for artifact_id, entry in sorted(self.remembered.items()):
            here = {copy.store for copy in self.copies.get(artifact_id, ())}
            if not here or artifact_id in self.tombstones:
                continue
            for name in sorted({item.name for item in self.inventories} & set(entry.stores) - here):
                if "manifest.json" not in self.folders[name].get(artifact_id, {}):
                    message = f"artifact {artifact_id} was in store {name} and is gone from it without a tombstone"
                    yield Finding("copy-gone", artifact_id, message, "drkit store copy")

    def _gone_evidence(self) -> Iterator[Finding]:
        """Find records that the catalog or a later record knows: a failed drill must not be made unhappened."""
        hint = f"drkit drills {self.policy}"
        for entry in self.remembered_evidence:
            if entry.sha256 not in self.evidence and not self.unread & set(entry.stores):
                run_id = str(entry.record.get("run_id"))
                message = f"the record of run {run_id} was in {', '.join(entry.stores)} and is gone"
                yield Finding("evidence-gone", run_id, message, hint)
        remembered = {entry.sha256 for entry in self.remembered_evidence}
        for item in sorted(self.evidence.values(), key=lambda item: str(item.record.get("run_id"))):
            previous = item.record.get("previous")
            if (
                previous is not None
                and previous not in self.evidence
                and previous not in remembered
                and not self.unread
            ):
                run_id = str(item.record.get("run_id"))
                message = f"the record before that of run {run_id} is gone (sha256:{previous})"
                yield Finding("evidence-gap", run_id, message, hint)

    def _gone_holds(self) -> Iterator[Finding]:
        """Find holds that the catalog knows and no store has: nobody removes a hold, it is released."""
        for hold in () if self.unread else self.holds:
            key = bucket.hold_key(self.policy, hold.hold_id)
            if not any(key in inventory.objects for inventory in self.inventories):
                message = f"the hold on artifact {hold.artifact_id} ({hold.reason}) was in the stores and is gone"
                yield Finding("hold-gone", hold.artifact_id, message, f"drkit hold {hold.artifact_id}")

    def _dated(self, sound: Sequence[Manifest]) -> list[Manifest]:
        """Return those that are of the past: one of the future must not make everything look punctual until then."""
        return [manifest for manifest in sound if manifest.covers.to_at <= self.now + CLOCK_MARGIN]

    def _misdated(self, sound: Sequence[Manifest]) -> Iterator[Finding]:
        for manifest in sound:
            ahead = manifest.covers.to_at - self.now
            if ahead > CLOCK_MARGIN:
                message = (
                    f"artifact {manifest.artifact_id} is of {format_moment(manifest.covers.to_at)}, which is"
                    f" {format_duration(ahead)} from now: a clock was wrong then, or this host's is now"
                )
                yield Finding("misdated", manifest.artifact_id, message, "timedatectl")

    def _late(self, sound: Sequence[Manifest]) -> Iterator[Finding]:
        if self.expectation is None or not self._readable():
            return
        if not self.copies and not self.remembered:
            yield self._late_finding("never backed up")
            return
        for due in self.expectation.backups:
            dated = [item.covers.to_at for item in self._dated(sound) if item.method == due.what]
            newest = max(dated, default=None)
            running = self.last_run is not None and self.last_run.state == "running"
            if (newest is not None and newest >= due.since) or (running and newest is not None):
                continue
            age = f"newest {due.what} {format_duration(self.now - newest)} old" if newest else f"no {due.what} yet"
            yield self._late_finding(f"{age}, due every {format_duration(due.every)}")

    def _late_finding(self, message: str) -> Finding:
        run = self.last_run
        if run is not None and run.state not in {"succeeded", "running"}:
            message += f"; last attempt {run.state}" + (f": {run.error}" if run.error else "")
        return Finding("backup-late", self.policy, message, f"drkit backup {self.policy}")

    def _logs(self, sound: Sequence[Manifest]) -> Iterable[Finding]:
        del sound
        return self.log.findings if self.log else ()

    def _restorable_to_at(self, sound: Sequence[Manifest]) -> datetime | None:
        """Return the newest moment that can be brought back, by an artifact alone or with the log."""
        moments = [manifest.covers.to_at for manifest in self._dated(sound)]
        if moments and self.log is not None and self.log.restorable_to_at is not None:
            moments.append(self.log.restorable_to_at)
        return max(moments, default=None)

    def _at_risk(self, newest: datetime) -> timedelta:
        """Return how much would be lost now: less than the age of the newest moment, where the log is watched."""
        exposed = self.log.exposed if self.log else None
        return self.now - newest if exposed is None else min(exposed, self.now - newest)

    def _rpo(self, sound: Sequence[Manifest]) -> Iterator[Finding]:
        newest = self._restorable_to_at(sound)
        rpo = self.expectation.rpo if self.expectation else None
        if rpo is None or newest is None or self._at_risk(newest) <= rpo or any(self._late(sound)):
            return
        message = f"RPO {format_duration(self._at_risk(newest))} of {format_duration(rpo)}"
        dues: Sequence[Due] = self.expectation.backups if self.expectation and not self.log else ()
        slow = [due for due in dues if due.every > rpo]
        if slow:
            message += f": a {slow[0].what} every {format_duration(slow[0].every)} cannot meet it"
        yield Finding("rpo-missed", self.policy, message, f"drkit backup {self.policy}")

    def _missing_copies(self, sound: Sequence[Manifest]) -> Iterator[Finding]:
        remembered = {item: set(entry.stores) for item, entry in self.remembered.items()}
        for name in self.expectation.stores if self.expectation else ():
            if name in self.unread or name not in self.folders:
                continue
            missing = [
                manifest.artifact_id
                for manifest in sound
                if name not in {copy.store for copy in self.copies[manifest.artifact_id]}
                and name not in remembered.get(manifest.artifact_id, ())
                and "manifest.json" not in self.folders[name].get(manifest.artifact_id, {})
                and manifest.artifact_id not in self.tombstones
                and not self._being_copied(manifest)
            ]
            if missing:
                first = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
                verb = "is" if len(missing) == 1 else "are"
                message = f"{format_count(len(missing), 'artifact')} {verb} not in store {name}: {first}"
                yield Finding("copy-missing", f"store {name}", message, "drkit store copy")

    def _being_copied(self, manifest: Manifest) -> bool:
        run = self.last_run
        return run is not None and run.state == "running" and manifest.ended_at >= run.started_at

    def _unlisted(self, sound: Sequence[Manifest]) -> Iterator[Finding]:
        """Find objects that no manifest names: of artifacts that are there, and of some that never came to be."""
        del sound
        for inventory in self.inventories:
            named = {
                item.key
                for copies in self.copies.values()
                for copy in copies
                if copy.store == inventory.name
                for item in copy.manifest.objects
            }
            for artifact_id, names in sorted(self.folders[inventory.name].items()):
                if "manifest.json" not in names:
                    yield from self._orphan(inventory, artifact_id, names)
                elif inventory.name in {copy.store for copy in self.copies.get(artifact_id, ())}:
                    documents = {"manifest.json", "manifest.json.sig"}
                    extra = sorted(name for name, key in names.items() if key not in named and name not in documents)
                    for name in extra:
                        message = f"{names[name]} in store {inventory.name} is not named by its manifest"
                        yield Finding("object-unlisted", artifact_id, message, f"drkit show {artifact_id}")

    def _orphan(self, inventory: StoreInventory, artifact_id: str, names: Mapping[str, str]) -> Iterator[Finding]:
        objects = [inventory.objects[key] for key in names.values()]
        newest = max(item.modified_at for item in objects)
        if artifact_id in self.remembered or newest > self.now - ORPHAN_MARGIN:
            return  # known to have been an artifact: then that it is gone was said; or perhaps still being written
        size = format_bytes(sum(item.size_bytes for item in objects))
        message = (
            f"{format_count(len(objects), 'object')} ({size}) of {artifact_id} in store {inventory.name} "
            f"have no manifest: a backup that did not finish on {format_moment(newest)}, or a manifest that was deleted"
        )
        yield Finding("orphan", artifact_id, message, "drkit run list   (which backup was that?)")

    def _drills(self, sound: Sequence[Manifest]) -> Iterator[Finding]:
        if self.expectation is None or not sound:
            return
        last = self._last_drill()
        hint = f"drkit drill {self.policy}"
        if last is None:
            yield Finding("never-drilled", self.policy, f"never drilled; {format_count(len(sound), 'artifact')}", hint)
            return
        verdict, ended_at = last
        if verdict == "failed":
            since = format_duration(self.now - ended_at)
            yield Finding("drill-failed", self.policy, f"last drill failed {since} ago", hint)
            return
        for due in self.expectation.drills:
            newest = self._last_drill(due.what)
            if newest is None or newest[1] < due.since:
                since = f"{format_duration(self.now - newest[1])} ago" if newest else "never"
                message = f"drill {due.what} last came to a verdict {since}, due every {format_duration(due.every)}"
                yield Finding("drill-late", self.policy, message, f"{hint} --name {due.what}")

    def _last_drill(self, name: str | None = None) -> tuple[str, datetime] | None:
        """Return verdict and end of the newest drill that came to a conclusion, of that name or of any."""
        drills = [
            (parse_utc(item.record["ended_at"]), str(item.record["verdict"]).removesuffix("_with_findings"))
            for item in self.evidence.values()
            if item.record.get("kind") == "drill"
            and item.record.get("verdict") in {"passed", "passed_with_findings", "failed"}
            and name in (None, item.record.get("drill"))
        ]
        ended_at, verdict = max(drills, default=(None, ""))
        return None if ended_at is None else (verdict, ended_at)

    def _readable(self) -> bool:
        wanted = set(self.expectation.stores) if self.expectation else set()
        return not wanted or bool(wanted - self.unread)

    def _summary(self, findings: Sequence[Finding], restorable_to_at: datetime | None) -> str:
        worst = _worst(findings)
        if worst is not None:
            others = len(findings) - 1
            return worst.message + (f" (and {format_count(others, 'more problem')})" if others else "")
        if not self._readable():
            return "no store of it could be read"
        if restorable_to_at is None:
            return "no artifacts"
        last = self._last_drill()
        drilled = f"; last drill {last[0]} {format_duration(self.now - last[1])} ago" if last else ""
        alone = "" if self.expectation else "; no policy file"
        rpo = format_duration(self._at_risk(restorable_to_at))
        return f"restorable to {format_moment(restorable_to_at)}, RPO {rpo}{drilled}{alone}"


def _folders(inventory: StoreInventory, policy: str) -> dict[str, dict[str, str]]:
    """Return artifact id -> object name -> key of what lies under one policy's artifacts."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for key in inventory.objects:
        parsed = bucket.parse_artifact_key(key)
        if parsed is not None and parsed[0] == policy:
            folders[parsed[1]][parsed[2]] = key
    return dict(folders)


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


def _worst(findings: Sequence[Finding]) -> Finding | None:
    ranks = list(_STATES)
    return min(findings, key=lambda item: ranks.index(item.code) if item.code in _STATES else -1, default=None)


def _state(findings: Sequence[Finding]) -> str:
    worst = _worst(findings)
    return "ok" if worst is None else _STATES.get(worst.code, "DAMAGED")
