"""Writing log manifests: signed, chained by ``previous``, first into the spool and from there into every store.

From the moment a manifest lies in the spool its files count as listed, and the next one names it; whatever happens
then, it is delivered as it is.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic

from drkit import bucket
from drkit.errors import StoreError
from drkit.keys import known_recipients, recipient_fingerprint, recipients_of, trust_of_recipient
from drkit.log_documents import LogManifest, LogRecord
from drkit.model import Compression, Encryption, RecipientRecord
from drkit.operations import Workplace
from drkit.operations.lanes import Lane
from drkit.operations.log_copying import open_listed
from drkit.operations.logs import LogScan, list_log_manifests, listed_files, read_logs
from drkit.operations.repository import ensure_repository, publish_trust
from drkit.operations.running import new_id
from drkit.operations.sealed_copy import copy_sealed
from drkit.operations.sealed_files import Sealing, write_durably
from drkit.operations.signing_key import load_site_signing_key
from drkit.operations.spool import Sealed, Spool
from drkit.operations.stored_log import Log
from drkit.policy import Policy
from drkit.signing import MANIFEST_NAMESPACE, sign, trust_of_signer
from drkit.wal import format_lsn, parse_lsn

_NEWEST_MANIFESTS = 128


@dataclass
class Pending(Generic[Log]):
    """A log manifest that does not yet stand in every store; ``key`` is where it is to stand."""

    manifest_id: str
    manifest: Log
    data: bytes
    signature: bytes
    key: str
    stored_in: set[str] = field(default_factory=set)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the files that it lists."""
        return frozenset(record.part for record in self.manifest.files)


class ManifestChain(ABC, Generic[Log]):
    """The chain of one policy's log manifests; not thread-safe, who ships sees to that.

    What wait for a store lie in ``folder``. ``document`` is the kind of manifest that the database has.
    """

    def __init__(
        self, workplace: Workplace, policy: Policy, folder: Path, lanes: Sequence[Lane], document: type[Log]
    ) -> None:
        self._workplace = workplace
        self._policy = policy
        self._folder = folder
        self._lanes = lanes
        self._document = document
        self._names = known_recipients(workplace.site.keys.signers.parent)
        self._signing_key = load_site_signing_key(workplace.site)
        encryption = policy.encryption
        recipients = recipients_of(encryption.recipients, accept_single_key=encryption.accept_single_key)
        self.sealing = Sealing(policy.policy, recipients, policy.compression_level)
        self.pending: list[Pending[Log]] = []
        self._head: str | None = None
        self._repo_id = ""

    @abstractmethod
    def ends(self, manifest: Log) -> tuple[str, str]:
        """Return what a manifest's key names as its first and its last."""

    def take_up(self) -> LogScan[Log]:
        """Take up the chain where it ends; return its newest manifests, oldest first.

        Raise StoreError when the first store is out of reach. Not the whole chain is read: what is older is looked up
        when its name turns up again.
        """
        first = self._lanes[0].store
        self._repo_id = ensure_repository(self._workplace, self._policy.stores)
        self._publish_keys()
        keys = list_log_manifests(first, self._policy.policy)[-_NEWEST_MANIFESTS:]
        scan = read_logs(first, self._workplace.signers, self._policy.policy, keys, self._document)
        self._head = scan.trusted[-1].sha256 if scan.trusted else None
        self.pending = list(self._load_pending())
        if self.pending:
            self._head = hashlib.sha256(self.pending[-1].data).hexdigest()
        return scan

    def _publish_keys(self) -> None:
        now = self._workplace.clock()
        documents = [
            trust_of_recipient(item, name=self._names.get(str(item)), valid_from=now)
            for item in self.sealing.recipients
        ]
        documents += [trust_of_signer(signer, valid_from=now) for signer in self._workplace.signers]
        publish_trust(self._lanes[0].store, documents)

    def _load_pending(self) -> Iterator[Pending[Log]]:
        for path in self._folder.iterdir():
            # One that was being written, or the second half of one that was being removed.
            if path.suffix != ".json" and not path.with_suffix(".json").exists():
                path.unlink()
        for path in sorted(self._folder.glob("*.json")):
            data = path.read_bytes()
            manifest = self._document.from_bytes(data, str(path))
            yield self._pending(path.stem, manifest, data, path.with_suffix(".sig").read_bytes())

    def _pending(self, manifest_id: str, manifest: Log, data: bytes, signature: bytes) -> Pending[Log]:
        key = bucket.log_manifest_key(manifest.policy, manifest.timeline, *self.ends(manifest), manifest_id)
        return Pending(manifest_id, manifest, data, signature, key)

    def common(self) -> dict[str, Any]:
        """Return the fields that every manifest of the chain has, the next one's."""
        return {
            "repo_id": self._repo_id,
            "policy": self._policy.policy,
            "engine": self._policy.target.engine,
            "previous": self._head,
            "made_at": self._workplace.clock(),
            "compression": Compression(level=self._policy.compression_level),
            "encryption": Encryption(recipients=tuple(self._recipients())),
            "written_to": self._lanes[0].name,
        }

    def append(self, manifest: Log) -> None:
        """Sign a manifest and keep it in the spool."""
        data = manifest.to_bytes()
        signature = sign(data, self._signing_key, MANIFEST_NAMESPACE)
        pending = self._pending(new_id(manifest.made_at), manifest, data, signature)
        write_durably(self._folder / f"{pending.manifest_id}.sig", signature)
        write_durably(self._folder / f"{pending.manifest_id}.json", data)
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

    def deliver(self, stored_in: Mapping[str, set[str]]) -> list[Pending[Log]]:
        """Put pending manifests into each store that has all their files, in order; return those that now stand in all.

        ``stored_in`` says which stores have the files of the spool; one that is not there any more was let go of
        because its manifest stands.
        Raise the first StoreError after every store had its turn.
        """
        failure: StoreError | None = None
        for lane in self._lanes:
            try:
                self._deliver_to(lane, stored_in)
            except StoreError as error:
                failure = failure or error
        done = []
        while self.pending and self.pending[0].stored_in >= {lane.name for lane in self._lanes}:
            done.append(self.pending.pop(0))
        if failure is not None and not done:
            raise failure
        return done

    def _deliver_to(self, lane: Lane, stored_in: Mapping[str, set[str]]) -> None:
        for pending in self.pending:
            if lane.name in pending.stored_in:
                continue
            if any(lane.name not in stored_in[name] for name in pending.names & stored_in.keys()):
                return
            with lane.asking() as store:
                store.put(bucket.signature_key(pending.key), [pending.signature])
                store.put(pending.key, [pending.data])
            pending.stored_in.add(lane.name)

    def bring(self, name: str, lane: Lane) -> None:
        """Bring a listed file into a store from the others, where the sealed copy in the spool is damaged.

        A store that has it is asked for nothing. Raise StoreError or IntegrityError when none of the others has it.
        """
        pending = next(item for item in list(self.pending) if name in item.names)
        record = next(record for record in pending.manifest.files if record.part == name)
        others = [item.store for item in self._lanes if item is not lane]
        with lane.asking() as store:
            opening = partial(open_listed, pending.manifest, record)
            copy_sealed(others or [store], store, record, opening, lambda _: None)

    def forget(self, pending: Pending[Log]) -> None:
        """Remove a manifest that stands in every store from the spool."""
        for suffix in (".json", ".sig"):
            (self._folder / f"{pending.manifest_id}{suffix}").unlink(missing_ok=True)


class LogChain(ManifestChain[LogManifest]):
    """The chain of the manifests of PostgreSQL's log."""

    def __init__(self, workplace: Workplace, policy: Policy, spool: Spool, lanes: Sequence[Lane]) -> None:
        super().__init__(workplace, policy, spool.manifests, lanes, LogManifest)

    def ends(self, manifest: LogManifest) -> tuple[str, str]:
        """Return the names of the first and the last file, of a partial segment that of the segment."""
        names = [record.part for record in manifest.files]
        first, last = (name if len(name) < 24 else name[:24] for name in (min(names), max(names)))
        return first, last

    def recover(self) -> list[LogRecord]:
        """Take up the chain where it ends; return the files that its newest manifests list. See `take_up`."""
        return list(listed_files(self.take_up()))

    def write(self, batch: Sequence[Sealed], segment_bytes: int) -> None:
        """Sign a manifest of ``batch``, files of one timeline without a gap, and keep it in the spool."""
        manifest = LogManifest(
            **self.common(),
            timeline=batch[0].timeline,
            segment_bytes=segment_bytes,
            from_lsn=format_lsn(min(item.begin_lsn for item in batch)),
            to_lsn=format_lsn(max(end_lsn(item, segment_bytes) for item in batch)),
            files=tuple(item.record for item in batch),
        )
        self.append(manifest)


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
