"""Why a moment cannot be restored: what is there, what is missing, and the nearest moments that can be."""

from __future__ import annotations

from datetime import datetime

from drkit.errors import RecoveryGap
from drkit.recovery_path import LogIndex, Path, Stretch
from drkit.recovery_windows import missing_after
from drkit.wal import format_lsn


def stamp(moment: datetime) -> str:
    """Write a moment to the microsecond with its offset, as a commit is told from the next and as ``--at`` reads it."""
    return moment.astimezone().isoformat()


def goes_on(index: LogIndex, path: Path, stretch: Stretch) -> bool:
    """Say whether there must be more of the log than replay can reach: some is stored behind, or the path goes on."""
    return stretch.to_lsn < path[-1].begin_lsn or index.next_stored(path, stretch.to_lsn) is not None


def in_a_gap(index: LogIndex, path: Path, stretch: Stretch, asked: str) -> RecoveryGap:
    """Return the refusal of a target behind WAL that is missing."""
    following = next((base for base in index.bases_on(path) if base.stop_lsn > stretch.to_lsn), None)
    segment, reason = missing_after(index, path, stretch.to_lsn, following.stop_lsn if following else None)
    policy = index.state.policy
    hints = [_command(index, path, stretch.end_at)]
    if following is not None:
        hints.append(_command(index, path, following.stop_at))
    return RecoveryGap(
        f"{policy} cannot be brought to {asked}: {reason}",
        details=[
            *_last_good(stretch),
            f"first missing       {segment.name}",
            f"restorable again    {f'from {stamp(following.stop_at)}' if following else 'not before the next base'}",
        ],
        hints=hints,
    )


def past_the_end(index: LogIndex, path: Path, stretch: Stretch, asked: str) -> RecoveryGap:
    """Return the refusal of a target after all that is stored: nothing tells what was committed until then."""
    policy = index.state.policy
    last = stretch.last_commit_at
    known = f"the last commit that is stored is of {stamp(last)}" if last else "no commit after the base is stored"
    details = [
        *_last_good(stretch),
        f"first missing       {index.segment_at(path, stretch.to_lsn).name} (not stored yet)",
    ]
    left = [
        (switch.at_lsn, timeline)
        for timeline, switches in sorted(index.state.histories.items())
        for switch in switches[-1:]
        if switch.timeline == path[-1].timeline
    ]
    details += [f"timeline {timeline} goes on from {format_lsn(at_lsn)}" for at_lsn, timeline in left]
    return RecoveryGap(
        f"{policy} cannot be brought to {asked}: {known}",
        details=details,
        hints=[
            _command(index, path, stretch.end_at),
            *(f"drkit restore {policy} --timeline {timeline} --into DIR" for _, timeline in left),
        ],
    )


def before_all_bases(index: LogIndex, path: Path, asked: str) -> RecoveryGap:
    """Return the refusal of a target that every base on the path is later than."""
    oldest = index.bases_on(path)[0]
    policy = index.state.policy
    return RecoveryGap(
        f"{policy} cannot be brought to {asked}: no base is older, and WAL only leads forward",
        details=[
            f"oldest base         {oldest.artifact_id} on timeline {oldest.timeline}",
            f"restorable from     {format_lsn(oldest.stop_lsn)}, {stamp(oldest.stop_at)}",
        ],
        hints=[_command(index, path, oldest.stop_at)],
    )


def _last_good(stretch: Stretch) -> list[str]:
    return [
        f"last good position  {format_lsn(stretch.to_lsn)}",
        f"restorable moments  {stamp(stretch.base.stop_at)} .. {stamp(stretch.end_at)}",
    ]


def _command(index: LogIndex, path: Path, moment: datetime) -> str:
    """Return the command that restores to a moment on the path, which is named where there is another."""
    pin = f" --timeline {path[-1].timeline}" if len(index.timelines()) > 1 else ""
    return f"drkit restore {index.state.policy} --at {stamp(moment)}{pin} --into DIR"
