"""The few objects that make a store a drkit bucket: its identity, the public keys, and how to recover by hand."""

from __future__ import annotations

from importlib.resources import files

from ulid import ULID

from drkit import bucket
from drkit.canonical import canonical_json, parse_json
from drkit.errors import StoreError, StoreExists, StoreMissing
from drkit.operations import Workplace
from drkit.signing import Trust
from drkit.stores import Store, read_object

_VERSION = 1


def read_repo_id(store: Store) -> str:
    """Return the id of the repository in a store; raise StoreMissing when there is none yet, StoreError if too new."""
    what = f"{bucket.REPO_KEY} in store {store.name}"
    document = parse_json(read_object(store, bucket.REPO_KEY), what)
    if document.get("format") != "drkit-repo" or document.get("version") != _VERSION or document.get("features"):
        raise StoreError(
            f"{what} is of version {document.get('version')} with features {document.get('features')}; this drkit knows"
            f" version {_VERSION} without any",
            hints=["install the drkit that wrote it, or a newer one"],
        )
    return str(document["repo_id"])


def ensure_repository(workplace: Workplace, store_names: tuple[str, ...]) -> str:
    """Make the named stores one repository and return its id.

    The first store decides; a further one that is empty joins it, and one that belongs to another repository raises
    StoreError, because a manifest is bound to one repository.
    """
    first, *others = (workplace.stores[name] for name in store_names)
    repo_id = _ensure(first, str(ULID()))
    for store in others:
        there = _ensure(store, repo_id)
        if there != repo_id:
            raise StoreError(
                f"store {store.name} holds repository {there}, and store {first.name} holds {repo_id}",
                hints=[f"give store {store.name} an empty folder or bucket of its own in {workplace.site.path}"],
            )
    return repo_id


def _ensure(store: Store, repo_id: str) -> str:
    try:
        return read_repo_id(store)
    except StoreMissing:
        pass
    document = {"format": "drkit-repo", "version": _VERSION, "repo_id": repo_id, "features": []}
    try:
        store.put(bucket.REPO_KEY, [canonical_json(document)])
    except StoreExists:
        return read_repo_id(store)
    _put_once(store, bucket.RECOVERY_KEY, files("drkit").joinpath("RECOVERY.md").read_bytes())
    return repo_id


def publish_trust(store: Store, documents: list[Trust]) -> None:
    """Put public keys beside what they made, so that a person can tell them apart; one that is there stays."""
    there = {item.key for item in store.list("trust/")}
    for document in documents:
        if document.object_key not in there:
            _put_once(store, document.object_key, document.to_bytes())


def _put_once(store: Store, key: str, content: bytes) -> None:
    try:
        store.put(key, [content])
    except StoreExists:
        return
