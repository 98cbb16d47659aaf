"""Run the real command line in children that stop, or are stopped, at a chosen point.

A child is forked from a process that has imported everything, so that hundreds of runs are affordable, and it is a real
process all the same: own pid, own files, nobody waiting for its threads. Points are the requests to stores, the phases
of a drill and the starts of child processes; product code has no hook for them, its functions are wrapped in the child.

Run as ``python -m tests.faults.injection`` it reads one job per line (JSON) and answers with the child's pid and, at
its end, its status and its largest resident size. A job without a trace is the command line and nothing else.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import re
import resource
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ARBITRARY = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}|(?<=-)[0-9a-f]{16}")


@dataclass
class Trigger:
    """Note every point that is passed; at ``stop_at`` send ``signal`` to this very process."""

    trace: int
    stop_at: str
    signal: int

    def pass_by(self, point: str) -> None:
        """Tell that a point was reached."""
        name = _ARBITRARY.sub("*", point)
        os.write(self.trace, f"{name}\n".encode())
        if name == self.stop_at:
            self.stop_at = ""
            os.kill(os.getpid(), self.signal)


class WatchedStore:
    """A store whose every request passes by a trigger, before and after; a put also around its chunks."""

    def __init__(self, store: Any, trigger: Trigger) -> None:
        self._store = store
        self._trigger = trigger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def _request(self, method: str, key: str) -> Iterator[str]:
        request = f"{self._store.name} {method} {key}"
        self._trigger.pass_by(f"before {request}")
        yield request
        self._trigger.pass_by(f"after {request}")

    def put(self, key: str, chunks: Iterable[bytes]) -> Any:
        with self._request("put", key) as request:
            # What is sent over a network is sent again, and only a list can be: it is left as it is.
            small = isinstance(chunks, list | tuple) and self._store.url.startswith("s3:")
            return self._store.put(key, chunks if small else self._watched(chunks, request))

    def _watched(self, chunks: Iterable[bytes], request: str) -> Iterator[bytes]:
        held: bytes | None = None
        first = True
        for chunk in chunks:
            if held is not None:
                yield held
                if first:
                    self._trigger.pass_by(f"after the first chunk of {request}")
                    first = False
            held = chunk
        self._trigger.pass_by(f"before the last chunk of {request}")
        if held is not None:
            yield held
        if first:
            self._trigger.pass_by(f"after the first chunk of {request}")

    def replace(self, key: str, content: bytes, *, expected: str | None) -> Any:
        with self._request("replace", key):
            return self._store.replace(key, content, expected=expected)

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:
        request = f"{self._store.name} open {key}"
        self._trigger.pass_by(f"before {request}")
        with self._store.open(key, version_id=version_id) as chunks:
            self._trigger.pass_by(f"after {request}")
            yield chunks

    def head(self, key: str, *, version_id: str | None = None) -> Any:
        with self._request("head", key):
            return self._store.head(key, version_id=version_id)

    def list(self, prefix: str) -> Iterator[Any]:
        with self._request("list", prefix):
            yield from self._store.list(prefix)

    def delete(self, key: str, *, version_id: str | None = None) -> None:
        with self._request("delete", key):
            self._store.delete(key, version_id=version_id)

    def abort_leftovers(self, *, older_than: Any) -> int:
        with self._request("abort_leftovers", ""):
            return int(self._store.abort_leftovers(older_than=older_than))


def watch_stores(trigger: Trigger, *, impatient: bool) -> None:
    """Wrap every store that is opened from now on; to S3 as quickly discouraged, in parts as small, as tests want."""
    import drkit.app
    from drkit.stores import opening

    def open_watched(*arguments: Any) -> WatchedStore:
        store: Any = opening.open_store(*arguments)
        if impatient and store.url.startswith("s3:"):
            store = _impatient(store)
        return WatchedStore(store, trigger)

    drkit.app.open_store = open_watched


def _impatient(store: Any) -> Any:
    import dataclasses

    from drkit.stores.backoff import Backoff
    from drkit.stores.retrying import RetryingStore
    from drkit.stores.s3 import S3Store

    quick = Backoff(attempts=2, first_s=0.01)
    waits = {"connect_timeout_s": 2.0, "read_timeout_s": 2.0, "attempts": 1, "patience": quick}
    options = dataclasses.replace(store._store._options, part_size_bytes=5 << 20, **waits)
    return RetryingStore(S3Store(store.name, options), quick)


def shift_clock(offset_s: float) -> None:
    """Let every command believe that it is another time."""
    import functools
    from datetime import timedelta

    import drkit.app

    drkit.app.open_app = functools.partial(
        drkit.app.open_app, clock=lambda: drkit.app.utc_now() + timedelta(seconds=offset_s)
    )


def watch_phases(trigger: Trigger) -> None:
    """Pass by the trigger at the beginning and the end of every phase of a drill."""
    from drkit.operations.drill_frame import DrillFrame

    phase = DrillFrame.phase

    @contextmanager
    def watched(self: DrillFrame, name: str) -> Iterator[None]:
        with phase(self, name):
            trigger.pass_by(f"begin {name}")
            yield
            trigger.pass_by(f"end {name}")

    DrillFrame.phase = watched


def watch_children(trigger: Trigger) -> None:
    """Pass by the trigger when a child process has just been started."""
    import drkit.process

    start = drkit.process._start

    def watched(command: Any, **pipes: int) -> Any:
        process = start(command, **pipes)
        trigger.pass_by(f"started {command.tool}")
        return process

    drkit.process._start = watched


def _import_everything() -> None:
    """Import and build what any command would; only then is forking cheap."""
    import drkit

    for module in pkgutil.walk_packages(drkit.__path__, "drkit."):
        importlib.import_module(module.name)
    from drkit.model import Document
    from drkit.stores.s3_connection import _shared_session
    from drkit.validation import Section

    for model in (*_kinds_of(Section), *_kinds_of(Document)):
        model.model_rebuild()
    _shared_session().client("s3", region_name="us-east-1")
    from drkit.binaries import newest_server_major, postgres_binary

    for tool in ("pg_dump", "pg_dumpall", "pg_restore", "psql", "initdb", "pg_ctl", "postgres"):
        postgres_binary(tool, newest_server_major())
    # What a child's collector of garbage looks at, the kernel copies page by page.
    gc.collect()
    gc.freeze()


def _kinds_of(model: type) -> Iterator[Any]:
    for kind in model.__subclasses__():
        yield kind
        yield from _kinds_of(kind)


def _run(job: dict[str, Any]) -> None:
    """Be the child: never return."""
    from drkit.cli import main

    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["folder"])
    for number, name in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(name, flags, 0o600), number)
    if job.get("largest_file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file_bytes"], resource.RLIM_INFINITY))
    if "trace" in job:
        trace = os.open(job["trace"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        trigger = Trigger(trace, job["stop_at"], job["signal"])
        watch_stores(trigger, impatient=job["impatient"])
        watch_phases(trigger)
        watch_children(trigger)
        shift_clock(job["clock_offset_s"])
    try:
        main(job["arguments"])
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:  # noqa: BLE001 - the child must not go on as a second forker
        traceback.print_exc()
        os._exit(70)


def _serve() -> None:
    _import_everything()
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, if it runs the tests, has switched off
            _run(job)
        print(child, flush=True)  # noqa: T201
        _, status, usage = os.wait4(child, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, flush=True)  # noqa: T201


if __name__ == "__main__":
    Path("/proc/self/comm").write_text("drkit-forker")
    _serve()
