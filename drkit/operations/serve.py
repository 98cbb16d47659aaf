"""`drkit serve`: the duties that one resident process has, each in a thread of its own.

A duty runs until it is told to stop, and deals with its own failures; one that ends with an error is started again. Log
shipping makes a group of duties for each policy with method wal or oplog. What belongs to a layer above is handed in.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from drkit.credentials import mask_url
from drkit.errors import Busy, CatalogError, DrkitError, StoreError
from drkit.operations import Reporter, Workplace
from drkit.operations.health import LONG_PATIENCE, USUAL_PATIENCE, Health, Pulse
from drkit.operations.heartbeat import HeartbeatWriter
from drkit.operations.positions import Watcher
from drkit.operations.push import PushServer
from drkit.operations.receive import Receiver, Setting
from drkit.operations.running import recorded_run
from drkit.operations.sealed_files import SpoolFull
from drkit.operations.ship import LIST_AFTER, Shipper
from drkit.operations.spool import SEALED_AT_ONCE, Spool, spool_folder
from drkit.policy import BackupRule, Policy
from drkit.units import format_moment
from drkit.wal import classify

STOP_WITHIN_S = 15.0
_NOTICED_WITHIN_S = 1.0
_WHOLE_GROUP_WITHIN_S = STOP_WITHIN_S + 5
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_SCAN_S = 0.5
_FOLLOW_S = 1.0

Tell = Callable[[str, str, str], None]
_Running = tuple[threading.Thread, Pulse]


class Duty(Protocol):
    """Something that runs all the time."""

    @property
    def name(self) -> str:
        """Return a word for messages and events."""

    def run(self, stopping: threading.Event) -> None:
        """Do it until ``stopping`` is set; then return soon."""


class SpoolShipping:
    """The duty that ships what was received, and lists it."""

    name = "shipper"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._shipper = setting.shipper
        self._partial_s = 0.0

    def run(self, stopping: threading.Event) -> None:
        """Ship until ``stopping``, then once more what there is."""
        pause_s = 0.0
        with ThreadPoolExecutor(SEALED_AT_ONCE, thread_name_prefix="ship") as pool:
            while True:
                last = stopping.wait(pause_s)
                try:
                    self._recover()
                    self._round(pool, last=last)
                except (DrkitError, OSError) as error:
                    self._tell("store-failed" if isinstance(error, StoreError) else "failed", str(error))
                else:
                    # A store that is left alone for a while fails nothing meanwhile; it is not well yet.
                    if not self._shipper.errors():
                        self._tell("shipping", "all stores take what is received")
                if last:
                    return
                pause_s = _SCAN_S if self._setting.recovered.is_set() else _FIRST_WAIT_S

    def _recover(self) -> None:
        """Find out what is there; the log is received meanwhile, whatever the stores do."""
        if not self._setting.recovered.is_set():
            self._shipper.recover()
            self._setting.recovered.set()

    def _tell(self, state: str, message: str) -> None:
        self._setting.tell(self.name, state, message)

    def _round(self, pool: ThreadPoolExecutor, *, last: bool) -> None:
        """Do everything once; raise the first error after all had their turn."""
        errors: list[DrkitError] = []
        ships = [partial(self._shipper.ship, path) for path in self._finished()]
        for future in [pool.submit(ship) for ship in ships]:
            _collect(future.result, errors)
        _collect(self._shipper.retry, errors)
        for path in self._unfinished(last=last):
            _collect(partial(self._ship_partial, path), errors)
        # What is listed leaves the spool, and a full one cannot wait until it is time for that.
        _collect(partial(self._shipper.list_due, force=last or self._is_full()), errors)
        if any(isinstance(error, SpoolFull) for error in errors):
            self._setting.spool.ballast.give_up()
        if errors:
            raise errors[0]
        self._setting.spool.hold_ballast()

    def _is_full(self) -> bool:
        identity = self._setting.spool.identity()
        return identity is not None and not self._setting.spool.has_room(identity.segment_bytes)

    def _finished(self) -> list[Path]:
        return [path for path in self._setting.spool.waiting_files() if classify(path.name) != "partial"]

    def _unfinished(self, *, last: bool) -> list[Path]:
        """Return the unfinished segments when their turn has come."""
        wait_s = self._setting.rule.max_unshipped.total_seconds()
        if not last and time.monotonic() - self._partial_s < wait_s:
            return []
        self._partial_s = time.monotonic()
        return [path for path in self._setting.spool.waiting_files() if classify(path.name) == "partial"]

    def _ship_partial(self, path: Path) -> None:
        if self._shipper.ship_partial(path):
            self._shipper.list_due(force=True)
        elif path.parent == self._setting.spool.left and self._shipper.is_listed(path.name):
            path.unlink(missing_ok=True)


def _collect(step: Callable[[], object], errors: list[DrkitError]) -> None:
    try:
        step()
    except DrkitError as error:
        _let_go(error)
        errors.append(error)


def _let_go(error: BaseException) -> None:
    """Clear what the frames of an error refer to: a segment that is mapped keeps its room on the disk when removed."""
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


class LogShipping:
    """The duty that ships the log of one policy: alone, as a recorded run, with duties of its own."""

    def __init__(
        self, workplace: Workplace, policy: Policy, rule: BackupRule, reporter: Reporter, health: Health
    ) -> None:
        self.name = f"{rule.method} {policy.policy}"
        self._health = health
        self._workplace = workplace
        self._policy = policy
        self._rule = rule
        self._reporter = reporter
        self._states: dict[str, tuple[str, str]] = {}

    def run(self, stopping: threading.Event) -> None:
        """Ship until ``stopping``; wait while another process ships this log, or the first store is out of reach."""
        wait_s = _FIRST_WAIT_S
        while not stopping.is_set():
            try:
                with recorded_run(self._workplace.catalog, self._workplace.clock, "ship", self._policy.policy):
                    self._ship(stopping)
            except Busy as error:
                self.tell("group", "busy", error.message)
            except DrkitError as error:
                self.tell("group", "waiting", error.message)
            stopping.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _ship(self, stopping: threading.Event) -> None:
        duties = self._wal_duties() if self._rule.method == "wal" else self._oplog_duties()
        with running_duties(duties, self.tell, group=Group(self._health, f"{self.name} ", LONG_PATIENCE)):
            stopping.wait()

    def _wal_duties(self) -> list[Duty]:
        spool = Spool(spool_folder(self._workplace.site, self._policy.policy))
        shipper = Shipper(self._workplace, self._policy, spool, list_after=min(LIST_AFTER, self._rule.max_unshipped))
        setting = Setting(self._workplace, self._policy, self._rule, spool, shipper, self.tell)
        streams = self._rule.receive == "stream"
        duties: list[Duty] = [
            SpoolShipping(setting),
            Watcher(setting),
            Receiver(setting) if streams else PushServer(setting),
        ]
        if self._rule.heartbeat is not None:
            duties.append(HeartbeatWriter(setting, self._rule.heartbeat))
        self.tell("group", "running", f"spool {spool.folder}")
        return duties

    def _oplog_duties(self) -> list[Duty]:
        # With these come pymongo and numpy, which a host without MongoDB need not keep in memory.
        from drkit.operations.oplog_ship import OplogShipper
        from drkit.operations.oplog_spool import OplogSpool, oplog_folder
        from drkit.operations.oplog_tail import OplogSetting, OplogShipping, OplogTail

        spool = OplogSpool(oplog_folder(self._workplace.site, self._policy.policy))
        shipper = OplogShipper(self._workplace, self._policy, spool)
        setting = OplogSetting(self._workplace, self._policy, self._rule, spool, shipper, self.tell)
        self.tell("group", "running", f"spool {spool.folder}")
        return [OplogShipping(setting), OplogTail(setting)]

    def tell(self, duty: str, state: str, message: str) -> None:
        """Take a duty's state; a change is said, and kept as an event."""
        before = self._states.get(duty, ("", ""))
        self._states[duty] = (state, message)
        if before[0] == state:
            return
        now = self._workplace.clock()
        self._reporter.line(f"{format_moment(now)}  {self._policy.policy}  {duty:<9} {state}: {message}")
        facts = {
            "policy": self._policy.policy,
            "duty": duty,
            "state": state,
            "before": before[0] or None,
            "message": message,
        }
        with suppress(CatalogError):
            if self._rule.method == "wal":
                self._workplace.catalog.add_event("wal.state", now, facts)
            else:
                self._workplace.catalog.add_event("oplog.state", now, facts)


@dataclass(frozen=True)
class Group:
    """Who watches some duties, what their names begin with there, and how long one may show no sign of life."""

    health: Health
    prefix: str = ""
    patience: timedelta = USUAL_PATIENCE


@contextmanager
def running_duties(
    duties: Sequence[Duty], tell: Tell, within_s: float = STOP_WITHIN_S, group: Group | None = None
) -> Iterator[None]:
    """Run each duty in a thread until the context ends; then stop them, the last one first, within a bound.

    One that does not stop (a store that never answers) is left behind and said; nothing is lost by ending it hard.
    """
    watched = group or Group(Health(partial(datetime.now, UTC), {}))
    running = [_start(duty, tell, watched) for duty in duties]
    try:
        yield
    finally:
        _stop(reversed(running), tell, within_s)


def _start(duty: Duty, tell: Tell, group: Group) -> _Running:
    name = group.prefix + duty.name
    leaving = Pulse(name, group.health)
    thread = threading.Thread(target=_keep_running, args=(duty, tell, leaving), name=duty.name, daemon=True)
    group.health.watch(name, thread, group.patience)
    thread.start()
    return thread, leaving


def _stop(running: Iterable[_Running], tell: Tell, within_s: float) -> None:
    until_s = time.monotonic() + within_s
    for thread, leaving in running:
        leaving.set()
        thread.join(timeout=max(until_s - time.monotonic(), 0.1))
        if thread.is_alive():
            tell(thread.name, "stuck", "it does not stop, and is left behind")


def _keep_running(duty: Duty, tell: Tell, leaving: Pulse) -> None:
    """Run a duty again when an error ended it: one that nobody foresaw must not end log shipping in silence."""
    wait_s = _FIRST_WAIT_S
    while not leaving.is_set():
        try:
            duty.run(leaving)
        except Exception as error:  # noqa: BLE001 - said, kept as an event, and tried again
            # Of an error that nobody foresaw nobody knows what is in its words.
            failure = mask_url(f"{type(error).__name__}: {error}")
            leaving.fail(failure)
            tell(duty.name, "failed", failure)
        leaving.wait(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class LogShippers:
    """The duty that ships the logs of the policies as they are now: one that changes is begun anew."""

    name = "logs"

    def __init__(
        self, workplace: Workplace, names: Collection[str], reporter: Reporter, tell: Tell, health: Health
    ) -> None:
        self._workplace = workplace
        self._health = health
        self._names = names
        self._reporter = reporter
        self._tell = tell
        self._running: dict[str, tuple[Policy, _Running]] = {}

    def run(self, stopping: threading.Event) -> None:
        """Ship until ``stopping``; then stop all of them within a bound."""
        try:
            self._follow()
            while not stopping.wait(_FOLLOW_S):
                self._follow()
        finally:
            running = [item for _, item in self._running.values()]
            for _, leaving in running:  # all at once: each may have a last piece of log to store
                leaving.set()
            _stop(running, self._tell, _WHOLE_GROUP_WITHIN_S)
            self._running.clear()

    def _follow(self) -> None:
        policies = self._workplace.policies
        wanted = {name: policy for name, policy in policies.items() if not self._names or name in self._names}
        for name, (policy, running) in list(self._running.items()):
            if wanted.get(name) != policy:
                _stop([running], self._tell, _WHOLE_GROUP_WITHIN_S)
                del self._running[name]
        for name, policy in wanted.items():
            rule = policy.continuous_rule
            if rule is not None and name not in self._running:
                duty = LogShipping(self._workplace, policy, rule, self._reporter, self._health)
                self._running[name] = policy, _start(duty, self._tell, Group(self._health))


def serve(
    workplace: Workplace,
    names: Collection[str],
    reporter: Reporter,
    stopping: threading.Event,
    watched: tuple[Health, Sequence[Duty]],
) -> None:
    """Ship the logs of the policies of these names, or of all, and run further duties, until ``stopping`` is set.

    ``watched`` are who watches them all, and the further duties.
    """
    health, more = watched
    within_s = _WHOLE_GROUP_WITHIN_S + workplace.site.scheduler.stop_within.total_seconds()

    said: dict[str, str] = {}

    def tell(duty: str, state: str, message: str) -> None:
        reporter.line(f"{duty}  {state}: {message}")
        if said.get(duty) != message:
            said[duty] = message
            with suppress(CatalogError):
                facts = {"duty": duty, "state": state, "message": message}
                workplace.catalog.add_event("duty.failed", workplace.clock(), facts)

    duties = [LogShippers(workplace, names, reporter, tell, health), *more]
    with running_duties(duties, tell, within_s, Group(health)):
        # Python handles a signal when the main thread runs next, and one that came to another thread does not wake it.
        while not stopping.wait(_NOTICED_WITHIN_S):
            pass
