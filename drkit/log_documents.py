"""The documents of the log in a bucket: what is stored of it, and the signed lists of that.

As in `drkit.model`, fields that are not known are kept. docs/format.md specifies them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AwareDatetime, Field, PlainSerializer

from drkit.model import (
    Compression,
    Count,
    Document,
    Encryption,
    Lsn,
    Moment,
    ObjectRecord,
    OplogPlace,
    Sha256,
    Timeline,
    refuse_unknown_features,
)
from drkit.units import format_utc

Stamp = Annotated[AwareDatetime, PlainSerializer(format_utc, return_type=str)]
"""A `Moment` that keeps its offset: a long log has several hundred thousand, and none is worth a call of Python."""


class SwitchRecord(Document):
    """An ancestor of a timeline, and where it was left."""

    timeline: Timeline
    at_lsn: Lsn


class LogRecord(ObjectRecord):
    """One stored file of the log; ``part`` is the name under which it is stored.

    The stamps are of the first and last commit inside, as far as they are known. ``end_lsn`` says how far a partial
    segment reaches, ``ancestors`` what a history file says, oldest first, and ``stored_at`` when the file was stored.
    """

    kind: Literal["segment", "partial", "history", "backup"]
    first_commit_at: Stamp | None = None
    last_commit_at: Stamp | None = None
    end_lsn: Lsn | None = None
    ancestors: tuple[SwitchRecord, ...] | None = None
    stored_at: Stamp | None = None


class SignedLog(Document):
    """What every signed list of log files has, whatever the database.

    ``previous`` is the SHA-256 of the policy's log manifest before this one, None for the first. ``written_to`` is the
    store that the version ids of ``files`` belong to.
    """

    version: Literal[1] = 1
    features: tuple[str, ...] = ()
    repo_id: str
    policy: str
    engine: str
    timeline: Timeline
    files: tuple[ObjectRecord, ...]
    previous: Sha256 | None = None
    made_at: Moment
    compression: Compression
    encryption: Encryption
    written_to: str

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Self:
        """Parse a log manifest; raise IntegrityError, also for a feature that this drkit does not know (R8)."""
        manifest = super().from_bytes(data, what)
        refuse_unknown_features(manifest.features, what)
        return manifest

    @classmethod
    def from_known_bytes(cls, data: bytes, what: str) -> Self:
        """Parse a log manifest that was parsed before, maybe by a drkit that knows more features than this one."""
        manifest = super().from_known_bytes(data, what)
        refuse_unknown_features(manifest.features, what)
        return manifest


class LogManifest(SignedLog):
    """The signed list of files of PostgreSQL's log of one timeline, without a gap inside."""

    format: Literal["drkit-log"] = "drkit-log"
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)]
    from_lsn: Lsn
    to_lsn: Lsn
    files: tuple[LogRecord, ...]


class SliceRecord(ObjectRecord):
    """One stored slice of MongoDB's oplog: the entries after ``from_ts`` up to ``to_ts``, as raw BSON documents.

    ``first_ts`` is the place of the first one. ``last_sha256`` is of the last entry: what continues the slice has to
    begin behind that very entry.
    """

    kind: Literal["slice"] = "slice"
    from_ts: OplogPlace
    first_ts: OplogPlace
    to_ts: OplogPlace
    entries: Count
    last_sha256: Sha256
    stored_at: Moment | None = None


class OplogManifest(SignedLog):
    """The signed list of slices of one timeline, without a gap inside; or what there is to say where there are none.

    With ``lost``, no slice is listed: the entries between ``from_ts`` and ``to_ts`` were gone before they were read.
    With ``branched_from``, none is listed either: the timeline begins at ``from_ts``, and ``reason`` says why.
    """

    LATER_FIELDS: ClassVar[frozenset[str]] = frozenset({"lost", "branched_from", "reason"})

    format: Literal["drkit-oplog"] = "drkit-oplog"
    from_ts: OplogPlace
    to_ts: OplogPlace
    files: tuple[SliceRecord, ...]
    lost: Literal[True] | None = None
    branched_from: Timeline | None = None
    reason: str | None = None
