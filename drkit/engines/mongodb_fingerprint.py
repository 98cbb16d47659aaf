"""The fingerprint of a MongoDB database: what an archive of mongodump holds, by collection, view and index.

It is made of the bytes of the archive, at backup time and of a restored copy alike, so nothing is read twice and
equal fingerprints mean equal documents. UUIDs change with every restore and are no part of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from drkit.model import Fingerprint
from drkit.mongo_archive import ArchiveSummary, CollectionSummary

SYSTEM_DATABASES = ("admin", "config", "local")
"""What an archive of a whole server also has, and no restore loads: users and roles, and the server's own."""


def fingerprint_of(summary: ArchiveSummary) -> Fingerprint:
    """Return kind -> name -> facts; names are ``database.collection``, of an index with its own name added.

    The system's databases are no part of it.
    """
    kinds: dict[str, dict[str, dict[str, Any]]] = {"collection": {}, "view": {}, "index": {}}
    indexes: dict[tuple[str, str], dict[str, Any]] = {}
    for item in summary.collections:
        if item.database in SYSTEM_DATABASES:
            continue
        name = collection_name(item)
        options = _spelled(item.definition.get("options") or {})
        if item.kind == "view":
            kinds["view"][name] = {"definition": options}
            continue
        facts: dict[str, Any] = {"form": item.kind, "options": options, "rows": item.documents}
        digests = {"digest": item.digest, "order": item.order_digest}
        kinds["collection"][name] = {**facts, **{key: value for key, value in digests.items() if value is not None}}
        for index in item.definition.get("indexes") or ():
            indexes[name, str(index.get("name"))] = {"definition": _spelled(index, without=("ns",))}
    kinds["index"] = name_indexes(indexes)
    return {kind: items for kind, items in kinds.items() if items}


def name_indexes(indexes: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return facts by one name for each index, from collection and own name.

    That is ``collection.index``, but two can have the same: ``b.c_1`` of ``a``, and ``c_1`` of ``a.b``. Those are
    written ``collection$index``; no name of a collection has a dollar sign. One of an index may, so whoever has such a
    name already gives it up as well.
    """
    taken = Counter(map(".".join, indexes))
    apart = {pair for pair in indexes if taken[".".join(pair)] > 1}
    while clashing := {pair for pair in indexes if ".".join(pair) in set(map("$".join, apart))} - apart:
        apart |= clashing
    return {("$" if pair in apart else ".").join(pair): facts for pair, facts in indexes.items()}


def collection_of_index(full: str, index: str) -> str:
    """Return the collection of an index from the name that `name_indexes` gave it and its own name."""
    return full[: -len(index) - 1]


def uuids_of(summary: ArchiveSummary) -> dict[str, str]:
    """Return the UUID of each collection, as it was at the source."""
    return {collection_name(item): str(item.definition.get("uuid", "")) for item in summary.collections}


def sizes_of(summary: ArchiveSummary) -> dict[str, int]:
    """Return how many bytes the documents of each collection have."""
    return {collection_name(item): item.size_bytes for item in summary.collections if item.kind != "view"}


def collection_name(item: CollectionSummary) -> str:
    """Return ``database.collection``."""
    return f"{item.database}.{item.name}"


def has_digests(fingerprint: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bool:
    """Tell whether the collections of a recorded fingerprint have digests; without collections there is nothing to."""
    return all("digest" in facts for facts in fingerprint.get("collection", {}).values())


def is_capped(facts: Mapping[str, Any]) -> bool:
    """Tell whether a collection, by its facts in a fingerprint, keeps its documents in their order."""
    return json.loads(facts.get("options") or "{}").get("capped") is True


def is_time_series(facts: Mapping[str, Any]) -> bool:
    """Tell whether a collection, by its facts in a fingerprint, is a time series, whatever its kind."""
    return facts.get("form") == "timeseries" or "timeseries" in json.loads(facts.get("options") or "{}")


def _spelled(document: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """Write Extended JSON in one spelling: servers list options in any order, but order matters inside of them."""
    kept = {key: document[key] for key in sorted(document) if key not in set(without)}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
