"""The parent of the next incremental base: the newest base, and all that is needed of it here.

The host that takes backups cannot read them, and yet the server wants the parent's backup manifest to say what changed
since. So that one file of the newest base is kept here, private, and believed only when it has the digest that the
parent's signed manifest records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from drkit.engines import ParentBase
from drkit.errors import IntegrityError, KeyUnavailable, RecoveryGap, StoreError
from drkit.keys import KeyFile, load_identities
from drkit.model import ArtifactEntry, ObjectRecord
from drkit.operations import Workplace
from drkit.operations.artifacts import open_details, open_plain, open_sealed, store_order
from drkit.operations.kept_bases import BASE, MANIFEST_KIND, kept_manifest
from drkit.operations.lineage import lineage
from drkit.operations.selection import PolicyArtifacts, choose_artifact, find_artifacts
from drkit.operations.verify import verify_exists
from drkit.units import MIB

_EARLY = 1 / 24


def find_parent(workplace: Workplace, policy: str) -> ParentBase:
    """Return the newest base of a policy, for the next incremental one to build on.

    Raise RecoveryGap when there is none, IntegrityError when it or something that it builds on is damaged or gone,
    KeyUnavailable when its backup manifest is not kept on this host and no identity here opens the stored one.
    """
    found = find_artifacts(workplace, policy)
    entry = _newest_base(found, policy)
    members = [*lineage(found, entry), entry]
    for member in members:
        _require_sound(workplace, member)
    details = workplace.catalog.artifact(entry.manifest.artifact_id).details
    if details is None:
        details = _opened(workplace, entry, "details are", lambda keys: open_details(entry.manifest, keys))
    assert entry.manifest.position is not None
    return ParentBase(
        artifact_id=entry.manifest.artifact_id,
        lineage=entry.manifest.depends_on,
        backup_manifest=_backup_manifest(workplace, entry),
        timeline=entry.manifest.position.timeline,
        system_identifier=str(details["server"]["system_identifier"]),
        checksums=bool(details["base"]["checksums"]),
        degraded=any(member.manifest.degraded for member in members),
    )


def planned_parent(
    workplace: Workplace, policy: str, full_every: timedelta, now: datetime
) -> tuple[ParentBase | None, str]:
    """Return what the next base builds on by a rule with ``full_every``, or None for a full one and why.

    There is nothing to say of the first base, nor of one whose time has come. A parent that is damaged or cannot be
    read costs a full base, not the backup. A full one comes a little early rather than a whole schedule late.
    """
    try:
        parent = find_parent(workplace, policy)
    except RecoveryGap:
        return None, ""
    except (IntegrityError, KeyUnavailable) as error:
        return None, f"a full base is taken: {error.message}"
    oldest = workplace.catalog.artifact((*parent.lineage, parent.artifact_id)[0]).manifest
    if now - oldest.started_at >= full_every * (1 - _EARLY):
        return None, ""
    return parent, ""


def _newest_base(found: PolicyArtifacts, policy: str) -> ArtifactEntry:
    full = f"drkit backup {policy} --method base   (a full one)"
    try:
        return choose_artifact(found, policy, method=BASE)
    except RecoveryGap as error:
        raise RecoveryGap(
            f"policy {policy} has no base that an incremental one could build on", details=error.details, hints=[full]
        ) from error
    except IntegrityError as error:
        raise IntegrityError(
            f"no incremental base can be taken: {error.message}",
            details=error.details,
            hints=[f"drkit check {policy}", full],
        ) from error


def _require_sound(workplace: Workplace, entry: ArtifactEntry) -> None:
    """Raise the first store's error unless one of them has the whole artifact, by signature, sizes and checksums."""
    failures: list[IntegrityError | StoreError] = []
    for store in store_order(workplace, entry).values():
        try:
            verify_exists(workplace, store, entry)
        except (IntegrityError, StoreError) as error:
            failures.append(error)
        else:
            return
    policy, artifact_id = entry.manifest.policy, entry.manifest.artifact_id
    raise type(failures[0])(
        f"no incremental base can be taken: base {artifact_id} is not sound: {failures[0].message}",
        details=[error.message for error in failures[1:]],
        hints=[f"drkit verify {artifact_id}", f"drkit backup {policy} --method base   (a full one)"],
    ) from failures[0]


# The parent's backup manifest -----------------------------------------------------------------------------------------


def _backup_manifest(workplace: Workplace, entry: ArtifactEntry) -> Path:
    """Return a file with the backup manifest that was signed: the kept one, or else the stored one, opened."""
    manifest = entry.manifest
    record = next(item for item in manifest.objects if item.kind == MANIFEST_KIND)
    kept = kept_manifest(workplace.site, manifest.policy, manifest.artifact_id)
    if _is_recorded(kept, record):
        return kept
    target = workplace.work_folder / kept.name
    _opened(workplace, entry, "backup manifest is", lambda keys: _fetch(workplace, entry, record, keys, target))
    return target


def _is_recorded(path: Path, record: ObjectRecord) -> bool:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    return digest == record.plain_sha256


def _fetch(
    workplace: Workplace, entry: ArtifactEntry, record: ObjectRecord, keys: list[KeyFile], target: Path
) -> Mapping[str, Any]:
    store = next(iter(store_order(workplace, entry).values()))
    identities = [key.identity for key in keys]
    with (
        open_sealed(store, entry.manifest, record) as sealed,
        open_plain(sealed, record, identities) as plain,
        target.open("wb", buffering=MIB) as file,
    ):
        for chunk in plain:
            file.write(chunk)
    return {}


def _opened(
    workplace: Workplace, entry: ArtifactEntry, what: str, read: Callable[[list[KeyFile]], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Read what is sealed, where this host has an identity for it; nobody is asked for a passphrase."""
    manifest = entry.manifest
    try:
        return read(load_identities(workplace.site.keys.identities, None))
    except KeyUnavailable as error:
        raise KeyUnavailable(
            f"nothing can be built on base {manifest.artifact_id}: its {what} not kept on this host, and no identity"
            " here opens what is stored",
            details=[error.message, *error.details],
            hints=[f"drkit backup {manifest.policy} --method base   (a full one)"],
        ) from error
