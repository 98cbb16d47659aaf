"""Tailing a policy's oplog: the duties of `drkit serve` for MongoDB.

The tail reads behind its position once a second, and so finds out as often whether the server still has the entry that
was read last. What it has not any more is a named gap, and tailing goes on behind it; what it has differently is
another history, and a new timeline.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from drkit.credentials import resolve
from drkit.engines.mongodb_client import Client, connect, parse_url
from drkit.engines.mongodb_oplog import OplogReach, Reading, read_after, require_reach
from drkit.errors import DrkitError, StoreError
from drkit.model import Finding
from drkit.operations import Workplace
from drkit.operations.oplog_log import dump_points
from drkit.operations.oplog_ship import OplogShipper
from drkit.operations.oplog_spool import OplogSpool, Position
from drkit.operations.persistence import Persistence
from drkit.operations.sealed_files import SpoolFull
from drkit.operations.selection import find_artifacts
from drkit.oplog import Anchor, OplogDisorder, OplogSpan, OplogTs
from drkit.policy import BackupRule, Policy
from drkit.units import MIB, format_bytes, format_duration, format_moment

_POLL_S = 1.0
_SHIP_S = 0.5
_RECOVERY_S = 5.0
_REACH_S = 10.0
_RESERVE_BYTES = 64 * MIB
_BALLAST_BYTES = MIB
_SLACK = timedelta(seconds=30)
_SHORT_WINDOW = timedelta(hours=1)


@dataclass(frozen=True)
class OplogSetting:
    """What the duties of one policy share."""

    workplace: Workplace
    policy: Policy
    rule: BackupRule
    spool: OplogSpool
    shipper: OplogShipper
    tell: Callable[[str, str, str], None]
    """Takes a duty's name, its new state and a sentence; the same state twice is said once."""
    recovered: threading.Event = field(default_factory=threading.Event)
    """Set once the shipper knows what the first store lists."""
    newer: threading.Event = field(default_factory=threading.Event)
    """Set when somebody else began a new timeline: the tail ends its slice and goes over to it."""


@dataclass
class _Buffer:
    """What was read behind ``position`` and is no slice yet."""

    position: Position
    started_s: float
    span: OplogSpan = field(default_factory=OplogSpan)
    content: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def end(self) -> Anchor:
        """Return the entry that was read last."""
        return Anchor(self.span.last_ts, self.span.last_sha256) if self.span.last_ts else self.position.end

    def add(self, batch: bytes) -> None:
        """Take whole entries; raise IntegrityError when they do not follow on those before."""
        self.span.add(batch)
        self.content.append(batch)
        self.size_bytes += len(batch)


class OplogTail:
    """The duty that reads the oplog and makes slices of it."""

    name = "tail"

    def __init__(self, setting: OplogSetting) -> None:
        self._setting = setting
        self._shipper = setting.shipper
        self._buffer: _Buffer | None = None
        self._lost_at: Anchor | None = None
        self._persistence = Persistence(self._tell, damaged="failed")
        self._reach: OplogReach | None = None
        self._reach_s = 0.0

    def run(self, stopping: threading.Event) -> None:
        """Tail until ``stopping``; whatever ends it is told and tried again, later each time."""
        self._persistence.run(self._tail, stopping)
        with contextlib.suppress(DrkitError):
            self._cut()
        self._tell("stopped", "tailing was stopped")

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _tail(self, stopping: threading.Event) -> None:
        setting = self._setting
        endpoint = parse_url(resolve(setting.policy.target.url, folder=setting.workplace.site.folder))
        with connect(endpoint, setting.rule.idle_timeout.total_seconds()) as client:
            self._choose_start(client)
            while not stopping.is_set():
                if setting.spool.free_bytes() < _RESERVE_BYTES:
                    self._tell("disk-full", f"tailing pauses: the spool has {format_bytes(setting.spool.free_bytes())}")
                    return
                self._poll(client, stopping)
                self._look(client)
                self._persistence.progress()
                stopping.wait(_POLL_S)

    # Where to read --------------------------------------------------------------------------------------------------

    def _choose_start(self, client: Client) -> None:
        """Find the first place ever: where the newest dump needs the oplog from, if the server still has that."""
        if self._shipper.position is not None:
            return
        self._require_recovered()
        if self._shipper.position is None:
            reach = require_reach(client)
            points = dump_points(find_artifacts(self._setting.workplace, self._setting.policy.policy).entries)
            needed_ts = max((item.needs_ts for item in points), default=reach.newest_ts)
            usable = reach.oldest_ts <= needed_ts <= reach.newest_ts
            self._shipper.begin(Anchor(needed_ts if usable else reach.newest_ts))

    def _require_recovered(self) -> None:
        """Wait for what the first store lists; raise StoreError when it does not come."""
        if not self._setting.recovered.wait(_RECOVERY_S):
            raise StoreError("how the oplog goes on is only known once the first store was read")

    def _current(self) -> _Buffer:
        """Return what is being filled; one whose position is no longer the shipper's is read again."""
        position = self._shipper.position
        assert position is not None
        if self._buffer is None or self._buffer.position != position:
            self._buffer = _Buffer(position, time.monotonic())
        return self._buffer

    def _poll(self, client: Client, stopping: threading.Event) -> None:
        """Read what there is; then go over to a timeline that somebody else began."""
        if self._buffer is not None and self._buffer.size_bytes >= self._setting.rule.slice_size:
            self._cut()  # as a spool without room left it: nothing more is held in memory before it is sealed
        buffer = self._current()
        reading = read_after(client, buffer.end)
        if reading.state == "lost":
            self._lose(client, reading)
        elif reading.state == "other-history":
            self._branch(client)
        elif reading.state == "behind":
            self._tell("behind", f"the server has not come to {buffer.end.ts} yet, the entry that was read last")
        else:
            self._read(client, reading, buffer, stopping)
        if self._setting.newer.is_set():
            self._cut()
            self._shipper.recover()
            self._setting.newer.clear()

    def _read(self, client: Client, reading: Reading, buffer: _Buffer, stopping: threading.Event) -> None:
        rule = self._setting.rule
        for batch in reading.batches:
            try:
                buffer.add(batch)
            except OplogDisorder as error:
                self._pass_over(client, error)
                return
            if buffer.size_bytes >= rule.slice_size:
                self._cut()
                buffer = self._current()
            if stopping.is_set():
                return
        if buffer.span.entries and time.monotonic() - buffer.started_s >= rule.slice.total_seconds():
            self._cut()
        elif not buffer.span.entries:
            buffer.started_s = time.monotonic()
        self._tell("tailing", f"timeline {buffer.position.timeline}, from {buffer.position.end.ts}")

    def _cut(self) -> None:
        """Make a slice of what was read."""
        buffer, self._buffer = self._buffer, None
        if buffer is None or not buffer.span.entries:
            return
        try:
            self._shipper.seal(buffer.position, buffer.span, buffer.content)
        except DrkitError:
            self._buffer = buffer
            raise
        self._lost_at = None

    # What is not as it was ------------------------------------------------------------------------------------------

    def _lose(self, client: Client, reading: Reading) -> None:
        """Name a gap and go on behind it; the second time in a row at the newest entry, to get ahead of the server."""
        self._require_recovered()
        self._cut()
        position = self._current().position
        found_ts = reading.found_ts
        if self._lost_at == position.end or found_ts is None:
            found_ts = require_reach(client).newest_ts
        if found_ts <= position.end.ts:
            return
        reason = f"the server threw away the oplog from {position.end.ts} to {found_ts} before it was read"
        self._note_gap(position, found_ts, "overrun", reason)

    def _pass_over(self, client: Client, error: OplogDisorder) -> None:
        """Name a gap where the server's entries do not follow on each other, and go on behind its newest."""
        self._require_recovered()
        self._cut()
        position, newest_ts = self._current().position, require_reach(client).newest_ts
        if newest_ts <= position.end.ts:
            raise error
        self._note_gap(position, newest_ts, "disorder", f"{error.message}, so the server's log cannot be followed")

    def _note_gap(self, position: Position, to_ts: OplogTs, state: str, reason: str) -> None:
        self._shipper.note_lost(Anchor(to_ts), reason)
        self._lost_at = Anchor(to_ts)
        facts = self._facts(position, to_ts, reason)
        self._setting.workplace.catalog.add_event("oplog.gap", self._setting.workplace.clock(), facts)
        lost = f"{format_moment(position.end.ts.moment)} .. {format_moment(to_ts.moment)} cannot be restored"
        self._tell(state, f"{reason}: {lost}; take a dump now: drkit backup {self._setting.policy.policy}")

    def _branch(self, client: Client) -> None:
        """Begin a new timeline: what the server has does not continue what was read."""
        self._require_recovered()
        self._cut()
        if self._shipper.has_newer():
            self._setting.newer.set()
            return
        position = self._current().position
        newest_ts = require_reach(client).newest_ts
        reason = f"the server's oplog does not hold the entry {position.end.ts} that was read: it has another history"
        self._shipper.branch(Anchor(newest_ts), reason)
        facts = self._facts(position, newest_ts, reason)
        self._setting.workplace.catalog.add_event("oplog.timeline", self._setting.workplace.clock(), facts)
        self._tell("other-history", f"{reason}; take a dump now: drkit backup {self._setting.policy.policy}")

    def _facts(self, position: Position, to_ts: OplogTs, reason: str) -> dict[str, Any]:
        return {
            "policy": self._setting.policy.policy,
            "timeline": position.timeline,
            "from_ts": str(position.end.ts),
            "to_ts": str(to_ts),
            "reason": reason,
        }

    # How things stand -----------------------------------------------------------------------------------------------

    def _look(self, client: Client) -> None:
        """Write down how far reading and the stores are, now and then with how far the server's oplog reaches."""
        setting, now = self._setting, self._setting.workplace.clock()
        if self._reach is None or time.monotonic() - self._reach_s >= _REACH_S:
            self._reach, self._reach_s = require_reach(client), time.monotonic()
        buffer = self._current()
        unread_ts = buffer.span.first_ts
        waiting_ts = [ts for ts in (unread_ts, self._shipper.oldest_unstored_ts()) if ts is not None]
        exposure = max((now - ts.moment for ts in waiting_ts), default=timedelta())
        setting.spool.keep_state(self._state(buffer, max(exposure, timedelta()), self._reach), now)

    def _state(self, buffer: _Buffer, exposure: timedelta, reach: OplogReach) -> dict[str, Any]:
        window = reach.window
        return {
            "timeline": buffer.position.timeline,
            "newest_ts": str(max(buffer.end.ts, reach.newest_ts)),
            "sealed_ts": str(buffer.position.end.ts),
            "exposure_ms": round(exposure.total_seconds() * 1000),
            "window_s": round(window.total_seconds()) if window else None,
            "backlog": self._shipper.backlog(),
            "findings": [vars(item) for item in self._findings(exposure, window)],
        }

    def _findings(self, exposure: timedelta, window: timedelta | None) -> list[Finding]:
        policy = self._setting.policy.policy
        found = []
        if exposure > 2 * self._setting.rule.slice + _SLACK:
            message = f"oplog has been on the server alone for {format_duration(exposure)}"
            found.append(Finding("oplog-behind", policy, message, "look at what drkit serve says"))
        if window is not None and window < _SHORT_WINDOW:
            message = f"the server keeps its oplog for {format_duration(window)} only: a longer outage leaves a gap"
            hint = "db.adminCommand({replSetResizeOplog: 1, minRetentionHours: 24})"
            found.append(Finding("oplog-window", policy, message, hint))
        return found


class OplogShipping:
    """The duty that brings slices into the stores, and lists them."""

    name = "shipper"

    def __init__(self, setting: OplogSetting) -> None:
        self._setting = setting
        self._shipper = setting.shipper
        self._looked_s = time.monotonic()

    def run(self, stopping: threading.Event) -> None:
        """Ship until ``stopping``, then once more what there is."""
        pause_s = 0.0
        while True:
            last = stopping.wait(pause_s)
            try:
                self._round()
            except (DrkitError, OSError) as error:
                self._tell("store-failed" if isinstance(error, StoreError) else "failed", str(error))
            else:
                # A store that is left alone for a while fails nothing meanwhile; it is not well yet.
                if not self._shipper.errors():
                    self._tell("shipping", "all stores take what is read")
            if last:
                return
            pause_s = _SHIP_S

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _round(self) -> None:
        setting = self._setting
        if not setting.recovered.is_set():
            self._shipper.recover()
            setting.recovered.set()
        try:
            self._shipper.ship()
        except SpoolFull:
            setting.spool.ballast.give_up()
            raise
        setting.spool.ballast.hold(_BALLAST_BYTES)
        if time.monotonic() - self._looked_s >= setting.rule.slice.total_seconds():
            self._looked_s = time.monotonic()
            if self._shipper.has_newer():
                setting.newer.set()
