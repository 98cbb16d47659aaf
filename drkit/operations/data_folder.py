"""The folder that a restore makes a server of: refused by name unless it is empty, marked while it is unfinished.

The marker is made first and removed last. A folder that has one holds nothing worth keeping, so the next restore
clears it and starts anew; the owner may not enter it before all files are there.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drkit.errors import Busy, SourceError, add_left, shell_line
from drkit.operations.extraction import Owner
from drkit.operations.folder_sync import sync_path
from drkit.process_identity import ProcessIdentity
from drkit.sandboxes.postgres_interlock import remove_interlock
from drkit.units import format_bytes

MARKER = "drkit-restore.unfinished"
_SHOWN_NAMES = 3
_UNQUOTED_BY_PG_CTL = frozenset('"$`\\\n\r')
"""pg_ctl starts the server by a shell and puts the folder in double quotes as it is (pg_ctl.c, start_postmaster)."""
_SERVER_USERS = ("postgres",)


@dataclass(frozen=True)
class TargetFolder:
    """A folder that may become a server's data folder, and whose it will be; nothing was changed yet."""

    path: Path
    owner: Owner
    user: str | None
    unfinished: bool
    free_bytes: int


def inspect_target(path: Path, need_bytes: int) -> TargetFolder:
    """Look at the folder without touching it.

    Raise SourceError when a server runs in it, it is not empty, its owner cannot run a server, or there is too little
    room; Busy when another restore is writing into it.
    """
    folder = _resolved(path)
    _refuse_odd(folder)
    there = folder.is_dir()
    names = sorted(item.name for item in folder.iterdir()) if there and os.access(folder, os.R_OK | os.X_OK) else []
    _refuse_running(folder, names)
    unfinished = MARKER in names
    marked = _read_marker(folder) if unfinished else {}
    if names and not unfinished:
        raise _not_empty(folder, names)
    owner, user = _owner(folder, marked, there=there)
    free_bytes = shutil.disk_usage(folder if there else folder.parent).free
    held_bytes = _held_bytes(folder) if unfinished else 0
    if free_bytes + held_bytes < need_bytes:
        short = format_bytes(need_bytes - free_bytes - held_bytes)
        raise SourceError(
            f"{folder} has no room for the restore: it needs {format_bytes(need_bytes)},"
            f" {format_bytes(free_bytes + held_bytes)} are free, {short} short",
            hints=["name a folder on a larger disk with --into"],
        )
    return TargetFolder(folder, owner, user, unfinished, free_bytes + held_bytes)


def _resolved(path: Path) -> Path:
    folder = path.absolute()
    if folder.is_symlink() or folder.exists():
        folder = folder.resolve()
        if not folder.is_dir():
            raise SourceError(f"{path} is not a folder")
        return folder
    if not folder.parent.is_dir():
        raise SourceError(
            f"there is no folder {folder.parent} to make {folder.name} in",
            hints=[shell_line("mkdir", "-p", folder.parent)],
        )
    return folder.parent.resolve() / folder.name


def _refuse_odd(folder: Path) -> None:
    odd = sorted(_UNQUOTED_BY_PG_CTL.intersection(str(folder)))
    if odd:
        raise SourceError(
            f"refused: pg_ctl cannot start a server in a folder whose path has {' '.join(map(ascii, odd))}: {folder}",
            hints=["name another folder with --into"],
        )


def _refuse_running(folder: Path, names: Sequence[str]) -> None:
    if "postmaster.pid" not in names:
        return
    first = (folder / "postmaster.pid").read_text(errors="replace").partition("\n")[0].strip()
    if first.isdigit() and _is_alive(int(first)):
        raise SourceError(
            f"refused: a server is running in {folder} (process {first})",
            hints=[
                "name another folder with --into",
                f"or stop it first: {shell_line('pg_ctl', '-D', folder, 'stop')}",
            ],
        )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _not_empty(folder: Path, names: Sequence[str]) -> SourceError:
    holds = ", ".join(names[:_SHOWN_NAMES]) + (", …" if len(names) > _SHOWN_NAMES else "")
    version = (folder / "PG_VERSION").read_text().strip() if "PG_VERSION" in names else ""
    what = f"holds the data of a PostgreSQL {version} server" if version else "is not empty"
    return SourceError(
        f"refused: {folder} {what} ({holds})", hints=["name an empty folder with --into, or one that is yet to be made"]
    )


def _owner(folder: Path, marked: dict[str, int], *, there: bool) -> tuple[Owner, str | None]:
    """Return whose the folder is or will be, and the user's name when that is not us."""
    me = os.geteuid()
    if me != 0:
        if there and folder.stat().st_uid != me:
            raise SourceError(
                f"refused: {folder} belongs to {_user_name(folder.stat().st_uid)}, and this is {_user_name(me)}",
                hints=["run drkit as the user that the server will run as, or as root"],
            )
        return Owner(me, os.getegid()), None
    if "uid" in marked:
        uid, gid = marked["uid"], marked["gid"]
    elif there:
        uid, gid = folder.stat().st_uid, folder.stat().st_gid
    else:
        uid, gid = _server_user()
    if uid == 0:
        raise SourceError(
            f"refused: {folder} belongs to root, and PostgreSQL does not run as root",
            hints=[shell_line("chown", "postgres", folder)],
        )
    return Owner(uid, gid), _user_name(uid)


def _server_user() -> tuple[int, int]:
    for name in _SERVER_USERS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return account.pw_uid, account.pw_gid
    raise SourceError(
        "there is no user postgres to whom a new folder could belong",
        hints=["make the folder first, and give it to the user that the server will run as"],
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read_marker(folder: Path) -> dict[str, int]:
    try:
        marked = json.loads((folder / MARKER).read_text())
        holder = ProcessIdentity.parse(str(marked["process"]))
        found = {"uid": int(marked["uid"]), "gid": int(marked["gid"])}
    except (ValueError, KeyError, TypeError):
        return {}  # the kill came while it was being written: nothing else is there yet
    if not holder.is_known_dead() and holder != ProcessIdentity.own():
        raise Busy(
            f"another restore is writing into {folder}: process {holder.pid} on {holder.host}",
            hints=[f"if that process is gone for good: {shell_line('rm', '-rf', folder)}"],
        )
    return found


def _held_bytes(folder: Path) -> int:
    """Return the bytes of an unfinished restore, which are freed before the next one."""
    return sum(
        path.lstat().st_blocks * 512
        for top, _, names in os.walk(folder)
        for path in (Path(top) / name for name in names)
    )


@contextmanager
def claimed(target: TargetFolder) -> Iterator[None]:
    """Make the folder ours, cleared and marked; on success it is unmarked, on failure it is left empty.

    An owner that is not us gets the folder by `hand_over`, not before.
    """
    folder = target.path
    folder.mkdir(mode=0o700, exist_ok=True)
    existed_for = folder.stat()
    os.chown(folder, os.geteuid(), os.getegid()) if existed_for.st_uid != os.geteuid() else None
    folder.chmod(0o700)
    clear(folder, keep=MARKER)
    _mark(target)
    try:
        yield
    except BaseException as error:
        add_left(error, _leave_empty(target))
        raise
    (folder / MARKER).unlink()
    sync_path(folder)


def _leave_empty(target: TargetFolder) -> str:
    """Clear and unmark the folder; return what is left where that fails, for the error's details.

    The mark is then left too, by which the next restore knows that it may clear the folder.
    """
    try:
        clear(target.path, keep=MARKER)
        hand_over(target)
        (target.path / MARKER).unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        return f"{target.path} is left with a part of the restore, which the next one into it clears: {reason}"
    return ""


def _mark(target: TargetFolder) -> None:
    marker = target.path / MARKER
    marker.unlink(missing_ok=True)
    content = {"process": str(ProcessIdentity.own()), "uid": target.owner.uid, "gid": target.owner.gid}
    descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    sync_path(target.path)


def clear(folder: Path, *, keep: str = "") -> None:
    """Remove everything in a folder but one name, and what a server that was killed there left in shared memory.

    Links are removed, not followed.
    """
    remove_interlock(folder)
    for path in folder.iterdir():
        if path.name == keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def hand_over(target: TargetFolder) -> None:
    """Give the folder itself to its owner."""
    target.owner.take(target.path)
