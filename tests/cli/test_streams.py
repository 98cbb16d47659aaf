"""What becomes of a command that is started with nowhere to say anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
