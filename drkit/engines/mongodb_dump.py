"""Engine `mongodb`, method `dump`: mongodump's archive of each database, looked through while it streams.

A failed mongodump can leave an archive that is perfect in itself: a cursor that broke leaves a shorter collection with
the right checksum. So a dump counts only if mongodump exits with 0, the archive is sound to its end, and every
collection has as many documents as the server counted before and after, give or take what its oplog says changed.

A member of a replica set is dumped whole, with the oplog of the time that it takes (``--oplog``), unless the policy
names databases or leaves tables out: mongodump has no oplog for a part of a server. Then the places before and after
the dump are recorded, and stored slices of the oplog make it consistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drkit.credentials import Secret
from drkit.engines import BackupOptions, BackupSession, Part, Preflight, RestoreOptions, RestoreSession
from drkit.engines.logical_dump import LogicalDump
from drkit.engines.mongodb_client import (
    Client,
    Endpoint,
    ServerFacts,
    blamed_on_mongodump,
    connect,
    dump_argv,
    parse_url,
    read_clock,
    read_server,
    tool_config,
)
from drkit.engines.mongodb_counts import Counts, SaidCounts, mark_counts, read_counts, require_whole
from drkit.engines.mongodb_fingerprint import fingerprint_of, sizes_of, uuids_of
from drkit.engines.mongodb_oplog import newest_shown, read_newest, require_reach
from drkit.engines.mongodb_oplog_watch import OplogWatch, forecast
from drkit.engines.mongodb_placing import matches
from drkit.engines.mongodb_users import ServerUsers, along, look_for_users, read_users
from drkit.errors import SourceError
from drkit.model import ChildRecord, Difference, Fingerprint
from drkit.mongo_archive import ArchiveReader
from drkit.mongo_binaries import dump_way, mongo_binary, mongo_tool_version
from drkit.oplog import OplogTs
from drkit.oplog_series import BUCKETS
from drkit.process import Command, open_producer
from drkit.units import format_bytes, format_count, format_utc

SERVER_PART = "server"
_SERVER_LABEL = "all databases"


class MongodbDump:
    """The engine that the registry holds; stateless."""

    name = "mongodb"
    method = "dump"

    @contextmanager
    def open_backup(self, url: Secret, options: BackupOptions) -> Iterator[BackupSession]:
        """Connect, run the preflight and lend the session; see `Engine.open_backup`."""
        endpoint = parse_url(url)

        def look_again() -> ServerUsers:
            with connect(endpoint, options.idle_timeout_s) as client:
                return read_users(client, server, options.databases)

        with connect(endpoint, options.idle_timeout_s) as client:
            server = read_server(client)
            again = look_again if server.replica_set else None
            plans = _plan(client, endpoint, server, options)
            if dump_way(options.via) == "native":
                from drkit.engines.mongodb_native import NativeDump

                dump = NativeDump(client, endpoint, options, server, plans)
                yield along(dump, look_for_users(client, server, options.databases), again)
                return
            users = look_for_users(client, server, options.databases)
        with tool_config(endpoint, options.work_folder) as config:
            yield along(_DumpSession(endpoint, options, server, plans, config), users, again)

    def open_restore(self, url: Secret, options: RestoreOptions) -> AbstractContextManager[RestoreSession]:
        """Connect to the target and check that the load can work."""
        from drkit.engines import mongodb_restore

        return mongodb_restore.open_restore(url, options)

    def fingerprint(self, url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:
        """Take the fingerprint of restored parts."""
        from drkit.engines import mongodb_proof

        return mongodb_proof.read_fingerprints(url, options)

    def expected(self, difference: Difference) -> str:
        """Return why a difference is to be expected."""
        from drkit.engines import mongodb_proof

        return mongodb_proof.expected(difference)

    def run_check(self, url: Secret, part: Mapping[str, Any], query: str) -> Any:
        """Run one check of a policy, an aggregation pipeline, against a restored database."""
        from drkit.engines import mongodb_proof

        return mongodb_proof.run_check(url, part, query)


@dataclass(frozen=True)
class DatabasePlan:
    """One database to dump: its collections that have documents of their own, and those that are left out.

    ``stray`` are buckets without a time series, which mongodump passes over in silence.
    """

    name: str
    size_bytes: int
    collections: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    capped: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()

    def mark(self, client: Client, *, shows_oplog: bool) -> Counts:
        """Remember what the counts after a dump are to be compared with."""
        return mark_counts(client, self.name, self.collections, self.capped, shows_oplog=shows_oplog)

    def count(self, client: Client, known: frozenset[str]) -> Counts:
        """Count the documents of its collections, but those that are known to be whole."""
        names = [name for name in self.collections if f"{self.name}.{name}" not in known]
        return read_counts(client, self.name, names)


def _plan(client: Client, endpoint: Endpoint, server: ServerFacts, options: BackupOptions) -> list[DatabasePlan]:
    """Return what to dump of each database; raise SourceError naming databases that are not there."""
    missing = sorted(set(options.databases) - set(server.sizes_bytes))
    if missing:
        there = ", ".join(server.sizes_bytes) or "none"
        raise SourceError(f"{endpoint.server} has no database {', '.join(missing)}", details=[f"it has {there}"])
    if not server.sizes_bytes:
        raise SourceError(f"{endpoint.server} has no database to back up")
    return [_plan_database(client, name, server, options) for name in options.databases or sorted(server.sizes_bytes)]


def _plan_database(client: Client, name: str, server: ServerFacts, options: BackupOptions) -> DatabasePlan:
    listed = {str(item["name"]): item for item in client[name].list_collections() if item.get("type") != "view"}
    excluded = [
        item for item in sorted(listed) if any(matches(f"{name}.{item}", pattern) for pattern in options.exclude_tables)
    ]
    counted = [
        item
        for item, facts in sorted(listed.items())
        if facts.get("type", "collection") == "collection" and not item.startswith("system.")
    ]
    kept = tuple(item for item in counted if item not in excluded)
    capped = tuple(item for item in kept if (listed[item].get("options") or {}).get("capped"))
    stray = tuple(
        item for item in sorted(listed) if item.startswith(BUCKETS) and item.removeprefix(BUCKETS) not in listed
    )
    return DatabasePlan(name, server.sizes_bytes[name], kept, tuple(excluded), capped, stray)


def warn_of_oplog(client: Client, server: ServerFacts) -> list[str]:
    """Say that a member of a replica set does not show its oplog to the connecting user."""
    if not server.replica_set or newest_shown(client) is not None:
        return []
    return [
        "the oplog cannot be read (role backup of database admin lets it be): nothing can be replayed behind this dump"
    ]


def warn_of_strays(plans: Iterable[DatabasePlan]) -> list[str]:
    """Name the collections that no way of dumping takes."""
    names = ", ".join(f"{plan.name}.{name}" for plan in plans for name in plan.stray)
    return [f"not in the backup: {names} (buckets of no time series, which mongodump does not dump)"] if names else []


def _by_database(plans: Sequence[DatabasePlan]) -> dict[str, tuple[DatabasePlan, ...]]:
    return {f"database-{number}": (plan,) for number, plan in enumerate(plans, 1)}


def _why_not_whole(server: ServerFacts, options: BackupOptions) -> str:
    """Say what a dump without ``--oplog`` is, and why this is one."""
    fuzzy = "collections are read one after another: what is written meanwhile may be in some and not in others"
    if not server.replica_set:
        return f"{fuzzy} (the server is no member of a replica set, so it has no oplog)"
    key = "databases" if options.databases else "exclude_tables"
    return (
        f"{fuzzy} (mongodump takes the oplog with a whole server only, and target.{key} names a part); method oplog"
        " makes it consistent"
    )


@dataclass(frozen=True)
class _Numbers:
    """What was counted of each database before a dump, and what mongodump says meanwhile that the server counted."""

    before: Sequence[Counts]
    said: SaidCounts


class _DumpSession(LogicalDump):
    """One backup in progress."""

    def __init__(
        self,
        endpoint: Endpoint,
        options: BackupOptions,
        server: ServerFacts,
        plans: Sequence[DatabasePlan],
        config: Path,
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._options = options
        self._server = server
        self._config = config
        self._plans = plans
        self._whole = bool(server.replica_set) and not options.databases and not options.exclude_tables
        self._contents = {SERVER_PART: tuple(plans)} if self._whole else _by_database(plans)
        self._mongodump = mongo_binary("mongodump")
        self._part_details: dict[str, dict[str, Any]] = {}
        self._oplog = OplogWatch()
        self._preflight = self._examine()

    def _examine(self) -> Preflight:
        version = mongo_tool_version(self._mongodump)
        plans = self._plans
        size_bytes = sum(plan.size_bytes for plan in plans)
        summary = ", ".join(
            [
                f"mongodb {self._server.label} at {self._endpoint.server}",
                f"mongodump {version}",
                format_count(len(plans), "database"),
                *([format_bytes(size_bytes)] if size_bytes else []),
                format_count(sum(len(plan.collections) for plan in plans), "collection"),
            ]
        )
        parts = [
            Part(name, "database", held[0].name, held[0].size_bytes or None) for name, held in self._contents.items()
        ]
        warnings = []
        if self._whole:
            parts = [Part(SERVER_PART, SERVER_PART, _SERVER_LABEL, size_bytes or None)]
            with connect(self._endpoint) as client:
                said, more = forecast(require_reach(client), size_bytes, self._options.expected_s)
            summary, warnings = f"{summary}, {said}", list(more)
        else:
            warnings.append(_why_not_whole(self._server, self._options))
            with connect(self._endpoint) as client:
                warnings += warn_of_oplog(client, self._server)
        warnings += warn_of_strays(plans)
        if self._options.exclude_tables and not any(plan.excluded for plan in plans):
            warnings.append(f"target.exclude_tables matches no collection: {', '.join(self._options.exclude_tables)}")
        return Preflight(summary, {"mongodb": self._server.label, "mongodump": version}, parts, warnings)

    def details(self) -> dict[str, Any]:
        """Return what only key holders may read."""
        server = self._server.document(self._endpoint, one_snapshot=False)
        return {"server": server, "parts": self._part_details}

    @contextmanager
    def open_part(self, part: Part) -> Iterator[Iterator[bytes]]:
        """Stream the archive of one database, or of all; see `BackupSession.open_part`."""
        plans = self._contents[part.name]
        with connect(self._endpoint) as client:
            snapshot_at = read_clock(client)
            newest_ts = read_newest(client) if self._whole else newest_shown(client)
            self._oplog.begin(newest_ts)
            before = [plan.mark(client, shows_oplog=newest_ts is not None) for plan in plans]
        self._snapshots.append(snapshot_at)
        facts: dict[str, Any] = {
            "label": part.label,
            "kind": part.kind,
            "snapshot_at": format_utc(snapshot_at),
            "size_bytes": sum(plan.size_bytes for plan in plans),
            "excluded": [name for plan in plans for name in plan.excluded],
        }
        if self._whole:
            facts["databases"] = [plan.name for plan in plans]
        database = None if self._whole else plans[0].name
        said = SaidCounts()
        argv = dump_argv(self._mongodump, self._config, database, facts["excluded"], self._options.parallel)
        with self._producing(part.name, Command([*argv, "-vv"], heard=said.heard)) as chunks:
            yield self._watched(part, chunks, facts, _Numbers(before, said))

    def _watched(
        self, part: Part, chunks: Iterator[bytes], facts: Mapping[str, Any], numbers: _Numbers
    ) -> Iterator[bytes]:
        """Yield ``chunks``; after the last, raise SourceError unless the archive is sound and has every document."""
        reader = ArchiveReader(digests=self._options.fingerprint == "digests", on_oplog=self._oplog.span.add)
        with blamed_on_mongodump(part.label):
            for chunk in chunks:
                if self._whole and self._oplog.reading_ts is None:
                    self._oplog.reading_ts = self._newest()
                reader.feed(chunk)
                yield chunk
            summary = reader.finish()
        with connect(self._endpoint) as client:
            known = numbers.said.agreeing(summary)
            for plan, before in zip(self._contents[part.name], numbers.before, strict=True):
                require_whole(client, summary, before, plan.count(client, known))
            if self._whole:
                self._oplog_range = self._oplog.require_covered(summary.oplog_entries, require_reach(client))
            else:
                self._oplog_range = self._oplog.around(newest_shown(client))
        self._part_details[part.name] = {
            **facts,
            "fingerprint": fingerprint_of(summary),
            "uuids": uuids_of(summary),
            "sizes_bytes": sizes_of(summary),
        }

    def _newest(self) -> OplogTs | None:
        with connect(self._endpoint) as client:
            return read_newest(client)

    @contextmanager
    def _producing(self, part: str, command: Command) -> Iterator[Iterator[bytes]]:
        with open_producer(command, idle_timeout_s=self._options.idle_timeout_s) as producer:
            try:
                yield producer.chunks()
            finally:
                producer.kill()
                status = -1 if producer.status is None else producer.status
                self._children.append(ChildRecord(tool=command.tool, part=part, exit_status=status))
