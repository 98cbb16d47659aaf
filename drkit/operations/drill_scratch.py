"""The empty server that a drill of a dump restores into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from drkit.operations.drill_frame import DrillFrame
from drkit.operations.dump_plan import RestorePlan
from drkit.operations.sandboxing import sandbox_for, scratch_folder
from drkit.sandboxes import SandboxRequest, ScratchServer

_DISK_FACTOR = 3
"""An index-heavy database takes this many times the bytes of its dump, staged copy included."""


@contextmanager
def open_scratch(frame: DrillFrame, plan: RestorePlan, more_bytes: int = 0) -> Iterator[ScratchServer]:
    """Lend a server with room for the dump and ``more_bytes``; whether it was taken away is a result of its own."""
    server_facts = plan.details["server"]
    request = SandboxRequest(
        major=int(server_facts["major"]),
        need_bytes=_DISK_FACTOR * (plan.plain_bytes + more_bytes),
        folder=scratch_folder(frame.workplace),
        settings=server_facts.get("floors", {}),
    )
    sandbox = sandbox_for(plan.entry.manifest.engine)
    with ExitStack() as lent:  # an interrupt at any point in here takes the server away as well
        with frame.phase("provision"):
            server = lent.enter_context(sandbox.open(request, frame.workplace.catalog))
        frame.server_folder = server.folder
        frame.outcome.scratch = {"kind": sandbox.kind, "version": server.version}
        try:
            yield server
        finally:
            with frame.phase("tear down"):
                frame.tear_down(lent)
