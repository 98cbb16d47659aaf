"""Reading MongoDB's oplog: how far it reaches back, and its entries as raw bytes.

Entries are read with majority read concern, so that none can be rolled back after a failover. Reading goes on behind
the last entry that was read before, and only if that very entry is still there: where it is not, the server has thrown
away some that nobody read, or has another history now (the rule of Percona Backup for MongoDB, pbm/oplog/backup.go).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

from bson import Timestamp
from pymongo.collection import Collection
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from drkit.engines.mongodb_client import Client
from drkit.errors import SourceError
from drkit.oplog import Anchor, OplogTs, document_spans, read_ts

_OPLOG = "oplog.rs"


@dataclass(frozen=True)
class OplogReach:
    """From where to where a server's oplog goes; ``size_bytes`` of at most ``most_bytes``, 0 where it does not say."""

    oldest_ts: OplogTs
    newest_ts: OplogTs
    size_bytes: int
    most_bytes: int

    @property
    def span(self) -> timedelta:
        """Return how much time lies between its ends."""
        return timedelta(seconds=self.newest_ts.seconds - self.oldest_ts.seconds)

    @property
    def bytes_per_hour(self) -> float:
        """Return how fast it grows, on average; 0 where it does not say how large it is."""
        return self.size_bytes * 3600 / max(self.span.total_seconds(), 1)

    @property
    def window(self) -> timedelta | None:
        """Return how long an entry stays, at the rate so far; None while nothing says how large the oplog may get."""
        if not self.most_bytes or not self.size_bytes:
            return None
        return timedelta(hours=self.most_bytes / self.bytes_per_hour)


@dataclass(frozen=True)
class Reading:
    """What came of going on behind an entry.

    ``continues``: ``batches`` are the entries after it, whole ones. ``lost``: some after it are gone, and
    ``found_ts`` is the oldest that is there. ``other-history``: the server never had that entry, or not that one.
    ``behind``: it has not come so far, as a member that lags.
    """

    state: Literal["continues", "lost", "other-history", "behind"]
    batches: Iterator[bytes] = field(default_factory=lambda: iter(()))
    found_ts: OplogTs | None = None


def read_reach(client: Client) -> OplogReach | None:
    """Return how far the oplog reaches; None for a server that has none (no member of a replica set)."""
    if not client.admin.command("hello").get("setName"):
        return None
    oldest, newest = (_end(client, direction) for direction in (1, -1))
    if oldest is None or newest is None:
        return None
    try:
        facts: dict[str, Any] = client["local"].command("collStats", _OPLOG)
    except OperationFailure:
        facts = {}
    return OplogReach(oldest, newest, int(facts.get("size") or 0), int(facts.get("maxSize") or 0))


def require_reach(client: Client) -> OplogReach:
    """Return how far the oplog reaches; raise SourceError for a server that has none."""
    reach = read_reach(client)
    if reach is None:
        raise SourceError(
            "the server has no oplog: it is not a member of a replica set",
            hints=[
                "make it a replica set of one member: replication.replSetName in mongod.conf, then rs.initiate()",
                "or dump without an oplog: name target.databases in the policy",
            ],
        )
    return reach


def read_newest(client: Client) -> OplogTs | None:
    """Return the newest entry's place, also of one that can still be rolled back; None where there is no oplog."""
    if not client.admin.command("hello").get("setName"):
        return None
    entry = next(client["local"][_OPLOG].find({}, {"ts": 1}).sort("$natural", -1).limit(1), None)
    return OplogTs.of(entry["ts"]) if entry else None


def newest_shown(client: Client) -> OplogTs | None:
    """Return `read_newest`, and None also where the server does not show its oplog: not every hosted one does."""
    try:
        return read_newest(client)
    except OperationFailure:
        return None


def read_after(client: Client, anchor: Anchor) -> Reading:
    """Go on behind an entry; the batches are read while they are taken."""
    cursor = _oplog(client).find_raw_batches({"ts": {"$gte": Timestamp(*anchor.ts)}}).sort("$natural", 1)
    # The cursor's type is that of documents, whatever it gives.
    batches = _whole_places(bytes(cast("bytes", batch)) for batch in cursor if batch)
    first = next(batches, b"")
    if not first:
        return Reading("behind")
    _, end = next(document_spans(first))
    found_ts = read_ts(first[:end])
    if found_ts == anchor.ts:
        behind = _end_of(first, anchor)
        return Reading("other-history") if behind is None else Reading("continues", _behind(first[behind:], batches))
    oldest_ts = _end(client, 1)
    if oldest_ts is None or oldest_ts > anchor.ts:
        return Reading("lost", found_ts=found_ts)
    # An older entry is there still, so none was thrown away; but one that we read ourselves cannot just be missing.
    return Reading("other-history") if anchor.sha256 else Reading("continues", _behind(first, batches))


def _whole_places(batches: Iterable[bytes]) -> Iterator[bytes]:
    """Cut batches so that none ends between entries of one place: SecantusDB has a transaction's all in one."""
    held = b""
    for batch in batches:
        whole = held + batch
        cut = _last_place(whole)
        if cut:
            yield whole[:cut]
        held = whole[cut:]
    if held:
        yield held


def _last_place(batch: bytes) -> int:
    """Return where the entries begin that have the place of the last one."""
    spans = list(document_spans(batch))
    last_ts = read_ts(batch[spans[-1][0] : spans[-1][1]])
    cut = spans[-1][0]
    for start, end in reversed(spans[:-1]):
        if read_ts(batch[start:end]) != last_ts:
            break
        cut = start
    return cut


def _end_of(batch: bytes, anchor: Anchor) -> int | None:
    """Return where the entries of the anchor's place end; None when the anchor itself is not the last of them."""
    found, sha256 = 0, ""
    for start, end in document_spans(batch):
        entry = batch[start:end]
        if read_ts(entry) != anchor.ts:
            break
        found, sha256 = end, hashlib.sha256(entry).hexdigest()
    return found if anchor.sha256 in ("", sha256) else None


def _behind(first: bytes, batches: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from batches


def _oplog(client: Client) -> Collection[dict[str, Any]]:
    return client["local"].get_collection(_OPLOG, read_concern=ReadConcern("majority"))


def _end(client: Client, direction: int) -> OplogTs | None:
    """Return the oldest entry's place (1) or the newest's (-1)."""
    entry = next(_oplog(client).find({}, {"ts": 1}).sort("$natural", direction).limit(1), None)
    return OplogTs.of(entry["ts"]) if entry else None
