"""A base backup that reads the server's files itself, several at once: for a drkit on the database's own host.

One session starts the backup and stops it, and must live in between (T20); a temporary slot of the same session keeps
the WAL. The files go into several tars, each read by a thread of its own; then the control file is read, the backup is
stopped, and what the stop gives (`backup_label`, byte for byte) ends the artifact together with the WAL (T19, T23).
"""

from __future__ import annotations

import re
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg

from drkit.engines import BackupOptions, ParentBase, Part
from drkit.engines.postgres_base_facts import SYSTEM_TAIL_DIGITS, BaseFacts
from drkit.engines.postgres_base_files import (
    CONTROL_FILE,
    TAR_END,
    Listing,
    TarStream,
    in_chunks,
    list_data_folder,
    list_tablespace,
    no_files,
    readable,
    refuse_not_utf8,
)
from drkit.engines.postgres_base_manifest import OLDEST_VERSION_2_MAJOR, backup_manifest
from drkit.engines.postgres_base_order import FileQueue, slowest_first, tried
from drkit.engines.postgres_client import Endpoint
from drkit.engines.postgres_pages import BadPage, PageCheck, PageLayout, damaged, describe_damage
from drkit.errors import SourceError
from drkit.model import LogPosition
from drkit.units import format_count
from drkit.wal import Segment, classify, format_lsn, parse_lsn, segment_of

_RENAMED_MAJOR = 15
_STARTED_WITHIN_S = 300
_CONTROL_READS = 10
_LOOK_S = 0.1
_OLD_START = "pg_start_backup(%s, true, false)"
_OLD_STOP = "pg_stop_backup(false, false)"
_STOP = """
select lsn::text, convert_to(labelfile, getdatabaseencoding()), convert_to(spcmapfile, getdatabaseencoding())
  from {}"""
_START = re.compile(rb"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", re.MULTILINE)
_TIMELINE = re.compile(rb"^START TIMELINE: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class _Heap:
    """The root that the files of one tar come from, and the queue that it shares with the root's other tars.

    ``size_bytes`` is what a tar gets that takes as much as the others.
    """

    root: Path
    prefix: str
    files: FileQueue
    size_bytes: int
    folders: Sequence[str] = ()


class LocalBackup:
    """One backup between its start and its stop; its tars may be read side by side, the last parts wait for them.

    Lives in the session of ``connection``: when that is lost, the server forgets the backup and the stop fails.
    """

    reasons: Sequence[str] = ()
    parent: ParentBase | None = None

    def __init__(
        self, connection: psycopg.Connection[Any], endpoint: Endpoint, facts: BaseFacts, options: BackupOptions
    ) -> None:
        self._connection = connection
        self._facts = facts
        self._pace = _Pace(options.rate_bytes_s)
        self._root = _own_data_folder(connection, endpoint, facts)
        self._heaps: dict[str, _Heap] = {}
        self._ended: dict[str, threading.Event] = {}
        self._broken = threading.Event()
        self._streams: list[TarStream] = []
        self._checks: list[PageCheck] = []
        self._layout: PageLayout | None = None
        self._start_lsn = 0
        self._listing = Listing((), (), ())
        self.parallel = options.parallel or 1
        self.locations: dict[int, str] = {}
        self.position: LogPosition | None = None
        control = _steady(self._root / CONTROL_FILE)
        self.system_identifier = str(int.from_bytes(control[:8], sys.byteorder))

    def start(self) -> None:
        """Keep the WAL, start the backup, and list the files; returns when the server's checkpoint is done."""
        _require_rights(self._connection, self._facts)
        slot = f"drkit_base_{secrets.token_hex(6)}"
        self._connection.execute("select pg_create_physical_replication_slot(%s, true, true)", [slot])
        renamed = self._facts.major >= _RENAMED_MAJOR
        begin = f"select {'pg_backup_start(%s, true)' if renamed else _OLD_START}::text"
        row = self._connection.execute(begin, ["drkit"]).fetchone()
        assert row is not None
        self._start_lsn = parse_lsn(row[0])
        if self._facts.checksums:
            self._layout = _read_layout(self._connection)
        self._listing = list_data_folder(self._root, self._facts.major)
        roots = [("base", self._root, "", self._listing)]
        for oid, location in sorted(_links(self._root / "pg_tblspc").items()):
            self.locations[oid] = str(location)
            refuse_not_utf8(self._facts.tablespaces.get(oid, str(oid)), str(location))
            listing = list_tablespace(location, self._facts.major)
            if oid in self._facts.tablespaces and not listing.folders:
                raise no_files(self._facts.tablespaces[oid], str(location))
            roots.append((f"tablespace-{oid}", location, f"pg_tblspc/{oid}/", listing))
        self._require_links()
        self._deal(roots)

    def _require_links(self) -> None:
        """Raise SourceError for a tablespace that nothing leads to."""
        for oid, name in self._facts.tablespaces.items():
            if oid not in self.locations:
                raise no_files(name, f"{self._root}/pg_tblspc/{oid}")

    def _deal(self, roots: Sequence[tuple[str, Path, str, Listing]]) -> None:
        """Make heaps: of each root as many as its share of the bytes asks for, those of the largest first."""
        total_bytes = sum(listing.size_bytes for *_, listing in roots) or 1
        heaps: dict[str, _Heap] = {}
        for name, root, prefix, listing in roots:
            count = max(1, round(self.parallel * listing.size_bytes / total_bytes))
            files = FileQueue(slowest_first(listing.files, tried(root)))
            for number in range(1, count + 1):
                part = name if count == 1 and prefix else f"{name}-{number}"
                folders = listing.folders if number == 1 and prefix else ()
                heaps[part] = _Heap(root, prefix, files, listing.size_bytes // count, folders)
        self._heaps = dict(sorted(heaps.items(), key=lambda item: -item[1].size_bytes))
        self._ended = {part: threading.Event() for part in [*self._heaps, "base"]}

    @property
    def summary(self) -> str:
        """Return how the files come, for the screen."""
        checksums = "verified" if self._facts.checksums else "off"
        return f"from {self._root} with {format_count(self.parallel, 'thread')}, page checksums {checksums}"

    @property
    def warnings(self) -> list[str]:
        """Return which files have damaged pages, and what lies in the data folder and is not copied."""
        skipped = [
            f"{self._root / name} is neither a file nor a folder, and is not copied" for name in self._listing.skipped
        ]
        return [*describe_damage(self._damaged()), *skipped]

    @property
    def damage(self) -> list[str]:
        """Return every page whose checksum is wrong, by file and block (T28)."""
        return [str(page) for page in self._damaged()]

    def _damaged(self) -> list[BadPage]:
        return damaged(self._checks, parse_lsn(self.position.stop_lsn) if self.position else None)

    def parts(self) -> list[Part]:
        """Return the tars, of which `base` has what only the stop gives, and the manifest of them all."""
        heaps = [Part(name, *self._describe(name), heap.size_bytes) for name, heap in self._heaps.items()]
        return [*heaps, Part("base", "data", "labels, WAL"), Part("backup-manifest", "manifest", "manifest")]

    def _describe(self, part: str) -> tuple[str, str]:
        kind, label = self._facts.describe(self.tablespace_of(part))
        number = part.removeprefix("base-") if kind == "data" else part.partition("-")[2].partition("-")[2]
        return kind, f"{label} {number}".rstrip()

    def tablespace_of(self, part: str) -> int | None:
        """Return the tablespace that a part's files are of."""
        heap = self._heaps.get(part)
        return int(heap.prefix.split("/")[1]) if heap and heap.prefix else None

    @contextmanager
    def open(self, part: Part) -> Iterator[Iterator[bytes]]:
        """Lend a part; `base` waits for the tars of files before it stops the backup, the manifest for `base`."""
        if part.kind == "manifest":
            self._wait_for(self._ended)
            if self.position is None:
                raise SourceError("the base backup was not stopped")
            copied = chain.from_iterable(stream.copied for stream in self._streams)
            named = self._facts.major >= OLDEST_VERSION_2_MAJOR
            yield iter([backup_manifest(copied, self.position, self.system_identifier if named else None)])
            return
        try:
            entries = self._files(self._heaps[part.name]) if part.name in self._heaps else self._stop()
            yield self._pace.keep(in_chunks(self._ending(entries, part.name)))
        finally:
            if not self._ended[part.name].is_set():
                self._broken.set()

    def _ending(self, entries: Iterator[bytes], part: str) -> Iterator[bytes]:
        """Yield a whole tar, and note that it is whole."""
        yield from entries
        yield TAR_END
        self._ended[part].set()

    def _wait_for(self, parts: Iterable[str]) -> None:
        for part in parts:
            while not self._ended[part].wait(_LOOK_S):
                if self._broken.is_set():
                    raise SourceError("another part of the base backup failed")

    def _files(self, heap: _Heap) -> Iterator[bytes]:
        pages = PageCheck(heap.root, self._layout, self._start_lsn, heap.prefix) if self._layout else None
        if pages is not None:
            self._checks.append(pages)
        stream = TarStream(heap.root, heap.prefix, pages)
        self._streams.append(stream)
        yield from stream.folders(heap.folders)
        yield from stream.files(heap.files)
        if pages is not None:
            pages.finish()

    def _stop(self) -> Iterator[bytes]:
        """Stop the backup, as soon as all files were read; return the entries that only the stop gives.

        On a standby the stop position is the one up to which the control file says that replay must go, so the copy of
        that file must not be younger than the stop (basebackup.c).
        """
        self._wait_for(self._heaps)
        control = _steady(self._root / CONTROL_FILE)
        renamed = self._facts.major >= _RENAMED_MAJOR
        row = self._connection.execute(_STOP.format("pg_backup_stop(false)" if renamed else _OLD_STOP)).fetchone()
        assert row is not None
        stop_lsn, label, tablespace_map = row
        start, timeline = _START.search(label), _TIMELINE.search(label)
        if not start or not timeline:
            raise SourceError("the server's backup_label does not say where the backup starts")
        self.position = LogPosition(
            timeline=int(timeline[1]),
            start_lsn=format_lsn(parse_lsn(start[1].decode())),
            stop_lsn=format_lsn(parse_lsn(stop_lsn)),
            segment_bytes=self._facts.segment_bytes,
            system_identifier_tail=self.system_identifier[-SYSTEM_TAIL_DIGITS:],
        )
        return self._rest(self.position, control, label, tablespace_map)

    def _rest(self, position: LogPosition, control: bytes, label: bytes, tablespace_map: bytes) -> Iterator[bytes]:
        """Yield the folders, the labels as the server's own bytes, the WAL, and the control file last."""
        stream = TarStream(self._root)
        self._streams.append(stream)
        now_s = int(time.time())
        yield from stream.folders(self._listing.folders)
        yield from stream.content("backup_label", label, now_s)
        if tablespace_map:
            yield from stream.content("tablespace_map", tablespace_map, now_s)
        yield from self._wal(position)
        yield from stream.content(CONTROL_FILE, control, now_s)

    def _wal(self, position: LogPosition) -> Iterator[bytes]:
        """Yield the segments from start to stop and the history files, which no backup manifest lists.

        Each comes with the mark that it was archived: the restored server must not archive it again.
        """
        segment = segment_of(parse_lsn(position.start_lsn), position.timeline, position.segment_bytes)
        wanted = []
        while segment.start_lsn < parse_lsn(position.stop_lsn):
            wanted.append(segment)
            segment = segment.next()
        folder = self._root / "pg_wal"
        with readable(folder):
            names = {path.name for path in folder.iterdir()}
        _refuse_gaps(wanted, names)
        now_s = int(time.time())
        stream = TarStream(self._root)
        for name in [*sorted(name for name in names if classify(name) == "history"), *(item.name for item in wanted)]:
            yield from stream.file(f"pg_wal/{name}")
            yield from stream.content(f"pg_wal/archive_status/{name}.done", b"", now_s)


def _links(folder: Path) -> dict[int, Path]:
    """Return where the links to tablespaces lead, by oid: all that the server writes into tablespace_map."""
    with readable(folder):
        links = [path for path in folder.iterdir() if path.name.isdigit() and path.is_symlink()]
        return {int(link.name): folder / link.readlink() for link in links}


def _refuse_gaps(wanted: Sequence[Segment], names: set[str]) -> None:
    """Raise SourceError when a segment is gone, or when the standby went over to another timeline (T22)."""
    missing = [segment.name for segment in wanted if segment.name not in names]
    if missing:
        raise SourceError(
            f"the server no longer has WAL segment {missing[0]}, which the backup needs",
            hints=["raise max_slot_wal_keep_size, or take the backup when less is written"],
        )
    numbers = {segment.name[8:]: segment.timeline for segment in wanted}
    for name in names:
        if classify(name) == "segment" and int(name[:8], 16) > numbers.get(name[8:], 1 << 32):
            raise SourceError("the server went over to another timeline while the backup ran: take it again")


def _steady(path: Path) -> bytes:
    """Read a small file that may be written meanwhile, until two readings agree."""
    with readable(path):
        content = path.read_bytes()
        for _ in range(_CONTROL_READS):
            again = path.read_bytes()
            if again == content:
                return content
            content = again
    raise SourceError(f"{path} changed each time that it was read")


def _read_layout(connection: psycopg.Connection[Any]) -> PageLayout:
    """Return how the server divides its files; both numbers are fixed when it is compiled."""
    row = connection.execute(
        "select current_setting('block_size')::int, setting::int from pg_settings where name = 'segment_size'"
    ).fetchone()
    assert row is not None
    return PageLayout(*row)


def _require_rights(connection: psycopg.Connection[Any], facts: BaseFacts) -> None:
    """Refuse a role that may not start or stop a backup."""
    if facts.major >= _RENAMED_MAJOR:
        functions = ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    else:
        functions = ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    query = "select f from unnest(%s::text[]) as f where not has_function_privilege(f, 'execute')"
    refused = [row[0] for row in connection.execute(query, [functions]).fetchall()]
    if refused:
        raise SourceError(
            f"role {facts.role} may not start and stop a backup",
            hints=[f'grant execute on function {function} to "{facts.role}";' for function in refused],
        )


def _own_data_folder(connection: psycopg.Connection[Any], endpoint: Endpoint, facts: BaseFacts) -> Path:
    """Return the server's data folder; raise SourceError unless it is here, and is that very server's."""
    location = facts.config.locations.get("data_directory")
    if location is None:
        raise SourceError(
            f"role {facts.role} may not see where the data folder is",
            hints=[f'grant pg_read_all_settings to "{facts.role}";', "or use via: stream"],
        )
    root = Path(location)
    row = connection.execute(
        "select extract(epoch from pg_postmaster_start_time())::float, current_setting('port')"
    ).fetchone()
    assert row is not None
    try:
        with readable(root):
            lines = (root / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    here = len(lines) > 3 and lines[3] == row[1] and abs(float(lines[2]) - row[0]) < _STARTED_WITHIN_S
    if not here:
        raise SourceError(
            f"the data folder of {endpoint.server} is not on this host: {root} is another server's, or not there",
            hints=["run drkit on the database's own host, or use via: stream"],
        )
    return root


class _Pace:
    """Keeps several threads together at no more than so many bytes a second."""

    def __init__(self, rate_bytes_s: int | None) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._lock = threading.Lock()
        self._due_s = 0.0

    def keep(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield ``chunks`` when their time has come."""
        if self._rate_bytes_s is None:
            yield from chunks
            return
        for chunk in chunks:
            with self._lock:
                now_s = time.monotonic()
                self._due_s = max(self._due_s, now_s) + len(chunk) / self._rate_bytes_s
                wait_s = self._due_s - now_s
            time.sleep(wait_s)
            yield chunk
