"""The drawing of ``drkit timeline``: what can be restored, what cannot, and what was proven, along one axis of time.

Drawing is pure: everything that it depends on, the width and the zone too, is in the picture. A gap is always at least
one column wide, and so is a window that is not next to one; the words below say what the columns are too coarse for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, Protocol

from drkit import recovery_coverage
from drkit.recovery_coverage import Coverage
from drkit.units import format_duration

_LABEL_COLUMNS = 11
_LEAST_AXIS_COLUMNS = 20
_MOST_GAPS_TOLD = 6
_TICK_STEPS = [
    *(timedelta(minutes=step) for step in (1, 5, 15, 30)),
    *(timedelta(hours=step) for step in (1, 3, 6, 12)),
    *(timedelta(days=step) for step in (1, 2, 7, 14, 30, 90, 180, 365)),
]


class Window(recovery_coverage.Window, Protocol):
    """A stretch of one timeline that can be restored."""

    @property
    def timeline(self) -> int:
        """Return which timeline."""


class Gap(Protocol):
    """A stretch of one timeline that cannot be restored, and why; open while nothing ends it."""

    @property
    def timeline(self) -> int:
        """Return which timeline."""

    @property
    def from_at(self) -> datetime:
        """Return the last moment before it."""

    @property
    def to_at(self) -> datetime | None:
        """Return the first moment after it."""

    @property
    def reason(self) -> str:
        """Return what is missing."""


@dataclass(frozen=True)
class Proof:
    """A drill that went to a moment, and how it ended."""

    moment: datetime
    verdict: Literal["passed", "passed_with_findings", "failed"]


@dataclass(frozen=True)
class TimelinePicture:
    """What there is to draw; ``objective`` is the RPO that was promised, ``columns`` the width of the terminal.

    ``log`` is the database's word for what is replayed, ``start`` for what it is replayed on. ``plain`` asks for ASCII.
    ``zone`` is the machine's when it is None.
    """

    policy: str
    now: datetime
    windows: Sequence[Window]
    gaps: Sequence[Gap] = ()
    bases: Sequence[datetime] = ()
    dumps: Sequence[datetime] = ()
    proofs: Sequence[Proof] = ()
    coverage: Coverage | None = None
    objective: timedelta | None = None
    columns: int = 100
    plain: bool = False
    zone: tzinfo | None = None
    log: str = "wal"
    start: str = "base"


@dataclass(frozen=True)
class _Marks:
    wal: str
    base: str
    dump: str
    gap: str
    passed: str
    findings: str
    failed: str


_ASCII = _Marks(wal="=", base="|", dump="o", gap="^", passed="x", findings="?", failed="!")
_UNICODE = _Marks(wal="━", base="┃", dump="○", gap="▲", passed="✓", findings="?", failed="✗")


@dataclass(frozen=True)
class _Axis:
    """Columns for moments: the first column is ``start``, the last is ``end``."""

    start: datetime
    end: datetime
    columns: int
    zone: tzinfo | None

    def column(self, moment: datetime) -> int:
        share = (moment - self.start) / (self.end - self.start)
        return min(max(round(share * (self.columns - 1)), 0), self.columns - 1)

    def hole(self, gap: Gap) -> tuple[int, int]:
        """Return the first column of a gap and the one after its last; its ends belong to the windows beside it."""
        first, end = self.column(gap.from_at) + 1, self.column(gap.to_at or self.end)
        return (first, end) if first < end else (min(first, self.columns) - 1, min(first, self.columns))

    def local(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone)


def draw_timeline(picture: TimelinePicture) -> str:
    """Draw the picture as lines of at most its width, or of 80 columns in a narrower terminal."""
    width = max(picture.columns, 80)
    lines = _headline(picture, width)
    moments = [
        *(moment for window in picture.windows for moment in (window.from_at, window.to_at)),
        *(gap.from_at for gap in picture.gaps),
        *picture.bases,
        *picture.dumps,
    ]
    if not moments:
        return "\n".join(lines)
    names = {window.timeline: f"  timeline {window.timeline}" for window in picture.windows}
    columns = max(width - _LABEL_COLUMNS - max(map(len, names.values()), default=0), _LEAST_AXIS_COLUMNS)
    start = min(moments)
    end = max(picture.now, *moments, start + timedelta(minutes=1))
    axis = _Axis(start.astimezone(UTC), end.astimezone(UTC), columns, picture.zone)
    marks = _ASCII if picture.plain else _UNICODE
    lines.append(" " * _LABEL_COLUMNS + _ticks(axis))
    lines += _row("bases", axis, ((moment, marks.base) for moment in picture.bases))
    lines += _wal_rows(picture, axis, marks, names)
    verdicts = {"passed": marks.passed, "passed_with_findings": marks.findings, "failed": marks.failed}
    worst_last = sorted(picture.proofs, key=lambda proof: list(verdicts).index(proof.verdict))
    lines += _row("proven", axis, ((proof.moment, verdicts[proof.verdict]) for proof in worst_last))
    lines += _gap_lines(picture, axis, marks, width)
    lines += _row("dumps", axis, ((moment, marks.dump) for moment in picture.dumps))
    if len({proof.verdict for proof in picture.proofs}) > 1 or any(
        proof.verdict != "passed" for proof in picture.proofs
    ):
        lines.append(f"drills: {marks.passed} passed, {marks.findings} passed with findings, {marks.failed} failed")
    if picture.coverage is not None and picture.windows:
        lines += textwrap.wrap(_coverage_line(picture.coverage, axis), width, subsequent_indent="  ")
    return "\n".join(line.rstrip() for line in lines)


def _headline(picture: TimelinePicture, width: int) -> list[str]:
    now = picture.now.astimezone(picture.zone)
    title = f"{picture.policy}   now {now.isoformat(sep=' ', timespec='minutes')}"
    reach = _reach(picture)
    one_line = f"{title}      {reach}"
    return [one_line] if len(one_line) <= width else [title, f"{' ' * _LABEL_COLUMNS}{reach}"]


def _reach(picture: TimelinePicture) -> str:
    last_at = max((window.to_at for window in picture.windows), default=None)
    if last_at is None:
        return "no moment can be restored from a log"
    exposed = max(picture.now - last_at, timedelta())
    last = last_at.astimezone(picture.zone)
    today = picture.now.astimezone(picture.zone).date()
    shown = f"{last:%H:%M:%S}" if last.date() == today else f"{last:%Y-%m-%d %H:%M:%S}"
    promised = ""
    if picture.objective is not None:
        missed = ": MISSED" if exposed > picture.objective else ""
        promised = f", objective {format_duration(picture.objective)}{missed}"
    return f"restorable to {shown} (RPO {format_duration(exposed)}{promised})"


def _row(label: str, axis: _Axis, marks: Iterable[tuple[datetime, str]]) -> list[str]:
    """Draw marks, the later ones over the earlier; no row for no marks."""
    cells = [" "] * axis.columns
    for moment, mark in marks:
        if axis.start <= moment <= axis.end:
            cells[axis.column(moment)] = mark
    return [f"{label:<{_LABEL_COLUMNS}}{''.join(cells)}"] if any(cell != " " for cell in cells) else []


def _wal_rows(picture: TimelinePicture, axis: _Axis, marks: _Marks, names: dict[int, str]) -> Iterator[str]:
    for position, timeline in enumerate(sorted(names)):
        cells = [" "] * axis.columns
        for window in picture.windows:
            if window.timeline == timeline:
                first, last = axis.column(window.from_at), axis.column(window.to_at)
                cells[first : last + 1] = marks.wal * (last + 1 - first)
        for gap in picture.gaps:
            if gap.timeline == timeline:
                first, end = axis.hole(gap)
                cells[first:end] = " " * (end - first)
        label = "" if position else picture.log
        yield f"{label:<{_LABEL_COLUMNS}}{''.join(cells)}{names[timeline]}"


def _gap_lines(picture: TimelinePicture, axis: _Axis, marks: _Marks, width: int) -> Iterator[str]:
    """Tell the newest gaps, each under its place: after its pointer, before it, or below, wherever there is room."""
    gaps = sorted(picture.gaps, key=lambda gap: gap.from_at)
    for gap in gaps[-_MOST_GAPS_TOLD:]:
        place = _LABEL_COLUMNS + axis.hole(gap)[0]
        text = f"gap {_span(axis, gap.from_at, gap.to_at, picture.start)}: {gap.reason}"
        if place + 2 + len(text) <= width:
            yield f"{' ' * place}{marks.gap} {text}"
        elif len(text) + 1 <= place:
            yield f"{text:>{place - 1}} {marks.gap}"
        else:
            yield " " * place + marks.gap
            indent = " " * _LABEL_COLUMNS
            yield from textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    if len(gaps) > _MOST_GAPS_TOLD:
        yield f"{' ' * _LABEL_COLUMNS}and {len(gaps) - _MOST_GAPS_TOLD} older gaps (--json lists them)"


def _coverage_line(coverage: Coverage, axis: _Axis) -> str:
    line = f"proven share of the window {int(coverage.share * 1000) / 10:.1f} %"
    if coverage.largest_unproven is None:
        return line
    start, end = coverage.largest_unproven
    return f"{line}, largest unproven stretch {format_duration(end - start)} ({_span(axis, start, end)})"


def _span(axis: _Axis, start: datetime, end: datetime | None, ended_by: str = "base") -> str:
    """Write two moments, the date of the second only when it is another."""
    first = axis.local(start)
    year = "%Y-" if first.year != axis.local(axis.end).year else ""
    begin = f"{first:{year}%m-%d %H:%M:%S}"
    if end is None:
        return f"{begin} until the next {ended_by}"
    last = axis.local(end)
    return f"{begin} .. {last:%H:%M:%S}" if last.date() == first.date() else f"{begin} .. {last:{year}%m-%d %H:%M:%S}"


def _ticks(axis: _Axis) -> str:
    span = axis.end - axis.start
    wanted = max(axis.columns // 9, 1)
    step = next((step for step in _TICK_STEPS if span / step <= wanted), _TICK_STEPS[-1])
    form = "%H:%M" if step < timedelta(days=1) else "%m-%d" if step < timedelta(days=90) else "%Y-%m"
    cells = [" "] * axis.columns
    free_from = 0
    for moment in _tick_moments(axis, step):
        local = axis.local(moment)
        midnight = form == "%H:%M" and (local.hour, local.minute) == (0, 0)
        column, text = axis.column(moment), local.strftime("%m-%d" if midnight else form)
        if column >= free_from and column + len(text) <= axis.columns:
            cells[column : column + len(text)] = text
            free_from = column + len(text) + 2
    return "".join(cells)


def _tick_moments(axis: _Axis, step: timedelta) -> Iterator[datetime]:
    """Return round moments of the local clock on the axis.

    They are counted on the wall clock from the first local midnight, and one that summer time skips falls an hour off
    its round place rather than shifting all that follow.
    """
    wall = axis.local(axis.start).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    while True:
        moment = wall.replace(tzinfo=axis.zone).astimezone(UTC)
        if moment > axis.end:
            return
        if moment >= axis.start:
            yield moment
        wall += step
