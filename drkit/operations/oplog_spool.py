"""The folder in which a policy's oplog slices wait until they stand in every store. What is in it survives.

    sealed/      slices as they go into the stores, each with a note of what is inside
    manifests/   oplog manifests that do not yet stand in every store
    position.json behind which entry reading goes on
    state.json   where things stand, for `drkit timeline` and `drkit check`

What was read and is no slice yet is in memory only: the server still has it, and it is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from drkit import bucket
from drkit.canonical import canonical_json
from drkit.log_documents import SliceRecord
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
from drkit.oplog import Anchor, OplogSpan, OplogTs, slice_name
from drkit.site import Site


@dataclass
class SealedSlice:
    """A slice ready for the stores; ``stored_in`` names those that have it, ``listed``: a signed manifest names it."""

    timeline: int
    record: SliceRecord
    path: Path
    stored_in: set[str] = field(default_factory=set)
    listed: bool = False

    @property
    def name(self) -> str:
        """Return the slice's name."""
        return self.record.part

    @property
    def from_ts(self) -> OplogTs:
        """Return the place after which it begins."""
        return OplogTs.parse(self.record.from_ts)

    @property
    def end(self) -> Anchor:
        """Return the entry behind which the next slice begins."""
        return Anchor(OplogTs.parse(self.record.to_ts), self.record.last_sha256)

    def chunks(self) -> Iterator[bytes]:
        """Read the sealed bytes; raise SealedDamaged at their end when they are not what was sealed."""
        return read_sealed(self.path, self.record)


@dataclass(frozen=True)
class Position:
    """Behind which entry of which timeline reading goes on."""

    timeline: int
    end: Anchor


class OplogSpool:
    """One policy's folder; made when it is missing, private to the user that runs drkit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sealed = folder / "sealed"
        self.manifests = folder / "manifests"
        self.ballast = Ballast(folder)
        with translated(folder):
            for path in (folder.parent, folder, self.sealed, self.manifests):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def free_bytes(self) -> int:
        """Return how much room there is."""
        return free_bytes(self.folder)

    def seal(
        self, timeline: int, from_ts: OplogTs, span: OplogSpan, content: Sequence[bytes], sealing: Sealing
    ) -> SealedSlice:
        """Seal the entries of ``content``, which ``span`` measured; raise SourceError when there is no room."""
        assert span.first_ts is not None and span.last_ts is not None  # noqa: PT018
        name = slice_name(from_ts, span.last_ts)
        path = self.sealed / f"{timeline:08X}-{name}"
        plain, stored = seal_file(path, content, sealing)
        record = SliceRecord(
            part=name,
            key=bucket.log_key(sealing.policy, timeline, name),
            stored_bytes=stored.size_bytes,
            stored_sha256=stored.sha256,
            plain_bytes=plain.size_bytes,
            plain_sha256=plain.sha256,
            from_ts=str(from_ts),
            first_ts=str(span.first_ts),
            to_ts=str(span.last_ts),
            entries=span.entries,
            last_sha256=span.last_sha256,
        )
        write_note(path, {"timeline": timeline, "record": record.model_dump(mode="json")})
        return SealedSlice(timeline, record, path)

    def load_sealed(self) -> list[SealedSlice]:
        """Return what was sealed, in its order; take away what was being sealed when the process ended."""
        return [self._load(path, note) for path, note in noted_files(self.sealed)]

    def _load(self, path: Path, note: Mapping[str, Any]) -> SealedSlice:
        return SealedSlice(
            int(note["timeline"]), SliceRecord.from_bytes(canonical_json(note["record"]), str(path)), path
        )

    def forget(self, item: SealedSlice) -> None:
        """Remove a slice that is in the stores."""
        forget_sealed(item.path)

    def position(self) -> Position | None:
        """Return where reading goes on, by the position kept and the slices sealed; None before the first entry."""
        known = [Position(item.timeline, item.end) for item in self.load_sealed()]
        note = read_json(self.folder / "position.json")
        if note is not None:
            end = Anchor(OplogTs.parse(str(note["ts"])), str(note["sha256"]))
            known.append(Position(int(note["timeline"]), end))
        return max(known, key=lambda item: (item.timeline, item.end.ts, item.end.sha256), default=None)

    def keep_position(self, position: Position) -> None:
        """Write down durably where reading goes on."""
        note = {"timeline": position.timeline, "ts": str(position.end.ts), "sha256": position.end.sha256}
        write_durably(self.folder / "position.json", canonical_json(note))

    def keep_state(self, state: Mapping[str, Any], at: datetime) -> None:
        """Write down where things stand."""
        write_state(self.folder, state, at)


def oplog_folder(site: Site, policy: str) -> Path:
    """Return where a policy's oplog slices wait."""
    return site.folder / "var" / "oplog" / policy


def read_oplog_state(site: Site, policy: str) -> dict[str, Any]:
    """Return where things stood when a process last wrote it down; empty when none ever did."""
    return read_json(oplog_folder(site, policy) / "state.json") or {}
