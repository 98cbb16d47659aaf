"""Incremental bases where they are rarely tried: in a real bucket, from a standby, and with drkit killed in between."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drkit.binaries import FOLDERS_VARIABLE
from tests.fixtures.physical import PHYSICAL, standby_of
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.recovery import (
    POLICY,
    Walk,
    document_of,
    processes_of,
    promoted,
    restored,
    scratch_place,
    started,
)
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite
from tests.fixtures.versions import NEWEST, programs_of

SETTINGS = PHYSICAL | {"summarize_wal": "on", "track_commit_timestamp": "on"}
MARKER = "drkit-restore.unfinished"
HALF_WAY = """\
#!/bin/sh
for word; do
  case "$word" in
    --version) exec {real} "$@";;
    --output=*) out=${{word#--output=}};;
  esac
done
mkdir "$out" && mkfifo "$out/never" && echo half >"$out/PG_VERSION"
{then}
"""


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drkit find the programs of a major that takes incremental backups."""
    monkeypatch.setenv(FOLDERS_VARIABLE, str(programs_of(NEWEST)))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Lend a server that knows what changed."""
    with running_postgres(programs=programs_of(NEWEST), **SETTINGS) as server:
        server.execute("create table status (state text); insert into status values ('born')")
        server.execute("create table big as select g, md5(g::text) as t from generate_series(1, 20000) as g")
        yield server


def policy_of(site: ReadySite, server: PostgresServer, folder: Path, store: str = "primary") -> Walk:
    """Write a policy of bases over that server, and lend the two."""
    path = site.write_policy(POLICY, site.write_secret("source-url", server.url().reveal()), stores=(store,))
    path.write_text(path.read_text().replace("- {method: dump}", "- {method: base}"))
    return Walk(site, server, folder)


@pytest.fixture
def walk(server: PostgresServer, ready_site: ReadySite, tmp_path: Path) -> Walk:
    """Lend the server with a policy of its own."""
    return policy_of(ready_site, server, tmp_path)


def parents_of(walk: Walk, artifact_id: str) -> list[str]:
    found: list[str] = document_of(walk.site.call("show", artifact_id, "--json"))["manifest"]["depends_on"]
    return found


def test_a_chain_in_a_bucket_comes_back_and_is_drilled(
    walk: Walk, versitygw_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLOUD_ID", ACCESS_KEY)
    monkeypatch.setenv("CLOUD_SECRET", SECRET_KEY)
    bucket = versitygw_server.bucket(versions=True)
    keys = ['access_key: "env:CLOUD_ID"', 'secret_key: "env:CLOUD_SECRET"']
    where = ['region: "us-east-1"', f'endpoint: "{versitygw_server.endpoint}"', "path_style: true"]
    walk.site.add_store("cloud", f"s3://{bucket}/site", *where, *keys)
    walk = policy_of(walk.site, walk.server, tmp_path, "cloud")
    full = walk.base()
    walk.set("first")
    first = walk.base("--incremental")
    walk.set("second")
    walk.server.execute("update big set t = 'two' where g = 2")
    second = walk.base("--incremental")
    assert parents_of(walk, second) == [full, first]
    assert not walk.site.store_folder.exists() or not list(walk.site.store_folder.rglob("*.age"))
    (walk.site.folder / "var" / "catalog.db").unlink()
    assert walk.site.call("catalog", "rebuild").returncode == 0
    with restored(walk, "--at", "immediate") as copy:
        assert copy.execute("select state from status") == [("second",)]
        assert copy.execute("select sum(hashtext(big::text)) from big") == walk.server.execute(
            "select sum(hashtext(big::text)) from big"
        )
    assert walk.state_at("--at", "immediate", "--artifact", first) == "first"
    drill = walk.site.call("drill", POLICY, "--level", "same-data", "--json")
    assert (drill.returncode, document_of(drill)["verdict"]) == (0, "passed"), drill.stderr
    assert "combined from 3 bases" in drill.stdout

    client = versitygw_server.client()
    (key,) = (
        item["Key"]
        for item in client.list_objects_v2(Bucket=bucket)["Contents"]
        if f"{first}/base.zst.age" in item["Key"]
    )
    client.delete_object(Bucket=bucket, Key=key)
    with scratch_place() as place:
        done = walk.restore("--into", str(place / "data"), "--at", "immediate", "--artifact", second)
        assert done.returncode in (0, 6, 8), done.stderr
        if done.returncode:
            assert f"{first}/base.zst.age" in done.stderr
            assert not (place / "data").exists()
        else:  # the version that the manifest names is there still
            with started(walk.server, place / "data") as copy:
                assert copy.execute("select state from status") == [("second",)]


class TestFromAStandby:
    """A standby knows what changed as far as its own last restartpoint; what it gives is as good as the primary's."""

    @pytest.fixture
    def standby(self, server: PostgresServer) -> Iterator[PostgresServer]:
        with standby_of(server) as standby:
            yield standby

    def settle(self, server: PostgresServer, standby: PostgresServer) -> None:
        """Let the standby reach a restartpoint behind all that was written."""
        server.execute("checkpoint")
        ((lsn,),) = server.execute("select pg_current_wal_lsn()")
        until(lambda: standby.execute(f"select pg_last_wal_replay_lsn() >= '{lsn}'")[0][0], "replayed")
        standby.execute("checkpoint")

    def test_a_chain_of_the_standby_alone(self, walk: Walk, standby: PostgresServer, tmp_path: Path) -> None:
        primary = walk.server
        of_standby = policy_of(walk.site, standby, tmp_path)
        self.settle(primary, standby)
        full = of_standby.base()
        walk.set("behind the full one", primary)
        primary.execute("update big set t = 'standby' where g = 3")
        self.settle(primary, standby)
        child = of_standby.base("--incremental")
        assert parents_of(of_standby, child) == [full]
        with restored(of_standby, "--at", "immediate") as copy:
            assert copy.execute("select state from status") == [("behind the full one",)]
            assert copy.execute("select t from big where g = 3") == [("standby",)]
        drill = of_standby.site.call("drill", POLICY, "--level", "same-data", "--json")
        assert (drill.returncode, document_of(drill)["verdict"]) == (0, "passed"), drill.stderr

    def test_a_parent_of_the_primary(self, walk: Walk, standby: PostgresServer, tmp_path: Path) -> None:
        full = walk.base()
        walk.set("behind the primary's")
        of_standby = policy_of(walk.site, standby, tmp_path)
        self.settle(walk.server, standby)
        child = of_standby.base("--incremental")
        assert parents_of(of_standby, child) == [full]
        assert of_standby.state_at("--at", "immediate") == "behind the primary's"
        with scratch_place() as place:
            done = of_standby.restore("--into", str(place / "data"), "--at", "immediate", "--no-start")
            assert done.returncode == 0, done.stderr
            with started(standby, place / "data") as copy:
                assert copy.execute("select state from status") == [("behind the primary's",)]

    def test_no_restartpoint_since_the_parent(self, walk: Walk, standby: PostgresServer, tmp_path: Path) -> None:
        self.settle(walk.server, standby)
        full = walk.base()
        of_standby = policy_of(walk.site, standby, tmp_path)
        done = of_standby.site.call("backup", POLICY, "--incremental")
        assert done.returncode == 5, done.stdout + done.stderr
        for words in (f"cannot tell what changed since base {full}", "restartpoint", "--method base"):
            assert words in done.stderr
        assert len(document_of(of_standby.site.call("list", "--json"))["artifacts"]) == 1
        self.settle(walk.server, standby)
        assert parents_of(of_standby, of_standby.base("--incremental")) == [full]

    def test_one_that_was_promoted(self, walk: Walk, standby: PostgresServer, tmp_path: Path) -> None:
        of_standby = policy_of(walk.site, standby, tmp_path)
        self.settle(walk.server, standby)
        full = of_standby.base()
        promoted(standby)
        until(lambda: not standby.execute("select pg_is_in_recovery()")[0][0], "it is promoted")
        standby.execute("update status set state = 'on its own'")
        done = document_of(of_standby.site.call("backup", POLICY, "--incremental", "--json"))
        assert done["depends_on"] == []
        assert any(f"on timeline 2 now, base {full} is of 1" in line for line in done["warnings"])
        assert of_standby.state_at("--at", "immediate") == "on its own"


@pytest.fixture
def half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that lets pg_combinebackup do half of its work, and ``then`` what it is told."""

    def set_up(then: str) -> None:
        folder, real = tmp_path / "bin", programs_of(NEWEST)
        folder.mkdir()
        for program in real.iterdir():
            (folder / program.name).symlink_to(program)
        script = folder / "pg_combinebackup"
        script.unlink()
        script.write_text(HALF_WAY.format(real=real / "pg_combinebackup", then=then))
        script.chmod(0o755)
        monkeypatch.setenv(FOLDERS_VARIABLE, str(folder))

    return set_up


STAND_STILL = 'exec cat "$out/never"'


def start_drkit(walk: Walk, *words: str, before: str = "") -> subprocess.Popen[bytes]:
    """Start ``drkit`` as a process of its own; ``before`` is Python that it does first."""
    script = f"{before}\nfrom drkit.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=walk.site.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def start_restore(walk: Walk, into: Path, before: str = "") -> subprocess.Popen[bytes]:
    return start_drkit(walk, "restore", POLICY, "--into", str(into), "--at", "immediate", before=before)


def kill_when(child: subprocess.Popen[bytes], begun: Callable[[], object]) -> None:
    """Kill drkit with SIGKILL once that has begun."""
    try:
        until(lambda: begun() or child.poll() is not None, "it is being combined")
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL


def chain_of(walk: Walk) -> str:
    """Take a full base and one on top of it; return the latter's id."""
    walk.base()
    walk.set("after the kill")
    return walk.base("--incremental")


def comes_back_whole(walk: Walk, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that the next restore, with the real tool, does all of it."""
    monkeypatch.setenv(FOLDERS_VARIABLE, str(programs_of(NEWEST)))
    done = walk.restore("--into", str(into), "--at", "immediate")
    assert done.returncode == 0, done.stderr
    assert not {path.name for path in into.iterdir()} & {MARKER, "drkit-chain", "drkit-spool"}
    with started(walk.server, into) as copy:
        assert copy.execute("select state from status") == [("after the kill",)]


def starts_clean(walk: Walk, into: Path, killed: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that a killed restore left nothing that runs, and that the next one is whole."""
    assert (into / MARKER).exists()
    assert not (into / "global" / "pg_control").exists(), "no server starts on half of it"
    until(lambda: not processes_of(str(into)), "nothing of it runs any more, pg_combinebackup neither")
    comes_back_whole(walk, into, monkeypatch)
    assert list(Path(tempfile.gettempdir()).glob(f"drkit-work-*-{killed.pid}-*")) == []


def test_killed_while_the_chain_is_combined(
    walk: Walk, half_way: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain_of(walk)
    half_way(STAND_STILL)
    with scratch_place() as place:
        child = start_restore(walk, place / "data")
        kill_when(child, (place / "data" / "drkit-chain" / "combined" / "PG_VERSION").exists)
        starts_clean(walk, place / "data", child, monkeypatch)


def test_a_drill_killed_while_the_chain_is_combined(
    walk: Walk, half_way: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain_of(walk)
    half_way(STAND_STILL)
    with scratch_place() as place:
        monkeypatch.setenv("DRKIT_SCRATCH", str(place))
        child = start_drkit(walk, "drill", POLICY, "--level", "replays")
        kill_when(child, lambda: list(place.glob("drkit-*/data/drkit-chain/combined/PG_VERSION")))
        (scratch,) = place.iterdir()
        until(lambda: not processes_of(str(scratch)), "pg_combinebackup does not outlive drkit")
        assert walk.site.call("run", "list").returncode == 0
        assert list(place.iterdir()) == [], "the next command, whichever, takes away what was left"
        monkeypatch.setenv(FOLDERS_VARIABLE, str(programs_of(NEWEST)))
        drill = walk.site.call("drill", POLICY, "--level", "replays", "--json")
        assert (drill.returncode, document_of(drill)["verdict"]) == (0, "passed"), drill.stderr
        assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("then", "status", "words"),
    [
        ("kill -KILL $$", 5, ["pg_combinebackup was killed by signal SIGKILL", "dmesg"]),
        (
            """echo 'pg_combinebackup: error: could not write file "x": No space left on device' >&2; exit 1""",
            5,
            ["pg_combinebackup cannot combine the chain", 'could not write file "x": No space left on device'],
        ),
        (
            """echo 'pg_combinebackup: error: full backup must be first' >&2; exit 1""",
            8,
            ["pg_combinebackup refuses the chain", "full backup must be first"],
        ),
        ("exit 1", 8, ["pg_combinebackup refuses the chain", "it ended with status 1"]),
    ],
    ids=["killed", "no space", "refused", "without a word"],
)
def test_pg_combinebackup_that_fails_is_named_and_leaves_nothing(
    walk: Walk,
    half_way: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    status: int,
    words: list[str],
) -> None:
    newest = chain_of(walk)
    half_way(then)
    with scratch_place() as place:
        done = walk.restore("--into", str(place / "data"), "--at", "immediate")
        assert done.returncode == status, done.stderr
        for word in [*words, newest]:
            assert word in done.stderr
        assert list((place / "data").iterdir()) == []
        if status == 5:
            comes_back_whole(walk, place / "data", monkeypatch)


def test_killed_while_the_outcome_takes_its_place(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    chain_of(walk)
    dies = (
        "import os, signal; from pathlib import Path; plain, left = Path.rename, [7]\n"
        "def rename(self, target):\n"
        "    if 'drkit-chain/combined' in str(self):\n"
        "        left[0] -= 1\n"
        "        left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(self, target)\n"
        "Path.rename = rename"
    )
    with scratch_place() as place:
        child = start_restore(walk, place / "data", dies)
        assert child.wait(timeout=60) == -signal.SIGKILL
        assert (place / "data" / "drkit-chain").exists()
        starts_clean(walk, place / "data", child, monkeypatch)
