"""From the site's description of a store to the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import unquote, urlsplit

from drkit.credentials import Secret
from drkit.errors import ConfigError, StoreError
from drkit.stores import Store
from drkit.stores.naming import is_key

if TYPE_CHECKING:
    from drkit.stores.s3_connection import AccessKeys

_SCHEMES = "file:, s3: and memory:"
LOCK_FOR = timedelta(days=30)
"""How long an object stays locked where the site does not say it."""
_memory_stores: dict[str, Store] = {}


class StoreSettings(Protocol):
    """What the site says of one store; `drkit.site.StoreConfig` has these fields.

    ``access_key``, ``secret_key`` and ``session_token`` are secret references; without them boto3 looks where it always
    looks. ``object_lock`` is the retention mode, or None; ``lock_for`` is how long a lock holds, 30 days when None.
    """

    @property
    def url(self) -> str: ...  # noqa: D102
    @property
    def region(self) -> str | None: ...  # noqa: D102
    @property
    def endpoint(self) -> str | None: ...  # noqa: D102
    @property
    def path_style(self) -> bool: ...  # noqa: D102
    @property
    def ca_bundle(self) -> Path | None: ...  # noqa: D102
    @property
    def object_lock(self) -> Literal["governance", "compliance"] | None: ...  # noqa: D102
    @property
    def lock_for(self) -> timedelta | None: ...  # noqa: D102
    @property
    def access_key(self) -> str | None: ...  # noqa: D102
    @property
    def secret_key(self) -> str | None: ...  # noqa: D102
    @property
    def session_token(self) -> str | None: ...  # noqa: D102


def open_store(name: str, config: StoreSettings, site_folder: Path, resolve: Callable[[str], Secret]) -> Store:
    """Return the store that ``config`` describes; the caller closes it.

    Nothing is contacted yet. A relative ``file:`` path is relative to ``site_folder``; ``memory:`` stores are shared
    within the process by URL. Raise ConfigError for a URL that names no store.
    """
    scheme = config.url.partition(":")[0]
    if scheme == "file":
        return _open_file(name, config.url, site_folder)
    if scheme == "s3":
        return _open_s3(name, config, site_folder, resolve)
    if scheme == "memory":
        return _open_memory(name, config.url)
    raise ConfigError(f'store {name}: "{config.url}" is not a store; the schemes are {_SCHEMES}')


def _open_file(name: str, url: str, site_folder: Path) -> Store:
    from drkit.stores.file import FileStore

    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise ConfigError(
            f'store {name}: "{url}" names the host {parts.netloc}',
            hints=[f'write three slashes for a folder of this machine: "file:///{parts.netloc}{parts.path}"'],
        )
    path = unquote(parts.path)
    if not path.strip("/"):
        raise ConfigError(f'store {name}: "{url}" names no folder')
    return FileStore(name, (site_folder.absolute() / path).resolve())


def _open_memory(name: str, url: str) -> Store:
    from drkit.stores.memory import MemoryStore

    return _memory_stores.setdefault(url, MemoryStore(name, url=url))


def _open_s3(name: str, config: StoreSettings, site_folder: Path, resolve: Callable[[str], Secret]) -> Store:
    from drkit.stores.retrying import RetryingStore
    from drkit.stores.s3 import S3Store
    from drkit.stores.s3_connection import ObjectLock, S3Options

    parts = urlsplit(config.url)
    if not parts.netloc or parts.username or parts.query or parts.fragment:
        raise ConfigError(f'store {name}: "{config.url}" is not a bucket; write it like s3://bucket/prefix')
    prefix = parts.path.strip("/")
    if prefix and not is_key(prefix):
        raise ConfigError(f'store {name}: the prefix "{prefix}" has other characters than A-Z a-z 0-9 . _ - /')
    ca_bundle = site_folder / config.ca_bundle if config.ca_bundle else None
    if ca_bundle is not None and not ca_bundle.is_file():
        raise ConfigError(f"store {name}: the ca_bundle {ca_bundle} does not exist")
    options = S3Options(
        bucket=parts.netloc,
        prefix=prefix,
        region=config.region,
        endpoint=config.endpoint,
        path_style=config.path_style,
        ca_bundle=ca_bundle,
        keys=_keys(name, config, resolve),
        lock=ObjectLock(config.object_lock, config.lock_for or LOCK_FOR) if config.object_lock else None,
    )
    return RetryingStore(S3Store(name, options))


def _keys(name: str, config: StoreSettings, resolve: Callable[[str], Secret]) -> Callable[[], AccessKeys] | None:
    access_key, secret_key, session_token = config.access_key, config.secret_key, config.session_token
    if access_key is None and secret_key is None:
        return None
    if access_key is None or secret_key is None:
        raise ConfigError(f"store {name}: access_key and secret_key belong together, and only one is given")
    from drkit.stores.s3_connection import AccessKeys

    def look_up() -> AccessKeys:
        try:
            token = resolve(session_token) if session_token else None
            return AccessKeys(resolve(access_key), resolve(secret_key), token)
        except ConfigError as error:
            # A secret that is missing now is the trouble of this store, as an outage is, and keeps nothing from others.
            message = f"store {name} cannot be opened: {error.message}"
            raise StoreError(message, details=error.details, hints=error.hints) from error

    return look_up
