"""One moment for all reads of a dump, where the server really has it; and finding out that it only says so.

Since MongoDB 5.0 a replica set answers reads at a cluster time (read concern ``snapshot`` with ``atClusterTime``), so
that several collections, read one after another by several cursors, show one moment. Servers that speak the protocol
may accept all of that and isolate nothing. Two things give them away: they answer for a moment that no server can still
have, and what was read once inside of the snapshot is different when it is read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import Timestamp
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from drkit.engines.mongodb_client import Client
from drkit.engines.mongodb_raw import RAW

_LONG_GONE = Timestamp(1, 1)
_NEWEST = 100


class ClusterTimeConcern(ReadConcern):
    """Asks for the state at one cluster time."""

    def __init__(self, cluster_time: Timestamp) -> None:
        super().__init__("snapshot")
        self._cluster_time = cluster_time

    @property
    def document(self) -> dict[str, Any]:
        """Return what is sent to the server."""
        return {**super().document, "atClusterTime": self._cluster_time}


@dataclass(frozen=True)
class Snapshot:
    """The moment that every read shows; without one ``why_not`` says what the server lacks."""

    cluster_time: Timestamp | None
    why_not: str = ""

    @property
    def concern(self) -> ReadConcern | None:
        """Return what a read has to ask for; None for the server's own default."""
        return None if self.cluster_time is None else ClusterTimeConcern(self.cluster_time)

    @property
    def at(self) -> datetime | None:
        """Return the moment as a time of day, exact to the second."""
        return None if self.cluster_time is None else self.cluster_time.as_datetime()


def find_snapshot(client: Client, database: str, collection: str) -> Snapshot:
    """Fix a moment by a read of one collection; return why there is none when the server has no snapshots."""
    try:
        cluster_time = _read_once(client, database, collection, ReadConcern("snapshot"))
    except OperationFailure as error:
        return Snapshot(None, str((error.details or {}).get("errmsg") or error).splitlines()[0])
    if not isinstance(cluster_time, Timestamp):
        return Snapshot(None, "its answer names no cluster time")
    if not _refuses(client, database, collection, _LONG_GONE):
        return Snapshot(None, "it says that it has snapshots, but answers for one of 1970, so it does not isolate")
    return Snapshot(cluster_time)


def _read_once(client: Client, database: str, collection: str, concern: ReadConcern) -> Any:
    command = {"find": collection, "limit": 1, "projection": {"_id": 1}, "readConcern": concern.document}
    reply: Mapping[str, Any] = client[database].command(command)
    return reply["cursor"].get("atClusterTime")


def _refuses(client: Client, database: str, collection: str, cluster_time: Timestamp) -> bool:
    try:
        _read_once(client, database, collection, ClusterTimeConcern(cluster_time))
    except OperationFailure:
        return True
    return False


@dataclass(frozen=True)
class Sentinel:
    """What a collection shows inside of a snapshot: how many documents, and which ones are the newest."""

    documents: int
    newest: str


def read_sentinels(
    client: Client, database: str, collections: Iterable[str], snapshot: Snapshot
) -> dict[str, Sentinel]:
    """Read the sentinel of each collection, by ``database.collection``; read again later, each must be the same.

    It is not where the server does not isolate.
    """
    found = {}
    for name in collections:
        collection = client[database].get_collection(name, read_concern=snapshot.concern)
        digest = hashlib.sha256()
        for document in collection.with_options(codec_options=RAW).find().sort("_id", -1).limit(_NEWEST):
            digest.update(document.raw)
        found[f"{database}.{name}"] = Sentinel(collection.count_documents({}), digest.hexdigest())
    return found


def moved(before: Mapping[str, Sentinel], after: Mapping[str, Sentinel]) -> list[str]:
    """Return the collections that changed inside of a snapshot, in words."""
    return [
        f"{name} ({before[name].documents:,} documents, then {after[name].documents:,})"
        for name in before
        if before[name] != after.get(name)
    ]
