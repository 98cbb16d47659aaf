"""What of an oplog belongs to a restore, and what there was at the dump: pure, from the artifact's details."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from drkit.engines import RestoreOptions
from drkit.engines.mongodb_apply import Totals
from drkit.engines.mongodb_fingerprint import collection_of_index, is_capped, is_time_series
from drkit.engines.mongodb_indexes import from_extended_json, indexes_to_build
from drkit.engines.mongodb_placing import USERS_PART, Placing, target_name
from drkit.oplog_catalog import OplogCatalog
from drkit.oplog_series import buckets_name, series_name

_SERVER_PART = "server"


def name_in_target(options: RestoreOptions, placings: Mapping[str, Placing]) -> Callable[[str], str | None]:
    """Return what says how a namespace of the source is called in the target; None for one that is not restored.

    A collection that came after the dump belongs to the restore when the rules that chose the others choose it: its
    database is one of the parts', or the dump is the whole server's.
    """
    known: dict[str, str] = {}
    for placing in placings.values():
        known |= {**placing.collections, **placing.views}
    databases = {name for part in options.parts for name in _databases(options.details["parts"][part])}
    whole = any(options.details["parts"][part].get("kind") == _SERVER_PART for part in options.parts)
    left_out = {name for part in options.parts for name in _left_out(options.details["parts"][part])}
    left_out |= {name for placing in placings.values() for name in placing.left_out}

    def find(namespace: str) -> str | None:
        # What a time series keeps its documents in belongs to it, and is left out with it.
        namespace = series_name(namespace)
        if namespace in known:
            return known[namespace]
        if namespace in left_out or not (whole or namespace.partition(".")[0] in databases):
            return None
        return target_name(namespace, options)

    return find


def accounts_belong(options: RestoreOptions, held: Mapping[str, Mapping[str, bytes]]) -> Callable[[str], bool]:
    """Return what says whether users and roles that came to a database after the dump belong to the restore.

    They do when those of the dump are of the whole server, of that database, or somebody of it is among them.
    """
    parts = [facts for facts in options.details["parts"].values() if facts.get("kind") != USERS_PART]
    known = {name for facts in parts for name in _databases(facts)}
    known |= {name.partition(".")[0] for names in held.values() for name in names}
    whole = any(facts.get("kind") == _SERVER_PART for facts in parts)
    return lambda database: whole or database in known


def _databases(facts: Mapping[str, Any]) -> list[str]:
    return list(facts.get("databases") or [facts["label"]])


def _left_out(facts: Mapping[str, Any]) -> list[str]:
    return [f"{facts['label']}.{name}" for name in facts.get("excluded") or ()]


def catalog_at_dump(options: RestoreOptions, placings: Mapping[str, Placing]) -> OplogCatalog:
    """Return the collections with their indexes, and the views, as they were when the dump was taken."""
    catalog = OplogCatalog()
    for part, placing in placings.items():
        recorded = options.details["parts"][part].get("fingerprint", {})
        for name in placing.collections:
            catalog.indexes[name] = {}
            if is_capped(recorded["collection"][name]):
                catalog.capped.add(name)
            if is_time_series(recorded["collection"][name]):
                catalog.note_series(name, json.loads(recorded["collection"][name].get("options") or "{}"))
        for name in placing.views:
            catalog.views[name] = from_extended_json(json.loads(recorded["view"][name]["definition"]))
        for name, index in _indexes(recorded.get("index", {})):
            if name in catalog.indexes:
                catalog.indexes[name][index["name"]] = index
    return catalog


def _indexes(recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each recorded index with its collection; both names may have dots, so the index says what is its own."""
    for full, facts in recorded.items():
        definition = json.loads(facts["definition"])
        for index in indexes_to_build({"indexes": [definition]}):
            yield collection_of_index(full, index["name"]), from_extended_json(dict(index))


def totals_at_dump(options: RestoreOptions, placings: Mapping[str, Placing]) -> Totals:
    """Return count and digest of each collection as the dump has it, of a time series by the name of its buckets."""
    totals: Totals = {}
    for part, placing in placings.items():
        recorded = options.details["parts"][part].get("fingerprint", {}).get("collection", {})
        for name in placing.collections:
            digest = recorded[name].get("digest")
            place = buckets_name(name) if is_time_series(recorded[name]) else name
            totals[place] = int(recorded[name]["rows"]), None if digest is None else int(digest, 16)
    return totals
