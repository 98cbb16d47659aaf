"""Which stored copies are to be read next, so that every stored byte is read within the promised time.

The copy that was read longest ago comes first, and each day gets its share of the whole: copies that were all made at
once, or a catalog that was rebuilt, are then not all due on one day. No clock is asked and nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import NamedTuple

_DAY = timedelta(days=1)
_HEADROOM = 0.8
"""The share of the promised time in which a round is to be done: stores are away at times, and so is drkit."""
_SHARES_IN_NEED = 3


class StoredCopy(NamedTuple):
    """One thing that a store holds: an artifact, or a log manifest with its files (``subject`` is then its key)."""

    policy: str
    subject: str
    store: str
    size_bytes: int
    stored_at: datetime
    verified_at: datetime | None = None

    @property
    def since(self) -> datetime:
        """Return when it was last known to be sound: when it was read, or else when it was written."""
        return self.verified_at or self.stored_at


@dataclass(frozen=True)
class ReadingPromise:
    """Every copy is read ``within`` that time, and no more than ``max_bytes_per_day`` in a day (None: no limit)."""

    within: timedelta
    max_bytes_per_day: int | None = None


@dataclass(frozen=True)
class ReadingPlan:
    """What to read now, in order; ``overdue`` is past the promised time, ``too_large`` is never read.

    ``share_bytes`` is what a day should read, ``needed_bytes`` what it must read at least to keep the promise.
    """

    chosen: tuple[StoredCopy, ...]
    overdue: tuple[StoredCopy, ...]
    too_large: tuple[StoredCopy, ...]
    share_bytes: int
    needed_bytes: int

    def is_beyond(self, promise: ReadingPromise) -> bool:
        """Tell whether the limit for a day does not let the promise be kept."""
        return promise.max_bytes_per_day is not None and self.needed_bytes > promise.max_bytes_per_day


class ReadingFact(NamedTuple):
    """How some copies stand: their bytes, the one that was read longest ago (or stored, if never), and the largest."""

    stored_bytes: int
    oldest_at: datetime
    oldest: str
    largest_bytes: int
    largest: str


def reading_fact(copies: Sequence[StoredCopy]) -> ReadingFact | None:
    """Sum up some copies; None without any."""
    if not copies:
        return None
    oldest = min(copies, key=lambda copy: copy.since)
    largest = max(copies, key=lambda copy: copy.size_bytes)
    return ReadingFact(
        stored_bytes=sum(copy.size_bytes for copy in copies),
        oldest_at=oldest.since,
        oldest=f"{oldest.subject} in {oldest.store}",
        largest_bytes=largest.size_bytes,
        largest=largest.subject,
    )


def plan_reading(copies: Iterable[StoredCopy], promise: ReadingPromise, now: datetime) -> ReadingPlan:
    """Choose what to read now, so that a day reads its share, the copy of longest ago first.

    A copy larger than a day's share is read all the same, and the days after it read less. What is due within a day or
    overdue may take three shares. A copy larger than the limit for a day is named and never read: half of it proves
    nothing, and the limit is what somebody pays for.
    """
    limit = promise.max_bytes_per_day
    everything = sorted(copies, key=lambda copy: (copy.since, copy.subject, copy.store))
    readable = [copy for copy in everything if limit is None or copy.size_bytes <= limit]
    total_bytes = sum(copy.size_bytes for copy in everything)
    days = max(promise.within / _DAY, 1e-6)
    needed_bytes, share_bytes = ceil(total_bytes / days), ceil(total_bytes / days / _HEADROOM)
    if limit is not None:
        share_bytes = min(share_bytes, limit)
    return ReadingPlan(
        chosen=tuple(_chosen(readable, share_bytes, promise, now)),
        overdue=tuple(copy for copy in everything if copy.since + promise.within < now),
        too_large=tuple(copy for copy in everything if limit is not None and copy.size_bytes > limit),
        share_bytes=share_bytes,
        needed_bytes=needed_bytes,
    )


def _chosen(
    readable: Sequence[StoredCopy], share_bytes: int, promise: ReadingPromise, now: datetime
) -> Iterator[StoredCopy]:
    largest_bytes = max((copy.size_bytes for copy in readable), default=0)
    round_days = max(1, ceil(largest_bytes / share_bytes)) if share_bytes else 1
    read_bytes = _read_since(readable, now - round_days * _DAY)
    today_bytes = _read_since(readable, now - _DAY)
    for copy in readable:
        age = now - copy.since
        if age < (1 - _HEADROOM) * promise.within:
            return
        shares = _SHARES_IN_NEED if age + _DAY >= promise.within else 1
        if read_bytes + copy.size_bytes / 2 > shares * round_days * share_bytes:
            return
        if promise.max_bytes_per_day is not None and today_bytes + copy.size_bytes > promise.max_bytes_per_day:
            return  # a smaller one that fits would put the large ones off for ever
        yield copy
        read_bytes += copy.size_bytes
        today_bytes += copy.size_bytes


def _read_since(copies: Iterable[StoredCopy], moment: datetime) -> int:
    return sum(copy.size_bytes for copy in copies if copy.verified_at is not None and copy.verified_at > moment)
