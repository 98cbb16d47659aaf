"""What every part of the SQLite catalog works with: the one connection, to read from and to change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager

Transaction = Callable[[], AbstractContextManager[sqlite3.Connection]]
Read = Callable[..., list[sqlite3.Row]]


class Tables:
    """Some tables of the catalog; ``transaction`` and ``read`` are the catalog's own, and translate SQLite's errors."""

    def __init__(self, transaction: Transaction, read: Read) -> None:
        self._transaction = transaction
        self._read = read
