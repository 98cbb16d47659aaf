"""Signatures that were verified on this host before, which a long log has thousands of.

Nothing that a store says is taken for it: a document and its signature are read each time, and are known by the digest
of their very bytes. Whoever can write to the store can therefore make nothing known, and nothing changed pass for what
it was. Whether the signer is still trusted, and was at that moment, is judged anew each time as well. What is restored
does not go by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress

from drkit.catalog import Catalog
from drkit.errors import CatalogError
from drkit.signing import Signer, fingerprint


class KnownSignatures:
    """What the catalog remembers of one policy's log manifests; may be asked from several threads."""

    def __init__(self, catalog: Catalog, signers: Sequence[Signer], policy: str) -> None:
        self._signatures = catalog.signatures
        self._policy = policy
        self._signers = {fingerprint(signer.public_key): signer for signer in signers}
        self._known = self._signatures.known(policy)
        self._met: dict[str, str] = {}

    def signer_of(self, data: bytes, signature: bytes) -> Signer | None:
        """Return whose signature of ``data`` it is; None when that is not known, or the key is not trusted any more."""
        digest = _digest(data, signature)
        known = self._known.get(digest)
        if known is None or known not in self._signers:
            return None
        self._met[digest] = known
        return self._signers[known]

    def note(self, data: bytes, signature: bytes, signer: Signer) -> None:
        """Take note that the signature is that signer's."""
        self._met[_digest(data, signature)] = fingerprint(signer.public_key)

    def keep(self, *, complete: bool) -> None:
        """Write down what is new; where all there is was met (``complete``), forget what was not.

        A catalog that does not take it is left as it is: the signatures are verified again the next time.
        """
        found = {digest: signer for digest, signer in self._met.items() if self._known.get(digest) != signer}
        gone = self._known.keys() - self._met.keys() if complete else set()
        if found or gone:
            with suppress(CatalogError):
                self._signatures.remember(self._policy, found, gone)


def _digest(data: bytes, signature: bytes) -> str:
    # Each of the two by its own digest: otherwise the end of one could pass for the beginning of the other.
    return hashlib.sha256(hashlib.sha256(data).digest() + hashlib.sha256(signature).digest()).hexdigest()
