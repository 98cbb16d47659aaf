"""How much room a disk has."""

from __future__ import annotations

import shutil
from pathlib import Path

_LEAST_ROOM_BYTES = 16 << 20
"""A segment of PostgreSQL's log, without room for which a server ends."""


def is_full(folder: Path) -> bool:
    """Tell whether the disk of a folder has no room for a server to go on; it may have ended without a word of why."""
    return shutil.disk_usage(folder).free < _LEAST_ROOM_BYTES
