"""Signed documents over keeping and removing: writing them to the stores, and taking objects away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit import bucket
from drkit.errors import StoreError, StoreExists, StoreMissing
from drkit.model import Document
from drkit.operations import Workplace
from drkit.signing import TOMBSTONE_NAMESPACE, sign
from drkit.stores import Store, read_object

_MOST_VERSIONS = 16


def put_decision(
    workplace: Workplace, stores: Iterable[str], key: str, document: Document, signing_key: Ed25519PrivateKey
) -> list[StoreError]:
    """Sign a document and put it into each store; return the errors of those that did not take it.

    Raise the first error when none took it: then nothing was decided.
    """
    data = document.to_bytes()
    signature = sign(data, signing_key, TOMBSTONE_NAMESPACE)
    failures: list[StoreError] = []
    taken = 0
    for name in stores:
        try:
            put_signed(workplace.stores[name], key, data, signature)
        except StoreError as error:
            failures.append(error)
        else:
            taken += 1
    if not taken and failures:
        raise failures[0]
    return failures


def put_signed(store: Store, key: str, data: bytes, signature: bytes) -> None:
    """Put a signature and then its document; a signature without one, which a kill in between left, is replaced."""
    signature_key = bucket.signature_key(key)
    try:
        store.put(signature_key, [signature])
    except StoreExists:
        try:
            store.head(key)
        except StoreMissing:
            store.delete(signature_key)
            store.put(signature_key, [signature])
        else:
            raise
    store.put(key, [data])


def copy_decision(source: Store, target: Store, key: str) -> None:
    """Bring a decision that one store has, and that was verified there, to another store."""
    put_signed(target, key, read_object(source, key), read_object(source, bucket.signature_key(key)))


def erase(store: Store, key: str) -> None:
    """Remove an object: where a store has versions, each of them, because a marker over them frees nothing.

    Raise StoreError when one is locked; what was removed before it stays removed.
    """
    for _ in range(_MOST_VERSIONS):
        try:
            found = store.head(key)
        except StoreMissing:
            return
        store.delete(key, version_id=found.version_id)
        if found.version_id is None:
            return
    raise StoreError(f"{key} in store {store.name} has more than {_MOST_VERSIONS} versions, and not all are removed")


def erase_in_order(store: Store, document_key: str, data_keys: Sequence[str]) -> None:
    """Remove a document, its signature, then its data (R2 of docs/format.md): what is visible is always whole."""
    documents = (document_key, bucket.signature_key(document_key))
    erase_all(store, (*documents, *(key for key in data_keys if key not in documents)))


def erase_all(store: Store, keys: Iterable[str]) -> None:
    """Remove objects in this order; raise StoreError at the first that is not removed."""
    for key in keys:
        erase(store, key)


def locked_until(store: Store, keys: Iterable[str]) -> datetime | None:
    """Return until when any of these objects is locked, None where none is or the store knows no locks."""
    ends: list[datetime] = []
    for key in keys if store.traits.object_lock else ():
        try:
            end = store.head(key).locked_until
        except StoreMissing:
            continue
        ends += [end] if end is not None else []
    return max(ends, default=None)
