"""Where things lie in a bucket: the names of docs/format.md, made and taken apart in this one place."""

from __future__ import annotations

import re

REPO_KEY = "drkit-repo.json"
RECOVERY_KEY = "RECOVERY.md"
TRUST_PREFIX = "trust/"
CANARY_KEY = "trust/canary.age"
POLICIES_PREFIX = "policies/"

_MANIFEST = re.compile(r"policies/(?P<policy>[^/]+)/artifacts/(?P<artifact>[^/]+)/manifest\.json")
_ARTIFACT = re.compile(r"policies/(?P<policy>[^/]+)/artifacts/(?P<artifact>[^/]+)/(?P<name>[^/]+)")
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


def tombstones_prefix(policy: str) -> str:
    """Return the prefix of a policy's tombstones."""
    return f"policies/{policy}/tombstones/"


def tombstone_key(policy: str, artifact_id: str) -> str:
    """Return the key of a tombstone."""
    return f"{tombstones_prefix(policy)}{artifact_id}.json"


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
