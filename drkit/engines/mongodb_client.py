"""Talking to a MongoDB server: connections for drkit itself, secret-free command lines for MongoDB's tools.

`connect` lends a pymongo client, `translated` is the one place where pymongo's errors become ours, and `tool_config`
lends mongodump and mongorestore a private configuration file, so that a password is never in argv.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError, ServerSelectionTimeoutError

from drkit.credentials import Secret, mask_url
from drkit.errors import ConfigError, IntegrityError, SourceError

Client = MongoClient[dict[str, Any]]

_APPLICATION = "drkit"
_SELECT_TIMEOUT_MS = 15_000
_URL = re.compile(
    r"(?P<scheme>mongodb(?:\+srv)?)://(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^@/?]+)(?:/(?P<path>[^?]*))?(?:\?(?P<query>.*))?"
)
_URL_FORM = "mongodb://USER:PASSWORD@HOST:27017/?authSource=admin"
_UNAUTHORIZED, _AUTHENTICATION_FAILED, _SNAPSHOT_TOO_OLD = 13, 18, 239
_SYSTEM_DATABASES = ("admin", "config", "local")
_COMPATIBLE = {"secantusVersion": "SecantusDB", "ferretdbVersion": "FerretDB", "ferretdb": "FerretDB"}
"""What servers that only speak MongoDB's protocol add to ``buildInfo``: a version, or a document with one."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and who connects; ``server`` is for people, ``url`` holds the password."""

    url: Secret
    server: str
    user: str


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself. ``product`` names one that is not MongoDB's own, empty otherwise.

    ``sizes_bytes`` are those of its databases on disk, without the system's own; 0 where it does not tell them cheaply.
    ``compatibility`` is its feature compatibility version, empty where it does not say.
    """

    version: str
    product: str
    replica_set: str
    sizes_bytes: Mapping[str, int]
    compatibility: str = ""

    @property
    def major(self) -> int:
        """Return the major version."""
        return int(self.version.split(".")[0])

    @property
    def keeps_cursors(self) -> bool:
        """Tell whether the server takes it that a cursor must not time out; FerretDB refuses the very word."""
        return not self.product.startswith("FerretDB")

    @property
    def label(self) -> str:
        """Return the version, and what speaks MongoDB's protocol if that is not MongoDB."""
        return f"{self.version} ({self.product}, a compatible server)" if self.product else self.version

    def document(self, endpoint: Endpoint, *, one_snapshot: bool) -> dict[str, Any]:
        """Return what an artifact's details say of the server; ``one_snapshot``: all of it was read at one moment."""
        return {
            "version": self.version,
            "major": self.major,
            "product": self.product or "MongoDB",
            "compatibility": self.compatibility,
            "replica_set": self.replica_set,
            "address": endpoint.server,
            "one_snapshot": one_snapshot,
        }


def parse_url(url: Secret) -> Endpoint:
    """Read a connection string; raise ConfigError, without the text, when it is none."""
    match = _URL.fullmatch(url.reveal().strip())
    if match is None:
        raise ConfigError(
            "the target's url is not a MongoDB connection string",
            hints=[
                f"write it like {_URL_FORM}; percent-encode @ : / ? # % in the password (: is %3A, / is %2F, @ is %40)"
            ],
        )
    return Endpoint(Secret(match[0]), match["hosts"], (match["user"] or "").partition(":")[0])


@contextmanager
def connect(endpoint: Endpoint, idle_timeout_s: float | None = None) -> Iterator[Client]:
    """Lend a client; raise SourceError naming the server and what to do. Errors inside the context are translated.

    With ``idle_timeout_s`` an answer that does not come for so long is an error as well.
    """
    idle: dict[str, Any] = {} if idle_timeout_s is None else {"socketTimeoutMS": round(idle_timeout_s * 1000)}
    with translated(endpoint):
        client: Client = MongoClient(
            endpoint.url.reveal(), appname=_APPLICATION, serverSelectionTimeoutMS=_SELECT_TIMEOUT_MS, **idle
        )
        try:
            client.admin.command("ping")
            yield client
        finally:
            client.close()


@contextmanager
def translated(endpoint: Endpoint) -> Iterator[None]:
    """Turn pymongo's errors into SourceError, or ConfigError for a connection string that it does not take."""
    try:
        yield
    except (InvalidURI, ConfigurationError) as error:
        # Their words may quote any piece of the connection string.
        raise ConfigError("the target's url is not a MongoDB connection string", hints=[f"like {_URL_FORM}"]) from error
    except ServerSelectionTimeoutError as error:
        words = str(error).partition(" (configured timeouts")[0]
        raise SourceError(
            f"cannot reach the MongoDB server {endpoint.server}",
            details=[words],
            hints=["is it running, and is the port open?"],
        ) from error
    except OperationFailure as error:
        raise _refused(endpoint, error) from error
    except PyMongoError as error:
        raise SourceError(f"{endpoint.server}: {str(error).splitlines()[0]}") from error


def _refused(endpoint: Endpoint, error: OperationFailure) -> SourceError:
    words = str((error.details or {}).get("errmsg") or error).splitlines()[0]
    hints = []
    if error.code == _AUTHENTICATION_FAILED:
        hints = ["compare user, password and authSource of the connection string"]
    elif error.code == _UNAUTHORIZED:
        hints = [f'db.grantRolesToUser("{endpoint.user}", [{{role: "backup", db: "admin"}}])']
    elif error.code == _SNAPSHOT_TOO_OLD:
        longer = "db.adminCommand({setParameter: 1, minSnapshotHistoryWindowInSeconds: 3600})"
        hints = [f"let the server keep a snapshot for longer: {longer}", "or write via: tools in the policy"]
    return SourceError(f"{endpoint.server}: {words}", hints=hints)


def read_server(client: Client) -> ServerFacts:
    """Ask a server what it is and which databases it has."""
    build, hello = client.admin.command("buildInfo"), client.admin.command("hello")
    product = _product(build)
    # SecantusDB goes through every document to tell a size.
    found = client.list_databases(nameOnly=product.startswith("SecantusDB"))
    sizes = {item["name"]: int(item.get("sizeOnDisk", 0)) for item in found if item["name"] not in _SYSTEM_DATABASES}
    replica_set, compatibility = str(hello.get("setName", "")), _compatibility(client)
    return ServerFacts(str(build["version"]), product, replica_set, sizes, compatibility)


def _product(build: Mapping[str, Any]) -> str:
    for key, name in _COMPATIBLE.items():
        said = build.get(key)
        version = said.get("version") if isinstance(said, Mapping) else said
        if isinstance(version, str):
            return f"{name} {version}"
    return ""


def _compatibility(client: Client) -> str:
    try:
        answer = client.admin.command({"getParameter": 1, "featureCompatibilityVersion": 1})
    except OperationFailure:
        return ""
    return str((answer.get("featureCompatibilityVersion") or {}).get("version", ""))


def read_clock(client: Client) -> datetime:
    """Return the server's own time."""
    moment: datetime = client.admin.command("hello")["localTime"]
    return moment.replace(tzinfo=UTC)


@contextmanager
def tool_config(endpoint: Endpoint, work_folder: Path) -> Iterator[Path]:
    """Lend the configuration file (``--config``) that leads MongoDB's tools to the server; gone afterwards.

    It has mode 0600 and lies in a folder of its own (0700) in ``work_folder``.
    """
    folder = Path(tempfile.mkdtemp(prefix="mongodb-", dir=work_folder))
    try:
        path = folder / "tools.yaml"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            # A JSON string is a YAML string.
            file.write(f"uri: {json.dumps(_without_database(endpoint.url))}\n")
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _without_database(url: Secret) -> str:
    """Return the connection string without a database, which would limit the tools to it; it stays the authSource."""
    match = _URL.fullmatch(url.reveal())
    assert match is not None
    query = match["query"] or ""
    if match["path"] and match["user"] and "authsource=" not in query.lower():
        query = f"authSource={match['path']}" + (f"&{query}" if query else "")
    user = f"{match['user']}@" if match["user"] else ""
    return f"{match['scheme']}://{user}{match['hosts']}/" + (f"?{query}" if query else "")


def dump_argv(
    mongodump: Path, config: Path, database: str | None, excluded: Sequence[str] = (), parallel: int | None = None
) -> list[str]:
    """Return the command that writes the archive of one database to its standard output.

    Without a database it is the whole server's, with the oplog of the time that it takes: mongodump does that for no
    single database. ``parallel`` collections are read at once, or as many as mongodump likes.
    """
    argv = [str(mongodump), f"--config={config}", "--archive"]
    argv += [f"--numParallelCollections={parallel}"] if parallel else []
    if database is None:
        return [*argv, "--oplog"]
    argv.append(f"--db={database}")
    return argv + [f"--excludeCollection={name}" for name in excluded]


@contextmanager
def without_secrets() -> Iterator[None]:
    """Mask passwords in what a tool said: one that loses its server repeats the whole connection string."""
    try:
        yield
    except SourceError as error:
        details = [mask_url(line) for line in error.details]
        raise SourceError(mask_url(error.message), details=details, hints=error.hints) from None


@contextmanager
def blamed_on_mongodump(database: str) -> Iterator[None]:
    """Say that an archive that is not sound is mongodump's doing: it was looked at while it was made."""
    try:
        with without_secrets():
            yield
    except IntegrityError as error:
        raise SourceError(f"database {database}: what mongodump wrote is not whole: {error.message}") from error
