"""What a restore of a dump will make, name by name, and whether its engine knows the choices that were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from drkit.engines import Planned, RestoreOptions
from drkit.engines.registry import find_planner, restore_choices
from drkit.errors import ConfigError
from drkit.model import Manifest
from drkit.units import format_bytes, format_count

_MOST_SHOWN = 50
_OPTIONS = {
    "tables": "--table",
    "exclude_tables": "--exclude-table",
    "renames": "--rename",
    "with_users": "--with-users",
    "exclude_users": "--exclude-user",
}


def plan_contents(manifest: Manifest, options: RestoreOptions) -> tuple[Planned, ...]:
    """Return what will be made; empty where the engine lists nothing.

    Raise ConfigError for a choice that the engine does not know, SourceError for a name that the artifact lacks.
    """
    known = restore_choices(manifest.engine, manifest.method)
    strange = [word for name, word in _OPTIONS.items() if getattr(options, name) and name not in known]
    if strange:
        knows = ", ".join(word for name, word in _OPTIONS.items() if name in known) or "none of these options"
        raise ConfigError(
            f"a restore of {manifest.engine} {manifest.method} takes no {', '.join(strange)}",
            details=[f"it takes {knows}"],
        )
    planner = find_planner(manifest.engine, manifest.method)
    return tuple(planner(options)) if planner else ()


def describe_contents(contents: Sequence[Planned], part: str) -> Iterator[str]:
    """Say of one part what will be made, a line each."""
    made = [item for item in contents if item.part == part]
    for item in made[:_MOST_SHOWN]:
        yield f"    {_named(item)}  {_facts(item)}"
    if len(made) > _MOST_SHOWN:
        yield f"    … and {len(made) - _MOST_SHOWN:,} more; --json lists them all"


def _named(item: Planned) -> str:
    return item.source if item.source == item.target else f"{item.source} as {item.target}"


def _facts(item: Planned) -> str:
    if item.rows is None:
        return item.kind
    facts = [format_count(item.rows, "document" if item.kind == "collection" else "row")]
    facts += [format_bytes(item.size_bytes)] if item.size_bytes is not None else []
    facts += [f"indexes {', '.join(item.indexes)}"] if item.indexes else ["no index to build"]
    return ", ".join(facts)


def contents_document(contents: Sequence[Planned]) -> list[dict[str, Any]]:
    """Return what will be made, for scripts."""
    return [
        {
            "part": item.part,
            "kind": item.kind,
            "source": item.source,
            "target": item.target,
            "rows": item.rows,
            "size_bytes": item.size_bytes,
            "indexes": list(item.indexes),
        }
        for item in contents
    ]
