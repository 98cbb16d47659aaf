"""Point-in-time recovery through the command line, on real servers: each target shows exactly the state it names."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.physical import PHYSICAL, start_server
from tests.fixtures.postgres import PostgresServer, as_server_user, free_port, running_postgres
from tests.fixtures.site import ReadySite


def test_a_base_alone_becomes_a_server(ready_site: ReadySite, tmp_path: Path) -> None:
    with running_postgres(**PHYSICAL) as server:
        server.execute("create table t as select 1 as a")
        url = ready_site.write_secret("source-url", server.url().reveal())
        path = ready_site.write_policy("orders", url)
        path.write_text(path.read_text().replace("{method: dump}", "{method: base}"))
        done = ready_site.drkit("backup", "orders", "--method", "base")
        assert done.returncode == 0, done.stderr
    into = Path("/tmp") / f"drkit-into-{tmp_path.name}"
    try:
        done = ready_site.drkit("restore", "orders", "--at", "immediate", "--into", str(into), "--debug")
        print(done.stdout, done.stderr)
        assert done.returncode == 0
    finally:
        shutil.rmtree(into, ignore_errors=True)
