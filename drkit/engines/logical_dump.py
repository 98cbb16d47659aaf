"""What every dump through a database's own tools has in common, whatever the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from drkit.engines import OplogRange, Preflight
from drkit.errors import SourceError
from drkit.model import ChildRecord


class LogicalDump:
    """The answers of a `BackupSession` that are the same for every dump; a session fills them while it runs."""

    def __init__(self) -> None:
        self._snapshots: list[datetime] = []
        self._children: list[ChildRecord] = []
        self._preflight: Preflight | None = None
        self._oplog_range: OplogRange | None = None

    @property
    def preflight(self) -> Preflight:
        """Return what was found before the start."""
        assert self._preflight is not None
        return self._preflight

    @property
    def snapshot_at(self) -> datetime:
        """Return the oldest moment that a streamed part shows."""
        if not self._snapshots:
            raise SourceError("no part was streamed yet, so the backup shows no moment")
        return min(self._snapshots)

    @property
    def position(self) -> None:
        """Return nothing: a dump has no place in the log."""

    @property
    def oplog_range(self) -> OplogRange | None:
        """Return nothing, unless the database has an oplog and the dump says from where to where it needs it."""
        return self._oplog_range

    @property
    def warnings(self) -> Sequence[str]:
        """Return nothing: whatever goes wrong with a dump ends it."""
        return ()

    @property
    def degraded(self) -> bool:
        """Return False: what cannot be read ends the dump."""
        return False

    @property
    def children(self) -> Sequence[ChildRecord]:
        """Return the children that ran, with their exit status."""
        return tuple(self._children)
