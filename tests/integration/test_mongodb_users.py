"""Users and roles of MongoDB from a policy to a restore: genuine tools, compatible server.

SecantusDB tells users with their credentials and takes roles, but no user with credentials: what mongod does with those
is played in tests/unit/test_mongodb_users.py.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import pytest
from pymongo import MongoClient

from drkit.credentials import Secret
from drkit.engines import BackupOptions
from drkit.engines.mongodb_dump import MongodbDump
from drkit.engines.mongodb_users import ServerUsers
from tests.fixtures.mongodb import MongoServer, running_mongodb
from tests.fixtures.site import ReadySite

PASSWORD = "a-password-of-tests"
DRILL = "drills:\n  - {name: rehearsal, level: same-data}\n"
PRIVILEGES = [{"resource": {"db": "shop", "collection": "orders"}, "actions": ["find"]}]


def fill(server: MongoServer) -> None:
    """Write an order, three users, and two roles of which one is granted the other."""
    server.client["shop"]["orders"].insert_one({"_id": 1})
    shop, admin = server.client["shop"], server.client["admin"]
    shop.command("createRole", "reader", privileges=PRIVILEGES, roles=[])
    shop.command("createRole", "auditor", privileges=[], roles=[{"role": "reader", "db": "shop"}])
    shop.command("createUser", "app", pwd=PASSWORD, roles=[{"role": "reader", "db": "shop"}])
    weak = [{"role": "read", "db": "shop"}, {"role": "clusterMonitor", "db": "admin"}, {"role": "read", "db": "local"}]
    shop.command("createUser", "weak", pwd=PASSWORD, roles=weak)
    admin.command("createUser", "root", pwd=PASSWORD, roles=[{"role": "root", "db": "admin"}])


@pytest.fixture(scope="module")
def source(mongodb_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """Lend a server that wants a password, with the users of `fill`."""
    folder = tmp_path_factory.mktemp("auth") / "data"
    with running_mongodb(f"--storage-path={folder}", "--sync-on-commit") as server:
        fill(server)
    with running_mongodb(f"--storage-path={folder}", "--auth") as server:
        yield server


@pytest.fixture(scope="module")
def empty(mongodb_programs: None) -> Iterator[MongoServer]:
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


def url_of(server: MongoServer, user: str, database: str = "admin") -> str:
    return f"mongodb://{user}:{PASSWORD}@127.0.0.1:{server.port}/?directConnection=true&authSource={database}"


@pytest.mark.parametrize("via", ["tools", "native"])
def test_roles_and_users_are_kept_planned_and_restored_only_when_asked_for(
    via: str, source: MongoServer, empty: MongoServer, ready_site: ReadySite, mongo_tools: Path
) -> None:
    secret = ready_site.write_secret("source-url", url_of(source, "root"))
    path = ready_site.write_policy("shop", secret, more=DRILL)
    text = path.read_text().replace("engine: postgres", "engine: mongodb")
    path.write_text(text.replace("{method: dump}", f"{{method: dump, via: {via}}}"))
    ready_site.write_secret("target-url", empty.url.reveal())
    done = ready_site.call("backup", "shop")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    drilled = ready_site.call("drill", "shop")
    assert drilled.returncode == 0, drilled.stderr

    planned = ready_site.call("restore", "shop", "--with-users", "--plan", "--json")
    contents = [(item["kind"], item["target"]) for item in json.loads(planned.stdout)["contents"]]
    assert contents == [
        ("collection", "shop.orders"),
        *(("user", name) for name in ("admin.root", "shop.app", "shop.weak")),
        *(("role", name) for name in ("shop.auditor", "shop.reader")),
    ]
    said += planned.stdout + ready_site.call("restore", "shop", "--with-users", "--plan").stdout
    assert "shop.app  user" in said

    into = ("restore", "shop", "--to", "file:keys/target-url")
    refused = ready_site.call(*into, "--with-users")
    assert (refused.returncode, "takes no user with the password it had" in refused.stderr) == (5, True)
    assert "shop" not in empty.client.list_database_names(), "nothing was written"
    restored = ready_site.call(*into, "--with-users", "--exclude-user", "*")
    assert restored.returncode == 0, restored.stderr
    (auditor, reader) = empty.client["shop"].command("rolesInfo", 1, showPrivileges=True)["roles"]
    assert (auditor["role"], auditor["roles"]) == ("auditor", [{"role": "reader", "db": "shop"}])
    assert reader["privileges"] == PRIVILEGES
    assert empty.client["shop"].command("usersInfo", 1)["users"] == []

    empty.client.drop_database("shop")
    again = ready_site.call(*into, "--with-users", "--exclude-user", "*")
    assert "has role shop.auditor, role shop.reader already, and nobody who is there is replaced" in again.stderr
    assert "shop" not in empty.client.list_database_names()
    for name in ("auditor", "reader"):
        empty.client["shop"].command("dropRole", name)
    plain = ready_site.call(*into)
    assert plain.returncode == 0, plain.stderr
    assert empty.client["shop"].command("rolesInfo", 1)["roles"] == []
    empty.client.drop_database("shop")

    said += done.stderr + refused.stderr + restored.stderr + again.stderr + plain.stderr
    for secret_word in (PASSWORD, "storedKey", "SCRAM-SHA-256"):
        assert secret_word not in said
        for file in ready_site.folder.rglob("*"):
            if file.is_file() and "keys" not in file.parts:
                assert secret_word.encode() not in file.read_bytes(), file


def test_mongorestore_takes_the_archive_for_users_and_roles(
    empty: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    user = {"_id": "shop.app", "user": "app", "db": "shop", "credentials": {}, "roles": []}
    schema = bson.encode({"_id": "authSchema", "currentVersion": 5})
    held = ServerUsers({"shop.app": bson.encode(user)}, {}, schema)
    archive = tmp_path / "users"
    archive.write_bytes(b"".join(held.archive("8.0.4")))
    uri = f"--uri=mongodb://127.0.0.1:{empty.port}/?directConnection=true"
    done = subprocess.run(
        [mongo_tools / "mongorestore", "-v", uri, f"--archive={archive}"], capture_output=True, text=True
    )
    # As far as it comes: SecantusDB does not say which auth schema it has.
    assert "comparing auth version of the dump directory and target server" in done.stderr
    assert "error getting auth version of server" in done.stderr


def test_the_connected_user_is_never_replaced_and_a_missing_privilege_is_said(
    source: MongoServer, ready_site: ReadySite, mongo_tools: Path
) -> None:
    secret = ready_site.write_secret("source-url", url_of(source, "root"))
    path = ready_site.write_policy("shop", secret)
    text = path.read_text().replace("engine: postgres,", "engine: mongodb, databases: [shop],")
    path.write_text(text)
    done = ready_site.call("backup", "shop")
    assert done.returncode == 0, done.stderr
    planned = json.loads(ready_site.call("restore", "shop", "--with-users", "--plan", "--json").stdout)
    assert [item["target"] for item in planned["contents"] if item["kind"] == "user"] == ["shop.app", "shop.weak"]

    path.write_text(text.replace(", databases: [shop]", ""))
    assert ready_site.call("backup", "shop").returncode == 0
    with running_mongodb("--storage-path=:memory:") as other:
        other.client["admin"].command("createUser", "root", pwd="another", roles=["root"])
        ready_site.write_secret("target-url", other.url.reveal())
        refused = ready_site.call("restore", "shop", "--with-users", "--to", "file:keys/target-url")
        assert "has user admin.root already, and nobody who is there is replaced" in refused.stderr
        assert "--exclude-user admin.root" in refused.stderr

    with MongoClient[dict[str, Any]](url_of(source, "root")) as client:
        client.drop_database("shop")
        refused = ready_site.call("restore", "shop", "--with-users", "--to", "file:keys/source-url")
        assert "refused: the backup has user admin.root, as whom drkit is connected" in refused.stderr
        assert "shop" not in client.list_database_names()
        client["shop"]["orders"].insert_one({"_id": 1})

    ready_site.write_secret("weak-url", url_of(source, "weak", "shop"))
    path.write_text(text.replace("source-url", "weak-url"))
    done = ready_site.call("backup", "shop")
    assert done.returncode == 0, done.stderr
    assert "users and roles are not in the backup: " in done.stderr
    refused = ready_site.call("restore", "shop", "--with-users", "--plan")
    assert "the backup has no users and roles" in refused.stderr


@pytest.mark.parametrize("via", ["tools", "native"])
def test_a_server_that_does_not_show_its_oplog_is_dumped_without_a_place_in_it(
    via: Any, source: MongoServer, mongo_tools: Path, tmp_path: Path
) -> None:
    with MongoClient[dict[str, Any]](url_of(source, "root")) as root:
        roles = [{"role": "read", "db": "shop"}, {"role": "clusterMonitor", "db": "admin"}]
        root["shop"].command("createUser", "blind", pwd=PASSWORD, roles=roles)
        try:
            options = BackupOptions(databases=("shop",), work_folder=tmp_path, via=via)
            with MongodbDump().open_backup(Secret(url_of(source, "blind", "shop")), options) as session:
                (part,) = session.preflight.parts
                with session.open_part(part) as chunks:
                    assert b"".join(chunks)
                assert session.oplog_range is None
                said = [words for words in session.preflight.warnings if words.startswith("the oplog cannot be read")]
            assert len(said) == 1
        finally:
            root["shop"].command("dropUser", "blind")
