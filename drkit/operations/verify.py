"""Verifying without a server: level 0 (exists) and level 1 (intact) of one artifact in one store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

from drkit import bucket
from drkit.engines.registry import PartCheck, find_part_check
from drkit.errors import IntegrityError, KeyUnavailable, StoreError, StoreMissing
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Finding, Manifest, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import (
    TrustedManifest,
    open_details,
    open_plain,
    open_sealed,
    read_recorded,
    recorded_version,
)
from drkit.operations.lineage import why_unrestorable
from drkit.operations.reader_lease import reader_lease
from drkit.operations.selection import PolicyArtifacts, Refusal, choose_artifact, find_artifacts
from drkit.stores import Store
from drkit.stream import Meter, drain
from drkit.units import format_bytes, format_count

Level = Literal["exists", "intact"]


@dataclass
class Verification:
    """What was found of one artifact in one store; ``decrypted`` is False where no identity was at hand.

    ``notes`` say what of the content could not be looked at.
    """

    artifact_id: str
    policy: str
    store: str
    level: Level
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read_bytes: int = 0
    decrypted: bool = False

    @property
    def ok(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.findings


def verify_artifact(
    workplace: Workplace,
    entry: ArtifactEntry,
    identities: Sequence[KeyFile],
    reporter: Reporter,
    *,
    level: Level = "intact",
) -> list[Verification]:
    """Verify an artifact in every store that holds it; an object at fault is named in a finding, nothing is raised.

    Raise StoreError only when a store cannot be reached: what was not read is not judged.
    """
    results = []
    for name in entry.stores:
        store = workplace.stores[name]
        result = Verification(entry.manifest.artifact_id, entry.manifest.policy, name, level)
        _judge(result, "manifest", partial(verify_exists, workplace, store, entry))
        if result.ok and entry.manifest.depends_on:
            _judge_parents(result, find_artifacts(workplace, entry.manifest.policy), entry)
        if level == "intact" and result.ok:
            _verify_content(store, entry.manifest, identities, reporter, result)
        results.append(result)
    return results


def verify_entries(
    workplace: Workplace,
    entries: Sequence[ArtifactEntry],
    identities: Sequence[KeyFile],
    reporter: Reporter,
    *,
    level: Level = "intact",
) -> list[Verification]:
    """Verify artifacts in every store that holds them (`verify_artifact`); leases keep what is read."""
    results: list[Verification] = []
    for policy, own in groupby(entries, key=lambda entry: entry.manifest.policy):
        here = list(own)
        stores = {name for entry in here for name in entry.stores} if level == "intact" else set()
        with reader_lease(workplace, policy, stores, reporter):
            for entry in here:
                results += verify_artifact(workplace, entry, identities, reporter, level=level)
    return results


def _judge_parents(result: Verification, found: PolicyArtifacts, entry: ArtifactEntry) -> None:
    broken = why_unrestorable(found, entry)
    if broken and not found.unreachable:
        result.findings.append(Finding("parent-lost", entry.manifest.artifact_id, broken))


def verify_exists(workplace: Workplace, store: Store, entry: ArtifactEntry) -> TrustedManifest:
    """Level 0: the manifest is signed and in its place, and every object is there with its size and checksum.

    Raise IntegrityError naming the first object that is not.
    """
    trusted = read_recorded(store, workplace.signers, entry)
    for item in entry.manifest.objects:
        _verify_stored(store, entry.manifest, item)
    return trusted


def _verify_stored(store: Store, manifest: Manifest, item: ObjectRecord) -> None:
    """Compare what the store says of one object with what is recorded, without reading it."""
    what = f"object {item.key} in store {store.name}"
    try:
        info = store.head(item.key, version_id=recorded_version(store, manifest, item))
    except StoreMissing as error:
        raise IntegrityError(f"{what} is missing") from error
    if info.size_bytes != item.stored_bytes:
        raise IntegrityError(f"{what} has {info.size_bytes:,} bytes, {item.stored_bytes:,} were recorded")
    if info.checksum and item.checksum and info.checksum.algorithm == item.checksum.algorithm:
        _compare_checksum(what, info.checksum.value, item.checksum.value)


def _compare_checksum(what: str, seen: str, recorded: str) -> None:
    if seen != recorded:
        raise IntegrityError(f"{what} has the store's checksum {seen}, {recorded} was recorded")


def _verify_content(
    store: Store, manifest: Manifest, identities: Sequence[KeyFile], reporter: Reporter, result: Verification
) -> None:
    """Level 1: read every byte; decrypt and compare with what the engine produced, if an identity fits."""
    keys, details = _fitting(manifest, identities, result)
    check_part = find_part_check(manifest.engine, manifest.method)
    with reporter.progress(f"{manifest.artifact_id[:10]} {store.name}", manifest.stored_bytes) as progress:
        for item in manifest.objects:
            meter = Meter(progress.advance)
            check = _noting(check_part, details.get("parts", {}).get(item.part), result.notes) if check_part else drain
            read = partial(_read_object, store, manifest, item, _Opening(keys, check), meter)
            _judge(result, item.key, read)
            result.read_bytes += meter.size_bytes
    result.decrypted = bool(keys)


def _noting(
    check_part: PartCheck, facts: Mapping[str, Any] | None, notes: list[str]
) -> Callable[[Iterator[bytes]], None]:
    def check(chunks: Iterator[bytes]) -> None:
        notes.extend(check_part(facts, chunks))

    return check


@dataclass(frozen=True)
class _Opening:
    """Who can open an object, and what is to be made of its content."""

    keys: Sequence[KeyFile]
    check: Callable[[Iterator[bytes]], object]


def _read_object(store: Store, manifest: Manifest, item: ObjectRecord, opening: _Opening, meter: Meter) -> None:
    """Read one object and open it if there are keys; raise IntegrityError naming it."""
    try:
        with open_sealed(store, manifest, item, meter) as sealed:
            if not opening.keys:
                drain(sealed)
                return
            with open_plain(sealed, item, [key.identity for key in opening.keys]) as plain:
                opening.check(plain)
    except (IntegrityError, KeyUnavailable) as error:
        # Decryption stumbles over damage before the stored bytes are read to their end. The digest that is signed says
        # whether these are at fault, or what was sealed in them.
        with open_sealed(store, manifest, item) as sealed:
            drain(sealed)
        raise IntegrityError(
            f"object {item.key} in store {store.name} is as it was signed, and yet {error.message}"
        ) from error


def _fitting(
    manifest: Manifest, identities: Sequence[KeyFile], result: Verification
) -> tuple[Sequence[KeyFile], dict[str, Any]]:
    """Return the identities if one of them opens the artifact, and its details, which must then be sound as well."""
    try:
        details = open_details(manifest, identities)
    except KeyUnavailable:
        return [], {}
    except IntegrityError as error:
        result.findings.append(Finding("details-damaged", "details", error.message))
        return [], {}
    return identities, details


def _judge(result: Verification, subject: str, step: Callable[[], object]) -> None:
    try:
        step()
    except StoreMissing as error:
        result.findings.append(Finding("object-missing", subject, error.message))
    except IntegrityError as error:
        result.findings.append(Finding("object-damaged", subject, error.message))


def describe_verification(result: Verification) -> str:
    """Say one result in a line, with its findings below."""
    head = f"{result.artifact_id}  {result.store:<10} {'ok' if result.ok else 'DAMAGED'}"
    if result.level == "intact" and result.ok:
        how = (
            "read, decrypted, digests equal" if result.decrypted else "read, digests equal; not decrypted: no identity"
        )
        head += f"  {format_bytes(result.read_bytes)} {how}"
    elif result.ok:
        head += "  signature, sizes and checksums as recorded; not read"
    lines = [f"    {line}" for line in (*(finding.message for finding in result.findings), *result.notes)]
    return "\n".join([head, *lines])


def describe_verifications(
    results: Sequence[Verification], refused: Sequence[Refusal], vanished: Sequence[ArtifactEntry] = ()
) -> str:
    """Say every result, then what was not believed and what is gone, then the count and what to do."""
    lines = [describe_verification(result) for result in results]
    lines += [f"not believed: {item.message}" for item in refused]
    lines += [f"artifact {entry.manifest.artifact_id} is in no store any more" for entry in vanished]
    damaged = sum(not result.ok for result in results) + len(refused)
    words = [f"{damaged} damaged"] if damaged else []
    words += [f"{format_count(len(vanished), 'artifact')} gone"] if vanished else []
    copies = format_count(len(results) + len(refused), "copy", "copies")
    if results or refused or vanished:
        lines.append(f"{copies} verified, {', '.join(words) or 'all sound'}")
    else:
        lines.append("there is nothing to verify yet")
    return "\n".join([*lines, *(f"hint: {hint}" for hint in _what_to_do(results, refused, vanished))])


def _what_to_do(
    results: Sequence[Verification], refused: Sequence[Refusal], vanished: Sequence[ArtifactEntry]
) -> list[str]:
    hints = []
    for result in results:
        if result.ok:
            continue
        sound = [other.store for other in results if other.artifact_id == result.artifact_id and other.ok]
        if sound:
            prefix = bucket.artifact_prefix(result.policy, result.artifact_id)
            hints.append(
                f"the copy in {' and '.join(sound)} is sound: take {prefix} out of store {result.store},"
                " then drkit store copy"
            )
        else:
            hints.append(f"no copy of {result.artifact_id} is sound: drkit backup {result.policy} makes a new artifact")
    if refused or vanished:
        hints.append("drkit check")
    return list(dict.fromkeys(hints))


def select_entries(
    workplace: Workplace, artifacts: Sequence[str], *, everything: bool
) -> tuple[list[ArtifactEntry], list[Refusal], list[ArtifactEntry]]:
    """Return the artifacts to verify, the manifests that were not believed, and those that no store has any more.

    By the start of their ids; or all; or the newest of each policy. Their ``stores`` are all that ever had a copy.
    Raise RecoveryGap for an id that nobody knows.
    """
    entries: list[ArtifactEntry] = []
    refused: list[Refusal] = []
    vanished: list[ArtifactEntry] = []
    unreachable: list[StoreError] = []
    known = {entry.manifest.policy for entry in workplace.catalog.artifacts()}
    for policy in sorted({*workplace.policies, *known}):
        found = find_artifacts(workplace, policy)
        unreachable += found.unreachable
        refused += found.refused
        vanished += found.unexplained
        there = [_with_lost(entry, found) for entry in (*found.entries, *found.out_of_reach)]
        entries += there if everything or artifacts else _with_parents(there[:1], there)
    if not artifacts:
        return entries, refused, vanished

    named = tuple(prefix.upper() for prefix in artifacts)
    refused = [item for item in refused if item.artifact_id.startswith(named)]
    vanished = [entry for entry in vanished if entry.manifest.artifact_id.startswith(named)]
    merged = PolicyArtifacts(entries, [], [], unreachable)
    sound = [entry.manifest.artifact_id for entry in entries]
    strange = [item.artifact_id for item in refused] + [entry.manifest.artifact_id for entry in vanished]
    chosen = [
        choose_artifact(merged, "any", artifact_id=artifact_id)
        for artifact_id in artifacts
        if _begins(sound, artifact_id) or not _begins(strange, artifact_id)
    ]
    return _with_parents(chosen, entries), refused, vanished


def _with_parents(chosen: Sequence[ArtifactEntry], entries: Sequence[ArtifactEntry]) -> list[ArtifactEntry]:
    """Put what an incremental base builds on before it: only together they are worth something."""
    known = {entry.manifest.artifact_id: entry for entry in entries}
    wanted = dict.fromkeys(
        name for entry in chosen for name in (*entry.manifest.depends_on, entry.manifest.artifact_id)
    )
    return [known[name] for name in wanted if name in known]


def _begins(ids: Sequence[str], prefix: str) -> bool:
    return any(artifact_id.startswith(prefix.upper()) for artifact_id in ids)


def _with_lost(entry: ArtifactEntry, found: PolicyArtifacts) -> ArtifactEntry:
    """Add the stores that had a copy once: that it is gone is for the verification to say."""
    return replace(entry, stores=(*entry.stores, *found.lost.get(entry.manifest.artifact_id, ())))
