"""Drills through the command line on real servers: what passes, what turns red and at which level, and the record."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drkit import age, bucket
from drkit.canonical import canonical_json
from drkit.engines import postgres_load
from drkit.engines.postgres_client import connect
from drkit.engines.postgres_load import ArchiveLoad
from drkit.engines.postgres_rows import RowsLoad
from drkit.keys import load_identities, load_signing_key, recipients_of
from drkit.model import Manifest
from drkit.signing import MANIFEST_NAMESPACE, sign
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.site import ReadySite

SLEEP = "select pg_sleep(600) is null"
CHECKS = """\
objectives: {{rpo: {rpo}, rto: 1h}}
drills:
  - name: rehearsal
    level: works
    checks:
      - {{name: invoices are there, sql: "select count(*) from invoice", expect: {invoices}}}
      - {{name: nobody is nameless, sql: "select count(*) = 0 from artist where name is null"}}
"""


@pytest.fixture
def site(ready_site: ReadySite, postgres: PostgresServer, chinook: str) -> ReadySite:
    """A site with one committed backup of Chinook, whose policy has a drill with two checks."""
    write_policy(ready_site, postgres, chinook)
    assert ready_site.drkit("backup", "shop").returncode == 0
    return ready_site


def write_policy(
    site: ReadySite, postgres: PostgresServer, database: str, *, invoices: int = 412, rpo: str = "1h"
) -> None:
    """Write policy ``shop`` for one database, with checks whose answers are known."""
    url = site.write_secret("source-url", postgres.url(database).reveal())
    path = site.write_policy("shop", url, more=CHECKS.format(invoices=invoices, rpo=rpo))
    path.write_text(path.read_text().replace("engine: postgres,", f"engine: postgres, databases: [{database}],"))


def drill(site: ReadySite, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run a drill; return exit status, document and what it said."""
    done = site.drkit("drill", "shop", "--json", *words)
    return done.returncode, json.loads(done.stdout), done.stderr


def results(document: dict[str, Any]) -> dict[str, str]:
    """Return level -> result."""
    return {name: level["result"] for name, level in document["levels"].items()}


def only_artifact(site: ReadySite) -> Path:
    """Return the folder of the only artifact."""
    (folder,) = (site.store_folder / "policies" / "shop" / "artifacts").iterdir()
    return folder


def resign(site: ReadySite, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the details of the only artifact as a writer with all keys could, signature and catalog included."""
    folder = only_artifact(site)
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes(), "manifest")
    identities = [key.identity for key in load_identities([site.restore_identity], None)]
    details = json.loads(b"".join(age.decrypt([age.dearmor(manifest.details)], identities)))
    change(details)
    recipients = recipients_of(site.recipients, accept_single_key=False)
    sealed = age.armor(b"".join(age.encrypt([canonical_json(details)], recipients)))
    data = manifest.model_copy(update={"details": sealed}).to_bytes()
    for name, content in (
        ("manifest.json", data),
        ("manifest.json.sig", sign(data, load_signing_key(site.signing_key), MANIFEST_NAMESPACE)),
    ):
        (folder / name).chmod(0o600)
        (folder / name).write_bytes(content)
    (site.folder / "var" / "catalog.db").unlink()
    assert site.drkit("catalog", "rebuild").returncode == 0


def test_a_sound_backup_passes_every_level_and_leaves_nothing_behind(site: ReadySite) -> None:
    status, document, _ = drill(site)
    assert (status, document["verdict"], document["findings"]) == (0, "passed", [])
    assert results(document) == {
        "exists": "passed",
        "intact": "passed",
        "loads": "passed",
        "replays": "not run",
        "same-data": "passed",
        "works": "passed",
    }
    assert document["teardown"] == "nothing left behind"
    assert 0 < document["phases_s"]["load"] < document["rto_s"]
    assert document["rpo_s"] < 3600
    assert list((site.folder / "scratch").glob("*")) == []


def test_a_scratch_server_gets_twice_as_many_connections_as_jobs(
    site: ReadySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Counted(RowsLoad):
        def __init__(self, connect: Any, count: int) -> None:
            asked.append(count)
            super().__init__(connect, count)

    monkeypatch.setattr(postgres_load, "RowsLoad", Counted)
    assert site.call("drill", "shop").returncode == 0
    assert asked == [4]


def test_a_scratch_server_logs_no_rows_and_says_so_of_no_table(
    ready_site: ReadySite, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "select g, repeat(md5(g::text), 30) as t from generate_series(1, 20000) as g"
    long = "(select string_agg(md5(g::text), '') from generate_series(1, 2000) as g)"
    statements = f"""create table kept as {rows}; create unlogged table passing as {rows};
        create table long (t text); alter table long alter t set storage external; insert into long select {long};
        create table parted (a int) partition by list (a); create table part partition of parted for values in (1);
        insert into parted values (1); create publication all_of_it for table kept, long, parted"""
    name = postgres.create_database(statements=statements)
    write_policy(ready_site, postgres, name)
    assert ready_site.drkit("backup", "shop").returncode == 0
    share_out, seen = ArchiveLoad._share_out, []

    def observed(load: ArchiveLoad, wanted: Path) -> None:
        with connect(load._loading.endpoint, load._database) as connection:
            before = connection.execute("select pg_current_wal_insert_lsn()").fetchone()
            share_out(load, wanted)
            assert before is not None
            seen.extend(connection.execute("select pg_current_wal_insert_lsn() - %s", before).fetchone() or ())
            unlogged = """select coalesce(h.relname, c.relname) from pg_class as c
                left join pg_index as i on i.indexrelid = c.oid
                left join pg_class as h on h.reltoastrelid in (c.oid, i.indrelid) where c.relpersistence = 'u'"""
            seen.extend({row[0] for row in connection.execute(unlogged).fetchall()})

    monkeypatch.setattr(ArchiveLoad, "_share_out", observed)
    done = ready_site.call("drill", "shop", "--level", "same-data")
    assert done.returncode == 0, done.stdout + done.stderr
    log_bytes, *unlogged = seen
    assert log_bytes < 4 << 20
    assert unlogged == ["passing"]
    postgres.drop_database(name)


def test_a_superuser_that_quotes_every_name_makes_no_difference(
    ready_site: ReadySite, postgres: PostgresServer
) -> None:
    name = postgres.create_database(statements="create schema app; create table app.t as select 1 as a")
    postgres.execute(f"alter database {name} set search_path = app, public")
    write_policy(ready_site, postgres, name)
    postgres.execute("alter role postgres set quote_all_identifiers = on")
    try:
        assert ready_site.drkit("backup", "shop").returncode == 0
        _, document, said = drill(ready_site, "--level", "same-data")
    finally:
        postgres.execute("alter role postgres reset quote_all_identifiers")
        postgres.drop_database(name)
    assert (document["verdict"], document["differences"]) == ("passed", []), said


def test_a_level_that_was_not_asked_for_is_not_run(site: ReadySite) -> None:
    status, document, _ = drill(site, "--level", "intact")
    assert status == 0
    assert results(document)["intact"] == "passed"
    assert {results(document)[name] for name in ("loads", "same-data", "works")} == {"not run"}
    assert "provision" not in document["phases_s"], "no server is needed to read"


def test_lost_and_changed_rows_are_named(site: ReadySite) -> None:
    def change(details: dict[str, Any]) -> None:
        tables = details["parts"]["database-1"]["fingerprint"]["table"]
        tables["public.invoice"]["rows"] += 1
        tables["public.track"]["digest"] = "0" * 16

    resign(site, change)
    status, document, _ = drill(site)
    assert (status, document["verdict"]) == (11, "failed")
    assert results(document)["loads"] == "passed"
    assert results(document)["same-data"] == "failed"
    assert document["levels"]["same-data"]["lines"] == [
        "table public.invoice: 412 rows, 413 at backup time",
        "table public.track: digest differs",
    ]


def test_objects_that_came_or_went_are_named_by_kind(site: ReadySite) -> None:
    def change(details: dict[str, Any]) -> None:
        fingerprint = details["parts"]["database-1"]["fingerprint"]
        fingerprint["index"]["public.an_index_that_was_there"] = {"definition": "x"}
        fingerprint["table"].pop("public.genre")

    resign(site, change)
    status, document, _ = drill(site)
    assert status == 11
    assert document["levels"]["same-data"]["lines"] == [
        "index public.an_index_that_was_there: missing",
        "table public.genre: was not there at backup time",
    ]


def test_an_artifact_without_a_fingerprint_proves_nothing(site: ReadySite) -> None:
    resign(site, lambda details: details["parts"]["database-1"].pop("fingerprint"))
    status, document, _ = drill(site)
    assert (status, document["verdict"]) == (11, "failed")
    assert results(document)["same-data"] == "failed"


def test_a_check_with_another_answer_fails_the_level_works(
    site: ReadySite, postgres: PostgresServer, chinook: str
) -> None:
    write_policy(site, postgres, chinook, invoices=413)
    status, document, _ = drill(site)
    assert (status, results(document)["same-data"], results(document)["works"]) == (11, "passed", "failed")
    assert document["levels"]["works"]["lines"] == ["invoices are there: expected 413, the answer is 412"]


def test_a_missed_objective_is_a_finding_with_exit_11(site: ReadySite, postgres: PostgresServer, chinook: str) -> None:
    write_policy(site, postgres, chinook, rpo="1ms")
    status, document, _ = drill(site, "--level", "loads")
    assert (status, document["verdict"], document["missed_objectives"]) == (11, "passed_with_findings", ["rpo"])
    assert "misses its objective" in document["findings"][0]


def test_damage_fails_at_intact_before_any_server_is_made(site: ReadySite) -> None:
    part = only_artifact(site) / "database-1.zst.age"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.chmod(0o600)
    part.write_bytes(content)
    status, document, _ = drill(site)
    assert (status, document["verdict"], results(document)["intact"]) == (11, "failed", "failed")
    assert "database-1.zst.age" in document["levels"]["intact"]["summary"]
    assert results(document)["loads"] == "not run"
    assert document["teardown"] == "nothing was made"


def test_without_programs_for_a_server_the_drill_is_inconclusive(site: ReadySite, tmp_path: Path) -> None:
    # A folder named in DRKIT_POSTGRES_BIN goes first; its initdb is of the right major and cannot work.
    initdb = tmp_path / "initdb"
    initdb.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'initdb (PostgreSQL) 15.99' && exit 0\nexit 1\n")
    initdb.chmod(0o755)
    done = site.drkit("drill", "shop", "--json", env={"DRKIT_POSTGRES_BIN": str(tmp_path)})
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (5, "inconclusive")
    assert set(results(document).values()) == {"passed", "not run"}, "the artifact was not judged by the load"
    assert document["teardown"] != "LEAKED"


def test_the_record_is_signed_stored_chained_and_says_what_was_said(site: ReadySite, tmp_path: Path) -> None:
    _, first, _ = drill(site, "--level", "intact")
    _, second, _ = drill(site, "--level", "intact")
    folder = site.store_folder / "policies" / "shop" / "evidence"
    records = {run["run_id"]: folder / f"{run['run_id']}.json" for run in (first, second)}
    one, two = (json.loads(records[run["run_id"]].read_bytes()) for run in (first, second))
    assert (one["verdict"], one["previous"]) == ("passed", None)
    assert two["previous"] is not None
    assert b"chinook" not in records[first["run_id"]].read_bytes(), "names of data are for key holders"
    record = records[second["run_id"]]
    with record.open("rb") as message:
        stock = subprocess.run(
            [
                *["ssh-keygen", "-Y", "verify", "-f", str(site.allowed_signers), "-I", "test@example.org"],
                *["-n", "drkit-evidence", "-s", f"{record}.sig"],
            ],
            stdin=message,
            capture_output=True,
            text=True,
            check=False,
        )
    assert stock.returncode == 0, stock.stderr
    assert site.drkit("evidence", "verify", str(record)).returncode == 0
    forged = tmp_path / record.name
    forged.write_bytes(record.read_bytes().replace(b'"verdict":"passed"', b'"verdict":"failed"'))
    (tmp_path / f"{record.name}.sig").write_bytes(Path(f"{record}.sig").read_bytes())
    refused = site.drkit("evidence", "verify", str(forged))
    assert refused.returncode == 8
    assert str(forged) in refused.stderr
    listed = json.loads(site.drkit("drills", "--json").stdout)["drills"]
    assert [item["run_id"] for item in listed] == [second["run_id"], first["run_id"]]


def test_a_record_that_no_store_takes_is_no_proof(site: ReadySite) -> None:
    evidence = site.store_folder / bucket.evidence_prefix("shop").rstrip("/")
    evidence.parent.mkdir(parents=True, exist_ok=True)
    evidence.write_text("a file where the folder should be")
    status, document, _ = drill(site, "--level", "intact")
    assert (status, document["verdict"], document["stored_in"]) == (6, "inconclusive", [])


def test_a_random_moment_is_drawn_again_by_its_seed(site: ReadySite) -> None:
    for _ in range(2):
        assert site.drkit("backup", "shop").returncode == 0
    policy = site.folder / "policies" / "shop.yaml"
    policy.write_text(policy.read_text().replace("level: works", "level: intact\n    pick: random\n    window: 1d"))
    _, first, _ = drill(site, "--seed", "7")
    _, again, _ = drill(site, "--seed", "7")
    assert (first["seed"], first["artifact_id"]) == (again["seed"], again["artifact_id"]) == (7, first["artifact_id"])
    drawn = {drill(site, "--seed", str(seed))[1]["artifact_id"] for seed in range(8)}
    assert len(drawn) > 1, "different seeds reach different artifacts"
    policy.write_text(policy.read_text().replace("pick: random", "pick: oldest"))
    oldest = min(path.name for path in (site.store_folder / "policies" / "shop" / "artifacts").iterdir())
    assert drill(site)[1]["artifact_id"] == oldest


def test_a_dump_has_nothing_to_replay(site: ReadySite) -> None:
    done = site.drkit("drill", "shop", "--level", "replays")
    assert done.returncode == 3
    assert "a dump has nothing to replay" in done.stderr


def set_timeout(site: ReadySite, timeout: str) -> None:
    policy = site.folder / "policies" / "shop.yaml"
    policy.write_text(policy.read_text().replace("level: works", f"level: works\n    timeout: {timeout}"))


def timed_out_record(site: ReadySite) -> dict[str, Any]:
    """Return the newest drill's signed record, after seeing that nothing is left of its server."""
    assert list((site.folder / "scratch").glob("*")) == []
    newest = json.loads(site.drkit("drills", "--json").stdout)["drills"][0]
    record = site.store_folder / bucket.evidence_key("shop", newest["run_id"])
    assert site.drkit("evidence", "verify", str(record)).returncode == 0
    said: dict[str, Any] = json.loads(record.read_bytes())
    assert said["rto_ms"] is None, "what was not finished was not measured"
    assert said["teardown"] == "nothing left behind"
    return said


def test_a_drill_that_outlives_its_time_while_it_asks_is_ended(site: ReadySite) -> None:
    set_timeout(site, "20s")
    policy = site.folder / "policies" / "shop.yaml"
    policy.write_text(policy.read_text().replace("select count(*) = 0 from artist where name is null", SLEEP))
    status, document, said = drill(site)
    assert (status, document["verdict"], document["ended_in"]) == (11, "timed_out", "checks")
    assert results(document)["same-data"] == "passed"
    assert results(document)["works"] == "not run", "a level that did not end is neither passed nor failed"
    assert "Traceback" not in said
    record = timed_out_record(site)
    assert (record["verdict"], record["ended_in"]) == ("timed_out", "checks")


def test_a_drill_whose_tool_hangs_is_ended_at_its_time(site: ReadySite, tmp_path: Path) -> None:
    set_timeout(site, "15s")
    hung = tmp_path / "pg_restore"
    hung.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_restore (PostgreSQL) 15.99' && exit 0\nsleep 600\n")
    hung.chmod(0o755)
    done = site.drkit("drill", "shop", env={"DRKIT_POSTGRES_BIN": str(tmp_path)})
    assert done.returncode == 11, done.stderr
    assert "TIMED OUT: drill rehearsal of shop did not end within 15 s and was stopped in phase load" in done.stdout
    assert "Proven until then: exists, intact." in done.stdout
    record = timed_out_record(site)
    assert (record["verdict"], record["ended_in"], record["levels"]["loads"]) == ("timed_out", "load", "not run")


def use_stores(site: ReadySite, *names: str) -> None:
    policy = site.folder / "policies" / "shop.yaml"
    policy.write_text(re.sub(r"stores: \[.*\]", f"stores: [{', '.join(names)}]", policy.read_text()))


def test_missing_records_are_copied_with_their_signatures(site: ReadySite) -> None:
    run_ids = [drill(site, "--level", "intact")[1]["run_id"] for _ in range(2)]
    for name in ("second", "third"):
        site.add_store(name).mkdir()
    use_stores(site, "primary", "second")
    copied = json.loads(site.drkit("store", "copy", "--json").stdout)
    expected = [{"policy": "shop", "kind": "record", "name": run_id, "store": "second"} for run_id in run_ids]
    assert copied["records"] == expected
    key = bucket.evidence_key("shop", run_ids[0])
    assert (site.folder / "second" / key).read_bytes() == (site.store_folder / key).read_bytes()
    assert site.drkit("evidence", "verify", str(site.folder / "second" / key)).returncode == 0
    again = site.drkit("store", "copy")
    assert again.stdout == "0 copies made, 1 artifact lacked none\n"

    # Damage is not copied on: the next store is asked, and one that nobody has whole is named.
    for run_id in run_ids:
        record = site.store_folder / bucket.evidence_key("shop", run_id)
        record.chmod(0o600)
        record.write_bytes(record.read_bytes().replace(b'"verdict":"passed"', b'"verdict":"failed"'))
    (site.folder / "second" / f"{bucket.evidence_key('shop', run_ids[1])}.sig").unlink()
    use_stores(site, "primary", "second", "third")
    done = site.drkit("store", "copy")
    assert done.returncode == 6
    assert f"record {run_ids[0]}  copied to third" in done.stdout
    assert f"shop  {bucket.evidence_key('shop', run_ids[1])}  third  FAILED" in done.stdout
    assert f"{bucket.evidence_key('shop', run_ids[1])} in store primary" in done.stdout
    assert site.drkit("evidence", "verify", str(site.folder / "third" / key)).returncode == 0
    assert not (site.folder / "third" / bucket.evidence_key("shop", run_ids[1])).exists()


def test_tablespaces_come_back_and_a_missing_one_is_a_difference(ready_site: ReadySite) -> None:
    with running_postgres() as server:
        folder = server.folder / "space"
        subprocess.run(["install", "-d", "-m", "700", *as_owner(), str(folder)], check=True)
        server.execute("create role keeper")
        server.execute(
            f"create tablespace \"fast disk\" owner keeper location '{folder}' with (random_page_cost = 1.1)"
        )
        database = server.create_database(None, 'create table t tablespace "fast disk" as select 1 as a')
        write_policy(ready_site, server, database)
        assert ready_site.drkit("backup", "shop").returncode == 0
        status, document, said = drill(ready_site, "--level", "same-data")
        assert (status, document["verdict"]) == (0, "passed"), said
        assert document["expected_differences"] == []

        def change(details: dict[str, Any]) -> None:
            spaces = details["parts"]["globals"]["fingerprint"]["tablespace"]
            spaces['"slow disk"'] = spaces.pop('"fast disk"')

        resign(ready_site, change)
        status, document, _ = drill(ready_site, "--level", "same-data")
        assert (status, document["verdict"]) == (11, "failed")
        lines = document["levels"]["same-data"]["lines"]
        assert any('tablespace "slow disk": missing' in line for line in lines), lines


def as_owner() -> list[str]:
    """Return what makes `install` give a folder to whom the test server runs as."""
    return ["-o", "postgres"] if os.geteuid() == 0 else []


def test_level_works_without_checks_is_no_proof(site: ReadySite) -> None:
    policy = site.folder / "policies" / "shop.yaml"
    text = policy.read_text()
    policy.write_text(text[: text.index("    checks:")])
    status, document, _ = drill(site, "--level", "works")
    assert (status, document["verdict"]) == (0, "passed_with_findings")
    assert results(document)["works"] == "not applicable"
    assert document["findings"] == [f"level works proves nothing: drill rehearsal has no checks in {policy}"]


def test_checks_are_asked_of_a_database_that_knows_how_large_its_tables_are(site: ReadySite) -> None:
    """Without statistics a check that joins large tables could take hours."""
    policy = site.folder / "policies" / "shop.yaml"
    check = """      - {name: analyzed, sql: "select count(*) > 0 from pg_stats where schemaname = 'public'"}\n"""
    policy.write_text(policy.read_text().replace("    checks:\n", f"    checks:\n{check}"))
    status, document, _ = drill(site)
    assert (status, document["verdict"]) == (0, "passed"), document["levels"]["works"]


def test_a_drill_that_could_not_be_signed_is_not_begun(site: ReadySite) -> None:
    site.signing_key.unlink()
    done = site.drkit("drill", "shop", "--level", "intact")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"drkit: signing key {site.signing_key} is missing")
    assert "hint: drkit keys new signing --signing" in done.stderr


def test_a_drill_that_the_policy_does_not_have_is_named_with_those_it_has(site: ReadySite) -> None:
    done = site.drkit("drill", "shop", "--name", "monthly")
    assert done.returncode == 3
    assert 'policy shop has no drill "monthly"' in done.stderr
    assert "hint: drkit drill shop --name rehearsal" in done.stderr
