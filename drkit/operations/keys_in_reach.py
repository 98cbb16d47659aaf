"""Which recipients the identities of this host open, by the public halves; nothing is decrypted to find out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from drkit.errors import ConfigError, IntegrityError, KeyUnavailable
from drkit.keys import load_identities, public_half, recipient_fingerprint


class KeysInReach:
    """The identity files that a site names; each is read again when it has changed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._read: dict[Path, tuple[int, frozenset[str]]] = {}

    def fingerprints(self) -> frozenset[str]:
        """Return the fingerprints of the recipients whose identities are here, locked ones as well."""
        return frozenset().union(*map(self._of, self._paths))

    def _of(self, path: Path) -> frozenset[str]:
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return frozenset()
        known = self._read.get(path)
        if known is None or known[0] != changed:
            self._read[path] = known = changed, _look_at(path)
        return known[1]


def _look_at(path: Path) -> frozenset[str]:
    try:
        return frozenset(key.fingerprint for key in load_identities([path], None))
    except KeyUnavailable:  # it is locked, and who restores is asked for its passphrase
        recipient = public_half(path)
        return frozenset([recipient_fingerprint(recipient)] if recipient else ())
    except (ConfigError, IntegrityError):
        return frozenset()
