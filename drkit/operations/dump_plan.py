"""Which dump to restore and what of it: decided from manifests and details, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from drkit.engines import Planned, RestoreOptions
from drkit.errors import ConfigError, IntegrityError, RecoveryGap, StoreError
from drkit.fingerprint import data_words, total_rows
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Workplace
from drkit.operations.artifacts import open_details, read_recorded, store_order
from drkit.operations.restore_contents import contents_document, describe_contents, plan_contents
from drkit.operations.selection import DUMP, choose_artifact, find_artifacts
from drkit.units import format_bytes, format_count, format_moment

USERS_KIND = "users"


@dataclass(frozen=True)
class RestoreRequest:
    """What to bring back: an artifact by the start of its id, or the newest not after ``at``, or the newest.

    ``databases``, ``tables`` and ``exclude_tables`` narrow it down; empty means everything. ``renames``,
    ``with_users``, ``exclude_users`` and ``replays`` are as in `RestoreOptions`.
    """

    policy: str
    artifact_id: str | None = None
    at: datetime | None = None
    databases: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    with_users: bool = False
    exclude_users: tuple[str, ...] = ()
    replays: bool = False
    jobs: int = 2

    def options(self, details: Mapping[str, Any], parts: tuple[str, ...]) -> RestoreOptions:
        """Return what an engine is told of it; users and roles are no part with data."""
        return RestoreOptions(
            details=details,
            parts=tuple(part for part in parts if details["parts"].get(part, {}).get("kind") != USERS_KIND),
            databases=self.databases,
            tables=self.tables,
            exclude_tables=self.exclude_tables,
            renames=self.renames,
            with_users=self.with_users,
            exclude_users=self.exclude_users,
            replays=self.replays,
            jobs=self.jobs,
        )


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do, as data; made without changing anything."""

    entry: ArtifactEntry
    details: dict[str, Any] = field(repr=False)
    objects: tuple[ObjectRecord, ...] = ()
    identities: tuple[KeyFile, ...] = ()
    asked_at: datetime | None = None
    passed_over: tuple[str, ...] = ()
    contents: tuple[Planned, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """Return the bytes to fetch."""
        return sum(item.stored_bytes for item in self.objects)

    @property
    def plain_bytes(self) -> int:
        """Return the bytes that the engine will load."""
        return sum(item.plain_bytes for item in self.objects)

    def label(self, part: str) -> str:
        """Return the name that people know a part by."""
        return str(self.details["parts"].get(part, {}).get("label", part))

    def document(self) -> dict[str, Any]:
        """Return the plan for scripts."""
        manifest = self.entry.manifest
        return {
            "policy": manifest.policy,
            "artifact_id": manifest.artifact_id,
            "engine": manifest.engine,
            "method": manifest.method,
            "restores_to": manifest.covers.to_at.isoformat(),
            "asked_at": self.asked_at.isoformat() if self.asked_at else None,
            "stores": list(self.entry.stores),
            "stored_bytes": self.stored_bytes,
            "plain_bytes": self.plain_bytes,
            "parts": [{"part": item.part, "label": self.label(item.part), **_sizes(item)} for item in self.objects],
            "contents": contents_document(self.contents),
            "identities": [key.name for key in self.identities],
            "server": self.details.get("server", {}).get("version"),
        }

    def describe(self) -> str:
        """Return the plan for people."""
        manifest = self.entry.manifest
        to_at = manifest.covers.to_at
        lines = [f"to bring {manifest.policy} to {format_moment(to_at)}"]
        if self.asked_at:
            lost = self.asked_at - to_at
            lines[0] += f", the newest artifact that is not after {format_moment(self.asked_at)} ({lost} before it)"
        where = ", ".join(self.entry.stores)
        lines.append(f"  artifact   {manifest.artifact_id}  {manifest.engine} {manifest.method}, in {where}")
        for item in self.objects:
            fingerprint = self.details["parts"].get(item.part, {}).get("fingerprint", {})
            rows, (_, held) = total_rows(fingerprint), data_words([fingerprint])
            shown = f", {format_count(rows, held)}" if rows else ""
            lines.append(
                f"  {self.label(item.part):<10} {format_bytes(item.stored_bytes)} stored,"
                f" {format_bytes(item.plain_bytes)} to load{shown}"
            )
            lines += describe_contents(self.contents, item.part)
        lines.append(f"  needs      {manifest.engine} {self.details.get('server', {}).get('version', '')} or newer")
        lines.append(f"  identity   {', '.join(key.name for key in self.identities)} (opens it)")
        return "\n".join(lines)


def _sizes(item: ObjectRecord) -> dict[str, int]:
    return {"stored_bytes": item.stored_bytes, "plain_bytes": item.plain_bytes}


def plan_restore(workplace: Workplace, request: RestoreRequest, identities: Sequence[KeyFile]) -> RestorePlan:
    """Decide what a restore will do; read manifests and details, change nothing.

    Raise RecoveryGap when there is no such artifact, KeyUnavailable when nobody in reach can open it, IntegrityError
    when it is not what was signed.
    """
    found = find_artifacts(workplace, request.policy)
    try:
        chosen = choose_artifact(found, request.policy, artifact_id=request.artifact_id, at=request.at, method=DUMP)
    except RecoveryGap as error:
        if not any(entry.manifest.position for entry in found.entries):
            raise
        hints = [f"drkit restore {request.policy} --into DIR   (there are base backups)", *error.hints]
        raise RecoveryGap(error.message, details=error.details, hints=hints) from error
    entry, passed_over = believed_copies(workplace, chosen)
    details = open_details(entry.manifest, identities)
    objects = _wanted(entry, details, request)
    contents = plan_contents(entry.manifest, request.options(details, tuple(item.part for item in objects)))
    return RestorePlan(entry, details, objects, tuple(identities), request.at, passed_over, contents)


def believed_copies(workplace: Workplace, entry: ArtifactEntry) -> tuple[ArtifactEntry, tuple[str, ...]]:
    """Read an artifact's manifest again in all its stores: return it with those to fetch from, and why not the rest.

    What the catalog remembers is not enough to restore by. Raise the first store's error when no copy is sound.
    """
    stores: list[str] = []
    failures: list[IntegrityError | StoreError] = []
    for name, store in store_order(workplace, entry).items():
        try:
            read_recorded(store, workplace.signers, entry)
        except (IntegrityError, StoreError) as error:
            failures.append(error)
        else:
            stores.append(name)
    if not stores:
        raise unusable(entry, failures)
    return replace(entry, stores=tuple(stores)), tuple(error.message for error in failures)


def _wanted(entry: ArtifactEntry, details: dict[str, Any], request: RestoreRequest) -> tuple[ObjectRecord, ...]:
    """Narrow the objects down to the databases asked for; the globals always come along, users when asked for."""
    objects = entry.manifest.objects if request.with_users else data_objects(entry.manifest)
    if not request.databases:
        return objects
    names = {part: set(facts.get("databases") or [facts.get("label")]) for part, facts in details["parts"].items()}
    there = {str(name) for part, held in names.items() if part not in ("globals", USERS_KIND) for name in held}
    missing = sorted(set(request.databases) - there)
    if missing:
        raise ConfigError(
            f"artifact {entry.manifest.artifact_id} has no database {', '.join(missing)}",
            details=[f"it has {', '.join(sorted(there))}"],
        )
    return tuple(
        item for item in objects if item.kind != "database" or names.get(item.part, set()) & {*request.databases}
    )


def data_objects(manifest: Manifest) -> tuple[ObjectRecord, ...]:
    """Return an artifact's objects without the server's users and roles, which come back only when asked for."""
    return tuple(item for item in manifest.objects if item.kind != USERS_KIND)


def unusable(entry: ArtifactEntry, failures: Sequence[IntegrityError | StoreError]) -> IntegrityError | StoreError:
    """Return a copy's error with those of the others, and what can be done.

    One that could not be read may be sound, so damage of the others is not the verdict on all.
    """
    first, *others = sorted(failures, key=lambda error: isinstance(error, IntegrityError))
    manifest = entry.manifest
    hints = [
        *first.hints,
        f"drkit verify {manifest.artifact_id}",
        f"drkit list {manifest.policy}   (another artifact is restored by its id: --artifact)",
    ]
    return type(first)(first.message, details=[*first.details, *(error.message for error in others)], hints=hints)
