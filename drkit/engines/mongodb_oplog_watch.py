"""Whether the oplog that a dump needs fits, is there, and is all there.

What mongodump does for itself (it fails when the oplog was overrun) is checked once more from outside: a failed dump
can leave a perfect archive whose oplog is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from drkit.engines import OplogRange
from drkit.engines.mongodb_oplog import OplogReach
from drkit.errors import SourceError
from drkit.oplog import OplogSpan, OplogTs
from drkit.units import format_bytes, format_duration

_DISK_BYTES_S = 20_000_000
"""How fast a dump is thought to read at least, in bytes on the server's disk, where nothing better is known."""


class OplogWatch:
    """What one dump sees of the oplog; ``reading_ts`` is the newest place when its first bytes came."""

    def __init__(self) -> None:
        self.span = OplogSpan()
        self.reading_ts: OplogTs | None = None
        self._begun_ts: OplogTs | None = None

    def begin(self, newest_ts: OplogTs | None) -> None:
        """Take the newest place before anything is read; of several parts the first counts."""
        self._begun_ts = self._begun_ts or newest_ts

    def around(self, newest_ts: OplogTs | None) -> OplogRange | None:
        """Return the range between the first part's begin and now, which the dump does not hold."""
        if self._begun_ts is None or newest_ts is None:
            return None
        return OplogRange(str(self._begun_ts), str(newest_ts), included=False)

    def require_covered(self, entries: int | None, reach: OplogReach) -> OplogRange:
        """Return the range that the dump holds; raise SourceError unless it makes the dump consistent.

        mongodump settles the first entry before it writes anything, so it is not after what was newest when the first
        bytes came; and the last one when it has read everything, so it is not before what was newest at the start.
        """
        first_ts, last_ts = self.span.first_ts, self.span.last_ts
        if not entries or first_ts is None or last_ts is None:
            raise SourceError("mongodump wrote no entry of the oplog, and a dump that came to its end has at least one")
        if not self._begun_ts or not self.reading_ts or first_ts > self.reading_ts or last_ts < self._begun_ts:
            raise SourceError(
                f"the oplog of the dump goes from {first_ts} to {last_ts} and does not cover the dump, which began"
                f" between {self._begun_ts} and {self.reading_ts}"
            )
        if reach.oldest_ts > first_ts:
            raise SourceError(
                f"the oplog was overrun while the dump ran: it begins at {reach.oldest_ts}, after {first_ts}",
                hints=["db.adminCommand({replSetResizeOplog: 1, size: 16000})"],
            )
        return OplogRange(str(first_ts), str(last_ts), included=True)


def forecast(reach: OplogReach, size_bytes: int, expected_s: float | None = None) -> tuple[str, Sequence[str]]:
    """Say how far the oplog reaches, and warn where the dump may not fit; raise SourceError where it does not.

    ``expected_s`` is how long the last dump took, if there was one; else it is guessed from the size.
    """
    needed = timedelta(seconds=size_bytes / _DISK_BYTES_S if expected_s is None else expected_s)
    rate = f" at {format_bytes(reach.bytes_per_hour)} an hour" if reach.size_bytes else ""
    said = f"oplog of {format_duration(reach.span)}{rate}"
    window = reach.window
    if window is None or needed <= window / 2:
        return said, ()
    message = f"the dump is thought to take {format_duration(needed)}, and the oplog holds {format_duration(window)}"
    if needed > window:
        raise SourceError(
            f"{message}: it would be overrun", hints=["db.adminCommand({replSetResizeOplog: 1, size: 16000})"]
        )
    return said, (f"{message}: more than half of it",)
