"""Copies in further stores: the sealed bytes move, the database is not read again and nothing is decrypted.

Signed documents (records of drills, tombstones) and the log are copied as well: a store that is left alone must be
enough. A copy that was cut off goes on object by object: what arrived whole is compared with its digest and kept, and
the object that was on its way is sent again, because a store keeps nothing of an unfinished one that could be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from drkit.errors import Busy, IntegrityError, StoreError
from drkit.model import ArtifactEntry
from drkit.operations import Reporter, Workplace
from drkit.operations.artifact_copying import copy_artifact
from drkit.operations.copy_result import Copied, CopyResult, NotCopied
from drkit.operations.document_copying import copy_documents
from drkit.operations.log_copying import copy_logs
from drkit.operations.reader_lease import reader_lease
from drkit.operations.repository import ensure_repository, join_repository
from drkit.operations.running import recorded_run
from drkit.operations.selection import find_artifacts
from drkit.policy import Policy


def catch_up(workplace: Workplace, policies: Sequence[Policy], reporter: Reporter) -> CopyResult:
    """Make every copy that the policies promise and that is missing; go on after a failure, and report it."""
    result = CopyResult()
    for policy in policies:
        if len(policy.stores) < 2:
            continue
        done = CopyResult()
        try:
            _catch_up(workplace, policy, reporter, done)
        except (StoreError, IntegrityError, Busy) as error:
            if all(item.error is not error for item in done.failed):
                done.failed.append(NotCopied(policy.policy, error))
        result.add(done)
    return result


def _catch_up(workplace: Workplace, policy: Policy, reporter: Reporter, done: CopyResult) -> None:
    """Complete one policy; raise the first failure once all was tried, so that the run is recorded as failed."""
    with ExitStack() as stack:
        running = stack.enter_context(recorded_run(workplace.catalog, workplace.clock, "copy", policy.policy))
        ensure_repository(workplace, policy.stores)
        usable = [policy.stores[0], *_joined(workplace, policy, done)]
        stack.enter_context(reader_lease(workplace, policy.policy, usable, reporter))
        try:
            found = find_artifacts(workplace, policy.policy)
            for entry in reversed(found.entries):
                missing = [name for name in usable if name not in entry.stores]
                if missing and entry.manifest_sha256 not in found.buried:
                    _complete(workplace, entry, missing, reporter, done)
                else:
                    done.complete += 1
            copy_documents(workplace, policy.policy, usable, done)
            copy_logs(workplace, policy.policy, usable, reporter, done)
        finally:
            running.outcome = done.facts()
        for failure in done.failed:
            raise failure.error


def _joined(workplace: Workplace, policy: Policy, done: CopyResult) -> Iterator[str]:
    """Yield the further stores that can be used; public keys go both ways, because the first may be the new one."""
    first = workplace.stores[policy.stores[0]]
    for name in policy.stores[1:]:
        try:
            join_repository(first, workplace.stores[name])
            join_repository(workplace.stores[name], first)
        except (StoreError, IntegrityError) as error:
            done.fail(NotCopied(policy.policy, error, store=name))
        else:
            yield name


def _complete(
    workplace: Workplace, entry: ArtifactEntry, missing: Sequence[str], reporter: Reporter, done: CopyResult
) -> None:
    manifest = entry.manifest
    for name in missing:
        if name in done.given_up:
            continue
        try:
            with reporter.progress(f"{manifest.artifact_id[:10]} to {name}", manifest.stored_bytes) as progress:
                entry = copy_artifact(workplace, entry, name, progress.advance)
        except (StoreError, IntegrityError) as error:
            done.fail(NotCopied(manifest.policy, error, manifest.artifact_id, name))
        else:
            done.copied.append(Copied(manifest.policy, manifest.artifact_id, name, manifest.stored_bytes))
