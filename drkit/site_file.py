"""The site file before it is checked: where it is, and the one line that a list needs of it.

Apart from `drkit.site`, because its models take longer to import than ten thousand artifacts to list.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drkit.documents import read_document
from drkit.errors import ConfigError, shell_line

SITE_FILE = "drkit.yaml"
DEFAULT_CATALOG = "sqlite:///var/catalog.db"


def read_catalog_url(path: Path) -> str:
    """Return the catalog's URL as the site file at ``path`` has it, unchecked; raise ConfigError when it is no text."""
    document = read_document(path)
    url = document.at("catalog")
    if url is None:
        return DEFAULT_CATALOG
    if not isinstance(url, str):
        problem = document.problem(("catalog",), "expected text")
        raise ConfigError("1 problem in 1 file; nothing was started", problems=[problem])
    return url


def find_site(explicit: Path | None, env: Mapping[str, str], cwd: Path) -> Path:
    """Return the site file: ``explicit``, else $DRKIT_SITE, else drkit.yaml in ``cwd`` or a folder above it."""
    named = explicit or (Path(env["DRKIT_SITE"]) if env.get("DRKIT_SITE") else None)
    if named is not None:
        path = cwd / named.expanduser()
        path = path / SITE_FILE if path.is_dir() else path
        if not path.is_file():
            source = "--site" if explicit else "DRKIT_SITE"
            raise ConfigError(
                f"there is no site file {path}, which {source} names", hints=[shell_line("drkit", "init", path.parent)]
            )
        return path.absolute()
    for folder in (cwd, *cwd.parents):
        if (folder / SITE_FILE).is_file():
            return folder / SITE_FILE
    raise ConfigError(
        f"there is no site: no {SITE_FILE} in {cwd} or a folder above it",
        hints=["drkit init", "or name one: --site PATH, or DRKIT_SITE=PATH"],
    )
