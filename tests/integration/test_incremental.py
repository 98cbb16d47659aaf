"""Incremental bases of a real server: taken, restored, drilled, and refused by name where they cannot be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drkit.binaries import FOLDERS_VARIABLE
from tests.fixtures.physical import PHYSICAL, standby_of, start_server
from tests.fixtures.postgres import PostgresServer, as_server_user, running_postgres
from tests.fixtures.recovery import POLICY, Walk, document_of, promoted, restored, scratch_place, started
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite
from tests.fixtures.versions import NEWEST, programs_of

SETTINGS = PHYSICAL | {"summarize_wal": "on", "track_commit_timestamp": "on"}


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drkit find the programs of a major that takes incremental backups."""
    monkeypatch.setenv(FOLDERS_VARIABLE, str(programs_of(NEWEST)))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Lend a server that knows what changed, with a table and a tablespace."""
    with running_postgres(programs=programs_of(NEWEST), **SETTINGS) as server:
        folder = server.folder / "space"
        folder.mkdir()
        shutil.chown(folder, "postgres", "postgres")
        server.execute(f"create tablespace space location '{folder}'")
        server.execute("create table status (state text); insert into status values ('born')")
        server.execute("create table big as select g, md5(g::text) as t from generate_series(1, 50000) as g")
        server.execute("create table far tablespace space as select g from generate_series(1, 20000) as g")
        yield server


@pytest.fixture
def walk(server: PostgresServer, ready_site: ReadySite, tmp_path: Path) -> Walk:
    """Lend the server with a policy of its own."""
    point_at(ready_site, server)
    return Walk(ready_site, server, tmp_path)


def point_at(site: ReadySite, server: PostgresServer) -> None:
    """Make the policy one of that server's."""
    path = site.write_policy(POLICY, site.write_secret("source-url", server.url().reveal()))
    path.write_text(path.read_text().replace("- {method: dump}", "- {method: base}"))


def incremental(walk: Walk) -> subprocess.CompletedProcess[str]:
    return walk.site.call("backup", POLICY, "--incremental", "--json")


def refused(walk: Walk, status: int, *words: str) -> None:
    """Expect that no incremental base is taken, and why."""
    done = walk.site.call("backup", POLICY, "--incremental")
    assert done.returncode == status, done.stderr
    for word in words:
        assert word in done.stderr
    assert "--method base" in done.stderr, "the hint leads to a full one"


def manifest_of(walk: Walk, artifact_id: str) -> dict[str, Any]:
    manifest: dict[str, Any] = document_of(walk.site.call("show", artifact_id, "--json"))["manifest"]
    return manifest


def artifact_folder(walk: Walk, artifact_id: str) -> Path:
    return walk.site.store_folder / "policies" / POLICY / "artifacts" / artifact_id


def test_a_policy_says_how_often_a_base_is_full(walk: Walk) -> None:
    rule = walk.site.folder / "policies" / f"{POLICY}.yaml"
    plain = rule.read_text()

    def take(full_every: str) -> dict[str, Any]:
        rule.write_text(plain.replace("{method: base}", f"{{method: base, full_every: {full_every}}}"))
        return document_of(walk.site.call("backup", POLICY, "--json"))

    first = take("1h")
    assert first["depends_on"] == []
    second = take("1h")
    assert second["depends_on"] == [first["artifact_id"]]
    assert take("1h")["depends_on"] == [first["artifact_id"], second["artifact_id"]]
    full = take("100ms")
    assert full["depends_on"] == []
    assert not any("a full base is taken" in warning for warning in full["warnings"])
    shutil.rmtree(walk.site.folder / "var" / "bases")
    next(artifact_folder(walk, full["artifact_id"]).glob("*.age")).write_bytes(b"")
    again = take("1h")
    assert again["depends_on"] == []
    assert any(full["artifact_id"] in warning and "a full base is taken" in warning for warning in again["warnings"])


def test_a_chain_is_restored_and_drilled(walk: Walk) -> None:
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
    wal_bytes = 2 * (16 << 20)  # of the segments between start and stop, which every base has
    assert max(sizes[1:]) < wal_bytes < sizes[0]
    listed = document_of(walk.site.call("list", "--json"))["artifacts"]
    assert {item["artifact_id"]: item["parent"] for item in listed} == {full: "", first: full, second: first}
    assert walk.site.call("list").stdout.count("base (incremental)") == 2
    assert document_of(walk.site.call("catalog", "rebuild", "--json"))
    plan = document_of(walk.restore("--plan", "--into", "unused", "--at", "immediate", "--json"))
    assert plan["base"]["depends_on"] == [full, first]

    everything = (
        "select (select sum(hashtext(big::text)) from big), (select sum(g) from far), (select count(*) from far)"
    )
    with restored(walk, "--at", "immediate") as copy:
        assert copy.execute("select state from status") == [("second",)]
        assert copy.execute("select t from big where g in (1, 2) order by g") == [("one",), ("two",)]
        assert copy.execute(everything) == walk.server.execute(everything)
    assert walk.state_at("--at", "immediate", "--artifact", first) == "first"
    drill = walk.site.call("drill", POLICY, "--level", "same-data", "--json")
    assert drill.returncode == 0, drill.stdout + drill.stderr
    assert document_of(drill)["verdict"] == "passed"
    assert "combined from 3 bases, every file as in the backup manifest" in drill.stdout
    verified = document_of(walk.site.call("verify", second, "--json"))["results"]
    assert [item["artifact_id"] for item in verified] == [full, first, second]


def test_a_base_from_the_data_folder_is_a_parent_too(walk: Walk) -> None:
    path = walk.site.folder / "policies" / f"{POLICY}.yaml"
    path.write_text(path.read_text().replace("{method: base}", "{method: base, via: local}"))
    walk.base()
    walk.set("after local")
    walk.base("--incremental")
    assert walk.state_at("--at", "immediate") == "after local"


def unpack_by_hand(walk: Walk, artifact_id: str, place: Path) -> tuple[Path, Path]:
    """Unpack an artifact with age, zstd and tar alone; return its data folder and its tablespace."""
    data, space = place / artifact_id / "data", place / artifact_id / "space"
    into = {"data": f"tar -x -C {data}", "tablespace": f"tar -x -C {space}", "manifest": f"cat >{data}/backup_manifest"}
    for folder in (data, space):
        folder.mkdir(parents=True, mode=0o700)
    for item in manifest_of(walk, artifact_id)["objects"]:
        sealed = walk.site.store_folder / item["key"]
        pipe = f"age -d -i {walk.site.restore_identity} {sealed} | zstd -dq | {into[item['kind']]}"
        subprocess.run(["bash", "-o", "pipefail", "-c", pipe], check=True)
    ((oid,),) = walk.server.execute("select oid from pg_tablespace where spcname = 'space'")
    (data / "pg_tblspc" / str(oid)).symlink_to(space)
    return data, space


def test_a_chain_is_restored_with_stock_tools(walk: Walk) -> None:
    full = walk.base()
    walk.set("by hand")
    walk.server.execute("insert into far values (-1)")
    child = walk.base("--incremental")
    with scratch_place() as place:
        members = [unpack_by_hand(walk, item, place) for item in (full, child)]
        outcome, far = place / "data", place / "far"
        combine = [str(walk.server.bin / "pg_combinebackup"), *(str(data) for data, _ in members)]
        subprocess.run([*combine, "-o", str(outcome), "-T", f"{members[-1][1]}={far}"], check=True)
        spaces = outcome / "tablespace_map"
        spaces.write_text(f"{spaces.read_text().split()[0]} {far}\n")
        subprocess.run(["chown", "-R", "postgres:postgres", str(outcome), str(far)], check=True)
        with started(walk.server, outcome) as copy:
            assert copy.execute("select state from status") == [("by hand",)]
            assert copy.execute("select count(*) from far where g = -1") == [(1,)]


class TestWithoutWhatItNeeds:
    """Each is said before a byte is copied, and no artifact comes of it."""

    def test_an_older_server(self, postgres: PostgresServer, walk: Walk) -> None:
        point_at(walk.site, postgres)
        walk.base()
        refused(walk, 5, "takes no incremental base backups: they came with 17")

    def test_summaries_that_are_off(self, walk: Walk) -> None:
        walk.base()
        walk.server.execute("alter system set summarize_wal = off")
        walk.server.execute("select pg_reload_conf()")
        try:
            refused(walk, 5, "summarize_wal = off", "alter system set summarize_wal = on")
        finally:
            walk.server.execute("alter system reset summarize_wal")
            walk.server.execute("select pg_reload_conf()")

    def test_summaries_that_are_gone(self, walk: Walk) -> None:
        full = walk.base()
        stop_lsn = manifest_of(walk, full)["position"]["stop_lsn"]
        walk.server.execute("update big set t = t where g < 1000")
        walk.server.execute("checkpoint")
        past = f"select 1 from pg_available_wal_summaries() where end_lsn > '{stop_lsn}'"
        until(lambda: walk.server.execute(past), "what came after the base is summarized")
        for summary in (walk.server.folder / "data" / "pg_wal" / "summaries").iterdir():
            summary.unlink()
        refused(walk, 5, f"cannot tell what changed since base {full}", "wal_summary_keep_time")

    def test_no_base(self, walk: Walk) -> None:
        refused(walk, 9, f"policy {POLICY} has no base that an incremental one could build on")

    def test_a_parent_that_is_damaged(self, walk: Walk) -> None:
        full = walk.base()
        (artifact_folder(walk, full) / "base.zst.age").unlink()
        refused(walk, 8, f"base {full} is not sound", "base.zst.age", "missing")

    def test_a_parent_that_is_gone(self, walk: Walk) -> None:
        full = walk.base()
        shutil.rmtree(artifact_folder(walk, full))
        refused(walk, 8, full, "gone without a tombstone")

    def test_a_parent_of_another_cluster(self, walk: Walk) -> None:
        full = walk.base()
        with running_postgres(programs=programs_of(NEWEST), stranger=True, **SETTINGS) as other:
            point_at(walk.site, other)
            refused(walk, 5, f"base {full} is of another cluster")

    def test_a_backup_manifest_that_is_not_kept_and_cannot_be_opened(self, walk: Walk) -> None:
        walk.base()
        aside = walk.site.folder / "aside"
        walk.site.restore_identity.rename(aside)
        parent = walk.base("--incremental")  # the host that takes backups opens none of them
        (kept,) = (walk.site.folder / "var" / "bases" / POLICY).iterdir()
        assert kept.name.startswith(parent)
        kept.write_text(kept.read_text().replace("base/", "bass/", 1))
        refused(walk, 7, f"nothing can be built on base {parent}: its backup manifest is not kept on this host")
        aside.rename(walk.site.restore_identity)
        assert incremental(walk).returncode == 0, "the stored one is opened"


class TestAFullOneInstead:
    """Where the server's history or pages are others than the parent's, nothing is built on it, and that is said."""

    def expect_full(self, walk: Walk, why: str) -> None:
        done = incremental(walk)
        assert done.returncode == 0, done.stderr
        document = document_of(done)
        assert document["depends_on"] == []
        assert any(f"a full base instead of an incremental one: {why}" in line for line in document["warnings"])

    def test_after_a_promotion(self, walk: Walk) -> None:
        full = walk.base()
        with standby_of(walk.server) as standby:
            promoted(standby)
            point_at(walk.site, standby)
            self.expect_full(walk, f"the server is on timeline 2 now, base {full} is of 1")

    def test_after_checksums_were_switched(self, ready_site: ReadySite, tmp_path: Path) -> None:
        with running_postgres(programs=programs_of(NEWEST), **SETTINGS) as server:
            point_at(ready_site, server)
            walk = Walk(ready_site, server, tmp_path)
            full = walk.base()
            server.stop("fast")
            switch = [str(server.bin / "pg_checksums"), "--disable", "-D", str(server.folder / "data")]
            subprocess.run(switch, check=True, capture_output=True, cwd=server.folder, **as_server_user())
            start_server(server)
            self.expect_full(walk, f"page checksums are off now and were on in base {full}")


class TestABrokenChain:
    """What was built on something that is lost cannot be restored, and every command says so by name."""

    @pytest.fixture
    def chain(self, walk: Walk) -> tuple[str, str]:
        full = walk.base()
        walk.set("changed")
        return full, walk.base("--incremental")

    def test_a_parent_that_is_gone(self, walk: Walk, chain: tuple[str, str]) -> None:
        full, child = chain
        shutil.rmtree(artifact_folder(walk, full))
        words = f"base {child} cannot be restored: it builds on {full}, which is in no store"
        with scratch_place() as place:
            for asked in ((), ("--artifact", child), ("--plan",)):
                done = walk.restore("--into", str(place / "data"), "--at", "immediate", *asked)
                assert (done.returncode, words in done.stderr) == (9, True), done.stderr
            assert not (place / "data").exists()
        verified = walk.site.call("verify", child)
        assert (verified.returncode, words in verified.stdout) == (8, True)
        checked = document_of(walk.site.call("check", "--json"))
        found = {item["code"]: item["subject"] for policy in checked["policies"] for item in policy["findings"]}
        assert found["parent-lost"] == child

    def test_a_parent_that_is_damaged(self, walk: Walk, chain: tuple[str, str]) -> None:
        full, _ = chain
        stored = artifact_folder(walk, full) / "base.zst.age"
        content = bytearray(stored.read_bytes())
        content[len(content) // 2] ^= 1
        stored.chmod(0o600)
        stored.write_bytes(content)
        with scratch_place() as place:
            done = walk.restore("--into", str(place / "data"), "--at", "immediate")
            assert done.returncode == 8
            assert f"{full}/base.zst.age" in done.stderr
            assert not (place / "data").exists()

    def test_without_the_tool_that_combines(
        self, walk: Walk, chain: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(FOLDERS_VARIABLE)
        with scratch_place() as place:
            done = walk.restore("--into", str(place / "data"), "--at", "immediate")
            assert done.returncode == 5
            assert f"pg_combinebackup for PostgreSQL {NEWEST} is not installed" in done.stderr
            assert not (place / "data").exists()
