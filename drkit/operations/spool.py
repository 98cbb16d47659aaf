"""The spool: the private folder in which a policy's log waits until it is in the stores. What is in it survives.

received/     what pg_receivewal writes
left/         what it wrote and will not go on with: the end of a timeline, the log before a gap
sealed/       files as they go into the stores, each with a record of what is inside
manifests/    log manifests that do not yet stand in every store
identity.json which cluster the log is of
receiver.pid  which process receives
ballast       room for sealing and listing when the disk is full
state.json    where things stand, for `drkit timeline` and `drkit check`
socket        where `drkit wal push` asks
"""

from __future__ import annotations

import mmap
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from drkit import bucket
from drkit.canonical import canonical_json
from drkit.errors import IntegrityError, SourceError, shell_line
from drkit.log_documents import LogRecord, SwitchRecord
from drkit.operations.growing import LARGEST_BYTES, Growing
from drkit.operations.sealed_files import (
    Ballast,
    Sealing,
    forget_sealed,
    free_bytes,
    noted_files,
    read_json,
    read_sealed,
    seal_file,
    translated,
    write_durably,
    write_note,
    write_state,
)
from drkit.site import Site
from drkit.stream import Meter
from drkit.units import CHUNK_BYTES, MIB
from drkit.wal import (
    Segment,
    classify,
    format_lsn,
    parse_history,
    parse_history_name,
    parse_lsn,
    parse_partial_name,
    timeline_of,
)
from drkit.wal_pages import Buffer, WalFacts, inspect

_BACKUP_START = re.compile(r"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", re.MULTILINE)

SEALED_AT_ONCE = 2
"""How many files of one policy are sealed at the same time: as many as machines have cores at the least."""

_RESERVE_SEGMENTS = 4
"""Room that receiving leaves: sealing needs some, and what is sealed and shipped makes room again."""

_READ_BYTES = CHUNK_BYTES // 4
"""What a core's own cache holds while it is read, hashed and compressed: larger chunks go through memory twice."""


@dataclass(frozen=True)
class Identity:
    """The cluster that a spool is for."""

    system_identifier: str
    segment_bytes: int


@dataclass
class Sealed:
    """A file ready for the stores: ``record`` says what is inside, ``path`` holds the sealed bytes.

    ``begin_lsn`` is where the content begins; a history file begins, and ends, at its switch. ``source`` is the file in
    the spool to remove in the end, if it is ours; ``stored_in`` names the stores that have the bytes, which is not kept
    over a restart, because a store says so itself when it is asked again. ``listed``: a signed manifest names it.
    """

    timeline: int
    begin_lsn: int
    record: LogRecord
    path: Path
    source: Path | None = None
    stored_in: set[str] = field(default_factory=set)
    listed: bool = False

    @property
    def name(self) -> str:
        """Return the name of the file inside."""
        return self.record.part

    def chunks(self) -> Iterator[bytes]:
        """Read the sealed bytes; raise SealedDamaged at their end when they are not what was sealed."""
        return read_sealed(self.path, self.record)


class Spool:
    """One policy's folder; made when it is missing, private to the user that runs drkit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.received = folder / "received"
        self.left = folder / "left"
        self.sealed = folder / "sealed"
        self.manifests = folder / "manifests"
        self.socket = folder / "socket"
        self.ballast = Ballast(folder)
        self._lock = threading.Lock()
        self._busy = 0
        with translated(folder):
            for path in (folder.parent, folder, self.received, self.left, self.sealed, self.manifests):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def identity(self) -> Identity | None:
        """Return which cluster the spool is for, None when that is not known yet."""
        document = read_json(self.folder / "identity.json")
        return Identity(str(document["system_identifier"]), int(document["segment_bytes"])) if document else None

    def keep_identity(self, identity: Identity) -> None:
        """Write down which cluster the spool is for."""
        write_durably(self.folder / "identity.json", canonical_json(vars(identity)))

    @staticmethod
    def read_state(folder: Path) -> dict[str, Any]:
        """Return where things stood when a process last wrote it down; empty when none ever did."""
        return read_json(folder / "state.json") or {}

    def keep_state(self, state: Mapping[str, Any], at: datetime) -> None:
        """Write down where things stand; it need not outlive the machine."""
        write_state(self.folder, state, at)

    def free_bytes(self) -> int:
        """Return how much room there is."""
        return free_bytes(self.folder)

    def hold_ballast(self) -> None:
        """Hold room for what is sealed at the same time and its manifests, once the size of segments is known."""
        identity = self.identity()
        if identity is not None:
            self.ballast.hold(_ballast_bytes(identity.segment_bytes))

    def has_room(self, segment_bytes: int) -> bool:
        """Say whether log may be received: so much is free, and the ballast is held or could be.

        Received without it, log could take the last byte within a moment, and nothing could be sealed or listed, and so
        removed, ever again.
        """
        free = self.free_bytes()
        if free < _RESERVE_SEGMENTS * segment_bytes:
            return False
        return self.ballast.is_held or free >= 2 * _ballast_bytes(segment_bytes)

    def received_files(self) -> list[Path]:
        """Return what was received and has a name of PostgreSQL's, in the order of names."""
        return sorted(path for path in self.received.iterdir() if classify(path.name) is not None)

    def waiting_files(self) -> list[Path]:
        """Return everything that is to be shipped, in the order of names; marks are not."""
        left = (path for path in self.left.iterdir() if classify(path.name) is not None)
        files = sorted([*self.received_files(), *left], key=lambda path: path.name)
        return [path for path in files if not is_mark(path)]

    def leave(self, path: Path) -> None:
        """Put a received file where pg_receivewal does not look; it is shipped from there."""
        if is_mark(path):
            path.unlink()
        else:
            path.rename(self.left / path.name)

    def load_sealed(self) -> list[Sealed]:
        """Return what was sealed; take away what was being sealed when the process ended."""
        return [self._load(path, note) for path, note in noted_files(self.sealed)]

    def _load(self, path: Path, note: Mapping[str, Any]) -> Sealed:
        record = LogRecord.from_bytes(canonical_json(note["record"]), str(path))
        source = Path(note["source"]) if note.get("source") else None
        return Sealed(int(note["timeline"]), int(note["begin_lsn"]), record, path, source)

    def seal(self, source: Path, name: str, sealing: Sealing, *, keep_source: bool) -> Sealed:
        """Seal one file under ``name``, durably.

        The file at ``source`` stays ours to delete unless ``keep_source``. Raise IntegrityError when the content is not
        what its name says, SourceError when the spool cannot hold it.
        """
        with self._one_more() as alone, _readable(source), source.open("rb", buffering=0) as file:
            content = _mapped(file, name)
            facts = _facts(content, name)
            self._check_cluster(facts, name)
            in_one = facts.kind == "segment" and not alone and len(content) <= LARGEST_BYTES
            chunks: Iterable[Any] = [content] if in_one else _chunks(content, facts.held_bytes)
            path = self.sealed / name
            measured = seal_file(path, chunks, sealing, in_parallel=alone)
            sealed = _sealed(path, facts, measured, sealing, None if keep_source else source)
            self.note(sealed)
        return sealed

    def seal_growing(self, growing: Growing, sealing: Sealing) -> Sealed:
        """Seal a segment while it is being written, until it is finished; raise as `seal` does, or ReadInVain.

        The file stays the server's. What was read early is compared with it while the rest is sealed and synced.
        """
        path, facts = self.sealed / growing.name, []

        def chunks() -> Iterator[Any]:
            with _readable(growing.path):
                yield from growing.chunks()
            quiet_pages = growing.search.quiet_pages
            facts.append(segment_facts(growing.content, growing.stamp[1], growing.name, quiet_pages=quiet_pages))
            self._check_cluster(facts[0], growing.name)

        def confirm() -> None:
            with _readable(growing.path):
                growing.confirm()

        measured = seal_file(path, chunks(), sealing, in_parallel=False)
        sealed = _sealed(path, facts[0], measured, sealing, None)
        self.note(sealed, confirm=confirm)
        return sealed

    @contextmanager
    def _one_more(self) -> Iterator[bool]:
        """Count what is being sealed meanwhile; say whether it is the only one."""
        with self._lock:
            self._busy += 1
            alone = self._busy == 1
        try:
            yield alone
        finally:
            with self._lock:
                self._busy -= 1

    def _check_cluster(self, facts: FileFacts, name: str) -> None:
        identity = self.identity()
        if facts.wal is None or identity is None or facts.wal.system_identifier == identity.system_identifier:
            return
        raise IntegrityError(
            f"{name} is of another cluster: its system identifier is {facts.wal.system_identifier}, and this policy's"
            f" is {identity.system_identifier}",
            hints=["look at archive_command of the server that sent it: it names the socket of another policy"],
        )

    def note(self, sealed: Sealed, *, confirm: Callable[[], object] | None = None) -> None:
        """Write down what a sealed file is; from then on it counts. ``confirm`` is for `write_note`."""
        note = {
            "timeline": sealed.timeline,
            "begin_lsn": sealed.begin_lsn,
            "record": sealed.record.model_dump(mode="json"),
            "source": str(sealed.source) if sealed.source else None,
        }
        write_note(sealed.path, note, confirm=confirm)

    def forget(self, sealed: Sealed) -> None:
        """Remove a sealed file that is in the stores."""
        forget_sealed(sealed.path)

    def mark(self, segment: Segment) -> None:
        """Make pg_receivewal go on after ``segment``: it starts behind the newest file that is as long as a segment."""
        path = self.received / segment.name
        with translated(path), path.open("xb") as file:
            file.truncate(segment.segment_bytes)


def _ballast_bytes(segment_bytes: int) -> int:
    return SEALED_AT_ONCE * segment_bytes + MIB


def _sealed(
    path: Path, facts: FileFacts, measured: tuple[Meter, Meter], sealing: Sealing, source: Path | None
) -> Sealed:
    plain, stored = measured
    name = path.name
    record = LogRecord(
        part=name,
        kind=facts.kind,
        key=bucket.log_key(sealing.policy, facts.timeline, name),
        stored_bytes=stored.size_bytes,
        stored_sha256=stored.sha256,
        plain_bytes=plain.size_bytes,
        plain_sha256=plain.sha256,
        first_commit_at=facts.wal.first_commit_at if facts.wal else None,
        last_commit_at=facts.wal.last_commit_at if facts.wal else None,
        end_lsn=format_lsn(facts.end_lsn) if facts.kind == "partial" else None,
        ancestors=facts.ancestors,
    )
    return Sealed(facts.timeline, facts.begin_lsn, record, path, source)


def spool_folder(site: Site, policy: str) -> Path:
    """Return where a policy's log waits."""
    return site.folder / "var" / "wal" / policy


def is_mark(path: Path) -> bool:
    """Say whether a received file is only a mark of `Spool.mark`: no WAL begins with zeros."""
    with path.open("rb") as file:
        return not any(file.read(24))


@dataclass(frozen=True)
class FileFacts:
    """What a file of the log is; ``wal`` is there for segments, partial ones too, ``ancestors`` for histories."""

    kind: Any
    timeline: int
    begin_lsn: int
    end_lsn: int
    wal: WalFacts | None = None
    ancestors: tuple[SwitchRecord, ...] | None = None

    @property
    def held_bytes(self) -> int | None:
        """Return how much of an unfinished segment is there, None for files that are there whole."""
        return self.end_lsn - self.begin_lsn if self.kind == "partial" else None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a file of the log into an error that names it."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror or error}", hints=[shell_line("ls", "-l", path)]
        ) from error


def read_facts(source: Path, name: str) -> FileFacts:
    """Find out what is in a file that is to be kept under ``name``; raise IntegrityError when it is not that."""
    with _readable(source), source.open("rb", buffering=0) as file:
        return _facts(_mapped(file, name), name)


def _facts(content: memoryview, name: str) -> FileFacts:
    kind = classify(name)
    if kind == "history":
        timeline = parse_history_name(name)
        switches = parse_history(timeline, _text(content))
        ancestors = tuple(SwitchRecord(timeline=item.timeline, at_lsn=format_lsn(item.at_lsn)) for item in switches)
        return FileFacts("history", timeline, switches[-1].at_lsn, switches[-1].at_lsn, ancestors=ancestors)
    if kind == "backup":
        match = _BACKUP_START.search(_text(content))
        if match is None:
            raise IntegrityError(f"{name} is not a backup history file: it does not say where its backup started")
        return FileFacts("backup", timeline_of(name), parse_lsn(match[1]), parse_lsn(match[1]))
    if kind in ("segment", "partial"):
        return segment_facts(content, len(content), name)
    raise IntegrityError(f"{name} is not a file of the log that drkit keeps")


def _text(content: memoryview) -> str:
    """Return what a history file says; its words for people may be in any encoding."""
    return bytes(content).decode(errors="replace")


def segment_facts(content: Buffer, size_bytes: int, name: str, *, quiet_pages: int = 0) -> FileFacts:
    """Find out what is in a segment, finished or not, of so many bytes; raise IntegrityError as `read_facts` does.

    ``quiet_pages`` is for `inspect`.
    """
    facts = inspect(content, name[:24], quiet_pages=quiet_pages)
    segment = facts.segment
    if size_bytes != segment.segment_bytes:
        raise IntegrityError(f"{name} has {size_bytes:,} bytes, a segment of this cluster {segment.segment_bytes:,}")
    kind = "partial" if classify(name) == "partial" else "segment"
    end_lsn = segment.end_lsn if kind == "segment" else facts.end_lsn
    return FileFacts(kind, segment.timeline, segment.start_lsn, end_lsn, facts)


def segment_name_of(name: str, segment_bytes: int) -> Segment | None:
    """Return the segment that a file holds, whole or in part; None for other files."""
    kind = classify(name)
    if kind == "segment":
        return Segment.parse(name, segment_bytes)
    return parse_partial_name(name, segment_bytes)[0] if kind == "partial" else None


def _mapped(file: FileIO, name: str) -> memoryview:
    """Return the whole of a file where the system has it; raise OSError when a part cannot be read.

    Everything is read once before: a part that its disk cannot give would end the process where it is mapped. Not
    closed by hand, since an error on its way up refers to it.
    """
    buffer = bytearray(_READ_BYTES)
    while file.readinto(buffer):
        pass
    if not file.tell():
        raise IntegrityError(f"{name} is empty")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _chunks(content: memoryview, held_bytes: int | None) -> Iterator[bytes]:
    """Cut a file into pieces; what lies behind ``held_bytes`` is taken as zeros.

    An unfinished segment is still being written: only what was looked at belongs to what is said of it.
    """
    for position in range(0, len(content), _READ_BYTES):
        chunk = bytes(content[position : position + _READ_BYTES])
        if held_bytes is not None and position + len(chunk) > held_bytes:
            chunk = chunk[: max(held_bytes - position, 0)].ljust(len(chunk), b"\0")
        yield chunk
