"""Whether a dump has as many documents as the server had: mongodump's own word is not enough.

Before mongodump reads a collection it asks the server how many documents it has, by its metadata, and says the answer;
drkit's own reading asks as well. Where that is the number that was written then, two that do not know of each other
agree, and nothing is left to ask. Else documents are counted exactly (an aggregation): metadata are wrong after a
crash. That costs a scan, so one is enough where an oplog says what came and went: with it the count after the dump
gives the one before. What a full capped collection drops is in no oplog, so it is counted twice all the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drkit.engines.mongodb_client import Client
from drkit.engines.mongodb_fingerprint import collection_name
from drkit.errors import SourceError
from drkit.mongo_archive import ArchiveSummary

_COUNTED = re.compile(r"\tcounted (?P<count>\d+) documents? in (?P<name>.+)$")
_TALK = re.compile(
    r"\t(counted|enqueued|archive prelude|writing|done dumping|Mux|mux|dump phase|finishing|will listen) "
)


@dataclass(frozen=True)
class Counts:
    """Documents by ``database.collection`` at about one moment; ``oplog_ts`` is the newest entry of the oplog then."""

    documents: Mapping[str, int]
    oplog_ts: Any = None


class SaidCounts:
    """Listens to ``mongodump -vv`` for what the server told it of each collection."""

    def __init__(self) -> None:
        self._documents: dict[str, int] = {}

    def heard(self, line: str) -> bool:
        """Take one line; return whether a failure's details should have it."""
        match = _COUNTED.search(line)
        if match:
            self._documents[match["name"]] = int(match["count"])
        return not _TALK.search(line)

    def agreeing(self, summary: ArchiveSummary) -> frozenset[str]:
        """Return the collections of which as many documents were written as the server had."""
        return agreeing(self._documents, summary)


def agreeing(said: Mapping[str, int], summary: ArchiveSummary) -> frozenset[str]:
    """Return the collections of which as many documents were written as a server's metadata said before."""
    dumped = {collection_name(item): item.documents for item in summary.collections}
    return frozenset(name for name, count in said.items() if dumped.get(name) == count)


def read_counts(client: Client, database: str, collections: Iterable[str]) -> Counts:
    """Count the documents of each collection; one that is gone has none."""
    oplog_ts = _newest_oplog_ts(client)
    scans = "secantusVersion" in client.admin.command("buildInfo")
    return Counts({f"{database}.{name}": _count(client, database, name, scans=scans) for name in collections}, oplog_ts)


def mark_counts(
    client: Client, database: str, collections: Iterable[str], capped: Iterable[str], *, shows_oplog: bool = True
) -> Counts:
    """Remember the place in the oplog before a dump, and count what it cannot tell: everything without it."""
    if not shows_oplog or _newest_oplog_ts(client) is None:
        return Counts(read_counts(client, database, collections).documents)
    return read_counts(client, database, capped)


def _newest_oplog_ts(client: Client) -> Any:
    return client.admin.command("hello").get("lastWrite", {}).get("opTime", {}).get("ts")


def _count(client: Client, database: str, name: str, *, scans: bool) -> int:
    """Count by an aggregation; SecantusDB's command ``count`` goes through the documents, and does not decode them.

    Both are commands: pymongo knows names that servers take and it does not, such as ``log.``.
    """
    if scans:
        return int(client[database].command("count", name)["n"])
    counting = [{"$group": {"_id": 1, "n": {"$sum": 1}}}]
    answer = client[database].command({"aggregate": name, "pipeline": counting, "cursor": {}})
    return sum(int(item["n"]) for item in answer["cursor"]["firstBatch"])


def require_whole(
    client: Client, summary: ArchiveSummary, before: Counts, after: Counts, writer: str = "mongodump"
) -> None:
    """Raise SourceError naming a collection that has fewer or more documents in the archive than it can have.

    It may have any number between the counts before and after; where documents came and went meanwhile, the oplog says
    how many.
    """
    dumped = {collection_name(item): item.documents for item in summary.collections}
    for name, last in after.documents.items():
        first = before.documents.get(name)
        if name not in dumped:
            if last:
                raise SourceError(f"collection {name} has {last:,} documents, and {writer} left it out")
            continue
        if dumped[name] == last or (first is not None and min(first, last) <= dumped[name] <= max(first, last)):
            continue
        inserted, deleted = _changes_since(client, name, before.oplog_ts)
        if first is None:
            first = last - inserted + deleted
        if not first - deleted <= dumped[name] <= first + inserted:
            raise SourceError(
                f"collection {name}: {writer} wrote {dumped[name]:,} documents,"
                f" and there were {first:,} before and {last:,} after",
                details=[f"the oplog has {inserted:,} inserted and {deleted:,} deleted meanwhile"],
                hints=[f"the dump is not whole, although {writer} says so: look at the server's log, and try again"],
            )


def _changes_since(client: Client, name: str, oplog_ts: Any) -> tuple[int, int]:
    """Return how many documents of a collection were inserted and deleted since; 0 where there is no oplog to ask."""
    if oplog_ts is None:
        return 0, 0
    wanted = {"op": 1, "ns": 1, "o.applyOps.op": 1, "o.applyOps.ns": 1}
    changes: Counter[str] = Counter()
    for entry in client["local"]["oplog.rs"].find({"ts": {"$gt": oplog_ts}}, projection=wanted):
        for change in (entry, *(entry.get("o") or {}).get("applyOps", ())):
            if change.get("ns") == name:
                changes[change["op"]] += 1
    return changes["i"], changes["d"]
