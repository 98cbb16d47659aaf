"""Users and roles in a replayed oplog: applied when they are asked for, else named. Entries are made by hand."""

from __future__ import annotations

from typing import Any

import bson
import pytest

from drkit.engines import RestoreOptions
from drkit.engines.mongodb_apply import Replayed
from drkit.engines.mongodb_replay_scope import accounts_belong
from drkit.operations.replay_words import describe_accounts
from drkit.oplog_accounts import Accounts
from drkit.oplog_entries import ROLES, USERS
from drkit.oplog_transactions import Transactions
from tests.unit.oplog_entries import bundle, bundled, command, delete, insert, replace, update
from tests.unit.test_mongodb_users import READING, Mongod, held, made, prepared, role, user


def replayed(
    entries: list[bytes], *, wanted: bool = True, belongs: Any = lambda database: database == "shop"
) -> Accounts:
    start = held()
    accounts = Accounts(wanted, {USERS: dict(start.users), ROLES: dict(start.roles)}, belongs)
    transactions = Transactions()
    for raw in entries:
        for operation in transactions.take(raw).operations:
            assert accounts.take(operation) == operation.namespace.startswith("admin.system.")
    return accounts


def test_whoever_asks_for_users_gets_them_as_they_were_at_the_moment() -> None:
    rights = [{"role": "reader", "db": "shop"}]
    accounts = replayed(
        [
            insert(1, USERS, user("new", "reader")),
            update(
                2, USERS, "shop.app", {"u": {"roles": rights}, "scredentials": {"sSCRAM-SHA-256": {"u": {"salt": "z"}}}}
            ),
            delete(3, USERS, "shop.report"),
            insert(4, "shop.orders", {"_id": 1}),
            replace(5, ROLES, {**role("auditor", database="admin"), "privileges": []}),
            # From 5.0 on a role is dropped, with all the grants of it, in one transaction.
            bundle(
                6,
                [
                    bundled("d", ROLES, {"_id": "shop.boss"}),
                    bundled("u", USERS, {"$v": 2, "diff": {"u": {"roles": []}}}, o2={"_id": "admin.root"}),
                ],
                session=1,
                first=True,
            ),
        ]
    )
    assert accounts.left_out == {}
    users = {name: bson.decode(raw, READING) for name, raw in accounts.held[USERS].items()}
    assert {*users} == {"shop.app", "admin.root", "shop.new"}
    assert (users["shop.app"]["roles"], users["admin.root"]["roles"]) == (rights, [])
    assert users["shop.app"]["credentials"]["SCRAM-SHA-256"]["salt"] == "z"
    assert {*accounts.held[ROLES]} == {"shop.writer", "shop.reader", "admin.auditor"}
    assert bson.decode(accounts.held[ROLES]["admin.auditor"])["privileges"] == []


def test_what_became_of_them_is_what_is_made_by_the_rules_that_were_asked_for() -> None:
    server = Mongod()
    load = prepared(held(), exclude_users=("*.re*",))
    load.require_absent(server)  # type: ignore[arg-type]
    accounts = Accounts(True, load.held, lambda _: True)
    transactions = Transactions()
    for raw in [
        insert(1, USERS, user("new", "reader")),
        insert(2, USERS, user("rehearsal", "reader")),
        delete(3, USERS, "shop.report"),
        delete(4, ROLES, "shop.boss"),
    ]:
        for operation in transactions.take(raw).operations:
            accounts.take(operation)
    load.replace(accounts.held)
    assert set(made(load, server).values()) == {""}
    assert {*server.users} == {"shop.app", "admin.root", "shop.new"}
    assert {*server.roles} == {"shop.writer", "shop.reader", "admin.auditor"}


def test_whoever_is_there_by_then_is_not_replaced_by_one_who_came_since_the_dump() -> None:
    server = Mongod(users={"shop.new": user("new", "writer")})
    load = prepared(held())
    load.require_absent(server)  # type: ignore[arg-type]
    load.replace({**load.held, USERS: {**load.held[USERS], "shop.new": bson.encode(user("new", "reader"))}})
    assert made(load, server)["user shop.new"] == "there is another one of that name"
    assert server.users["shop.new"] == user("new", "writer")


def test_without_asking_they_are_named() -> None:
    entries = [insert(number, USERS, user(f"u{number}")) for number in range(6)]
    accounts = replayed([*entries, delete(7, ROLES, "shop.boss")], wanted=False)
    assert {**accounts.held[USERS]} == held().users
    (said,) = describe_accounts(Replayed(left_out=accounts.left_out))
    assert said == (
        "the oplog changes user shop.u0, user shop.u1, user shop.u2, user shop.u3, user shop.u4, …,"
        " left out because nobody asked for users: --with-users brings them"
    )


@pytest.mark.parametrize(
    ("entry", "label", "why"),
    [
        (update(1, USERS, "shop.app", {"z": {}}), "user shop.app", 'has key "z"'),
        (update(1, USERS, "shop.ünbekannt", {"u": {"roles": []}}), "user shop.ünbekannt", "does not have"),
        (insert(1, USERS, user("spy", database="other")), "user other.spy", "not of that database"),
        (update(1, ROLES, "shop.writer", {"sroles": {"a": True, "q0": 1}}), "role shop.writer", 'has key "q0"'),
        (insert(1, USERS, {**user("new"), "user": "boss", "db": "admin"}), "user shop.new", "it names admin.boss"),
        (update(1, USERS, "shop.app", {"u": {"db": "admin"}}), "user shop.app", "it names admin.app"),
        (replace(1, ROLES, {**role("writer"), "role": 7}), "role shop.writer", "it names shop.?"),
    ],
)
def test_whom_an_entry_leaves_in_doubt_is_left_out_by_name_until_a_later_one_says(
    entry: bytes, label: str, why: str
) -> None:
    accounts = replayed([entry])
    assert why in accounts.left_out[label]
    name = label.partition(" ")[2]
    assert name not in {**accounts.held[USERS], **accounts.held[ROLES]}
    (said,) = describe_accounts(Replayed(left_out=accounts.left_out))
    assert said.startswith(f"{label} is not restored: ")
    namespace = USERS if label.startswith("user") else ROLES
    assert replayed([entry, delete(2, namespace, name)]).left_out == {}


def test_accounts_of_databases_that_the_backup_is_not_of_do_not_belong() -> None:
    def belongs(**parts: Any) -> Any:
        options = RestoreOptions(details={"parts": parts}, parts=())
        return accounts_belong(options, {USERS: {"admin.root": b""}, ROLES: {}})

    some = belongs(a={"label": "shop", "kind": "database"}, users={"label": "users and roles", "kind": "users"})
    assert [some(name) for name in ("shop", "admin", "other", "users and roles")] == [True, True, False, False]
    assert belongs(a={"label": "all databases", "kind": "server", "databases": ["shop"]})("other")


def test_no_other_collection_of_the_system_is_an_account() -> None:
    accounts = replayed(
        [command(1, "admin", {"create": "system.users"}), insert(2, "admin.system.version", {"_id": 1})]
    )
    assert (accounts.left_out, {**accounts.held[USERS]}) == ({}, held().users)
