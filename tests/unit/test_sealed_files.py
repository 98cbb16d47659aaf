"""The ballast of a spool: room that is given up when it is needed, whatever became of it before."""

from __future__ import annotations

from pathlib import Path

from drkit.operations.sealed_files import Ballast


def test_what_a_kill_left_of_a_ballast_is_given_up_with_it(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path)
    ballast.give_up()
    (tmp_path / "ballast.new").write_bytes(b"\0" * 100)
    ballast.hold(50)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("ballast", 50)]
    (tmp_path / "ballast.new").write_bytes(b"\0" * 100)
    ballast.give_up()
    assert list(tmp_path.iterdir()) == []
