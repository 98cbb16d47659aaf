"""Exactly which programs and libraries run here: what one wants to know of a backup that was taken months ago."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata

from drkit import __version__
from drkit.binaries import installed_versions
from drkit.errors import SourceError
from drkit.mongo_binaries import find_mongo_binary, mongo_tool_version

_LIBRARIES = ("backports.zstd", "boto3", "cryptography", "psycopg", "pydantic", "pymongo", "tzdata")
_POSTGRES_TOOLS = ("pg_dump", "pg_restore", "pg_basebackup", "pg_receivewal", "postgres")
_MONGO_TOOLS = ("mongodump", "mongorestore", "mongod")


def tool_versions() -> dict[str, str]:
    """Return every program and library by name; several versions of one joined by commas, what is missing left out."""
    versions = {"drkit": __version__, "python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    for tool in _POSTGRES_TOOLS:
        if found := installed_versions(tool):
            versions[tool] = ", ".join(found)
    for tool in _MONGO_TOOLS:
        with suppress(SourceError):
            if path := find_mongo_binary(tool):
                versions[tool] = mongo_tool_version(path)
    return versions
