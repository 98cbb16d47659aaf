"""The files of a base: fetched and verified, then written; those of an incremental one put together with its parents'.

pg_combinebackup, of the server's own major, makes one data folder of a chain. It reads folders, so all members are
written out first, inside the folder that is to be restored into, and are gone when the outcome has taken their place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import getegid, geteuid
from pathlib import Path

from drkit.binaries import postgres_binary
from drkit.chunk_memory import keep_chunk_memory
from drkit.errors import IntegrityError, SourceError
from drkit.operations import Reporter, Workplace
from drkit.operations.base_plan import COMBINE_TOOL, BasePlan
from drkit.operations.dump_plan import RestorePlan
from drkit.operations.extraction import Extraction, Owner
from drkit.operations.restore import FetchedObject, copies_passed_over, fetch
from drkit.process import Command, Completed, ending
from drkit.stream import Meter, prefetch
from drkit.tied import run_tied

_STAGING = "drkit-chain"
_CONFIG_KIND = "config"
_LINKING_MAJOR = 18
_LONGEST_COMBINE_S = 12 * 3600.0
_FAILED_CALL = "could not "
"""How PostgreSQL's programs begin what they say of a system call that failed; every byte they read was right."""


@dataclass(frozen=True)
class FetchedMember:
    """One artifact whose stored bytes were all read and right."""

    plan: RestorePlan
    objects: Sequence[FetchedObject]


def fetch_base(workplace: Workplace, plan: BasePlan, reporter: Reporter) -> list[FetchedMember]:
    """Read every object of every member, before anything is written; see `drkit.operations.restore.fetch`."""
    members = []
    for member in plan.members:
        folder = workplace.work_folder / member.entry.manifest.artifact_id
        folder.mkdir(mode=0o700, exist_ok=True)
        members.append(FetchedMember(member, fetch(workplace, member, folder, reporter)))
    return members


def passed_over(fetched: Iterable[FetchedMember]) -> list[str]:
    """Say which copies were damaged or out of reach although another one made up for them."""
    return [line for member in fetched for line in copies_passed_over(member.plan, member.objects)]


def extract(plan: BasePlan, fetched: Sequence[FetchedMember], extraction: Extraction, reporter: Reporter) -> None:
    """Write all parts, up to the plan's ``jobs`` at once, each digest compared; tablespaces linked.

    The control file is not written yet. Raise IntegrityError when a part is not what was signed or the members do not
    fit each other, SourceError when the folder cannot be written.
    """
    keep_chunk_memory()
    with reporter.progress("write", plan.plain_bytes) as progress:
        if len(fetched) == 1:
            _write(fetched[0].plan, fetched[0].objects, extraction, plan.request.jobs, progress.advance)
            extraction.finish()
        else:
            _write_chain(plan, fetched, extraction, progress.advance)


def _write(
    plan: RestorePlan,
    objects: Sequence[FetchedObject],
    extraction: Extraction,
    jobs: int,
    advance: Callable[[int], object],
) -> None:
    with ThreadPoolExecutor(jobs, "extract") as pool:
        largest_first = sorted(objects, key=lambda item: item.record.plain_bytes, reverse=True)
        running = [pool.submit(_write_part, plan, item, extraction, advance) for item in largest_first]
        try:
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_part(
    plan: RestorePlan, item: FetchedObject, extraction: Extraction, advance: Callable[[int], object]
) -> None:
    with item.open(plan, Meter(advance), in_threads=False) as plain, prefetch(plain) as ahead:
        extraction.write(item.record.part, item.record.kind, ahead)


def _write_chain(
    plan: BasePlan, fetched: Sequence[FetchedMember], extraction: Extraction, advance: Callable[[int], object]
) -> None:
    """Write every member beside the others, combine them, and let the outcome take their place."""
    staging = extraction.data / _STAGING
    staging.mkdir(mode=0o700)
    members = []
    for number, member in enumerate(fetched):
        config = [item for item in member.objects if item.record.kind == _CONFIG_KIND]
        files = [item for item in member.objects if item.record.kind != _CONFIG_KIND]
        folder = staging / str(number)
        (folder / "data").mkdir(mode=0o700, parents=True)
        written = Extraction(folder / "data", folder / "tablespaces", folder / "config", Owner(geteuid(), getegid()))
        _write(member.plan, files, written, plan.request.jobs, advance)
        written.finish()
        written.write_control_file()
        members.append(written)
    _write(fetched[-1].plan, config, extraction, plan.request.jobs, advance)
    _combine(plan, members, staging / "combined", extraction.tablespaces)
    extraction.adopt(staging / "combined", members[-1].oids)
    shutil.rmtree(staging)


def _combine(plan: BasePlan, members: Sequence[Extraction], outcome: Path, tablespaces: Path) -> None:
    """Make one data folder of a chain; files that did not change are linked where the tool can do that."""
    linked = ["--link"] if plan.major >= _LINKING_MAJOR else []
    last = members[-1]
    mapped = [
        f"--tablespace-mapping={_escaped(last.tablespaces / oid)}={_escaped(tablespaces / oid)}"
        for oid in sorted(last.oids, key=int)
    ]
    argv = [
        str(postgres_binary(COMBINE_TOOL, plan.major)),
        "--no-sync",  # all of it is made durable together, at the end of the restore
        *linked,
        *mapped,
        *(str(member.data) for member in members),
        f"--output={outcome}",
    ]
    done = run_tied(Command(argv, cwd=outcome.parent), timeout_s=_LONGEST_COMBINE_S)
    if done.status != 0:
        raise _not_combined(plan, done)


def _not_combined(plan: BasePlan, done: Completed) -> IntegrityError | SourceError:
    """Tell members that do not fit each other from a tool that was killed or a disk that is full."""
    chain = ", ".join(member.entry.manifest.artifact_id for member in plan.members)
    lines = [line.removeprefix(f"{COMBINE_TOOL}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
    if done.status < 0:
        return SourceError(
            f"{COMBINE_TOOL} {ending(done.status)} while it combined the chain {chain}",
            hints=["dmesg   (whether memory ran short); then again: nothing was left half done"],
        )
    first = lines[0] if lines else f"it ended with status {done.status}"
    if first.startswith(_FAILED_CALL):
        return SourceError(f"{COMBINE_TOOL} cannot combine the chain {chain}: {first}", details=lines[1:])
    return IntegrityError(f"{COMBINE_TOOL} refuses the chain {chain}: {first}", details=lines[1:])


def _escaped(path: Path) -> str:
    return str(path).replace("=", "\\=")
