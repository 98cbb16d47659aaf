"""Is what the server believes of its log what the store really has? Decided here, from facts gathered elsewhere.

PostgreSQL counts a segment as archived when the command said so; a command that lies (``/bin/true``) leaves its failure
counter at zero for ever. So nobody's word is taken: the server's positions are held against what the store lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit.model import Finding
from drkit.units import format_bytes, format_duration
from drkit.wal import Segment, format_lsn

_HEADER_BYTES = 64
"""A position just behind a page's header means the same as one before it; the longest header has 40 bytes."""


@dataclass(frozen=True)
class Sighting:
    """One look at the server and at the store, taken in this order.

    ``stored_lsn`` is up to where the timeline's log is listed in the store; ``archived`` the newest segment that the
    server's archiver believes to be stored, None without one; the rest as the server has it. ``waits`` says that its
    commits wait for drkit, ``synchronous`` that the policy wants that, ``applies`` that they wait for replay.
    """

    policy: str
    at: datetime
    timeline: int
    flushed_lsn: int
    stored_lsn: int
    segment_bytes: int
    archived: str | None = None
    archive_mode: str | None = None
    archiver_fails: bool = False
    last_failed: str | None = None
    slot: str | None = None
    slot_status: str | None = None
    keep_bytes: int | None = None
    streams: bool = True
    waits: bool = False
    synchronous: bool = False
    applies: bool = False


def judge_position(sighting: Sighting, exposure: timedelta, allowed: timedelta) -> list[Finding]:
    """Say what is wrong; ``exposure`` is for how long log has been on the server alone, ``allowed`` how long it may."""
    return [
        *_waiting(sighting),
        *_archiver(sighting),
        *_slot(sighting),
        *_behind(sighting, exposure, allowed),
    ]


def _waiting(sighting: Sighting) -> Iterator[Finding]:
    """Say that commits wait for who does not answer at once, or never will (T43)."""
    if not sighting.waits:
        return
    names = "synchronous_standby_names names drkit's receiver"
    if sighting.applies:
        message = (
            f"commits on the server never end: {names}, synchronous_commit is remote_apply, and drkit applies nothing"
        )
        yield Finding("wal-stalls", sighting.policy, message, "alter system set synchronous_commit = on")
    elif not sighting.synchronous:
        message = f"commits on the server wait for seconds: {names}, which confirms now and then only"
        hint = "synchronous: true in the rule of method wal; or name only real standbys there, and no *"
        yield Finding("wal-stalls", sighting.policy, message, hint)


def _archiver(sighting: Sighting) -> Iterator[Finding]:
    if sighting.streams:
        return
    hint = f"drkit wal command {sighting.policy}"
    if sighting.archive_mode == "off":
        message = "archive_mode is off on the server: it hands over nothing"
        yield Finding("wal-archiver", sighting.policy, message, hint)
    if sighting.archiver_fails:
        message = f"the server's archiver fails on {sighting.last_failed}"
        yield Finding("wal-archiver", sighting.policy, message, "look into the server's log: it has the reason")
    if sighting.archived is None:
        return
    try:
        archived = Segment.parse(sighting.archived, sighting.segment_bytes)
    except ValueError:
        return
    if archived.timeline == sighting.timeline and archived.end_lsn > sighting.stored_lsn:
        message = (
            f"the server believes that {sighting.archived} is archived, and it is not in the store, which ends at"
            f" {format_lsn(sighting.stored_lsn)}: archive_command says yes to what it does not do"
        )
        yield Finding("wal-lied", sighting.policy, message, hint)


def _slot(sighting: Sighting) -> Iterator[Finding]:
    if not sighting.streams or sighting.slot is None:
        return
    if sighting.slot_status is None:
        message = f"the replication slot {sighting.slot} is not there: the server keeps no log for drkit"
        yield Finding("wal-slot", sighting.policy, message, "drkit serve")
    elif sighting.slot_status in ("lost", "unreserved"):
        message = f"the replication slot {sighting.slot} is {sighting.slot_status}: the server throws log away"
        yield Finding("wal-slot", sighting.policy, message, "raise max_slot_wal_keep_size; drkit serve must keep up")


def _behind(sighting: Sighting, exposure: timedelta, allowed: timedelta) -> Iterator[Finding]:
    if exposure <= allowed:
        return
    behind = format_bytes(sighting.flushed_lsn - sighting.stored_lsn) if sighting.stored_lsn else "everything"
    message = (
        f"{behind} of log has been on the server alone for {format_duration(exposure)}: it is at"
        f" {format_lsn(sighting.flushed_lsn)}, the store at {format_lsn(sighting.stored_lsn)}"
    )
    yield Finding("wal-behind", sighting.policy, message, f"drkit timeline {sighting.policy}")


def advice(sighting: Sighting) -> str | None:
    """Return what should be set on the server although nothing is wrong yet."""
    if sighting.streams and sighting.keep_bytes is not None and sighting.keep_bytes < 0:
        return (
            "max_slot_wal_keep_size is not set on the server: if drkit serve stops for long, the slot keeps log until"
            " the server's disk is full; set it to what the disk can spare"
        )
    return None


def exposure_of(samples: Sequence[tuple[datetime, int]], stored_lsn: int, now: datetime) -> timedelta:
    """Return for how long there has been log that is on the server alone; ``samples`` are (moment, flushed position).

    Measured from the newest moment at which everything that the server had is stored now; from the oldest sample when
    there is none, which is then too short.
    """
    covered = [at for at, flushed_lsn in samples if flushed_lsn <= stored_lsn + _HEADER_BYTES]
    if samples and covered and covered[-1] == samples[-1][0]:
        return timedelta()
    return now - max(covered, default=samples[0][0] if samples else now)
