"""The engines that drkit has, by the words that a policy uses for them; each is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, cast

from drkit.engines import Engine, Planned, RestoreOptions
from drkit.errors import ConfigError

_ENGINES = {
    ("postgres", "dump"): "drkit.engines.postgres_dump:PostgresDump",
    ("postgres", "base"): "drkit.engines.postgres_base:PostgresBase",
    ("mongodb", "dump"): "drkit.engines.mongodb_dump:MongodbDump",
}


_PART_CHECKS = {("mongodb", "dump"): "drkit.engines.mongodb_proof:verify_part"}

PartCheck = Callable[[Mapping[str, Any] | None, Iterator[bytes]], Sequence[str]]
"""Reads a part's plain bytes whole, without a server; the part's facts are None where the details were not opened.

Returns what could not be looked at, in words. Raises IntegrityError when the bytes are not sound, or are not what the
facts record.
"""

_PLANNERS = {("mongodb", "dump"): "drkit.engines.mongodb_placing:plan_contents"}

Planner = Callable[[RestoreOptions], Iterable[Planned]]
"""Lists what a restore will make, from the details alone; raises SourceError for a name that they do not have."""

_RESTORE_CHOICES = {
    ("postgres", "dump"): frozenset({"tables"}),
    ("mongodb", "dump"): frozenset({"tables", "exclude_tables", "renames", "with_users", "exclude_users"}),
}


@cache
def find_engine(engine: str, method: str) -> Engine:
    """Return the engine for a policy's words; raise ConfigError for one that this drkit cannot run."""
    found = _ENGINES.get((engine, method))
    if found is None:
        runs = ", ".join(f"{engine} {method}" for engine, method in _ENGINES)
        raise ConfigError(f"this drkit cannot run {engine} {method}", details=[f"it runs {runs}"])
    return cast("Engine", _imported(found)())


def find_part_check(engine: str, method: str) -> PartCheck | None:
    """Return how a part's content is verified without a server; None where only its digest can be."""
    found = _PART_CHECKS.get((engine, method))
    return cast("PartCheck", _imported(found)) if found else None


def find_planner(engine: str, method: str) -> Planner | None:
    """Return what lists the content of a restore by name; None where nothing does."""
    found = _PLANNERS.get((engine, method))
    return cast("Planner", _imported(found)) if found else None


def restore_choices(engine: str, method: str) -> frozenset[str]:
    """Return the fields of `RestoreOptions` by which a person can narrow or change a restore."""
    return _RESTORE_CHOICES.get((engine, method), frozenset())


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
