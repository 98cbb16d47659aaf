"""The states of a base backup as ``drkit run show`` has them: on a real server, while it runs and afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.physical import PHYSICAL
from tests.fixtures.postgres import PostgresServer, running_postgres
from tests.fixtures.shipping import until
from tests.fixtures.site import ReadySite


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres(**PHYSICAL) as server:
        yield server


def write_policy(site: ReadySite, server: PostgresServer, *options: str) -> None:
    path = site.write_policy("orders", server.url().reveal())
    path.write_text(path.read_text().replace("{method: dump}", f"{{method: base{''.join(f', {o}' for o in options)}}}"))


def newest_run(site: ReadySite) -> dict[str, Any]:
    runs = json.loads(site.drkit("run", "list", "--json").stdout)["runs"]
    return dict(runs[0]) if runs else {}


def states_of(run: dict[str, Any]) -> list[str]:
    """Return the states in the order in which they were reached."""
    states = (run.get("outcome") or {}).get("states", {})
    return sorted(states, key=lambda state: str(states[state]))


@pytest.mark.parametrize("options", [(), ("via: local", "parallel: 2")], ids=["stream", "local"])
def test_a_base_backup_goes_through_its_states(
    ready_site: ReadySite, server: PostgresServer, options: tuple[str, ...]
) -> None:
    write_policy(ready_site, server, *options)
    done = ready_site.drkit("backup", "orders")
    assert done.returncode == 0, done.stderr
    run = newest_run(ready_site)
    assert states_of(run) == ["running", "copied", "waiting_for_wal", "complete"]
    assert run["outcome"]["state"] == "complete"
    assert run["outcome"]["artifact_id"]
    shown = [line.split() for line in ready_site.drkit("run", "show", run["run_id"]).stdout.splitlines()]
    assert [words[2] for words in shown if words[:2] == ["base", "backup"]] == states_of(run)


def test_one_that_fails_says_how_far_it_came(ready_site: ReadySite, server: PostgresServer) -> None:
    """It is slow on purpose: its state is seen while it runs, and then it is interrupted."""
    write_policy(ready_site, server, "max_rate: 1MB")
    words = [sys.executable, "-c", "from drkit.cli import main; main()", "backup", "orders"]
    child = subprocess.Popen(words, cwd=ready_site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (newest_run(ready_site).get("outcome") or {}).get("state") == "running", "it runs")
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 130
    finally:
        child.kill()
        child.wait()
    run = newest_run(ready_site)
    assert run["state"] == "interrupted"
    assert states_of(run) == ["running", "failed"]
