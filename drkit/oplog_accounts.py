"""Users and roles while an oplog is replayed: what its entries make of those of the dump.

MongoDB keeps both in database ``admin`` for all databases, a document each, and logs their changes as writes to two
collections there. They are few, so they stay in memory until they are made at the very end. Whom an entry leaves in
doubt is not made with the rights that he had before: he is left out, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from drkit.bson_elements import STRING
from drkit.oplog_deltas import DeltaMismatch, apply_delta
from drkit.oplog_entries import ROLES, USERS, Operation, Write
from drkit.oplog_images import show_id
from drkit.raw_bson import read_elements

_KINDS = {USERS: "user", ROLES: "role"}


def _to_nobody(_: str) -> bool:
    return False


@dataclass
class Accounts:
    """Takes entries of users and roles; ``held`` are their raw documents by collection and ``database.name``.

    Without ``wanted`` they are only named. ``belongs`` tells of a database whether whoever comes to it is restored.
    ``left_out`` are those who are not as the log has them, each with why, which is empty where nobody asked.
    """

    wanted: bool = False
    held: dict[str, dict[str, bytes]] = field(default_factory=lambda: {USERS: {}, ROLES: {}}, repr=False)
    belongs: Callable[[str], bool] = _to_nobody
    left_out: dict[str, str] = field(default_factory=dict)

    def take(self, operation: Operation) -> bool:
        """Take an operation if it is of a user or role, and tell whether it is."""
        if not isinstance(operation, Write) or operation.namespace not in _KINDS:
            return False
        name = _name_of(operation.id)
        label = f"{_KINDS[operation.namespace]} {name}"
        why = self._apply(operation, name) if self.wanted else ""
        if why is None:
            self.left_out.pop(label, None)
        else:
            self.left_out[label] = why
        return True

    def _apply(self, write: Write, name: str) -> str | None:
        """Do a write; return why it could not be done, None where it was."""
        held = self.held[write.namespace]
        before = held.pop(name, None)
        if write.kind == "delete":
            return None
        if write.kind != "update":
            if before is None and not self.belongs(name.partition(".")[0]):
                return "the backup is not of that database"
            after = write.document
        elif before is None:
            return f"oplog entry {write.ts} changes whom the backup does not have"
        else:
            try:
                # They were read while the dump ran, so an entry may be in them already: again, it changes nothing.
                after = apply_delta(before, write.document, strict=False)
            except DeltaMismatch as error:
                return f"oplog entry {write.ts} {error}"
        named = account_name(after, _KINDS[write.namespace])
        if named != name:
            return f"oplog entry {write.ts} writes no document of his: it names {named}"
        held[name] = after
        return None


def account_name(document: bytes, kind: str) -> str:
    """Return ``database.name`` by the fields of a user or role, of which a server makes him; ``?`` for what is no text.

    Rules go by ``_id``. Where the two differ, whoever was left out, or is there already, could come by another's name.
    """
    texts = []
    for field_name in (b"db", kind.encode()):
        found = [item for item in read_elements(document) if item.name == field_name]
        is_text = len(found) == 1 and found[0].kind == STRING
        texts.append(found[0].value[4:-1].decode(errors="replace") if is_text else "?")
    return ".".join(texts)


def _name_of(element: bytes) -> str:
    """Return ``database.name`` from the element ``_id``."""
    value = element.partition(b"\0")[2]
    return value[4:-1].decode(errors="replace") if element[0] == STRING else show_id(element)
