"""Which signatures of a policy's log manifests were verified on this host, so that it is not done at each check."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from drkit.catalog.tables import Tables


class Signatures(Protocol):
    """Digests of signed documents, each with the fingerprint of who signed; every method may raise CatalogError."""

    def known(self, policy: str) -> dict[str, str]:
        """Return what is remembered for a policy: the signer's fingerprint by digest."""

    def remember(self, policy: str, found: Mapping[str, str], forget: Collection[str]) -> None:
        """Remember what was ``found``, and ``forget`` some digests, in one step."""


class SqliteSignatures(Tables, Signatures):
    """The table ``signatures`` of a catalog."""

    def known(self, policy: str) -> dict[str, str]:
        """Return what is remembered for a policy: the signer's fingerprint by digest."""
        found = self._read("select digest, signer from signatures where policy = ?", (policy,))
        return {str(row["digest"]): str(row["signer"]) for row in found}

    def remember(self, policy: str, found: Mapping[str, str], forget: Collection[str]) -> None:
        """Remember what was ``found``, and ``forget`` some digests, in one step."""
        with self._transaction() as connection:
            connection.executemany(
                "insert or replace into signatures (policy, digest, signer) values (?, ?, ?)",
                [(policy, digest, signer) for digest, signer in found.items()],
            )
            connection.executemany(
                "delete from signatures where policy = ? and digest = ?", [(policy, digest) for digest in forget]
            )
