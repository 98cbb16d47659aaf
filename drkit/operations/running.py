"""The frame around every run: a lease, a record, a heartbeat, and how it ended.

One of the two broad excepts lives here (the other is the command line's): whatever ends a run is written down before it
goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

from ulid import ULID

from drkit.catalog import Catalog
from drkit.credentials import mask_url
from drkit.errors import Busy, CatalogError, DrkitError
from drkit.model import Lease, Run
from drkit.process_identity import ProcessIdentity, start_mark

LEASE_TTL = timedelta(seconds=60)
HEARTBEAT_S = 15.0
_SILENT_FOR = timedelta(minutes=10)


_planned: ContextVar[str | None] = ContextVar("planned_run", default=None)


class RunningRun:
    """A run in progress; set ``outcome`` to what should be kept of its result.

    ``planned`` says that somebody planned it, who will try again or say that it was given up.
    """

    def __init__(self, run: Run, lease: Lease, clock: Callable[[], datetime]) -> None:
        self.run = run
        self._clock = clock
        self.lease = lease
        self.outcome: dict[str, Any] | None = None
        self.planned = False
        self._is_lost = False

    @property
    def run_id(self) -> str:
        """Return the run's id."""
        return self.run.run_id

    def require_lease(self, catalog: Catalog) -> None:
        """Raise Busy when another run has taken the lease over: it does the work again, and ours comes too late.

        A lease that merely expired is still ours. Called right before what cannot be taken back.
        """
        held = catalog.lease(self.lease.name)
        if held is None or held.fence != self.lease.fence:
            holder = held.holder if held else "a run that has ended since"
            self.note_lost(catalog, holder)
            raise Busy(
                f"{self.lease.name} was taken over by {holder} while this run stood still; nothing is committed",
                hints=["drkit run list"],
            )

    def note_lost(self, catalog: Catalog, holder: str) -> None:
        """Add an event, once: another run has taken the lease over."""
        if not self._is_lost:
            self._is_lost = True
            facts = {**_facts(self.run), "lease": self.lease.name, "holder": holder}
            with contextlib.suppress(CatalogError):
                catalog.add_event("lease.lost", self._clock(), facts)


@contextmanager
def planned_run(run_id: str) -> Iterator[None]:
    """Give the first run that the body begins the id under which somebody has planned it."""
    token = _planned.set(run_id)
    try:
        yield
    finally:
        _planned.reset(token)


def _next_id(now: datetime) -> str:
    planned = _planned.get()
    _planned.set(None)
    return planned or new_id(now)


@contextmanager
def recorded_run(
    catalog: Catalog, clock: Callable[[], datetime], kind: str, policy: str, *, alone: str | None = None
) -> Iterator[RunningRun]:
    """Run the body as one recorded run that holds the lease ``alone`` (by default, of this kind and policy).

    Raise Busy, with nothing recorded, when another process holds it. A holder on this host that is dead holds nothing:
    the next run after a crash waits for no time-out. The heartbeat keeps the lease; if it is lost all the same the body
    goes on, because adding a backup harms nobody and deleting re-checks the fence.
    """
    close_lost_runs(catalog, clock())
    now, planned = clock(), _planned.get() is not None
    run = Run(_next_id(now), kind, policy, "running", now, socket.gethostname(), os.getpid(), now)
    lease = _acquire(catalog, alone or f"{kind}/{policy}", run)
    running = RunningRun(run, lease, clock)
    running.planned = planned
    try:
        catalog.start_run(run)
        catalog.add_event("run.started", now, _facts(run))
        with _heartbeat(catalog, clock, running):
            yield running
    except BaseException as error:
        _finish(catalog, clock, running, error)
        raise
    else:
        _finish(catalog, clock, running, None)
    finally:
        with contextlib.suppress(CatalogError):
            catalog.release_lease(running.lease)


def new_id(at: datetime) -> str:
    """Return a new ULID: never reused, and sorted by the moment ``at``."""
    return str(ULID.from_datetime(at))


def moment_of_id(made_id: str) -> datetime | None:
    """Return the moment that an id of `new_id` begins with; None for what is no id of ours."""
    try:
        return ULID.from_str(made_id).datetime
    except ValueError:
        return None


def close_lost_runs(catalog: Catalog, now: datetime) -> list[Run]:
    """Write down as lost every run of this host whose process is gone; return them."""
    host = socket.gethostname()
    lost = []
    for run in catalog.runs(state="running"):
        silent = now - run.heartbeat_at > _SILENT_FOR and not _is_held(catalog, run)
        if run.host == host and (not start_mark(run.pid) or silent):
            ended = dataclasses.replace(run, state="lost", ended_at=now, error="its process ended without a word")
            catalog.finish_run(ended)
            catalog.add_event("run.lost", now, _facts(run))
            lost.append(ended)
    return lost


def _facts(run: Run) -> dict[str, Any]:
    """Return what an event says of a run; a backup's method as well, where it is known."""
    facts = {"run_id": run.run_id, "kind": run.kind, "policy": run.policy}
    return {**facts, **({"method": run.outcome["method"]} if run.outcome and "method" in run.outcome else {})}


def _is_held(catalog: Catalog, run: Run) -> bool:
    """Tell whether a run's own process holds its lease and lives; silence alone may be a clock that was put forward."""
    lease = catalog.lease(f"{run.kind}/{run.policy}")
    holder, _, run_id = lease.holder.partition("#") if lease else ("", "", "")
    return run_id == run.run_id and not ProcessIdentity.parse(holder).is_known_dead()


def _acquire(catalog: Catalog, name: str, run: Run) -> Lease:
    held = catalog.lease(name)
    if held is not None and ProcessIdentity.parse(held.holder.partition("#")[0]).is_known_dead():
        catalog.release_lease(held)
    return catalog.acquire_lease(name, f"{ProcessIdentity.own()}#{run.run_id}", LEASE_TTL, run.started_at)


@contextmanager
def _heartbeat(catalog: Catalog, clock: Callable[[], datetime], running: RunningRun) -> Iterator[None]:
    stopping = threading.Event()

    def beat() -> None:
        while not stopping.wait(HEARTBEAT_S):
            with contextlib.suppress(DrkitError):
                try:
                    running.lease = catalog.renew_lease(running.lease, LEASE_TTL, clock())
                except Busy:
                    held = catalog.lease(running.lease.name)
                    running.note_lost(catalog, held.holder if held else "")
                    raise
                catalog.beat(running.run_id, clock())

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _finish(catalog: Catalog, clock: Callable[[], datetime], running: RunningRun, error: BaseException | None) -> None:
    """Record the end; a catalog that fails now must not hide what ended the run, so only success depends on it."""
    state: Any = "succeeded" if error is None else "failed"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        state = "interrupted"
    message = None if error is None else mask_url(str(error)) or type(error).__name__
    if state == "interrupted":
        message = "interrupted"
    outcome = {**(running.outcome or {}), **_advice(error)} or None
    ended = dataclasses.replace(running.run, state=state, ended_at=clock(), error=message, outcome=outcome)
    with contextlib.nullcontext() if error is None else contextlib.suppress(CatalogError):
        catalog.finish_run(ended)
        facts = {**_facts(ended), "error": message, **({"planned": True} if running.planned else {})}
        catalog.add_event(f"run.{state}", ended.ended_at or clock(), facts)


def _advice(error: BaseException | None) -> dict[str, Any]:
    """Return what the command line says below an error: of one in the night somebody reads it in the morning."""
    if not isinstance(error, DrkitError):
        return {}
    said = {"details": error.details, "hints": error.hints}
    return {name: [mask_url(line) for line in lines] for name, lines in said.items() if lines}
