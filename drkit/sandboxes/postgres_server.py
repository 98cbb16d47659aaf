"""Running a server on a data folder that was restored: with settings of ours, watched, and stopped at the end.

The server's settings, socket and log lie in a private folder of ours, so that nothing that came with the data (another
data folder, a port, libraries, commands) takes effect. If drkit dies, a watcher that holds the other end of a pipe
stops the server within moments.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from drkit.binaries import postgres_binary, postgres_version
from drkit.credentials import Secret
from drkit.errors import SourceError, written
from drkit.process import Command, open_consumer, run

SOCKET_NAME = ".s.PGSQL.5432"
_STOP_TIMEOUT_S = 30.0
_LONGEST_SHUTDOWN_S = 3600.0
_SHOWN_LINES = 15
_STATUS_LINE = 7
_LOOK_EVERY_S = 0.01

WATCH = """
if read -r _; then exec "$0" -D "$1" -m immediate -w stop; fi
tries=30
until "$0" -D "$1" -m immediate -w stop || [ ! -d "$1" ] || [ $((tries -= 1)) -eq 0 ]; do sleep 0.5; done
"""
"""Told to, stop the server. When the input ends without a word drkit was killed, perhaps while the server was being
started: then try again until there is one to stop."""


@dataclass(frozen=True)
class ServerPlace:
    """Where a restored server lives: its data, and a private folder of the same owner for everything else.

    ``user`` is whom the server runs as, None for ourselves; ``superuser`` the role that drkit connects as.
    """

    data: Path
    run_folder: Path
    major: int
    user: str | None
    superuser: str = "postgres"

    @property
    def log(self) -> Path:
        """Return the server's log."""
        return self.run_folder / "server.log"

    @property
    def version(self) -> str:
        """Return the version of the programs that run it."""
        major, minor = postgres_version(postgres_binary("postgres", self.major))
        return f"{major}.{minor}"

    @property
    def url(self) -> Secret:
        """Return where the server is; what a role or database would load into sessions stays out of them."""
        options = "-c session_preload_libraries= -c local_preload_libraries="
        if self.major >= 17:
            options += " -c event_triggers=off"
        parameters = urlencode({"host": self.run_folder, "port": 5432, "options": options}, quote_via=quote)
        return Secret(f"postgresql://{quote(self.superuser, safe='')}@/postgres?{parameters}")

    def command(self, tool: str, *arguments: str) -> Command:
        """Return a command of PostgreSQL's, run as the server's user."""
        return Command([str(postgres_binary(tool, self.major)), *arguments], cwd=self.run_folder, user=self.user)


class RestoredServer:
    """A server that can be started and stopped; made by `open_server`, which stops it in any case."""

    def __init__(self, place: ServerPlace) -> None:
        self.place = place
        self._settings: Mapping[str, str] = {}

    def start_again(self, *, timeout_s: float) -> None:
        """Start it as it was started before; recovery has ended by now."""
        self.start(self._settings, timeout_s=timeout_s)

    def start(self, settings: Mapping[str, str], *, timeout_s: float) -> None:
        """Start it with these settings alone; return once it accepts connections.

        With ``hot_standby = off`` that is when recovery has ended. Raise SourceError with the last lines of the
        server's log when it ends before.
        """
        place = self.place
        self._settings = settings
        with written(place.run_folder):
            self._write_settings(settings)
            place.log.unlink(missing_ok=True)
        options = f"-c config_file={shlex.quote(str(place.run_folder / 'postgresql.conf'))}"
        arguments = ["-D", str(place.data), "-l", str(place.log), "-w", "-t", str(round(timeout_s)), "-s"]
        try:
            run(place.command("pg_ctl", *arguments, "-o", options, "start"), timeout_s=timeout_s + 10)
            self._wait_until_ready(timeout_s)
        except SourceError as error:
            raise SourceError("the restored server did not start", details=self.log_lines() or error.details) from error

    def _wait_until_ready(self, timeout_s: float) -> None:
        """Wait for the end of recovery: pg_ctl is content with a consistent server that lets nobody in."""
        until_s = time.monotonic() + timeout_s
        while True:
            status = self._status()
            if status == "ready":
                return
            if not status:
                raise SourceError("the restored server ended")
            if time.monotonic() > until_s:
                raise SourceError(f"the restored server was not ready within {timeout_s:g} s")
            time.sleep(_LOOK_EVERY_S)

    def _status(self) -> str:
        """Return the server's own word for how far it is (miscadmin.h, PM_STATUS_*); empty when it has ended."""
        try:
            lines = (self.place.data / "postmaster.pid").read_text().splitlines()
            os.kill(int(lines[0]), 0)
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return lines[_STATUS_LINE].strip() if len(lines) > _STATUS_LINE else "starting"

    def _write_settings(self, settings: Mapping[str, str]) -> None:
        folder = self.place.run_folder
        own = {
            "data_directory": str(self.place.data),
            "hba_file": str(folder / "pg_hba.conf"),
            "ident_file": str(folder / "pg_ident.conf"),
            "unix_socket_directories": '"' + str(folder).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
            "port": "5432",
        }
        lines = [f"{name} = '{_quoted(value)}'\n" for name, value in {**settings, **own}.items()]
        self._write("postgresql.conf", "".join(lines))
        # The socket lies in a folder that only the server's user and root may enter.
        self._write("pg_hba.conf", "local all all trust\n")
        self._write("pg_ident.conf", "")

    def _write(self, name: str, text: str) -> None:
        path = self.place.run_folder / name
        path.write_text(text)
        path.chmod(0o644)

    def stop(self) -> None:
        """Stop it in good order, so that it starts without recovery; raise SourceError when it does not stop."""
        place = self.place
        run(place.command("pg_ctl", "-D", str(place.data), "-m", "fast", "-W", "-s", "stop"), timeout_s=_STOP_TIMEOUT_S)
        until_s = time.monotonic() + _LONGEST_SHUTDOWN_S
        while self._status():  # pg_ctl itself would look ten times a second
            if time.monotonic() > until_s:
                raise SourceError(f"the restored server did not stop within {_LONGEST_SHUTDOWN_S:g} s")
            time.sleep(_LOOK_EVERY_S)

    def log_lines(self) -> list[str]:
        """Return the last lines of the server's log."""
        if not self.place.log.exists():
            return []
        lines = self.place.log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_SHOWN_LINES:]


def _quoted(value: str) -> str:
    """Write a value between the quotes of a configuration file, where a backslash escapes."""
    return value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")


@contextmanager
def open_server(place: ServerPlace) -> Iterator[RestoredServer]:
    """Lend a server that is not started yet; on leaving it is stopped, at once and without a checkpoint."""
    pg_ctl = str(postgres_binary("pg_ctl", place.major))
    watch = Command(["/bin/sh", "-c", WATCH, pg_ctl, str(place.data)], cwd=place.run_folder, user=place.user)
    with open_consumer(watch, idle_timeout_s=_STOP_TIMEOUT_S) as watcher:
        try:
            yield RestoredServer(place)
        finally:
            with contextlib.suppress(SourceError):  # it ended before
                watcher.feed([b"stop\n"])


def folder_fits_socket(folder: Path) -> bool:
    """Tell whether a socket's path in ``folder`` is short enough (unix(7): 108 bytes with the final zero)."""
    return len(os.fsencode(folder / SOCKET_NAME)) <= 107
