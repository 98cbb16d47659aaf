"""Point-in-time recovery through the command line, on real servers: each target shows exactly the state it names."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drkit import age
from drkit.keys import recipients_of
from drkit.operations.init import init_site
from drkit.stream import compress
from drkit.wal import parse_lsn, segment_of
from tests.fixtures.physical import standby_of
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.recovery import (
    POLICY,
    Walk,
    document_of,
    processes_of,
    promoted,
    restored,
    scratch_place,
    started,
    walking,
)
from tests.fixtures.site import ReadySite
from tests.fixtures.waiting import wait_until


@dataclass(frozen=True)
class Scene:
    """The whole walk, shipped: bases ``first`` and ``second`` on timeline 1, then a promoted standby on timeline 2."""

    walk: Walk
    first: str
    second: str


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = init_site(tmp_path_factory.mktemp("pitr") / "site", principal="test@example.org")
    made.policy_file.unlink()
    with walking(ReadySite(made.folder, made)) as walk:
        walk.set("one")
        first = walk.base()
        walk.set("two")
        walk.set("three")
        walk.server.execute("select pg_create_restore_point('before four')")
        walk.set("four")
        walk.switch()
        second = walk.base()
        walk.set("five")
        walk.switch()
        with standby_of(walk.server) as standby:
            walk.set("six")
            walk.switch()
            promoted(standby)
            walk.set("seven on two", standby)
            walk.switch(standby)
        walk.set("seven on one")
        walk.switch()
        walk.ship()
        yield Scene(walk, first, second)


def test_immediate_shows_the_base(scene: Scene) -> None:
    assert scene.walk.state_at("--at", "immediate", "--artifact", scene.first) == "one"


@pytest.mark.parametrize(
    "kind",
    ["xid", "xid exclusive", "time", "time of the commit", "time exclusive", "lsn", "name", "latest", "timeline 1"],
)
def test_every_target_shows_its_state(scene: Scene, kind: str) -> None:
    marks = scene.walk.marks
    words, state = {
        "xid": (["--at", f"xid:{marks['two'].xid}", "--artifact", scene.first], "two"),
        "xid exclusive": (["--at", f"xid:{marks['two'].xid}", "--exclusive", "--artifact", scene.first], "one"),
        "time": (["--at", marks["three"].after.isoformat()], "three"),
        "time of the commit": (["--at", marks["three"].committed_at.isoformat()], "three"),
        "time exclusive": (["--at", marks["three"].committed_at.isoformat(), "--exclusive"], "two"),
        "lsn": (["--at", f"lsn:{marks['five'].lsn}"], "five"),
        "name": (["--at", "name:before four", "--artifact", scene.first], "three"),
        "latest": ([], "seven on two"),
        "timeline 1": (["--timeline", "1"], "seven on one"),
    }[kind]
    assert scene.walk.state_at(*words) == state


def test_no_start_lays_out_what_the_owner_can_start(scene: Scene) -> None:
    walk = scene.walk
    with scratch_place() as place:
        into = place / "odd % 'name'" / "data"
        into.parent.mkdir(mode=0o755)
        done = walk.restore("--into", str(into), "--no-start", "--at", walk.marks["three"].after.isoformat())
        assert done.returncode == 0, done.stderr
        assert "laid out" in done.stdout
        assert (into / "recovery.signal").exists()
        assert into.stat().st_mode & 0o777 == 0o700
        assert into.owner() == "postgres"
        with started(walk.server, into) as server:
            wait_until_promoted(server)
            assert server.execute("select state from status") == [("three",)]
            assert server.execute("show archive_mode") == [("off",)]
            assert server.execute("show recovery_target_timeline") == [("2",)], "pinned, to the one in use"


def wait_until_promoted(server: PostgresServer) -> None:
    wait_until(lambda: server.execute("select pg_is_in_recovery()") == [(False,)], "the end of recovery", 30)


def test_what_is_left_acts_on_nothing(scene: Scene) -> None:
    with restored(scene.walk, "--at", "immediate") as server:
        shown = dict(server.execute("select name, setting from pg_settings"))
        assert (shown["archive_mode"], shown["primary_conninfo"], shown["primary_slot_name"]) == ("off", "", "")
        assert shown["restore_command"] == shown["recovery_target"] == ""
        assert shown["max_logical_replication_workers"] == "0", "subscriptions would go on where the source's are"
        assert shown["fsync"] == "off", "the settings of the source are back: its own say so"
        assert server.execute("select count(*) from pg_replication_slots") == [(0,)]
        names = {path.name for path in (server.folder / "data").iterdir()}
    assert not names & {"recovery.signal", "drkit-restore.unfinished", "drkit-spool", "wal-to-replay", "tablespaces"}
    assert processes_of(str(server.folder)) == []


def test_a_plan_changes_nothing_and_says_everything(scene: Scene) -> None:
    with scratch_place() as place:
        at = scene.walk.marks["three"].after.isoformat()
        done = scene.walk.restore("--at", at, "--into", str(place / "data"), "--plan")
        assert done.returncode == 0, done.stderr
        assert list(place.iterdir()) == []
    for words in ("to bring orders to", "base", "wal", "all present", "nothing that was committed", "needs", "restore"):
        assert words in done.stdout
    plan = document_of(scene.walk.restore("--at", at, "--into", str(place / "data"), "--plan", "--json"))
    assert plan["base"]["artifact_id"] == scene.first, "the newest base before the moment"
    assert plan["timeline"] == 2, "the one in use, of which the moment is a part"
    assert [item["kind"] for item in plan["wal"]][-1] == "segment"


def refused(scene: Scene, status: int, *words: str) -> str:
    """Restore, expect a refusal before the folder is made, and return what it says."""
    with scratch_place() as place:
        done = scene.walk.restore("--into", str(place / "data"), *words)
        assert done.returncode == status, done.stdout + done.stderr
        assert list(place.iterdir()) == [], "refused before anything was made"
    return done.stderr


def test_a_target_before_every_base_is_refused(scene: Scene) -> None:
    assert "no base is older" in refused(scene, 9, "--at", "2020-01-01T00:00:00+00:00")
    assert "no base is older" in refused(scene, 9, "--at", "lsn:0/1000000")


@pytest.mark.parametrize("kind", ["time", "lsn"])
def test_a_base_later_than_the_target_is_refused(scene: Scene, kind: str) -> None:
    """It was asked for by its id, and an older one would do; but it is not what was asked for."""
    two = scene.walk.marks["two"]
    at = two.after.isoformat() if kind == "time" else f"lsn:{two.lsn}"
    said = refused(scene, 9, "--at", at, "--artifact", scene.second)
    assert scene.second in said
    assert scene.walk.restore("--plan", "--at", at, "--artifact", scene.first).returncode == 0


def test_a_target_after_the_last_commit_is_refused_with_its_stamp(scene: Scene) -> None:
    said = refused(scene, 9, "--at", datetime.now(UTC).isoformat())
    assert "the last commit that is stored is of" in said


def test_a_timeline_that_does_not_lead_on_from_the_base_is_refused(scene: Scene) -> None:
    refused(scene, 9, "--timeline", "7")
    stray = "1\t0/1800000\tbefore the first base\n"
    name = "00000009.history"
    (scene.walk.archive / name).write_text(stray)
    scene.walk.ship()
    try:
        assert "no base of orders leads to timeline 9" in refused(scene, 9, "--timeline", "9")
        done = scene.walk.restore("--plan")
        assert "(timeline 2)" in done.stdout, "a stray history file is not followed"
    finally:
        (scene.walk.archive / name).unlink()


def test_a_transaction_that_the_wal_does_not_have_is_an_error_and_leaves_nothing(scene: Scene) -> None:
    with scratch_place() as place:
        done = scene.walk.restore("--into", str(place / "data"), "--at", "xid:99999999", "--artifact", scene.second)
        assert done.returncode == 9, done.stderr
        assert "was not reached" in done.stderr
        assert "last commit that was replayed" in done.stderr
        assert list((place / "data").iterdir()) == []
        assert processes_of(str(place)) == []


def test_a_folder_that_cannot_become_a_server_is_refused(scene: Scene) -> None:
    with scratch_place() as place:
        into = place / "data"
        into.mkdir()
        (into / "somebody's").write_text("x")
        done = scene.walk.restore("--into", str(into))
        assert (done.returncode, "is not empty" in done.stderr) == (5, True)
        (into / "somebody's").unlink()
        done = scene.walk.restore("--into", str(into))
        assert (done.returncode, "does not run as root" in done.stderr) == (5, True)
        done = scene.walk.restore("--into", str(place / "not" / "there"))
        assert (done.returncode, "there is no folder" in done.stderr) == (5, True)
    done = scene.walk.restore("--into", str(scene.walk.server.folder / "data"))
    assert (done.returncode, "a server is running in" in done.stderr) == (5, True)


@contextmanager
def changed(path: Path) -> Iterator[None]:
    """Put an object back as it was after the test has changed it."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def last_segment_of_one(scene: Scene) -> Path:
    """Return the object of the segment that state five lies in, which is on timeline 1."""
    lsn = parse_lsn(scene.walk.marks["five"].lsn)
    return scene.walk.log_object(segment_of(lsn, 1, 16 << 20).name)


def damaged(scene: Scene, path: Path, damage: str) -> bytes:
    """Return what an object becomes; empty for nothing at all."""
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "truncated":
        return content[:-100]
    if damage == "flipped":
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "swapped":
        return next(item for item in scene.walk.log_objects() if item.name[:8] == path.name[:8]).read_bytes()
    if damage == "another cluster's":
        recipients = recipients_of(scene.walk.site.recipients, accept_single_key=False)
        return b"".join(age.encrypt(compress([foreign(scene, path)], 1), recipients))
    return b""


def foreign(scene: Scene, path: Path) -> bytes:
    """Return a segment as another cluster would have written it."""
    strange = bytearray((scene.walk.archive / path.name.removesuffix(".zst.age")).read_bytes())
    strange[24:32] = (7).to_bytes(8, "little")
    return bytes(strange)


@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped", "swapped", "another cluster's"])
def test_a_damaged_segment_is_named_and_earlier_moments_are_fine(scene: Scene, damage: str) -> None:
    path = last_segment_of_one(scene)
    name = path.name.removesuffix(".zst.age")
    with changed(path):
        content = damaged(scene, path, damage)
        same_size = len(content) == path.stat().st_size
        path.unlink()
        if content:
            path.write_bytes(content)
        with scratch_place() as place:
            into = place / "data"
            done = scene.walk.restore("--into", str(into), "--at", f"lsn:{scene.walk.marks['five'].lsn}")
            assert done.returncode == (8 if same_size else 9), done.stdout + done.stderr
            assert name in done.stderr
            assert not into.exists() or list(into.iterdir()) == []
        if damage in ("flipped", "removed"):
            assert scene.walk.state_at("--at", scene.walk.marks["three"].after.isoformat()) == "three"
        else:
            plan = scene.walk.restore("--plan", "--at", scene.walk.marks["three"].after.isoformat())
            assert plan.returncode == 0
        if not same_size:  # what has the right size is only found by reading it
            found = document_of(scene.walk.site.call("timeline", POLICY, "--json"))
            assert name in {gap["first_missing"] for gap in found["gaps"]}
            checked = scene.walk.site.call("check", POLICY, "--json")
            assert (checked.returncode, name in checked.stdout) == (8, True)


def test_wal_of_another_cluster_is_named(scene: Scene) -> None:
    path = last_segment_of_one(scene)
    name = path.name.removesuffix(".zst.age")
    manifests = sorted(path.parent.glob("*.json*"))
    with changed(path), set_aside(manifests):
        content = damaged(scene, path, "another cluster's")
        path.unlink()
        path.write_bytes(content)
        with scratch_place() as place:
            done = scene.walk.restore("--into", str(place / "data"), "--timeline", "1")
        assert done.returncode == 8, done.stdout + done.stderr
        assert name in done.stderr
        assert "another cluster" in done.stderr


@contextmanager
def set_aside(paths: list[Path]) -> Iterator[None]:
    """Take objects away for a while: the WAL is then used although no signed manifest lists it."""
    kept = [(path, path.read_bytes()) for path in paths]
    for path in paths:
        path.unlink()
    try:
        yield
    finally:
        for path, content in kept:
            path.write_bytes(content)


@pytest.mark.parametrize("when", ["write", "replay"])
def test_a_restore_that_is_killed_starts_clean_the_next_time(scene: Scene, when: str) -> None:
    walk = scene.walk
    with scratch_place() as place:
        into = place / "data"
        words = [sys.executable, "-c", "from drkit.cli import main; main()", "restore", POLICY, "--into", str(into)]
        child = subprocess.Popen(words, cwd=walk.site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            trace = into / ("global" if when == "write" else "postmaster.pid")
            while not trace.exists():
                assert child.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            child.kill()
            child.wait()
        assert (into / "drkit-restore.unfinished").exists()
        wait_until(lambda: not processes_of(str(into)), "the server, which outlived drkit", 30)
        done = walk.restore("--into", str(into), "--at", "immediate")
        assert done.returncode == 0, done.stderr
        assert list(Path(tempfile.gettempdir()).glob(f"drkit-work-*-{child.pid}-*")) == []
        with started(walk.server, into) as server:
            assert server.execute("select state from status") == [("four",)]
