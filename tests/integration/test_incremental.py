"""Incremental bases of a real server: taken, restored, drilled, and refused by name where they cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drkit.binaries import FOLDERS_VARIABLE
from tests.fixtures.recovery import POLICY, Walk, document_of, restored, walking
from tests.fixtures.site import ReadySite
from tests.fixtures.versions import NEWEST, programs_of


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let drkit find the programs of a major that takes incremental backups."""
    programs = programs_of(NEWEST)
    monkeypatch.setenv(FOLDERS_VARIABLE, str(programs))
    return programs


@pytest.fixture
def walk(ready_site: ReadySite, newest: Path) -> Iterator[Walk]:
    """Lend a server that knows what changed."""
    with walking(ready_site, newest, summarize_wal="on") as walk:
        yield walk


def manifest_of(walk: Walk, artifact_id: str) -> dict[str, Any]:
    """Return an artifact's manifest."""
    manifest: dict[str, Any] = document_of(walk.site.call("show", artifact_id, "--json"))["manifest"]
    return manifest


def test_a_chain_is_restored_and_drilled(walk: Walk) -> None:
    folder = walk.server.folder / "space"
    folder.mkdir()
    shutil.chown(folder, "postgres", "postgres")
    walk.server.execute(f"create tablespace space location '{folder}'")
    walk.server.execute("create table big as select g, md5(g::text) as t from generate_series(1, 50000) as g")
    walk.server.execute("create table far tablespace space as select g from generate_series(1, 20000) as g")
    full = walk.base()
    walk.set("first")
    walk.server.execute("update big set t = 'one' where g = 1; delete from far where g = 1")
    first = walk.base("--incremental")
    walk.set("second")
    walk.server.execute("update big set t = 'two' where g = 2; insert into far values (0)")
    second = walk.base("--incremental")
    manifests = [manifest_of(walk, item) for item in (full, first, second)]
    assert [item["depends_on"] for item in manifests] == [[], [full], [full, first]]
    assert [item["features"] for item in manifests] == [[], ["incremental-base"], ["incremental-base"]]
    sizes = [sum(item["plain_bytes"] for item in manifest["objects"]) for manifest in manifests]
    wal_bytes = 2 * (16 << 20)  # of segments that lie between start and stop
    assert max(sizes[1:]) < wal_bytes < sizes[0]
    plan = document_of(walk.restore("--plan", "--into", "unused", "--at", "immediate", "--json"))
    assert plan["base"]["depends_on"] == [full, first]

    with restored(walk, "--at", "immediate") as server:
        assert server.execute("select state from status") == [("second",)]
        assert server.execute("select t from big where g in (1, 2) order by g") == [("one",), ("two",)]
        assert server.execute("select count(*), sum(hashtext(big::text)) from big") == walk.server.execute(
            "select count(*), sum(hashtext(big::text)) from big"
        )
        assert server.execute("select count(*), sum(g) from far") == walk.server.execute(
            "select count(*), sum(g) from far"
        )
    with restored(walk, "--at", "immediate", "--artifact", first) as server:
        assert server.execute("select state from status") == [("first",)]
    drill = walk.site.call("drill", POLICY, "--level", "same-data", "--json")
    assert drill.returncode == 0, drill.stdout + drill.stderr
    assert document_of(drill)["verdict"] == "passed"
