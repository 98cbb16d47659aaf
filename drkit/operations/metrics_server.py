"""Where the numbers can be had: over HTTP on the loopback, and in a file for node_exporter."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from drkit.errors import CatalogError
from drkit.operations.health import Health
from drkit.operations.metrics import Collector, write_textfile
from drkit.site_metrics import split_address

_WRITE_EVERY_S = 15.0


class MetricsServer:
    """The duty that answers ``/metrics`` and ``/healthz``."""

    name = "metrics"

    def __init__(self, listen: str, collector: Collector, health: Health) -> None:
        self._listen = listen
        self._collector = collector
        self._health = health

    def run(self, stopping: threading.Event) -> None:
        """Answer until ``stopping``; raise OSError when the port is taken."""
        with answering(self._listen, self._collector, self._health):
            stopping.wait()


@contextmanager
def answering(listen: str, collector: Collector, health: Health) -> Iterator[tuple[str, int]]:
    """Answer in threads until the context ends; lend host and port, which is chosen where the address has port 0."""
    host, port = split_address(listen)

    class Answer(_Answer):
        routes: ClassVar = {
            "/metrics": lambda accept: _metrics(collector, accept),
            "/healthz": lambda _: _health(health),
        }

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            # Who asked hung up, or is silent: that is no news, and no reason for a traceback in the log.
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)

    server = Server((host, port), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="metrics-http", daemon=True)
    thread.start()
    try:
        yield host, int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _metrics(collector: Collector, accept: str) -> tuple[int, bytes, str]:
    try:
        return 200, *collector.collect().text(accept)
    except CatalogError as error:
        return 503, f"{error.message}\n".encode(), "text/plain; charset=utf-8"


def _health(health: Health) -> tuple[int, bytes, str]:
    report = health.report()
    return (200 if report["ok"] else 503), json.dumps(report).encode() + b"\n", "application/json"


class _Answer(BaseHTTPRequestHandler):
    """Answers GET and HEAD of a few paths, and says nothing of it anywhere."""

    routes: ClassVar[Mapping[str, Callable[[str], tuple[int, bytes, str]]]]
    protocol_version = "HTTP/1.1"
    server_version = "drkit"
    sys_version = ""
    timeout = 10

    def do_GET(self) -> None:
        route = self.routes.get(self.path.partition("?")[0])
        missing = (404, b"/metrics and /healthz are here\n", "text/plain; charset=utf-8")
        status, body, content_type = route(self.headers.get("Accept", "")) if route else missing
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


class MetricsFile:
    """The duty that keeps a file of the numbers up to date."""

    name = "textfile"

    def __init__(self, path: Path, collector: Collector, tick: Callable[[str], None]) -> None:
        self._path = path
        self._collector = collector
        self._tick = tick

    def run(self, stopping: threading.Event) -> None:
        """Write until ``stopping``; the last numbers stay, and get old: a rule tells by `drkit_duty_last_tick…`."""
        while True:
            write_textfile(self._path, self._collector)
            self._tick(self.name)
            if stopping.wait(_WRITE_EVERY_S):
                return
