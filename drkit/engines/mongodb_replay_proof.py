"""Holding a replayed restore against what the replay should have left of it.

Counts and digests of the dump no longer apply; the replay keeps them up to date with every document that it changes, as
it was before and as it is after. A restored copy is then read whole, and must come to the same sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from drkit.engines.mongodb_apply import Totals
from drkit.engines.mongodb_fingerprint import collection_of_index, name_indexes
from drkit.engines.mongodb_indexes import from_extended_json
from drkit.model import Fingerprint
from drkit.oplog_catalog import OplogCatalog
from drkit.oplog_series import buckets_name

_ID_INDEX = "_id_"
_COMPLAINT = "validate"
"""What the server itself finds wrong; nothing is expected of it."""


def expected_fingerprint(catalog: OplogCatalog, totals: Totals, rename: Callable[[str], str | None]) -> Fingerprint:
    """Return what a restored copy should have, by its names in the target.

    What a capped collection still holds is for the server to decide, so of it only the name counts.
    """
    collections: dict[str, dict[str, Any]] = {}
    indexes: dict[tuple[str, str], dict[str, Any]] = {}
    for name, known in catalog.indexes.items():
        rows, digest = totals.get(buckets_name(name) if name in catalog.time_series else name, (0, 0))
        facts: dict[str, Any] = {} if name in catalog.capped else {"rows": rows}
        if facts and digest is not None:
            facts["digest"] = f"{digest:064x}"
        collections[str(rename(name))] = facts
        for index_name, index in known.items():
            indexes[str(rename(name)), index_name] = _index_facts(index)
    views: dict[str, dict[str, Any]] = {str(rename(name)): {} for name in catalog.views}
    return {"collection": collections, "index": name_indexes(indexes), "view": views}


def _index_facts(index: Mapping[str, Any]) -> dict[str, Any]:
    # A direction is a number of any kind, and servers write the same one as another.
    key = [(field, float(value) if isinstance(value, int) else value) for field, value in index["key"].items()]
    return {"key": ", ".join(f"{field}: {value}" for field, value in key), "unique": bool(index.get("unique"))}


def comparable(found: Fingerprint, expected: Fingerprint) -> Fingerprint:
    """Reduce the fingerprint of a restored copy to what is known of it."""
    collections = {}
    for name, facts in found.get("collection", {}).items():
        wanted = {*expected["collection"].get(name, ()), _COMPLAINT}
        collections[name] = {fact: value for fact, value in facts.items() if fact in wanted}
    indexes: dict[tuple[str, str], dict[str, Any]] = {}
    for name, facts in found.get("index", {}).items():
        definition = from_extended_json(json.loads(facts["definition"]))
        own = str(definition.get("name"))
        if own != _ID_INDEX and not definition.get("clustered"):
            indexes[collection_of_index(name, own), own] = _index_facts(definition)
    views: dict[str, dict[str, Any]] = {name: {} for name in found.get("view", {})}
    return {"collection": collections, "index": name_indexes(indexes), "view": views}
