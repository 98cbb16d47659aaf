"""Receiving a policy's log by streaming: a supervised pg_receivewal, and what is done when it ends.

What is safe without a person is done: waiting for a server that is gone, following a promoted standby, making a slot
that is missing, going on behind log that the server has thrown away. The last one leaves a gap, which is said; the log
after it is worth as much as the log before. A server of another cluster is never followed.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from drkit.credentials import Secret, resolve
from drkit.engines.postgres_wal import (
    ReceiveOptions,
    Receiving,
    ServerPosition,
    drop_slot,
    make_slot,
    open_receiver,
    read_history,
    read_position,
)
from drkit.errors import IntegrityError, SourceError, StoreError
from drkit.operations import Workplace
from drkit.operations.persistence import Persistence
from drkit.operations.sealed_files import translated
from drkit.operations.ship import Shipper
from drkit.operations.spool import Identity, Spool, is_mark, read_facts, segment_name_of
from drkit.policy import BackupRule, Policy
from drkit.units import format_bytes
from drkit.wal import Segment, classify, format_lsn, parse_history

_WATCH_S = 0.2
_ASK_S = 5.0
_RECOVERY_S = 5.0


@dataclass(frozen=True)
class Setting:
    """What the duties of one policy share."""

    workplace: Workplace
    policy: Policy
    rule: BackupRule
    spool: Spool
    shipper: Shipper
    tell: Callable[[str, str, str], None]
    """Takes a duty's name, its new state and a sentence; the same state twice is said once."""
    met: threading.Event = field(default_factory=threading.Event)
    """Set once the server has been asked whose log it is."""
    recovered: threading.Event = field(default_factory=threading.Event)
    """Set once the shipper knows what the first store lists."""
    owner: list[int] = field(default_factory=list)

    @property
    def slot(self) -> str:
        """Return the name of the replication slot."""
        return self.rule.slot or default_slot(self.policy.policy)

    def owner_uid(self) -> int:
        """Return which user owns the database's files on this host; our own when they are not here."""
        return self.owner[0] if self.owner else os.geteuid()

    def meet(self, position: ServerPosition) -> None:
        """Take note of the server; raise IntegrityError when it is of another cluster than the log so far."""
        meet_cluster(self.spool, position)
        with contextlib.suppress(OSError):
            folder = Path(position.settings.get("data_directory", ""))
            self.owner[:] = [folder.stat().st_uid] if folder.is_absolute() else []
        self.met.set()

    def url(self) -> Secret:
        """Return the server's URL, resolved now: a secret may have been changed."""
        return resolve(self.policy.target.url, folder=self.workplace.site.folder)


def default_slot(policy: str) -> str:
    """Return the slot's name for a policy that does not name one."""
    return f"drkit_{policy.lower().replace('-', '_')}"[:63]


class Receiver:
    """The duty that keeps pg_receivewal running."""

    name = "receiver"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._spool = setting.spool
        self._persistence = Persistence(self._tell, damaged="wrong-server")

    def run(self, stopping: threading.Event) -> None:
        """Receive until ``stopping``; whatever ends it is told and tried again, later each time."""
        self._persistence.run(self._receive, stopping)
        self._tell("stopped", "receiving was stopped")

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _receive(self, stopping: threading.Event) -> None:
        """Receive once, until something ends it."""
        setting = self._setting
        url = setting.url()
        position = read_position(url, setting.slot)
        setting.meet(position)
        self._spool.hold_ballast()
        self._leave_stale(position)
        self._ensure_slot(url, position)
        self._choose_start(position)
        if self._is_full(position):
            return
        options = ReceiveOptions(
            self._spool.received,
            self._spool.folder / "receiver.pid",
            setting.slot,
            setting.rule.synchronous,
            setting.workplace.work_folder,
        )
        with translated(self._spool.folder), open_receiver(url, options, position) as receiving:
            self._watch(receiving, url, position, stopping)

    def _watch(self, receiving: Receiving, url: Secret, position: ServerPosition, stopping: threading.Event) -> None:
        started_s = time.monotonic()
        while not stopping.wait(_WATCH_S):
            if receiving.ended():
                trouble, error = receiving.trouble()
                self._tell(trouble, error.message)
                if trouble == "disk-full":
                    self._persistence.progress()  # what filled the disk was received, and is on its way out
                if trouble in ("log-removed", "slot-lost"):
                    self._jump(url, error)
                elif trouble == "diverged":
                    self._branch(url)
                return
            if self._is_full(position):
                return
            if time.monotonic() - started_s > 1:
                self._persistence.progress()
                self._tell("receiving", f"from {position.server}, slot {self._setting.slot}")

    def _is_full(self, position: ServerPosition) -> bool:
        """Say it when the spool has no room to receive into."""
        if self._spool.has_room(position.segment_bytes):
            return False
        self._tell("disk-full", f"receiving pauses: the spool has {format_bytes(self._spool.free_bytes())} left")
        return True

    def _ensure_slot(self, url: Secret, position: ServerPosition) -> None:
        slot = position.slot
        if slot is None:
            make_slot(url, self._setting.slot)
        elif slot.kind != "physical":
            raise SourceError(f"the replication slot {self._setting.slot} is a {slot.kind} one; the log needs its own")
        elif slot.wal_status == "lost":
            error = SourceError(f"the server gave up the slot {self._setting.slot}: max_slot_wal_keep_size was reached")
            self._tell("slot-lost", error.message)
            self._jump(url, error)

    def _choose_start(self, position: ServerPosition) -> None:
        """Make pg_receivewal go on behind what is shipped, when nothing of it is left in the spool."""
        if any(segment_name_of(path.name, position.segment_bytes) for path in self._spool.received_files()):
            return
        if not self._setting.recovered.wait(_RECOVERY_S):
            raise StoreError("where the log goes on is only known once the first store was read")
        newest = self._setting.shipper.newest()
        if newest is not None:
            self._spool.mark(newest)

    def _jump(self, url: Secret, reason: SourceError) -> None:
        """Go on behind log that the server does not have any more, with a new slot; the gap is said."""
        setting = self._setting
        position = read_position(url, setting.slot)
        if position.slot is not None:
            drop_slot(url, setting.slot)
        make_slot(url, setting.slot)
        position = read_position(url, setting.slot)
        assert position.slot is not None
        restart_lsn = position.slot.restart_lsn or position.flushed_lsn
        first = Segment(position.timeline, restart_lsn // position.segment_bytes, position.segment_bytes)
        reached_lsn = self._received_lsn(position)
        if reached_lsn < (first.number - 1) * first.segment_bytes:
            self._spool.mark(Segment(first.timeline, first.number - 1, first.segment_bytes))
        facts = {
            "policy": setting.policy.policy,
            "timeline": first.timeline,
            "from_lsn": format_lsn(reached_lsn),
            "to_lsn": format_lsn(first.start_lsn),
            "reason": reason.message,
        }
        setting.workplace.catalog.add_event("wal.gap", setting.workplace.clock(), facts)

    def _branch(self, url: Secret) -> None:
        """Follow a server whose timeline branched off before the place up to which ours was received.

        That is what a standby leaves that was promoted before it had everything. What we have beyond is kept; the log
        is received again from the segment in which the timelines part. Raise IntegrityError when they never met.
        """
        position = read_position(url, self._setting.slot)
        held = [
            segment
            for path in self._spool.received_files()
            if (segment := segment_name_of(path.name, position.segment_bytes))
        ]
        ours = max((item.timeline for item in held), default=position.timeline)
        history = parse_history(position.timeline, read_history(url, position.timeline, position.major))
        switch = next((item for item in history if item.timeline == ours), None)
        if switch is None:
            raise IntegrityError(
                f"{position.server} is on timeline {position.timeline}, which does not come from timeline {ours}, the"
                " one that was received",
                hints=["if this server is the right one, take a base backup under a new policy"],
            )
        for path in self._spool.received_files():
            if segment_name_of(path.name, position.segment_bytes):
                self._spool.leave(path)
        parting = Segment(ours, switch.at_lsn // position.segment_bytes, position.segment_bytes)
        if parting.number:
            self._spool.mark(Segment(ours, parting.number - 1, position.segment_bytes))

    def _leave_stale(self, position: ServerPosition) -> None:
        """Put aside unfinished segments that pg_receivewal will not go on with, and marks that have done their work."""
        held = {
            path: segment
            for path in self._spool.received_files()
            if (segment := segment_name_of(path.name, position.segment_bytes))
        }
        newest = max(((item.number, item.timeline) for item in held.values()), default=(0, 0))
        for path, segment in held.items():
            if classify(path.name) == "partial" and path.stat().st_size != position.segment_bytes and is_mark(path):
                # The disk filled while it was padded with zeros, before any log was in it: it would be refused.
                path.unlink()
                continue
            done = classify(path.name) == "partial" or is_mark(path)
            if done and (segment.number, segment.timeline) < newest:
                self._spool.leave(path)

    def _received_lsn(self, position: ServerPosition) -> int:
        """Return up to where the log was received; where nothing is left of it, up to where it was shipped."""
        received = [
            read_facts(path, path.name).end_lsn
            for path in self._spool.waiting_files()
            if segment_name_of(path.name, position.segment_bytes)
        ]
        return max([self._setting.shipper.position(position.timeline), *received])


def meet_cluster(spool: Spool, position: ServerPosition) -> None:
    """Remember the cluster when the spool has none yet; raise IntegrityError when the server is of another one."""
    known = spool.identity()
    if known is None:
        spool.keep_identity(Identity(position.system_identifier, position.segment_bytes))
    elif known.system_identifier != position.system_identifier:
        raise IntegrityError(
            f"{position.server} is another cluster: its system identifier is {position.system_identifier}, and the log"
            f" so far is of {known.system_identifier}",
            hints=["correct target.url of the policy, or give the new cluster a policy of its own"],
        )
