"""The pieces that a prune takes the log away by: one log manifest each, with the stretch that it covers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from drkit import bucket
from drkit.operations.inventory import StoreInventory
from drkit.retention import LogPiece
from drkit.wal import Segment

if TYPE_CHECKING:
    from drkit.operations.prune_facts import Stored

_OPLOG_DIGITS = 16
"""How many a place in the oplog has in keys: eight of its second, eight of its number."""


def log_pieces(stored: Stored) -> Iterator[LogPiece]:
    """Yield the log manifests, each with the stretch that its key names.

    Without a base nothing says how long a segment is, and nothing of a WAL is decided. History files are small and
    always stay.
    """
    positions = [copies[0].manifest.position for copies in stored.copies.values()]
    sizes = {position.segment_bytes for position in positions if position is not None}
    measure = _LogSizes(stored.inventories.values())
    for key in sorted(stored.log_manifests):
        place = bucket.parse_log_manifest_key(key)
        stretch = _stretch(place, sizes) if place is not None else None
        if place is not None and stretch is not None:
            yield LogPiece(
                piece_id=key,
                from_position=stretch[0],
                to_position=stretch[1],
                size_bytes=measure.between(place.timeline, place.first[:24], place.last[:24]),
                locked_until=stored.locks.get(key),
                marked_at=stored.log_marked_at(key),
            )


def _stretch(place: bucket.LogManifestKey, segment_sizes: Collection[int]) -> tuple[int, int] | None:
    """Return the positions from which and up to which a log manifest reaches, None where that cannot be told."""
    try:
        if len(place.first) == len(place.last) == _OPLOG_DIGITS:
            return int(place.first, 16), int(place.last, 16)
        if len(segment_sizes) != 1:
            return None
        (segment_bytes,) = segment_sizes
        first = Segment.parse(place.first[:24], segment_bytes)
        return first.start_lsn, Segment.parse(place.last[:24], segment_bytes).end_lsn
    except ValueError:  # a manifest that lists nothing but a history file, whose name is as long as a place's
        return None


class _LogSizes:
    """The stored bytes of log files by timeline and name, summed over a stretch without looking at each again."""

    def __init__(self, inventories: Iterable[StoreInventory]) -> None:
        sizes: dict[int, dict[str, int]] = defaultdict(dict)
        for inventory in inventories:
            for key, item in inventory.objects.items():
                parsed = bucket.parse_log_key(key)
                if parsed is not None:
                    sizes[parsed[1]][parsed[2]] = item.size_bytes
        self._names = {timeline: sorted(files) for timeline, files in sizes.items()}
        self._sums = {
            timeline: [0, *accumulate(sizes[timeline][name] for name in names)]
            for timeline, names in self._names.items()
        }

    def between(self, timeline: int, first: str, last: str) -> int:
        """Return the bytes of the files from segment ``first`` to ``last``, with what belongs to them."""
        names = self._names.get(timeline, [])
        low, high = bisect_left(names, first), bisect_right(names, last + "~")
        return self._sums[timeline][high] - self._sums[timeline][low] if names else 0
