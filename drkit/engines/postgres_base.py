"""Engine `postgres`, method `base`: the whole server as files, with the WAL that makes them consistent.

A base artifact stands by itself: it holds its WAL from start to stop, so that it restores to its
own stop position without any log; with the log of method `wal` it restores to any later moment. Two ways lead to the
same artifact: `postgres_base_stream` (``via: stream``) and `postgres_base_local` (``via: local``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from drkit.credentials import Secret
from drkit.engines import BackupOptions, BackupSession, ParentBase, Part, Preflight, RestoreOptions, RestoreSession
from drkit.engines.postgres_base_facts import (
    BaseFacts,
    EndFacts,
    changes,
    check_base_server,
    config_archive,
    read_end,
)
from drkit.engines.postgres_base_local import LocalBackup
from drkit.engines.postgres_base_stream import StreamedBackup
from drkit.engines.postgres_client import Endpoint, connect, parse_url, pinned
from drkit.engines.postgres_replication import open_replication
from drkit.errors import ConfigError, SourceError
from drkit.model import ChildRecord, Difference, Fingerprint, LogPosition
from drkit.units import format_bytes, format_count, format_duration

_BEHIND_S = 60.0


class PostgresBase:
    """The engine that the registry holds; stateless."""

    name = "postgres"
    method = "base"

    @contextmanager
    def open_backup(self, url: Secret, options: BackupOptions) -> Iterator[BackupSession]:
        """Connect, check the server, start the backup and lend the session; see `Engine.open_backup`."""
        endpoint = parse_url(url)
        options = replace(options, via=options.via or "stream")
        with ExitStack() as stack:
            connection = stack.enter_context(connect(endpoint))
            endpoint = pinned(endpoint, connection)
            facts = check_base_server(connection, endpoint)
            if options.parent is not None:
                # The server itself finds the changed blocks: an incremental base comes from it, whatever the rule says.
                options = replace(options, via="stream")
            source: _Source
            if options.via == "local":
                source = LocalBackup(connection, endpoint, facts, options)
            else:
                replication = stack.enter_context(
                    open_replication(endpoint, major=facts.major, idle_timeout_s=options.idle_timeout_s)
                )
                source = StreamedBackup(replication, endpoint, facts, options)
            source.start()
            yield _BaseSession(endpoint, options, facts, source)

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
        from drkit.engines import postgres_restored

        return postgres_restored.run_check(url, part, query)


class _Source(Protocol):
    """Where the files come from, between the start and the end of the server's backup mode."""

    @property
    def summary(self) -> str:
        """Return how the files come, for the screen."""

    @property
    def parallel(self) -> int:
        """Return how many parts may be open at once."""

    @property
    def parent(self) -> ParentBase | None:
        """Return the base that only the changes since are copied; None for a full one."""

    @property
    def reasons(self) -> Sequence[str]:
        """Return why a full base is taken where an incremental one was asked for."""

    @property
    def system_identifier(self) -> str:
        """Return the number that tells this cluster from all others."""

    @property
    def locations(self) -> Mapping[int, str]:
        """Return the tablespaces that are copied: oid to folder."""

    @property
    def position(self) -> LogPosition | None:
        """Return the range of WAL that was copied; None before the end."""

    @property
    def warnings(self) -> Sequence[str]:
        """Return what was noticed so far."""

    @property
    def damage(self) -> Sequence[str]:
        """Return what is known of pages whose checksums are wrong."""

    def start(self) -> None:
        """Start the backup on the server."""

    def parts(self) -> Sequence[Part]:
        """Return the parts, of which the backup manifest is the last."""

    def tablespace_of(self, part: str) -> int | None:
        """Return the tablespace that a part's files are of; None for the data folder's."""

    def open(self, part: Part) -> AbstractContextManager[Iterator[bytes]]:
        """Stream one part."""


class _BaseSession:
    """One base backup in progress."""

    def __init__(self, endpoint: Endpoint, options: BackupOptions, facts: BaseFacts, source: _Source) -> None:
        self._endpoint = endpoint
        self._options = options
        self._facts = facts
        self._source = source
        self._end: EndFacts | None = None
        self._parts = [*source.parts()]
        if facts.config.contents:
            self._parts.append(Part("config", "config", "config"))

    @property
    def preflight(self) -> Preflight:
        """Return what was found before the start."""
        facts = self._facts
        summary = [
            f"postgres {facts.version} at {self._endpoint.server}" + (" (standby)" if facts.in_recovery else ""),
            *([] if self._source.parent else [format_bytes(sum(part.expected_bytes or 0 for part in self._parts))]),
            format_count(len(self._source.locations), "tablespace"),
            self._source.summary,
        ]
        tools = {"postgres": facts.version}
        warnings = [*facts.warnings, *self._source.reasons]
        return Preflight(
            ", ".join(summary),
            tools,
            self._parts,
            warnings,
            parallel=self._source.parallel,
            parent=self._source.parent,
        )

    @contextmanager
    def open_part(self, part: Part) -> Iterator[Iterator[bytes]]:
        """Stream one part; see `BackupSession.open_part`. After the manifest the server is asked for the moment."""
        if part.kind == "config":
            yield iter([config_archive(self._facts.config)])
            return
        with self._source.open(part) as chunks:
            yield chunks
        if part.kind == "manifest":
            with connect(self._endpoint) as connection:
                self._end = read_end(connection)

    def _ended(self) -> EndFacts:
        if self._end is None:
            raise SourceError("the base backup has not ended yet, so it shows no moment")
        return self._end

    @property
    def snapshot_at(self) -> datetime:
        """Return the moment of the stop position by the server's clock."""
        return self._ended().stop_at

    @property
    def position(self) -> LogPosition:
        """Return the range of WAL that the artifact holds."""
        if self._source.position is None:
            raise SourceError("the base backup has not ended yet, so it has no position")
        return self._source.position

    @property
    def oplog_range(self) -> None:
        """Return nothing: that is MongoDB's."""

    @property
    def children(self) -> Sequence[ChildRecord]:
        """Return nothing: no child process takes part."""
        return ()

    @property
    def warnings(self) -> Sequence[str]:
        """Return damaged pages, what was created meanwhile, and how far a standby is behind."""
        end = self._ended()
        warnings = [*self._source.warnings, *changes(self._facts, end)]
        if self._source.damage:
            warnings.insert(0, "the source is damaged: pages with wrong checksums are in the backup as they are")
        if end.behind_s > _BEHIND_S:
            behind = format_duration(timedelta(seconds=end.behind_s))
            warnings.append(f"the standby's last commit is {behind} old: the backup shows that moment")
        return warnings

    @property
    def degraded(self) -> bool:
        """Tell whether pages with wrong checksums were found."""
        return bool(self._source.damage)

    def details(self) -> dict[str, Any]:
        """Return what only key holders may read; ``base`` is what a restore needs to know."""
        facts = self._facts
        server = {
            "version": facts.version,
            "major": facts.major,
            "system_identifier": self._source.system_identifier,
            "standby": facts.in_recovery,
            "superuser": facts.superuser,
            "machine": facts.machine,
            "address": self._endpoint.server,
        }
        return {
            "server": server,
            "base": self._base_details(),
            "parts": {part.name: self._about(part) for part in self._parts},
        }

    def _base_details(self) -> dict[str, Any]:
        facts, position, config = self._facts, self.position, self._facts.config
        return {
            "via": self._options.via,
            "parent": self._source.parent.artifact_id if self._source.parent else None,
            "start_lsn": position.start_lsn,
            "stop_lsn": position.stop_lsn,
            "timeline": position.timeline,
            "segment_bytes": position.segment_bytes,
            "tablespaces": [
                {"oid": oid, "location": location, "name": facts.tablespaces.get(oid)}
                for oid, location in sorted(self._source.locations.items())
            ],
            "checksums": facts.checksums,
            "checksums_verified": facts.checksums,
            "damage": list(self._source.damage),
            "settings": dict(facts.settings),
            "databases": [{"name": item.name, "oid": item.oid, **item.settings} for item in facts.databases],
            "config": {
                "locations": dict(config.locations),
                "captured": sorted(config.contents),
                "missing": dict(config.missing),
            },
            "warnings": list(self.warnings),
        }

    def _about(self, part: Part) -> dict[str, Any]:
        about: dict[str, Any] = {"label": part.label, "kind": part.kind}
        oid = self._source.tablespace_of(part.name)
        return about if oid is None else {**about, "tablespace": oid}
