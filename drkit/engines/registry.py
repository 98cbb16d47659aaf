"""The engines that drkit has, by the words that a policy uses for them."""

from __future__ import annotations

from drkit.engines import Engine
from drkit.engines.postgres_base import PostgresBase
from drkit.engines.postgres_dump import PostgresDump
from drkit.errors import ConfigError

ENGINES: dict[tuple[str, str], Engine] = {
    ("postgres", "dump"): PostgresDump(),
    ("postgres", "base"): PostgresBase(),
}


def find_engine(engine: str, method: str) -> Engine:
    """Return the engine for a policy's words; raise ConfigError for one that this drkit cannot run."""
    found = ENGINES.get((engine, method))
    if found is None:
        runs = ", ".join(f"{engine} {method}" for engine, method in ENGINES)
        raise ConfigError(f"this drkit cannot run {engine} {method}", details=[f"it runs {runs}"])
    return found
