"""The signed record of a verification: which copies were read, when, and whether they were as they were signed."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from drkit import __version__, age, bucket
from drkit.canonical import canonical_json
from drkit.errors import StoreError
from drkit.keys import recipients_of
from drkit.model import Count, Document, Finding, Moment, Sha256
from drkit.operations import Workplace
from drkit.operations.evidence import previous_record
from drkit.operations.signing_key import load_site_signing_key
from drkit.policy import Policy
from drkit.signing import EVIDENCE_NAMESPACE, sign


class CopyReading(Document):
    """One copy that was read: ``subject`` is an artifact's id or the key of a log manifest.

    ``sha256`` is that of the manifest, and binds the reading to what was signed; absent where it could not be believed.
    """

    subject: str
    sha256: Sha256 | None
    store: str
    size_bytes: Count
    decrypted: bool
    sound: bool
    verified_at: Moment


class VerificationRecord(Document):
    """The signed record of one stretch of reading; ``details`` are the findings, sealed for the policy's recipients."""

    format: Literal["drkit-evidence"] = "drkit-evidence"
    version: Literal[1] = 1
    kind: Literal["verification"] = "verification"
    run_id: str
    repo_id: str | None
    policy: str
    level: Literal["intact"] = "intact"
    verdict: Literal["passed", "failed"]
    started_at: Moment
    ended_at: Moment
    copies: tuple[CopyReading, ...]
    runner: dict[str, str]
    previous: Sha256 | None
    details: str


@dataclass
class Stretch:
    """What was read since the last record was written."""

    run_id: str
    started_at: datetime
    repo_id: str | None = None
    readings: list[CopyReading] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, reading: CopyReading, findings: Sequence[Finding]) -> None:
        """Note a copy that was read to its end."""
        self.readings.append(reading)
        self.findings += findings


def record_verification(workplace: Workplace, policy: Policy, stretch: Stretch) -> None:
    """Sign what was read and put the record into every store of the policy; index it.

    Raise the first StoreError when no store takes it: what cannot be shown was not done, and is read again.
    """
    record = VerificationRecord(
        run_id=stretch.run_id,
        repo_id=stretch.repo_id,
        policy=policy.policy,
        verdict="failed" if stretch.findings else "passed",
        started_at=stretch.started_at,
        ended_at=workplace.clock(),
        copies=tuple(stretch.readings),
        runner={"drkit": __version__, "python": platform.python_version(), "machine": platform.machine()},
        previous=previous_record(workplace, policy.policy),
        details=_sealed(policy, stretch.findings),
    )
    data = record.to_bytes()
    key = bucket.evidence_key(policy.policy, record.run_id)
    signature = sign(data, load_site_signing_key(workplace.site), EVIDENCE_NAMESPACE)
    stored: list[str] = []
    failures: list[StoreError] = []
    for name in policy.stores:
        try:
            workplace.stores[name].put(bucket.signature_key(key), [signature])
            workplace.stores[name].put(key, [data])
        except StoreError as error:
            failures.append(error)
        else:
            stored.append(name)
    if not stored:
        raise failures[0]
    workplace.catalog.index_evidence(record.model_dump(mode="json"), hashlib.sha256(data).hexdigest(), stored)


def _sealed(policy: Policy, findings: Sequence[Finding]) -> str:
    encryption = policy.encryption
    recipients = recipients_of(encryption.recipients, accept_single_key=encryption.accept_single_key)
    document = {"findings": [vars(item) for item in findings]}
    return age.armor(b"".join(age.encrypt([canonical_json(document)], recipients)))
