"""A disk that is full in the middle of a replay: named, with what to type, and no verdict on the backup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drkit.operations import restore_base
from tests.fixtures.disks import fill, small_disk
from tests.fixtures.recovery import POLICY, Walk, document_of, scratch_place, started, walking
from tests.fixtures.site import ReadySite


@pytest.fixture
def walk(ready_site: ReadySite) -> Iterator[Walk]:
    """Lend a base, and a log that makes the data forty mebibytes larger."""
    with walking(ready_site) as walk:
        walk.base()
        for number in range(3):
            rows = "select g, repeat(md5(g::text), 30) as t from generate_series(1, 14000) as g"
            walk.server.execute(f"create table grown_{number} as {rows}")
            walk.switch()
        walk.set("grown")
        walk.switch()
        walk.ship()
        yield walk


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch, disk: Path, leave_bytes: int, at: str) -> Iterator[None]:
    """Let the disk be full from the moment on at which a step of `restore_base` begins."""
    plain = getattr(restore_base, at)

    def step(*arguments: object) -> object:
        fill(disk, leave_bytes)
        return plain(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(restore_base, at, step)
        yield
    (disk / "filler").unlink()


# `_start`: the settings are written, the server extends a table; `_prepare`: there is no room for its settings either.
MOMENTS = pytest.mark.parametrize(("at", "leave_bytes"), [("_start", 4 << 20), ("_start", 0), ("_prepare", 0)])


@MOMENTS
def test_a_restore_names_the_folder_and_what_to_type(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, at: str, leave_bytes: int
) -> None:
    with scratch_place() as place, small_disk(place, "700m") as disk:
        into = disk / "data"
        with full(monkeypatch, disk, leave_bytes, at):
            done = walk.restore("--into", str(into))
        assert done.returncode == 5, done.stderr
        message = next(line for line in done.stderr.splitlines() if line.startswith("drkit: "))
        assert re.search("is full|No space left on device", message)
        assert str(disk) in message
        assert "hint: " in done.stderr
        assert list(into.iterdir()) == []
        assert walk.restore("--into", str(into)).returncode == 0
        with started(walk.server, into) as copy:
            assert copy.execute("select state from status") == [("grown",)]


@MOMENTS
def test_a_drill_says_that_it_is_not_the_backup(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, at: str, leave_bytes: int
) -> None:
    with scratch_place() as place, small_disk(place, "700m") as disk:
        monkeypatch.setenv("DRKIT_SCRATCH", str(disk))
        with full(monkeypatch, disk, leave_bytes, at):
            drill = walk.site.call("drill", POLICY, "--level", "replays", "--json")
        assert drill.returncode == 5, drill.stdout + drill.stderr
        document = document_of(drill)
        assert document["verdict"] == "inconclusive"
        assert re.search("is full|No space left on device", document["error"])
        assert str(disk) in document["error"]
        assert document["teardown"] == "nothing left behind"
        assert list(disk.iterdir()) == []
        again = walk.site.call("drill", POLICY, "--level", "replays", "--json")
        assert (again.returncode, document_of(again)["verdict"]) == (0, "passed"), again.stderr
