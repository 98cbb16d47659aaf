"""A short soak; scripts/soak runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import soak
from tests.fixtures.s3 import _versitygw

LASTS_S = 15


def test_some_blows_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if _versitygw() is None:
        pytest.skip("versitygw is not installed; scripts/install-versitygw builds it where Go is found")
    for name, value in soak.BUCKET_VARIABLES.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    figures = soak.run(tmp_path, LASTS_S, seed=3, say=said.append)
    assert sum(figures["blows"].values()) >= 3
    assert figures["occurrences"]["backup done"] >= 2
    first, last = figures["memory_mb"]
    assert last < first * 1.5 + 20
