"""Writing log manifests: signed, chained by ``previous``, first into the spool and from there into every store.

From the moment a manifest lies in the spool its files count as listed, and the next one names it; whatever happens
then, it is delivered as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from drkit import bucket
from drkit.errors import StoreError
from drkit.keys import known_recipients, recipient_fingerprint, recipients_of, trust_of_recipient
from drkit.model import Compression, Encryption, LogManifest, LogRecord, RecipientRecord
from drkit.operations import Workplace
from drkit.operations.lanes import Lane
from drkit.operations.logs import list_log_manifests, read_listed
from drkit.operations.repository import ensure_repository, publish_trust
from drkit.operations.running import new_id
from drkit.operations.signing_key import load_site_signing_key
from drkit.operations.spool import Sealed, Sealing, Spool, write_durably
from drkit.policy import Policy
from drkit.signing import MANIFEST_NAMESPACE, sign, trust_of_signer
from drkit.wal import format_lsn, parse_lsn

_NEWEST_MANIFESTS = 128


@dataclass
class Pending:
    """A log manifest that does not yet stand in every store."""

    manifest_id: str
    manifest: LogManifest
    data: bytes
    signature: bytes
    stored_in: set[str] = field(default_factory=set)

    @property
    def key(self) -> str:
        """Return the key under which it is stored."""
        names = [record.part for record in self.manifest.files]
        first, last = (name if len(name) < 24 else name[:24] for name in (min(names), max(names)))
        return bucket.log_manifest_key(self.manifest.policy, self.manifest.timeline, first, last, self.manifest_id)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the files that it lists."""
        return frozenset(record.part for record in self.manifest.files)


class LogChain:
    """The chain of one policy's log manifests; not thread-safe, `drkit.operations.ship` sees to that."""

    def __init__(self, workplace: Workplace, policy: Policy, spool: Spool, lanes: Sequence[Lane]) -> None:
        self._workplace = workplace
        self._policy = policy
        self._spool = spool
        self._lanes = lanes
        self._names = known_recipients(workplace.site.keys.signers.parent)
        self._signing_key = load_site_signing_key(workplace.site)
        encryption = policy.encryption
        recipients = recipients_of(encryption.recipients, accept_single_key=encryption.accept_single_key)
        self.sealing = Sealing(policy.policy, recipients, policy.compression_level)
        self.pending: list[Pending] = []
        self._head: str | None = None
        self._repo_id = ""

    def recover(self) -> list[LogRecord]:
        """Take up the chain where it ends; return the files that its newest manifests list.

        Raise StoreError when the first store is out of reach. Not the whole chain is read: what is older is looked up
        when its name turns up again.
        """
        first = self._lanes[0].store
        self._repo_id = ensure_repository(self._workplace, self._policy.stores)
        self._publish_keys()
        keys = list_log_manifests(first, self._policy.policy)[-_NEWEST_MANIFESTS:]
        scan = read_listed(first, self._workplace.signers, self._policy.policy, keys)
        self._head = scan.trusted[-1].sha256 if scan.trusted else None
        self.pending = list(self._load_pending())
        if self.pending:
            self._head = hashlib.sha256(self.pending[-1].data).hexdigest()
        return list(scan.records())

    def _publish_keys(self) -> None:
        now = self._workplace.clock()
        documents = [
            trust_of_recipient(item, name=self._names.get(str(item)), valid_from=now)
            for item in self.sealing.recipients
        ]
        documents += [trust_of_signer(signer, valid_from=now) for signer in self._workplace.signers]
        publish_trust(self._lanes[0].store, documents)

    def _load_pending(self) -> Iterator[Pending]:
        for path in self._spool.manifests.iterdir():
            # One that was being written, or the second half of one that was being removed.
            if path.suffix != ".json" and not path.with_suffix(".json").exists():
                path.unlink()
        for path in sorted(self._spool.manifests.glob("*.json")):
            data = path.read_bytes()
            manifest = LogManifest.from_bytes(data, str(path))
            yield Pending(path.stem, manifest, data, path.with_suffix(".sig").read_bytes())

    def write(self, batch: Sequence[Sealed], segment_bytes: int) -> None:
        """Sign a manifest of ``batch``, files of one timeline without a gap, and keep it in the spool."""
        now = self._workplace.clock()
        manifest = LogManifest(
            repo_id=self._repo_id,
            policy=self._policy.policy,
            engine=self._policy.target.engine,
            timeline=batch[0].timeline,
            segment_bytes=segment_bytes,
            from_lsn=format_lsn(min(item.begin_lsn for item in batch)),
            to_lsn=format_lsn(max(end_lsn(item, segment_bytes) for item in batch)),
            files=tuple(item.record for item in batch),
            previous=self._head,
            made_at=now,
            compression=Compression(level=self._policy.compression_level),
            encryption=Encryption(recipients=tuple(self._recipients())),
            written_to=self._lanes[0].name,
        )
        data = manifest.to_bytes()
        signature = sign(data, self._signing_key, MANIFEST_NAMESPACE)
        pending = Pending(new_id(now), manifest, data, signature)
        write_durably(self._spool.manifests / f"{pending.manifest_id}.sig", signature)
        write_durably(self._spool.manifests / f"{pending.manifest_id}.json", data)
        self.pending.append(pending)
        self._head = hashlib.sha256(data).hexdigest()

    def _recipients(self) -> Iterator[RecipientRecord]:
        for recipient in self.sealing.recipients:
            text = str(recipient)
            yield RecipientRecord(
                fingerprint=recipient_fingerprint(text),
                name=self._names.get(text),
                key_class="post-quantum" if recipient.key_class == "post-quantum" else "classic",
            )

    def deliver(self, sealed: Mapping[str, Sealed]) -> list[Pending]:
        """Put pending manifests into each store that has all their files, in order; return those that now stand in all.

        ``sealed`` are the files in the spool; one that is not there any more was let go of because its manifest stands.
        Raise the first StoreError after every store had its turn.
        """
        failure: StoreError | None = None
        for lane in self._lanes:
            try:
                self._deliver_to(lane, sealed)
            except StoreError as error:
                lane.failed(error)
                failure = failure or error
        done = []
        while self.pending and self.pending[0].stored_in >= {lane.name for lane in self._lanes}:
            done.append(self.pending.pop(0))
        if failure is not None and not done:
            raise failure
        return done

    def _deliver_to(self, lane: Lane, sealed: Mapping[str, Sealed]) -> None:
        for pending in self.pending:
            if lane.name in pending.stored_in:
                continue
            if any(lane.name not in sealed[name].stored_in for name in pending.names & sealed.keys()):
                return
            lane.check()
            lane.store.put(bucket.signature_key(pending.key), [pending.signature])
            lane.store.put(pending.key, [pending.data])
            lane.worked()
            pending.stored_in.add(lane.name)

    def forget(self, pending: Pending) -> None:
        """Remove a manifest that stands in every store from the spool."""
        for suffix in (".json", ".sig"):
            (self._spool.manifests / f"{pending.manifest_id}{suffix}").unlink(missing_ok=True)


def end_lsn(item: Sealed, segment_bytes: int) -> int:
    """Return where the content of a file ends."""
    if item.record.end_lsn:
        return parse_lsn(item.record.end_lsn)
    return item.begin_lsn + (segment_bytes if item.record.kind == "segment" else 0)


def next_batch(ready: Collection[Sealed], segment_bytes: int, limit: int) -> list[Sealed]:
    """Return the first files for one manifest: segments that follow on each other, with what is left after them.

    A history file, or any other that is no segment, is listed alone.
    """
    order = sorted(ready, key=lambda item: (item.timeline, item.record.kind != "history", item.begin_lsn, item.name))
    batch = order[:1]
    if batch and batch[0].record.kind in ("segment", "partial"):
        for item in order[1:limit]:
            follows = item.timeline == batch[0].timeline and item.begin_lsn == end_lsn(batch[-1], segment_bytes)
            if batch[-1].record.kind != "segment" or item.record.kind not in ("segment", "partial") or not follows:
                break
            batch.append(item)
    return batch
