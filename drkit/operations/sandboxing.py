"""Choosing a sandbox for an engine, and taking away what dead processes left."""

from __future__ import annotations

import os
from pathlib import Path

from drkit.errors import DrkitError
from drkit.model import Scratch
from drkit.operations import Workplace
from drkit.sandboxes import Sandbox
from drkit.sandboxes.machine import is_abandoned


def sandbox_for(engine: str) -> Sandbox:
    """Return the sandbox that lends servers of an engine."""
    return _sandboxes()[engine]


def _sandboxes() -> dict[str, Sandbox]:
    from drkit.sandboxes.mongodb import MongodbSandbox
    from drkit.sandboxes.postgres import PostgresSandbox

    return {"postgres": PostgresSandbox(), "mongodb": MongodbSandbox()}


def scratch_folder(workplace: Workplace) -> Path:
    """Return where scratch servers live: beside the site, where there is room for databases, or as the host says."""
    named = os.environ.get("DRKIT_SCRATCH")
    return Path(named) if named else workplace.site.folder / "scratch"


def reap_scratches(workplace: Workplace) -> list[Scratch]:
    """Take away every scratch of this host that its owner has left behind; return those taken away.

    One that cannot be taken away stays in the ledger, is reported as an event, and is tried again by the next command:
    it is a copy of somebody's data that should not be there.
    """
    reaped = []
    for scratch in workplace.catalog.scratches():
        if not is_abandoned(scratch, workplace.clock()):
            continue
        try:
            _sandboxes()[scratch.kind].reap(scratch)
        except DrkitError as error:
            facts = {"scratch_id": scratch.scratch_id, "locator": scratch.locator, "error": error.message}
            workplace.catalog.add_event("sandbox.leaked", workplace.clock(), facts)
            continue
        workplace.catalog.remove_scratch(scratch.scratch_id)
        workplace.catalog.add_event("sandbox.reaped", workplace.clock(), {"scratch_id": scratch.scratch_id})
        reaped.append(scratch)
    return reaped
