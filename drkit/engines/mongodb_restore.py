"""Loading archives of mongodump's form into a server that has none of their databases yet.

Documents come by mongorestore (`mongodb_mongorestore`) or by drkit itself (`mongodb_load`); either says how many came
back, and that must be as many as were dumped. Indexes and views are built when all of them are there, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
    translated,
)
from drkit.engines.mongodb_fingerprint import collection_name
from drkit.engines.mongodb_indexes import BuildOutcome, build_indexes, build_view, indexes_to_build, require_built
from drkit.engines.mongodb_load import load_archive
from drkit.engines.mongodb_mongorestore import Mongorestore
from drkit.engines.mongodb_placing import USERS_PART, Placing, place_parts
from drkit.engines.mongodb_users_restore import UsersLoad
from drkit.errors import DrkitError, SourceError, add_left
from drkit.fingerprint import total_rows
from drkit.mongo_archive import ArchiveSummary
from drkit.mongo_binaries import dump_way
from drkit.units import format_count

_SHOWN_NAMES = 5

DocumentLoad = Callable[[Placing, Iterator[bytes]], tuple[int, ArchiveSummary]]
"""Loads the documents of one archive where a placing says; returns how many came back, and what the archive holds."""


@contextmanager
def open_restore(url: Secret, options: RestoreOptions) -> Iterator[RestoreSession]:
    """Connect to the target and check that it has nothing of what is to be loaded; see `Engine.open_restore`."""
    endpoint = parse_url(url)
    placings = place_parts(options)
    with connect(endpoint) as client:
        server = read_server(client)
        for placing in placings.values():
            require_empty(client, endpoint, placing)
        UsersLoad(endpoint, options).require_absent(client)
    with open_load(endpoint, options, server, placings) as load:
        yield load


@contextmanager
def open_load(
    endpoint: Endpoint, options: RestoreOptions, server: ServerFacts, placings: Mapping[str, Placing]
) -> Iterator[LoadSession]:
    """Lend the load itself, by the way that the options say; the target was checked."""
    if dump_way(options.via) == "native":
        with connect(endpoint, options.idle_timeout_s) as client:

            def load(placing: Placing, chunks: Iterator[bytes]) -> tuple[int, ArchiveSummary]:
                return load_archive(client, server, placing.collections, chunks, options.jobs)

            yield LoadSession(endpoint, options, server, placings, load)
    else:
        with tool_config(endpoint, options.work_folder) as config:
            yield LoadSession(endpoint, options, server, placings, Mongorestore(config, options).load)


def found_in_the_way(client: Client, placing: Placing) -> dict[str, list[str]]:
    """Return by database the collections that are where something is to go."""
    found = {}
    for database in placing.databases:
        there = sorted(name for name in client[database].list_collection_names() if not name.startswith("system."))
        if database not in placing.whole:
            there = sorted({*there} & {*placing.names_in(database)})
        if there:
            found[database] = there
    return found


def require_empty(client: Client, endpoint: Endpoint, placing: Placing) -> None:
    """Raise SourceError naming the collections that are in the way."""
    for database, there in found_in_the_way(client, placing).items():
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
        placings: Mapping[str, Placing],
        load_documents: DocumentLoad,
    ) -> None:
        self._endpoint = endpoint
        self._options = options
        self._server = server
        self.placings = placings
        self._load_documents = load_documents
        self._loaded: list[tuple[Placing, ArchiveSummary]] = []
        self.users = UsersLoad(endpoint, options)
        self.result = LoadResult()
        source = options.details["server"]
        if source["major"] != server.major:
            self.result.warnings.append(
                f"the backup is of MongoDB {source['version']} and the target is {server.version}:"
                " MongoDB promises a restore only between servers of one major version"
            )
        elif source.get("compatibility", "") not in ("", server.compatibility):
            self.result.warnings.append(
                f"the backup is of feature compatibility version {source['compatibility']}, and the target is"
                f" {server.compatibility or 'of one that it does not say'}"
            )

    @property
    def summary(self) -> str:
        """Return one line that names the target."""
        return f"mongodb {self._server.label} at {self._endpoint.server}"

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load the documents of one part; whatever goes wrong, none of them stays behind, or the error says which."""
        if part == USERS_PART:
            self.users.read(chunks)
            self.result.loaded[part] = self.users.words
            return
        placing = self.placings[part]
        try:
            with translated(self._endpoint):
                restored, summary = self._load_documents(placing, chunks)
            self._require_all(part, restored)
        except BaseException as error:
            add_left(error, self._undo(placing))
            raise
        self._loaded.append((placing, summary))
        self.result.loaded[part] = ", ".join(placing.databases)

    def _undo(self, placing: Placing) -> str:
        """Drop what a load brought; return what is left where that fails, for the error's details."""
        try:
            with connect(self._endpoint) as client:
                take_back(client, placing)
        except DrkitError as error:
            names = " and ".join(placing.databases)
            return (
                f"{names} at {self._endpoint.server} may be left with a part of the backup, because it could not be"
                f" dropped again: {error.message}"
            )
        return ""

    def _require_all(self, part: str, restored: int) -> None:
        """Raise SourceError unless as many documents were restored as were dumped."""
        recorded = self._options.details["parts"][part].get("fingerprint", {}).get("collection", {})
        placing = self.placings[part]
        dumped = total_rows({"collection": {name: recorded[name] for name in placing.collections}})
        if restored != dumped:
            names = ", ".join(placing.databases)
            raise SourceError(f"database {names}: {restored:,} of {dumped:,} documents were restored")

    def finish(self) -> LoadResult:
        """Build indexes, then views, then roles and users; raise SourceError naming those that could not be built.

        The documents stay in that case: they took the time.
        """
        with connect(self._endpoint) as client:
            outcomes = [*self._build_indexes(client), *self._build_views(client), *self.make_users(client)]
        for outcome in outcomes:
            self.result.built[outcome.label] = outcome.words
            self.result.warnings += [f"{outcome.label}: {change}" for change in outcome.changed]
        require_built(outcomes)
        return self.result

    def make_users(self, client: Client) -> Iterator[BuildOutcome]:
        """Make the roles and users that were read; see `UsersLoad.make`."""
        return self.users.make(client)

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
