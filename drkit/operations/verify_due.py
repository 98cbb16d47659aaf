"""Keeping the promise that every stored byte is read in time: read what is due, record it, and tell what is damaged.

Progress is in the signed records that lie in the stores, so a rebuilt catalog knows it too. A long reading is recorded
every half hour: no more than that is read twice after a crash.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from drkit.errors import Busy, CatalogError, DrkitError, IntegrityError, StoreError
from drkit.keys import KeyFile
from drkit.model import Finding
from drkit.operations import Reporter, Workplace
from drkit.operations.policy_facts import CLOCK_MARGIN
from drkit.operations.reader_lease import reader_lease
from drkit.operations.running import RunningRun, new_id, recorded_run
from drkit.operations.signing_key import load_site_signing_key
from drkit.operations.verification_record import CopyReading, Stretch, record_verification
from drkit.operations.verify import verify_artifact
from drkit.operations.verify_log import stored_logs, verify_log
from drkit.policy import METHODS, Policy
from drkit.reading_plan import ReadingPlan, StoredCopy, plan_reading

_RECORD_EVERY_S = 1800.0


@dataclass
class ReadResult:
    """What was read of all policies; ``plans`` are by policy name, the site's own under the empty name."""

    read: list[tuple[StoredCopy, tuple[Finding, ...]]] = field(default_factory=list)
    failed: dict[str, DrkitError] = field(default_factory=dict)
    plans: dict[str, ReadingPlan] = field(default_factory=dict)

    @property
    def damaged(self) -> list[tuple[StoredCopy, tuple[Finding, ...]]]:
        """Return what was found damaged."""
        return [item for item in self.read if item[1]]


def verify_due(
    workplace: Workplace, policies: Sequence[Policy], identities: Sequence[KeyFile], reporter: Reporter
) -> ReadResult:
    """Read what the promises of ``policies`` want to be read now, each policy as a recorded run of kind ``verify``.

    A policy with nothing due has no run. Go on after a failure, and report it.
    """
    result = ReadResult()
    due: dict[str, list[StoredCopy]] = {}
    for name, plan in plan_readings(workplace, policies).items():
        result.plans[name] = plan
        for copy in plan.chosen:
            due.setdefault(copy.policy, []).append(copy)
    for policy in policies:
        if policy.policy in due:
            try:
                _read_policy(workplace, policy, due[policy.policy], _Reading(identities, reporter), result)
            except (StoreError, IntegrityError, Busy) as error:
                result.failed[policy.policy] = error
    return result


def plan_readings(workplace: Workplace, policies: Sequence[Policy]) -> Mapping[str, ReadingPlan]:
    """Plan what is to be read now, for each policy with a promise of its own, and under ``""`` for all others.

    The site's limit for a day counts for all policies without a promise of their own, so all of them are planned
    together whenever one of them is asked for.
    """
    now = workplace.clock()
    own = [policy for policy in policies if policy.verify is not None]
    plans = {
        policy.policy: plan_reading(stored_copies(workplace, [policy]), policy.verify.promise, now)
        for policy in own
        if policy.verify is not None
    }
    if workplace.site.verify is not None and len(own) < len(policies):
        sharing = [policy for policy in workplace.policies.values() if policy.verify is None]
        plans[""] = plan_reading(stored_copies(workplace, sharing), workplace.site.verify.promise, now)
    return plans


def stored_copies(workplace: Workplace, policies: Sequence[Policy]) -> Iterator[StoredCopy]:
    """Yield every copy that the stores of the site hold of some policies, artifacts and log, with its last reading.

    One of the future, by a clock that was ahead, is none: the copy would not be read again until then.
    Artifacts are those of the catalog; the log is listed, and a store that cannot be listed now has none.
    """
    latest = workplace.clock() + CLOCK_MARGIN
    copies = chain(
        workplace.catalog.verified.copies([policy.policy for policy in policies]),
        *(_log_copies(workplace, policy) for policy in policies if _has_log(policy)),
    )
    for copy in copies:
        if copy.store in workplace.stores:
            wrong = copy.verified_at is not None and copy.verified_at > latest
            yield copy._replace(verified_at=None) if wrong else copy


def _has_log(policy: Policy) -> bool:
    return any(METHODS[policy.target.engine][rule.method].continuous for rule in policy.backups)


def _log_copies(workplace: Workplace, policy: Policy) -> Iterator[StoredCopy]:
    readings = workplace.catalog.verified.readings(policy.policy)
    for name in policy.stores:
        try:
            for copy in stored_logs(workplace.stores[name], policy.policy):
                reading = readings.get((copy.subject, name))
                yield copy._replace(verified_at=reading.at) if reading else copy
        except StoreError:
            continue


@dataclass
class _Reading:
    """With what is read, and the stores that stopped answering meanwhile."""

    identities: Sequence[KeyFile]
    reporter: Reporter
    out: dict[str, StoreError] = field(default_factory=dict)


def _read_policy(
    workplace: Workplace, policy: Policy, copies: Sequence[StoredCopy], reading: _Reading, result: ReadResult
) -> None:
    """Read what is due of one policy; raise for damage and for stores out of reach once all was tried."""
    load_site_signing_key(workplace.site)  # what cannot be recorded in the end is not worth the reading
    with (
        recorded_run(workplace.catalog, workplace.clock, "verify", policy.policy) as running,
        reader_lease(workplace, policy.policy, {copy.store for copy in copies}, reading.reporter),
    ):
        recorder = _Recorder(workplace, policy, running)
        damaged: list[tuple[StoredCopy, Finding]] = []
        try:
            for copy in copies:
                if copy.store in reading.out:
                    continue
                try:
                    findings = _read_copy(workplace, copy, reading, recorder)
                except StoreError as error:
                    reading.out[copy.store] = error
                    continue
                if findings is not None:
                    damaged += [(copy, finding) for finding in findings]
                    result.read.append((copy, findings))
        finally:
            recorder.write()
            running.outcome = recorder.outcome
        if damaged:
            raise IntegrityError(
                f"policy {policy.policy} has stored bytes that are not as they were signed: {damaged[0][1].message}",
                details=[finding.message for _, finding in damaged[1:5]],
                hints=[f"drkit check {policy.policy}"],
            )
        for unreachable in reading.out.values():
            raise unreachable


def _read_copy(
    workplace: Workplace, copy: StoredCopy, reading: _Reading, recorder: _Recorder
) -> tuple[Finding, ...] | None:
    """Read one copy and note it; return what is wrong with it, None when it is gone since it was planned."""
    if "/" in copy.subject:
        log = verify_log(workplace, copy, reading.identities, reading.reporter)
        if log is None:
            return None
        recorder.add(copy, log.sha256, log.repo_id, log.findings, decrypted=log.decrypted)
        return log.findings
    try:
        entry = workplace.catalog.artifact(copy.subject)
    except CatalogError:
        return None
    here = dataclasses.replace(entry, stores=(copy.store,))
    (found,) = verify_artifact(workplace, here, reading.identities, reading.reporter)
    findings = tuple(found.findings)
    recorder.add(copy, entry.manifest_sha256, entry.manifest.repo_id, findings, decrypted=found.decrypted)
    return findings


class _Recorder:
    """Writes what was read into signed records, now and then and at the end."""

    def __init__(self, workplace: Workplace, policy: Policy, running: RunningRun) -> None:
        self._workplace = workplace
        self._policy = policy
        self._stretch = Stretch(running.run_id, workplace.clock())
        self._since_s = time.monotonic()
        self.outcome = {"copies": 0, "bytes": 0, "damaged": 0}

    def add(
        self, copy: StoredCopy, sha256: str | None, repo_id: str | None, findings: Sequence[Finding], *, decrypted: bool
    ) -> None:
        """Note a copy that was read to its end; tell of damage at once."""
        now = self._workplace.clock()
        self._stretch.repo_id = repo_id or self._stretch.repo_id
        reading = CopyReading(
            subject=copy.subject,
            sha256=sha256,
            store=copy.store,
            size_bytes=copy.size_bytes,
            decrypted=decrypted,
            sound=not findings,
            verified_at=now,
        )
        self._stretch.add(reading, findings)
        self.outcome["copies"] += 1
        self.outcome["bytes"] += copy.size_bytes
        if findings:
            self.outcome["damaged"] += 1
            facts = {"policy": copy.policy, "subject": copy.subject, "store": copy.store, "error": findings[0].message}
            self._workplace.catalog.add_event("copy.damaged", now, facts)
        if time.monotonic() - self._since_s >= _RECORD_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the record of what was read since the last one, if anything was."""
        if self._stretch.readings:
            record_verification(self._workplace, self._policy, self._stretch)
            now = self._workplace.clock()
            self._stretch, self._since_s = Stretch(new_id(now), now), time.monotonic()
