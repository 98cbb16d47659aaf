"""Children that write for long and must not go on when drkit is killed: tied to this process by a pipe.

What a dead process left running would write into a folder that the next run clears and fills anew.
"""

from __future__ import annotations

import os
from dataclasses import replace

from drkit.process import Command, Completed, run

_TIED = (
    "/bin/sh",
    "-c",
    """exec 3<&0 </dev/null
"$0" "$@" 3<&- &
child=$!
{ read -r _ <&3; kill -KILL $child; } >/dev/null 2>&1 &
watcher=$!
wait $child
status=$?
kill -KILL $watcher 2>/dev/null
exit $status""",
)
"""Nobody writes to the pipe: its end is the end of the process that holds the other end, however that came about."""

_SIGNALLED = 128
"""A shell's status of a child that a signal has ended is this and the signal's number (sh(1p), 2.8.2)."""


def run_tied(command: Command, *, timeout_s: float) -> Completed:
    """Run a child to its end, whatever its exit status; it is killed when this process is.

    The status of one that a signal has ended is that signal's number, negative. Raise SourceError as
    `drkit.process.run` does.
    """
    reading, writing = os.pipe()
    try:
        done = run(replace(command, started_by=_TIED), stdin=reading, timeout_s=timeout_s, check=False)
        return replace(done, status=_SIGNALLED - done.status) if done.status > _SIGNALLED else done
    finally:
        os.close(reading)
        os.close(writing)
