"""Proving a MongoDB restore: archives read without a server, restored copies looked at with the same eyes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pymongo.errors import OperationFailure

from drkit.credentials import Secret
from drkit.engines import RestoreOptions
from drkit.engines.mongodb_client import (
    Client,
    Endpoint,
    ServerFacts,
    blamed_on_mongodump,
    connect,
    dump_argv,
    parse_url,
    read_server,
    tool_config,
)
from drkit.engines.mongodb_fingerprint import fingerprint_of, has_digests
from drkit.engines.mongodb_native import PARALLEL, open_archive, read_dumpable
from drkit.engines.mongodb_placing import USERS_PART
from drkit.engines.mongodb_reading import Reading
from drkit.engines.mongodb_users import read_users_archive
from drkit.errors import IntegrityError, SourceError
from drkit.fingerprint import compare_fingerprints, describe_difference
from drkit.model import Difference, Fingerprint
from drkit.mongo_archive import read_archive
from drkit.mongo_binaries import dump_way, mongo_binary
from drkit.mongo_ids import Identifiers
from drkit.process import Command, open_producer
from drkit.units import format_count

_OpenArchive = Callable[[str], AbstractContextManager[Iterator[bytes]]]


def read_fingerprints(url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:
    """Dump the restored databases once more, into nothing, and take the fingerprint of what passes.

    What the server itself finds wrong with a restored collection (its command ``validate``) is a fact of it.
    """
    endpoint = parse_url(url)
    found: dict[str, Fingerprint] = {}
    with _archives(endpoint, options) as dump:
        for part in options.parts:
            facts = options.details["parts"][part]
            digests = has_digests(facts.get("fingerprint", {}))
            kinds: dict[str, dict[str, Any]] = {}
            for database in facts.get("databases") or [str(facts["label"])]:
                with dump(database) as chunks:
                    for kind, items in fingerprint_of(read_archive(chunks, digests=digests)).items():
                        kinds.setdefault(kind, {}).update(items)
            found[part] = kinds
    if options.scratch:
        with connect(endpoint) as client:
            for fingerprint in found.values():
                validate(client, fingerprint)
    return found


@contextmanager
def _archives(endpoint: Endpoint, options: RestoreOptions) -> Iterator[_OpenArchive]:
    """Lend a function that dumps one database, by the way that the options say."""
    with ExitStack() as stack:
        if dump_way(options.via) == "native":
            client = stack.enter_context(connect(endpoint, options.idle_timeout_s))
            yield partial(_read_by_drkit, client, read_server(client))
        else:
            config = stack.enter_context(tool_config(endpoint, options.work_folder))
            yield partial(_read_by_mongodump, mongo_binary("mongodump"), config, options.idle_timeout_s)


def _read_by_drkit(client: Client, server: ServerFacts, database: str) -> AbstractContextManager[Iterator[bytes]]:
    reading = Reading(PARALLEL, keeps_cursors=server.keeps_cursors)
    return open_archive(client, server, read_dumpable(client, database), reading)


@contextmanager
def _read_by_mongodump(
    mongodump: Path, config: Path, idle_timeout_s: float, database: str
) -> Iterator[Iterator[bytes]]:
    command = Command(dump_argv(mongodump, config, database))
    with open_producer(command, idle_timeout_s=idle_timeout_s) as producer, blamed_on_mongodump(database):
        yield producer.chunks()


def validate(client: Client, fingerprint: Fingerprint) -> None:
    """Let the server look at storage and indexes of each collection, and note what it finds; not all servers can."""
    for name, facts in fingerprint.get("collection", {}).items():
        database, _, collection = name.partition(".")
        try:
            answer = client[database].command("validate", collection, full=True)
        except OperationFailure:
            continue
        if not answer.get("valid", True):
            assert isinstance(facts, dict)
            facts["validate"] = "; ".join(map(str, answer.get("errors") or ())) or "not valid"


def verify_part(facts: Mapping[str, Any] | None, chunks: Iterator[bytes]) -> Sequence[str]:
    """Read an archive without a server; raise IntegrityError unless it is sound and holds what was recorded.

    ``facts`` are the part's of the artifact's details, None where they could not be opened. Return what could not be
    looked at.
    """
    if facts is not None and facts.get("kind") == USERS_PART:
        read_users_archive(chunks, facts)
        return ()
    recorded = (facts or {}).get("fingerprint")
    identifiers = Identifiers()
    summary = read_archive(chunks, digests=recorded is not None and has_digests(recorded), identifiers=identifiers)
    if recorded is not None:
        found = compare_fingerprints(recorded, fingerprint_of(summary), expected)
        differences = [item for item in found if not item.expected_by]
        if differences:
            raise IntegrityError(
                "the archive does not hold the documents and definitions that were recorded of it:"
                f" {describe_difference(differences[0])}"
            )
    return identifiers.notes


def expected(difference: Difference) -> str:
    """Return why a difference is no loss, or the empty string: an archive carries all that is compared."""
    if difference.fact == "order" and difference.expected is None:
        return "a backup of before drkit looked at the order of capped collections"
    return ""


def run_check(url: Secret, part: Mapping[str, Any], query: str) -> Any:
    """Run one aggregation pipeline, ``{"collection": ..., "pipeline": [...]}``, and return its single value.

    Raise SourceError when it does not end in one document with one value beside ``_id``.
    """
    from bson import json_util

    asked = json_util.loads(query)
    endpoint = parse_url(url)
    with connect(endpoint) as client:
        found = list(client[str(part["label"])][asked["collection"]].aggregate(asked["pipeline"]))
    values = [value for document in found for key, value in document.items() if key != "_id"]
    if len(found) != 1 or len(values) != 1:
        raise SourceError(
            f"the pipeline over {asked['collection']} gave {format_count(len(found), 'document')}"
            f" with {format_count(len(values), 'value')}, and one value is wanted",
            hints=['end it like {$count: "n"} or {$group: {_id: null, n: {$sum: "$total"}}}'],
        )
    (value,) = values
    return value if value is None or isinstance(value, bool | int | float | str) else json.loads(json_util.dumps(value))
