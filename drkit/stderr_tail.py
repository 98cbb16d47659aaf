"""The end of what a child process says on its standard error."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

MOST_LINES = 20
_LONGEST_LINE_BYTES = 2000


class StderrTail:
    """Drain a child's stderr in a thread and keep its last lines; a full stderr pipe would stop the child."""

    def __init__(self, descriptor: int, heard: Callable[[str], bool] | None) -> None:
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._heard = heard
        self._thread = threading.Thread(target=self._drain, args=(descriptor,), daemon=True)
        self._thread.start()

    def _drain(self, descriptor: int) -> None:
        partial = b""
        while chunk := os.read(descriptor, 1 << 16):
            if self._heard is not None:
                *lines, partial = (partial + chunk).split(b"\n")
                words = (line[:_LONGEST_LINE_BYTES].decode(errors="replace") for line in lines)
                self._lines.extend(filter(self._heard, words))
                partial = partial[-_LONGEST_LINE_BYTES:]
                continue
            # From the right, and no further than is kept: a flood must not keep the tool waiting.
            *lines, partial = (partial + chunk).rsplit(b"\n", MOST_LINES)
            if len(lines) == MOST_LINES:
                lines[0] = lines[0].rpartition(b"\n")[2]
            partial = partial[-_LONGEST_LINE_BYTES:]
            self._lines.extend(line[:_LONGEST_LINE_BYTES].decode(errors="replace") for line in lines)
        if partial:
            self._lines.append(partial.decode(errors="replace"))

    def lines(self) -> list[str]:
        """Return the last lines, once the child has closed its stderr or a moment after it ended."""
        self._thread.join(timeout=1)
        return [line for line in self._lines if line.strip()]
