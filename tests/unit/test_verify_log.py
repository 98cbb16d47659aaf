"""Reading the stored log again: what is found damaged is named, recorded, drawn in the timeline, and mended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from drkit.operations.spool import Identity, Spool, spool_folder
from tests.faults.test_kill_shipping import FIRST, fill, ship_everything
from tests.fixtures.shipping import LogSite
from tests.fixtures.site import ReadySite
from tests.fixtures.wal_files import CLUSTER


@pytest.fixture
def source(ready_site: ReadySite) -> LogSite:
    """Lend a site with two stores and a shipped log that is to be read within a day."""
    ready_site.add_store("second").mkdir()
    site = LogSite(ready_site)
    site.write_policy("env:NOWHERE", stores=("primary", "second"))
    path = ready_site.folder / "policies" / "orders.yaml"
    path.write_text(path.read_text() + "verify: {full_coverage_within: 1d}\n")
    spool = Spool(spool_folder(ready_site.load(), "orders"))
    spool.keep_identity(Identity(str(CLUSTER), FIRST.segment_bytes))
    fill(spool, FIRST)
    ship_everything(site)
    for folder in (ready_site.store_folder, ready_site.folder / "second"):
        for path in folder.rglob("*.json"):
            os.utime(path, (0, 0))  # stored long ago, and due
    return site


def doubts(source: LogSite) -> list[str]:
    found: dict[str, Any] = json.loads(source.site.call("timeline", "orders", "--json").stdout)
    return list(found["doubts"])


def flipped(path: Path) -> bytes:
    """Flip a bit in the middle of a file; return what it was."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    return content


def test_a_sound_log_is_read_without_a_word(source: LogSite) -> None:
    done = source.site.call("verify", "--due", "orders")
    assert done.returncode == 0, done.stdout + done.stderr
    assert doubts(source) == []


def test_a_flipped_bit_in_a_segment_is_named_drawn_and_mended(source: LogSite) -> None:
    path = source.site.folder / "second" / source.shipped("second").files[FIRST.name].key
    content = flipped(path)
    assert doubts(source) == [], "it has its size: nobody knows before it is read"
    done = source.site.call("verify", "--due", "orders")
    assert (done.returncode, FIRST.name in done.stdout, "store second" in done.stdout) == (8, True, True), done.stdout
    (doubt,) = doubts(source)
    assert doubt.startswith(f"{FIRST.name} ")
    assert "in store second: not as it was signed when it was read" in doubt
    assert doubt in source.site.call("timeline", "orders").stdout
    assert source.site.call("catalog", "rebuild").returncode == 0
    assert doubts(source) == [doubt], "what was read is signed in the stores"
    path.write_bytes(content)


def test_a_manifest_that_is_changed_is_named(source: LogSite) -> None:
    (path,) = (source.site.folder / "second").rglob(f"{FIRST.name}-*.json")
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, (0, 0))
    done = source.site.call("verify", "--due", "orders")
    assert (done.returncode, path.name in done.stdout) == (8, True), done.stdout
