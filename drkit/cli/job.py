"""``python -m drkit.cli.job``: one due job in a process of its own, begun by `drkit serve` and by nobody else.

It reads one line of JSON that says what to do, and writes lines of JSON: what it says, how many bytes moved, and how it
ended. When its standard input ends, whoever began it is gone, and it ends as by Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TELL_EVERY_S = 1.0
_CLEAN_UP_WITHIN_S = 60.0


class Line:
    """Says things to `drkit serve`, from any thread; a reporter for the operations."""

    def __init__(self) -> None:
        self._writing = threading.Lock()
        self._moved_bytes = 0
        self._told_bytes = 0
        threading.Thread(target=self._keep_telling, name="progress", daemon=True).start()

    def tell(self, document: Mapping[str, Any]) -> None:
        """Write one line; nobody hears it once `drkit serve` is gone."""
        with self._writing, suppress(OSError):
            os.write(1, json.dumps(document, default=str).encode() + b"\n")

    def line(self, text: str) -> None:
        """Say something on the way."""
        self.tell({"said": text})

    @contextmanager
    def progress(self, label: str, expected_bytes: int | None = None) -> Iterator[Line]:
        """Watch one stream."""
        yield self

    def advance(self, count: int) -> None:
        """Count bytes that moved; a lost count between threads only makes it a little less."""
        self._moved_bytes += count

    def _keep_telling(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(_TELL_EVERY_S):
            if self._moved_bytes != self._told_bytes:
                self._told_bytes = self._moved_bytes
                self.tell({"moved_bytes": self._told_bytes})


def main() -> int:
    """Do the job that standard input asks for; return the exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_serve, name="serve watch", daemon=True).start()
    line = Line()
    ended = _do(task, line)
    line.tell({"ended": ended})
    return 1 if ended["failure"] else 0


def _do(task: Mapping[str, Any], line: Line) -> dict[str, Any]:
    from drkit.app import open_app
    from drkit.attempts import classify
    from drkit.credentials import mask_url
    from drkit.errors import DrkitError
    from drkit.jobs import NOT_PASSED, Job, run_job
    from drkit.policy import unpack

    try:
        with open_app(Path(task["site"])) as workplace:
            if "policy" in task:
                policy = unpack(task["policy"], workplace.site.stores)
                workplace.policies = {**workplace.policies, policy.policy: policy}
            facts = run_job(workplace, Job.read(task["job"]), line)
    except KeyboardInterrupt:
        return {"failure": "interrupted", "error": "interrupted"}
    except DrkitError as error:
        return {"failure": classify(error), "error": error.message, "details": error.details, "hints": error.hints}
    except Exception as error:  # noqa: BLE001 - the last line before serve
        traceback.print_exc()
        text = mask_url(f"this is a bug: {type(error).__name__}: {error}")
        return {"failure": classify(error), "error": text}
    return {"failure": "data" if NOT_PASSED in facts else "", "error": facts.get(NOT_PASSED, ""), "facts": dict(facts)}


def _interrupt(signum: int, frame: object) -> None:
    """Unwind as on Ctrl-C, once: what cleans up must not be interrupted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_serve() -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_CLEAN_UP_WITHIN_S)
    os._exit(1)  # what does not let itself be ended would keep the work from whoever takes it up


if __name__ == "__main__":
    sys.exit(main())
