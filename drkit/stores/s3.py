"""A bucket as a store (R9): S3 and what speaks like it.

Everything is created with ``If-None-Match: *``. An answer that got lost is not an error: whether a 412, a vanished
upload or a time-out, what the bucket then holds is compared with what was sent; equal bytes are our own earlier try.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from drkit.errors import StoreExists, StoreMissing, StoreUnavailable
from drkit.model import Checksum
from drkit.stores import ObjectInfo, Traits
from drkit.stores.naming import check_key, check_prefix, is_key
from drkit.stores.s3_abilities import reads_ranges, refuses_damage
from drkit.stores.s3_connection import Connection, S3Options, Unsupported, code_of, status_of
from drkit.stores.s3_content import ALGORITHMS, Algorithm, Content, checksum_from, cut, part_size_bytes
from drkit.stores.s3_reading import ResumingRead
from drkit.stores.s3_upload import Upload

T = TypeVar("T")


class S3Store:
    """Objects under a prefix of one bucket; the client is made at the first request, and threads may share it."""

    def __init__(self, name: str, options: S3Options) -> None:
        self.name = name
        self.url = f"s3://{options.bucket}/{options.prefix}".rstrip("/")
        self._options = options
        self._connection = Connection(name, options)
        self._folder = options.prefix.strip("/") + "/" if options.prefix.strip("/") else ""
        self._algorithm = ALGORITHMS[0]
        self._traits: Traits | None = None
        self._bucket_seen = False

    @property
    def traits(self) -> Traits:
        """Return what the bucket can do; asks it once about versions and locks, and takes a refusal to answer as no."""
        if self._traits is None:
            self._traits = Traits(
                create_only=True,
                compare_and_swap=True,
                versions=self._setting("get_bucket_versioning").get("Status") == "Enabled",
                object_lock=_locks(self._setting("get_object_lock_configuration")),
            )
        return self._traits

    def put(self, key: str, chunks: Iterable[bytes]) -> ObjectInfo:
        """Create an object (`Store.put`): up to one part by a single request, more as a multipart upload.

        Where the site wants locks and the bucket has none, nothing is written: StoreError names the bucket. A 409 at
        the end of an upload (somebody else is completing the same key) is asked again a few times. When it stays, S3
        wants all parts anew, and ``chunks`` is spent: that is StoreUnavailable, and the caller starts over.
        """
        check_key(key)
        self._check_lock()
        parts = cut(chunks, self._size_of)
        beginning = list(itertools.islice(parts, 2))
        if len(beginning) == 1:
            create_only = {"IfNoneMatch": "*", **self._connection.lock_arguments()}
            return self._with_algorithm(lambda algorithm: self._write_whole(key, beginning[0], algorithm, create_only))
        written = self._put_large(key, itertools.chain(_drained(beginning), parts))
        if self._options.lock:  # once more: some servers forget what was asked for when an upload began
            arguments = self._connection.lock_arguments()
            retention = {name.removeprefix("ObjectLock"): value for name, value in arguments.items()}
            self._lock(key, written.version_id, retention)
        return written

    def replace(self, key: str, content: bytes, *, expected: str | None) -> ObjectInfo:
        """Write a small object if its revision, the ETag, is still ``expected`` (`Store.replace`).

        The answer is taken as it is: by the time of a second look somebody else may rightly have replaced it again.
        """
        check_key(key)
        condition = {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}
        try:
            return self._with_algorithm(
                lambda algorithm: self._write_whole(key, content, algorithm, condition, confirm=False)
            )
        except (StoreExists, StoreMissing) as error:
            raise StoreExists(f"{key} in store {self.name} was changed by somebody else") from error

    @contextmanager
    def open(self, key: str, *, version_id: str | None = None) -> Iterator[Iterator[bytes]]:
        """Read an object (`Store.open`); a connection that breaks is taken up where it broke."""
        check_key(key)
        reading = ResumingRead(self._connection, self._options, f"{self._folder}{key}", key, version_id)
        reading.begin()
        self._bucket_seen = True
        try:
            yield reading.chunks()
        finally:
            reading.close()

    def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """Describe an object (`Store.head`)."""
        check_key(key)
        version = {"VersionId": version_id} if version_id else {}
        with self._connection.translated(key):
            try:
                answer = self._connection.call(
                    "head_object", Key=f"{self._folder}{key}", ChecksumMode="ENABLED", **version
                )
            except ClientError as error:
                if status_of(error) == 404:
                    self._check_bucket()
                raise
        self._bucket_seen = True
        return ObjectInfo(
            key,
            answer["ContentLength"],
            answer["LastModified"].astimezone(UTC),
            version_id=_version(answer),
            revision=answer["ETag"],
            checksum=checksum_from(answer),
            locked_until=_locked_until(answer),
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Describe the objects under ``prefix`` (`Store.list`), a page of a thousand at a time, without checksums."""
        check_prefix(prefix)
        return self._list(f"{self._folder}{prefix}")

    def delete(self, key: str, *, version_id: str | None = None) -> None:
        """Remove an object or one version of it (`Store.delete`)."""
        check_key(key)
        version = {"VersionId": version_id} if version_id else {}
        with self._connection.translated(key):
            self._connection.call("delete_object", Key=f"{self._folder}{key}", **version)

    def extend_lock(self, key: str, until: datetime, *, version_id: str | None = None) -> None:
        """Lock a version for longer, where the site wants locks (`Store.extend_lock`)."""
        if self._options.lock is None:
            return
        found = self.head(key, version_id=version_id)
        if found.locked_until is None or found.locked_until < until:
            self._lock(key, found.version_id, {"Mode": self._options.lock.mode.upper(), "RetainUntilDate": until})

    def abort_leftovers(self, *, older_than: datetime) -> int:
        """Abort uploads under the prefix that began before ``older_than``; return how many."""
        pages = self._pages(
            "list_multipart_uploads",
            {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"},
            Prefix=self._folder,
        )
        leftovers = [item for page in pages for item in page.get("Uploads", ()) if item["Initiated"] < older_than]
        for item in leftovers:
            with self._connection.translated(f"the upload of {item['Key']}"):
                try:
                    self._connection.call("abort_multipart_upload", Key=item["Key"], UploadId=item["UploadId"])
                except ClientError as error:
                    if code_of(error) != "NoSuchUpload":
                        raise
        return len(leftovers)

    def examine(self, key: str) -> Mapping[str, bool]:
        """Try what only a server can be asked (`Store.examine`)."""
        path = f"{self._folder}{check_key(key)}"
        with self._connection.translated(key):
            return {
                "refuses damaged bytes": refuses_damage(self._connection, f"{path}.damaged", self._algorithm),
                "reads ranges": reads_ranges(self._connection, path),
                "keeps checksums": self.head(key).checksum is not None,
            }

    def close(self) -> None:
        """Give back connections (`Store.close`)."""
        self._connection.close()

    def _size_of(self, index: int) -> int:
        return part_size_bytes(index, self._options.part_size_bytes)

    def _put_large(self, key: str, parts: Iterable[bytes]) -> ObjectInfo:
        path = f"{self._folder}{key}"
        patience = self._options.patience
        begin = functools.partial(Upload, self._connection, self._options, path)
        with patience.retry(lambda: self._with_algorithm(lambda algorithm: begin(algorithm).begin())) as upload:
            upload.send(parts)
            try:
                return self._commit(key, upload.content(self._size_of), upload.complete, self._confirm)
            except StoreMissing as error:
                raise StoreUnavailable(f"the upload of {key} is gone from store {self.name}") from error
            except StoreUnavailable:
                upload.completed = False
                raise

    def _with_algorithm(self, create: Callable[[Algorithm], T]) -> T:
        """Try the checksums in order of preference, and remember the first one that the server takes."""
        first = ALGORITHMS.index(self._algorithm)
        for algorithm in ALGORITHMS[first:-1]:
            try:
                created = create(algorithm)
            except Unsupported:
                continue
            self._algorithm = algorithm
            return created
        created = create(ALGORITHMS[-1])
        self._algorithm = ALGORITHMS[-1]
        return created

    def _write_whole(
        self, key: str, body: bytes, algorithm: Algorithm, condition: dict[str, Any], *, confirm: bool = True
    ) -> ObjectInfo:
        digest = algorithm.digest(body)
        content = Content(algorithm, self._size_of, multipart=False, size_bytes=len(body), digests=[digest])
        request = functools.partial(
            self._connection.call, "put_object", Key=f"{self._folder}{key}", Body=body, **algorithm.argument(digest)
        )
        if algorithm.name and "ObjectLockMode" in condition:
            condition = {**condition, "ChecksumAlgorithm": algorithm.name}  # which some servers then insist on
        confirmed = self._confirm if confirm else _as_answered
        return self._commit(key, content, functools.partial(request, **condition), confirmed)

    def _commit(
        self,
        key: str,
        content: Content,
        request: Callable[[], dict[str, Any]],
        confirm: Callable[[str, Content, dict[str, Any]], ObjectInfo],
    ) -> ObjectInfo:
        """Send the request that makes the object exist, and see that it does; look when the outcome is not clear."""

        def send() -> dict[str, Any]:
            with self._connection.translated(key):
                return request()

        try:
            answer = self._options.patience.retry(send)
        except (StoreExists, StoreMissing, StoreUnavailable) as error:
            found = self._find(key, content)
            if found is not None:
                return found
            if isinstance(error, StoreExists):
                raise StoreExists(f"{key} is in store {self.name} already, with other bytes") from error
            raise
        return confirm(key, content, answer)

    def _find(self, key: str, content: Content) -> ObjectInfo | None:
        """Return the object if it holds exactly these bytes: by size and checksum, else by reading it."""
        try:
            found = self.head(key)
        except StoreMissing:
            return None
        if found.size_bytes != content.size_bytes:
            return None
        if not _same_checksum(found.checksum, content.checksum):
            with self.open(key, version_id=found.version_id) as chunks:
                if not content.equals(chunks):
                    return None
        return _with_part_size(found, content)

    def _confirm(self, key: str, content: Content, answer: dict[str, Any]) -> ObjectInfo:
        """Ask for what was stored: a 200 may carry an error (aws/aws-sdk-java#538), and what is kept may be damaged."""
        try:
            stored = self.head(key, version_id=_version(answer))
        except StoreMissing as error:
            raise StoreUnavailable(f"store {self.name} says that it took {key}, and does not have it") from error
        damaged = _comparable(stored.checksum, content.checksum) and not _same_checksum(
            stored.checksum, content.checksum
        )
        if stored.size_bytes == content.size_bytes and not damaged:
            return _with_part_size(stored, content)
        if stored.revision == answer.get("ETag"):
            # A locked version stays, and a marker over it does for the next try.
            self.delete(key, version_id=None if self._options.lock else stored.version_id)
        raise StoreUnavailable(
            f"store {self.name} does not hold {key} as it was sent",
            details=[
                f"sent    {content.size_bytes:,} bytes, {_describe(content.checksum)}",
                f"stored  {stored.size_bytes:,} bytes, {_describe(stored.checksum)}",
            ],
        )

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages("list_objects_v2", {"ContinuationToken": "NextContinuationToken"}, Prefix=prefix):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._folder)
                if is_key(key):
                    modified_at = item["LastModified"].astimezone(UTC)
                    yield ObjectInfo(key, item["Size"], modified_at, revision=item["ETag"])

    def _pages(self, operation: str, markers: dict[str, str], **arguments: Any) -> Iterator[dict[str, Any]]:
        while True:
            with self._connection.translated(f"the bucket {self._options.bucket}"):
                page = self._connection.call(operation, **arguments)
            if "IsTruncated" not in page:
                # botocore takes an empty answer for an empty page, and an empty listing is a dangerous thing to believe
                raise StoreUnavailable(f"store {self.name} was cut off in the middle of a listing")
            yield page
            if not page["IsTruncated"]:
                return
            arguments |= {marker: page[after] for marker, after in markers.items()}

    def _check_bucket(self) -> None:
        """Raise StoreError when the bucket is missing: an answer to HEAD cannot say whether it or the key is."""
        if self._bucket_seen:
            return
        try:
            self._connection.call("head_bucket")
        except ClientError as error:
            if status_of(error) == 404:
                raise self._connection.no_bucket() from error
        self._bucket_seen = True

    def _lock(self, key: str, version_id: str | None, retention: Mapping[str, Any]) -> None:
        version = {"VersionId": version_id} if version_id else {}
        with self._connection.translated(key):
            self._connection.call("put_object_retention", Key=f"{self._folder}{key}", Retention=retention, **version)

    def _check_lock(self) -> None:
        """Raise StoreError when the site wants locks and the bucket has none: what is not locked can be removed."""
        lock = self._options.lock
        if lock is not None and not self.traits.object_lock:
            raise self._connection.no_lock(lock.mode)

    def _setting(self, operation: str) -> dict[str, Any]:
        """Return a setting of the bucket; empty where there is none, where it may not be seen, or is not known of."""
        with self._connection.translated(f"the bucket {self._options.bucket}"):
            try:
                return self._connection.call(operation)
            except ClientError as error:
                if code_of(error) != "NoSuchBucket" and status_of(error) in {400, 403, 404, 405, 501}:
                    return {}
                raise


def _drained(parts: list[bytes]) -> Iterator[bytes]:
    """Yield parts and let go of them: kept in a frame, they would stay in memory for the length of the upload."""
    while parts:
        yield parts.pop(0)


def _as_answered(key: str, content: Content, answer: dict[str, Any]) -> ObjectInfo:
    answered_at = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)
    return ObjectInfo(key, content.size_bytes, answered_at, version_id=_version(answer), revision=answer["ETag"])


def _locks(answer: dict[str, Any]) -> bool:
    return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")


def _locked_until(answer: dict[str, Any]) -> datetime | None:
    """Return until when nobody can remove a version: its lock's end, or no end at all under a legal hold."""
    if answer.get("ObjectLockLegalHoldStatus") == "ON":
        return datetime.max.replace(tzinfo=UTC)
    until = answer.get("ObjectLockRetainUntilDate")
    return until.astimezone(UTC) if until else None


def _version(answer: dict[str, Any]) -> str | None:
    """Return the version id; "null" is what a bucket says that does not keep versions."""
    version_id = answer.get("VersionId")
    return version_id if version_id and version_id != "null" else None


def _same_checksum(one: Checksum | None, other: Checksum | None) -> bool:
    """Compare values without the count of parts, which some servers leave out."""
    if one is None or other is None or not _comparable(one, other):
        return False
    return one.value.partition("-")[0] == other.value.partition("-")[0]


def _comparable(one: Checksum | None, other: Checksum | None) -> bool:
    return bool(one and other and (one.algorithm, one.kind) == (other.algorithm, other.kind))


def _with_part_size(found: ObjectInfo, content: Content) -> ObjectInfo:
    return found._replace(checksum=content.checksum) if _same_checksum(found.checksum, content.checksum) else found


def _describe(checksum: Checksum | None) -> str:
    return f"{checksum.algorithm} {checksum.value}" if checksum else "no checksum"
