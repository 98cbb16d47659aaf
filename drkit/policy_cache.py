"""What the files of policies said when they were last read: reading five thousand of them as YAML takes half a minute.

Found by the digest of a file's bytes, of what it is checked against and of drkit's version, so what is found is what
reading the file again would give. It is used only where nobody but this user can have written it, and kept only where
there are many policies; without it everything works the same. Sections that several policies have in the same words are
kept once, and built once: they never change.
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
_FORMAT = 2


class PolicyCache:
    """The policies that were right, by the digest of their files; ``path`` None remembers nothing."""

    def __init__(self, path: Path | None, stores: Sequence[str]) -> None:
        self._path = path
        self._basis = json.dumps([_FORMAT, __version__, list(stores)])
        found = _read(path) if path is not None else {}
        self._known: Mapping[str, Any] = found.get("policies", {})
        self._parts: Sequence[Any] = found.get("parts", ())
        self._built: dict[tuple[str, int], Any] = {}
        self._seen: dict[str, Any] = {}

    def find(self, content: bytes, context: Mapping[str, Any]) -> Policy | None:
        """Return the policy that these bytes are known to describe; None when they are not known."""
        digest = self._digest(content)
        if digest not in self._known:
            return None
        try:
            own, shared = self._known[digest]
            values = {**own, **{name: self._parts[number] for name, number in shared.items()}}
            built = {item[0]: self._built[item] for item in shared.items() if item in self._built}
            policy = Policy.model_validate({**values, **built}, context=dict(context))
        except (ValueError, TypeError, LookupError, AttributeError):
            return None
        self._built.update((item, getattr(policy, item[0])) for item in shared.items() if item[0] not in built)
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
                json.dump(_shared(self._seen), file)
            draft.replace(self._path)

    def _digest(self, content: bytes) -> str:
        return hashlib.sha256(self._basis.encode() + b"\0" + content).hexdigest()


def _shared(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is written of policies: the values of each, and by number the sections that it has like others."""
    numbers: dict[str, int] = {}
    written = {}
    for digest, values in policies.items():
        parts = {name: json.dumps(value) for name, value in values.items() if isinstance(value, dict | list)}
        own = {name: value for name, value in values.items() if name not in parts}
        written[digest] = [own, {name: numbers.setdefault(text, len(numbers)) for name, text in parts.items()}]
    return {"parts": [json.loads(text) for text in numbers], "policies": written}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            private = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
            known = json.load(file) if private else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
