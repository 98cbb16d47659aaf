"""Which artifacts of a policy there are, which of them can be believed, and which one is meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from drkit import bucket
from drkit.errors import IntegrityError, RecoveryGap, StoreError, StoreUnavailable
from drkit.model import ArtifactEntry
from drkit.operations import Workplace
from drkit.operations.artifacts import read_manifest, require_repository
from drkit.operations.repository import find_repo_id
from drkit.operations.running import moment_of_id
from drkit.signing import Signer
from drkit.stores import Store
from drkit.units import format_moment

DUMP = "dump"
"""The method of artifacts that are loaded into a database; those of other methods become servers of their own."""
_SHOWN_DOUBTS = 5


@dataclass(frozen=True)
class Refusal:
    """A manifest that was not believed: in whose place it lies, and why."""

    artifact_id: str
    store: str
    error: IntegrityError

    @property
    def message(self) -> str:
        """Return the reason."""
        return self.error.message


@dataclass(frozen=True)
class PolicyArtifacts:
    """What is known of a policy's artifacts.

    ``entries`` are in a reachable store, newest first, and their ``stores`` are where the manifest is right now;
    ``lost`` names the stores that had a copy of an entry once. ``vanished`` are in the catalog only. ``out_of_reach``
    are in stores that could not be asked, and ``unreachable`` says why not. ``refused`` are the manifests that were not
    believed.
    """

    entries: list[ArtifactEntry]
    vanished: list[ArtifactEntry]
    refused: list[Refusal]
    unreachable: list[StoreError]
    lost: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    out_of_reach: list[ArtifactEntry] = field(default_factory=list)
    read_tombstones: Callable[[], frozenset[str]] = frozenset

    @cached_property
    def buried(self) -> frozenset[str]:
        """Return the digests of the manifests that a signed tombstone explains; read only when somebody asks."""
        return self.read_tombstones()

    @property
    def unexplained(self) -> list[ArtifactEntry]:
        """Return the vanished ones that no tombstone explains."""
        return [entry for entry in self.vanished if entry.manifest_sha256 not in self.buried]


def find_artifacts(workplace: Workplace, policy: str) -> PolicyArtifacts:
    """List the stores, believe what the catalog already verified, verify and index what is new.

    Restoring therefore needs no catalog and no policy file. A store that cannot be reached is reported, not fatal, as
    long as another one can be.
    """
    known = {entry.manifest.artifact_id: entry for entry in workplace.catalog.artifacts(policy)}
    found: dict[str, list[str]] = {}
    refused: list[Refusal] = []
    unreachable: dict[str, StoreError] = {}
    for name, store in workplace.stores.items():
        try:
            keys = [bucket.parse_manifest_key(item.key) for item in store.list(bucket.artifacts_prefix(policy))]
            ids = [key[1] for key in keys if key]
            refused += _believe(workplace, store, policy, ids, known)
        except StoreError as error:
            unreachable[name] = error
            continue
        strange = {item.artifact_id for item in refused if item.store == name}
        for artifact_id in ids:
            if artifact_id not in strange:
                found.setdefault(artifact_id, []).append(name)
    if unreachable and len(unreachable) == len(workplace.stores):
        raise next(iter(unreachable.values()))
    result = _sorted_out(workplace, known, found, refused, unreachable)
    stores = [store for name, store in workplace.stores.items() if name not in unreachable]
    return dataclasses.replace(result, read_tombstones=lambda: _tombstones(stores, workplace.signers, policy))


def _sorted_out(
    workplace: Workplace,
    known: Mapping[str, ArtifactEntry],
    found: Mapping[str, list[str]],
    refused: list[Refusal],
    unreachable: Mapping[str, StoreError],
) -> PolicyArtifacts:
    entries, vanished, out_of_reach = [], [], []
    lost: dict[str, tuple[str, ...]] = {}
    refused_at = {(item.artifact_id, item.store) for item in refused}
    for artifact_id, entry in known.items():
        present = {*found.get(artifact_id, ()), *(set(entry.stores) & set(unreachable))}
        here = dataclasses.replace(entry, stores=tuple(name for name in entry.stores if name in present))
        if artifact_id in found:
            entries.append(here)
            gone = (set(entry.stores) & set(workplace.stores)) - present
            lost[artifact_id] = tuple(sorted(name for name in gone if (artifact_id, name) not in refused_at))
        elif present:
            out_of_reach.append(here)
        elif artifact_id not in {item.artifact_id for item in refused}:
            vanished.append(entry)
    return PolicyArtifacts(
        entries=_newest_first(entries),
        vanished=_newest_first(vanished),
        refused=refused,
        unreachable=list(unreachable.values()),
        lost={artifact_id: names for artifact_id, names in lost.items() if names},
        out_of_reach=_newest_first(out_of_reach),
    )


def _newest_first(entries: list[ArtifactEntry]) -> list[ArtifactEntry]:
    """Sort by moment, as far as clocks can be trusted: what names another as its parent was taken after it.

    Otherwise an artifact of a day on which a clock was a year ahead would be the newest one for a year.
    """
    not_after: dict[str, datetime] = {}

    def age(entry: ArtifactEntry) -> tuple[datetime, int, str]:
        manifest = entry.manifest
        at = min(manifest.covers.to_at, not_after.get(entry.manifest_sha256, manifest.covers.to_at))
        return at, manifest.seq, manifest.artifact_id

    for entry in sorted(entries, key=lambda entry: entry.manifest.seq, reverse=True):
        at = age(entry)[0]
        for parent in entry.manifest.parents:
            not_after[parent] = min(at, not_after.get(parent, at))
    return sorted(entries, key=age, reverse=True)


def _tombstones(stores: Sequence[Store], signers: Sequence[Signer], policy: str) -> frozenset[str]:
    # Asked for only where something is missing.
    from drkit.operations.inventory import read_tombstones

    return frozenset(link.sha256 for store in stores for link in read_tombstones(store, signers, policy))


def _believe(
    workplace: Workplace, store: Store, policy: str, ids: Sequence[str], known: dict[str, ArtifactEntry]
) -> list[Refusal]:
    """Verify and index the manifests of one store that are new to ``known``; return those that are not believed."""
    refused: list[Refusal] = []
    repository: str | None = None
    strange: IntegrityError | None = None
    try:
        repository = find_repo_id(store)
    except IntegrityError as error:
        strange = error
    for artifact_id in ids:
        try:
            if strange is not None:
                raise strange
            if artifact_id in known and store.name in known[artifact_id].stores:
                require_repository(store, known[artifact_id].manifest, repository)
            else:
                trusted = read_manifest(store, workplace.signers, policy, artifact_id)
                require_repository(store, trusted.manifest, repository)
                workplace.catalog.index_artifact(ArtifactEntry(trusted.manifest, trusted.sha256, (store.name,)))
                known[artifact_id] = workplace.catalog.artifact(artifact_id)
        except IntegrityError as error:
            refused.append(Refusal(artifact_id, store.name, error))
        else:
            # Where the bucket does not say which repository it is, its oldest manifest does.
            repository = repository or known[artifact_id].manifest.repo_id
    return refused


def choose_artifact(
    found: PolicyArtifacts,
    policy: str,
    *,
    artifact_id: str | None = None,
    at: datetime | None = None,
    method: str | None = None,
) -> ArtifactEntry:
    """Pick one artifact: by the start of its id, the newest not after ``at``, or the newest.

    Without an id only those of ``method`` count, if it is given.

    Never an older one in silence: when a newer one is damaged or was deleted, raise IntegrityError, and the older one
    must be asked for by its id. Raise RecoveryGap when there is none, saying what there is instead.
    """
    if artifact_id is not None:
        return _choose_by_id(found, policy, artifact_id)
    candidates = [entry for entry in found.entries if method in (None, entry.manifest.method)]
    entries = [entry for entry in candidates if at is None or entry.manifest.covers.to_at <= at]
    chosen = entries[0] if entries else None
    _refuse_in_doubt(found, policy, chosen, at, method)
    if chosen is not None:
        return chosen
    if at is not None and candidates:
        oldest = format_moment(candidates[-1].manifest.covers.to_at)
        raise RecoveryGap(
            f"policy {policy} has no artifact that is not after {format_moment(at)}; the oldest is of {oldest}",
            details=_refusals(found),
            hints=[f"drkit list {policy}"],
        )
    _refuse_unread(found, policy)
    raise RecoveryGap(
        f"policy {policy} has no artifact that can be trusted in any store",
        details=_refusals(found),
        hints=[f"drkit check {policy}", f"drkit backup {policy}"],
    )


def _choose_by_id(found: PolicyArtifacts, policy: str, artifact_id: str) -> ArtifactEntry:
    prefix = artifact_id.upper()
    matches = [entry for entry in found.entries if entry.manifest.artifact_id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        _refuse_by_id(found, policy, prefix)
        _refuse_unread(found, policy)
    which = f"no artifact of policy {policy} begins" if not matches else f"{len(matches)} artifacts of {policy} begin"
    raise RecoveryGap(f"{which} with {artifact_id}", details=_refusals(found), hints=[f"drkit list {policy}"])


def _refuse_by_id(found: PolicyArtifacts, policy: str, prefix: str) -> None:
    """Raise when the artifact that is meant is there or was, and cannot be used."""
    hints = [f"drkit check {policy}", f"drkit list {policy}"]
    for refusal in found.refused:
        if refusal.artifact_id.startswith(prefix):
            raise IntegrityError(refusal.message, details=refusal.error.details, hints=hints) from refusal.error
    for entry in found.unexplained:
        if entry.manifest.artifact_id.startswith(prefix):
            raise IntegrityError(_gone(entry), hints=hints)
    for entry in found.out_of_reach:
        if entry.manifest.artifact_id.startswith(prefix):
            raise _out_of_reach(found, entry)


def _refuse_in_doubt(
    found: PolicyArtifacts, policy: str, chosen: ArtifactEntry | None, at: datetime | None, method: str | None
) -> None:
    """Raise when a newer artifact than ``chosen``, and not after ``at``, is or was there and cannot be used.

    Of what was not believed or is unknown the method is not known either, so it counts for every method.
    """
    vanished = (_gone(entry) for entry in found.unexplained if _is_newer(entry, chosen, at, method))
    doubts = [*_newer_refused(found, chosen, at), *vanished, *_gaps(found, chosen, at)]
    if doubts:
        newer = "the artifact of that moment" if at else "the newest artifact"
        raise IntegrityError(
            f"{newer} of policy {policy} cannot be used: {doubts[0]}",
            details=[*_shortened(doubts[1:]), *(f"not reached: {error.message}" for error in found.unreachable)],
            hints=[f"drkit check {policy}", *_older(policy, chosen)],
        )
    for entry in found.out_of_reach:
        if _is_newer(entry, chosen, at, method):
            raise _out_of_reach(found, entry, _older(policy, chosen))


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN_DOUBTS
    return [*lines[:_SHOWN_DOUBTS], *([f"and {more} more, older ones"] if more > 0 else [])]


def _older(policy: str, chosen: ArtifactEntry | None) -> list[str]:
    if chosen is None:
        return []
    manifest = chosen.manifest
    moment = format_moment(manifest.covers.to_at)
    return [f"drkit restore {policy} --artifact {manifest.artifact_id}   (the newest that is sound, of {moment})"]


def _newer_refused(found: PolicyArtifacts, chosen: ArtifactEntry | None, at: datetime | None) -> Iterator[str]:
    usable = {entry.manifest.artifact_id for entry in found.entries}
    for refusal in sorted(found.refused, key=lambda item: item.artifact_id, reverse=True):
        started_at = moment_of_id(refusal.artifact_id)
        newer = chosen is None or refusal.artifact_id > chosen.manifest.artifact_id
        not_after = at is None or started_at is None or started_at <= at
        if refusal.artifact_id not in usable and newer and not_after:
            yield refusal.message


def _gone(entry: ArtifactEntry) -> str:
    manifest = entry.manifest
    return (
        f"artifact {manifest.artifact_id} of {format_moment(manifest.covers.to_at)} was in {', '.join(entry.stores)}"
        " and is gone without a tombstone"
    )


def _is_newer(entry: ArtifactEntry, chosen: ArtifactEntry | None, at: datetime | None, method: str | None) -> bool:
    if method not in (None, entry.manifest.method):
        return False
    to_at = entry.manifest.covers.to_at
    return (chosen is None or to_at > chosen.manifest.covers.to_at) and (at is None or to_at <= at)


def _out_of_reach(found: PolicyArtifacts, entry: ArtifactEntry, hints: Sequence[str] = ()) -> StoreError:
    names = ", ".join(entry.stores)
    return StoreUnavailable(
        f"artifact {entry.manifest.artifact_id} is in {names} only, which cannot be reached",
        details=[error.message for error in found.unreachable],
        hints=[*(f"drkit store probe {name}" for name in entry.stores), *hints],
    )


def _gaps(found: PolicyArtifacts, chosen: ArtifactEntry | None, at: datetime | None) -> Iterator[str]:
    """Find, between ``chosen`` and the artifacts after ``at``, a manifest that the chain names and nobody knows.

    The newest one can vanish without leaving a hole; only a catalog remembers that.
    """
    if at is None:
        return
    everything = [*found.entries, *found.vanished, *found.out_of_reach]
    known = {entry.manifest_sha256 for entry in everything}
    lowest = chosen.manifest.seq if chosen else 0
    for entry in found.entries:
        manifest = entry.manifest
        missing = set(manifest.parents) - known
        if missing and manifest.covers.to_at > at and manifest.seq > lowest + 1 and not missing <= found.buried:
            yield (
                f"an artifact before {manifest.artifact_id} of {format_moment(manifest.covers.to_at)} is gone:"
                " its chain names a manifest that no store has"
            )


def _refuse_unread(found: PolicyArtifacts, policy: str) -> None:
    """Raise StoreUnavailable when what is not found may be in a store that could not be read."""
    if found.unreachable:
        raise StoreUnavailable(
            f"policy {policy} has no such artifact in the stores that can be read, and not all of them can",
            details=_refusals(found),
            hints=[hint for error in found.unreachable for hint in error.hints] or ["drkit check"],
        )


def _refusals(found: PolicyArtifacts) -> list[str]:
    return [f"not believed: {refusal.message}" for refusal in found.refused] + [
        f"not reached: {error.message}" for error in found.unreachable
    ]
