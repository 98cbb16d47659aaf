"""What of the MongoDB engine needs no server: connection strings, fingerprints, archives against their facts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from drkit.credentials import Secret
from drkit.engines import RestoreOptions
from drkit.engines.mongodb_client import blamed_on_mongodump, dump_argv, parse_url, tool_config, translated
from drkit.engines.mongodb_fingerprint import fingerprint_of
from drkit.engines.mongodb_proof import expected, validate, verify_part
from drkit.engines.mongodb_restore import open_restore
from drkit.errors import ConfigError, IntegrityError, SourceError
from drkit.fingerprint import compare_fingerprints, describe_difference
from drkit.mongo_archive import read_archive

GOLDEN = (Path(__file__).parent.parent / "data" / "mongodb" / "tiny.archive").read_bytes()


@pytest.fixture
def facts() -> dict[str, Any]:
    """What the details of an artifact record of the archive."""
    return {"label": "tiny", "fingerprint": copy.deepcopy(fingerprint_of(read_archive(iter([GOLDEN]))))}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mongodb://db1", "mongodb://db1/"),
        ("mongodb://db1:27017,db2/?replicaSet=r", "mongodb://db1:27017,db2/?replicaSet=r"),
        ("mongodb://u:p%40w@db1/shop", "mongodb://u:p%40w@db1/?authSource=shop"),
        ("mongodb://u:p@db1/shop?tls=true", "mongodb://u:p@db1/?authSource=shop&tls=true"),
        ("mongodb://u:p@db1/shop?authSource=admin", "mongodb://u:p@db1/?authSource=admin"),
        ("mongodb+srv://u:p@cluster.example.org/shop", "mongodb+srv://u:p@cluster.example.org/?authSource=shop"),
    ],
)
def test_tools_are_told_where_to_go_but_not_which_database(url: str, told: str, tmp_path: Path) -> None:
    with tool_config(parse_url(Secret(url)), tmp_path) as config:
        assert config.read_text() == f'uri: "{told}"\n'
        assert config.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["postgresql://u:sesame@db1/x", "mongodb:u:sesame@db1", "mongodb://u:ses@me@db1/x y@"])
def test_another_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(Secret(url))
    assert "ses" not in "".join([caught.value.message, *caught.value.details, *caught.value.hints])


def test_people_see_the_hosts_alone() -> None:
    endpoint = parse_url(Secret("mongodb://bob:sesame@db1:27017,db2/x"))
    assert (endpoint.server, endpoint.user) == ("db1:27017,db2", "bob")
    assert "sesame" not in repr(endpoint)


def test_a_fingerprint_has_collections_views_and_indexes(facts: dict[str, Any]) -> None:
    found = facts["fingerprint"]
    assert {kind: sorted(items) for kind, items in found.items()} == {
        "collection": ["tiny.empty", "tiny.genre"],
        "view": ["tiny.names"],
        "index": ["tiny.empty._id_", "tiny.genre._id_", "tiny.genre.name_1"],
    }
    assert found["collection"]["tiny.genre"]["rows"] == 3
    assert found["index"]["tiny.genre.name_1"]["definition"] == (
        '{"key":{"name":{"$numberInt":"1"}},"name":"name_1","unique":true,"v":{"$numberInt":"2"}}'
    )
    assert "uuid" not in str(found)


def test_an_archive_that_is_what_was_recorded_is_verified(facts: dict[str, Any]) -> None:
    verify_part(facts, iter([GOLDEN]))
    verify_part(None, iter([GOLDEN]))


@pytest.mark.parametrize(("fact", "value"), [("rows", 4), ("digest", "0" * 64), ("options", '{"capped":true}')])
def test_an_archive_that_is_not_what_was_recorded_is_damage(facts: dict[str, Any], fact: str, value: object) -> None:
    facts["fingerprint"]["collection"]["tiny.genre"][fact] = value
    with pytest.raises(IntegrityError, match="does not hold the documents and definitions"):
        verify_part(facts, iter([GOLDEN]))


@pytest.mark.parametrize(
    "changed",
    [
        GOLDEN[: len(GOLDEN) // 2],
        GOLDEN.replace(b"Jazz", b"Jass"),
        GOLDEN.replace(b"genre", b"genus"),
        GOLDEN + GOLDEN,
        GOLDEN.replace(b'"unique":true', b'"sparse":true'),
    ],
    ids=["cut", "flipped", "swapped for another collection's", "twice", "with another index"],
)
def test_an_archive_in_the_place_of_the_recorded_one_is_damage(facts: dict[str, Any], changed: bytes) -> None:
    assert changed != GOLDEN
    with pytest.raises(IntegrityError):
        verify_part(facts, iter([changed]))


def test_a_damaged_archive_is_damage_also_where_nothing_is_known_of_it() -> None:
    with pytest.raises(IntegrityError, match="ends in the middle"):
        verify_part(None, iter([GOLDEN[:-1]]))


def test_counts_alone_are_compared_where_no_digests_were_recorded(facts: dict[str, Any]) -> None:
    for item in facts["fingerprint"]["collection"].values():
        del item["digest"]
    verify_part(facts, iter([GOLDEN]))


def test_a_collection_that_the_backup_does_not_have_is_refused(facts: dict[str, Any]) -> None:
    options = RestoreOptions(details={"parts": {"database-1": facts}}, parts=("database-1",), tables=("tiny.genres",))
    with pytest.raises(SourceError, match=r"no collection tiny.genres"), open_restore(Secret("mongodb://db1"), options):
        pass


def test_a_password_that_a_tool_repeats_is_masked() -> None:
    said = (
        "Failed: can't create session: failed to connect to mongodb://bob:sesame@db1:27017/?x=1: server selection error"
    )
    with pytest.raises(SourceError) as caught, blamed_on_mongodump("shop"):
        raise SourceError("mongodump failed with exit status 1", details=[said])
    assert caught.value.details == (said.replace("sesame", "***"),)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_backup_of_before_the_order_was_recorded_is_still_verified(facts: dict[str, Any]) -> None:
    recorded = facts["fingerprint"]["collection"]["tiny.genre"]
    found = {"collection": {"tiny.genre": {**recorded, "order": "0" * 64}}}
    (difference,) = compare_fingerprints({"collection": {"tiny.genre": recorded}}, found, expected)
    assert difference.expected_by
    (difference,) = compare_fingerprints(
        found, {"collection": {"tiny.genre": {**recorded, "order": "1" * 64}}}, expected
    )
    assert not difference.expected_by
    assert describe_difference(difference) == "collection tiny.genre: order differs"


class ScriptedServer:
    """A server that finds one collection damaged and does not know how to look at another."""

    def __getitem__(self, name: str) -> ScriptedServer:
        return self

    def command(self, command: str, collection: str, *, full: bool) -> dict[str, Any]:
        if collection == "empty":
            raise OperationFailure("no such command", 59)
        return {"valid": False, "errors": ["index name_1 has 2 entries for 3 documents"]}


def test_what_the_server_finds_wrong_with_a_restored_collection_is_a_difference(facts: dict[str, Any]) -> None:
    found = copy.deepcopy(facts["fingerprint"])
    validate(ScriptedServer(), found)  # type: ignore[arg-type]
    (difference,) = compare_fingerprints(facts["fingerprint"], found, expected)
    assert describe_difference(difference) == (
        "collection tiny.genre: the server finds it damaged: index name_1 has 2 entries for 3 documents"
    )


def test_mongodump_is_told_how_many_collections_to_read_at_once() -> None:
    program, config = Path("/bin/mongodump"), Path("/tmp/c")
    assert dump_argv(program, config, "shop", ["a"], 2) == [
        "/bin/mongodump",
        "--config=/tmp/c",
        "--archive",
        "--numParallelCollections=2",
        "--db=shop",
        "--excludeCollection=a",
    ]
    assert dump_argv(program, config, None) == ["/bin/mongodump", "--config=/tmp/c", "--archive", "--oplog"]


def test_a_snapshot_that_the_server_gave_up_is_told_with_what_to_do() -> None:
    with (
        pytest.raises(SourceError, match="Read timestamp is older") as caught,
        translated(parse_url(Secret("mongodb://a"))),
    ):
        raise OperationFailure("x", 239, {"errmsg": "Read timestamp is older than the oldest available timestamp."})
    assert "minSnapshotHistoryWindowInSeconds" in caught.value.hints[0]
