"""The catalog as a file: create, open, upgrade, move aside; and the one place where SQLite's errors become ours."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from drkit.catalog import sums
from drkit.errors import CatalogError, shell_line

SCHEMA_VERSION = 13
APPLICATION_ID = 0x64726B74  # "drkt": tells a catalog from anybody else's SQLite file
BUSY_TIMEOUT_S = 15.0
_DRAFT_IS_OLD_S = 3600.0

_REBUILD = "drkit catalog rebuild"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_NO_ACCESS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into CatalogError with the file and the next command."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _translate(path, error) from error
    except OSError as error:
        raise CatalogError(
            f"cannot use the catalog {path}: {error.strerror or error}",
            hints=[shell_line("ls", "-ld", path.parent, path)],
        ) from error


def _translate(path: Path, error: sqlite3.Error) -> CatalogError:
    # The low byte is the primary result code; the rest only refines it (sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGED:
        return CatalogError(
            f"the catalog {path} is damaged: {error}",
            details=["the backups in the stores are not affected; the damaged file is kept beside the new one"],
            hints=[_REBUILD],
        )
    if code in _LOCKED:
        return CatalogError(
            f"the catalog {path} is locked by another process, also after {BUSY_TIMEOUT_S:.0f} s",
            hints=[shell_line("fuser", "-v", path), "run the same command again"],
        )
    if code in _NO_ROOM:
        return CatalogError(
            f"cannot read or write the catalog {path}: {error}",
            details=["nothing of the last change was kept; what was there before is intact"],
            hints=[shell_line("df", "-h", path.parent)],
        )
    if code in _NO_ACCESS:
        return CatalogError(
            f"cannot open the catalog {path}: {error}", hints=[shell_line("ls", "-ld", path.parent, path)]
        )
    return CatalogError(f"the catalog {path} refused a change: {error}", hints=[_REBUILD])


def create(path: Path) -> None:
    """Create an empty catalog, mode 0600, whole or not at all; it is no error when there is one already.

    It is made under a temporary name and linked into place, so that neither a kill nor a second process that does the
    same can leave a half-made catalog. Folders are made as needed, mode 0700.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _, log, _ = _beside(path)
        if log.exists() and not path.exists():  # in this order: a log is made after its catalog
            raise CatalogError(
                f"the catalog {path} is gone, but its write-ahead log {log.name} is there",
                details=["a new catalog in its place would swallow the log of the old one"],
                hints=[_REBUILD],
            )
        draft = draft_beside(path)
        try:
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def draft_beside(path: Path) -> Path:
    """Create an empty catalog under a temporary name in the folder of ``path``; the caller puts it in place."""
    for old in path.parent.glob(f".{path.name}.new-*"):  # kill -9 leaves one behind
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > _DRAFT_IS_OLD_S:
                old.unlink()
    draft = path.with_name(f".{path.name}.new-{os.getpid()}-{os.urandom(4).hex()}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with closing(_connect(draft)) as connection:
            _use_write_ahead_log(connection)
            _upgrade(connection)
    except BaseException:
        remove(draft)
        raise
    return draft


def put_in_place(draft: Path, path: Path) -> None:
    """Give a complete draft its name; raise CatalogError when another process has put a catalog there meanwhile."""
    with translated(path):
        os.link(draft, path)
        draft.unlink()


def remove(path: Path) -> None:
    """Remove a catalog and what SQLite keeps beside it."""
    for name in _beside(path):
        name.unlink(missing_ok=True)


def move_aside(path: Path, now: datetime) -> Path | None:
    """Rename a catalog, with its write-ahead log, to a name that says when; return it, None where there was nothing."""
    aside = path.with_name(f"{path.name}.aside-{now:%Y%m%dT%H%M%SZ}")
    with translated(path):
        if not any(name.exists() for name in _beside(path)):
            return None
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.aside-{now:%Y%m%dT%H%M%SZ}-{number}")
        # A log left beside the new file would be taken for its own, so the log goes first.
        for source, target in reversed(list(zip(_beside(path), _beside(aside), strict=True))):
            with suppress(FileNotFoundError):
                source.rename(target)
    return aside


def _beside(path: Path) -> list[Path]:
    return [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]


def connect(path: Path) -> sqlite3.Connection:
    """Open a catalog that exists, upgrading an older schema; raise CatalogError for everything that is wrong with it.

    The connection commits each statement unless a transaction was begun, and may be used from any thread, by one at
    a time.
    """
    with translated(path):
        if not path.exists():
            raise CatalogError(f"there is no catalog at {path}", hints=[_REBUILD])
        connection = _connect(path)
        try:
            _refuse_foreign(connection, path)
            _use_write_ahead_log(connection)
            if _pragma(connection, "user_version") < SCHEMA_VERSION:
                _upgrade(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def is_usable(path: Path) -> bool:
    """Say whether the file is a whole catalog of this drkit or an older one.

    False when it is missing, damaged, from a newer drkit or something else; raise CatalogError when that cannot be told
    (locked, no access).
    """
    with translated(path):
        if not path.exists():
            return False
        try:
            with closing(_connect(path)) as connection:
                ours = _pragma(connection, "application_id") == APPLICATION_ID
                known = _pragma(connection, "user_version") <= SCHEMA_VERSION
                return ours and known and connection.execute("pragma quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _DAMAGED:
                return False
            raise


def salvage(old: Path, new: Path) -> list[str]:
    """Copy what no store knows from a catalog that cannot be used into a fresh one; return the tables that were lost.

    Leases count: fences must go on growing. Scratches count: they are copies of data that somebody has to take away.
    """
    lost = []
    with translated(new), closing(_connect(new)) as connection:
        for table, statement in _SALVAGE.items():
            try:
                connection.execute("attach ? as old", (f"{old.absolute().as_uri()}?mode=ro",))
                connection.execute(statement)
            except sqlite3.DatabaseError as error:
                if "no such table: old." not in str(error):  # the old one was made before there was such a table
                    lost.append(table)
            finally:
                with suppress(sqlite3.OperationalError):
                    connection.execute("detach old")
    return lost


_SALVAGE = {
    "leases": """insert into leases (name, holder, fence, expires_at)
        select name, holder, fence, expires_at from old.leases""",
    "scratch": """insert into scratch (scratch_id, kind, locator, host, owner_pid, owner_started, expires_at)
        select scratch_id, kind, locator, host, owner_pid, owner_started, expires_at from old.scratch""",
    "runs": """insert into runs
        (run_id, kind, policy, state, started_at, host, pid, heartbeat_at, ended_at, error, outcome)
        select run_id, kind, policy, state, started_at, host, pid, heartbeat_at, ended_at, error, outcome
        from old.runs""",
    "events": "insert into events (event_id, at, name, facts) select event_id, at, name, facts from old.events",
    "holds": """insert into holds (hold_id, policy, artifact_id, kind, reason, placed_at, released_at)
        select hold_id, policy, artifact_id, kind, reason, placed_at, released_at from old.holds""",
    "schedules": "insert into schedules (schedule, cursor_at) select schedule, cursor_at from old.schedules",
    "occurrences": """insert into occurrences (occurrence_id, schedule, kind, policy, what, due_at, state, reason,
        decided_at, not_before_at, attempts, seen, holder, run_id)
        select occurrence_id, schedule, kind, policy, what, due_at, state, reason, decided_at, not_before_at, attempts,
        seen, holder, run_id from old.occurrences""",
    "attempts": """insert into attempts (occurrence_id, number, run_id, started_at, ended_at, failure, error)
        select occurrence_id, number, run_id, started_at, ended_at, failure, error from old.attempts""",
    "claims": "insert into claims (occurrence_id, thing) select occurrence_id, thing from old.claims",
    "event_readers": """insert or replace into event_readers (reader, event_id)
        select reader, event_id from old.event_readers""",
    "problems": """insert into problems (identity, level, policy, title, opened_at, resolved_at)
        select identity, level, policy, title, opened_at, resolved_at from old.problems""",
    "outbox": """insert into outbox (message_id, channel, kind, identity, level, policy, title, body, facts, made_at,
        due_at, digest, attempts, error, ended_at, outcome)
        select message_id, channel, kind, identity, level, policy, title, body, facts, made_at, due_at, digest,
        attempts, error, ended_at, outcome from old.outbox""",
    **sums.SALVAGE,
}


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: a connection never creates a file; an empty one would pass for a catalog that knows of no backups.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    connection.execute("pragma foreign_keys = on")
    # A run that is recorded, and a sandbox that is about to be made, must survive a power cut.
    connection.execute("pragma synchronous = full")
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging, which stays with the file; wait for others who have the file as long as SQLite does.

    A file that has another mode is read and then locked, and SQLite fails such an upgrade of a lock at once, whatever
    its timeout is: two that do it at the same moment would wait for each other (sqlite.org/c3ref/busy_handler.html).
    """
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _LOCKED or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise CatalogError(
            f"{path} is not a catalog of drkit",
            details=["drkit catalog rebuild moves the file aside and puts a catalog in its place"],
            hints=["check the line catalog: in drkit.yaml", _REBUILD],
        )
    version = _pragma(connection, "user_version")
    if version > SCHEMA_VERSION:
        raise CatalogError(
            f"the catalog {path} was written by a newer drkit",
            details=[f"its schema is version {version}, this drkit knows {SCHEMA_VERSION}; it was not changed"],
            hints=["install the newer drkit here too", f"{_REBUILD}   (keeps the newer file beside a new one)"],
        )


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date in one transaction; a second process that comes at once waits, then finds it done."""
    from sqlite_utils import Database

    from drkit.catalog.migrations import migrate

    connection.execute("begin immediate")
    try:
        version = migrate(Database(connection, execute_plugins=False))
        connection.execute(f"pragma application_id = {APPLICATION_ID:d}")
        connection.execute(f"pragma user_version = {version:d}")
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"pragma {name}").fetchone()[0])
