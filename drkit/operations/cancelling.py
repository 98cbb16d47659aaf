"""Ending a run from outside, so that it cleans up after itself."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from drkit.catalog import Catalog
from drkit.errors import Busy, CatalogError
from drkit.model import Run
from drkit.operations import Workplace
from drkit.process_identity import ProcessIdentity

_WITHIN_S = 60.0
_LOOK_S = 0.1
_RESIDENT = ("ship",)
_MANY = 100_000


def find_run(catalog: Catalog, prefix: str) -> Run:
    """Return the run whose id begins with ``prefix``; raise CatalogError for none or several."""
    matches = [item for item in catalog.runs(limit=_MANY) if item.run_id.startswith(prefix.upper())]
    if len(matches) != 1:
        raise CatalogError(f"{len(matches) or 'no'} runs begin with {prefix}", hints=["drkit run list"])
    return matches[0]


def cancel_run(workplace: Workplace, prefix: str) -> Run:
    """Ask a run of this host to end as by Ctrl-C, wait until it has, and return how it ended.

    Raise CatalogError when it is over, Busy when it cannot be ended from here or does not end within a minute. The
    process is told from a later one of the same number, so nobody else is signalled.
    """
    catalog = workplace.catalog
    run = find_run(catalog, prefix)
    if run.state != "running":
        raise CatalogError(f"run {run.run_id} is over: {run.state}", hints=[f"drkit run show {run.run_id}"])
    if run.kind in _RESIDENT:
        raise Busy(f"run {run.run_id} is part of drkit serve", hints=[f"stop drkit serve, process {run.pid}"])
    lease = catalog.lease_of_run(run.run_id)
    process = ProcessIdentity.parse(lease.holder.partition("#")[0]) if lease else None
    if process is None or not process.is_known_alive():
        raise Busy(
            f"run {run.run_id} is of host {run.host}", hints=[f"drkit run cancel {run.run_id}   (on {run.host})"]
        )
    facts = {"run_id": run.run_id, "kind": run.kind, "policy": run.policy}
    catalog.occurrences.cancel(run.run_id)
    catalog.add_event("run.cancelled", workplace.clock(), facts)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    until_s = time.monotonic() + _WITHIN_S
    while time.monotonic() < until_s:
        still = catalog.runs(policy=run.policy, kind=run.kind, state="running")
        if all(item.run_id != run.run_id for item in still):
            return find_run(catalog, run.run_id)
        time.sleep(_LOOK_S)
    raise Busy(f"run {run.run_id} was asked to end and has not yet", hints=[f"drkit run show {run.run_id}"])
