"""Fixtures of the fault tests: the forking process, and roomy folders that every user may pass through."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.damage_scene import place, scene
from tests.faults.forking import Forker, shared_forker

__all__ = ["place", "scene"]


@pytest.fixture(scope="session")
def forker() -> Forker:
    """Return the process that forks commands."""
    return shared_forker()


@pytest.fixture
def machine() -> Iterator[Path]:
    """Lend a folder for whole machines: with a short path, and open to the user that a scratch server runs as."""
    with _open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_machine() -> Iterator[Path]:
    """Lend such a folder to all tests of a module."""
    with _open_folder() as folder:
        yield folder


@contextmanager
def _open_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dk-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
