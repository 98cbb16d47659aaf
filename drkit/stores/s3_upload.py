"""A multipart upload: parts in parallel, bounded memory, completed once or aborted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from drkit.errors import StoreError, StoreUnavailable
from drkit.stores.s3_connection import Connection, S3Options
from drkit.stores.s3_content import ALGORITHMS, Algorithm, Content

_MOST_IN_FLIGHT = 4
_MOST_PARTS = 10_000
_ABORTS = 3


@dataclass(frozen=True)
class SentPart:
    """A part that the server has acknowledged."""

    number: int
    etag: str
    size_bytes: int
    digest: bytes


class Upload:
    """One upload as a context: aborted on leaving unless ``completed`` was set, so that nothing is left to pay for.

    A part is kept in memory until it is acknowledged, so it can be sent again on its own; the stream itself cannot.
    """

    def __init__(self, connection: Connection, options: S3Options, key: str, algorithm: Algorithm) -> None:
        self._connection = connection
        self._options = options
        self._address = {"Key": key}
        self._algorithm = algorithm
        self._parts: list[SentPart] = []
        self._stopping = threading.Event()
        self.completed = False

    def begin(self) -> Self:
        """Get an upload id. A server that does not confirm the checksum's algorithm is given Content-MD5 instead."""
        wanted = {"ChecksumAlgorithm": self._algorithm.name} if self._algorithm.name else {}
        with self._connection.translated(self._address["Key"]):
            answer = self._connection.call(
                "create_multipart_upload", **self._address, **wanted, **self._connection.lock_arguments()
            )
        if "UploadId" not in answer:
            raise StoreUnavailable(f"store {self._connection.store_name} began an upload and did not say which")
        self._address["UploadId"] = answer["UploadId"]
        if wanted and answer.get("ChecksumAlgorithm") != self._algorithm.name:
            self._algorithm = ALGORITHMS[-1]
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.completed:
            self._abort()

    def send(self, parts: Iterable[bytes]) -> None:
        """Send every part; on the first failure wait for those under way, so that none arrives after the abort."""
        with ThreadPoolExecutor(_MOST_IN_FLIGHT, thread_name_prefix="s3-part") as pool:
            pending: dict[Future[SentPart], int] = {}
            try:
                for number, part in enumerate(parts, start=1):
                    if number > _MOST_PARTS:
                        raise StoreError(f"{self._address['Key']} is too large for S3: more than {_MOST_PARTS:,} parts")
                    while pending and sum(pending.values()) + len(part) > self._options.in_flight_bytes:
                        self._collect(pending)
                    pending[pool.submit(self._send_patiently, number, part)] = len(part)
                while pending:
                    self._collect(pending)
            finally:
                self._stopping.set()

    def complete(self) -> dict[str, Any]:
        """Ask the server to put the parts together, if nothing of that name exists; raise what botocore raises.

        The caller takes ``completed`` back when the object is not there after all.
        """
        ordered = sorted(self._parts, key=lambda part: part.number)
        kept = self._algorithm.name is not None
        parts = [
            {
                "PartNumber": part.number,
                "ETag": part.etag,
                **(self._algorithm.argument(part.digest) if kept else {}),
            }
            for part in ordered
        ]
        answer = self._connection.call(
            "complete_multipart_upload", **self._address, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
        self.completed = True
        return answer

    def content(self, size_of: Callable[[int], int]) -> Content:
        """Return what was sent."""
        ordered = sorted(self._parts, key=lambda part: part.number)
        return Content(
            algorithm=self._algorithm,
            size_of=size_of,
            multipart=True,
            size_bytes=sum(part.size_bytes for part in ordered),
            digests=[part.digest for part in ordered],
        )

    def _collect(self, pending: dict[Future[SentPart], int]) -> None:
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            del pending[future]
            self._parts.append(future.result())

    def _send_patiently(self, number: int, body: bytes) -> SentPart:
        digest = self._algorithm.digest(body)
        patience = replace(self._options.patience, sleep=self._pause)
        return patience.retry(lambda: self._send_part(number, body, digest))

    def _send_part(self, number: int, body: bytes, digest: bytes) -> SentPart:
        with self._connection.translated(f"part {number} of {self._address['Key']}"):
            answer = self._connection.call(
                "upload_part", **self._address, PartNumber=number, Body=body, **self._algorithm.argument(digest)
            )
        return SentPart(number, answer["ETag"], len(body), digest)

    def _pause(self, delay_s: float) -> None:
        """Wait before a part is sent again, unless the upload is being given up meanwhile."""
        if self._stopping.wait(delay_s):
            raise StoreUnavailable(f"the upload of {self._address['Key']} was given up")

    def _abort(self) -> None:
        """Abort, and again while parts are listed: one that was under way may arrive late (scylladb/scylladb#20425).

        A store that cannot be reached now keeps the upload; `S3Store.abort_leftovers` takes it away another day.
        """
        try:
            for _ in range(_ABORTS):
                with self._connection.translated(f"the upload of {self._address['Key']}"):
                    self._connection.call("abort_multipart_upload", **self._address)
                    if not self._connection.call("list_parts", **self._address).get("Parts"):
                        return
        except StoreError:
            return
