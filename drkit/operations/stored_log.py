"""What a policy's stores hold of the log: signed log manifests, what lies beside them, and the histories.

A file counts when it is listed with the size that was signed. One that is listed and not signed yet (the tail of the
last minute, R12 of docs/format.md) counts too, and whoever uses it says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, NamedTuple, TypeVar

from drkit import age, bucket
from drkit.errors import IntegrityError, KeyUnavailable, StoreError, StoreMissing
from drkit.keys import KeyFile
from drkit.log_documents import LogManifest, LogRecord, SignedLog
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.known_signatures import KnownSignatures
from drkit.operations.log_audit import LogLink
from drkit.operations.signed import Form, read_signed
from drkit.recovery import BasePoint, LogFile, LogState, log_file
from drkit.signing import Signer
from drkit.stores import ObjectInfo, Store
from drkit.stream import Meter, checked, decompress
from drkit.wal import (
    DEFAULT_SEGMENT_BYTES,
    Segment,
    Switch,
    classify,
    parse_history,
    parse_history_name,
    parse_lsn,
    parse_partial_name,
)

_READERS = 8
_HISTORY_LIMIT_BYTES = 1 << 20

Log = TypeVar("Log", bound=SignedLog)
"""The kind of log manifest that a database has."""

_Outcome = tuple[LogManifest, bytes] | IntegrityError
"""A log manifest with its very bytes, or why it is not believed."""


class StoredFile(NamedTuple):
    """One file of the log and the stores that have it; ``record`` is None while no signed manifest names it.

    ``written_to`` is the store that the record's version id belongs to.
    """

    file: LogFile
    key: str
    stores: tuple[str, ...]
    record: LogRecord | None = None
    written_to: str = ""


@dataclass(frozen=True)
class PolicyLogs:
    """Everything that is stored of a policy's log, by file name; ``doubts`` say what was not believed or reached."""

    files: Mapping[str, StoredFile]
    segment_bytes: int
    doubts: Sequence[str] = ()
    unreachable: Sequence[StoreError] = ()
    links: Sequence[LogLink] = ()

    @property
    def unsigned(self) -> list[str]:
        """Return the names that no signed manifest has yet."""
        return sorted(name for name, stored in self.files.items() if stored.record is None)


@dataclass
class _Collected:
    """What is found, store by store."""

    records: dict[str, tuple[LogRecord, LogManifest]] = field(default_factory=dict)
    places: dict[str, list[tuple[str, ObjectInfo]]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    unreachable: list[StoreError] = field(default_factory=list)
    links: dict[str, LogLink] = field(default_factory=dict)


def read_logs(
    workplace: Workplace, policy: str, repo_ids: Iterable[str] = (), known: KnownSignatures | None = None
) -> PolicyLogs:
    """List every store and believe the log manifests that are signed; ``repo_ids`` are those of the policy's artifacts.

    A store that cannot be reached is reported, not fatal. A manifest that is not believed, or two that contradict each
    other, become a doubt, and what only they speak of counts as unsigned or not at all. What is ``known`` to be signed
    is read all the same, and its signature not verified again.
    """
    found = _Collected()
    form = Form(LogManifest.from_bytes, lambda manifest: manifest.made_at, known, LogManifest.from_known_bytes)
    for name, store in workplace.stores.items():
        try:
            infos = list(store.list(bucket.logs_prefix(policy)))
            _note_objects(found, name, infos)
            read = partial(_read, store, workplace.signers, policy, form)
            for manifest in _manifests(read, infos, found, in_parallel=not store.traits.local):
                _note_manifest(found, manifest, frozenset(repo_ids))
        except StoreError as error:
            found.unreachable.append(error)
            found.doubts.append(f"not reached: {error.message}")
    sizes = [manifest.segment_bytes for _, manifest in found.records.values()]
    segment_bytes = max(sizes, default=DEFAULT_SEGMENT_BYTES)
    files = dict(_files(found, segment_bytes))
    return PolicyLogs(files, segment_bytes, found.doubts, found.unreachable, list(found.links.values()))


def _note_objects(found: _Collected, store: str, infos: Sequence[ObjectInfo]) -> None:
    for info in infos:
        parsed = bucket.parse_log_key(info.key)
        if parsed:
            found.places.setdefault(parsed[2], []).append((store, info))


def _manifests(
    read: Callable[[str], _Outcome], infos: Sequence[ObjectInfo], found: _Collected, *, in_parallel: bool
) -> Iterator[LogManifest]:
    """Yield the manifests of one store that are new; note those not believed as doubts.

    They are read several at once where a store is far; a folder answers at once, and threads would only get in each
    other's way.
    """
    keys = [info.key for info in infos if bucket.parse_log_manifest_key(info.key) and info.key not in found.links]
    with ThreadPoolExecutor(_READERS, "log") as pool:
        for key, outcome in zip(keys, (pool.map if in_parallel else map)(read, keys), strict=True):
            if isinstance(outcome, IntegrityError):
                found.doubts.append(f"not believed: {outcome.message}")
            else:
                manifest, data = outcome
                found.links[key] = LogLink(key, hashlib.sha256(data).hexdigest(), manifest.previous)
                yield manifest


def _read(store: Store, signers: Sequence[Signer], policy: str, form: Form[LogManifest], key: str) -> _Outcome:
    try:
        return _read_in_place(store, signers, policy, key, form)
    except IntegrityError as error:
        return error


def read_trusted_log(
    store: Store, signers: Sequence[Signer], policy: str, key: str, document: type[Log]
) -> tuple[Log, bytes]:
    """Read and verify one log manifest of the kind ``document``; return it with its very bytes.

    Raise IntegrityError when it is unsigned, changed, signed by a stranger, or not what its key says.
    """
    form: Form[Log] = Form(document.from_bytes, lambda manifest: manifest.made_at)
    return _read_in_place(store, signers, policy, key, form)


def _read_in_place(
    store: Store, signers: Sequence[Signer], policy: str, key: str, form: Form[Log]
) -> tuple[Log, bytes]:
    what = f"log manifest {key} in store {store.name}"
    manifest, data, _ = read_signed(store, signers, key, what, form)
    place = bucket.parse_log_manifest_key(key)
    if place is None or (manifest.policy, manifest.timeline) != (policy, place.timeline):
        raise IntegrityError(f"{what} is that of timeline {manifest.timeline} of policy {manifest.policy}")
    folder = bucket.timeline_prefix(policy, manifest.timeline)
    for item in manifest.files:
        if item.key != bucket.log_key_in(folder, item.part):
            raise IntegrityError(f"{what} names an object that is not its own: {item.key}")
    return manifest, data


def _note_manifest(found: _Collected, manifest: LogManifest, repo_ids: frozenset[str]) -> None:
    if repo_ids and manifest.repo_id not in repo_ids:
        found.doubts.append(f"not believed: a log manifest of repository {manifest.repo_id} lies in this one")
        return
    for record in manifest.files:
        known = found.records.get(record.part)
        if known is not None and known[0].plain_sha256 != record.plain_sha256:
            found.doubts.append(f"{record.part} is signed twice with different content; neither is used")
            found.places.pop(record.part, None)
        found.records[record.part] = (record, manifest)


def _files(found: _Collected, segment_bytes: int) -> Iterator[tuple[str, StoredFile]]:
    for name, places in found.places.items():
        key = places[0][1].key
        known = found.records.get(name)
        if known is None:
            unsigned = _unsigned(name, places[0][1], segment_bytes)
            if unsigned is not None:
                yield name, StoredFile(unsigned, key, tuple(store for store, _ in places))
            continue
        record, manifest = known
        whole = tuple([store for store, info in places if info.size_bytes == record.stored_bytes])
        if len(whole) < len(places):
            cut = ", ".join(f"{info.size_bytes:,} bytes in {store}" for store, info in places if store not in whole)
            found.doubts.append(f"{name} has another size than was signed: {cut}, not {record.stored_bytes:,}")
        # A backup history file is kept and checked like the rest; recovery does not ask for it.
        if whole and record.kind != "backup":
            try:
                yield name, StoredFile(log_file(record, manifest), key, whole, record, manifest.written_to)
            except ValueError as error:
                found.doubts.append(f"not believed: {error}")
    for name, (record, _) in found.records.items():
        if name not in found.places and record.kind != "partial":
            found.doubts.append(f"{name} is gone from every store that can be reached, and a signed manifest names it")


def _unsigned(name: str, info: ObjectInfo, segment_bytes: int) -> LogFile | None:
    """Describe a file that no manifest names by its own name; how far a partial reaches is not known, so it is left."""
    kind = classify(name)
    try:
        if kind == "segment":
            segment = Segment.parse(name, segment_bytes)
            span = (segment.timeline, segment.start_lsn, segment.end_lsn)
        elif kind == "history":
            span = (parse_history_name(name), 0, 0)
        elif kind == "partial":
            segment, _ = parse_partial_name(name, segment_bytes)
            span = (segment.timeline, segment.start_lsn, segment.start_lsn)
        else:
            return None
    except ValueError:
        return None
    return LogFile(name, kind, *span, None, None, info.size_bytes, info.modified_at)


def base_points(entries: Iterable[ArtifactEntry]) -> list[BasePoint]:
    """Return the artifacts from which a log can be replayed."""
    return [
        BasePoint(
            artifact_id=manifest.artifact_id,
            timeline=position.timeline,
            start_lsn=parse_lsn(position.start_lsn),
            stop_lsn=parse_lsn(position.stop_lsn),
            stop_at=manifest.covers.to_at,
            stored_bytes=manifest.stored_bytes,
            plain_bytes=manifest.plain_bytes,
        )
        for manifest in (entry.manifest for entry in entries)
        if (position := manifest.position) is not None
    ]


@dataclass(frozen=True)
class LogReader:
    """Reads files of the log: from whichever store has a sound copy, every digest compared."""

    workplace: Workplace
    identities: Sequence[KeyFile]

    def read(self, stored: StoredFile, limit_bytes: int) -> bytes:
        """Return a file's content; raise as `copy` does. For small files."""
        content = io.BytesIO()
        self.copy(stored, content, limit_bytes)
        return content.getvalue()

    def copy(self, stored: StoredFile, target: BinaryIO, limit_bytes: int) -> None:
        """Write a file's content to ``target``, which is empty; raise the first store's error when no copy is sound.

        Raise IntegrityError when it is damaged, gone, or larger than ``limit_bytes``.
        """
        failures: list[IntegrityError | StoreError | KeyUnavailable] = []
        for name in stored.stores:
            try:
                with self._open_in(stored, name) as chunks:
                    for chunk in limited(chunks, limit_bytes, f"WAL file {stored.file.name}"):
                        target.write(chunk)
            except (IntegrityError, StoreError, KeyUnavailable) as error:
                failures.append(error)
                target.seek(0)
                target.truncate()
            else:
                return
        raise failures[0]

    @contextmanager
    def _open_in(self, stored: StoredFile, name: str) -> Iterator[Iterator[bytes]]:
        store, record = self.workplace.stores[name], stored.record
        what = f"WAL file {stored.file.name} in store {name}"
        version = record.version_id if record is not None and name == stored.written_to else None
        identities = [key.identity for key in self.identities]
        try:
            with store.open(stored.key, version_id=version) as sealed:
                if record is not None:
                    sealed = checked(
                        sealed, Meter(), size_bytes=record.stored_bytes, sha256=record.stored_sha256, what=what
                    )
                plain = named(decompress(age.decrypt(sealed, identities)), what)
                if record is not None:
                    plain = checked(
                        plain, Meter(), size_bytes=record.plain_bytes, sha256=record.plain_sha256, what=what
                    )
                yield plain
        except StoreMissing as error:
            raise IntegrityError(f"{what} is gone") from error


def named(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Pass ``chunks`` on; say ``what`` is wrong when they turn out to be."""
    try:
        yield from chunks
    except (IntegrityError, KeyUnavailable) as error:
        message = error.message if error.message.startswith(what) else f"{what} cannot be read: {error.message}"
        raise type(error)(message, details=error.details, hints=error.hints) from error


def limited(chunks: Iterable[bytes], limit_bytes: int, what: str) -> Iterator[bytes]:
    """Pass ``chunks`` on; raise IntegrityError naming ``what`` before more than ``limit_bytes`` of them."""
    passed = 0
    for chunk in chunks:
        passed += len(chunk)
        if passed > limit_bytes:
            raise IntegrityError(f"{what} is larger than {limit_bytes:,} bytes")
        yield chunk


def log_state(
    logs: PolicyLogs, bases: Sequence[BasePoint], histories: Mapping[int, tuple[Switch, ...]], policy: str
) -> LogState:
    """Put together what planning looks at."""
    return LogState(bases, [stored.file for stored in logs.files.values()], histories, logs.segment_bytes, policy)


def read_histories(logs: PolicyLogs, reader: LogReader) -> dict[int, bytes]:
    """Return the content of every history file that is stored, by timeline; raise IntegrityError for a damaged one."""
    return {
        stored.file.timeline: reader.read(stored, _HISTORY_LIMIT_BYTES)
        for stored in logs.files.values()
        if stored.file.kind == "history"
    }


def signed_histories(logs: PolicyLogs) -> dict[int, tuple[Switch, ...]]:
    """Return how timelines follow on each other, as is signed in the clear beside the history files."""
    return {
        stored.file.timeline: tuple(Switch(item.timeline, parse_lsn(item.at_lsn)) for item in stored.record.ancestors)
        for stored in logs.files.values()
        if stored.record is not None and stored.record.ancestors
    }


def parsed_histories(contents: Mapping[int, bytes]) -> dict[int, tuple[Switch, ...]]:
    """Read what the history files say."""
    return {timeline: parse_history(timeline, text.decode(errors="replace")) for timeline, text in contents.items()}


def with_base(state: LogState, artifact_id: str) -> LogState:
    """Return the state with that base alone."""
    return dataclasses.replace(state, bases=[base for base in state.bases if base.artifact_id == artifact_id])
