"""Taking a backup: engine stream, sealed on its way into the first store, committed by a signed manifest.

Write order (R2 of docs/format.md): data, signature, manifest. Until the manifest stands, nothing that is in the store
is a backup; from then on it is one, whatever happens to copies and catalog.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from drkit import __version__, age, bucket, stores
from drkit.canonical import canonical_json
from drkit.chain import Link, next_link
from drkit.chunk_memory import keep_chunk_memory
from drkit.credentials import resolve
from drkit.engines import BackupOptions, BackupSession, Engine, ParentBase, Part
from drkit.engines.registry import find_engine
from drkit.errors import ConfigError, IntegrityError, SourceError
from drkit.fingerprint import data_words, total_rows
from drkit.keys import known_recipients, recipient_fingerprint, recipients_of, trust_of_recipient
from drkit.model import (
    INCREMENTAL_FEATURE,
    ArtifactEntry,
    Checksum,
    Compression,
    Coverage,
    Encryption,
    Manifest,
    ObjectRecord,
    OplogPosition,
    RecipientRecord,
)
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import ForeignManifest, open_sealed, recorded_version
from drkit.operations.base_states import BaseState, BaseStates, base_states
from drkit.operations.kept_bases import BASE, MANIFEST_KIND, forget_older, keep, kept_manifest
from drkit.operations.repository import ensure_repository, publish_trust, sweep_leftovers
from drkit.operations.running import RunningRun, new_id, recorded_run
from drkit.operations.selection import find_artifacts
from drkit.operations.side_by_side import Spare, Stop, side_by_side
from drkit.operations.signing_key import load_site_signing_key
from drkit.policy import BackupRule, Policy
from drkit.process import give_way
from drkit.signing import MANIFEST_NAMESPACE, sign, trust_of_signer
from drkit.stores import Store
from drkit.stream import Meter, compress, drain, prefetch
from drkit.units import format_bytes, format_count, format_duration, format_moment

_CLOCK_SKEW = timedelta(minutes=1)


@dataclass(frozen=True)
class BackupResult:
    """A committed artifact, where it is, and how long each copy took in seconds."""

    entry: ArtifactEntry
    took_s: dict[str, float]
    warnings: tuple[str, ...]
    run_id: str


@dataclass(frozen=True)
class _Sealing:
    """What every part of one artifact is made with."""

    policy: Policy
    store: Store
    artifact_id: str
    recipients: Sequence[age.Recipient]


def back_up(
    workplace: Workplace, policy: Policy, rule: BackupRule, reporter: Reporter, *, incremental: bool = False
) -> BackupResult:
    """Take one backup of ``policy`` by ``rule`` and commit it; with ``incremental`` only what changed since the newest.

    Raise the error that ended it; then no manifest exists, and what was uploaded is an orphan that nothing refers to.
    A required copy that fails raises too, although the manifest in the first store stands: `drkit store copy` goes on.
    """
    if incremental and rule.method != BASE:
        raise ConfigError(
            f"a {rule.method} cannot be incremental, only a base backup",
            hints=[f"drkit backup {policy.policy} --method base --incremental"],
        )
    engine = find_engine(policy.target.engine, rule.method)
    recipients = recipients_of(policy.encryption.recipients, accept_single_key=policy.encryption.accept_single_key)
    with ExitStack() as stack:
        running = stack.enter_context(recorded_run(workplace.catalog, workplace.clock, "backup", policy.policy))
        running.outcome = {"method": rule.method}
        states = stack.enter_context(base_states(workplace, running)) if rule.method == BASE else None
        job = _Job(workplace, policy, reporter, running, recipients)
        if incremental or rule.full_every:
            # A dump has no parent, and need not load what judges one.
            from drkit.operations.parent_base import find_parent, planned_parent
        if incremental:
            job.parent = find_parent(workplace, policy.policy)
        elif rule.full_every:
            job.parent, job.why_full = planned_parent(workplace, policy.policy, rule.full_every, running.run.started_at)
        job.states = states
        result = job.run(engine, rule)
        committed = {"artifact_id": result.entry.manifest.artifact_id, "stores": list(result.entry.stores)}
        running.outcome = {**(running.outcome or {}), **committed}
        return result


class _Job:
    """One backup in progress; its methods are the steps of docs/architecture.md, section 6."""

    def __init__(
        self,
        workplace: Workplace,
        policy: Policy,
        reporter: Reporter,
        running: RunningRun,
        recipients: Sequence[age.Recipient],
    ) -> None:
        self.workplace = workplace
        self.policy = policy
        self.reporter = reporter
        self.running = running
        self.names = known_recipients(workplace.site.keys.signers.parent)
        self.signing_key = load_site_signing_key(workplace.site)
        self.started_at = running.run.started_at
        self.stop = Stop()
        self.sealing = _Sealing(policy, workplace.stores[policy.stores[0]], new_id(self.started_at), recipients)
        self.parent: ParentBase | None = None
        self.why_full = ""
        self.states: BaseStates | None = None
        self.oplog_timeline = 1

    def run(self, engine: Engine, rule: BackupRule) -> BackupResult:
        """Do the steps in order."""
        clock_s = time.monotonic()
        give_way()
        keep_chunk_memory()
        repo_id = ensure_repository(self.workplace, self.policy.stores)
        self._require_own_repository()
        self._publish_keys()
        self.oplog_timeline = self._oplog_timeline()
        url = resolve(self.policy.target.url, folder=self.workplace.site.folder)
        with engine.open_backup(url, self._options(rule)) as session:
            self.reporter.line(f"{self.policy.policy}  {rule.method}  artifact {self.sealing.artifact_id}")
            self.reporter.line(f"  preflight   ok   {session.preflight.summary}")
            earlier_warnings = [*filter(None, [self.why_full]), *session.preflight.warnings]
            for warning in earlier_warnings:
                self.reporter.line(f"  warning     {warning}")
            work = partial(self._stream, session, Spare(session.preflight, local=self.sealing.store.traits.local))
            objects = side_by_side(work, session.preflight.parts, session.preflight.parallel, self.stop)
            details = session.details()
            later_warnings = [*session.warnings, *self._clock_warnings(session.snapshot_at)]
            warnings = (*earlier_warnings, *later_warnings)
            for warning in later_warnings:
                self.reporter.line(f"  warning     {warning}")
            manifest = self._manifest(repo_id, rule, session, objects, details)
        self._reach("copied")
        self._report_content(manifest, details)
        self._reach("waiting_for_wal")
        self._read_back(manifest)
        entry = self._commit(manifest, details)
        self._reach("complete")
        took_s = {self.sealing.store.name: time.monotonic() - clock_s}
        if self.policy.stores[1:]:
            from drkit.operations.artifact_copying import copy_to_all

            entry, copied_s = copy_to_all(self.workplace, entry, self.policy.stores[1:], self.reporter)
            took_s |= {name: took_s[self.sealing.store.name] + seconds for name, seconds in copied_s.items()}
        for name in self.policy.stores:
            sweep_leftovers(self.workplace.stores[name], self.workplace.clock())
        timings = ", ".join(f"{name} {format_duration(timedelta(seconds=took))}" for name, took in took_s.items())
        self.reporter.line(f"  committed   {timings}")
        return BackupResult(entry, took_s, warnings, self.running.run_id)

    def _reach(self, state: BaseState) -> None:
        if self.states is not None:
            self.states.reach(state)

    def _require_own_repository(self) -> None:
        """Write nothing into a store whose artifacts are all strangers to it: its document was changed, not they."""
        name = self.sealing.store.name
        found = find_artifacts(self.workplace, self.policy.policy)
        foreign = [item for item in found.refused if item.store == name and isinstance(item.error, ForeignManifest)]
        if foreign and not any(name in entry.stores for entry in found.entries):
            raise foreign[0].error

    def _publish_keys(self) -> None:
        now = self.started_at
        documents = [
            trust_of_recipient(item, name=self.names.get(str(item)), valid_from=now) for item in self.sealing.recipients
        ]
        documents += [trust_of_signer(signer, valid_from=now) for signer in self.workplace.signers]
        publish_trust(self.sealing.store, documents)

    def _options(self, rule: BackupRule) -> BackupOptions:
        target = self.policy.target
        return BackupOptions(
            databases=target.databases,
            exclude_tables=target.exclude_tables,
            fingerprint=self.policy.fingerprint,
            lock_timeout_s=rule.lock_timeout.total_seconds(),
            idle_timeout_s=rule.idle_timeout.total_seconds(),
            work_folder=self.workplace.work_folder,
            via=rule.via,
            parallel=rule.parallel,
            rate_bytes_s=rule.max_rate,
            parent=self.parent,
            expected_s=self._last_took_s(rule.method),
        )

    def _last_took_s(self, method: str) -> float | None:
        """Return how long the newest backup of that method took."""
        entries = self.workplace.catalog.artifacts(self.policy.policy)
        newest = next((entry.manifest for entry in entries if entry.manifest.method == method), None)
        return None if newest is None else (newest.ended_at - newest.started_at).total_seconds()

    def _stream(self, session: BackupSession, spare: Spare, part: Part) -> ObjectRecord:
        """Move one part from the engine into the first store, measured on both sides of compression and sealing."""
        key = bucket.part_key(self.policy.policy, self.sealing.artifact_id, part.name)
        started_s = time.monotonic()
        with self.reporter.progress(part.label, part.expected_bytes) as progress:
            plain, stored = Meter(progress.advance), Meter()
            with (
                spare.working(part) as event,
                session.open_part(part) as source,
                prefetch(plain.measure(self.stop.watch(self._kept(part, source))), spare=event) as ahead,
                prefetch(compress(ahead, self.policy.compression_level), spare=event) as packed,
            ):
                info = self.sealing.store.put(key, stored.measure(age.encrypt(packed, self.sealing.recipients)))
        took_s = max(time.monotonic() - started_s, 0.001)
        self.reporter.line(
            f"  {part.label:<11} {format_bytes(plain.size_bytes)}  {format_bytes(plain.size_bytes / took_s)}/s"
            f"  {format_bytes(stored.size_bytes)} stored ({plain.size_bytes / max(stored.size_bytes, 1):.1f}x)"
            f"  {format_duration(timedelta(seconds=took_s))}"
        )
        return ObjectRecord(
            part=part.name,
            kind=part.kind,
            key=key,
            version_id=info.version_id,
            stored_bytes=stored.size_bytes,
            stored_sha256=stored.sha256,
            plain_bytes=plain.size_bytes,
            plain_sha256=plain.sha256,
            checksum=info.checksum,
        )

    def _kept(self, part: Part, source: Iterator[bytes]) -> Iterator[bytes]:
        """Keep the backup manifest on this host as well: the next incremental base builds on it."""
        return keep(source, self._kept_manifest) if part.kind == MANIFEST_KIND else source

    @property
    def _kept_manifest(self) -> Path:
        return kept_manifest(self.workplace.site, self.policy.policy, self.sealing.artifact_id)

    def _manifest(
        self,
        repo_id: str,
        rule: BackupRule,
        session: BackupSession,
        objects: Sequence[ObjectRecord],
        details: dict[str, Any],
    ) -> Manifest:
        seq, parents = next_link(self._links())
        sealed = b"".join(age.encrypt([canonical_json(details)], self.sealing.recipients))
        parent = session.preflight.parent
        return Manifest(
            features=(INCREMENTAL_FEATURE,) if parent else (),
            depends_on=(*parent.lineage, parent.artifact_id) if parent else (),
            repo_id=repo_id,
            policy=self.policy.policy,
            artifact_id=self.sealing.artifact_id,
            run_id=self.running.run_id,
            engine=self.policy.target.engine,
            method=rule.method,
            seq=seq,
            parents=parents,
            started_at=self.started_at,
            ended_at=self.workplace.clock(),
            covers=Coverage(from_at=session.snapshot_at, to_at=session.snapshot_at),
            objects=tuple(objects),
            compression=Compression(level=self.policy.compression_level),
            encryption=Encryption(recipients=tuple(self._record(item) for item in self.sealing.recipients)),
            tools={"drkit": __version__, **session.preflight.tools},
            children=tuple(session.children),
            written_to=self.sealing.store.name,
            fence=self.running.lease.fence,
            details=age.armor(sealed),
            position=session.position,
            degraded=session.degraded or None,
            oplog=self._oplog_position(session),
        )

    def _oplog_timeline(self) -> int:
        """Return the timeline of the oplog that is current, before anything is read."""
        if self.policy.target.engine != "mongodb":
            return self.oplog_timeline
        from drkit.operations.oplog_log import newest_timeline

        return newest_timeline(self.sealing.store, self.workplace.signers, self.policy.policy)

    def _oplog_position(self, session: BackupSession) -> OplogPosition | None:
        """Say to which timeline the dump belongs: the one that was current when it began.

        A place that only slices could make use of is no use where none are stored.
        """
        found = session.oplog_range
        if found is None or not (found.included or self.policy.rule("oplog")):
            return None
        return OplogPosition(timeline=self.oplog_timeline, **vars(found))

    def _record(self, recipient: age.Recipient) -> RecipientRecord:
        key_class: Literal["classic", "post-quantum"] = (
            "post-quantum" if recipient.key_class == "post-quantum" else "classic"
        )
        text = str(recipient)
        return RecipientRecord(fingerprint=recipient_fingerprint(text), name=self.names.get(text), key_class=key_class)

    def _links(self) -> list[Link]:
        """Return the chain so far, the vanished included: that one is missing must stay visible in the next one."""
        found = find_artifacts(self.workplace, self.policy.policy)
        for refused in found.refused:
            self.reporter.line(f"  warning     not believed: {refused.message}")
        for unreachable in found.unreachable:
            self.reporter.line(f"  warning     not reached: {unreachable.message}")
        entries = [*found.entries, *found.vanished, *found.out_of_reach]
        return [
            Link(item.manifest.artifact_id, item.manifest_sha256, item.manifest.seq, item.manifest.parents)
            for item in entries
        ]

    def _report_content(self, manifest: Manifest, details: dict[str, Any]) -> None:
        snapshot_at, position = manifest.covers.to_at, manifest.position
        if position is not None:
            self.reporter.line(
                f"  position    consistent at {position.stop_lsn} on timeline {position.timeline}, as of"
                f" {format_moment(snapshot_at)}"
            )
            return
        prints = [part["fingerprint"] for part in details["parts"].values() if "fingerprint" in part]
        holder, held = data_words(prints)
        holders = sum(len(items.get(holder, {})) for items in prints)
        rows = sum(total_rows(items) for items in prints)
        what = "counts and digests" if self.policy.fingerprint == "digests" else "counts"
        self.reporter.line(
            f"  fingerprint {format_count(holders, holder)}, {format_count(rows, held)}, {what} as of"
            f" {format_moment(snapshot_at)}"
        )

    def _clock_warnings(self, snapshot_at: datetime) -> list[str]:
        """Compare our clock, which names the artifact, with the server's, which dates what is in it."""
        ahead, behind = self.started_at - snapshot_at, snapshot_at - self.workplace.clock()
        if max(ahead, behind) < _CLOCK_SKEW:
            return []
        which = f"{format_duration(ahead)} ahead of" if ahead > behind else f"{format_duration(behind)} behind"
        return [f"this host's clock is {which} the database server's: timedatectl shows whether ours is kept right"]

    def _read_back(self, manifest: Manifest) -> None:
        """Ask the store for what it was given: sizes and its own checksums, or with ``full`` every byte."""
        store = self.sealing.store
        for item in manifest.objects:
            info = store.head(item.key, version_id=recorded_version(store, manifest, item))
            if info.size_bytes != item.stored_bytes or _contradict(info.checksum, item.checksum):
                raise IntegrityError(f"store {store.name} does not have {item.key} as it was written")
            if self.policy.read_back == "full":
                with open_sealed(store, manifest, item) as chunks:
                    drain(chunks)

    def _commit(self, manifest: Manifest, details: dict[str, Any]) -> ArtifactEntry:
        """Sign, then write signature and manifest; then index, which a later rebuild can do as well."""
        data = manifest.to_bytes()
        if len(data) > stores.LARGEST_DOCUMENT_BYTES:
            raise SourceError(
                f"the manifest of {manifest.policy} would have {len(data):,} bytes, and no more than"
                f" {stores.LARGEST_DOCUMENT_BYTES:,} can be read again: it names every table and its columns",
                hints=[f"share out the databases of {manifest.policy} among several policies: target.databases"],
            )
        key = bucket.manifest_key(manifest.policy, manifest.artifact_id)
        store = self.sealing.store
        self.running.require_lease(self.workplace.catalog)
        store.put(bucket.signature_key(key), [sign(data, self.signing_key, MANIFEST_NAMESPACE)])
        store.put(key, [data])
        entry = ArtifactEntry(manifest, hashlib.sha256(data).hexdigest(), (store.name,), details)
        self.workplace.catalog.index_artifact(entry)
        if store.name in self.workplace.site.locking_stores:
            # Where nothing is locked, a backup need not load what knows of retention.
            from drkit.operations.prune_locks import lock_as_planned

            lock_as_planned(self.workplace, self.policy, manifest, store.name)
        if manifest.method == BASE:
            forget_older(self._kept_manifest)
        return entry


def _contradict(seen: Checksum | None, sent: Checksum | None) -> bool:
    """Tell whether two checksums of one kind differ; how large the parts were is not among what a store answers."""
    if seen is None or sent is None or (seen.algorithm, seen.kind) != (sent.algorithm, sent.kind):
        return False
    return seen.value != sent.value
