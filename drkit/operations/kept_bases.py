"""The backup manifest of the newest base, kept on the host that takes backups for the next incremental one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from drkit.site import Site

BASE = "base"
MANIFEST_KIND = "manifest"
_SUFFIX = ".backup-manifest"


def kept_manifest(site: Site, policy: str, artifact_id: str) -> Path:
    """Return where the backup manifest of a base is kept."""
    return site.folder / "var" / "bases" / policy / f"{artifact_id}{_SUFFIX}"


def keep(chunks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Pass chunks on and write them to a private file as well."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            yield chunk


def forget_older(path: Path) -> None:
    """Remove the kept manifests of other bases than the one that was just committed."""
    for other in path.parent.glob(f"*{_SUFFIX}"):
        if other != path:
            other.unlink(missing_ok=True)
