"""Log manifests and positions as documents: signed bytes stay what they were, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drkit.canonical import canonical_json
from drkit.errors import IntegrityError
from drkit.log_documents import LogManifest, LogRecord
from drkit.model import LogPosition, Manifest
from drkit.recovery import log_file
from drkit.units import MIB, parse_utc
from drkit.wal import parse_lsn

STAMP = "2026-11-22T12:00:00.000000+00:00"
NAME = "000000010000000000000005"


def manifest_facts(**more: Any) -> dict[str, Any]:
    return {
        "format": "drkit-manifest",
        "version": 1,
        "features": [],
        "repo_id": "r",
        "policy": "orders",
        "artifact_id": "A",
        "run_id": "R",
        "engine": "postgres",
        "method": "dump",
        "seq": 1,
        "parents": [],
        "depends_on": [],
        "started_at": STAMP,
        "ended_at": STAMP,
        "covers": {"from_at": STAMP, "to_at": STAMP},
        "objects": [],
        "compression": {"algorithm": "zstd", "level": 1},
        "encryption": {"scheme": "age-v1", "recipients": []},
        "tools": {},
        "children": [],
        "written_to": "primary",
        "fence": None,
        "details": "",
        **more,
    }


def record_facts(**more: Any) -> dict[str, Any]:
    return {
        "part": NAME,
        "kind": "segment",
        "key": f"policies/orders/logs/00000001/{NAME}.zst.age",
        "stored_bytes": 100,
        "stored_sha256": "0" * 64,
        "plain_bytes": 16 * MIB,
        "plain_sha256": "1" * 64,
        **more,
    }


def log_facts(**more: Any) -> dict[str, Any]:
    return {
        "format": "drkit-log",
        "version": 1,
        "repo_id": "r",
        "policy": "orders",
        "engine": "postgres",
        "timeline": 1,
        "segment_bytes": 16 * MIB,
        "from_lsn": "0/5000000",
        "to_lsn": "0/6000000",
        "files": [record_facts()],
        "made_at": STAMP,
        "compression": {"algorithm": "zstd", "level": 1},
        "encryption": {"scheme": "age-v1", "recipients": []},
        "written_to": "primary",
        **more,
    }


def test_a_manifest_from_before_there_were_positions_keeps_its_bytes() -> None:
    data = canonical_json(manifest_facts())
    assert Manifest.from_bytes(data, "manifest").to_bytes() == data


def test_a_position_is_signed_with_its_manifest() -> None:
    facts = {"timeline": 3, "start_lsn": "0/3000028", "stop_lsn": "0/3000130", "segment_bytes": 16 * MIB}
    manifest = Manifest.from_bytes(canonical_json(manifest_facts(position=facts)), "manifest")
    assert manifest.position == LogPosition(
        timeline=3, start_lsn="0/3000028", stop_lsn="0/3000130", segment_bytes=16 * MIB
    )
    assert Manifest.from_bytes(manifest.to_bytes(), "manifest") == manifest
    assert b'"stop_lsn":"0/3000130"' in manifest.to_bytes()


@pytest.mark.parametrize(
    "position",
    [
        {"timeline": 0, "start_lsn": "0/1", "stop_lsn": "0/2", "segment_bytes": 16 * MIB},
        {"timeline": 1, "start_lsn": "nowhere", "stop_lsn": "0/2", "segment_bytes": 16 * MIB},
        {"timeline": 1, "start_lsn": "0/1", "stop_lsn": "0/2", "segment_bytes": 8},
        {"timeline": 1, "start_lsn": "0/1"},
    ],
)
def test_a_position_that_cannot_be_is_refused(position: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=r"field position\."):
        Manifest.from_bytes(canonical_json(manifest_facts(position=position)), "manifest")


def test_a_log_manifest_reads_back() -> None:
    manifest = LogManifest.from_bytes(canonical_json(log_facts(later_field=1)), "log manifest")
    assert LogManifest.from_bytes(manifest.to_bytes(), "log manifest") == manifest
    assert json.loads(manifest.to_bytes())["later_field"] == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (log_facts(format="drkit-manifest"), "field format"),
        (log_facts(features=["time-travel"]), "time-travel"),
        (log_facts(timeline=0), "field timeline"),
        (log_facts(previous="x"), "field previous"),
        (log_facts(files=[record_facts(kind="oplog")]), r"field files\.0\.kind"),
        (log_facts(files=[record_facts(first_commit_at="2026-11-22T12:00:00")]), "first_commit_at"),
        (log_facts(files=[record_facts(end_lsn="5")]), "end_lsn"),
    ],
)
def test_a_log_manifest_that_is_not_one_is_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        LogManifest.from_bytes(canonical_json(facts), "log manifest")


def stored(**more: Any) -> Any:
    manifest = LogManifest.from_bytes(canonical_json(log_facts(files=[record_facts(**more)])), "log manifest")
    record = manifest.files[0]
    assert isinstance(record, LogRecord)
    return log_file(record, manifest)


def test_a_record_becomes_a_file_to_plan_with() -> None:
    item = stored(first_commit_at=STAMP)
    assert (item.name, item.timeline, item.start_lsn, item.end_lsn) == (NAME, 1, 5 * 16 * MIB, 6 * 16 * MIB)
    assert (item.first_commit_at, item.last_commit_at, item.made_at) == (parse_utc(STAMP), None, parse_utc(STAMP))


def test_a_partial_reaches_as_far_as_its_record_says_and_no_further() -> None:
    assert stored(part=f"{NAME}.partial-2", kind="partial", end_lsn="0/5000400").end_lsn == parse_lsn("0/5000400")
    assert stored(part=f"{NAME}.partial-2", kind="partial").end_lsn == parse_lsn("0/5000000")


@pytest.mark.parametrize(("part", "kind"), [(f"{NAME}.partial-1", "segment"), (NAME, "partial"), (NAME, "history")])
def test_a_name_of_another_kind_is_refused(part: str, kind: str) -> None:
    with pytest.raises(ValueError, match="is not the name of"):
        stored(part=part, kind=kind)


def test_a_file_is_dated_by_when_it_was_stored() -> None:
    later = "2026-11-22T12:00:30.000000+00:00"
    assert stored(stored_at=later).made_at == parse_utc(later)
