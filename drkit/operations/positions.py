"""Watching the positions: the server's own, and what the store lists."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from drkit import bucket
from drkit.engines.postgres_wal import ServerPosition, read_position
from drkit.errors import DrkitError, IntegrityError, StoreError
from drkit.model import Finding
from drkit.operations.receive import Setting
from drkit.operations.sealed_files import SpoolFull
from drkit.stores import Store
from drkit.units import MIB
from drkit.wal import Segment, classify, format_lsn
from drkit.wal_truth import Sighting, advice, exposure_of, judge_position

_SAMPLES = 2000
_SLACK = timedelta(seconds=30)
_SAMPLED = 3
_FIRST_LOOK_S = 3.0


class Watcher:
    """The duty that compares the positions, every `max_unshipped`."""

    name = "position"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._samples: deque[tuple[datetime, int]] = deque(maxlen=_SAMPLES)
        self._found: dict[str, str] = {}
        self._timeline = 0

    def run(self, stopping: threading.Event) -> None:
        """Look until ``stopping``; not before the receiver had its chance to make the slot."""
        if self._setting.rule.receive == "stream" and stopping.wait(_FIRST_LOOK_S):
            return
        while True:
            try:
                self._look()
            except IntegrityError as error:
                self._tell("wrong-server", error.message)
            except DrkitError as error:
                self._tell("unknown", error.message)
            if stopping.wait(self._setting.rule.max_unshipped.total_seconds()):
                return

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _look(self) -> None:
        setting = self._setting
        position = read_position(setting.url(), setting.slot)
        setting.meet(position)
        if not setting.recovered.is_set():
            raise StoreError("the first store could not be read yet")
        now = setting.workplace.clock()
        if position.timeline != self._timeline:
            self._samples.clear()
            self._timeline = position.timeline
        slot = setting.slot if setting.rule.receive == "stream" else None
        # An archiver is only ever given finished segments: how late the rest may come is archive_timeout's to say.
        self._samples.append((now, position.flushed_lsn if slot else position.segment.start_lsn))
        store = setting.workplace.stores[setting.policy.stores[0]]
        known_lsn = setting.shipper.position(position.timeline)
        stored_lsn = min(known_lsn, listed_lsn(store, setting.policy.policy, position)) if known_lsn else 0
        sighting = sighting_of(setting.policy.policy, position, stored_lsn, now, slot)
        sighting = replace(sighting, synchronous=setting.rule.synchronous)
        exposure = exposure_of(self._samples, stored_lsn, now)
        findings = judge_position(sighting, exposure, self._allowed())
        self._report(findings)
        if not findings:
            hint = advice(sighting)
            self._tell("advice" if hint else "agreed", hint or f"the store is at {format_lsn(stored_lsn)}")
        state = {
            "timeline": position.timeline,
            "flushed_lsn": format_lsn(position.flushed_lsn),
            "stored_lsn": format_lsn(stored_lsn),
            "exposure_ms": round(exposure.total_seconds() * 1000),
            "backlog": setting.shipper.backlog(),
            "findings": [vars(item) for item in findings],
        }
        with suppress(SpoolFull):  # which those say who fill it; the positions are known all the same
            setting.spool.keep_state(state, now)

    def _allowed(self) -> timedelta:
        """Return for how long log may be on the server alone: as the rule says, with room for the way."""
        return 2 * self._setting.rule.max_unshipped + _SLACK

    def _report(self, findings: Iterable[Finding]) -> None:
        setting = self._setting
        found = {item.code: item.message for item in findings}
        for code, message in found.items():
            self._tell(code, message)
            if code not in self._found:
                facts = {"policy": setting.policy.policy, "finding": code, "message": message}
                setting.workplace.catalog.add_event("wal.disagreement", setting.workplace.clock(), facts)
        self._found = found


def listed_lsn(store: Store, policy: str, position: ServerPosition) -> int:
    """Return up to where a store lists the log of the server's timeline; the newest objects must answer for themselves.

    Only the newest part is listed: a timeline may have a hundred thousand segments. A partial segment counts whole,
    because its name does not say how far it reaches.
    """
    segments_per_group = (1 << 32) // position.segment_bytes
    group = position.segment.number // segments_per_group
    while group >= max(0, position.segment.number // segments_per_group - 1):
        prefix = f"{bucket.timeline_prefix(policy, position.timeline)}{position.timeline:08X}{group:08X}"
        ends: dict[int, str] = {}
        for item in store.list(prefix):
            parsed = bucket.parse_log_key(item.key)
            if parsed and item.size_bytes and classify(parsed[2]) in ("segment", "partial"):
                ends[Segment.parse(parsed[2][:24], position.segment_bytes).end_lsn] = item.key
        for end_lsn in sorted(ends, reverse=True)[:_SAMPLED]:
            store.head(ends[end_lsn])
        if ends:
            return max(ends)
        group -= 1
    return 0


def sighting_of(
    policy: str, position: ServerPosition, stored_lsn: int, now: datetime, slot_name: str | None
) -> Sighting:
    """Put together what is judged; ``slot_name`` is None where the server hands over its log by itself."""
    archiver, slot = position.archiver, position.slot
    keep = position.settings.get("max_slot_wal_keep_size")
    failed_at, archived_at = archiver.last_failed_at, archiver.last_archived_at
    return Sighting(
        policy=policy,
        at=now,
        timeline=position.timeline,
        flushed_lsn=position.flushed_lsn,
        stored_lsn=stored_lsn,
        segment_bytes=position.segment_bytes,
        archived=archiver.last_archived,
        archive_mode=position.settings.get("archive_mode"),
        archiver_fails=failed_at is not None and (archived_at is None or failed_at > archived_at),
        last_failed=archiver.last_failed,
        slot=slot_name,
        slot_status=None if slot is None else slot.wal_status or "reserved",
        keep_bytes=None if keep is None else int(keep) * MIB,
        streams=slot_name is not None,
        waits=position.waits,
        applies=position.settings.get("synchronous_commit") == "remote_apply",
    )
