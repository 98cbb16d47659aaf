"""Users and roles of a MongoDB server: read beside a dump, into a part of their own.

They lie in database ``admin`` for all databases. What a dump holds of them is the archive that mongodump makes of
``admin.system.users``, ``system.roles`` and ``system.version``, so that mongorestore restores it as well. It has the
credentials (salted, of no use to log in but enough to guess weak passwords), so nothing but names ever leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, cast

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from drkit import __version__
from drkit.bson_elements import STRING, find_value
from drkit.engines import BackupSession, OplogRange, Part, Preflight
from drkit.engines.mongodb_client import Client, ServerFacts
from drkit.engines.mongodb_placing import USERS_PART
from drkit.engines.mongodb_raw import RAW
from drkit.errors import IntegrityError
from drkit.model import ChildRecord
from drkit.mongo_archive import ArchiveReader, CollectionSummary, Namespace
from drkit.mongo_archive_writer import Batch, CollectionMetadata, Prelude, write_archive
from drkit.oplog_accounts import account_name

USERS: Namespace = ("admin", "system.users")
ROLES: Namespace = ("admin", "system.roles")
VERSION: Namespace = ("admin", "system.version")
_KINDS = {USERS: "user", ROLES: "role"}
_LABEL = "users and roles"
_AUTH_SCHEMA = {"_id": "authSchema"}
_ROLE_FIELDS = ("role", "db", "privileges", "roles", "authenticationRestrictions")


@dataclass(frozen=True)
class ServerUsers:
    """What a server has: raw documents by name, ``database.user`` or ``database.role``, and its ``authSchema``."""

    users: Mapping[str, bytes] = field(repr=False)
    roles: Mapping[str, bytes] = field(repr=False)
    schema: bytes | None = None

    def __bool__(self) -> bool:
        """Tell whether there is anybody."""
        return bool(self.users or self.roles)

    @property
    def details(self) -> dict[str, Any]:
        """Return what an artifact's details say of them: names, and the version of their form."""
        named = {"users": sorted(self.users), "roles": sorted(self.roles)}
        version = None if self.schema is None else bson.decode(self.schema).get("currentVersion")
        schema = int(version) if isinstance(version, int | float) else None
        return {"label": _LABEL, "kind": USERS_PART, **named, "auth_schema": schema}

    @property
    def size_bytes(self) -> int:
        """Return the bytes of their documents."""
        return sum(map(len, (*self.users.values(), *self.roles.values())))

    def archive(self, server_version: str) -> Iterator[bytes]:
        """Yield them as mongodump's archive has them."""
        held = {
            USERS: list(self.users.values()),
            ROLES: list(self.roles.values()),
            VERSION: [] if self.schema is None else [self.schema],
        }
        collections = [_metadata(namespace) for namespace, documents in held.items() if documents]
        prelude = Prelude(server_version, f"drkit {__version__}", 1, collections)
        return write_archive(prelude, _batches(held))


def _metadata(namespace: Namespace) -> CollectionMetadata:
    text = f'{{"indexes":[],"collectionName":"{namespace[1]}","type":"collection"}}'
    return CollectionMetadata(namespace, "collection", text)


def _batches(held: Mapping[Namespace, Sequence[bytes]]) -> Iterator[Batch]:
    for namespace, documents in held.items():
        if documents:
            yield namespace, b"".join(documents)
            yield namespace, None


class _Sink:
    """Takes users and roles from an archive by their ``_id``: an `ArchiveSink`."""

    def __init__(self) -> None:
        self.held: dict[Namespace, dict[str, bytes]] = {USERS: {}, ROLES: {}, VERSION: {}}

    def begin(self, collections: Sequence[CollectionSummary]) -> None:
        """Raise IntegrityError for a collection that no archive of users has."""
        strange = [item.name for item in collections if (item.database, item.name) not in self.held]
        if strange:
            raise IntegrityError(f"the archive of users and roles has a collection {strange[0]}")

    def take(self, namespace: Namespace, documents: bytes, ends: Sequence[int]) -> None:
        """Take the documents of a collection."""
        for start, end in pairwise([0, *ends]):
            document = documents[start:end]
            found = find_value(document, b"_id")
            if found is None or found[0] != STRING:
                raise IntegrityError(f"{'.'.join(namespace)} of the backup has a document without a name")
            name = document[found[1] + 4 : found[2] - 1].decode(errors="replace")
            if namespace in _KINDS and account_name(document, _KINDS[namespace]) != name:
                raise IntegrityError(f"{'.'.join(namespace)} of the backup has a document {name} that names another")
            self.held[namespace][name] = document


def read_users_archive(chunks: Iterable[bytes], facts: Mapping[str, Any]) -> ServerUsers:
    """Return what `ServerUsers.archive` wrote; raise IntegrityError unless it has those whom ``facts`` name."""
    sink = _Sink()
    reader = ArchiveReader(digests=False, sink=sink)
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish()
    found = ServerUsers(sink.held[USERS], sink.held[ROLES], next(iter(sink.held[VERSION].values()), None))
    for kind in ("users", "roles"):
        if found.details[kind] != facts[kind]:
            raise IntegrityError(f"the backup does not hold the {kind} that its details name")
    return found


def read_users(client: Client, server: ServerFacts, databases: Sequence[str] = ()) -> ServerUsers:
    """Return the users and roles of some databases, of all without any.

    Read as mongodump does (role backup). A compatible server shows neither credentials nor roles there and is asked by
    ``usersInfo`` and ``rolesInfo``. Raise pymongo's OperationFailure where the connecting user may not.
    """
    if server.product:
        return _asked(client, databases)
    wanted = {"db": {"$in": list(databases)}} if databases else {}
    schema = _found(client, VERSION, _AUTH_SCHEMA)
    return ServerUsers(_found(client, USERS, wanted), _found(client, ROLES, wanted), next(iter(schema.values()), None))


def _found(client: Client, namespace: Namespace, wanted: Mapping[str, Any]) -> dict[str, bytes]:
    database, name = namespace
    found = cast("Collection[RawBSONDocument]", client[database].get_collection(name, codec_options=RAW)).find(wanted)
    return {str(document["_id"]): bytes(document.raw) for document in found}


def _asked(client: Client, databases: Sequence[str]) -> ServerUsers:
    owners = {str(item["db"]) for item in client["admin"]["system.users"].find({}, {"db": 1})}
    names = databases or sorted({"admin", "$external", *owners, *client.list_database_names()} - {"local", "config"})
    users: dict[str, bytes] = {}
    roles: dict[str, bytes] = {}
    for name in names:
        answer = client[name].command({"usersInfo": 1, "showCredentials": True}, codec_options=RAW)
        users |= {str(item["_id"]): bytes(item.raw) for item in answer["users"]}
        answer = client[name].command({"rolesInfo": 1, "showPrivileges": True}, codec_options=RAW)
        for item in answer["roles"]:
            if not item.get("isBuiltin"):
                kept = {key: item[key] for key in _ROLE_FIELDS if key in item}
                roles[f"{item['db']}.{item['role']}"] = bson.encode({"_id": f"{item['db']}.{item['role']}", **kept})
    return ServerUsers(users, roles, next(iter(_found(client, VERSION, _AUTH_SCHEMA).values()), None))


@dataclass(frozen=True)
class UsersFound:
    """What was found of users and roles before a dump; ``why_not`` says why they could not be read."""

    held: ServerUsers
    server_version: str
    why_not: str = ""


def look_for_users(client: Client, server: ServerFacts, databases: Sequence[str]) -> UsersFound:
    """Read the users and roles of some databases, of all without any; that they cannot be read fails no backup."""
    try:
        return UsersFound(read_users(client, server, databases), server.version)
    except OperationFailure as error:
        words = str((error.details or {}).get("errmsg") or error).splitlines()[0]
        why_not = f"users and roles are not in the backup: {words} (role backup of database admin lets them be read)"
        return UsersFound(ServerUsers({}, {}), server.version, why_not)


class UsersAlong:
    """A dump with users and roles as one more part; everything else is the dump's own."""

    def __init__(
        self, dump: BackupSession, found: UsersFound, look_again: Callable[[], ServerUsers] | None = None
    ) -> None:
        self._dump = dump
        self._found = found
        self._held = found.held
        self._look_again = look_again

    @property
    def preflight(self) -> Preflight:
        """Return what was found before the start."""
        before = self._dump.preflight
        warnings = [*before.warnings, self._found.why_not] if self._found.why_not else before.warnings
        part = Part(USERS_PART, USERS_PART, _LABEL, self._held.size_bytes)
        return replace(before, parts=[*before.parts, part] if self._found.held else before.parts, warnings=warnings)

    def open_part(self, part: Part) -> AbstractContextManager[Iterator[bytes]]:
        """Stream one part; see `BackupSession.open_part`."""
        return self._open_users() if part.name == USERS_PART else self._open_data(part)

    @contextmanager
    def _open_data(self, part: Part) -> Iterator[Iterator[bytes]]:
        with self._dump.open_part(part) as chunks:
            if self._found.held and self._look_again is not None:
                # By now the dump has noted its place in the oplog: what changes from here on is an entry behind it.
                self._held, self._look_again = self._look_again(), None
            yield chunks

    @contextmanager
    def _open_users(self) -> Iterator[Iterator[bytes]]:
        yield self._held.archive(self._found.server_version)

    @property
    def snapshot_at(self) -> datetime:
        """Return the dump's moment."""
        return self._dump.snapshot_at

    @property
    def position(self) -> None:
        """Return nothing: a dump has no place in the log."""

    @property
    def oplog_range(self) -> OplogRange | None:
        """Return the dump's."""
        return self._dump.oplog_range

    @property
    def warnings(self) -> Sequence[str]:
        """Return the dump's."""
        return self._dump.warnings

    @property
    def degraded(self) -> bool:
        """Return the dump's."""
        return self._dump.degraded

    @property
    def children(self) -> Sequence[ChildRecord]:
        """Return the dump's: users and roles are read by drkit itself."""
        return self._dump.children

    def details(self) -> dict[str, Any]:
        """Return the dump's, with the names of users and roles."""
        details = self._dump.details()
        if self._found.held:
            details["parts"] = {**details["parts"], USERS_PART: self._held.details}
        return details


def along(dump: BackupSession, found: UsersFound, look_again: Callable[[], ServerUsers] | None = None) -> BackupSession:
    """Add what was found to a dump; it stays as it is where there is nobody, and nothing to say.

    ``look_again`` reads them anew once the dump has begun, so that an oplog goes on where they end.
    """
    return UsersAlong(dump, found, look_again) if found.held or found.why_not else dump
