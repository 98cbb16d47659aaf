"""Loading archives of mongodump with mongorestore, into a server that has none of the databases yet.

mongorestore exits with 0 when documents were refused, so its final count decides: nothing may have failed, and what it
restored must be what was dumped. The archive is read once more on its way, and damage stops the load. mongorestore
loads documents only: indexes and views are built by drkit when all of them are there, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drkit.credentials import Secret
from drkit.engines import LoadResult, RestoreOptions, RestoreSession
from drkit.engines.mongodb_client import (
    Client,
    Endpoint,
    ServerFacts,
    connect,
    parse_url,
    read_server,
    tool_config,
    without_secrets,
)
from drkit.engines.mongodb_fingerprint import collection_name, is_capped
from drkit.engines.mongodb_indexes import BuildOutcome, build_indexes, build_view, indexes_to_build, require_built
from drkit.engines.mongodb_placing import Placing, place_parts, tool_arguments
from drkit.errors import SourceError
from drkit.fingerprint import total_rows
from drkit.mongo_archive import ArchiveReader, ArchiveSummary
from drkit.mongo_binaries import mongo_binary
from drkit.process import Command, open_consumer
from drkit.units import format_count

_FINAL = re.compile(r"(\d+) document\(s\) restored successfully\. (\d+) document\(s\) failed to restore")
_SHOWN_NAMES = 5


@contextmanager
def open_restore(url: Secret, options: RestoreOptions) -> Iterator[RestoreSession]:
    """Connect to the target and check that it has nothing of what is to be loaded; see `Engine.open_restore`."""
    endpoint = parse_url(url)
    placings = place_parts(options)
    with connect(endpoint) as client:
        server = read_server(client)
        for placing in placings.values():
            require_empty(client, endpoint, placing)
    with tool_config(endpoint, options.work_folder) as config:
        yield LoadSession(endpoint, options, server, config, placings)


def require_empty(client: Client, endpoint: Endpoint, placing: Placing) -> None:
    """Raise SourceError naming the collections that are in the way."""
    for database in placing.databases:
        there = sorted(name for name in client[database].list_collection_names() if not name.startswith("system."))
        if database not in placing.whole:
            there = sorted({*there} & {*placing.names_in(database)})
        if there:
            shown = ", ".join(there[:_SHOWN_NAMES]) + (", …" if len(there) > _SHOWN_NAMES else "")
            raise SourceError(
                f"refused: database {database} on {endpoint.server} is not empty"
                f" ({format_count(len(there), 'collection')}: {shown})",
                hints=[
                    "restore into another server: --to mongodb://OTHER-HOST:27017",
                    f"or beside it: --rename {database}={database}_restored",
                ],
            )


def take_back(client: Client, placing: Placing) -> None:
    """Drop what a load brought: it was not there before."""
    for database in placing.databases:
        if database in placing.whole:
            client.drop_database(database)
        else:
            for name in placing.names_in(database):
                client[database].drop_collection(name)


class LoadSession:
    """One load in progress; ``result`` is what came of it so far."""

    def __init__(
        self,
        endpoint: Endpoint,
        options: RestoreOptions,
        server: ServerFacts,
        config: Path,
        placings: Mapping[str, Placing],
    ) -> None:
        self._endpoint = endpoint
        self._options = options
        self._server = server
        self._config = config
        self.placings = placings
        self._mongorestore = mongo_binary("mongorestore")
        self._loaded: list[tuple[Placing, ArchiveSummary]] = []
        self.result = LoadResult()
        source = options.details["server"]
        if source["major"] != server.major:
            self.result.warnings.append(
                f"the backup is of MongoDB {source['version']} and the target is {server.version}:"
                " MongoDB promises a restore only between servers of one major version"
            )

    @property
    def summary(self) -> str:
        """Return one line that names the target."""
        return f"mongodb {self._server.label} at {self._endpoint.server}"

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load the documents of one part; whatever goes wrong, none of them stays behind."""
        placing = self.placings[part]
        try:
            with without_secrets():
                restored, summary = self._run(placing, part, chunks)
            self._require_all(part, restored)
        except BaseException:
            with connect(self._endpoint) as client:
                take_back(client, placing)
            raise
        self._loaded.append((placing, summary))
        self.result.loaded[part] = ", ".join(placing.databases)

    def _run(self, placing: Placing, part: str, chunks: Iterator[bytes]) -> tuple[int, ArchiveSummary]:
        """Feed mongorestore; return how many documents it says it restored, and what the archive holds.

        Raise SourceError if any document failed.
        """
        sound = _Sound()
        argv = [str(self._mongorestore), f"--config={self._config}", "--archive", "--noIndexRestore"]
        # What was there before its validator came has to come back as well.
        argv += ["--bypassDocumentValidation", *self._order(part), *tool_arguments(placing, self._options.renames)]
        with open_consumer(Command(argv), idle_timeout_s=self._options.idle_timeout_s) as consumer:
            consumer.feed(sound.watched(chunks))
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
        return restored, sound.summary

    def _order(self, part: str) -> list[str]:
        """Return how many may insert at once: one alone where the order of a capped collection is at stake."""
        recorded = self._options.details["parts"][part].get("fingerprint", {})
        if any(is_capped(facts) for facts in recorded.get("collection", {}).values()):
            return ["--maintainInsertionOrder"]
        return [f"--numInsertionWorkersPerCollection={self._options.jobs}"]

    def _require_all(self, part: str, restored: int) -> None:
        """Raise SourceError unless as many documents were restored as were dumped."""
        recorded = self._options.details["parts"][part].get("fingerprint", {}).get("collection", {})
        placing = self.placings[part]
        dumped = total_rows({"collection": {name: recorded[name] for name in placing.collections}})
        if restored != dumped:
            names = ", ".join(placing.databases)
            raise SourceError(f"database {names}: mongorestore restored {restored:,} of {dumped:,} documents")

    def finish(self) -> LoadResult:
        """Build indexes, then views, one by one; raise SourceError naming those that could not be built.

        The documents stay in that case: they took the time.
        """
        with connect(self._endpoint) as client:
            outcomes = [*self._build_indexes(client), *self._build_views(client)]
        for outcome in outcomes:
            self.result.built[outcome.label] = outcome.words
            self.result.warnings += [f"{outcome.label}: {change}" for change in outcome.changed]
        require_built(outcomes)
        return self.result

    def _build_indexes(self, client: Client) -> Iterator[BuildOutcome]:
        for placing, summary in self._loaded:
            for item in summary.collections:
                target = placing.collections.get(collection_name(item))
                if target is not None:
                    yield from build_indexes(client, _split(target), indexes_to_build(item.definition))

    def _build_views(self, client: Client) -> Iterator[BuildOutcome]:
        for placing, summary in self._loaded:
            for item in summary.collections:
                target = placing.views.get(collection_name(item))
                if target is not None:
                    options = item.definition.get("options") or {}
                    base = f"{item.database}.{options.get('viewOn')}"
                    if placing.renamed_alone(base):
                        self.result.warnings.append(f"view {target} is of {base}, which got another name")
                    yield build_view(client, _split(target), options)


def _split(name: str) -> tuple[str, str]:
    database, _, collection = name.partition(".")
    return database, collection


class _Sound:
    """Looks at an archive on its way to mongorestore."""

    def __init__(self) -> None:
        self._reader = ArchiveReader(digests=False)
        self._summary: ArchiveSummary | None = None

    @property
    def summary(self) -> ArchiveSummary:
        """Return what the archive holds; it was fed whole."""
        assert self._summary is not None
        return self._summary

    def watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield ``chunks`` and raise IntegrityError as soon as they cannot be a sound archive."""
        for chunk in chunks:
            self._reader.feed(chunk)
            yield chunk
        self._summary = self._reader.finish()
