"""``drkit wal command``: the line that it prints, run as PostgreSQL runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from drkit.binaries import newest_server_major, postgres_binary
from drkit.cli import wal
from tests.fixtures.site import ReadySite
from tests.fixtures.wal_commands import answering, expanded

NAME = "000000010000000000000007"


def test_a_server_reads_the_printed_settings_as_they_are_meant(
    make_site: Callable[[str], ReadySite], tmp_path: Path
) -> None:
    site = make_site("odd 'quoted' \\b ü")
    site.write_policy("orders")
    (tmp_path / "postgresql.conf").write_text(site.call("wal", "command", "orders").stdout)
    postgres = postgres_binary("postgres", newest_server_major())
    words = [str(postgres), "-C", "archive_command", "-D", str(tmp_path)]
    read = subprocess.run(words, capture_output=True, text=True, check=True).stdout.rstrip("\n")
    settings = json.loads(site.call("wal", "command", "orders", "--json").stdout)["settings"]
    assert read == settings["archive_command"]


@pytest.mark.parametrize("perl", [True, False])
def test_the_printed_command_survives_odd_paths(
    make_site: Callable[[str], ReadySite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, perl: bool
) -> None:
    if perl and not wal._PERL.exists():
        pytest.skip("there is no Perl here")
    if not perl:
        monkeypatch.setattr(wal, "_PERL", tmp_path / "no-perl")
    site = make_site("odd %p %f %% 'quoted' $HOME \\b ü")
    site.write_policy("orders")
    (site.folder / "var" / "wal" / "orders").mkdir(parents=True)
    done = site.call("wal", "command", "orders", "--json")
    assert done.returncode == 0, done.stderr
    command = json.loads(done.stdout)["settings"]["archive_command"]
    assert ("wal_push.pl" in command) == perl
    with answering(site.folder / "var" / "wal" / "orders" / "socket", b"ok 0\n") as asked:
        line = expanded(command, NAME, f"pg_wal/{NAME}")
        done = subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert asked == [f"push {tmp_path}/pg_wal/{NAME}\n".encode()]
    assert len(line) < 1024, "archive_command is cut off at that length up to PostgreSQL 15 (MAXPGPATH)"
