"""Loading archives of mongodump with mongorestore, into a server that has none of the databases yet.

mongorestore exits with 0 when documents were refused, so its final count decides: nothing may have failed, and what it
restored must be what was dumped. The archive is read once more on its way, and damage stops the load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drkit.credentials import Secret
from drkit.engines import LoadResult, RestoreOptions, RestoreSession
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
    without_secrets,
)
from drkit.engines.mongodb_fingerprint import fingerprint_of, has_digests
from drkit.errors import IntegrityError, SourceError
from drkit.fingerprint import total_rows
from drkit.model import Fingerprint
from drkit.mongo_archive import ArchiveReader, read_archive
from drkit.mongo_binaries import mongo_binary
from drkit.process import Command, open_consumer, open_producer
from drkit.units import format_count

_FINAL = re.compile(r"(\d+) document\(s\) restored successfully\. (\d+) document\(s\) failed to restore")
_SHOWN_NAMES = 5


@contextmanager
def open_restore(url: Secret, options: RestoreOptions) -> Iterator[RestoreSession]:
    """Connect to the target and check that it has nothing of what is to be loaded; see `Engine.open_restore`."""
    endpoint = parse_url(url)
    _require_known(options)
    with connect(endpoint) as client:
        server = read_server(client)
        for part in options.parts:
            _require_empty(client, endpoint, _database(options, part), options.tables)
    with tool_config(endpoint, options.work_folder) as config:
        yield _LoadSession(endpoint, options, server, config)


def _database(options: RestoreOptions, part: str) -> str:
    return str(options.details["parts"][part]["label"])


def _require_known(options: RestoreOptions) -> None:
    """Raise SourceError naming collections that were asked for and are in no part of the backup."""
    known = {
        name
        for part in options.parts
        for kind in ("collection", "view")
        for name in options.details["parts"][part].get("fingerprint", {}).get(kind, {})
    }
    missing = sorted(set(options.tables) - known)
    if missing:
        raise SourceError(
            f"the backup has no collection {', '.join(missing)}", hints=["write it like DATABASE.COLLECTION"]
        )


def _require_empty(client: Client, endpoint: Endpoint, database: str, tables: Sequence[str]) -> None:
    """Raise SourceError naming the collections that are in the way."""
    there = sorted(name for name in client[database].list_collection_names() if not name.startswith("system."))
    if tables:
        there = [name for name in there if f"{database}.{name}" in tables]
    if there:
        shown = ", ".join(there[:_SHOWN_NAMES]) + (", …" if len(there) > _SHOWN_NAMES else "")
        raise SourceError(
            f"refused: database {database} on {endpoint.server} is not empty"
            f" ({format_count(len(there), 'collection')}: {shown})",
            hints=["restore into another server: --to mongodb://OTHER-HOST:27017"],
        )


class _LoadSession:
    """One load in progress."""

    def __init__(self, endpoint: Endpoint, options: RestoreOptions, server: ServerFacts, config: Path) -> None:
        self._endpoint = endpoint
        self._options = options
        self._server = server
        self._config = config
        self._mongorestore = mongo_binary("mongorestore")
        self._result = LoadResult()
        source = options.details["server"]
        if source["major"] != server.major:
            self._result.warnings.append(
                f"the backup is of MongoDB {source['version']} and the target is {server.version}:"
                " MongoDB promises a restore only between servers of one major version"
            )

    @property
    def summary(self) -> str:
        """Return one line that names the target."""
        return f"mongodb {self._server.label} at {self._endpoint.server}"

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load one database; whatever goes wrong, none of it stays behind."""
        database = _database(self._options, part)
        try:
            with without_secrets():
                restored = self._run(chunks)
            self._require_all(part, restored)
        except BaseException:
            self._take_back(database)
            raise
        self._result.loaded[part] = database

    def _run(self, chunks: Iterator[bytes]) -> int:
        """Feed mongorestore and return how many documents it says it restored; raise SourceError if any failed."""
        argv = [str(self._mongorestore), f"--config={self._config}", "--archive"]
        argv.append(f"--numInsertionWorkersPerCollection={self._options.jobs}")
        argv += [f"--nsInclude={_escaped(name)}" for name in self._options.tables]
        with open_consumer(Command(argv), idle_timeout_s=self._options.idle_timeout_s) as consumer:
            consumer.feed(_sound(chunks))
            lines = consumer.stderr_lines
        final = next((match for line in reversed(lines) if (match := _FINAL.search(line))), None)
        if final is None:
            raise SourceError("mongorestore did not say how many documents it restored", details=lines)
        restored, failed = int(final[1]), int(final[2])
        if failed:
            raise SourceError(
                f"mongorestore could not restore {format_count(failed, 'document')} of {restored + failed:,},"
                " and still exited with 0",
                details=[line for line in lines if "error" in line.lower() or "duplicate" in line.lower()] or lines,
            )
        return restored

    def _require_all(self, part: str, restored: int) -> None:
        """Raise SourceError unless as many documents were restored as were dumped."""
        recorded = self._options.details["parts"][part].get("fingerprint", {})
        if self._options.tables:
            recorded = {"collection": _only(recorded.get("collection", {}), self._options.tables)}
        dumped = total_rows(recorded)
        if restored != dumped:
            database = _database(self._options, part)
            raise SourceError(f"database {database}: mongorestore restored {restored:,} of {dumped:,} documents")

    def _take_back(self, database: str) -> None:
        """Drop what was loaded: it was not there before."""
        with connect(self._endpoint) as client:
            if not self._options.tables:
                client.drop_database(database)
                return
            for name in self._options.tables:
                owner, _, collection = name.partition(".")
                if owner == database:
                    client[database].drop_collection(collection)

    def finish(self) -> LoadResult:
        """Return what came of the load."""
        return self._result


def _only(facts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: facts[name] for name in names if name in facts}


def _sound(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield ``chunks`` and raise IntegrityError as soon as they cannot be a sound archive."""
    reader = ArchiveReader(digests=False)
    for chunk in chunks:
        reader.feed(chunk)
        yield chunk
    reader.finish()


def _escaped(name: str) -> str:
    return re.sub(r"([\\*])", r"\\\1", name)


def read_fingerprints(url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:
    """Dump the restored databases once more, into nothing, and take the fingerprint of what passes."""
    endpoint = parse_url(url)
    mongodump = mongo_binary("mongodump")
    found: dict[str, Fingerprint] = {}
    with tool_config(endpoint, options.work_folder) as config:
        for part in options.parts:
            database = _database(options, part)
            digests = has_digests(options.details["parts"][part].get("fingerprint", {}))
            command = Command(dump_argv(mongodump, config, database))
            with (
                open_producer(command, idle_timeout_s=options.idle_timeout_s) as producer,
                blamed_on_mongodump(database),
            ):
                found[part] = fingerprint_of(read_archive(producer.chunks(), digests=digests))
    return found


def verify_part(facts: Mapping[str, Any] | None, chunks: Iterator[bytes]) -> None:
    """Read an archive without a server; raise IntegrityError unless it is sound and holds what was recorded.

    ``facts`` are the part's of the artifact's details, None where they could not be opened.
    """
    recorded = (facts or {}).get("fingerprint")
    summary = read_archive(chunks, digests=recorded is not None and has_digests(recorded))
    if recorded is not None and fingerprint_of(summary) != recorded:
        raise IntegrityError("the archive does not hold the documents and definitions that were recorded of it")


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
