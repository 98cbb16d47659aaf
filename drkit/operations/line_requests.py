"""Requests of one line over a socket, as `drkit.wal_client` sends them."""

from __future__ import annotations

import os
import socket

_LONGEST_BYTES = 8192


def read_request(line: socket.socket) -> str:
    """Return what the other side asks, without its line end; it may be cut off where it is too long or hung up."""
    received = b""
    while b"\n" not in received and len(received) < _LONGEST_BYTES:
        chunk = line.recv(_LONGEST_BYTES)
        if not chunk:
            break
        received += chunk
    return os.fsdecode(received.partition(b"\n")[0])
