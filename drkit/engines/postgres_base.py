"""Engine `postgres`, method `base`: the whole server as files, with the WAL that makes them consistent.

A base artifact stands by itself: it holds its WAL from start to stop (D1 of docs/decisions), so that it restores to its
own stop position without any log; with the log of method `wal` it restores to any later moment. Two ways lead to the
same artifact: `postgres_base_stream` (``via: stream``) and `postgres_base_local` (``via: local``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import Any

from drkit.credentials import Secret
from drkit.engines import BackupOptions, BackupSession, Part, Preflight, RestoreOptions, RestoreSession
from drkit.engines.postgres_base_facts import (
    BaseFacts,
    EndFacts,
    changes,
    check_base_server,
    config_archive,
    read_end,
)
from drkit.engines.postgres_base_stream import Archive, BaseBackup
from drkit.engines.postgres_client import Endpoint, connect, parse_url, pinned
from drkit.engines.postgres_replication import Replication, open_replication
from drkit.errors import ConfigError, SourceError
from drkit.model import ChildRecord, Difference, Fingerprint, LogPosition
from drkit.units import format_bytes, format_count, format_duration

_TAIL_DIGITS = 6
_BEHIND_S = 60.0


class PostgresBase:
    """The engine that the registry holds; stateless."""

    name = "postgres"
    method = "base"

    @contextmanager
    def open_backup(self, url: Secret, options: BackupOptions) -> Iterator[BackupSession]:
        """Connect, check the server, start the backup and lend the session; see `Engine.open_backup`."""
        endpoint = parse_url(url)
        with ExitStack() as stack:
            with connect(endpoint) as connection:
                endpoint = pinned(endpoint, connection)
                facts = check_base_server(connection, endpoint)
            replication = stack.enter_context(
                open_replication(endpoint, major=facts.major, idle_timeout_s=options.idle_timeout_s)
            )
            session = _StreamSession(endpoint, options, facts, replication)
            session.start()
            yield session

    def open_restore(
        self,
        url: Secret,  # noqa: ARG002
        options: RestoreOptions,  # noqa: ARG002
    ) -> AbstractContextManager[RestoreSession]:
        """Refuse: a base backup becomes a server of its own, it is not loaded into one."""
        raise ConfigError(
            "a base backup cannot be loaded into a running server",
            hints=["drkit restore POLICY --into DIR   (an empty folder, which becomes the server's data folder)"],
        )

    def fingerprint(self, url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:  # noqa: ARG002
        """Return nothing: what a base backup holds is proven by its own manifest and by replay."""
        return {}

    def expected(self, difference: Difference) -> str:  # noqa: ARG002
        """Return why a difference is to be expected of a base backup, or the empty string."""
        return ""

    def run_check(self, url: Secret, part: Mapping[str, Any], query: str) -> Any:
        """Run one check of a policy against a restored database."""
        from drkit.engines import postgres_restore

        return postgres_restore.run_check(url, part, query)


class _StreamSession:
    """One base backup in progress, over the replication protocol."""

    def __init__(self, endpoint: Endpoint, options: BackupOptions, facts: BaseFacts, replication: Replication) -> None:
        self._endpoint = endpoint
        self._options = options
        self._facts = facts
        self._replication = replication
        self._backup = BaseBackup(replication, endpoint, facts.major)
        self._system_identifier = ""
        self._archives: dict[str, Archive] = {}
        self._end: EndFacts | None = None

    def start(self) -> None:
        """Start the backup on the server; what it announces are the parts."""
        self._system_identifier = str(self._replication.rows("IDENTIFY_SYSTEM")[0][0])
        self._backup.start(rate_bytes_s=self._options.rate_bytes_s)
        for archive in self._backup.archives:
            self._archives["base" if archive.oid is None else f"tablespace-{archive.oid}"] = archive

    @property
    def preflight(self) -> Preflight:
        """Return what was found before the start."""
        facts = self._facts
        parts = [
            Part(name, "data" if archive.oid is None else "tablespace", self._label(archive), archive.size_bytes)
            for name, archive in self._archives.items()
        ]
        parts.append(Part("backup-manifest", "manifest", "manifest"))
        if facts.config.contents:
            parts.append(Part("config", "config", "config"))
        summary = [
            f"postgres {facts.version} at {self._endpoint.server}" + (" (standby)" if facts.in_recovery else ""),
            "over the replication protocol",
            format_bytes(sum(archive.size_bytes for archive in self._archives.values())),
            format_count(len(self._archives) - 1, "tablespace"),
            f"page checksums {'verified by the server' if facts.checksums else 'off'}",
            f"from {self._backup.start_lsn} on timeline {self._backup.timeline}",
        ]
        return Preflight(", ".join(summary), {"postgres": facts.version}, parts, facts.warnings)

    def _label(self, archive: Archive) -> str:
        return "base" if archive.oid is None else self._facts.tablespaces.get(archive.oid, f"tablespace {archive.oid}")

    @contextmanager
    def open_part(self, part: Part) -> Iterator[Iterator[bytes]]:
        """Stream one part; see `BackupSession.open_part`. They come in the order of the preflight."""
        if part.kind == "config":
            yield iter([config_archive(self._facts.config)])
        elif part.kind == "manifest":
            yield self._backup.read_manifest()
            with connect(self._endpoint) as connection:
                self._end = read_end(connection)
        else:
            yield self._backup.read_archive()

    def _ended(self) -> EndFacts:
        if self._end is None or not self._backup.stop_lsn:
            raise SourceError("the base backup has not ended yet, so it shows no moment")
        return self._end

    @property
    def snapshot_at(self) -> datetime:
        """Return the moment of the stop position by the server's clock."""
        return self._ended().stop_at

    @property
    def position(self) -> LogPosition:
        """Return the range of WAL that the artifact holds."""
        self._ended()
        return LogPosition(
            timeline=self._backup.stop_timeline,
            start_lsn=self._backup.start_lsn,
            stop_lsn=self._backup.stop_lsn,
            segment_bytes=self._facts.segment_bytes,
            system_identifier_tail=self._system_identifier[-_TAIL_DIGITS:],
        )

    @property
    def children(self) -> Sequence[ChildRecord]:
        """Return nothing: no child process takes part."""
        return ()

    @property
    def warnings(self) -> Sequence[str]:
        """Return damaged pages, what was created meanwhile, and how far a standby is behind."""
        end = self._ended()
        warnings = [f"the server: {message}" for message in self._replication.warnings]
        warnings += changes(self._facts, end)
        if end.behind_s > _BEHIND_S:
            behind = format_duration(timedelta(seconds=end.behind_s))
            warnings.append(f"the standby is {behind} behind, or its primary is idle: the backup shows that moment")
        return warnings

    def details(self) -> dict[str, Any]:
        """Return what only key holders may read."""
        facts, position = self._facts, self.position
        tablespaces = [
            {"oid": archive.oid, "location": archive.location, "name": self._label(archive)}
            for archive in self._archives.values()
            if archive.oid is not None
        ]
        parts = {part.name: {"label": part.label, "kind": part.kind} for part in self.preflight.parts}
        for name, archive in self._archives.items():
            if archive.oid is not None:
                parts[name]["tablespace"] = str(archive.oid)
        return {
            "server": {
                "version": facts.version,
                "major": facts.major,
                "system_identifier": self._system_identifier,
                "standby": facts.in_recovery,
                "address": self._endpoint.server,
            },
            "base": {
                "via": "stream",
                "start_lsn": position.start_lsn,
                "stop_lsn": position.stop_lsn,
                "timeline": position.timeline,
                "segment_bytes": position.segment_bytes,
                "tablespaces": tablespaces,
                "checksums": facts.checksums,
                "settings": dict(facts.settings),
                "databases": [{"name": item.name, "oid": item.oid, **item.settings} for item in facts.databases],
                "config": {
                    "locations": dict(facts.config.locations),
                    "captured": sorted(facts.config.contents),
                    "missing": dict(facts.config.missing),
                },
                "warnings": list(self.warnings),
            },
            "parts": parts,
        }
