"""The document for recovery by hand, for a base backup and its log: to a moment, with stock tools and no drkit."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drkit.operations.init import init_site
from tests.fixtures.postgres import PostgresServer, as_server_user
from tests.fixtures.recovery import POLICY, Walk, scratch_place, walking
from tests.fixtures.site import ReadySite
from tests.integration.test_recovery_by_hand import PHYSICAL, Recovery, flip_bit, link_tools


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Lend a log over two bases, one of each way, with a tablespace; its newest state is in an unfinished segment."""
    made = init_site(tmp_path_factory.mktemp("by-hand") / "site", principal="test@example.org")
    made.policy_file.unlink()
    with walking(ReadySite(made.folder, made)) as walk, scratch_place() as space:
        shutil.chown(space, "postgres", "postgres")
        walk.server.execute(f"create tablespace elsewhere location '{space}'")
        walk.server.execute("create table spaced tablespace elsewhere as select 7 as g")
        policy = walk.site.folder / "policies" / f"{POLICY}.yaml"
        text = policy.read_text()
        walk.base()
        walk.set("after the first base")
        walk.switch()
        policy.write_text(text.replace("{method: base}", "{method: base, via: local, parallel: 2}"))
        walk.base()
        walk.set("after the second base")
        walk.set("one more")
        walk.switch()
        walk.ship()
        walk.set("in the unfinished segment")
        walk.server.execute("checkpoint")  # it acknowledges commits before they are written
        ((name,),) = walk.server.execute("select pg_walfile_name(pg_current_wal_flush_lsn())")
        walk.ship_partial(walk.server.folder / "data" / "pg_wal" / name)
        yield walk


@pytest.fixture
def person(walk: Walk) -> Iterator[Recovery]:
    """Lend a person with a copy of the bucket, in a folder of the user that the server is to run as."""
    with scratch_place() as folder:
        tools = folder / "tools"
        tools.mkdir()
        shutil.copytree(walk.site.store_folder, folder / "bucket")
        shutil.copy(walk.site.allowed_signers, folder / "allowed_signers")
        shutil.copy(walk.site.escrow_identity, folder / "escrow.age")
        artifacts = sorted(path.name for path in (folder / "bucket/policies" / POLICY / "artifacts").iterdir())
        person = Recovery(
            *(folder, link_tools(tools), folder / "bucket", POLICY, artifacts[0]),
            *(folder / "escrow.age", folder / "allowed_signers", walk.server),
        )
        own(folder)
        yield person


def own(folder: Path) -> None:
    """Give everything to the server's user."""
    subprocess.run(["chown", "-R", "postgres:postgres", str(folder)], check=True)


def recover(person: Recovery) -> subprocess.CompletedProcess[str]:
    """Follow the document as the server's user."""
    return person.follow(PHYSICAL, user=as_server_user())


@contextlib.contextmanager
def recovered(person: Recovery) -> Iterator[PostgresServer]:
    """Follow the document, and lend the server that it leads to."""
    try:
        done = recover(person)
        assert done.returncode == 0, done.stdout + done.stderr
        yield PostgresServer(person.folder / "work", 5432, person.server.bin)
    finally:
        stop(person)


def stop(person: Recovery) -> None:
    """Stop the server, if there is one."""
    argv = [str(person.server.bin / "pg_ctl"), "-D", str(person.folder / "data"), "-m", "immediate", "-w", "stop"]
    subprocess.run(argv, capture_output=True, check=False, cwd="/", **as_server_user())


def state(server: PostgresServer) -> str:
    ((found,),) = server.execute("select state from status")
    return str(found)


def newer(person: Recovery) -> Recovery:
    """Let the person take the second base."""
    artifacts = sorted(path.name for path in (person.bucket / "policies" / POLICY / "artifacts").iterdir())
    return replace(person, artifact=artifacts[1])


@pytest.mark.parametrize("mark", ["after the first base", "after the second base"])
def test_a_streamed_base_is_brought_to_a_moment(person: Recovery, walk: Walk, mark: str) -> None:
    assert not any((person.tools / name).exists() for name in ("drkit", "python3"))
    with recovered(replace(person, target=walk.marks[mark].after.isoformat(sep=" "))) as server:
        assert state(server) == mark
        assert server.execute("select g from spaced") == [(7,)]
        ((location,),) = server.execute(
            "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'"
        )
        assert Path(location).parent == person.folder / "spaces"
        assert server.execute("show archive_mode") == [("off",)]


def test_a_base_of_several_tars_is_brought_to_the_newest_state(person: Recovery) -> None:
    with recovered(newer(person)) as server:
        assert state(server) == "in the unfinished segment"
        assert server.execute("select g from spaced") == [(7,)]


def test_a_timeline_is_pinned_by_its_number(person: Recovery, walk: Walk) -> None:
    target = walk.marks["after the second base"].after.isoformat(sep=" ")
    with recovered(replace(newer(person), target=target, timeline="1")) as server:
        assert state(server) == "after the second base"


def test_a_moment_after_the_last_commit_is_refused(person: Recovery) -> None:
    done = recover(replace(person, target="2999-01-01 00:00:00+00:00"))
    assert done.returncode != 0
    log = (person.folder / "work" / "server.log").read_text()
    assert "recovery ended before configured recovery target was reached" in log


@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_a_damaged_segment_stops_the_recovery_instead_of_ending_it(person: Recovery, walk: Walk, damage: str) -> None:
    segment = segment_of(walk, "one more")
    path = next((person.bucket / "policies" / POLICY / "logs").rglob(f"{segment}.zst.age"))
    if damage == "flip":
        flip_bit(path, 300)
    else:
        path.unlink()
    done = recover(newer(person))
    stop(person)
    assert done.returncode != 0
    log = (person.folder / "work" / "server.log").read_text()
    assert f'could not restore file "{segment}" from archive' in log


def segment_of(walk: Walk, mark: str) -> str:
    ((name,),) = walk.server.execute(f"select pg_walfile_name('{walk.marks[mark].lsn}')")
    return str(name)


@pytest.mark.parametrize("what", ["manifest", "signature"])
def test_a_log_that_is_not_as_it_was_signed_stops_before_the_server_starts(person: Recovery, what: str) -> None:
    manifest = sorted((person.bucket / "policies" / POLICY / "logs").rglob("*.json"))[0]
    if what == "manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b'"timeline":1', b'"timeline":2'))
    else:
        manifest.with_name(manifest.name + ".sig").unlink()
    done = recover(person)
    assert done.returncode != 0
    assert not (person.folder / "work" / "server.log").exists()


def test_a_changed_file_in_the_base_stops_before_anything_is_unpacked(person: Recovery) -> None:
    flip_bit(person.artifact_folder / "base.zst.age", 4000)
    done = recover(person)
    assert done.returncode != 0
    assert not (person.folder / "data").exists()


def test_a_folder_that_is_not_empty_is_left_alone(person: Recovery) -> None:
    (person.folder / "data").mkdir()
    (person.folder / "data" / "mine").write_text("mine")
    own(person.folder)
    done = recover(person)
    assert done.returncode != 0
    assert [path.name for path in (person.folder / "data").iterdir()] == ["mine"]
