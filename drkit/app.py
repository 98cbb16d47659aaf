"""The one place that turns a site and its policies into objects."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from drkit.bucket import POLICIES_PREFIX
from drkit.catalog.sqlite import SqliteCatalog, catalog_path, open_catalog
from drkit.credentials import resolve
from drkit.errors import StoreError
from drkit.keys import load_signers
from drkit.operations import Workplace
from drkit.operations.running import close_lost_runs
from drkit.process_identity import start_mark
from drkit.site import PolicyScan, Site, load_site, scan_policies
from drkit.stores import Store
from drkit.stores.opening import open_store

_WORK_PREFIX = "drkit-work-"


def utc_now() -> datetime:
    """Return the wall clock, the only one that drkit records."""
    return datetime.now(UTC)


@contextmanager
def open_app(site_path: Path | None = None, clock: Callable[[], datetime] = utc_now) -> Iterator[Workplace]:
    """Open a site: read it, open its catalog, and take away what dead processes left; close everything at the end.

    Raise ConfigError for a site or policy that is wrong, CatalogError for a catalog that cannot be used.
    """
    site = load_site(site_path, os.environ, Path.cwd())
    # One bad policy file must not stop the backups of the others, and a host that only restores may have none.
    scan = read_policies(site) if site.policies_folder.is_dir() else PolicyScan({}, (), frozenset())
    policies = {name: policy for name, policy in scan.policies.items() if name not in scan.contested}
    signers = load_signers(site.keys.signers)
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(site))
        catalog = _open_catalog(site, stores)
        stack.callback(catalog.close)
        work_folder = stack.enter_context(_private_folder())
        workplace = Workplace(site, policies, scan.problems, stores, catalog, signers, work_folder, clock)
        close_lost_runs(catalog, clock())
        if catalog.scratches():
            from drkit.operations.sandboxing import reap_scratches

            reap_scratches(workplace)
        yield workplace


def read_policies(site: Site) -> PolicyScan:
    """Read the policies; what they say is kept beside the catalog, where it has a file.

    Raise ConfigError when their folder cannot be read.
    """
    path = catalog_path(site.catalog, site.folder) if site.catalog.startswith("sqlite:") else None
    return scan_policies(site, path.with_name("policies.cache") if path else None)


def _open_catalog(site: Site, stores: Mapping[str, Store]) -> SqliteCatalog:
    """Open the catalog; make it only where nothing was ever backed up.

    A catalog that is gone while the stores hold backups was lost, and with it the memory of what they should hold: that
    is said (CatalogError, with `drkit catalog rebuild`), not papered over by an empty one.
    """
    path = catalog_path(site.catalog, site.folder)
    return open_catalog(path, create=not path.exists() and not any(map(_holds_backups, stores.values())))


def _holds_backups(store: Store) -> bool:
    try:
        return next(iter(store.list(POLICIES_PREFIX)), None) is not None
    except StoreError:
        return False  # a store that is not there yet, or not now; whoever needs it will say so


class _LazyStores(Mapping[str, Store]):
    """The site's stores by name, each opened when it is first asked for."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self._site = site
        self._stack = stack
        self._open: dict[str, Store] = {}

    def __getitem__(self, name: str) -> Store:
        if name not in self._open:
            folder = self._site.folder
            store = open_store(name, self._site.stores[name], folder, lambda text: resolve(text, folder=folder))
            self._stack.callback(store.close)
            self._open[name] = store
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._site.stores)

    def __len__(self) -> int:
        return len(self._site.stores)


@contextmanager
def open_stores(site: Site) -> Iterator[Mapping[str, Store]]:
    """Lend the site's stores, each opened when it is first asked for; close them at the end."""
    with ExitStack() as stack:
        yield _LazyStores(site, stack)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Lend a folder for this process only, and remove those whose process is gone (kill -9 leaves one behind)."""
    root = Path(tempfile.gettempdir())
    mine = f"{_WORK_PREFIX}{os.getuid()}-"
    for old in root.glob(f"{mine}*"):
        pid, _, rest = old.name.removeprefix(mine).partition("-")
        dead = pid.isdigit() and start_mark(int(pid)) != rest.partition("-")[0]
        with contextlib.suppress(FileNotFoundError):  # another command may be removing it as well
            if dead and old.lstat().st_uid == os.getuid():
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-{start_mark(os.getpid())}-", dir=root))
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
