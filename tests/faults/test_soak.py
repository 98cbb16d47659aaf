"""A soak: a quarter of a minute, or as long as DRKIT_SOAK_MINUTES says, as CI does; scripts/soak runs it by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import soak
from tests.fixtures.s3 import _versitygw

MINUTES = float(os.environ.get("DRKIT_SOAK_MINUTES", "0.25"))


def test_some_blows_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if _versitygw() is None:
        pytest.skip("versitygw is not installed; scripts/install-versitygw builds it where Go is found")
    for name, value in soak.BUCKET_VARIABLES.items():
        monkeypatch.setenv(name, value)
    figures = soak.run(tmp_path, MINUTES * 60, seed=3, say=print)
    assert sum(figures["blows"].values()) >= max(3, 5 * MINUTES)
    assert figures["occurrences"]["backup done"] >= max(2, 3 * MINUTES)
    first, last = figures["memory_mb"]
    assert last < first * 1.5 + 20
