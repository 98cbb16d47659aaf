"""Signed records of drills: what was done, what was found, bound to the artifact and chained to the record before.

The record is readable without keys as far as operations go; names of data objects are in ``details``, an age file for
the recipients of the artifact (R6 of docs/format.md). Records are only ever added.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from drkit import __version__, age, bucket
from drkit.canonical import canonical_json, parse_json
from drkit.errors import IntegrityError, StoreError
from drkit.keys import recipients_of
from drkit.model import Document, Moment, Sha256
from drkit.operations import Reporter, Workplace
from drkit.operations.drill_outcome import DrillOutcome
from drkit.operations.signing_key import load_site_signing_key
from drkit.signing import EVIDENCE_NAMESPACE, Signer, sign, verify
from drkit.stores import Store, read_object
from drkit.units import format_utc, parse_utc


class DrillRecord(Document):
    """The signed record of one drill; times are whole milliseconds, because canonical JSON has no floats.

    ``recovered`` says how far a replay got; it is absent where nothing was replayed. ``ended_in`` is the phase in which
    a drill was that ran out of its time, absent from all others. ``blames`` says what a failed drill failed for, where
    that is not what the artifact holds.
    """

    LATER_FIELDS: ClassVar[frozenset[str]] = frozenset({"recovered", "ended_in", "blames"})

    format: Literal["drkit-evidence"] = "drkit-evidence"
    version: Literal[1] = 1
    kind: Literal["drill"] = "drill"
    run_id: str
    repo_id: str | None
    policy: str
    drill: str
    artifact_id: str | None
    manifest_sha256: Sha256 | None
    selection: dict[str, Any]
    started_at: Moment
    ended_at: Moment
    disaster_at: Moment
    restored_to_at: Moment | None
    levels: dict[str, str]
    phases_ms: dict[str, int]
    rto_ms: int | None
    rpo_ms: int | None
    rto_objective_ms: int | None
    rpo_objective_ms: int | None
    verdict: str
    differences: int
    expected_differences: int
    findings: int
    teardown: str
    scratch: dict[str, str]
    runner: dict[str, str]
    previous: Sha256 | None
    details: str
    recovered: dict[str, Any] | None = None
    ended_in: str | None = None
    blames: str | None = None


def record_drill(workplace: Workplace, outcome: DrillOutcome, reporter: Reporter) -> None:
    """Sign the record of a drill and store it in every store of its policy; index it.

    When no store takes it, the outcome becomes ``inconclusive`` and carries the error: what cannot be shown is not
    proven. A store that fails while another one took it is a finding, which the record cannot hold.
    """
    record = _record(workplace, outcome)
    data = record.to_bytes()
    key = bucket.evidence_key(record.policy, record.run_id)
    signature = sign(data, load_site_signing_key(workplace.site), EVIDENCE_NAMESPACE)
    stored: list[str] = []
    failures: list[StoreError] = []
    for name in outcome.policy.stores:
        store = workplace.stores[name]
        try:
            store.put(bucket.signature_key(key), [signature])
            store.put(key, [data])
        except StoreError as error:
            failures.append(error)
            outcome.findings.append(f"the record is not stored in {name}: {error.message}")
            reporter.line(f"  evidence    not stored in {name}: {error.message}")
        else:
            stored.append(name)
    if not stored:
        outcome.verdict, outcome.error = "inconclusive", failures[0]
        return
    if failures and outcome.verdict == "passed":
        outcome.verdict = "passed_with_findings"
    workplace.catalog.index_evidence(record.model_dump(mode="json"), hashlib.sha256(data).hexdigest(), stored)
    outcome.stored_in = tuple(stored)


def _record(workplace: Workplace, outcome: DrillOutcome) -> DrillRecord:
    manifest = outcome.entry.manifest if outcome.entry else None
    rule, goals = outcome.request.rule, outcome.policy.objectives
    return DrillRecord(
        run_id=outcome.run_id,
        repo_id=manifest.repo_id if manifest else None,
        policy=outcome.policy.policy,
        drill=rule.name,
        artifact_id=manifest.artifact_id if manifest else None,
        manifest_sha256=outcome.entry.manifest_sha256 if outcome.entry else None,
        selection={
            "pick": rule.pick,
            "window_ms": _ms(rule.window),
            "seed": outcome.seed,
            "candidates": outcome.candidates,
            "level": rule.level,
        },
        started_at=outcome.started_at,
        ended_at=outcome.ended_at or workplace.clock(),
        disaster_at=outcome.disaster_at,
        restored_to_at=outcome.restored_to_at,
        levels={name: level.result for name, level in outcome.levels.items()},
        phases_ms={name: round(seconds * 1000) for name, seconds in outcome.phases_s.items()},
        rto_ms=_ms(outcome.rto),
        rpo_ms=_ms(outcome.rpo),
        rto_objective_ms=_ms(goals.rto),
        rpo_objective_ms=_ms(goals.rpo),
        verdict=outcome.verdict,
        differences=len(outcome.differences),
        expected_differences=len(outcome.expected_differences),
        findings=len(outcome.findings),
        teardown="leaked" if outcome.leaked else outcome.teardown,
        scratch=outcome.scratch,
        runner={"drkit": __version__, "python": platform.python_version(), "machine": platform.machine()},
        previous=previous_record(workplace, outcome.policy.policy),
        details=_sealed_details(outcome),
        recovered=_recovered(outcome),
        ended_in=outcome.ended_in,
        blames=outcome.blames,
    )


def _recovered(outcome: DrillOutcome) -> dict[str, Any] | None:
    found = outcome.recovered
    if found is None:
        return None
    return {
        "timeline": found.timeline,
        **({"oplog_ts": found.oplog_ts} if found.oplog_ts else {"lsn": found.lsn}),
        "newest_commit_at": format_utc(found.newest_commit_at),
        "segments": found.segments,
        "wal_bytes": found.wal_bytes,
        **({"heartbeat": found.heartbeat.document()} if found.heartbeat else {}),
    }


def _ms(duration: timedelta | None) -> int | None:
    return None if duration is None else round(duration.total_seconds() * 1000)


def previous_record(workplace: Workplace, policy: str) -> str | None:
    """Return the digest of the policy's newest record that this host knows."""
    records = workplace.catalog.evidence_entries(policy=policy)
    return records[0].sha256 if records else None


def _sealed_details(outcome: DrillOutcome) -> str:
    encryption = outcome.policy.encryption
    recipients = recipients_of(encryption.recipients, accept_single_key=encryption.accept_single_key)
    document = {
        "levels": {name: {"summary": level.summary, "lines": level.lines} for name, level in outcome.levels.items()},
        "differences": [_plain(item) for item in outcome.differences],
        "expected_differences": [_plain(item) for item in outcome.expected_differences],
        "findings": outcome.findings,
        "error": outcome.error.message if outcome.error else None,
    }
    return age.armor(b"".join(age.encrypt([canonical_json(document)], recipients)))


def _plain(difference: Any) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | str | None) else str(value) for name, value in vars(difference).items()
    }


@dataclass(frozen=True)
class StoredRecord:
    """A verified record as one store holds it, with the exact bytes that were signed."""

    record: dict[str, Any]
    data: bytes
    signature: bytes


def read_record(store: Store, signers: Sequence[Signer], policy: str, run_id: str) -> StoredRecord:
    """Read a record and its signature from one store.

    Raise StoreMissing when either is not there, IntegrityError when they are not a pinned signer's or belong elsewhere.
    """
    key = bucket.evidence_key(policy, run_id)
    where = f"{key} in store {store.name}"
    data, signature = read_object(store, key), read_object(store, bucket.signature_key(key))
    record, _ = _verified(data, signature, signers, where)
    if (record.get("policy"), record.get("run_id")) != (policy, run_id):
        raise IntegrityError(f"{where} is the record of run {record.get('run_id')} of policy {record.get('policy')}")
    return StoredRecord(record, data, signature)


def verify_record(path: Path, signers: Sequence[Signer]) -> tuple[dict[str, Any], Signer]:
    """Check a record and its ``.sig`` file offline; return it and its signer.

    Raise IntegrityError when the signature is missing, does not fit, or is not a pinned signer's.
    """
    data = path.read_bytes()
    signature_path = path.with_name(path.name + ".sig")
    if not signature_path.exists():
        raise IntegrityError(f"{path} is not signed: {signature_path.name} is missing")
    return _verified(data, signature_path.read_bytes(), signers, str(path))


def _verified(data: bytes, signature: bytes, signers: Sequence[Signer], what: str) -> tuple[dict[str, Any], Signer]:
    """Return the record and who signed it, as of the moment at which it says that it ended."""
    verify(data, signature, EVIDENCE_NAMESPACE, signers, what=what)
    record = parse_json(data, what)
    ended_at = parse_utc(str(record.get("ended_at", "")))
    return record, verify(data, signature, EVIDENCE_NAMESPACE, signers, what=what, at=ended_at)
