"""The few objects that make a store a drkit bucket: its identity, the public keys, and how to recover by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

from ulid import ULID

from drkit import bucket
from drkit.canonical import canonical_json, parse_json
from drkit.errors import ConfigError, IntegrityError, StoreError, StoreExists, StoreMissing
from drkit.operations import Workplace
from drkit.operations.signing_key import load_site_signing_key
from drkit.signing import MANIFEST_NAMESPACE, Trust, sign
from drkit.stores import Store, read_object

_VERSION = 1
_LEFTOVER_AGE = timedelta(days=7)


def read_repo_id(store: Store) -> str:
    """Return the id of the repository in a store; raise StoreMissing when there is none yet.

    Raise IntegrityError when the document is not one that drkit wrote, StoreError when a newer drkit wrote it.
    """
    what = f"{bucket.REPO_KEY} in store {store.name}"
    data = read_object(store, bucket.REPO_KEY)
    document = parse_json(data, what)
    version, repo_id, features = (document.get(name) for name in ("version", "repo_id", "features"))
    as_written = (
        document.get("format") == "drkit-repo"
        and isinstance(repo_id, str)
        and isinstance(version, int)
        and isinstance(features, list)
        and data == _spelled(document)
    )
    if not as_written:
        raise IntegrityError(f"{what} is not as drkit wrote it", hints=["compare it with that of another store"])
    if version != _VERSION or features:
        raise StoreError(
            f"{what} is of version {version} with features {features}; this drkit knows version {_VERSION} without any",
            hints=["install the drkit that wrote it, or a newer one"],
        )
    return str(repo_id)


def _spelled(document: dict[str, Any]) -> bytes | None:
    try:
        return canonical_json(document)
    except TypeError:
        return None


def find_repo_id(store: Store) -> str | None:
    """Return the id of the repository in a store, None when it does not say; raise as `read_repo_id` does."""
    try:
        return read_repo_id(store)
    except StoreMissing:
        return None


def ensure_repository(workplace: Workplace, store_names: tuple[str, ...]) -> str:
    """Return the id of the repository in the first of the named stores; one that is empty is made a repository.

    It joins the repository of the others if there is one: a new disk in the place of a broken one starts nothing new.
    The others may be down: then the catalog is believed, and `join_repository` meets them later.
    """
    first, *others = store_names
    repo_id = find_repo_id(workplace.stores[first])
    if repo_id is not None:
        return repo_id
    text = files("drkit").joinpath("RECOVERY.md").read_bytes()
    signed = _Recovery(text, sign(text, load_site_signing_key(workplace.site), MANIFEST_NAMESPACE))
    return _make(workplace.stores[first], _others_repo_id(workplace, others) or str(ULID()), signed)


@dataclass(frozen=True)
class _Recovery:
    """The text of how to recover by hand, and its signature: in a disaster people type what it says."""

    text: bytes
    signature: bytes

    @classmethod
    def read(cls, store: Store) -> _Recovery:
        """Take both from another store of the repository."""
        signature = read_object(store, bucket.signature_key(bucket.RECOVERY_KEY))
        return cls(read_object(store, bucket.RECOVERY_KEY), signature)


def _others_repo_id(workplace: Workplace, store_names: Sequence[str]) -> str | None:
    for name in store_names:
        with suppress(ConfigError, StoreError):
            repo_id = find_repo_id(workplace.stores[name])
            if repo_id is not None:
                return repo_id
    for entry in workplace.catalog.artifacts():
        if set(entry.stores) & set(store_names):
            return entry.manifest.repo_id
    return None


def join_repository(source: Store, target: Store) -> None:
    """Make ``target`` of the same repository as ``source``, with the public keys that lie there.

    Raise StoreError when it belongs to another one: a manifest is bound to one repository.
    """
    repo_id = read_repo_id(source)
    there = find_repo_id(target) or _make(target, repo_id, _Recovery.read(source))
    if there != repo_id:
        raise StoreError(
            f"store {target.name} holds repository {there}, and store {source.name} holds {repo_id}",
            hints=[f"give store {target.name} an empty folder or bucket of its own in drkit.yaml"],
        )
    known = {item.key for item in target.list(bucket.TRUST_PREFIX)}
    for item in source.list(bucket.TRUST_PREFIX):
        if item.key not in known:
            _put_once(target, item.key, read_object(source, item.key))


def sweep_leftovers(store: Store, now: datetime) -> None:
    """Take away what puts that were cut off left in a store long ago; one that cannot do it now is asked again later.

    Nothing tells a dead upload from that of another host, except its age.
    """
    with suppress(StoreError):
        store.abort_leftovers(older_than=now - _LEFTOVER_AGE)


def _make(store: Store, repo_id: str, recovery: _Recovery) -> str:
    """Make a repository; the document that says so comes last, so that after a kill in between it is made again."""
    # A new id would make strangers of all manifests that are there.
    if any(bucket.parse_manifest_key(item.key) for item in store.list(bucket.POLICIES_PREFIX)):
        raise IntegrityError(
            f"{bucket.REPO_KEY} is gone from store {store.name}, which holds artifacts",
            hints=[f"copy {bucket.REPO_KEY} back from another store of the policy", "drkit check"],
        )
    document = {"format": "drkit-repo", "version": _VERSION, "repo_id": repo_id, "features": []}
    _put_once(store, bucket.signature_key(bucket.RECOVERY_KEY), recovery.signature)
    _put_once(store, bucket.RECOVERY_KEY, recovery.text)
    try:
        store.put(bucket.REPO_KEY, [canonical_json(document)])
    except StoreExists:
        return read_repo_id(store)
    return repo_id


def publish_trust(store: Store, documents: list[Trust]) -> None:
    """Put public keys beside what they made, so that a person can tell them apart; one that is there stays."""
    there = {item.key for item in store.list(bucket.TRUST_PREFIX)}
    for document in documents:
        if document.object_key not in there:
            _put_once(store, document.object_key, document.to_bytes())


def _put_once(store: Store, key: str, content: bytes) -> None:
    try:
        store.put(key, [content])
    except StoreExists:
        return
