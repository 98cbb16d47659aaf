"""Restoring a dump: verify all of it, then load. Nothing is written to the target before every digest was right."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from drkit.chunk_memory import keep_chunk_memory
from drkit.credentials import Secret
from drkit.engines import LoadResult, RestoreOptions, RestoreSession, Via
from drkit.engines.registry import find_engine, find_part_check
from drkit.errors import IntegrityError, StoreError
from drkit.model import Manifest, ObjectRecord
from drkit.operations import Reporter, Workplace
from drkit.operations.artifacts import open_plain, open_sealed, reopen_sealed
from drkit.operations.dump_plan import RestorePlan, RestoreRequest, unusable
from drkit.operations.reader_lease import reader_lease
from drkit.operations.running import recorded_run
from drkit.stores import Store
from drkit.stream import Marks, Meter, drain, prefetch
from drkit.units import MIB, format_bytes, format_duration

_SPARE_BYTES = 256 * MIB


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
    def open(self, plan: RestorePlan, meter: Meter, *, in_threads: bool = True) -> Iterator[Iterator[bytes]]:
        """Read the plain bytes, every digest compared once more on the way; ``in_threads`` as for `open_plain`."""
        identities = [key.identity for key in plan.identities]
        with (
            self._open_sealed(plan) as sealed,
            open_plain(sealed, self.record, identities, meter, in_threads=in_threads) as plain,
        ):
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
    keep_chunk_memory()
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
    raise unusable(plan.entry, failures)


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
        with _open_session(workplace, plan, request, url) as session:
            reporter.line(f"restore {manifest.policy}  artifact {manifest.artifact_id}  to {session.summary}")
            fetched = fetch(workplace, plan, workplace.work_folder, reporter)
            reporter.line(f"  fetch       {format_bytes(plan.stored_bytes)} read, digests equal")
            warnings = inspect(plan, fetched, reporter)
            loaded = load(plan, fetched, session, reporter)
            loaded.warnings[:0] = [*copies_passed_over(plan, fetched), *warnings]
        running.outcome = {"artifact_id": manifest.artifact_id, "loaded": loaded.loaded}
        return RestoreResult(plan, loaded, time.monotonic() - clock_s, running.run_id)


def look_at_target(workplace: Workplace, plan: RestorePlan, request: RestoreRequest, url: Secret) -> str:
    """Check a target as `restore` does and return a line that names it; raise SourceError as there, change nothing."""
    with _open_session(workplace, plan, request, url) as session:
        return session.summary


def _open_session(
    workplace: Workplace, plan: RestorePlan, request: RestoreRequest, url: Secret
) -> AbstractContextManager[RestoreSession]:
    manifest = plan.entry.manifest
    return find_engine(manifest.engine, manifest.method).open_restore(url, load_options(workplace, plan, request))


def load_options(workplace: Workplace, plan: RestorePlan, request: RestoreRequest) -> RestoreOptions:
    """Return what an engine is told of a restore: what was asked for, and how the policy wants it loaded."""
    options = request.options(plan.details, tuple(item.part for item in plan.objects))
    return replace(options, work_folder=workplace.work_folder, via=way_of(workplace, plan.entry.manifest))
