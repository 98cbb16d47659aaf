"""Reading an object to its last byte, over connections that may not live that long.

A restore reads for hours and a database that is loading reads slowly, so servers and middleboxes close streams that
look idle; some cut them in a way that looks like the end. Only the size that was announced says where the end is:
anything before it is taken up by Range from where it broke, bound to the same ETag so that two states never mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drkit.errors import StoreExists, StoreUnavailable
from drkit.stores.s3_connection import Connection, S3Options
from drkit.units import CHUNK_BYTES


class ResumingRead:
    """One read; gives up when ``patience.attempts`` connections in a row brought not a single byte."""

    def __init__(self, connection: Connection, options: S3Options, path: str, key: str, version_id: str | None) -> None:
        self._connection = connection
        self._options = options
        self._key = key
        self._arguments = {"Key": path, **({"VersionId": version_id} if version_id else {})}
        self._body: Any = None
        self._position = 0
        self._size_bytes = 0

    def begin(self) -> None:
        """Open the first connection; raise StoreMissing when there is no such object."""
        with self._connection.translated(self._key):
            answer = self._connection.call("get_object", **self._arguments)
        self._body = answer["Body"]
        self._size_bytes = answer["ContentLength"]
        self._arguments["IfMatch"] = answer["ETag"]

    def chunks(self) -> Iterator[bytes]:
        """Yield the object; raise StoreUnavailable when it cannot be had to its last byte."""
        delays_s = self._options.patience.delays_s()
        while self._position < self._size_bytes:
            try:
                chunk = self._next_chunk()
            except StoreUnavailable:
                delay_s = next(delays_s, None)
                if delay_s is None:
                    raise
                self._options.patience.sleep(delay_s)
                continue
            delays_s = self._options.patience.delays_s()
            self._position += len(chunk)
            yield chunk

    def close(self) -> None:
        """Drop the connection; what it still holds is not read."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _next_chunk(self) -> bytes:
        if self._body is None:
            self._resume()
        try:
            with self._connection.translated(self._key):
                chunk: bytes = self._body.read(CHUNK_BYTES)
        except StoreUnavailable:
            self.close()
            raise
        if not chunk:
            self.close()
            name = self._connection.store_name
            raise StoreUnavailable(
                f"{self._key} in store {name} ended after {self._position:,} of {self._size_bytes:,} bytes"
            )
        return chunk

    def _resume(self) -> None:
        try:
            with self._connection.translated(self._key):
                answer = self._connection.call("get_object", **self._arguments, Range=f"bytes={self._position}-")
        except StoreExists as error:
            raise StoreUnavailable(f"{self._key} was replaced while it was read") from error
        expected = f"bytes {self._position}-{self._size_bytes - 1}/{self._size_bytes}"
        if self._position and answer.get("ContentRange") != expected:
            answer["Body"].close()
            raise StoreUnavailable(
                f"{self._key} cannot be read on from byte {self._position:,}: "
                f'the server answered with "{answer.get("ContentRange", "the whole object")}"'
            )
        self._body = answer["Body"]
