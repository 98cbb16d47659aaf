"""Engine `mongodb`, method `dump`, without MongoDB's tools: drkit reads the collections and writes the archive itself.

The archive is of mongodump's form, so that mongorestore restores it, and it passes the same checks on its way. Where
the server has snapshots, all that is dumped shows one moment, of one database as well; mongodump cannot do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pymongo

from drkit import __version__
from drkit.engines import BackupOptions, OplogRange, Part, Preflight
from drkit.engines.logical_dump import LogicalDump
from drkit.engines.mongodb_client import Client, Endpoint, ServerFacts, read_clock, translated
from drkit.engines.mongodb_counts import Counts, agreeing, mark_counts, read_counts, require_whole
from drkit.engines.mongodb_dump import DatabasePlan, warn_of_oplog, warn_of_strays
from drkit.engines.mongodb_fingerprint import fingerprint_of, sizes_of, uuids_of
from drkit.engines.mongodb_oplog import newest_shown
from drkit.engines.mongodb_oplog_watch import OplogWatch
from drkit.engines.mongodb_raw import RawCollection, estimate, read_collections
from drkit.engines.mongodb_reading import Reading, open_batches
from drkit.engines.mongodb_snapshot import Sentinel, Snapshot, find_snapshot, moved, read_sentinels
from drkit.errors import SourceError
from drkit.mongo_archive import ArchiveReader, Namespace
from drkit.mongo_archive_writer import Prelude, write_archive
from drkit.oplog import OplogTs
from drkit.units import format_bytes, format_count, format_utc

PARALLEL = 4
"""As many collections at once as mongodump reads when it is not told."""


_HINTS = ("install the MongoDB Database Tools and write via: tools", "or name it in target.exclude_tables")


@contextmanager
def open_archive(
    client: Client, server: ServerFacts, collections: Sequence[RawCollection], reading: Reading
) -> Iterator[Iterator[bytes]]:
    """Lend the archive of some collections as mongodump would write it, while they are read."""
    tool = f"drkit {__version__}"
    prelude = Prelude(server.version, tool, reading.parallel, [item.metadata() for item in collections])
    with open_batches(client, collections, reading) as batches:
        yield write_archive(prelude, batches)


def read_dumpable(client: Client, database: str, excluded: Sequence[str] = ()) -> list[RawCollection]:
    """Return the collections of a database; raise SourceError naming those that only MongoDB's tools can dump."""
    collections = [item for item in read_collections(client, database) if item.namespace[1] not in excluded]
    strange = [".".join(item.namespace) for item in collections if item.is_time_series]
    if strange:
        raise SourceError(
            f"{', '.join(strange)} cannot be dumped without MongoDB's tools: a time series is more than its documents",
            hints=_HINTS,
        )
    for item in collections:
        name = item.namespace[1]
        if name.startswith(".") or name.endswith(".") or ".." in name:
            raise SourceError(
                f"collection {database}.{name} cannot be read without MongoDB's tools: pymongo takes no such name",
                hints=_HINTS,
            )
    return collections


@dataclass(frozen=True)
class _View:
    """The collections of a database that have documents: ``pinned`` are read in the snapshot, ``live`` ones are not."""

    database: str
    pinned: tuple[str, ...]
    live: tuple[str, ...]
    capped: tuple[str, ...]

    @property
    def unpinned(self) -> frozenset[Namespace]:
        return frozenset((self.database, name) for name in self.live)

    def without(self, known: frozenset[str]) -> Sequence[str]:
        """Return the live collections whose count is not known yet."""
        return [name for name in self.live if f"{self.database}.{name}" not in known]


@dataclass(frozen=True)
class _Look:
    """What was seen of a view at one time."""

    view: _View
    counts: Counts
    sentinels: Mapping[str, Sentinel]
    said: Mapping[str, int] = field(default_factory=dict)
    """How many documents the server's metadata say that a collection has."""


def _require_names(client: Client, database: str, uuids: Mapping[str, str], oplog_ts: Any) -> None:
    """Raise SourceError naming a collection that was renamed since: one that is read by its old name looks empty.

    The oplog says so, else the UUID, which a collection keeps.
    """
    renames: dict[str, str] = {}
    if oplog_ts is not None:
        wanted = {"ts": {"$gt": oplog_ts}, "op": "c", "o.renameCollection": {"$exists": True}}
        entries = client["local"]["oplog.rs"].find(wanted, {"o": 1})
        renames = {str(entry["o"]["renameCollection"]): str(entry["o"].get("to")) for entry in entries}
    names = {uuid: name for name, uuid in uuids.items() if uuid}
    for item in client[database].list_collections():
        now = f"{database}.{item['name']}"
        before = names.get(bytes(item.get("info", {}).get("uuid") or b"").hex(), now)
        if before != now:
            renames[before] = now
    for before, now in renames.items():
        if before in uuids:
            raise SourceError(
                f"collection {before} was renamed to {now} while it was dumped", hints=["take the backup again"]
            )


class NativeDump(LogicalDump):
    """One backup in progress that drkit reads itself."""

    def __init__(
        self,
        client: Client,
        endpoint: Endpoint,
        options: BackupOptions,
        server: ServerFacts,
        plans: Sequence[DatabasePlan],
    ) -> None:
        super().__init__()
        self._client = client
        self._endpoint = endpoint
        self._options = options
        self._server = server
        self._plans = {f"database-{number}": plan for number, plan in enumerate(plans, 1)}
        self._part_details: dict[str, dict[str, Any]] = {}
        self._capped: list[str] = []
        self._moved: list[str] = []
        self._oplog = OplogWatch()
        self._snapshot = self._find_snapshot()
        self._preflight = self._examine()

    def _find_snapshot(self) -> Snapshot:
        for plan in self._plans.values():
            # A capped one is refused by servers that have snapshots.
            for name in plan.collections:
                if name not in plan.capped:
                    return find_snapshot(self._client, plan.name, name)
        return Snapshot(None, "there is no collection that could be in one")

    def _examine(self) -> Preflight:
        plans = self._plans
        size_bytes = sum(plan.size_bytes for plan in plans.values())
        summary = ", ".join(
            [
                f"mongodb {self._server.label} at {self._endpoint.server}",
                "read by drkit itself" + (" in one snapshot" if self._snapshot.at else ""),
                format_count(len(plans), "database"),
                *([format_bytes(size_bytes)] if size_bytes else []),
                format_count(sum(len(plan.collections) for plan in plans.values()), "collection"),
            ]
        )
        warnings = []
        if not self._snapshot.at:
            warnings.append(
                "collections are read one after another: what is written meanwhile may be in some and not in others"
                f" (the server gives no snapshot: {self._snapshot.why_not})"
            )
        warnings += [*warn_of_oplog(self._client, self._server), *warn_of_strays(plans.values())]
        if self._options.exclude_tables and not any(plan.excluded for plan in plans.values()):
            warnings.append(f"target.exclude_tables matches no collection: {', '.join(self._options.exclude_tables)}")
        parts = [Part(name, "database", plan.name, plan.size_bytes or None) for name, plan in plans.items()]
        return Preflight(summary, {"mongodb": self._server.label, "pymongo": pymongo.version}, parts, warnings)

    @property
    def warnings(self) -> Sequence[str]:
        """Return what the snapshot turned out not to hold."""
        capped = f"capped collections are not in the snapshot: {', '.join(self._capped)}"
        lie = f"the server says snapshot and does not isolate: {'; '.join(self._moved)} changed in it"
        return ([capped] if self._capped else []) + ([lie] if self._moved else [])

    def details(self) -> dict[str, Any]:
        """Return what only key holders may read."""
        server = self._server.document(self._endpoint, one_snapshot=self._is_one_moment)
        return {"server": server, "parts": self._part_details}

    @contextmanager
    def open_part(self, part: Part) -> Iterator[Iterator[bytes]]:
        """Stream the archive of one database; see `BackupSession.open_part`."""
        plan = self._plans[part.name]
        with translated(self._endpoint):
            collections = read_dumpable(self._client, plan.name, plan.excluded)
            snapshot_at = self._snapshot.at or read_clock(self._client)
            newest_ts = newest_shown(self._client)
            self._oplog.begin(newest_ts)
            view = self._view(plan, collections)
            shows_oplog = newest_ts is not None
            live = mark_counts(self._client, plan.name, view.live, view.capped, shows_oplog=shows_oplog)
            before = self._look(view, live)
            estimates = estimate(self._client, collections)
            before = replace(before, said={".".join(name): said.documents for name, said in estimates.items()})
            self._snapshots.append(snapshot_at)
            facts = {
                "label": plan.name,
                "kind": "database",
                "snapshot_at": format_utc(snapshot_at),
                "size_bytes": plan.size_bytes,
                "excluded": list(plan.excluded),
            }
            parallel = self._options.parallel or PARALLEL
            keeps_cursors = self._server.keeps_cursors
            reading = Reading(
                parallel, self._snapshot.concern, view.unpinned, estimates=estimates, keeps_cursors=keeps_cursors
            )
            with open_archive(self._client, self._server, collections, reading) as chunks:
                yield self._watched(part.name, chunks, facts, before)

    def _watched(self, part: str, chunks: Iterator[bytes], facts: Mapping[str, Any], before: _Look) -> Iterator[bytes]:
        """Yield ``chunks``; after the last, raise SourceError unless the archive is sound and has every document."""
        reader = ArchiveReader(digests=self._options.fingerprint == "digests")
        with translated(self._endpoint):
            for chunk in chunks:
                reader.feed(chunk)
                yield chunk
            summary = reader.finish()
            view = before.view
            uncounted = view.without(agreeing(before.said, summary))
            after = self._look(view, read_counts(self._client, view.database, uncounted))
            self._moved += moved(before.sentinels, after.sentinels)
            require_whole(self._client, summary, before.counts, after.counts, "drkit")
            # What the snapshot holds was counted in it, by the same name.
            unpinned = {".".join(name) for name in view.unpinned}
            live = {name: uuid for name, uuid in uuids_of(summary).items() if name in unpinned}
            _require_names(self._client, view.database, live, before.counts.oplog_ts)
            self._oplog_range = self._needed_oplog()
        self._part_details[part] = {
            **facts,
            "fingerprint": fingerprint_of(summary),
            "uuids": uuids_of(summary),
            "sizes_bytes": sizes_of(summary),
        }

    def _needed_oplog(self) -> OplogRange | None:
        """Return from where to where the oplog makes the dump consistent: nowhere but at its moment, in a snapshot."""
        cluster_time = self._snapshot.cluster_time
        if cluster_time is None or not self._is_one_moment:
            return self._oplog.around(newest_shown(self._client))
        place = str(OplogTs.of(cluster_time))
        return OplogRange(place, place, included=False)

    @property
    def _is_one_moment(self) -> bool:
        return self._snapshot.at is not None and not self._moved and not self._capped

    def _view(self, plan: DatabasePlan, collections: Sequence[RawCollection]) -> _View:
        """Divide the collections into those that the snapshot holds and those that it cannot."""
        listed = [item.namespace[1] for item in collections if item.has_documents]
        # What was planned and is no longer listed counts too: it was dropped, or the list lacks it.
        names = list(dict.fromkeys([*listed, *plan.collections]))
        capped = tuple(item.namespace[1] for item in collections if "capped" in item.option_names)
        if self._snapshot.at is None:
            return _View(plan.name, (), tuple(names), capped)
        self._capped += [f"{plan.name}.{name}" for name in capped]
        return _View(plan.name, tuple(name for name in names if name not in capped), capped, capped)

    def _look(self, view: _View, live: Counts) -> _Look:
        """Add to the counts of live collections those that the snapshot holds."""
        sentinels = read_sentinels(self._client, view.database, view.pinned, self._snapshot)
        pinned = {name: sentinel.documents for name, sentinel in sentinels.items()}
        return _Look(view, Counts({**live.documents, **pinned}, live.oplog_ts), sentinels)
