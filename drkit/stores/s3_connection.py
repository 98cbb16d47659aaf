"""One bucket's connection: the client, credentials that are renewed, and the one place where errors are translated."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import boto3
import botocore.session
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from drkit.credentials import Secret
from drkit.errors import ConfigError, StoreError, StoreExists, StoreMissing, StoreUnavailable
from drkit.stores.backoff import Backoff
from drkit.units import MIB

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidAccessKeyId"}
_PASSING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "InvalidDigest",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_UNSUPPORTED = {"InvalidArgument", "InvalidRequest", "NotImplemented", "UnsupportedArgument"}
_REFUSED_KEYS = {
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "XAdminUserNotFound",  # versitygw of an access key that it does not know, with status 404
    *_EXPIRED,
}
_NETWORK_ERRORS = (
    boto_errors.HTTPClientError,
    boto_errors.IncompleteReadError,
    boto_errors.ResponseStreamingError,
    ResponseParserError,
)
_NO_KEYS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.TokenRetrievalError,
    boto_errors.ProfileNotFound,
)


class Unsupported(StoreError):
    """The server does not know something that the request asks for, most often the checksum's algorithm."""


_LISTED_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?Z", re.ASCII)
_MAKING = threading.Lock()  # boto3's sessions are not safe to share between threads, its clients are


@dataclass(frozen=True)
class AccessKeys:
    """Keys as they are now; asked for again when the server calls them expired."""

    access_key: Secret
    secret_key: Secret
    session_token: Secret | None = None


@dataclass(frozen=True)
class ObjectLock:
    """How new objects are locked: ``mode`` says who may lift it (nobody, or whoever has that right), and for how long.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html
    """

    mode: Literal["governance", "compliance"]
    period: timedelta

    def arguments(self, now: datetime) -> dict[str, Any]:
        """Return the arguments of a request that creates an object at ``now``."""
        return {"ObjectLockMode": self.mode.upper(), "ObjectLockRetainUntilDate": now + self.period}


@dataclass(frozen=True)
class S3Options:
    """Where a bucket is and how to talk to it.

    ``keys`` returns the present keys, or is None for boto3's own search (environment, profile, role).
    ``in_flight_bytes`` bounds the parts in memory. ``attempts`` are botocore's quick ones within a request; together
    with the time-outs they are what one look at a silent server costs, two minutes. ``patience`` is what a piece of a
    stream gets beyond them, because a stream cannot be read again. With ``lock``, whatever `Store.put` creates is
    locked from the start; leases are not, since they are replaced.
    """

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    path_style: bool = False
    ca_bundle: Path | None = None
    keys: Callable[[], AccessKeys] | None = None
    lock: ObjectLock | None = None
    part_size_bytes: int = 8 * MIB
    in_flight_bytes: int = 24 * MIB
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 2
    patience: Backoff = field(default_factory=Backoff)


class Connection:
    """Calls one bucket's operations; safe to share between threads."""

    def __init__(self, store_name: str, options: S3Options) -> None:
        self.store_name = store_name
        self._options = options
        self._client: Any = None
        self._lock = threading.Lock()

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer of one operation; raise what botocore raises, so call it inside `translated`.

        When the server says that the credentials have expired, they are looked up anew and the same request is sent
        once more; an upload so goes on under its own id (velero-io/velero#8173 is what happens otherwise).
        """
        client = self._client_other_than(None)
        try:
            return self._send(client, operation, arguments)
        except boto_errors.ClientError as error:
            if not _is_expired(error):
                raise
        return self._send(self._client_other_than(client), operation, arguments)

    def lock_arguments(self) -> dict[str, Any]:
        """Return the arguments that lock an object which is being created; none where the site wants no lock."""
        return self._options.lock.arguments(datetime.now(UTC)) if self._options.lock else {}

    def close(self) -> None:
        """Give back the sockets."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _send(self, client: Any, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(client, operation)(Bucket=self._options.bucket, **arguments)
        return answer

    def _client_other_than(self, expired: Any) -> Any:
        """Return the client, made anew when ``expired`` is still the one in use: of parallel parts only one renews."""
        with self._lock:
            if self._client is None or self._client is expired:
                self._client = _make_client(self._options)
            return self._client

    @contextmanager
    def translated(self, subject: str) -> Iterator[None]:
        """Turn botocore's errors into store errors about ``subject``, a key or the bucket; the one place that does."""
        try:
            yield
        except boto_errors.ClientError as error:
            raise self._answered(error, subject) from error
        except boto_errors.SSLError as error:
            raise self._untrusted(error, subject) from error
        except boto_errors.ConnectionError as error:
            hint = f"check the endpoint of store {self.store_name} in drkit.yaml, and that this host may reach it"
            raise self._error(StoreUnavailable, subject, _sentence(error), hint) from error
        except _NETWORK_ERRORS as error:
            raise self._error(StoreUnavailable, subject, _sentence(error)) from error
        except _NO_KEYS as error:
            raise self._error(
                StoreError,
                subject,
                f"no credentials: {error}",
                "set access_key and secret_key of the store in drkit.yaml to references such as env:NAME or file:PATH",
            ) from error
        except boto_errors.BotoCoreError as error:
            raise self._error(StoreError, subject, _sentence(error)) from error

    def _untrusted(self, error: boto_errors.SSLError, subject: str) -> StoreError:
        if "WRONG_VERSION_NUMBER" in str(error):
            hint = f"write http:// in the endpoint of store {self.store_name} in drkit.yaml, or correct its port"
            return self._error(StoreError, subject, "what listens there does not speak TLS", hint)
        reason = f"its certificate is not trusted: {error}"
        return self._error(StoreError, subject, reason, "set ca_bundle to its authority's file")

    def _answered(self, error: boto_errors.ClientError, subject: str) -> StoreError:
        code, status = code_of(error), status_of(error)
        said = f"{code}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
        if code == "NoSuchBucket":
            return self.no_bucket()
        if status == 501 or code in _UNSUPPORTED:
            return self._error(Unsupported, subject, said)
        if code in _PASSING or status >= 500 or status == 429:
            return self._error(StoreUnavailable, subject, said)
        if status == 412:
            return StoreExists(f"{subject} in store {self.store_name} was changed by somebody else")
        if code in {"RequestTimeTooSkewed", "RequestInTheFuture"}:
            return self._error(StoreError, subject, said, "set this machine's clock: timedatectl set-ntp true")
        if code in _REFUSED_KEYS:
            return self._error(StoreError, subject, said, f"renew the credentials of store {self.store_name}")
        if status == 404:  # after the codes: some servers say it of an unknown access key as well
            return StoreMissing(f"{subject} is not in store {self.store_name}")
        if status in {401, 403}:
            return self._error(StoreError, subject, said, f"drkit store probe {self.store_name}")
        return self._error(StoreError, subject, said)

    def no_bucket(self) -> StoreError:
        """Return the error for a bucket that is not there: never StoreMissing, which would mean an empty store."""
        return StoreError(
            f"the bucket {self._options.bucket} of store {self.store_name} does not exist",
            hints=["make it (aws s3 mb s3://" + self._options.bucket + "), or correct the url in drkit.yaml"],
        )

    def no_lock(self, mode: str) -> StoreError:
        """Return the error for a bucket that cannot lock what the site wants locked."""
        return StoreError(
            f"store {self.store_name} is to lock its objects (object_lock: {mode}), and the bucket"
            f" {self._options.bucket} has no Object Lock, or does not let us see it",
            hints=[
                f"drkit store probe {self.store_name}",
                "make a bucket with it: aws s3api create-bucket --object-lock-enabled-for-bucket --bucket NAME",
                f"or leave object_lock out of store {self.store_name} in drkit.yaml",
            ],
        )

    def _error(self, kind: type[StoreError], subject: str, reason: str, *hints: str) -> StoreError:
        return kind(f"store {self.store_name} failed at {subject}: {reason}", hints=hints)


def code_of(error: boto_errors.ClientError) -> str:
    """Return the error code; for HEAD, whose answers have no body, that is the status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: boto_errors.ClientError) -> int:
    """Return the HTTP status, 0 where there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_expired(error: boto_errors.ClientError) -> bool:
    """Say whether new credentials may help; a HEAD says 400 for an expired token, and no more."""
    return code_of(error) in _EXPIRED or (error.operation_name.startswith("Head") and status_of(error) == 400)


def _sentence(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _make_client(options: S3Options) -> Any:
    """Return a new client.

    Checksums are sent explicitly where they are wanted; botocore's own default since 1.36, a trailer on every upload,
    breaks many servers (boto/boto3#4392).
    """
    keys = options.keys() if options.keys else None
    with _MAKING:
        session = _new_session() if keys is None else _shared_session()
        try:
            return session.client("s3", **_client_arguments(options, keys))
        except ValueError as error:
            raise ConfigError(f"the bucket {options.bucket} has no usable endpoint: {_sentence(error)}") from error


@functools.cache
def _shared_session() -> boto3.session.Session:
    """Return the session of all clients with keys of their own: it has read boto3's files, and keeps no credentials."""
    return _new_session()


def _new_session() -> boto3.session.Session:
    """Return a session whose clients read moments by `parse_moment`; guessing is half of a listing's time."""
    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_moment)
    return boto3.session.Session(botocore_session=session)


def parse_moment(text: Any) -> datetime:
    """Read a moment as botocore does; quickly when it is written as listings have it, "2026-01-31T12:00:00.000Z"."""
    if isinstance(text, str) and _LISTED_MOMENT.fullmatch(text):
        return datetime.fromisoformat(text)
    return parse_timestamp(text)


def _client_arguments(options: S3Options, keys: AccessKeys | None) -> dict[str, Any]:
    return {
        "region_name": options.region,
        "endpoint_url": options.endpoint,
        "verify": str(options.ca_bundle) if options.ca_bundle else None,
        "aws_access_key_id": keys.access_key.reveal() if keys else None,
        "aws_secret_access_key": keys.secret_key.reveal() if keys else None,
        "aws_session_token": keys.session_token.reveal() if keys and keys.session_token else None,
        "config": Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": options.attempts},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
            s3={"addressing_style": "path" if options.path_style else "auto"},
        ),
    }
