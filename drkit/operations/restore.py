"""Restoring: choose, plan, verify, then load. Nothing is written to the target before every digest was right."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from drkit.credentials import Secret
from drkit.engines import LoadResult, Planned, RestoreOptions, RestoreSession, Via
from drkit.engines.registry import find_engine, find_part_check
from drkit.errors import ConfigError, IntegrityError, RecoveryGap, StoreError
from drkit.fingerprint import data_words, total_rows
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry, Manifest, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import open_details, open_plain, open_sealed, read_recorded, reopen_sealed, store_order
from drkit.operations.reader_lease import reader_lease
from drkit.operations.restore_contents import contents_document, describe_contents, plan_contents
from drkit.operations.running import recorded_run
from drkit.operations.selection import DUMP, choose_artifact, find_artifacts
from drkit.stores import Store
from drkit.stream import Marks, Meter, drain, prefetch
from drkit.units import MIB, format_bytes, format_count, format_duration, format_moment

_SPARE_BYTES = 256 * MIB
USERS_KIND = "users"


@dataclass(frozen=True)
class RestoreRequest:
    """What to bring back: an artifact by the start of its id, or the newest not after ``at``, or the newest.

    ``databases``, ``tables`` and ``exclude_tables`` narrow it down; empty means everything. ``renames``,
    ``with_users`` and ``exclude_users`` are as in `RestoreOptions`.
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
        raise _unusable(entry, failures)
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


@dataclass(frozen=True)
class FetchedObject:
    """An object whose stored bytes were all read and right: in its store, or as a sealed copy in a private folder.

    ``passed_over`` says what was wrong with the copies that were tried before.
    """

    record: ObjectRecord
    store: Store
    staged: Path | None
    marks: Marks
    passed_over: tuple[str, ...] = ()

    @contextmanager
    def open(self, plan: RestorePlan, meter: Meter) -> Iterator[Iterator[bytes]]:
        """Read the plain bytes, every digest compared once more on the way."""
        identities = [key.identity for key in plan.identities]
        with self._open_sealed(plan) as sealed, open_plain(sealed, self.record, identities, meter) as plain:
            yield plain

    @contextmanager
    def _open_sealed(self, plan: RestorePlan) -> Iterator[Iterator[bytes]]:
        if self.staged is None:
            with reopen_sealed(self.store, plan.entry.manifest, self.record, self.marks) as chunks:
                yield chunks
        else:
            with self.staged.open("rb") as file:
                yield iter(lambda: file.read(MIB), b"")


def fetch(workplace: Workplace, plan: RestorePlan, folder: Path, reporter: Reporter) -> list[FetchedObject]:
    """Read every object that the plan names and compare it with its manifest, before anything is loaded.

    An object of a far store is kept in ``folder``, still sealed, where there is room, so that it is fetched once. A
    copy that is damaged or out of reach is passed over for the next store's; when none is left, its error is raised.
    """
    with reporter.progress("fetch", plan.stored_bytes) as progress:
        return [_fetch_object(workplace, plan, item, folder, Meter(progress.advance)) for item in plan.objects]


def inspect(
    plan: RestorePlan, fetched: Sequence[FetchedObject], reporter: Reporter, *, read_all: bool = False
) -> list[str]:
    """Read the content whole, before anything is loaded, where its form can be judged without a server.

    With ``read_all`` everything else is decrypted and its digest compared. Return what could not be looked at. Raise
    IntegrityError for content that is not what the details record: every copy has it.
    """
    manifest, notes = plan.entry.manifest, list[str]()
    check_part = find_part_check(manifest.engine, manifest.method)
    if check_part is None and not read_all:
        return notes
    with reporter.progress("verify", plan.plain_bytes) as progress:
        for item in fetched:
            with item.open(plan, Meter(progress.advance)) as chunks:
                if check_part is None:
                    drain(chunks)
                else:
                    notes += check_part(plan.details["parts"].get(item.record.part), chunks)
    if check_part is not None:
        reporter.line(f"  verify      {format_bytes(plan.plain_bytes)} decrypted and looked through, as recorded")
    return notes


def _fetch_object(
    workplace: Workplace, plan: RestorePlan, item: ObjectRecord, folder: Path, meter: Meter
) -> FetchedObject:
    failures: list[IntegrityError | StoreError] = []
    for name in plan.entry.stores:
        store = workplace.stores[name]
        staged = None if store.traits.local or not _has_room(folder, item.stored_bytes) else folder / item.part
        marks = Marks()
        try:
            with open_sealed(store, plan.entry.manifest, item, meter) as sealed:
                drain(marks.note(sealed, meter)) if staged is None else _write_private(staged, sealed)
        except (IntegrityError, StoreError) as error:
            failures.append(error)
            meter = Meter()
        else:
            return FetchedObject(item, store, staged, marks, tuple(error.message for error in failures))
    raise _unusable(plan.entry, failures)


def _unusable(entry: ArtifactEntry, failures: Sequence[IntegrityError | StoreError]) -> IntegrityError | StoreError:
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


def copies_passed_over(plan: RestorePlan, fetched: Sequence[FetchedObject]) -> list[str]:
    """Say which copies were damaged or out of reach although another one made up for them."""
    failures = [*plan.passed_over, *(message for item in fetched for message in item.passed_over)]
    return [f"a copy was passed over: {message}" for message in failures]


def _has_room(folder: Path, size_bytes: int) -> bool:
    return shutil.disk_usage(folder).free > size_bytes + _SPARE_BYTES


def _write_private(path: Path, chunks: Iterator[bytes]) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file, prefetch(chunks) as ahead:
        for chunk in ahead:
            file.write(chunk)


def load(
    plan: RestorePlan, fetched: Sequence[FetchedObject], session: RestoreSession, reporter: Reporter
) -> LoadResult:
    """Load every part in the manifest's order, and build what comes after the last."""
    load_parts(plan, fetched, session, reporter)
    return session.finish()


class PartLoader(Protocol):
    """What `load_parts` needs of a session; see `RestoreSession.load`."""

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load one part."""


def load_parts(plan: RestorePlan, fetched: Sequence[FetchedObject], session: PartLoader, reporter: Reporter) -> None:
    """Load every part in the manifest's order; say bytes, rate and time of each."""
    for item in fetched:
        part = item.record.part
        started_s = time.monotonic()
        with (
            reporter.progress(plan.label(part), item.record.plain_bytes) as progress,
            item.open(plan, Meter(progress.advance)) as chunks,
        ):
            session.load(part, chunks)
        took_s = max(time.monotonic() - started_s, 0.001)
        reporter.line(
            f"  {plan.label(part):<11} {format_bytes(item.record.plain_bytes)}"
            f"  {format_bytes(item.record.plain_bytes / took_s)}/s  {format_duration(timedelta(seconds=took_s))}"
        )


def way_of(workplace: Workplace, manifest: Manifest) -> Via | None:
    """Return how the policy wants its artifacts made and loaded; None where it does not say, or is not here."""
    policy = workplace.policies.get(manifest.policy)
    rule = policy.rule(manifest.method) if policy else None
    return rule.via if rule else None


@dataclass(frozen=True)
class RestoreResult:
    """What came of a restore."""

    plan: RestorePlan
    loaded: LoadResult
    took_s: float
    run_id: str


def restore(
    workplace: Workplace, plan: RestorePlan, request: RestoreRequest, url: Secret, reporter: Reporter
) -> RestoreResult:
    """Carry out a plan against a target; the target is checked first, written to last.

    Raise SourceError when the target is not empty or cannot take the load, IntegrityError when an object is not as
    recorded: then the target was not touched.
    """
    manifest = plan.entry.manifest
    with (
        recorded_run(workplace.catalog, workplace.clock, "restore", manifest.policy, alone=None) as running,
        reader_lease(workplace, manifest.policy, plan.entry.stores, reporter),
    ):
        clock_s = time.monotonic()
        options = request.options(plan.details, tuple(item.part for item in plan.objects))
        options = replace(options, work_folder=workplace.work_folder, via=way_of(workplace, manifest))
        engine = find_engine(manifest.engine, manifest.method)
        with engine.open_restore(url, options) as session:
            reporter.line(f"restore {manifest.policy}  artifact {manifest.artifact_id}  to {session.summary}")
            fetched = fetch(workplace, plan, workplace.work_folder, reporter)
            reporter.line(f"  fetch       {format_bytes(plan.stored_bytes)} read, digests equal")
            warnings = inspect(plan, fetched, reporter)
            loaded = load(plan, fetched, session, reporter)
            loaded.warnings[:0] = [*copies_passed_over(plan, fetched), *warnings]
        running.outcome = {"artifact_id": manifest.artifact_id, "loaded": loaded.loaded}
        return RestoreResult(plan, loaded, time.monotonic() - clock_s, running.run_id)
