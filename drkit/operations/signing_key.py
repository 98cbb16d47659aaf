"""The site's signing key, which backups and drills cannot do without."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit.errors import ConfigError
from drkit.keys import load_signing_key
from drkit.site import Site


def load_site_signing_key(site: Site) -> Ed25519PrivateKey:
    """Read the site's signing key; raise ConfigError on a host that has none."""
    if site.keys.signing is None:
        raise ConfigError(
            f"{site.path}: keys.signing is not set, and what is not signed is neither a backup nor a proof",
            hints=["drkit keys new signing --signing"],
        )
    return load_signing_key(site.keys.signing)
