"""The duty that writes heartbeats, by which a drill proves to the row which moment came back."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from drkit.engines.postgres_heartbeat import write_heartbeat
from drkit.errors import DrkitError
from drkit.operations.receive import Setting


class HeartbeatWriter:
    """Writes one row in each interval, as long as the server takes them."""

    name = "heartbeat"

    def __init__(self, setting: Setting, every: timedelta) -> None:
        self._setting = setting
        self._every = every

    def run(self, stopping: threading.Event) -> None:
        """Write until ``stopping``; a row that fails is said and not made up for."""
        due_s = time.monotonic()
        while not stopping.wait(max(0.0, due_s - time.monotonic())):
            self._write()
            due_s = max(due_s + self._every.total_seconds(), time.monotonic())

    def _write(self) -> None:
        setting = self._setting
        try:
            number = write_heartbeat(setting.url(), setting.policy.policy, self._every)
        except DrkitError as error:
            setting.tell(self.name, "failing", " ".join([error.message, *error.hints]))
        else:
            setting.tell(self.name, "beating", f"heartbeat {number} is written")
