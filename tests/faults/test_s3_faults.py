"""What an S3 store does when the network, the server or the credentials fail it."""

from __future__ import annotations

import base64
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from drkit.credentials import Secret
from drkit.errors import StoreError, StoreExists, StoreMissing, StoreUnavailable
from drkit.stores import read_object
from drkit.stores.retrying import RetryingStore
from drkit.stores.s3_connection import AccessKeys, S3Options
from tests.fixtures.s3 import ACCESS_KEY, QUICK, SECRET_KEY, SMALLEST_PART_BYTES, S3Server
from tests.fixtures.s3_proxy import Fault, Proxy, running_proxy

KEY = "policies/orders/artifacts/1/data.zst.age"
SMALL = [b"a small object"]
LARGE = [b"x" * SMALLEST_PART_BYTES, b"y" * SMALLEST_PART_BYTES, b"the last part"]
ALWAYS = 1000


@dataclass
class Bench:
    """A store behind a proxy, and the server behind that."""

    server: S3Server
    proxy: Proxy
    bucket: str

    def store(self, **changes: object):
        return self.server.store(self.bucket, **{"endpoint": self.proxy.endpoint, "attempts": 2, **changes})

    def assert_nothing_is_there(self) -> None:
        client = self.server.client()
        assert client.list_objects_v2(Bucket=self.bucket)["KeyCount"] == 0
        uploads = client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        # An upload whose beginning was asked for again, because its answer was late, nobody knows to abort.
        assert len(uploads) < max(self.proxy.count("create"), 1)
        self.store().abort_leftovers(older_than=datetime.now(UTC) + timedelta(days=1))
        self.assert_no_leftovers()

    def assert_no_leftovers(self) -> None:
        assert self.server.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", []) == []


@pytest.fixture
def bench(moto_server: S3Server) -> Iterator[Bench]:
    with running_proxy(moto_server.endpoint) as proxy:
        yield Bench(moto_server, proxy, moto_server.bucket())


@pytest.fixture(params=["small", "large"])
def chunks(request: pytest.FixtureRequest) -> list[bytes]:
    return SMALL if request.param == "small" else LARGE


def commit_of(chunks: list[bytes]) -> str:
    return "put" if chunks is SMALL else "complete"


PASSING = [
    Fault("", status=503, code="SlowDown"),
    Fault("", status=500, code="InternalError"),
    Fault("", in_200=True, code="InternalError"),
    Fault("", status=400, code="RequestTimeout"),
    Fault("", status=409, code="ConditionalRequestConflict"),
    Fault("", lose_reply=True),
    Fault("", cut_at=0),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.code or ("lost" if fault.lose_reply else "cut"))
@pytest.mark.parametrize("operation", ["create", "part", "complete"])
def test_a_hiccup_is_survived(bench: Bench, operation: str, fault: Fault) -> None:
    if operation != "complete" and fault.in_200:
        pytest.skip("only the end of an upload answers 200 before it knows")
    bench.proxy.plan = [Fault(**{**vars(fault), "operation": operation, "times": 2})]
    created = bench.store().put(KEY, iter(LARGE))
    assert created.size_bytes == sum(map(len, LARGE))
    assert read_object(bench.server.store(bench.bucket), KEY, limit_bytes=1 << 30) == b"".join(LARGE)
    uploads = {request.upload_id for request in bench.proxy.seen if request.operation in {"part", "complete"}}
    assert len(uploads) == 1


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.code or ("lost" if fault.lose_reply else "cut"))
def test_a_hiccup_of_a_small_put_is_survived(bench: Bench, fault: Fault) -> None:
    if fault.in_200:
        pytest.skip("only the end of an upload answers 200 before it knows")
    bench.proxy.plan = [Fault(**{**vars(fault), "operation": "put", "times": 2})]
    bench.store().put(KEY, iter(SMALL))
    assert read_object(bench.server.store(bench.bucket), KEY) == b"".join(SMALL)


@pytest.mark.parametrize("operation", ["create", "part", "complete"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("", status=503, code="SlowDown"),
        Fault("", status=409, code="ConditionalRequestConflict"),
        Fault("", in_200=True, code="InternalError"),
        Fault("", status=500, code="InternalError"),
    ],
    ids=lambda fault: fault.code + (" in 200" if fault.in_200 else ""),
)
def test_what_does_not_pass_fails_and_leaves_nothing(bench: Bench, operation: str, fault: Fault) -> None:
    if operation != "complete" and fault.in_200:
        pytest.skip("only the end of an upload answers 200 before it knows")
    bench.proxy.plan = [Fault(**{**vars(fault), "operation": operation, "times": ALWAYS})]
    with pytest.raises(StoreUnavailable, match="store bucket"):
        bench.store(attempts=1).put(KEY, iter(LARGE))
    bench.assert_nothing_is_there()


def test_a_refusal_is_not_tried_again(bench: Bench, chunks: list[bytes]) -> None:
    first = "put" if chunks is SMALL else "create"
    bench.proxy.plan = [Fault(first, status=403, code="AccessDenied", times=ALWAYS)]
    with pytest.raises(StoreError, match="AccessDenied") as caught:
        bench.store().put(KEY, iter(chunks))
    assert not isinstance(caught.value, StoreUnavailable)
    assert bench.proxy.count(first) == 1
    bench.assert_nothing_is_there()


def test_a_part_that_is_refused_aborts_the_upload(bench: Bench) -> None:
    bench.proxy.plan = [Fault("part", first=2, status=403, code="AccessDenied", times=ALWAYS)]
    with pytest.raises(StoreError, match="AccessDenied"):
        bench.store().put(KEY, iter(LARGE))
    assert bench.proxy.count("abort") >= 1
    bench.assert_nothing_is_there()


def test_an_upload_is_aborted_when_its_run_is_cancelled(bench: Bench) -> None:
    """`drkit run cancel` and Ctrl-C come as KeyboardInterrupt, while parts are under way."""

    def interrupted() -> Iterator[bytes]:
        yield from LARGE[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.store().put(KEY, interrupted())
    assert bench.proxy.count("abort") >= 1
    bench.assert_nothing_is_there()


@pytest.mark.parametrize("operation", ["put", "head", "get", "delete", "get bucket"])
def test_a_stall_ends_by_the_time_out(bench: Bench, operation: str) -> None:
    store = bench.store(read_timeout_s=0.2)
    if operation != "put":
        bench.server.store(bench.bucket).put(KEY, SMALL)
    bench.proxy.plan = [Fault(operation, stall=True, times=ALWAYS)]
    ask = {
        "put": lambda: store.put(KEY, SMALL),
        "head": lambda: store.head(KEY),
        "get": lambda: read_object(store, KEY),
        "delete": lambda: store.delete(KEY),
        "get bucket": lambda: list(store.list("")),
    }
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match="timeout"):
        ask[operation]()
    assert time.monotonic() - started_s < 15


def test_a_stalled_part_ends_by_the_time_out_and_is_aborted(bench: Bench) -> None:
    bench.proxy.plan = [Fault("part", first=3, stall=True, times=ALWAYS)]
    with pytest.raises(StoreUnavailable, match="timeout"):
        bench.store(read_timeout_s=0.3).put(KEY, iter(LARGE))
    assert bench.proxy.count("complete") == 0
    bench.assert_nothing_is_there()


def test_a_server_that_is_away_is_unavailable(bench: Bench) -> None:
    with pytest.raises(StoreUnavailable, match="could not connect to the endpoint"):
        bench.store(endpoint="http://127.0.0.1:9").head(KEY)


def test_a_lost_answer_is_not_a_conflict(bench: Bench, chunks: list[bytes]) -> None:
    bench.proxy.plan = [Fault(commit_of(chunks), lose_reply=True)]
    created = bench.store().put(KEY, iter(chunks))
    assert bench.proxy.count(commit_of(chunks)) >= 2
    assert created == bench.server.store(bench.bucket).put(KEY, iter(chunks))
    bench.assert_no_leftovers()


def test_a_412_with_other_bytes_is_a_conflict(bench: Bench, chunks: list[bytes]) -> None:
    bench.server.store(bench.bucket).put(KEY, [b"somebody else's"])
    with pytest.raises(StoreExists, match=KEY):
        bench.store().put(KEY, iter(chunks))
    assert read_object(bench.store(), KEY) == b"somebody else's"
    bench.assert_no_leftovers()


def test_a_412_about_nothing_is_a_conflict(bench: Bench, chunks: list[bytes]) -> None:
    bench.proxy.plan = [Fault(commit_of(chunks), status=412, code="PreconditionFailed", times=ALWAYS)]
    with pytest.raises(StoreExists):
        bench.store().put(KEY, iter(chunks))
    bench.assert_nothing_is_there()


def test_equal_bytes_without_a_checksum_are_compared_by_reading(bench: Bench) -> None:
    client = bench.server.client()
    client.put_object(Bucket=bench.bucket, Key=f"site/backups/{KEY}", Body=b"".join(LARGE))
    bench.store().put(KEY, iter(LARGE))
    assert bench.proxy.count("get") == 1
    other = [*LARGE[:2], b"the lost part"]
    with pytest.raises(StoreExists):
        bench.store().put(KEY, iter(other))
    bench.assert_no_leftovers()


def test_success_that_stored_nothing_is_found(bench: Bench, chunks: list[bytes]) -> None:
    bench.proxy.plan = [Fault("head", status=404, code="404", times=ALWAYS)]
    with pytest.raises(StoreUnavailable, match="says that it took"):
        bench.store().put(KEY, iter(chunks))
    bench.assert_no_leftovers()


def test_what_is_stored_short_is_found_and_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bench.store()
    send = store._connection.call

    def lose_the_end(operation: str, **arguments: object):
        if operation == "put_object":
            arguments = {**arguments, "Body": b"a sma"}
            del arguments["ChecksumSHA256"]
        return send(operation, **arguments)

    monkeypatch.setattr(store._connection, "call", lose_the_end)
    with pytest.raises(StoreUnavailable, match="does not hold") as caught:
        store.put(KEY, SMALL)
    assert any("sent    14 bytes" in line for line in caught.value.details)
    bench.assert_nothing_is_there()


def test_an_upload_goes_on_under_its_own_id_with_new_credentials(bench: Bench) -> None:
    bench.proxy.plan = [Fault("part", first=2, status=400, code="ExpiredToken", times=2)]
    asked: list[str] = []

    def keys() -> AccessKeys:
        asked.append(f"{ACCESS_KEY}-{len(asked) + 1}")
        return AccessKeys(Secret(asked[-1]), Secret(SECRET_KEY))

    bench.store(keys=keys).put(KEY, iter(LARGE))
    uploads = {request.upload_id for request in bench.proxy.seen if request.operation in {"part", "complete"}}
    assert len(uploads) == 1
    assert bench.proxy.count("create") == 1
    assert bench.proxy.count("abort") == 0
    assert 2 <= len(asked) <= 3
    finish = next(request for request in bench.proxy.seen if request.operation == "complete")
    assert asked[-1] in finish.headers["Authorization"]


@pytest.mark.parametrize("operation", ["put", "head", "get", "get bucket", "delete"])
def test_expired_credentials_are_renewed_once(bench: Bench, operation: str) -> None:
    store = bench.store()
    code = "400" if operation == "head" else "ExpiredToken"
    if operation != "put":
        bench.server.store(bench.bucket).put(KEY, SMALL)
    bench.proxy.plan = [Fault(operation, status=400, code=code)]
    {
        "put": lambda: store.put(KEY, SMALL),
        "head": lambda: store.head(KEY),
        "get": lambda: read_object(store, KEY),
        "get bucket": lambda: list(store.list("")),
        "delete": lambda: store.delete(KEY),
    }[operation]()
    assert bench.proxy.count(operation) == 2


def test_credentials_that_stay_expired_fail_with_what_to_do(bench: Bench) -> None:
    bench.proxy.plan = [Fault("part", status=400, code="ExpiredToken", times=ALWAYS)]
    with pytest.raises(StoreError, match="ExpiredToken") as caught:
        bench.store().put(KEY, iter(LARGE))
    assert caught.value.hints == ("renew the credentials of store bucket",)
    bench.assert_nothing_is_there()


@pytest.mark.parametrize("cut_at", [0, 1, 1 << 20, SMALLEST_PART_BYTES + 17])
def test_a_read_goes_on_where_it_broke(bench: Bench, cut_at: int) -> None:
    bench.server.store(bench.bucket).put(KEY, iter(LARGE))
    bench.proxy.plan = [Fault("get", cut_at=cut_at), Fault("get", first=3, status=503, code="SlowDown")]
    assert read_object(bench.store(), KEY, limit_bytes=1 << 30) == b"".join(LARGE)
    assert "Range" in bench.proxy.seen[1].headers
    assert "If-Match" in bench.proxy.seen[1].headers


def test_a_read_that_gets_nowhere_ends(bench: Bench) -> None:
    bench.server.store(bench.bucket).put(KEY, iter(LARGE))
    bench.proxy.plan = [Fault("get", cut_at=3), Fault("get", first=2, times=ALWAYS, cut_at=0)]
    with pytest.raises(StoreUnavailable), bench.store().open(KEY) as chunks:
        list(chunks)
    assert bench.proxy.count("get") <= 10


def test_a_read_never_mixes_two_states(bench: Bench) -> None:
    behind = bench.server.client()
    address = {"Bucket": bench.bucket, "Key": f"site/backups/{KEY}"}
    behind.put_object(**address, Body=b"1" * (3 << 20))
    bench.proxy.plan = [Fault("get", cut_at=2 << 20)]
    with bench.store().open(KEY) as chunks:
        next(chunks)
        behind.put_object(**address, Body=b"2" * (3 << 20))
        with pytest.raises(StoreUnavailable, match="replaced"):
            list(chunks)


def test_bytes_damaged_on_the_way_are_refused_and_sent_again(versitygw_server: S3Server) -> None:
    bucket = versitygw_server.bucket()
    with running_proxy(versitygw_server.endpoint) as proxy:
        proxy.plan = [Fault("part", first=2, damage=True), Fault("put", damage=True)]
        store = versitygw_server.store(bucket, endpoint=proxy.endpoint)
        store.put(KEY, iter(LARGE))
        store.put("small", SMALL)
        assert proxy.count("part") == len(LARGE) + 1
        assert proxy.count("put") == 2
        assert read_object(store, KEY, limit_bytes=1 << 30) == b"".join(LARGE)
        assert read_object(store, "small") == b"".join(SMALL)


def test_a_server_without_sha256_is_given_another_checksum(bench: Bench, chunks: list[bytes]) -> None:
    first = "put" if chunks is SMALL else "create"
    bench.proxy.plan = [Fault(first, status=501, code="NotImplemented", times=2)]
    store = bench.store()
    store.put(KEY, iter(chunks))
    assert read_object(store, KEY, limit_bytes=1 << 30) == b"".join(chunks)
    carried = "put" if chunks is SMALL else "part"
    last = [request for request in bench.proxy.seen if request.operation == carried][-1]
    assert "Content-MD5" in last.headers
    before = bench.proxy.count(first)
    store.put(KEY + ".2", iter(chunks))
    assert bench.proxy.count(first) == before + 1


@pytest.mark.parametrize("code", ["NotImplemented", "InvalidRequest", "InvalidArgument"])
def test_a_server_without_sha256_alone_is_given_crc32(
    versitygw_server: S3Server, chunks: list[bytes], code: str
) -> None:
    first, carried = ("put", "put") if chunks is SMALL else ("create", "part")
    with running_proxy(versitygw_server.endpoint) as proxy:
        bench = Bench(versitygw_server, proxy, versitygw_server.bucket())
        proxy.plan = [Fault(first, status=501 if code == "NotImplemented" else 400, code=code, times=1)]
        store = bench.store()
        written = store.put(KEY, iter(chunks))
        sent = [request.headers for request in proxy.seen if request.operation == carried]
        assert {headers.get("x-amz-checksum-crc32") for headers in sent[-len(chunks) :]} == {
            base64.b64encode(zlib.crc32(chunk).to_bytes(4, "big")).decode() for chunk in chunks
        }
        assert written.checksum is not None
        assert written.checksum.algorithm == "CRC32"
        assert read_object(store, KEY, limit_bytes=1 << 30) == b"".join(chunks)
        with pytest.raises(StoreExists):
            store.put(KEY, iter([*chunks[:-1], b"other bytes!!!"]))
        again = store.put(KEY, iter(chunks))
        assert again.checksum == written.checksum, "our own bytes are known by their CRC32"
        assert proxy.count(first) == 4, "the server is not asked for SHA-256 again"


@pytest.mark.parametrize("cut_at", [0, 60, 200])
def test_a_listing_that_is_cut_is_not_a_short_listing(bench: Bench, cut_at: int) -> None:
    behind = bench.server.store(bench.bucket)
    for number in range(3):
        behind.put(f"object-{number}", SMALL)
    bench.proxy.plan = [Fault("get bucket", cut_at=cut_at, times=ALWAYS)]
    with pytest.raises(StoreUnavailable):
        list(bench.store().list(""))
    bench.proxy.plan = [Fault("get bucket", first=bench.proxy.count("get bucket") + 1, cut_at=cut_at)]
    patient = RetryingStore(bench.store(), QUICK)
    assert [found.key for found in patient.list("")] == ["object-0", "object-1", "object-2"]


def test_a_long_listing_comes_in_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"object-{number}" for number in range(7)]
    for key in keys:
        bench.server.store(bench.bucket).put(key, SMALL)
    bench.proxy.plan = [Fault("get bucket", first=2, status=503, code="SlowDown", times=2)]
    store = bench.store()
    call = store._connection.call
    monkeypatch.setattr(
        store._connection,
        "call",
        lambda operation, **arguments: call(
            operation, **arguments, **({"MaxKeys": 2} if operation == "list_objects_v2" else {})
        ),
    )
    assert [found.key for found in RetryingStore(store, QUICK).list("")] == keys
    assert bench.proxy.count("get bucket") > 4


def test_uploads_left_by_the_dead_are_aborted(bench: Bench) -> None:
    client = bench.server.client()
    client.create_multipart_upload(Bucket=bench.bucket, Key="site/backups/dead")
    client.create_multipart_upload(Bucket=bench.bucket, Key="elsewhere/dead")
    store = bench.store()
    assert store.abort_leftovers(older_than=datetime.now(UTC) - timedelta(days=40000)) == 0
    assert store.abort_leftovers(older_than=datetime.now(UTC) + timedelta(hours=1)) == 1
    left = client.list_multipart_uploads(Bucket=bench.bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere/dead"]


def test_a_missing_bucket_is_not_an_empty_store(bench: Bench) -> None:
    store = bench.server.store("no-such-bucket-here")
    for ask in (
        lambda: store.head(KEY),
        lambda: read_object(store, KEY),
        lambda: list(store.list("")),
        lambda: store.put(KEY, SMALL),
        lambda: store.put(KEY, iter(LARGE)),
        lambda: store.delete(KEY),
    ):
        with pytest.raises(StoreError, match="bucket no-such-bucket-here of store bucket does not exist") as caught:
            ask()
        assert not isinstance(caught.value, StoreMissing | StoreUnavailable)


def test_no_error_shows_a_secret(bench: Bench) -> None:
    bench.proxy.plan = [Fault("put", status=403, code="SignatureDoesNotMatch", times=ALWAYS)]
    with pytest.raises(StoreError) as caught:
        bench.store().put(KEY, SMALL)
    shown = f"{caught.value!r} {caught.value.details} {caught.value.hints} {bench.store()._options!r}"
    assert SECRET_KEY not in shown


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Yield the address of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        host, port = server.getsockname()
        yield f"http://{host}:{port}"


SCALE = 300
"""The defaults' seconds divided by this: what takes minutes in earnest takes under two seconds here."""
LONGEST_S = 6 * 60 / SCALE


@pytest.mark.parametrize("operation", ["head", "list", "small", "large", "replace", "open"])
def test_a_server_that_never_answers_is_given_up_within_minutes(silent_endpoint: str, operation: str) -> None:
    usual = S3Options("bucket")
    patience = replace(
        usual.patience,
        first_s=usual.patience.first_s / SCALE,
        longest_s=usual.patience.longest_s / SCALE,
        give_up_after_s=usual.patience.give_up_after_s / SCALE,
    )
    quiet = S3Server("silent", silent_endpoint)
    options = {"patience": patience, "attempts": usual.attempts, "read_timeout_s": usual.read_timeout_s / SCALE}
    store = RetryingStore(quiet.store("bucket", **options), replace(patience, attempts=3))
    calls = {
        "head": lambda: store.head(KEY),
        "list": lambda: list(store.list("policies/")),
        "small": lambda: store.put(KEY, SMALL),
        "large": lambda: store.put(KEY, iter(LARGE)),
        "replace": lambda: store.replace(KEY, b"1", expected=None),
        "open": lambda: read_object(store, KEY),
    }
    began_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"store bucket failed at .*timeout"):
        calls[operation]()
    # botocore waits up to a second of its own before it sends a request again, which nothing scales.
    assert time.monotonic() - began_s < LONGEST_S + 4 * 1.0 + 1.0


@pytest.mark.parametrize("operation", ["list", "put", "open"])
def test_an_unknown_access_key_is_no_missing_object(versitygw_server: S3Server, operation: str) -> None:
    keys = AccessKeys(Secret("nobody"), Secret(SECRET_KEY))
    store = versitygw_server.store(versitygw_server.bucket(), keys=lambda: keys)
    calls = {
        "list": lambda: list(store.list("policies/")),
        "put": lambda: store.put(KEY, SMALL),
        "open": lambda: read_object(store, KEY),
    }
    with pytest.raises(StoreError, match=r"InvalidAccessKeyId|XAdminUserNotFound") as refused:
        calls[operation]()
    assert not isinstance(refused.value, StoreMissing)
    assert "renew the credentials of store bucket" in refused.value.hints


def test_an_endpoint_without_tls_is_told_from_a_certificate(versitygw_server: S3Server) -> None:
    store = versitygw_server.store("bucket", endpoint=versitygw_server.endpoint.replace("http:", "https:"))
    with pytest.raises(StoreError, match="what listens there does not speak TLS") as refused:
        store.put(KEY, SMALL)
    assert refused.value.hints[0].startswith("write http:// in the endpoint of store bucket")
