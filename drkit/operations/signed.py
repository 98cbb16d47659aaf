"""Reading a signed document from a store: the one order of steps in which its bytes come to be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from drkit import bucket
from drkit.errors import IntegrityError, StoreMissing
from drkit.operations.known_signatures import KnownSignatures
from drkit.signing import MANIFEST_NAMESPACE, Signer, verify, verify_moment
from drkit.stores import Store, read_object

Document = TypeVar("Document")


@dataclass(frozen=True)
class Form(Generic[Document]):
    """How a kind of document is parsed, and which moment its signer had to be trusted at.

    Bytes that are ``known`` to be signed go through ``parse_known`` instead.
    """

    parse: Callable[[bytes, str], Document]
    signed_at: Callable[[Document], datetime]
    known: KnownSignatures | None = None
    parse_known: Callable[[bytes, str], Document] | None = None


def read_signed(
    store: Store, signers: Sequence[Signer], key: str, what: str, form: Form[Document]
) -> tuple[Document, bytes, bytes]:
    """Return a document of the manifests' namespace, its very bytes and its signature.

    It is parsed only once the signature holds, and the signer is judged again by the moment that is written in it.
    Raise StoreMissing when there is none, IntegrityError naming ``what`` when it is unsigned, changed or signed by a
    stranger.
    """
    data = read_object(store, key)
    try:
        signature = read_object(store, bucket.signature_key(key))
    except StoreMissing as error:
        raise IntegrityError(f"{what} is not signed") from error
    signer = form.known.signer_of(data, signature) if form.known else None
    if signer is not None and form.parse_known is not None:
        document = form.parse_known(data, what)
    else:
        signer = verify(data, signature, MANIFEST_NAMESPACE, signers, what=what)
        document = form.parse(data, what)
        if form.known is not None:
            form.known.note(data, signature, signer)
    verify_moment(signer, MANIFEST_NAMESPACE, signers, what=what, at=form.signed_at(document))
    return document, data, signature
