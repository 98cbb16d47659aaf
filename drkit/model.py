"""The documents in a bucket and the values that the layers hand to each other.

Documents are pydantic models that keep fields they do not know (a later drkit may have added them); everything else is
a frozen dataclass. The bucket's side of it is specified in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from drkit.canonical import canonical_json, parse_json
from drkit.errors import IntegrityError
from drkit.units import format_utc

INCREMENTAL_FEATURE = "incremental-base"
SUPPORTED_FEATURES: frozenset[str] = frozenset({INCREMENTAL_FEATURE})

Fingerprint = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""What a database holds: kind -> name -> facts, such as ``{"table": {"public.orders": {"rows": 3, "digest": "…"}}}``.

The kinds and facts are the engine's; comparing two fingerprints (`drkit.fingerprint`) needs to know neither.
"""


def _aware_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("has no offset")
    return moment.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_aware_utc), PlainSerializer(format_utc, return_type=str)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Lsn = Annotated[str, Field(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]
OplogPlace = Annotated[str, Field(pattern=r"^[0-9]{1,10}:[0-9]{1,10}$")]
Timeline = Annotated[int, Field(ge=1, le=0xFFFFFFFF)]


class Document(BaseModel):
    """A JSON document of the bucket format: immutable, canonical on the way out, strict about what it knows.

    ``LATER_FIELDS`` were added after the first documents had been signed: without a value they are left out, so that
    an older document keeps its bytes.
    """

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
    LATER_FIELDS: ClassVar[frozenset[str]] = frozenset()

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the ones that are signed and stored."""
        absent = {name for name in self.LATER_FIELDS if getattr(self, name) is None}
        return canonical_json(self.model_dump(mode="json", exclude=absent))

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Self:
        """Parse ``data``; raise IntegrityError naming ``what`` and the first field that does not fit."""
        with _named(what):
            return cls.model_validate(parse_json(data, what))

    @classmethod
    def from_known_bytes(cls, data: bytes, what: str) -> Self:
        """Do what `from_bytes` does for bytes that it took before, in half the time.

        No key of theirs is repeated, so that none has to be looked at by Python.
        """
        with _named(what):
            return cls.model_validate_json(data)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn what does not fit into an error that names the document and the first such field."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{what}: field {field}: {first['msg']}") from error


class Checksum(Document):
    """A checksum that the store itself keeps and can be asked for without reading the object."""

    algorithm: str
    kind: Literal["full", "composite"]
    value: str
    part_size_bytes: Count | None = None


class ObjectRecord(Document):
    """One stored object of an artifact, as R5 of the format wants it bound."""

    part: str
    kind: str
    key: str
    version_id: str | None = None
    stored_bytes: Count
    stored_sha256: Sha256
    plain_bytes: Count
    plain_sha256: Sha256
    checksum: Checksum | None = None


class RecipientRecord(Document):
    """A recipient that can open the artifact: a fingerprint to recognise it by, never the recipient string itself."""

    fingerprint: str
    name: str | None = None
    key_class: Literal["classic", "post-quantum"] = "classic"


class ChildRecord(Document):
    """A child process that produced a part, and how it ended."""

    tool: str
    part: str
    exit_status: int


class Coverage(Document):
    """The range of moments that an artifact can bring back; a dump covers the single moment of its snapshot."""

    from_at: Moment
    to_at: Moment


class Compression(Document):
    """How the plain bytes were compressed."""

    algorithm: Literal["zstd"] = "zstd"
    level: int


class Encryption(Document):
    """How the compressed bytes were sealed, and for whom."""

    scheme: str = "age-v1"
    recipients: tuple[RecipientRecord, ...]


class LogPosition(Document):
    """Where in the log a base backup lies: it is consistent from ``stop_lsn`` on, and holds the WAL from its start."""

    timeline: Timeline
    start_lsn: Lsn
    stop_lsn: Lsn
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)]
    system_identifier_tail: str | None = None


class OplogPosition(Document):
    """Where in MongoDB's oplog a dump lies: with the entries from ``start_ts`` on it is consistent at ``stop_ts``.

    ``included`` says that the dump itself holds the entries up to there.
    """

    timeline: Timeline
    start_ts: OplogPlace
    stop_ts: OplogPlace
    included: bool


class Manifest(Document):
    """The signed document that makes an artifact exist.

    ``written_to`` is the store in which it was committed: the version ids of ``objects`` are that store's.
    ``position`` is there for artifacts from which PostgreSQL's log can be replayed, ``oplog`` where it is MongoDB's.
    ``degraded`` says that the source had damage
    (pages with wrong checksums) that is in the artifact as it was; ``details`` say where.
    """

    LATER_FIELDS: ClassVar[frozenset[str]] = frozenset({"position", "degraded", "oplog"})

    format: Literal["drkit-manifest"] = "drkit-manifest"
    version: Literal[1] = 1
    features: tuple[str, ...] = ()
    repo_id: str
    policy: str
    artifact_id: str
    run_id: str
    engine: str
    method: str
    seq: Annotated[int, Field(ge=1)]
    parents: tuple[Sha256, ...] = ()
    depends_on: tuple[str, ...] = ()
    started_at: Moment
    ended_at: Moment
    covers: Coverage
    objects: tuple[ObjectRecord, ...]
    compression: Compression
    encryption: Encryption
    tools: dict[str, str]
    children: tuple[ChildRecord, ...] = ()
    written_to: str
    fence: Count | None = None
    details: str
    position: LogPosition | None = None
    degraded: Literal[True] | None = None
    oplog: OplogPosition | None = None

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that the artifact's objects take in each store."""
        return sum(item.stored_bytes for item in self.objects)

    @property
    def plain_bytes(self) -> int:
        """Return the bytes that the engine produced."""
        return sum(item.plain_bytes for item in self.objects)

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Self:
        """Parse a manifest; raise IntegrityError, also for a feature that this drkit does not know (R8)."""
        manifest = super().from_bytes(data, what)
        refuse_unknown_features(manifest.features, what)
        return manifest


def refuse_unknown_features(features: tuple[str, ...], what: str) -> None:
    """Raise IntegrityError naming ``what`` when it needs a feature that this drkit does not know (R8)."""
    unknown = sorted(set(features) - SUPPORTED_FEATURES)
    if unknown:
        raise IntegrityError(
            f"{what} needs features this drkit does not know: {', '.join(unknown)}",
            hints=["install a newer drkit and try again"],
        )


class Tombstone(Document):
    """The signed explanation of a gap: which artifact was removed, why, and how the chain goes on around it."""

    format: Literal["drkit-tombstone"] = "drkit-tombstone"
    version: Literal[1] = 1
    repo_id: str
    policy: str
    artifact_id: str
    manifest_sha256: Sha256
    seq: Annotated[int, Field(ge=1)]
    parents: tuple[Sha256, ...] = ()
    reason: str
    removed_at: Moment


@dataclass(frozen=True)
class Finding:
    """One thing that a check, a verification or a drill has to say, with the command that comes next.

    ``code`` is a stable word from docs/events.md for scripts; ``subject`` is the noun at fault (an artifact, an object,
    a table).
    """

    code: str
    subject: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Difference:
    """One fact that is not what was recorded: ``table public.invoice rows: 88,215 at backup time, now 88,214``.

    ``expected_by`` says why the difference is to be expected (what the method cannot carry), or is empty.
    """

    kind: str
    name: str
    fact: str
    expected: Any
    actual: Any
    expected_by: str = ""


RunState = Literal["running", "succeeded", "failed", "interrupted", "lost"]


@dataclass(frozen=True)
class Run:
    """One execution of backup, restore, drill, verify or prune."""

    run_id: str
    kind: str
    policy: str
    state: RunState
    started_at: datetime
    host: str
    pid: int
    heartbeat_at: datetime
    ended_at: datetime | None = None
    error: str | None = None
    outcome: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ArtifactEntry:
    """What the catalog keeps of an artifact.

    ``details`` is what only the writer knew in the clear and is lost by a rebuild without an identity; ``stores`` are
    the names of the stores in which the manifest was seen.
    """

    manifest: Manifest
    manifest_sha256: str
    stores: tuple[str, ...]
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Lease:
    """The right to do something alone until ``expires_at``; ``fence`` grows with every change of holder."""

    name: str
    holder: str
    fence: int
    expires_at: datetime


@dataclass(frozen=True)
class Scratch:
    """A throw-away thing that must be gone one day, written down before it is made.

    ``locator`` tells the sandbox that made it where to find it again (a folder); a scratch whose owner process is dead,
    or that is past ``expires_at``, is taken away by the next command of any kind.
    """

    scratch_id: str
    kind: str
    locator: str
    host: str
    owner_pid: int
    owner_started: str
    expires_at: datetime
