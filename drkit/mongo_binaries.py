"""Finding MongoDB's tools and servers: $DRKIT_MONGO_BIN first, then the search path."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from drkit.errors import SourceError
from drkit.process import Command, run

FOLDERS_VARIABLE = "DRKIT_MONGO_BIN"
_VERSION = re.compile(r"version:? v?(\S+)")


def find_mongo_binary(tool: str) -> Path | None:
    """Return where a program is, None when it is nowhere."""
    folders = [folder for folder in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if folder]
    for path in (os.pathsep.join(folders), None):
        found = shutil.which(tool, path=path) if path != "" else None
        if found:
            return Path(found).absolute()
    return None


def mongo_binary(tool: str) -> Path:
    """Return where one of the MongoDB Database Tools is; raise SourceError naming what to install."""
    found = find_mongo_binary(tool)
    if found is None:
        raise SourceError(
            f"{tool} is not installed",
            hints=[
                "install the MongoDB Database Tools, 100.9 or newer",
                f"or name their folder: export {FOLDERS_VARIABLE}=/path/to/bin",
            ],
        )
    return found


def dump_way(via: str | None) -> str:
    """Return how dumps are made and loaded: as asked, else by MongoDB's tools where both are here, else by drkit."""
    if via is not None:
        return via
    return "tools" if all(find_mongo_binary(tool) for tool in ("mongodump", "mongorestore")) else "native"


def mongo_tool_version(path: Path) -> str:
    """Return the version that a program says it is; ``unknown`` for one that was built without it."""
    match = _VERSION.search(run(Command([str(path), "--version"]), timeout_s=20).stdout.decode(errors="replace"))
    return match[1] if match else "unknown"
