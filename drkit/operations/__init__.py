"""Operations: where an engine meets a store.

Each module holds one kind of run. They take a `Workplace`, which `drkit.app` makes from a site, and tell a `Reporter`
what happens; neither the command line nor a file format is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from drkit.catalog import Catalog
from drkit.errors import Problem
from drkit.policy import Policy
from drkit.signing import Signer
from drkit.site import Site
from drkit.stores import Store


class ByteProgress(Protocol):
    """Counts bytes of one stream for somebody who watches."""

    def advance(self, count: int, /) -> None:
        """Add bytes."""


class Reporter(Protocol):
    """Is told what happens while it happens; the result of an operation is its return value."""

    def line(self, text: str) -> None:
        """Take one finished line."""

    def progress(self, label: str, expected_bytes: int | None = None) -> AbstractContextManager[ByteProgress]:
        """Watch one stream."""


@dataclass
class Workplace:
    """Everything that operations work with, made from a site by `drkit.app.open_app`.

    ``policies`` are those whose files are right; ``policy_problems`` are what is wrong with the other files.
    ``stores`` opens a store when it is first asked for. ``signers`` are the pinned ones of the site: what the bucket
    says of its signers is never believed. ``work_folder`` is private; what is in it belongs to running processes only.

    `drkit serve` puts other policies in place of these, each time as a whole, when their files change: whoever goes
    through them takes them once. ``kept_policies`` are those that go on as they were while their files have problems.
    """

    site: Site
    policies: Mapping[str, Policy]
    policy_problems: Sequence[Problem]
    stores: Mapping[str, Store]
    catalog: Catalog
    signers: Sequence[Signer]
    work_folder: Path
    clock: Callable[[], datetime]
    kept_policies: Collection[str] = frozenset()
