"""``drkit timeline`` and ``drkit check`` over a real log: what can be restored, a gap, and the base that ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from drkit.units import parse_utc
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.shipping import LOGGED, LogSite, flushed_lsn, make_rows, write_rows
from tests.fixtures.site import ReadySite


@pytest.fixture(scope="module")
def logged() -> Iterator[PostgresServer]:
    with running_postgres(segment_mib=1, **LOGGED) as server:
        make_rows(server)
        yield server


def document(source: LogSite, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = source.site.call(*arguments, "--json")
    assert done.returncode == status, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_from_a_base_on_every_moment_until_a_segment_is_missing(ready_site: ReadySite, logged: PostgresServer) -> None:
    source = LogSite(ready_site)
    source.write_policy(logged.url().reveal())
    with source.serving():
        source.wait_for("receiving: ")
        base = document(source, "backup", "orders", "--method", "base")
        write_rows(logged, 3000)
        (last_at,) = logged.execute("select max(at) from rows")[0]
        source.await_lsn(flushed_lsn(logged))
        source.wait_for("position  a")  # agreed, or an advice
        found = document(source, "timeline", "orders")
        (window,) = found["windows"]
        assert parse_utc(window["to"]) >= last_at
        assert (found["gaps"], found["doubts"]) == ([], [])
        assert found["bases"][0]["artifact_id"] == base["artifact_id"]
        assert found["exposure"] is not None
        drawn = source.site.call("timeline", "orders").stdout
        assert "wal        =" in drawn
        assert "the server is at" in drawn

        (verdict,) = document(source, "check", "orders", status=12)["policies"]
        assert parse_utc(verdict["restorable_to"]) >= last_at
        assert {item["code"] for item in verdict["findings"]} == {"never-drilled"}

    log = source.shipped()
    victim = log.segments()[-3]
    lost = ready_site.store_folder / log.files[victim].key
    lost.unlink()
    found = document(source, "timeline", "orders")
    (gap,) = found["gaps"]
    assert (gap["first_missing"], gap["to"]) == (victim, None)
    assert any(victim in doubt and "is gone" in doubt for doubt in found["doubts"])
    (verdict,) = document(source, "check", "orders", status=8)["policies"]
    assert {"log-untrusted", "wal-gap", "never-drilled"} == {item["code"] for item in verdict["findings"]}
    assert "gap " in source.site.call("timeline", "orders").stdout

    document(source, "backup", "orders", "--method", "base")
    (gap,) = document(source, "timeline", "orders")["gaps"]
    assert gap["to"] is not None
    (verdict,) = document(source, "check", "orders", status=8)["policies"]
    assert "wal-gap" not in {item["code"] for item in verdict["findings"]}


def test_a_process_that_is_gone_is_said(ready_site: ReadySite, logged: PostgresServer) -> None:
    source = LogSite(ready_site)
    source.write_policy(logged.url().reveal(), "slot: gone")
    with source.serving():
        source.wait_for("position  a")
        document(source, "backup", "orders", "--method", "base")
    state = source.spool / "state.json"
    seen = json.loads(state.read_text())
    state.write_text(json.dumps({**seen, "at": "2020-01-01T00:00:00.000000+00:00"}))
    (verdict,) = document(source, "check", "orders", status=12)["policies"]
    assert "wal-stopped" in {item["code"] for item in verdict["findings"]}
    assert document(source, "timeline", "orders")["exposure"] is None


def test_a_policy_without_a_log_has_a_timeline_too(
    ready_site: ReadySite, postgres: PostgresServer, chinook: str
) -> None:
    ready_site.write_policy("shop", ready_site.write_secret("url", postgres.url(chinook).reveal()))
    source = LogSite(ready_site)
    document(source, "backup", "shop")
    found = document(source, "timeline", "shop")
    assert (found["windows"], len(found["dumps"])) == ([], 1)
    assert "no moment can be restored from a log" in ready_site.call("timeline", "shop").stdout
