"""What a restore builds when the documents are there: indexes one by one with a result each, and views last.

Duplicates that come and go while an oplog is replayed must not meet a unique index (TOOLS-2041), and one index that
cannot be built must not cost the others: mongorestore hands over all of a collection's at once.

Definitions are those of an archive's metadata, in canonical Extended JSON. They are read here by the shape of a value
alone: `bson.json_util` takes ``{$regex: …}`` of a query for a value of its own, and would change the definition.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import json_util
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo.errors import OperationFailure

from drkit.engines.mongodb_client import Client
from drkit.errors import IntegrityError, SourceError
from drkit.units import format_count

_WRAPPED = frozenset(
    {
        *(frozenset({f"$number{kind}"}) for kind in ("Int", "Long", "Double", "Decimal")),
        *(frozenset({f"${kind}"}) for kind in ("oid", "date", "binary", "timestamp", "regularExpression")),
        *(frozenset({f"${kind}"}) for kind in ("minKey", "maxKey", "undefined", "symbol", "code", "dbPointer")),
        frozenset({"$code", "$scope"}),
    }
)
_READING = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, datetime_conversion=DatetimeConversion.DATETIME_AUTO, tz_aware=True
)
_GONE_OPTIONS = ("safe", "dropDups")
"""Options that old servers kept with an index and newer ones refuse; neither changes what a built index does."""
_OLDEST_VERSION = 1


@dataclass(frozen=True)
class BuildOutcome:
    """What came of one index or view; ``name`` is the full one, such as ``shop.orders.by day``.

    ``error`` is empty when it was built; ``changed`` says what no server takes any more.
    """

    kind: str
    name: str
    took_s: float
    error: str = ""
    changed: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return kind and name."""
        return f"{self.kind} {self.name}"

    @property
    def words(self) -> str:
        """Say how it went."""
        return f"failed: {self.error}" if self.error else f"built in {self.took_s:.1f} s"


def from_extended_json(value: Any) -> Any:
    """Turn parsed canonical Extended JSON into values for a command; keys stay in their order.

    Raise IntegrityError for a value that is none.
    """
    if isinstance(value, list):
        return [from_extended_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        converted = {key: from_extended_json(item) for key, item in value.items()}
        return json_util.object_hook(converted, _READING) if frozenset(value) in _WRAPPED else converted
    except (BSONError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise IntegrityError(f"the backup's metadata has {next(iter(value))} without a value of that kind") from error


def indexes_to_build(definition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the indexes of a collection's metadata, without those that it is created with."""
    indexes = definition.get("indexes") or ()
    return [index for index in indexes if index.get("name") != "_id_" and not index.get("clustered")]


def build_indexes(
    client: Client, namespace: tuple[str, str], definitions: Iterable[Mapping[str, Any]]
) -> Iterator[BuildOutcome]:
    """Build indexes of one collection, one after another, and yield what came of each; a refusal stops none.

    A server that is lost raises pymongo's error.
    """
    database, collection = namespace
    for definition in definitions:
        index, changed = _as_servers_take_it(from_extended_json(definition))
        command = {"createIndexes": collection, "indexes": [index]}
        took_s, error = _run(client, database, command)
        yield BuildOutcome("index", f"{database}.{collection}.{index.get('name')}", took_s, error, changed)


def build_view(client: Client, namespace: tuple[str, str], options: Mapping[str, Any]) -> BuildOutcome:
    """Create a view with the options of its metadata, their keys in order; its base need not be there."""
    database, name = namespace
    took_s, error = _run(client, database, {"create": name, **from_extended_json(dict(options))})
    return BuildOutcome("view", f"{database}.{name}", took_s, error)


def _run(client: Client, database: str, command: dict[str, Any]) -> tuple[float, str]:
    """Run a command; return its seconds, and the server's refusal or nothing."""
    started_s, error = time.monotonic(), ""
    try:
        client[database].command(command)
    except OperationFailure as failure:
        error = str((failure.details or {}).get("errmsg") or failure).splitlines()[0]
    return time.monotonic() - started_s, error


def _as_servers_take_it(index: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return an index without what only old servers knew, and what was changed.

    Before MongoDB 3.4 any value in a key that was no negative number and no text meant ascending
    (mongorestore --convertLegacyIndexes, TOOLS-2412).
    """
    changed = [f"option {name} left out" for name in _GONE_OPTIONS if name in index]
    kept = {name: value for name, value in index.items() if name not in {"ns", *_GONE_OPTIONS}}
    if kept.get("v", _OLDEST_VERSION) < _OLDEST_VERSION:
        changed.append(f"version {kept.pop('v')} left to the server")
    key = dict(kept.get("key") or {})
    strange = [field for field, value in key.items() if not _is_direction(value)]
    if strange:
        changed.append(f"the value of {', '.join(strange)} in its key taken for 1")
    return {**kept, "key": {**key, **dict.fromkeys(strange, 1)}}, tuple(changed)


def _is_direction(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, str | int | float) and value not in {"", 0}


def require_built(outcomes: Sequence[BuildOutcome]) -> None:
    """Raise SourceError naming every index and view that could not be built."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        nouns = ("index or view", "indexes and views")
        if any(outcome.kind in ("user", "role") for outcome in outcomes):
            nouns = ("index, view, role or user", "indexes, views, roles and users")
        raise SourceError(
            f"{len(failed):,} of {format_count(len(outcomes), *nouns)} could not be"
            f" built: {', '.join(outcome.label for outcome in failed)}",
            details=[f"{outcome.label}: {outcome.error}" for outcome in failed],
            hints=["every document is there: build them by hand, or drop the collections and restore again"],
        )
