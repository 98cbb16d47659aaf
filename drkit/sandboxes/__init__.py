"""Sandboxes lend a throw-away server to restore into, and always take it away again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from drkit.credentials import Secret
from drkit.model import Scratch


class ScratchLedger(Protocol):
    """Where a sandbox is written down before it is made (the catalog implements it)."""

    def add_scratch(self, scratch: Scratch) -> None:
        """Record it durably."""

    def remove_scratch(self, scratch_id: str) -> None:
        """Forget it, once it is proven gone."""

    def scratches(self) -> list[Scratch]:
        """Return those that are not yet gone."""


@dataclass(frozen=True)
class SandboxRequest:
    """What to lend: ``major`` as the manifest names it, ``need_bytes`` of room for the restored data.

    ``settings`` are floors that the restore needs (``max_locks_per_transaction``); ``ttl`` is how old it may get where
    nobody can tell whether its owner lives; ``superuser`` is the name of the source's bootstrap role, which grants may
    name as their grantor.
    """

    major: int
    need_bytes: int
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    ttl: timedelta = timedelta(hours=12)
    superuser: str = "postgres"


@dataclass(frozen=True)
class ScratchServer:
    """A running, empty, neutralised server: reachable over ``url`` by this user only."""

    url: Secret
    version: str
    folder: Path
    stage_folder: Path


@dataclass(frozen=True)
class ScratchFolder:
    """A private folder for a server that comes as files: empty, and ours alone until `hand_over`.

    ``data`` is where the files go, not yet made; ``user`` is whom the server runs as, None for ourselves.
    """

    folder: Path
    user: str | None
    uid: int
    gid: int

    @property
    def data(self) -> Path:
        """Return the data folder."""
        return self.folder / "data"

    def hand_over(self) -> None:
        """Let the server's user in; the files are theirs already."""
        if self.uid != os.geteuid():
            os.chown(self.folder, self.uid, self.gid)


class Sandbox(Protocol):
    """One kind of throw-away server."""

    @property
    def kind(self) -> str:
        """Return the word for it in the scratch ledger."""

    def open(self, request: SandboxRequest, ledger: ScratchLedger) -> AbstractContextManager[ScratchServer]:
        """Lend a server; on leaving, stop it and remove every file, or raise SourceError naming what is left.

        Raise SourceError before anything is made when binaries of that major or the room are missing.
        """

    def open_folder(self, request: SandboxRequest, ledger: ScratchLedger) -> AbstractContextManager[ScratchFolder]:
        """Lend a folder for a server that is restored as files, with the same promises as `open`."""

    def reap(self, scratch: Scratch) -> None:
        """Take away what a dead owner left; raise SourceError when it cannot be. Doing it twice is no error."""
