"""Where the parts of a dump go: which databases of a target server, and the connection that does not need them yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from drkit.engines import RestoreOptions
from drkit.engines.postgres_client import Endpoint, connect
from drkit.errors import SourceError

GLOBALS = "globals"
"""The part that holds roles and tablespaces, which belong to no database."""


@dataclass(frozen=True)
class Place:
    """Where a part goes: a database, made by us or there before."""

    database: str
    exists: bool


@contextmanager
def open_maintenance(endpoint: Endpoint, options: RestoreOptions) -> Iterator[psycopg.Connection[Any]]:
    """Connect to a database that is there whatever is restored: the target itself may have to be made."""
    if options.scratch:
        with connect(endpoint, "template1") as connection:
            yield connection
        return
    try:
        opened = connect(endpoint, "postgres")
        connection = opened.__enter__()
    except SourceError:
        if endpoint.database in {None, "postgres"}:
            raise
        opened = connect(endpoint)
        connection = opened.__enter__()
    try:
        yield connection
    finally:
        opened.__exit__(None, None, None)


def places_of(endpoint: Endpoint, options: RestoreOptions, there: frozenset[str]) -> dict[str, Place]:
    """Say which database each part goes to: a single one to the URL's, several to those of their own names."""
    parts = [part for part in options.parts if part != GLOBALS]
    labels = {part: str(options.details["parts"][part]["label"]) for part in parts}
    if not options.scratch and len(parts) == 1 and endpoint.database:
        labels = {parts[0]: endpoint.database}
    elif not options.scratch and len(parts) > 1 and endpoint.database not in {None, "postgres"}:
        raise SourceError(
            f"the backup has {len(parts)} databases, and the target's url names one: {endpoint.database}",
            details=[f"they are {', '.join(labels.values())}"],
            hints=["choose one with --database, or leave the database out of the url to restore all by their names"],
        )
    return {part: Place(label, label in there) for part, label in labels.items()}
