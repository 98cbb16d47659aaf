"""What PostgreSQL's own programs say of a restored server: its files, the structure inside them, its pages.

A program that is not installed proves nothing, and that is said; it does not fail the drill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drkit.binaries import postgres_binary
from drkit.errors import IntegrityError, SourceError
from drkit.process import Completed, run
from drkit.sandboxes.machine import core_count
from drkit.sandboxes.postgres_server import RestoredServer, ServerPlace

_LONGEST_PROOF_S = 12 * 3600.0
_RESTART_TIMEOUT_S = 600.0
_SHOWN_LINES = 50
_FOUND_DAMAGE = 2


@dataclass(frozen=True)
class Proof:
    """What a program found: lines of damage, or a few words; ``ran`` is False where it could not be run."""

    summary: str
    ran: bool = True
    damage: Sequence[str] = ()


def verify_files(place: ServerPlace) -> str:
    """Compare every file with PostgreSQL's backup manifest, and parse the WAL that the base brings along (T50).

    Return a few words. Raise IntegrityError naming the first file that is not as it was when the base was taken.
    """
    if not _is_installed("pg_verifybackup", place.major):
        return "digests equal (pg_verifybackup is not installed)"
    done = _run(place, "pg_verifybackup", str(place.data))
    if done.status != 0:
        lines = _said(done, "pg_verifybackup")
        first = lines[0] if lines else f"it ended with status {done.status}"
        raise IntegrityError(f"pg_verifybackup refuses the restored files: {first}", details=lines[1:])
    return "every file as in the backup manifest"


def check_structure(place: ServerPlace) -> Proof:
    """Check heaps and B-trees of every database, and that each index has every row (T50)."""
    if not _is_installed("pg_amcheck", place.major):
        return Proof("pg_amcheck is not installed", ran=False)
    options = ["--all", "--install-missing", "--heapallindexed", f"--jobs={core_count()}"]
    where = [f"--host={place.run_folder}", "--port=5432", f"--username={place.superuser}", "--no-password"]
    done = _run(place, "pg_amcheck", *options, *where)
    if done.status == 0:
        return Proof("heaps and B-trees sound by pg_amcheck")
    lines = _said(done, "pg_amcheck")
    if done.status == _FOUND_DAMAGE:
        return Proof("pg_amcheck found damage", damage=[*done.stdout.decode(errors="replace").splitlines(), *lines])
    if any('"amcheck" is not available' in line or "could not open extension control file" in line for line in lines):
        return Proof("amcheck is not installed", ran=False)
    raise SourceError("pg_amcheck failed on the restored server", details=lines)


def check_pages(server: RestoredServer) -> Proof:
    """Stop the server in good order, verify the checksum of every page, and start it again."""
    place = server.place
    if not _is_installed("pg_checksums", place.major):
        return Proof("pg_checksums is not installed", ran=False)
    server.stop()
    done = _run(place, "pg_checksums", "--check", "-D", str(place.data))
    server.start_again(timeout_s=_RESTART_TIMEOUT_S)
    lines = _said(done, "pg_checksums")
    if done.status != 0:
        return Proof("pg_checksums found damage", damage=lines or [f"it ended with status {done.status}"])
    return Proof("page checksums right")


def _is_installed(tool: str, major: int) -> bool:
    try:
        postgres_binary(tool, major)
    except SourceError:
        return False
    return True


def _run(place: ServerPlace, tool: str, *arguments: str) -> Completed:
    options = "-c session_preload_libraries= -c local_preload_libraries= -c statement_timeout=0"
    command = replace(place.command(tool, *arguments), env={"PGOPTIONS": options})
    return run(command, timeout_s=_LONGEST_PROOF_S, check=False)


def _said(done: Completed, tool: str) -> list[str]:
    lines = [line.removeprefix(f"{tool}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
    return [line for line in lines if line.strip()][:_SHOWN_LINES]
