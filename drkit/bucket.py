"""Where things lie in a bucket: the names of docs/format.md, made and taken apart in this one place."""

from __future__ import annotations

import re
from typing import NamedTuple

REPO_KEY = "drkit-repo.json"
RECOVERY_KEY = "RECOVERY.md"
TRUST_PREFIX = "trust/"
POLICIES_PREFIX = "policies/"
LEASES_PREFIX = "leases/"

_MANIFEST = re.compile(r"policies/(?P<policy>[^/]+)/artifacts/(?P<artifact>[^/]+)/manifest\.json")
_ARTIFACT = re.compile(r"policies/(?P<policy>[^/]+)/artifacts/(?P<artifact>[^/]+)/(?P<name>[^/]+)")
_LOG_NAME = r"[0-9A-Za-z][0-9A-Za-z.-]{0,79}"
_LOG = re.compile(rf"policies/(?P<policy>[^/]+)/logs/(?P<timeline>[0-9A-F]{{8}})/(?P<name>{_LOG_NAME})\.zst\.age")
_LOG_MANIFEST = re.compile(
    r"policies/(?P<policy>[^/]+)/logs/(?P<timeline>[0-9A-F]{8})/"
    r"(?P<first>[0-9A-F]+(?:\.[a-z]+(?:-[0-9]+)?)?)-(?P<last>[0-9A-F]+(?:\.[a-z]+(?:-[0-9]+)?)?)-"
    r"(?P<id>[0-9A-Z]{26})\.json"
)
_EVIDENCE = re.compile(r"policies/(?P<policy>[^/]+)/evidence/(?P<run>[^/]+)\.json")


def artifacts_prefix(policy: str) -> str:
    """Return the prefix of all artifacts of a policy."""
    return f"policies/{policy}/artifacts/"


def artifact_prefix(policy: str, artifact_id: str) -> str:
    """Return the prefix of one artifact's objects."""
    return f"{artifacts_prefix(policy)}{artifact_id}/"


def part_key(policy: str, artifact_id: str, part: str) -> str:
    """Return the key of a data object."""
    return f"{artifact_prefix(policy, artifact_id)}{part}.zst.age"


def manifest_key(policy: str, artifact_id: str) -> str:
    """Return the key of the commit point."""
    return f"{artifact_prefix(policy, artifact_id)}manifest.json"


def evidence_prefix(policy: str) -> str:
    """Return the prefix of a policy's evidence."""
    return f"policies/{policy}/evidence/"


def evidence_key(policy: str, run_id: str) -> str:
    """Return the key of one signed record."""
    return f"{evidence_prefix(policy)}{run_id}.json"


def logs_prefix(policy: str) -> str:
    """Return the prefix of all log objects of a policy."""
    return f"policies/{policy}/logs/"


def timeline_prefix(policy: str, timeline: int) -> str:
    """Return the prefix of one timeline's log objects."""
    return f"{logs_prefix(policy)}{timeline:08X}/"


def log_key(policy: str, timeline: int, name: str) -> str:
    """Return the key of a WAL segment, a partial one or a history file; ``name`` as `drkit.wal` writes it."""
    return log_key_in(timeline_prefix(policy, timeline), name)


def log_key_in(timeline_folder: str, name: str) -> str:
    """Do what `log_key` does for a timeline whose prefix was made before: a long log has a hundred thousand names."""
    return f"{timeline_folder}{name}.zst.age"


def log_manifest_key(policy: str, timeline: int, first: str, last: str, manifest_id: str) -> str:
    """Return the key of a log manifest; ``first`` and ``last`` name its files, ``manifest_id`` is a ULID."""
    return f"{timeline_prefix(policy, timeline)}{first}-{last}-{manifest_id}.json"


def tombstones_prefix(policy: str) -> str:
    """Return the prefix of a policy's tombstones."""
    return f"policies/{policy}/tombstones/"


def tombstone_key(policy: str, artifact_id: str) -> str:
    """Return the key of a tombstone."""
    return f"{tombstones_prefix(policy)}{artifact_id}.json"


def holds_prefix(policy: str) -> str:
    """Return the prefix of a policy's holds and their releases."""
    return f"policies/{policy}/holds/"


def hold_key(policy: str, hold_id: str) -> str:
    """Return the key of a hold."""
    return f"{holds_prefix(policy)}{hold_id}.json"


def release_key(policy: str, hold_id: str) -> str:
    """Return the key of the document that ends a hold."""
    return f"{holds_prefix(policy)}{hold_id}.released.json"


def log_tombstones_prefix(policy: str) -> str:
    """Return the prefix of the tombstones of a policy's log."""
    return f"policies/{policy}/log-tombstones/"


def log_tombstone_key(policy: str, tombstone_id: str) -> str:
    """Return the key of a tombstone of log manifests."""
    return f"{log_tombstones_prefix(policy)}{tombstone_id}.json"


def lease_key(name: str) -> str:
    """Return the key of a lease, the one kind of object that is written again."""
    return f"{LEASES_PREFIX}{name}.json"


def reader_leases_prefix(policy: str) -> str:
    """Return the prefix of the leases of a policy's readers; no policy's name has a dot."""
    return f"{LEASES_PREFIX}read.{policy}."


def reader_lease_name(policy: str, slot: int) -> str:
    """Return the name of one of the leases of a policy's readers."""
    return f"read.{policy}.{slot}"


def trust_key(key_id: str) -> str:
    """Return the key of a public key's document; the colon of a key id is no character for a key."""
    return f"trust/{key_id.replace(':', '-')}.json"


def signature_key(key: str) -> str:
    """Return the key of the signature over the object ``key``."""
    return f"{key}.sig"


def parse_manifest_key(key: str) -> tuple[str, str] | None:
    """Return the policy and artifact id that a manifest's key names; None when it is another kind of key."""
    match = _MANIFEST.fullmatch(key)
    return (match["policy"], match["artifact"]) if match else None


def parse_artifact_key(key: str) -> tuple[str, str, str] | None:
    """Return policy, artifact id and object name of any object in an artifact's folder; None for other keys."""
    match = _ARTIFACT.fullmatch(key)
    return (match["policy"], match["artifact"], match["name"]) if match else None


def parse_evidence_key(key: str) -> tuple[str, str] | None:
    """Return the policy and run id that an evidence record's key names; None when it is another kind of key."""
    match = _EVIDENCE.fullmatch(key)
    return (match["policy"], match["run"]) if match else None


class LogManifestKey(NamedTuple):
    """What the key of a log manifest says."""

    policy: str
    timeline: int
    first: str
    last: str
    manifest_id: str


def parse_log_key(key: str) -> tuple[str, int, str] | None:
    """Return policy, timeline and file name of a log object's key; None when it is another kind of key."""
    match = _LOG.fullmatch(key)
    return (match["policy"], int(match["timeline"], 16), match["name"]) if match else None


def parse_log_manifest_key(key: str) -> LogManifestKey | None:
    """Return what a log manifest's key says; None when it is another kind of key."""
    # Nearly all keys of a log are those of its files: they are told apart without trying the whole pattern.
    match = _LOG_MANIFEST.fullmatch(key) if key.endswith(".json") else None
    if match is None:
        return None
    return LogManifestKey(match["policy"], int(match["timeline"], 16), match["first"], match["last"], match["id"])
