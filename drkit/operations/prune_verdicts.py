"""What signed records say of artifacts and their copies: how drills judged them, and what reading them showed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from drkit import bucket
from drkit.catalog import EvidenceEntry
from drkit.operations.inventory import StoredArtifact, StoreInventory
from drkit.retention_facts import CLOCK_SKEW
from drkit.units import parse_utc

_CONCLUSIVE = {"passed": "verified", "passed_with_findings": "verified", "failed": "failed"}
_READING = ("exists", "intact")
_Copy = tuple[str, str]
Dated = tuple[Mapping[str, Any], datetime]
"""A signed record, and when it was made: by its own clock, or by the store's where that is earlier."""


def dated_records(inventories: Iterable[StoreInventory], remembered: Iterable[EvidenceEntry]) -> Iterator[Dated]:
    """Yield the records of the stores, and bad news that only the catalog remembers: who took it away gains nothing."""
    found: set[str] = set()
    for inventory in inventories:
        for item in inventory.evidence:
            found.add(item.sha256)
            stored = inventory.objects[bucket.evidence_key(item.policy, str(item.record["run_id"]))]
            yield item.record, min(parse_utc(str(item.record["ended_at"])), stored.modified_at)
    for entry in remembered:
        if entry.sha256 not in found and entry.record.get("verdict") == "failed":
            yield entry.record, parse_utc(str(entry.record["ended_at"]))


def drill_verdicts(
    records: Collection[Dated], copies: Mapping[str, Sequence[StoredArtifact]], now: datetime
) -> dict[str, str]:
    """Return what the newest drill that judged an artifact says of it: verified, failed, doubted or misread.

    ``misread``: it failed as it read a copy, and since then no copy that is still there was read and found to be sound.
    Good news of the future is none: whatever came after it would be older.
    """
    acquitted = _sound_since(_newest_readings(records, now), copies)
    newest: dict[str, tuple[datetime, str]] = {}
    for record, at in records:
        verdict, artifact_id = _verdict_of(record), record.get("artifact_id")
        if verdict and isinstance(artifact_id, str) and (verdict != "verified" or at <= now + CLOCK_SKEW):
            said = at, verdict
            if verdict != "misread" or acquitted.get((artifact_id, _failed_level(record)), said[0]) <= said[0]:
                newest[artifact_id] = max(said, newest.get(artifact_id, said))
    return {artifact_id: verdict for artifact_id, (_, verdict) in newest.items()}


def _sound_since(
    readings: Mapping[_Copy, _Reading], copies: Mapping[str, Sequence[StoredArtifact]]
) -> dict[tuple[str, str], datetime]:
    """Return when a reading found a copy sound, by artifact and by the level that this proves; intact takes a key."""
    proven: dict[tuple[str, str], datetime] = {}
    for (artifact_id, store), reading in readings.items():
        if reading.sound and store in {copy.store for copy in copies.get(artifact_id, ())}:
            for level in _READING if reading.decrypted else _READING[:1]:
                proven[artifact_id, level] = max(reading.at, proven.get((artifact_id, level), reading.at))
    return proven


def found_damaged(records: Iterable[Dated], now: datetime) -> dict[_Copy, datetime]:
    """Return the copies, by artifact id and store, that were not sound when they were read last, and when that was."""
    return {copy: reading.at for copy, reading in _newest_readings(records, now).items() if not reading.sound}


class _Reading(NamedTuple):
    at: datetime
    sound: bool
    decrypted: bool


def _newest_readings(records: Iterable[Dated], now: datetime) -> dict[_Copy, _Reading]:
    newest: dict[_Copy, _Reading] = {}
    for record, recorded_at in records:
        for reading in record.get("copies") or () if record.get("kind") == "verification" else ():
            copy = str(reading["subject"]), str(reading["store"])
            decrypted = bool(reading.get("decrypted"))
            read_at = min(recorded_at, parse_utc(str(reading["verified_at"])))
            seen = _Reading(read_at, bool(reading["sound"]), decrypted)
            if seen.sound and read_at > now + CLOCK_SKEW:
                continue
            newest[copy] = max(seen, newest.get(copy, seen))
    return newest


def _verdict_of(record: Mapping[str, Any]) -> str | None:
    """Return what a record says of its artifact; None where it judged nothing, or a copy beside a sound one.

    Level works is about the policy's questions: the data were those that were recorded. Reading fails at whichever copy
    is damaged; records of before ``blames`` do not say whether another one was sound.
    """
    verdict = _CONCLUSIVE.get(str(record.get("verdict")))
    if verdict != "failed":
        return verdict
    if record.get("blames") == "copy":
        return None
    if record.get("blames") or _failed_level(record) == "works":
        return "doubted"
    return "misread" if _failed_level(record) in _READING else "failed"


def _failed_level(record: Mapping[str, Any]) -> str:
    return next((name for name, result in (record.get("levels") or {}).items() if result == "failed"), "")
