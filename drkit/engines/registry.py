"""The engines that drkit has, by the words that a policy uses for them; each is imported when it is first asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from drkit.engines import Engine
from drkit.errors import ConfigError

_ENGINES = {
    ("postgres", "dump"): "drkit.engines.postgres_dump:PostgresDump",
    ("postgres", "base"): "drkit.engines.postgres_base:PostgresBase",
    ("mongodb", "dump"): "drkit.engines.mongodb_dump:MongodbDump",
}


@cache
def find_engine(engine: str, method: str) -> Engine:
    """Return the engine for a policy's words; raise ConfigError for one that this drkit cannot run."""
    found = _ENGINES.get((engine, method))
    if found is None:
        runs = ", ".join(f"{engine} {method}" for engine, method in _ENGINES)
        raise ConfigError(f"this drkit cannot run {engine} {method}", details=[f"it runs {runs}"])
    module, _, name = found.partition(":")
    return cast("Engine", getattr(import_module(module), name)())
