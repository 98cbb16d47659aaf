"""Rows of the SQLite catalog and the values they stand for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from drkit.canonical import canonical_json
from drkit.catalog import ArtifactRow, EvidenceEntry
from drkit.units import format_utc, parse_utc

if TYPE_CHECKING:
    from drkit.model import ArtifactEntry, Run

LIST = """
    select a.artifact_id, a.policy, a.engine, a.method, a.seq, a.restorable_to_at, a.stored_bytes, a.plain_bytes,
        (select group_concat(store, ' ') from artifact_stores s where s.artifact_id = a.artifact_id) as stores,
        (select verdict || ' ' || level from evidence e where e.artifact_id = a.artifact_id and e.kind = 'drill'
            order by ended_at desc limit 1) as proof, a.degraded, a.parent,
        exists (select 1 from holds h where h.artifact_id = a.artifact_id and h.released_at is null) as held,
        exists (select 1 from marks m where m.artifact_id = a.artifact_id) as leaving
    from artifacts a where :policy is null or a.policy = :policy
    order by a.restorable_to_at desc, a.artifact_id desc"""
ARTIFACTS = """
    select a.artifact_id, a.policy, a.manifest_sha256, m.manifest, m.details,
        (select group_concat(store, ' ') from artifact_stores s where s.artifact_id = a.artifact_id) as stores
    from artifacts a join manifests m using (artifact_id)"""
_PUT_ARTIFACT = """
    insert into artifacts (artifact_id, policy, engine, method, seq, restorable_to_at, stored_bytes, plain_bytes,
        manifest_sha256, degraded, parent)
    values (:artifact_id, :policy, :engine, :method, :seq, :restorable_to_at, :stored_bytes, :plain_bytes,
        :manifest_sha256, :degraded, :parent)
    on conflict (artifact_id) do nothing"""
_PUT_MANIFEST = """
    insert into manifests (artifact_id, manifest, details) values (:artifact_id, :manifest, :details)
    on conflict (artifact_id) do update set details = coalesce(excluded.details, details)"""
_PUT_EVIDENCE = """
    insert into evidence (sha256, run_id, policy, artifact_id, kind, verdict, level, ended_at, record)
    values (:sha256, :run_id, :policy, :artifact_id, :kind, :verdict, :level, :ended_at, :record)
    on conflict (sha256) do nothing"""


def put_artifact(connection: sqlite3.Connection, entry: ArtifactEntry) -> None:
    """Write an artifact, or add the stores and details that are new; the caller has compared the manifests."""
    manifest = entry.manifest
    values = {
        "artifact_id": manifest.artifact_id,
        "policy": manifest.policy,
        "engine": manifest.engine,
        "method": manifest.method,
        "seq": manifest.seq,
        "restorable_to_at": format_utc(manifest.covers.to_at),
        "stored_bytes": manifest.stored_bytes,
        "plain_bytes": manifest.plain_bytes,
        "manifest_sha256": entry.manifest_sha256,
        "degraded": bool(manifest.degraded),
        "parent": manifest.depends_on[-1] if manifest.depends_on else "",
        "manifest": manifest.to_bytes().decode(),
        "details": None if entry.details is None else json_text(entry.details),
    }
    connection.execute(_PUT_ARTIFACT, values)
    connection.execute(_PUT_MANIFEST, values)
    connection.executemany(
        "insert or ignore into artifact_stores (artifact_id, store) values (?, ?)",
        [(manifest.artifact_id, store) for store in entry.stores],
    )


def put_evidence(connection: sqlite3.Connection, entry: EvidenceEntry) -> None:
    """Write an evidence record, or add the stores that are new."""
    record = entry.record
    words = {name: str(record.get(name) or "") for name in ("run_id", "policy", "kind", "verdict", "ended_at")}
    connection.execute(
        _PUT_EVIDENCE,
        {
            **words,
            "level": str(record.get("level") or (record.get("selection") or {}).get("level") or ""),
            "artifact_id": record.get("artifact_id"),
            "sha256": entry.sha256,
            "record": canonical_json(dict(record)).decode(),
        },
    )
    connection.executemany(
        "insert or ignore into evidence_stores (sha256, store) values (?, ?)",
        [(entry.sha256, store) for store in entry.stores],
    )
    _put_verified(connection, entry)


def _put_verified(connection: sqlite3.Connection, entry: EvidenceEntry) -> None:
    """Note what a verification record says was read; the newest reading of a copy counts, and none of the future."""
    connection.executemany(
        """insert into verified (subject, store, policy, at, size_bytes, sound, sha256)
        values (:subject, :store, :policy, :at, :size_bytes, :sound, :sha256)
        on conflict (subject, store) do update set at = excluded.at, size_bytes = excluded.size_bytes,
            sound = excluded.sound, sha256 = excluded.sha256
            where excluded.at > at or at > strftime('%Y-%m-%dT%H:%M:%S', 'now', '+5 minutes')""",
        _readings_in(entry),
    )


def _readings_in(entry: EvidenceEntry) -> Iterator[dict[str, Any]]:
    if entry.record.get("kind") != "verification":
        return
    for item in entry.record.get("copies", ()):
        try:
            yield {
                "subject": str(item["subject"]),
                "store": str(item["store"]),
                "policy": str(entry.record.get("policy")),
                "at": format_utc(parse_utc(item["verified_at"])),
                "size_bytes": int(item["size_bytes"]),
                "sound": item["sound"] is True,
                "sha256": entry.sha256,
            }
        except (KeyError, TypeError, ValueError):
            continue  # signed by a drkit that says it in another way: then it counts as not read


def run_of(row: sqlite3.Row) -> Run:
    """Return the run of a row of ``runs``."""
    from drkit.model import Run

    values = dict(row)
    for name in ("started_at", "heartbeat_at", "ended_at"):
        values[name] = None if values[name] is None else parse_utc(values[name])
    values["outcome"] = None if values["outcome"] is None else json.loads(values["outcome"])
    return Run(**values)


def artifact_of(row: sqlite3.Row, *, with_details: bool = False) -> ArtifactEntry:
    """Return the artifact of a row of `ARTIFACTS`."""
    from drkit.model import ArtifactEntry, Manifest

    details = json.loads(row["details"]) if with_details and row["details"] is not None else None
    return ArtifactEntry(Manifest.model_validate_json(row["manifest"]), row["manifest_sha256"], stores_of(row), details)


def list_row_of(row: sqlite3.Row) -> ArtifactRow:
    """Return what a list shows, of a row of `LIST`."""
    *columns, restorable_to_at, stored_bytes, plain_bytes, stores, proof, degraded, parent, held, leaving = row
    artifact_id, policy, engine, method, seq = columns
    verdict, _, level = (proof or "").partition(" ")
    moment, names = datetime.fromisoformat(restorable_to_at), _names(stores)
    return ArtifactRow(
        *(artifact_id, policy, engine, method, seq, moment, stored_bytes, plain_bytes, names),
        verdict=verdict,
        level=level,
        degraded=bool(degraded),
        parent=parent,
        held=bool(held),
        leaving=bool(leaving and not held),
    )


def stores_of(row: sqlite3.Row) -> tuple[str, ...]:
    """Return the store names of a row, sorted."""
    return _names(row["stores"])


@cache
def _names(joined: str | None) -> tuple[str, ...]:
    return tuple(sorted((joined or "").split()))


def json_text(value: Mapping[str, Any]) -> str:
    """Return JSON for facts that nobody takes a digest of."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
