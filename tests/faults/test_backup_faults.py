"""Backups whose tool or store fails: the run fails by name, nothing half is left, and nothing secret is seen.

The tools are scripts that behave badly around the real ones; the stores are full, read-only, or an S3 server behind a
proxy that does what goes wrong out there.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drkit.model import Run
from tests.faults.forking import Ended, Forker, wait_until
from tests.faults.shop import BUCKET_VARIABLES, TABLE_WORD, Shop, bucket_bytes, bucket_lines, create_shop, make_shop
from tests.fixtures.postgres import PostgresServer, postgres_bin
from tests.fixtures.s3 import S3Server
from tests.fixtures.s3_proxy import Fault, Proxy, running_proxy

SOURCE, STORE = 5, 6
LAST_WORDS = "pg_dump: error: the last words"
ALWAYS = 10_000
IDLE = ", idle_timeout: 4s"


@pytest.fixture(scope="session")
def shop_url(postgres: PostgresServer) -> str:
    return postgres.tcp_url(create_shop(postgres, noise_bytes=2 << 20)).reveal()


@pytest.fixture(scope="session")
def large_url(postgres: PostgresServer) -> str:
    return postgres.tcp_url(create_shop(postgres, noise_bytes=12 << 20)).reveal()


@dataclass(frozen=True)
class BadTool:
    """What a tool does instead of its work, and what drkit says then. ``$REAL`` runs the real one."""

    name: str
    script: str
    message: str
    shows_last_words: bool = True


SAY = f"echo '{LAST_WORDS}' >&2"
CUT = '$REAL "$@" > "$HOME/whole"; head -c $(($(wc -c < "$HOME/whole") * 9 / 10)) "$HOME/whole"'
BAD_TOOLS = [
    BadTool("exits after 90 %", f"{CUT}; {SAY}; exit 1", "{tool} failed with exit status 1"),
    BadTool("hangs", f"{SAY}; exec sleep 600", "{tool} moved no byte for 4 s and was stopped"),
    BadTool("hangs at 90 %", f"{CUT}; {SAY}; exec sleep 600", "{tool} moved no byte for 4 s and was stopped"),
    BadTool("hangs deaf", f"trap '' TERM; {SAY}; while :; do sleep 1; done", "{tool} moved no byte for 4 s"),
    BadTool("floods stderr", f"yes noise | head -c 100000000 >&2; {SAY}; exit 3", "{tool} failed with exit status 3"),
    BadTool("is killed", f"{CUT}; {SAY}; kill -KILL $$", "{tool} was killed by signal SIGKILL"),
    BadTool("leaves a child", f"sleep 600 >&2 & {SAY}; exit 1", "{tool} failed with exit status 1"),
    BadTool("ends after 90 %", f"{CUT}; exit 0", "has no end", shows_last_words=False),
    BadTool("writes nothing", "exit 0", "", shows_last_words=False),
]


def install(folder: Path, tool: str, script: str) -> str:
    """Put a bad tool in front of the real one; return what DRKIT_POSTGRES_BIN is then."""
    folder.mkdir()
    real = postgres_bin() / tool
    path = folder / tool
    path.write_text(f'#!/bin/sh\nREAL={real}\n[ "$1" = --version ] && exec $REAL --version\n{script}\n')
    path.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("bad", BAD_TOOLS, ids=lambda bad: bad.name)
@pytest.mark.parametrize("tool", ["pg_dump", "pg_dumpall"])
def test_a_bad_tool(machine: Path, forker: Forker, shop_url: str, tool: str, bad: BadTool) -> None:
    good = make_shop(machine / "host", forker, shop_url, rule=IDLE if "hangs" in bad.name else "")
    bad_bin = install(machine / "bin", tool, bad.script)
    shop = good.with_variables(DRKIT_POSTGRES_BIN=bad_bin)
    began_s = time.monotonic()
    ended = shop.drkit("backup", "shop")
    assert time.monotonic() - began_s < 60
    assert ended.status == SOURCE, ended.said
    assert_failed(shop, ended, bad.message.format(tool=tool) or tool)
    assert (LAST_WORDS in ended.stderr) is bad.shows_last_words
    assert ended.stdout == ""
    assert ended.stderr.count("\n") < 40
    assert ended.peak_bytes < assert_clean_again(good, folder_names(good)).peak_bytes + (32 << 20)


def test_flooding_is_no_failure(machine: Path, forker: Forker, shop_url: str) -> None:
    script = 'yes noise | head -c 100000000 >&2; exec $REAL "$@"'
    bad_bin = install(machine / "bin", "pg_dump", script)
    shop = make_shop(machine / "host", forker, shop_url, DRKIT_POSTGRES_BIN=bad_bin)
    assert shop.drkit("backup", "shop").status == 0
    assert len(shop.copies()) == 1


def test_what_children_are_told(machine: Path, forker: Forker, shop_url: str) -> None:
    """While a tool runs, neither its arguments nor its environment hold a secret; what it reads is private."""
    bad_bin = install(machine / "bin", "pg_dump", "exec sleep 600")
    shop = make_shop(machine / "host", forker, shop_url, rule=IDLE, DRKIT_POSTGRES_BIN=bad_bin)
    started = forker.start(shop.host, "backup", "shop")
    wait_until(lambda: ["sleep", "600"] in shop.host.processes().values(), "pg_dump was not started")
    seen = shop.host.processes()
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in seen if pid != started.pid]
    arguments = [word for words in seen.values() for word in words]
    files = [path for path in shop.temporary_files() if path.is_file()]
    modes = {path.stat().st_mode & 0o777 for path in files}
    ended = started.wait()
    assert ended.status == SOURCE
    assert environments
    for secret in shop.secrets:
        assert not any(secret in word for word in arguments)
        assert not any(secret.encode() in environment for environment in environments)
    assert {path.name for path in files} == {"service.conf", "pass"}
    assert modes == {0o600}


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount a file system in memory."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "drkit-test", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(machine: Path, forker: Forker, large_url: str) -> None:
    shop = make_shop(machine / "host", forker, large_url)
    folder = shop.site.store_folder
    with mounted(folder, "size=3m"):
        ended = shop.drkit("backup", "shop")
        assert ended.status == STORE, ended.said
        assert_failed(shop, ended, "store primary is full: No space left on device")
        assert f"df -h {folder}" in ended.stderr
        assert not [path for path in folder.rglob("*") if path.name.startswith("~put")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        assert_clean_again(shop, folder_names(shop))


def test_a_file_that_may_not_grow(machine: Path, forker: Forker, large_url: str) -> None:
    shop = make_shop(machine / "host", forker, large_url)
    ended = shop.drkit("backup", "shop", largest_file_bytes=3 << 20)
    assert ended.status == STORE, ended.said
    assert_failed(shop, ended, "store primary is full: File too large")
    assert_clean_again(shop, folder_names(shop))


def test_a_read_only_folder(machine: Path, forker: Forker, shop_url: str) -> None:
    shop = make_shop(machine / "host", forker, shop_url)
    with mounted(shop.site.store_folder, "size=64m", "ro"):
        ended = shop.drkit("backup", "shop")
        assert ended.status == STORE, ended.said
        assert_failed(shop, ended, "store primary may not be used: Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(shop.site.store_folder)], check=True)
        assert_clean_again(shop, folder_names(shop))


def test_a_folder_that_is_gone(machine: Path, forker: Forker, shop_url: str) -> None:
    shop = make_shop(machine / "host", forker, shop_url)
    shop.site.store_folder.rmdir()
    ended = shop.drkit("backup", "shop")
    assert ended.status == STORE, ended.said
    assert_failed(shop, ended, f"the folder {shop.site.store_folder} of store primary does not exist")
    shop.site.store_folder.mkdir(mode=0o700)
    assert_clean_again(shop, folder_names(shop))


@dataclass
class Bench:
    """A shop whose store ``offsite`` is a bucket behind a proxy."""

    shop: Shop
    proxy: Proxy
    client: Any
    bucket: str

    def names(self) -> list[str]:
        return [name for name, _ in bucket_bytes(self.client, self.bucket)]

    def assert_no_uploads(self) -> None:
        assert "Uploads" not in self.client.list_multipart_uploads(Bucket=self.bucket)


@contextmanager
def bucket_bench(
    machine: Path, forker: Forker, url: str, server: S3Server, stores: tuple[str, ...] = ("offsite",)
) -> Iterator[Bench]:
    with running_proxy(server.endpoint) as proxy:
        name = server.bucket()
        shop = make_shop(machine / "host", forker, url, stores=stores, **BUCKET_VARIABLES)
        shop.site.add_store("offsite", f"s3://{name}/site", *bucket_lines(proxy.endpoint))
        yield Bench(shop, proxy, server.client(), name)


STORE_FAULTS = {
    "busy for ever": (Fault("put", status=503, code="SlowDown", times=ALWAYS), "SlowDown"),
    "stalled": (Fault("put", stall=True, times=ALWAYS), "timeout"),
    "expired credentials": (Fault("put", status=400, code="ExpiredToken", times=ALWAYS), "ExpiredToken"),
    "refused": (Fault("put", status=403, code="AccessDenied", times=ALWAYS), "AccessDenied"),
    "parts busy for ever": (Fault("part", status=503, code="SlowDown", times=ALWAYS), "SlowDown"),
    "parts stalled": (Fault("part", first=2, stall=True, times=ALWAYS), "timeout"),
    "expired halfway": (Fault("part", first=2, status=400, code="ExpiredToken", times=ALWAYS), "ExpiredToken"),
    "end refused": (Fault("complete", status=503, code="SlowDown", times=ALWAYS), "SlowDown"),
}


@pytest.mark.parametrize("name", STORE_FAULTS)
def test_a_bad_bucket(machine: Path, forker: Forker, large_url: str, moto_server: S3Server, name: str) -> None:
    fault, word = STORE_FAULTS[name]
    with bucket_bench(machine, forker, large_url, moto_server) as bench:
        bench.proxy.plan = [fault]
        ended = bench.shop.drkit("backup", "shop", impatient=True)
        assert bench.proxy.count(fault.operation) >= fault.first
        assert ended.status == STORE, ended.said
        assert_failed(bench.shop, ended, "store offsite")
        assert word in ended.stderr
        bench.assert_no_uploads()
        bench.proxy.plan = []
        bench.proxy.released.set()
        assert_clean_again(bench.shop, bench.names)


def test_a_manifest_that_is_refused(machine: Path, forker: Forker, shop_url: str, moto_server: S3Server) -> None:
    """Everything is in the bucket but the last object, so there is no backup."""
    with bucket_bench(machine / "clean", forker, shop_url, moto_server) as bench:
        assert bench.shop.drkit("backup", "shop").status == 0
        last = bench.proxy.count("put")
    with bucket_bench(machine / "bad", forker, shop_url, moto_server) as bench:
        bench.proxy.plan = [Fault("put", first=last, status=503, code="SlowDown", times=ALWAYS)]
        ended = bench.shop.drkit("backup", "shop", impatient=True)
        assert ended.status == STORE, ended.said
        assert_failed(bench.shop, ended, "store offsite failed at policies/shop/artifacts/")
        assert "/manifest.json: SlowDown" in ended.stderr
        assert any(name.endswith("/manifest.json.sig") for name in bench.names())
        bench.proxy.plan = []
        assert_clean_again(bench.shop, bench.names)


@contextmanager
def slamming_server() -> Iterator[str]:
    """Run a server that resets every connection when it is spoken to."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def slam() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        thread = threading.Thread(target=slam)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_reset_connections(machine: Path, forker: Forker, shop_url: str) -> None:
    with slamming_server() as endpoint:
        shop = make_shop(machine / "host", forker, shop_url, stores=("offsite",), **BUCKET_VARIABLES)
        shop.site.add_store("offsite", "s3://bucket/site", *bucket_lines(endpoint))
        ended = shop.drkit("backup", "shop", impatient=True)
    assert ended.status == STORE, ended.said
    assert_failed(shop, ended, "store offsite")


@pytest.mark.parametrize("operation", ["put", "get", "get bucket"])
def test_a_second_store_that_is_down(
    machine: Path, forker: Forker, shop_url: str, moto_server: S3Server, operation: str
) -> None:
    with bucket_bench(machine, forker, shop_url, moto_server, ("primary", "offsite")) as bench:
        shop = bench.shop
        bench.proxy.plan = [Fault(operation, status=503, code="SlowDown", times=ALWAYS)]
        ended = shop.drkit("backup", "shop", impatient=True)
        assert ended.status == STORE, ended.said
        assert "is committed in primary, but a copy failed: store offsite failed" in ended.stderr
        assert "hint: drkit store copy" in ended.stderr
        assert last_run(shop).state == "failed"
        bench.proxy.plan = []
        ((artifact_id, store),) = shop.copies()
        assert store == "primary"
        (copied,) = shop.document("store", "copy")["copied"]
        assert (copied["artifact_id"], copied["store"]) == (artifact_id, "offsite")
        assert shop.copies("--all") == {(artifact_id, "primary"), (artifact_id, "offsite")}
        assert shop.export() == shop.rebuilt_export()
        assert shop.document("store", "copy")["copied"] == []


def test_a_second_store_whose_secret_is_missing(
    machine: Path, forker: Forker, shop_url: str, moto_server: S3Server
) -> None:
    """It is out of reach like any other: the third gets its copy, and the missing one is named and made up later."""
    with bucket_bench(machine, forker, shop_url, moto_server, ("primary", "offsite", "third")) as bench:
        whole = bench.shop
        whole.site.add_store("third").mkdir(mode=0o700)
        shop = whole.with_variables(SHOP_SECRET_KEY="")
        for number in (1, 2):
            ended = shop.drkit("backup", "shop")
            assert ended.status == STORE, ended.said
            assert "is committed in primary, third, but a copy failed: store offsite cannot be opened: " in ended.stderr
            assert "the secret env:SHOP_SECRET_KEY is empty" in ended.stderr
            assert "hint: drkit store copy" in ended.stderr
            run = last_run(shop)
            assert (run.state, "store offsite cannot be opened" in str(run.error)) == ("failed", True)
            made = {artifact_id for artifact_id, _ in whole.copies("--all")}
            assert len(made) == number
        checked = shop.drkit("check", "shop")
        assert "store offsite cannot be opened" in checked.stdout + checked.stderr
        copied = whole.document("store", "copy")["copied"]
        assert {(item["artifact_id"], item["store"]) for item in copied} == {(item, "offsite") for item in made}
        assert whole.copies("--all") == {(item, name) for item in made for name in ("primary", "offsite", "third")}


def test_a_first_store_whose_secret_is_missing(
    machine: Path, forker: Forker, shop_url: str, moto_server: S3Server
) -> None:
    with bucket_bench(machine, forker, shop_url, moto_server, ("offsite", "primary")) as bench:
        shop = bench.shop.with_variables(SHOP_SECRET_KEY="")
        ended = shop.drkit("backup", "shop")
        assert ended.status == STORE, ended.said
        assert_failed(shop, ended, "store offsite cannot be opened: the secret env:SHOP_SECRET_KEY is empty")


@pytest.mark.parametrize("second_is_down", [False, True])
def test_a_first_store_that_was_replaced(machine: Path, forker: Forker, shop_url: str, *, second_is_down: bool) -> None:
    """An empty folder in the place of the first store joins the repository of the second, and is filled from it.

    So it does when the second is out of reach just then: the catalog knows which repository it is.
    """
    shop = make_shop(machine / "host", forker, shop_url, stores=("primary", "offsite"))
    offsite = shop.site.add_store("offsite")
    offsite.mkdir(mode=0o700)
    first = shop.document("backup", "shop")["artifact_id"]
    shop.site.store_folder.rename(shop.site.folder / "broken")
    shop.site.store_folder.mkdir(mode=0o700)
    if second_is_down:
        offsite.rename(offsite.with_name("unplugged"))
        assert shop.drkit("backup", "shop").status == STORE
        offsite.with_name("unplugged").rename(offsite)
    else:
        assert shop.drkit("backup", "shop").status == 0
    copied = shop.document("store", "copy")["copied"]
    assert (first, "primary") in {(item["artifact_id"], item["store"]) for item in copied}
    assert len(copied) == (2 if second_is_down else 1)
    assert len(shop.copies("--all")) == 4
    assert (shop.site.store_folder / "RECOVERY.md").exists()
    assert shop.export() == shop.rebuilt_export()


def last_run(shop: Shop) -> Run:
    return shop.runs()[0]


def folder_names(shop: Shop) -> Any:
    return lambda: [str(path) for path in shop.site.store_folder.rglob("*") if path.is_file()]


def assert_failed(shop: Shop, ended: Ended, words: str) -> None:
    """The run failed by name; there is no manifest, no process, no temporary file, and no secret to be seen."""
    assert words in ended.stderr, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(("drkit: ", "  "))
    run = last_run(shop)
    assert run.state == "failed"
    assert run.error is not None
    assert words in run.error or words in ended.stderr
    assert f"drkit: {run.error}" in ended.stderr
    wait_until(lambda: not shop.host.processes(), f"still running: {shop.host.processes()}")
    assert shop.temporary_files() == []
    assert shop.export() == b'{"artifacts":[],"evidence":[],"format":"drkit-catalog","version":1}\n'
    assert shop.seen_secrets(ended) == []


def assert_clean_again(shop: Shop, names: Any) -> Ended:
    """The next backup works at once; only it has a manifest, and no name of what is stored tells what is in it."""
    ended = shop.drkit("backup", "shop", "--json")
    assert ended.status == 0, ended.said
    document = json.loads(ended.stdout)
    manifests = [name for name in names() if name.endswith("/manifest.json")]
    assert [document["artifact_id"] in name for name in manifests].count(True) == 1
    assert not [name for name in names() if "~put" in name or TABLE_WORD in name]
    assert shop.temporary_files() == []
    return ended
