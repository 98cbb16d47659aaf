"""What the files of policies said when they were last read: reading five thousand of them as YAML takes half a minute.

Found by the digest of a file's bytes, of what it is checked against and of drkit's version, so what is found is what
reading the file again would give. It is used only where nobody but this user can have written it, and kept only where
there are many policies; without it everything works the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drkit import __version__
from drkit.policy import Policy

_FEWEST = 100
_FORMAT = 1


class PolicyCache:
    """The policies that were right, by the digest of their files; ``path`` None remembers nothing."""

    def __init__(self, path: Path | None, stores: Sequence[str]) -> None:
        self._path = path
        self._basis = json.dumps([_FORMAT, __version__, list(stores)])
        self._known: Mapping[str, Any] = _read(path) if path is not None else {}
        self._seen: dict[str, Any] = {}

    def find(self, content: bytes, context: Mapping[str, Any]) -> Policy | None:
        """Return the policy that these bytes are known to describe; None when they are not known."""
        digest = self._digest(content)
        values = self._known.get(digest)
        if values is None:
            return None
        try:
            policy = Policy.model_validate(values, context=dict(context))
        except ValueError:
            return None
        self._seen[digest] = values
        return policy

    def remember(self, content: bytes, policy: Policy) -> None:
        """Keep a policy that was read from these bytes and is right."""
        if self._path is not None:
            values = policy.model_dump(mode="json", by_alias=True, exclude_unset=True)
            self._seen[self._digest(content)] = values

    def save(self) -> None:
        """Write what was seen, if it is much and not what is there; a place that cannot be written to is left."""
        if self._path is None or len(self._seen) < _FEWEST or self._seen.keys() == self._known.keys():
            return
        draft = self._path.with_name(f".{self._path.name}.new-{os.getpid()}")
        with suppress(OSError):
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._seen, file)
            draft.replace(self._path)

    def _digest(self, content: bytes) -> str:
        return hashlib.sha256(self._basis.encode() + b"\0" + content).hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            private = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
            known = json.load(file) if private else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
