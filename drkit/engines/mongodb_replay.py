"""A MongoDB restore that goes on behind its dump: load, replay the oplog, then build indexes and views.

What was killed is gone on with by the same command: a marker in the target says whose half a restore lies there, and a
folder of this host (`mongodb_redo`) how far its replay is. Before the replay nothing is gone on with: what was loaded
is dropped, and loaded again. Both are removed when everything is there.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pymongo.collection import Collection

from drkit.canonical import canonical_json
from drkit.credentials import Secret
from drkit.engines import LoadResult, RestoreOptions
from drkit.engines.mongodb_apply import Applier, Replayed, ReplayOptions, Totals
from drkit.engines.mongodb_client import Client, Endpoint, connect, parse_url, read_server
from drkit.engines.mongodb_indexes import BuildOutcome, build_indexes, build_view, require_built
from drkit.engines.mongodb_marker import Marker, new_marker, read_marker, remove_marker, require_same, write_marker
from drkit.engines.mongodb_oplog import read_newest
from drkit.engines.mongodb_placing import Placing, place_parts
from drkit.engines.mongodb_redo import Progress, RedoFile
from drkit.engines.mongodb_replay_proof import expected_fingerprint
from drkit.engines.mongodb_replay_scope import accounts_belong, catalog_at_dump, name_in_target, totals_at_dump
from drkit.engines.mongodb_restore import LoadSession, found_in_the_way, open_load, require_empty, take_back
from drkit.engines.mongodb_users_restore import UsersLoad
from drkit.errors import SourceError
from drkit.model import Fingerprint
from drkit.oplog import OplogTs
from drkit.oplog_accounts import Accounts
from drkit.oplog_selection import Selection
from drkit.oplog_series import BUCKETS, series_name
from drkit.units import format_count

_QUIET_S = 1.0


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay behind the dump ``artifact_id``, which may hold entries up to ``strict_after``.

    ``until`` is inclusive, None for all there is. ``state_folder`` is private and outlives the process.
    """

    artifact_id: str
    strict_after: OplogTs
    until: datetime | None
    state_folder: Path
    watch: Callable[[OplogTs, datetime], object] | None = None


@contextmanager
def open_replay(url: Secret, options: RestoreOptions, request: ReplayRequest) -> Iterator[ReplaySession]:
    """Connect to the target; check that it has nothing of what is to come, or an unfinished restore of just that.

    Raise SourceError naming what is in the way, before anything is written.
    """
    endpoint = parse_url(url)
    placings = place_parts(options)
    choice = _choice_of(options)
    with connect(endpoint) as client:
        server = read_server(client)
        marker = read_marker(client)
        if marker is None:
            for placing in placings.values():
                require_empty(client, endpoint, placing)
            UsersLoad(endpoint, options).require_absent(client)
        else:
            require_same(marker, request.artifact_id, choice, endpoint.server)
    with open_load(endpoint, options, server, placings) as load:
        yield ReplaySession(endpoint, options, request, load, marker or new_marker(request.artifact_id, choice))


def _choice_of(options: RestoreOptions) -> str:
    """Return what two restores have in common if and only if they restore the same things to the same names."""
    facts = [list(options.parts), list(options.tables), list(options.exclude_tables), dict(options.renames)]
    facts += [list(options.exclude_users)] if options.with_users else []
    return hashlib.sha256(canonical_json(facts)).hexdigest()


class ReplaySession:
    """One such restore in progress: `load` each part unless it ``resumes``, then `replay`, then `finish`."""

    def __init__(
        self, endpoint: Endpoint, options: RestoreOptions, request: ReplayRequest, load: LoadSession, marker: Marker
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._load = load
        self._marker = marker
        self._placings: Mapping[str, Placing] = load.placings
        self._totals = totals_at_dump(options, self._placings)
        self._catalog = catalog_at_dump(options, self._placings)
        self._selection = Selection(name_in_target(options, self._placings))
        self._options = options
        self._folder = request.state_folder / marker.restore_id
        self._redo = RedoFile(self._folder, marker.restore_id)
        self.resumes = marker.phase == "replaying"
        if self.resumes and self._redo.read() is None:
            raise SourceError(
                f"an unfinished restore cannot go on: {self._folder} is gone",
                hints=["drop what it restored and database drkit_restore, and begin again"],
            )

    @property
    def summary(self) -> str:
        """Return one line that names the target."""
        return self._load.summary

    def begin(self) -> None:
        """Mark the target as ours; drop what a load that was killed left."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with connect(self._endpoint) as client:
            if read_marker(client) is not None:
                self._take_back(client)
            write_marker(client, self._marker)

    def _take_back(self, client: Client) -> None:
        """Drop what is there until nothing comes any more: the tool of a killed drkit outlives it a little."""
        placings = list(self._placings.values())
        while True:
            for placing in placings:
                take_back(client, placing)
            time.sleep(_QUIET_S)
            if not any(found_in_the_way(client, placing) for placing in placings):
                return

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load the documents of one part; see `RestoreSession.load`."""
        self._load.load(part, chunks)

    def replay(self, entries: Iterable[bytes]) -> Replayed:
        """Replay raw entries, always the same from the first one on; see `Applier.run`.

        Raise SourceError when a collection has another number of documents afterwards than it should.
        """
        if not self.resumes:
            self._redo.write(Progress(totals=self._totals))
            with connect(self._endpoint) as client:
                write_marker(client, replace(self._marker, phase="replaying"))
        request, users = self._request, self._load.users
        belongs = accounts_belong(self._options, users.held)
        accounts = Accounts(self._options.with_users, users.held, belongs)
        options = ReplayOptions(
            request.strict_after,
            request.until,
            self._selection,
            self._options.work_folder,
            watch=request.watch,
            accounts=accounts,
        )
        with connect(self._endpoint) as client:
            replayed = Applier(client, self._catalog, options, self._redo).run(entries, self._totals)
            self._require_counts(client, replayed.totals)
        nobody = {f"user {name}": "neither the backup nor its oplog has him" for name in users.replace(accounts.held)}
        return replace(replayed, left_out={**replayed.left_out, **nobody})

    def _require_counts(self, client: Client, totals: Totals) -> None:
        for name, (rows, _) in totals.items():
            database, collection = self._split(name)
            if series_name(name) != name:
                require_series(client[database][collection], rows)
                continue
            found = client[database][collection].count_documents({})
            if found != rows and name not in self._catalog.capped:
                raise SourceError(
                    f"collection {database}.{collection} has {format_count(found, 'document')} after the replay,"
                    f" and {rows:,} were restored"
                )

    def _split(self, name: str) -> tuple[str, str]:
        target = self._selection.name_in_target(name)
        assert target is not None
        database, _, collection = target.partition(".")
        return database, collection

    def finish(self) -> LoadResult:
        """Build indexes, then views, then roles and users; then nothing is unfinished any more.

        Raise SourceError naming those that could not be built: the documents stay, and the same command tries again.
        """
        result = self._load.result
        with connect(self._endpoint) as client:
            outcomes = [*self._build_indexes(client), *self._build_views(client), *self._load.make_users(client)]
            for outcome in outcomes:
                result.built[outcome.label] = outcome.words
                result.warnings += [f"{outcome.label}: {change}" for change in outcome.changed]
            require_built(outcomes)
            remove_marker(client)
        shutil.rmtree(self._folder, ignore_errors=True)
        return result

    def _build_indexes(self, client: Client) -> Iterator[BuildOutcome]:
        for name, indexes in self._catalog.indexes.items():
            yield from build_indexes(client, self._split(name), indexes.values())

    def _build_views(self, client: Client) -> Iterator[BuildOutcome]:
        for name, options in self._catalog.views.items():
            yield build_view(client, self._split(name), options)

    def expected(self, replayed: Replayed) -> Fingerprint:
        """Return what the target should hold; see `expected_fingerprint`."""
        return expected_fingerprint(self._catalog, replayed.totals, self._selection.name_in_target)


def require_series(series: Collection[dict[str, Any]], buckets: int) -> None:
    """Raise SourceError unless a time series has its buckets, and shows what is in them.

    SecantusDB keeps what is written into the buckets of a series, and shows an empty one.
    """
    name = series.full_name
    found = series.database[BUCKETS + series.name].count_documents({})
    if found != buckets:
        raise SourceError(f"time series {name} has {found:,} buckets after the replay, and {buckets:,} were restored")
    if buckets and series.find_one({}, {"_id": 1}) is None:
        raise SourceError(f"time series {name} has {buckets:,} buckets, and the server shows nothing of them")


def newest_place(url: Secret, address: str) -> OplogTs | None:
    """Return the newest place in the oplog of a server if it is the one at ``address``; None if it is another."""
    endpoint = parse_url(url)
    if endpoint.server != address:
        return None
    with connect(endpoint) as client:
        return read_newest(client)
