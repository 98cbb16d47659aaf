"""Users and roles of a backup, made in a target that has none of their names.

Roles come by ``createRole``. No command takes a user with the credentials it had, but the one that MongoDB made for
mongorestore: ``_mergeAuthzCollections`` takes users over from ``admin.tempusers`` (mongorestore, metadata.go). Without
``drop`` it replaces and removes nobody; what it cannot insert it only mentions in the server's log, so what it did is
read back. Nobody who is there already is touched, least of all the user that is connected.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from drkit.engines import RestoreOptions
from drkit.engines.mongodb_client import Client, Endpoint
from drkit.engines.mongodb_indexes import BuildOutcome
from drkit.engines.mongodb_placing import USERS_PART, chosen_names, select_names, unmatched
from drkit.engines.mongodb_users import ServerUsers, read_users_archive
from drkit.errors import IntegrityError, SourceError
from drkit.oplog_entries import ROLES, USERS
from drkit.units import format_count

_TEMPORARY = "tempusers"
"""Where mongorestore puts them too: role restore may write and read it (mongod, builtin_roles)."""
_MERGE = {"_mergeAuthzCollections": 1, "drop": False, "db": ""}
_UNAUTHORIZED, _NO_SUCH_COMMAND = 13, 59
_COMPARED = ("credentials", "customData", "authenticationRestrictions")
_READING: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
"""What applications keep with a user may have dates that Python has not."""
_MAJORITY = {"w": "majority"}
_AUTH_SCHEMA = 5
"""Of MongoDB 3.0 and later; from 8.1 on no server says so any more (SERVER-83663)."""
_SHOWN_NAMES = 5


class UsersLoad:
    """Users and roles of one restore: looked at before it, read with the other parts, made when all data is there."""

    def __init__(self, endpoint: Endpoint, options: RestoreOptions) -> None:
        self._endpoint = endpoint
        self._user_names, self._role_names = chosen_names(options)
        self._options = options
        self._held = ServerUsers({}, {})

    @property
    def words(self) -> str:
        """Say how many there are."""
        return f"{format_count(len(self._role_names), 'role')}, {format_count(len(self._user_names), 'user')}"

    def require_absent(self, client: Client) -> None:
        """Raise SourceError naming who is there already, before anything is written, and what drkit may not do."""
        if not (self._user_names or self._role_names):
            return
        schema = self._options.details["parts"][USERS_PART].get("auth_schema")
        if schema not in (None, _AUTH_SCHEMA):
            raise SourceError(
                f"the users of the backup are of auth schema {schema}, and servers now take {_AUTH_SCHEMA} alone",
                hints=["restore without --with-users, and make them anew"],
            )
        with _allowed(self._endpoint):
            connected = {_name(item, "user") for item in _connected(client)}
            mine = sorted(connected & {*self._user_names})
            if mine:
                raise SourceError(
                    f"refused: the backup has user {mine[0]}, as whom drkit is connected to {self._endpoint.server}",
                    hints=[f"leave it out: --exclude-user {mine[0]}", "or connect as another user"],
                )
            self._require_new(client)
            self._require_merge(client)

    def _require_new(self, client: Client) -> None:
        users = sorted(_name(item, "user") for item in read_named(client, "user", self._user_names))
        roles = sorted(_name(item, "role") for item in read_named(client, "role", self._role_names))
        there = [f"user {name}" for name in users] + [f"role {name}" for name in roles]
        if there:
            shown = ", ".join(there[:_SHOWN_NAMES]) + (", …" if len(there) > _SHOWN_NAMES else "")
            raise SourceError(
                f"refused: {self._endpoint.server} has {shown} already, and nobody who is there is replaced",
                hints=[
                    *[f"leave a user out: --exclude-user {name}" for name in users[:1]],
                    "or restore without --with-users",
                ],
            )

    def _require_merge(self, client: Client) -> None:
        """Find out whether the server takes users: without a collection to take them from, the command does nothing."""
        if not self._user_names:
            return
        try:
            client.admin.command(_MERGE)
        except OperationFailure as error:
            if error.code == _UNAUTHORIZED:
                raise
            if error.code == _NO_SUCH_COMMAND:
                raise SourceError(
                    f"{self._endpoint.server} takes no user with the password it had: the server has no command"
                    " _mergeAuthzCollections, which mongorestore needs as well",
                    hints=["leave the users out, and restore the roles: --exclude-user '*'"],
                ) from error
        if _TEMPORARY in client["admin"].list_collection_names():
            raise SourceError(
                f"refused: {self._endpoint.server} has collection admin.{_TEMPORARY}, by way of which users come",
                hints=[f'a restore that was killed left it: db.getSiblingDB("admin").{_TEMPORARY}.drop()'],
            )

    def read(self, chunks: Iterator[bytes]) -> None:
        """Take the archive; raise IntegrityError unless it holds those whom the details name."""
        self._held = read_users_archive(chunks, self._options.details["parts"][USERS_PART])

    @property
    def held(self) -> dict[str, dict[str, bytes]]:
        """Return the raw documents that were read, by collection and name, of whoever is left out as well."""
        return {USERS: dict(self._held.users), ROLES: dict(self._held.roles)}

    def replace(self, held: Mapping[str, Mapping[str, bytes]]) -> list[str]:
        """Go on with what became of them since the dump, by the same rules; whoever came since is looked at in `make`.

        Return whom to leave out was asked for and nobody ever had that name. It leaves everything as it is where users
        and roles were not asked for.
        """
        if not self._options.with_users:
            return []
        ever = {*self._held.users, *held[USERS]}
        self._held = ServerUsers(held[USERS], held[ROLES])
        self._user_names, self._role_names = select_names(held[USERS], held[ROLES], self._options)
        return unmatched(ever, self._options)

    def make(self, client: Client) -> Iterator[BuildOutcome]:
        """Make roles, those first that others build on, then users, and yield what came of each.

        Whoever is there by now is left as he is, and has to be as the backup says.
        """
        failed = False
        roles: dict[str, dict[str, Any]] = {
            name: bson.decode(self._held.roles[name], _READING) for name in self._role_names
        }
        for name in in_order(roles):
            outcome = _make_role(client, name, roles[name])
            failed = failed or bool(outcome.error)
            yield outcome
        if failed:
            yield from (BuildOutcome("user", name, 0, "a role is missing") for name in self._user_names)
        elif self._user_names:
            yield from self._make_users(client)

    def _make_users(self, client: Client) -> list[BuildOutcome]:
        started_s, said = time.monotonic(), ""
        try:
            before = {_name(item, "user") for item in read_named(client, "user", self._user_names)}
            taken_over = [self._held.users[name] for name in self._user_names if name not in before]
            if taken_over:
                self._merge(client, taken_over)
        except OperationFailure as failure:
            said = _words(failure)
        found = {_name(item, "user"): item for item in read_named(client, "user", self._user_names, credentials=True)}
        took_s = (time.monotonic() - started_s) / len(self._user_names)
        wanted: dict[str, dict[str, Any]] = {
            name: bson.decode(self._held.users[name], _READING) for name in self._user_names
        }
        return [
            BuildOutcome("user", name, took_s, _user_error(found.get(name), user, said))
            for name, user in wanted.items()
        ]

    def _merge(self, client: Client, users: Sequence[bytes]) -> None:
        temporary = client["admin"][_TEMPORARY]
        temporary.drop()
        try:
            # Not insert_many: what it raises repeats the documents, which have credentials.
            documents = [RawBSONDocument(user) for user in users]
            answer: dict[str, Any] = client.admin.command({"insert": _TEMPORARY, "documents": documents})
            if answer["n"] != len(documents):
                raise OperationFailure(f"the server took {answer['n']} of {len(documents)} users")
            client.admin.command({**_MERGE, "tempUsersCollection": f"admin.{_TEMPORARY}", "writeConcern": _MAJORITY})
        finally:
            with suppress(PyMongoError):
                temporary.drop()


def _make_role(client: Client, name: str, role: Mapping[str, Any]) -> BuildOutcome:
    started_s, error = time.monotonic(), ""
    body = {"createRole": role["role"], "privileges": role.get("privileges", []), "roles": role.get("roles", [])}
    if role.get("authenticationRestrictions"):
        body["authenticationRestrictions"] = role["authenticationRestrictions"]
    try:
        there = read_named(client, "role", [name])
        if not there:
            client[role["db"]].command(body)
        elif not _same_role(there[0], role):
            error = "there is another one of that name"
    except OperationFailure as failure:
        error = _words(failure)
    return BuildOutcome("role", name, time.monotonic() - started_s, error)


@contextmanager
def _allowed(endpoint: Endpoint) -> Iterator[None]:
    """Name what the connecting user may not do."""
    try:
        yield
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        raise SourceError(
            f"user {endpoint.user} may not restore users and roles: {_words(error)}",
            hints=[f'db.getSiblingDB("admin").grantRolesToUser("{endpoint.user}", [{{role: "restore", db: "admin"}}])'],
        ) from error


def read_named(client: Client, kind: str, names: Sequence[str], *, credentials: bool = False) -> list[dict[str, Any]]:
    """Return those of some users or roles that the server has; ``kind`` is user or role."""
    if not names:
        return []
    asked = [{kind: name.partition(".")[2], "db": name.partition(".")[0]} for name in names]
    more = {"showPrivileges": True} if kind == "role" else {"showCredentials": credentials}
    answer: dict[str, Any] = client.admin.command({f"{kind}sInfo": asked, **more}, codec_options=_READING)
    return [item for item in answer[f"{kind}s"] if not item.get("isBuiltin")]


def _connected(client: Client) -> list[dict[str, Any]]:
    answer: dict[str, Any] = client.admin.command("connectionStatus")
    return list(answer["authInfo"]["authenticatedUsers"])


def _name(item: Mapping[str, Any], kind: str) -> str:
    return f"{item['db']}.{item[kind]}"


def _words(error: OperationFailure) -> str:
    return str((error.details or {}).get("errmsg") or error).splitlines()[0]


def in_order(roles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of roles so that each comes after those among them that it is granted."""
    ordered: dict[str, None] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise IntegrityError(f"role {name} of the backup is granted to itself")
        for granted in roles[name].get("roles", ()):
            below = _name(granted, "role")
            if below in roles and below not in ordered:
                visit(below, (*above, name))
        ordered.setdefault(name)

    for name in roles:
        visit(name, ())
    return list(ordered)


def _same_role(found: Mapping[str, Any], role: Mapping[str, Any]) -> bool:
    return all(_sorted(found.get(key) or []) == _sorted(role.get(key) or []) for key in ("privileges", "roles"))


def _sorted(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Spell privileges or grants so that their order, and that of their actions, does not matter."""
    return sorted(
        repr(sorted((key, sorted(value) if key == "actions" else repr(value)) for key, value in item.items()))
        for item in items
    )


def _raw(value: Any) -> bytes:
    """Return the bytes of a value; what is empty is as good as nothing."""
    return bson.encode({"": value or None})


def _user_error(found: Mapping[str, Any] | None, user: Mapping[str, Any], said: str) -> str:
    """Say what is wrong with a user that was to be made; nothing where he is as the backup says."""
    if found is None:
        return said or "the server says that it took over what it was given, and has no such user"
    same = all(_raw(found.get(key)) == _raw(user.get(key)) for key in _COMPARED)
    if same and _sorted(found.get("roles") or []) == _sorted(user.get("roles") or []):
        return ""
    return "there is another one of that name"
