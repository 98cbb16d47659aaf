"""Users and roles of MongoDB: read, kept, and made in a server that is played after mongod's sources.

The compatible server has no ``_mergeAuthzCollections``, so a scripted one stands in for mongod here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import bson
import pytest
from bson import Binary, DatetimeMS
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from drkit.credentials import Secret
from drkit.engines import BackupSession, Part, Preflight, RestoreOptions
from drkit.engines.mongodb_client import Endpoint, ServerFacts
from drkit.engines.mongodb_placing import plan_contents
from drkit.engines.mongodb_proof import verify_part
from drkit.engines.mongodb_users import ServerUsers, UsersAlong, UsersFound, look_for_users
from drkit.engines.mongodb_users_restore import UsersLoad, in_order
from drkit.errors import DrkitError, IntegrityError, SourceError
from drkit.mongo_archive import read_archive

FAR = DatetimeMS(253402300800000 * 2)
"""A moment after the year 9999, which Python has not."""
SECRET = "c3RvcmVkIGtleQ=="
READING: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
ENDPOINT = Endpoint(Secret("mongodb://boss:geheim@db1/"), "db1:27017", "boss")
MONGOD = ServerFacts("8.0.4", "", "rs0", {"shop": 1})


def user(name: str, *roles: str, database: str = "shop", **more: Any) -> dict[str, Any]:
    """One document of ``admin.system.users``."""
    return {
        "_id": f"{database}.{name}",
        "userId": Binary(name.encode().ljust(16), 4),
        "user": name,
        "db": database,
        "credentials": {"SCRAM-SHA-256": {"iterationCount": 15000, "salt": "c2FsdA==", "storedKey": SECRET}},
        "roles": [{"role": role, "db": database} for role in roles],
        **more,
    }


def role(name: str, *granted: str, database: str = "shop") -> dict[str, Any]:
    """One document of ``admin.system.roles``."""
    privileges = [{"resource": {"db": database, "collection": name}, "actions": ["find", "insert"]}]
    roles = [{"role": other, "db": database} for other in granted]
    return {"_id": f"{database}.{name}", "role": name, "db": database, "privileges": privileges, "roles": roles}


USERS = [
    user("app", "writer"),
    user("report", "reader", customData={"team": "bi", "until": FAR, "rate": float("nan")}),
    user("root", "root", database="admin"),
]
ROLES = [role("boss", "writer"), role("writer", "reader"), role("reader"), role("auditor", database="admin")]


def held(users: Sequence[Mapping[str, Any]] = USERS, roles: Sequence[Mapping[str, Any]] = ROLES) -> ServerUsers:
    documents = [{item["_id"]: bson.encode(item) for item in items} for items in (users, roles)]
    return ServerUsers(*documents, bson.encode({"_id": "authSchema", "currentVersion": 5}))


@dataclass
class Mongod:
    """What mongod does with users and roles, from user_management_commands.cpp; ``refuses`` gives codes by command."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    connected: list[dict[str, str]] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)
    ignores: set[str] = field(default_factory=set)
    temporary: list[dict[str, Any]] | None = None
    said: list[str] = field(default_factory=list)

    @property
    def admin(self) -> _Database:
        return _Database(self, "admin")

    def __getitem__(self, name: str) -> _Database:
        return _Database(self, name)


@dataclass
class _Database:
    server: Mongod
    name: str

    def command(self, command: Any, **_: Any) -> dict[str, Any]:
        body = {command: 1} if isinstance(command, str) else command
        word, value = next(iter(body.items()))
        self.server.said.append(word)
        if word in self.server.refuses:
            raise OperationFailure(
                f"not authorized to {word}", self.server.refuses[word], {"errmsg": f"may not {word}"}
            )
        answer: dict[str, Any] = getattr(self, f"_{word.lstrip('_')}")(value, body)
        return answer

    def _connectionStatus(self, *_: Any) -> dict[str, Any]:  # noqa: N802
        return {"authInfo": {"authenticatedUsers": self.server.connected}}

    def _usersInfo(self, asked: Any, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        found = [self.server.users.get(f"{item['db']}.{item['user']}") for item in asked]
        hidden = () if body["showCredentials"] else ("credentials",)
        return {"users": [{k: v for k, v in item.items() if k not in hidden} for item in found if item]}

    def _rolesInfo(self, asked: Any, _: Any) -> dict[str, Any]:  # noqa: N802
        found = [self.server.roles.get(f"{item['db']}.{item['role']}") for item in asked]
        return {"roles": [{**item, "isBuiltin": False, "inheritedRoles": []} for item in found if item]}

    def _createRole(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        for granted in body["roles"]:
            if f"{granted['db']}.{granted['role']}" not in self.server.roles:
                raise OperationFailure("no role", 31, {"errmsg": f"No role named {granted['role']}@{granted['db']}"})
        made = {"role": name, "db": self.name, "privileges": body["privileges"], "roles": body["roles"]}
        self.server.roles[f"{self.name}.{name}"] = made
        return {"ok": 1}

    def _insert(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert (self.name, name) == ("admin", "tempusers")
        self.server.temporary = [bson.decode(item.raw, READING) for item in body["documents"]]
        return {"n": len(body["documents"])}

    def _mergeAuthzCollections(self, _: Any, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        if "tempUsersCollection" not in body:
            raise OperationFailure("nothing to take over", 2, {"errmsg": "Must provide at least one"})
        assert body["drop"] is False
        assert body["tempUsersCollection"] == "admin.tempusers"
        for item in self.server.temporary or []:
            if item["_id"] not in self.server.ignores:
                self.server.users.setdefault(item["_id"], item)
        return {"ok": 1}

    def list_collection_names(self) -> list[str]:
        return [] if self.server.temporary is None else ["tempusers"]

    def __getitem__(self, name: str) -> _Database:
        return self

    def drop(self) -> None:
        self.server.temporary = None

    def get_collection(self, name: str, **_: Any) -> _Found:
        if "find" in self.server.refuses:
            raise OperationFailure("not authorized", 13, {"errmsg": "not authorized on admin to find"})
        items = {"system.users": self.server.users, "system.roles": self.server.roles}.get(name, {})
        return _Found(list(items.values()))


@dataclass
class _Found:
    items: list[dict[str, Any]]

    def find(self, wanted: Mapping[str, Any]) -> list[RawBSONDocument]:
        among = wanted.get("db", {}).get("$in")
        return [RawBSONDocument(bson.encode(item)) for item in self.items if among is None or item["db"] in among]


def prepared(found: ServerUsers, **more: Any) -> UsersLoad:
    details = {"parts": {"users": found.details, "server": {"label": "all", "kind": "server"}}}
    load = UsersLoad(ENDPOINT, RestoreOptions(details=details, parts=("server",), with_users=True, **more))
    load.read(iter(found.archive("8.0.4")))
    return load


def made(load: UsersLoad, server: Mongod) -> dict[str, str]:
    return {outcome.label: outcome.error for outcome in load.make(cast("Any", server))}


def test_roles_come_before_those_that_are_granted_them_and_users_last() -> None:
    server = Mongod()
    load = prepared(held())
    load.require_absent(cast("Any", server))
    assert server.said.count("createRole") == 0
    outcome = made(load, server)
    assert set(outcome.values()) == {""}
    names = list(outcome)
    assert names.index("role shop.reader") < names.index("role shop.writer") < names.index("role shop.boss")
    assert [name for name in names if name.startswith("user")] == names[4:]
    assert {name: bson.encode(item) for name, item in server.users.items()} == held().users, "as they were"
    assert server.temporary is None
    assert load.words == "4 roles, 3 users"
    again = made(load, server)
    assert set(again.values()) == {""}, "whoever is there as the backup says is left as he is"
    assert server.said.count("insert") == 1


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (Mongod(connected=[{"user": "root", "db": "admin"}]), "refused: the backup has user admin.root, as whom drkit"),
        (Mongod(users={"shop.app": user("app")}), "refused: db1:27017 has user shop.app already"),
        (Mongod(roles={"shop.boss": role("boss")}), "refused: db1:27017 has role shop.boss already"),
        (Mongod(temporary=[]), "refused: db1:27017 has collection admin.tempusers"),
        (Mongod(refuses={"_mergeAuthzCollections": 59}), "takes no user with the password it had"),
        (Mongod(refuses={"_mergeAuthzCollections": 13}), "user boss may not restore users and roles: may not _merge"),
        (Mongod(refuses={"usersInfo": 13}), "user boss may not restore users and roles: may not usersInfo"),
    ],
)
def test_nobody_is_replaced_and_what_is_not_allowed_is_named_before_anything_is_written(
    server: Mongod, words: str
) -> None:
    with pytest.raises(SourceError) as caught:
        prepared(held()).require_absent(cast("Any", server))
    assert words in caught.value.message
    assert caught.value.hints
    assert not {"insert", "createRole"} & {*server.said}


def test_users_of_an_older_form_are_refused() -> None:
    old = ServerUsers(held().users, held().roles, bson.encode({"_id": "authSchema", "currentVersion": 3}))
    with pytest.raises(SourceError, match="are of auth schema 3"):
        prepared(old).require_absent(cast("Any", Mongod()))


def test_the_connected_user_is_left_out_when_asked_and_stays_as_it_was() -> None:
    mine = {**user("root", database="admin"), "credentials": {"SCRAM-SHA-256": {"storedKey": "mine"}}}
    server = Mongod(users={"admin.root": mine}, connected=[{"user": "root", "db": "admin"}])
    load = prepared(held(), exclude_users=("admin.*",))
    load.require_absent(cast("Any", server))
    assert set(made(load, server).values()) == {""}
    assert server.users["admin.root"] == mine
    assert sorted(server.users) == ["admin.root", "shop.app", "shop.report"]


def test_a_user_that_the_server_did_not_take_or_that_came_meanwhile_is_named() -> None:
    server = Mongod(ignores={"shop.report"}, users={"shop.app": user("app", "other")})
    outcome = made(prepared(held()), server)
    assert outcome["user shop.report"] == "the server says that it took over what it was given, and has no such user"
    assert outcome["user shop.app"] == "there is another one of that name"
    assert outcome["user admin.root"] == ""
    refused = made(prepared(held()), Mongod(refuses={"insert": 13}))
    assert refused["user shop.app"] == "may not insert"


def test_whom_only_the_oplog_brings_can_be_left_out_by_name_and_a_name_of_nobody_is_told() -> None:
    mine = user("late", "other")
    server = Mongod(users={"shop.late": mine})
    load = prepared(held(), replays=True, exclude_users=("shop.late", "shop.lat", "admin.root"))
    load.require_absent(cast("Any", server))
    now = load.held
    now["admin.system.users"]["shop.late"] = bson.encode(user("late"))
    del now["admin.system.users"]["admin.root"]
    assert load.replace(now) == ["shop.lat"]
    assert set(made(load, server).values()) == {""}
    assert sorted(server.users) == ["shop.app", "shop.late", "shop.report"]
    assert server.users["shop.late"] == mine


def test_users_wait_for_their_roles() -> None:
    server = Mongod(roles={"shop.reader": role("reader", "other")})
    outcome = made(prepared(held()), server)
    assert outcome["role shop.reader"] == "there is another one of that name"
    assert outcome["user shop.app"] == "a role is missing"
    assert server.users == {}
    with pytest.raises(IntegrityError, match="is granted to itself"):
        in_order({"shop.a": role("a", "b"), "shop.b": role("b", "a")})


def test_only_those_of_the_databases_asked_for_come() -> None:
    server = Mongod()
    load = prepared(held(), databases=("shop",))
    assert set(made(load, server).values()) == {""}
    assert sorted(server.users) == ["shop.app", "shop.report"]
    assert "admin.auditor" not in server.roles


def test_the_plan_names_them_and_refuses_whom_the_backup_does_not_have() -> None:
    details = {"parts": {"users": held().details, "server": {"label": "all", "kind": "server"}}}
    options = RestoreOptions(details=details, parts=("server",), with_users=True, exclude_users=("*.report",))
    assert [(item.part, item.kind, item.target) for item in plan_contents(options)] == [
        *(("users", "user", name) for name in ("admin.root", "shop.app")),
        *(("users", "role", name) for name in ("admin.auditor", "shop.boss", "shop.reader", "shop.writer")),
    ]
    assert list(plan_contents(RestoreOptions(details=details, parts=("server",)))) == []
    strange = RestoreOptions(details=details, parts=("server",), with_users=True, exclude_users=("shop.nobody",))
    with pytest.raises(SourceError, match=r"has no user shop\.nobody"):
        list(plan_contents(strange))
    without = RestoreOptions(details={"parts": {"server": {"label": "all"}}}, parts=("server",), with_users=True)
    with pytest.raises(SourceError, match="the backup has no users and roles"):
        list(plan_contents(without))


def test_what_a_backup_keeps_is_an_archive_and_its_details_have_names_alone() -> None:
    found = held()
    archive = b"".join(found.archive("8.0.4"))
    summary = read_archive(iter([archive]), digests=False)
    assert [(item.database, item.name, item.documents) for item in summary.collections] == [
        ("admin", "system.users", 3),
        ("admin", "system.roles", 4),
        ("admin", "system.version", 1),
    ]
    assert SECRET.encode() in archive
    for said in (json.dumps(found.details), repr(found)):
        assert SECRET not in said
        assert "SCRAM" not in said
    assert verify_part(found.details, iter([archive])) == ()
    assert verify_part(None, iter([archive])) == ()
    posing = held(users=[{**USERS[0], "user": "root", "db": "admin"}])
    with pytest.raises(IntegrityError, match="that names another"):
        verify_part(posing.details, posing.archive("8.0.4"))
    fewer = b"".join(held(users=USERS[:2]).archive("8.0.4"))
    with pytest.raises(IntegrityError, match="does not hold the users that its details name"):
        verify_part(found.details, iter([fewer]))
    with pytest.raises(IntegrityError):
        verify_part(found.details, iter([archive[:-20]]))


def test_no_error_of_a_damaged_or_refused_restore_has_credentials() -> None:
    errors: list[str] = []
    for server in (Mongod(refuses={"insert": 13}), Mongod(ignores={"shop.app"}), Mongod(refuses={"createRole": 13})):
        errors += made(prepared(held()), server).values()
    archive = b"".join(held().archive("8.0.4"))
    for place in range(0, len(archive), 97):
        damaged = archive[:place] + bytes([archive[place] ^ 0x20]) + archive[place + 1 :]
        try:
            verify_part(held().details, iter([damaged]))
        except DrkitError as error:
            errors += [error.message, *error.details, *error.hints]
    assert errors
    assert not any(SECRET in item or "storedKey" in item for item in errors)


class _Dump:
    """A dump in progress that has one part and nothing else."""

    preflight = Preflight("summary", {}, [Part("server", "server", "all")])
    warnings = children = ()

    def details(self) -> dict[str, Any]:
        return {"server": {}, "parts": {"server": {"label": "all"}}}

    @contextmanager
    def open_part(self, part: Part) -> Iterator[Iterator[bytes]]:
        yield iter([part.name.encode()])


def test_a_dump_gets_a_part_for_those_that_there_are_and_a_warning_where_they_cannot_be_read() -> None:
    server = Mongod(users={item["_id"]: item for item in USERS}, roles={item["_id"]: item for item in ROLES})
    found = look_for_users(cast("Any", server), MONGOD, ())
    assert (sorted(found.held.users), len(found.held.roles)) == (["admin.root", "shop.app", "shop.report"], 4)
    along = UsersAlong(cast("BackupSession", _Dump()), found)
    part = along.preflight.parts[-1]
    assert (part.name, part.kind) == ("users", "users")
    with along.open_part(part) as chunks:
        assert verify_part(along.details()["parts"]["users"], _all(chunks)) == ()
    some = look_for_users(cast("Any", server), MONGOD, ("shop",))
    assert sorted(some.held.users) == ["shop.app", "shop.report"]
    refused = look_for_users(cast("Any", Mongod(refuses={"find": 13})), MONGOD, ())
    along = UsersAlong(cast("BackupSession", _Dump()), refused)
    assert len(along.preflight.parts) == 1
    assert "users and roles are not in the backup: not authorized on admin" in along.preflight.warnings[0]
    assert list(along.details()["parts"]) == ["server"]
    nobody = UsersAlong(cast("BackupSession", _Dump()), look_for_users(cast("Any", Mongod()), MONGOD, ()))
    assert (len(nobody.preflight.parts), list(nobody.preflight.warnings)) == (1, [])


@pytest.mark.parametrize("later", [held([user("late")], []), ServerUsers({}, {})])
def test_users_are_those_of_when_the_dump_had_its_place_in_the_oplog(later: ServerUsers) -> None:
    looks: list[ServerUsers] = []

    def look_again() -> ServerUsers:
        looks.append(later)
        return later

    found = UsersFound(held(), "8.0.4")
    along = UsersAlong(cast("BackupSession", _Dump()), found, look_again)
    data, users = along.preflight.parts
    for _ in range(2):
        with along.open_part(data) as chunks:
            assert b"".join(chunks) == b"server"
    with along.open_part(users) as chunks:
        assert verify_part(along.details()["parts"]["users"], chunks) == ()
    assert along.details()["parts"]["users"]["users"] == [*later.users]
    assert len(looks) == 1


def _all(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks
