"""Copies of the small signed documents beside the artifacts: whoever is given one store must find them all there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from drkit import bucket
from drkit.canonical import parse_json
from drkit.errors import IntegrityError, StoreError
from drkit.operations import Workplace
from drkit.operations.copy_result import CopiedRecord, CopyResult, NotCopied
from drkit.operations.sparing import put_signed
from drkit.signing import EVIDENCE_NAMESPACE, TOMBSTONE_NAMESPACE, Signer, verify
from drkit.stores import Store, read_object
from drkit.units import parse_utc


@dataclass(frozen=True)
class _Kind:
    """One kind of document: where it lies, what it is signed as, and which fields hold its name and its moment."""

    word: str
    key: Callable[[str, str], str]
    namespace: str
    name_field: str
    moment_field: str


_KINDS = {
    "drkit-evidence": _Kind("record", bucket.evidence_key, EVIDENCE_NAMESPACE, "run_id", "ended_at"),
    "drkit-tombstone": _Kind("tombstone", bucket.tombstone_key, TOMBSTONE_NAMESPACE, "artifact_id", "removed_at"),
    "drkit-log-tombstone": _Kind(
        "log tombstone", bucket.log_tombstone_key, TOMBSTONE_NAMESPACE, "tombstone_id", "removed_at"
    ),
    "drkit-hold": _Kind("hold", bucket.hold_key, TOMBSTONE_NAMESPACE, "hold_id", "placed_at"),
    "drkit-release": _Kind("release", bucket.release_key, TOMBSTONE_NAMESPACE, "hold_id", "released_at"),
}
_PREFIXES = (bucket.evidence_prefix, bucket.tombstones_prefix, bucket.log_tombstones_prefix, bucket.holds_prefix)


@dataclass(frozen=True)
class _Signed:
    kind: _Kind
    document: dict[str, Any]
    data: bytes
    signature: bytes


def copy_documents(workplace: Workplace, policy: str, names: Sequence[str], result: CopyResult) -> None:
    """Bring every signed document of a policy that one of the stores has to the others; raise StoreError for a listing.

    What is not signed by a pinned signer, or lies in another's place, is not spread: it is a failure, by its key.
    """
    for prefix in _PREFIXES:
        held = {name: _keys_in(workplace.stores[name], prefix(policy)) for name in names}
        for key in sorted(set().union(*held.values())):
            holders = [name for name in names if key in held[name]]
            missing = [name for name in names if key not in held[name] and name not in result.given_up]
            if missing:
                _copy(workplace, policy, key, (holders, missing), result)


def _keys_in(store: Store, prefix: str) -> set[str]:
    """Return the documents that are there with their signatures."""
    keys = {found.key for found in store.list(prefix)}
    return {key for key in keys if key.endswith(".json") and bucket.signature_key(key) in keys}


def _copy(
    workplace: Workplace, policy: str, key: str, places: tuple[Sequence[str], Sequence[str]], result: CopyResult
) -> None:
    holders, missing = places
    try:
        found = _read_sound([workplace.stores[name] for name in holders], workplace.signers, policy, key)
    except (IntegrityError, StoreError) as error:
        for name in missing:
            result.fail(NotCopied(policy, error, key, name))
        return
    copied = []
    for name in missing:
        try:
            put_signed(workplace.stores[name], key, found.data, found.signature)
        except StoreError as error:
            result.fail(NotCopied(policy, error, key, name))
        else:
            copied.append(name)
    named = str(found.document[found.kind.name_field])
    result.records += [CopiedRecord(policy, found.kind.word, named, name) for name in copied]
    if found.kind.namespace == EVIDENCE_NAMESPACE:
        workplace.catalog.index_evidence(found.document, hashlib.sha256(found.data).hexdigest(), copied)


def _read_sound(stores: Sequence[Store], signers: Sequence[Signer], policy: str, key: str) -> _Signed:
    """Read a document where it is sound; raise the first error when it is nowhere."""
    failure: IntegrityError | StoreError | None = None
    for store in stores:
        try:
            return _read(store, signers, policy, key)
        except (IntegrityError, StoreError) as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _read(store: Store, signers: Sequence[Signer], policy: str, key: str) -> _Signed:
    where = f"{key} in store {store.name}"
    data, signature = read_object(store, key), read_object(store, bucket.signature_key(key))
    document = parse_json(data, where)
    kind = _KINDS.get(str(document.get("format")))
    if kind is None:
        raise IntegrityError(f"{where} is no document that this drkit knows: {document.get('format')}")
    try:
        at = parse_utc(str(document.get(kind.moment_field)))
    except ValueError as error:
        raise IntegrityError(f"{where}: field {kind.moment_field} is missing or no moment") from error
    verify(data, signature, kind.namespace, signers, what=where, at=at)
    name = str(document.get(kind.name_field))
    if document.get("policy") != policy or key != kind.key(policy, name):
        raise IntegrityError(f"{where} is the {kind.word} {name} of policy {document.get('policy')}")
    return _Signed(kind, document, data, signature)
