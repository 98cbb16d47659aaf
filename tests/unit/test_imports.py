"""What a command need not load, it does not load: each is started by people and by cron thousands of times a day."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.site import ReadySite

_SERVERS = {"boto3", "botocore", "psycopg", "pymongo", "bson", "numpy"}
_RESIDENT = {"apprise", "apscheduler", "http.server", "drkit.worker", "drkit.operations.serve"}
_DRAWN = {"rich", "sqlite_utils"}
_DOCUMENTS = {"pydantic", "cryptography", "cronsim", "backports.zstd"}
_CATALOG = {f"drkit.catalog.{part}" for part in ("history", "measures", "occurrences", "outbox", "overview")}
_JUDGES = {
    f"drkit.operations.{part}"
    for part in ("parent_base", "lineage", "verify", "prune_locks", "inventory", "retention_settings", "sandboxing")
}

NOT_LOADED = {
    "--help": _SERVERS | _RESIDENT | _DRAWN | _DOCUMENTS | {"drkit.catalog", "drkit.operations", "ruamel.yaml"},
    "list": _SERVERS | _RESIDENT | _DRAWN | _DOCUMENTS | _CATALOG | {"drkit.schedule", "drkit.operations"},
    "check --from-catalog": _SERVERS | _RESIDENT | _DRAWN | {"backports.zstd"},
    "check": _SERVERS | _RESIDENT | _DRAWN,
    "report status": _SERVERS | _RESIDENT | _DRAWN | {"backports.zstd"},
    "timeline orders": _SERVERS | _RESIDENT | _DRAWN,
    "prune --dry-run": _SERVERS | _RESIDENT | _DRAWN,
    "prune": _SERVERS | _RESIDENT | _DRAWN,
    "verify": _SERVERS | _RESIDENT | _DRAWN,
    "schedule": _SERVERS | _RESIDENT | _DRAWN | {"backports.zstd"},
    "run list": _SERVERS | _RESIDENT | _DRAWN | {"backports.zstd"},
    "restore orders --plan --to postgresql:///x": _SERVERS | _RESIDENT | _DRAWN,
    "backup orders": _SERVERS - {"psycopg"} | _RESIDENT | _DRAWN | _JUDGES,
}
PROGRAM = """
import sys
sys.argv = ["drkit", *sys.argv[1:]]
from drkit.cli import main
def end():
    print(*sorted(sys.modules), file=sys.__stderr__, flush=True)
import os
os._exit = lambda status: end()
try:
    main()
finally:
    end()
"""


@pytest.mark.parametrize("words", NOT_LOADED)
def test_a_command_does_not_load_what_it_does_not_need(
    ready_site: ReadySite, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_site.write_policy("orders")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/orders")
    command = [sys.executable, "-c", PROGRAM, "--site", str(ready_site.site_file), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "drkit.cli" in loaded, done.stderr
    assert "usage" not in done.stderr.lower(), done.stderr
    assert loaded & NOT_LOADED[words] == set()
