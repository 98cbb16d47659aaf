"""How much of what is promised has been proven by restoring it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

Span = tuple[datetime, datetime]


class Window(Protocol):
    """A stretch of time in which every moment can be restored."""

    @property
    def from_at(self) -> datetime:
        """Return its first moment."""

    @property
    def to_at(self) -> datetime:
        """Return its last moment."""


@dataclass(frozen=True)
class Coverage:
    """What share of the restorable time is proven, from 0 to 1, and the longest stretch that is not."""

    share: float
    largest_unproven: Span | None


def measure_coverage(windows: Sequence[Window], proven: Iterable[Span]) -> Coverage:
    """Compare what can be restored with what was.

    A drill that started from a base and replayed to a moment proves all of the log in between: its span is from the
    base's stop to the moment. Without a window that lasts at all nothing is promised, and the share is 0.
    """
    promised = _united((window.from_at, window.to_at) for window in windows)
    spans = _united(proven)
    open_spans = [part for span in promised for part in _without(span, spans)]
    total = sum((end - start for start, end in promised), timedelta())
    unproven = sum((end - start for start, end in open_spans), timedelta())
    return Coverage(
        share=1 - unproven / total if total else 0.0,
        largest_unproven=max(open_spans, key=lambda span: span[1] - span[0], default=None),
    )


def _united(spans: Iterable[Span]) -> list[Span]:
    united: list[Span] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((start, end))
    return united


def _without(span: Span, taken: Sequence[Span]) -> list[Span]:
    """Return the parts of a span that none of ``taken`` covers; those are in order and apart."""
    start, end = span
    parts: list[Span] = []
    for taken_start, taken_end in taken:
        if taken_end <= start or taken_start >= end:
            continue
        if taken_start > start:
            parts.append((start, taken_start))
        start = max(start, taken_end)
    return [*parts, (start, end)] if start < end else parts
