"""PostgreSQL's backup manifest for files that drkit copied itself (manual, "Backup Manifest Format").

With it pg_verifybackup can check a restored folder without drkit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from drkit.engines.postgres_base_files import CopiedFile
from drkit.model import LogPosition

OLDEST_VERSION_2_MAJOR = 17
"""From PostgreSQL 17 on the manifest names the cluster; an incremental backup builds on no other."""


def backup_manifest(files: Iterable[CopiedFile], position: LogPosition, system_identifier: str | None = None) -> bytes:
    """Return the manifest of ``files`` and of the WAL that makes them consistent.

    It is of version 2 with a ``system_identifier``, and of version 1 without.
    The checksum at its end covers every byte before its own line, so the lines are part of the format.
    """
    lines = ",\n".join(_file_line(file) for file in files)
    wal = {"Timeline": position.timeline, "Start-LSN": position.start_lsn, "End-LSN": position.stop_lsn}
    version, cluster = 1, ""
    if system_identifier is not None:
        version, cluster = 2, f'"System-Identifier": {system_identifier},\n'
    covered = (
        f'{{ "PostgreSQL-Backup-Manifest-Version": {version},\n{cluster}'
        f'"Files": [\n{lines}\n],\n'
        f'"WAL-Ranges": [\n{json.dumps(wal)}\n],\n'
    ).encode()
    checksum = hashlib.sha256(covered).hexdigest()
    return covered + f'"Manifest-Checksum": "{checksum}"}}\n'.encode()


def _file_line(file: CopiedFile) -> str:
    modified_at = datetime.fromtimestamp(file.modified_s, UTC)
    record = {
        **_name(file.path),
        "Size": file.size_bytes,
        "Last-Modified": modified_at.strftime("%Y-%m-%d %H:%M:%S GMT"),
        # PostgreSQL's own choice too. What was copied is bound by the digest of its part; this is for pg_verifybackup.
        "Checksum-Algorithm": "CRC32C",
        "Checksum": file.crc32c.to_bytes(4, sys.byteorder).hex(),
    }
    return json.dumps(record)


def _name(path: str) -> dict[str, str]:
    raw = path.encode(errors="surrogateescape")
    try:
        return {"Path": raw.decode()}
    except UnicodeDecodeError:
        return {"Encoded-Path": raw.hex()}
