"""What becomes of a command that is started with nowhere to say anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.site import ReadySite

DRKIT = str(Path(sys.executable).parent / "drkit")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("words", "status"), [("--help", 0), ("list --site nowhere.yaml", 3), ("--nonsense", 2)])
def test_closed_streams_do_not_change_what_a_command_returns(
    closed: str, words: str, status: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" {words} {closed}', DRKIT], cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, b"Traceback" in done.stdout + done.stderr) == (status, False)


def run(words: list[str], folder: Path, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([DRKIT, *words], cwd=folder, check=False, timeout=60, **streams)


def without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


RESULTS = [["--help"], ["policy", "schema", "policy"], ["schedule", "--json"]]


@pytest.mark.parametrize("words", RESULTS)
def test_a_full_disk_under_standard_output_is_named(words: list[str], ready_site: ReadySite) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(words, ready_site.folder, stdout=full)
    assert done.stderr.splitlines()[0] == b"drkit: standard output cannot be written: No space left on device"
    assert (done.returncode, done.stderr.count(b"\n"), b"hint: " in done.stderr) == (1, 2, True)


@pytest.mark.parametrize("words", RESULTS)
def test_a_reader_that_went_away_ends_a_command_in_silence(words: list[str], ready_site: ReadySite) -> None:
    nobody = without_reader()
    done = run(words, ready_site.folder, stdout=nobody)
    os.close(nobody)
    assert (done.returncode, done.stderr) == (1, b"")


def test_head_takes_what_it_wants(ready_site: ReadySite) -> None:
    """Much more than a pipe holds: the writing goes on when its reader is gone."""
    line = f'"{DRKIT}" policy schema policy | head -1; "{DRKIT}" policy schema policy | wc -c'
    done = subprocess.run(["sh", "-c", line], cwd=ready_site.folder, capture_output=True, check=False, timeout=60)
    first, size = done.stdout.splitlines()
    assert (first, done.stderr) == (b"{", b"")
    assert int(size) > 10_000


@pytest.mark.parametrize("place", ["full", "gone"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["list", "--site", "nowhere.yaml"], 3),
        (["--nonsense"], 2),
        (["policy", "check", "--debug"], 0),
    ],
)
def test_a_standard_error_that_takes_nothing_changes_nothing(
    place: str, words: list[str], status: int, ready_site: ReadySite
) -> None:
    """Its disk is full, or who read it is gone: also at the very end, where what is left for it is written."""
    stderr = without_reader() if place == "gone" else os.open("/dev/full", os.O_WRONLY)
    done = run(words, ready_site.folder, stderr=stderr)
    os.close(stderr)
    assert (done.returncode, bool(done.stdout)) == (status, status == 0)


@pytest.mark.parametrize("place", ["full", "gone"])
def test_what_is_left_for_a_standard_error_that_takes_nothing_does_not_change_the_end(place: str) -> None:
    """What was written and not flushed, as by a library, is tried at the end; its failure is nobody's business."""
    script = "import sys; from drkit.cli import _end; sys.stderr = open(2, 'w'); sys.stderr.write('left'); _end(7)"
    stderr = without_reader() if place == "gone" else os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=False, timeout=60)
    os.close(stderr)
    assert (done.returncode, done.stdout) == (7, b"")
