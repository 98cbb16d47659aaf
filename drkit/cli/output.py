"""What users and scripts see.

The rules, which every command obeys by going through here:

- the result goes to standard output, alone; progress, messages and errors go to standard error
- with ``--json`` the result is one document with a ``schema`` name and version, errors included
- an error is ``drkit:`` and one lower-case sentence, then its details indented, then ``hint:`` lines
- colour only repeats what a word says, and only on a terminal without NO_COLOR
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from drkit.errors import ConfigError, DrkitError
from drkit.units import format_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STYLES = {
    "ok": "green",
    "PASSED": "green",
    "PASSED WITH FINDINGS": "yellow",
    "FAILED": "red",
    "LATE": "yellow",
    "UNPROVEN": "yellow",
    "DAMAGED": "red",
    "MISSED": "red",
}
_PROGRESS_LINE_EVERY_S = 30.0


class StandardOutput(io.FileIO):
    """Descriptor 1, which names itself in the error when it takes no more: its disk is full, its reader gone."""

    NAME = "standard output"

    @classmethod
    def install(cls) -> None:
        """Take the place of the process's own standard output; another one, as in tests, stays."""
        own = sys.stdout
        if own is sys.__stdout__ and isinstance(own, io.TextIOWrapper) and not own.isatty():
            buffered = io.BufferedWriter(cls(own.fileno(), "w", closefd=False))
            sys.stdout = io.TextIOWrapper(buffered, encoding=own.encoding, errors=own.errors)

    def write(self, data: Buffer) -> int:
        """Write; raise OSError with this name."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = self.NAME
            raise


def styled(word: str) -> str:
    """Colour a verdict word where colour is welcome."""
    colour = _STYLES.get(word)
    if colour is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return word
    return click.style(word, fg=colour)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns under their headers; quick for ten thousand rows."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    template = "  ".join(f"{{:<{width}}}" for width in widths)
    return "\n".join(template.format(*row).rstrip() for row in [headers, *rows])


class Progress:
    """Counts bytes of one stream; advanced from the stream's own thread."""

    def __init__(self, label: str, expected_bytes: int | None) -> None:
        self.label = label
        self.expected_bytes = expected_bytes
        self.done_bytes = 0
        self.started_s = time.monotonic()

    def advance(self, count: int) -> None:
        """Add bytes."""
        self.done_bytes += count

    def describe(self) -> str:
        """Say bytes, rate and the time that is left, as far as it can be known."""
        elapsed = max(time.monotonic() - self.started_s, 0.001)
        rate = self.done_bytes / elapsed
        text = f"{format_bytes(self.done_bytes)}  {format_bytes(rate)}/s"
        if self.expected_bytes and rate > 0 and self.done_bytes < self.expected_bytes:
            left_s = int((self.expected_bytes - self.done_bytes) / rate)
            text += f"  about {left_s // 60}:{left_s % 60:02} left"
        return text

    def draw(self, width: int = 20) -> str:
        """Draw a bar where the size is known, a count where it is not."""
        if not self.expected_bytes:
            return self.describe()
        share = min(self.done_bytes / self.expected_bytes, 1.0)
        full, rest = ("█", "░") if _unicode_welcome() else ("#", "-")
        filled = int(share * width)
        return f"{full * filled}{rest * (width - filled)}  {self.describe()}"


def _unicode_welcome() -> bool:
    encoding = (sys.stderr.encoding or "").lower()
    return encoding.startswith("utf") and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Output:
    """Where a command's result, messages and progress go."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self._drawing = threading.Lock()

    def result(self, schema: str, document: Mapping[str, Any], text: str) -> None:
        """Print the result: ``text`` for people, or the document under ``drkit/<schema>/1`` with ``--json``."""
        if self.json:
            click.echo(json.dumps({"schema": f"drkit/{schema}/1", **document}, ensure_ascii=False, default=str))
        elif text:
            click.echo(text)

    def line(self, text: str) -> None:
        """Say something on the way; silent with ``--quiet`` and ``--json``, and nothing ends where nobody can hear."""
        if not self.quiet and not self.json:
            with self._drawing, suppress(OSError):
                click.echo(text, err=True)

    def event(self, document: Mapping[str, Any]) -> None:
        """Print one event as a line of its own, under ``drkit/event/1``; only with ``--json``."""
        if self.json:
            line = json.dumps({"schema": "drkit/event/1", **document}, ensure_ascii=False, default=str)
            with self._drawing:
                click.echo(line)

    @contextmanager
    def progress(self, label: str, expected_bytes: int | None = None) -> Iterator[Progress]:
        """Show the progress of one stream: a bar on a terminal, a line each 30 s elsewhere, nothing when quiet."""
        progress = Progress(label, expected_bytes)
        if self.quiet or self.json:
            yield progress
            return
        done = threading.Event()
        terminal = sys.stderr.isatty()
        drawer = threading.Thread(target=self._draw_until, args=(progress, done, terminal), daemon=True)
        drawer.start()
        try:
            yield progress
        finally:
            done.set()
            drawer.join()
            if terminal:
                with self._drawing:
                    click.echo("\r\x1b[2K", err=True, nl=False)

    def _draw_until(self, progress: Progress, done: threading.Event, terminal: bool) -> None:
        while not done.wait(0.25 if terminal else _PROGRESS_LINE_EVERY_S):
            with self._drawing:
                if terminal:
                    click.echo(f"\r\x1b[2K  {progress.label:<11} {progress.draw()}", err=True, nl=False)
                else:
                    click.echo(f"  {progress.label:<11} {progress.describe()}", err=True)

    def error(self, error: DrkitError, exit_code: int) -> None:
        """Print an error that drkit raised on purpose."""
        if self.json:
            self._json_error(type(error).__name__, error, exit_code)
            return
        if isinstance(error, ConfigError) and error.problems:
            lines = [*(f"drkit: {problem}" for problem in error.problems), error.message]
        else:
            lines = [f"drkit: {error.message}"]
        lines += [*(f"  {line}" for line in error.details), *(f"  hint: {line}" for line in error.hints)]
        with suppress(OSError):  # the exit code says it too
            click.echo("\n".join(lines), err=True)

    def _json_error(self, kind: str, error: DrkitError, exit_code: int) -> None:
        document: dict[str, Any] = {
            "kind": kind,
            "message": error.message,
            "details": list(error.details),
            "hints": list(error.hints),
        }
        if isinstance(error, ConfigError):
            document["problems"] = [vars(problem) for problem in error.problems]
        self.result("error", {"error": document, "exit_code": exit_code}, "")

    def usage_error(self, error: click.ClickException) -> None:
        """Print a mistake on the command line, and where its help is."""
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "drkit"
        message = error.format_message()
        self.error(DrkitError(message[:1].lower() + message[1:], hints=[f"{command} --help"]), 2)

    def bug(self, error: Exception) -> None:
        """Print an error that nobody foresaw."""
        text = f"this is a bug: {type(error).__name__}: {error}"
        self.error(DrkitError(text, hints=["run it again with --debug and report what it prints"]), 1)
