"""Engines know one database technology each: they turn it into named byte streams and back.

This file is the contract. An engine knows nothing of stores, compression, encryption or manifests; operations/ join
it to them. `registry.find_engine` looks one up by the policy's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from drkit.credentials import Secret
from drkit.model import ChildRecord, Difference, Fingerprint, LogPosition

Via = Literal["stream", "local", "tools", "native"]
"""The ways of engines that have several: base has stream and local, dump of mongodb has tools and native."""


@dataclass(frozen=True)
class ParentBase:
    """The base backup that an incremental one is to hold the changes since; ``lineage`` names what it builds on itself.

    ``backup_manifest`` is a file with the parent's manifest as PostgreSQL or drkit wrote it. ``checksums`` says whether
    the server had them then, ``degraded`` whether damaged pages are in the parent.
    """

    artifact_id: str
    lineage: tuple[str, ...]
    backup_manifest: Path
    timeline: int
    system_identifier: str
    checksums: bool
    degraded: bool = False


@dataclass(frozen=True)
class BackupOptions:
    """What a policy asks of a backup. No databases means all of the server's. Times are in seconds.

    ``via`` and ``parallel`` are for engines that have several ways or read several things at once; None leaves both to
    the engine. ``rate_bytes_s`` (of plain bytes; no limit when None) is for engines that copy files.
    With a ``parent`` only what changed since it is wanted. ``expected_s`` is how long the last such backup took, None
    where there was none.
    """

    databases: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    fingerprint: Literal["digests", "counts"] = "digests"
    lock_timeout_s: float = 60
    idle_timeout_s: float = 300
    work_folder: Path = Path()
    via: Via | None = None
    parallel: int | None = None
    rate_bytes_s: int | None = None
    parent: ParentBase | None = None
    expected_s: float | None = None


@dataclass(frozen=True)
class OplogRange:
    """With MongoDB's oplog from one place to the other a dump is consistent; ``included``: the dump holds it itself.

    Places are written ``seconds:number``.
    """

    start_ts: str
    stop_ts: str
    included: bool


@dataclass(frozen=True)
class Part:
    """One byte stream of an artifact.

    ``name`` goes into keys and manifests and so says nothing of the data (``globals``, ``database-1``); ``label`` is
    the name people know, for the screen only. ``expected_bytes`` is an estimate, None where there is none.
    """

    name: str
    kind: str
    label: str
    expected_bytes: int | None = None


@dataclass(frozen=True)
class Preflight:
    """What was found before anything was read: one line for the screen, versions for the manifest.

    Up to ``parallel`` parts may be open at once, each read by a thread of its own. They are opened in the order of
    ``parts``, and one may wait for those before it. ``parent`` is the artifact that this one holds the changes since;
    None for a full one, also where an incremental one was asked for: then a warning says why.
    """

    summary: str
    tools: Mapping[str, str]
    parts: Sequence[Part]
    warnings: Sequence[str] = ()
    parallel: int = 1
    parent: ParentBase | None = None


class BackupSession(Protocol):
    """One backup in progress, from preflight to fingerprint. Closed on every path by its context manager."""

    @property
    def preflight(self) -> Preflight:
        """Return what was found before the start."""

    def open_part(self, part: Part) -> AbstractContextManager[Iterator[bytes]]:
        """Stream one part as chunks of up to a mebibyte.

        The stream itself raises SourceError when its producer failed: a failed child is never taken for the end of the
        data. Leaving the context early kills the producer. Leaving it after the last chunk waits for whatever else runs
        in the part's snapshot (the fingerprint) and raises SourceError if that failed.
        """

    @property
    def snapshot_at(self) -> datetime:
        """Return the moment that the streamed parts show: the oldest of their snapshots."""

    @property
    def position(self) -> LogPosition | None:
        """Return the range of the log that the artifact holds; None where the method has no log."""

    @property
    def oplog_range(self) -> OplogRange | None:
        """Return which part of MongoDB's oplog makes the streamed parts consistent; None where there is none."""

    @property
    def warnings(self) -> Sequence[str]:
        """Return what was noticed while streaming and did not end the backup."""

    @property
    def degraded(self) -> bool:
        """Tell whether the source was found to be damaged, and the artifact with it; the warnings say how."""

    @property
    def children(self) -> Sequence[ChildRecord]:
        """Return every child process that ran so far, with its exit status."""

    def details(self) -> dict[str, Any]:
        """Return what only key holders may read: names, settings, fingerprints, ready for canonical JSON.

        Always ``{"server": {...}, "parts": {part name: {"label": ..., "fingerprint": {...}, ...}}}``.
        """


@dataclass(frozen=True)
class RestoreOptions:
    """How to load. ``details`` are the artifact's, opened; ``parts`` the names to load, in the manifest's order.

    Of a part that holds several databases only ``databases`` are loaded; all without any.
    ``tables`` limits the load to the named ones (``schema.table``, ``database.collection``), ``exclude_tables`` leaves
    some out, ``renames`` gives databases or collections other names; ``with_users`` makes the server's users and roles
    as well, without those users that ``exclude_users`` names; `registry.restore_choices` says which of these an engine
    knows. ``replays`` says that an oplog is replayed afterwards, which may bring users whom the backup does not have.
    ``scratch`` says that the server is a sandbox of ours: globals are loaded as its superuser and a full-speed
    load may trade durability; ``queried`` that somebody's queries will be run there, for which statistics are taken.
    ``via`` is as for a backup; None leaves it to the engine. With ``stage_folder``, a private folder with room for the
    plain bytes, parts may be staged there for a parallel load; without it they are streamed.
    """

    details: Mapping[str, Any]
    parts: tuple[str, ...]
    databases: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    with_users: bool = False
    exclude_users: tuple[str, ...] = ()
    replays: bool = False
    jobs: int = 2
    scratch: bool = False
    queried: bool = True
    via: Via | None = None
    stage_folder: Path | None = None
    idle_timeout_s: float = 600
    work_folder: Path = Path()


@dataclass(frozen=True)
class Planned:
    """One table, collection or view that a restore will make, and what will be built on it afterwards.

    ``source`` is its name in the backup, ``target`` the one that it gets. ``rows`` is None for what has none of its
    own, ``size_bytes`` where it was not recorded.
    """

    part: str
    kind: str
    source: str
    target: str
    rows: int | None
    size_bytes: int | None
    indexes: tuple[str, ...] = ()


@dataclass
class LoadResult:
    """What came of a load: warnings by name, and where each part went (part name -> label in the target).

    ``built`` says of whatever was built after the data, one by one, how that went (index or view -> words).
    """

    warnings: list[str] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)
    built: dict[str, str] = field(default_factory=dict)


class RestoreSession(Protocol):
    """One load in progress.

    Entering it checks the target (reachable, right version, empty, extensions and roles there) and raises SourceError,
    naming what is in the way, before anything is written to it.
    """

    @property
    def summary(self) -> str:
        """Return one line that names the target for the screen."""

    def load(self, part: str, chunks: Iterator[bytes]) -> None:
        """Load one part; raise SourceError with the tool's last lines when it failed.

        An error that ``chunks`` raises stops the load, and is the error that is raised. A database that this session
        created and that did not load whole is dropped again; one that was there before is left and named.
        """

    def finish(self) -> LoadResult:
        """Do what comes after the last part (indexes and views, ANALYZE) and return what came of it.

        Raise SourceError naming what could not be built; the data is all there then, and stays.
        """


class Engine(Protocol):
    """One technology and method, such as postgres and dump. Stateless: everything is in the arguments."""

    @property
    def name(self) -> str:
        """Return the engine's word in a policy."""

    @property
    def method(self) -> str:
        """Return the method's word in a policy."""

    def open_backup(self, url: Secret, options: BackupOptions) -> AbstractContextManager[BackupSession]:
        """Connect, check everything that can fail late, and hold the consistent view open until the context ends."""

    def open_restore(self, url: Secret, options: RestoreOptions) -> AbstractContextManager[RestoreSession]:
        """Connect to the target and check that the load can work."""

    def fingerprint(self, url: Secret, options: RestoreOptions) -> dict[str, Fingerprint]:
        """Take the fingerprint of restored parts, part name -> fingerprint, as at backup time."""

    def expected(self, difference: Difference) -> str:
        """Return why a difference between recorded and restored is to be expected, or the empty string."""

    def run_check(self, url: Secret, part: Mapping[str, Any], query: str) -> Any:
        """Run one check of a policy against a restored part (its entry in ``details``); return the single value."""
