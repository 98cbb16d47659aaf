"""Where a restore puts what: chosen, left out and renamed collections, and what is refused before a server is asked."""

from __future__ import annotations

from typing import Any

import pytest

from drkit.engines import RestoreOptions
from drkit.engines.mongodb_placing import Placing, place_parts, plan_contents, tool_arguments
from drkit.errors import SourceError


def facts(database: str, *collections: str, views: tuple[str, ...] = ()) -> dict[str, Any]:
    named = {f"{database}.{name}": {"rows": 3, "options": "{}", "form": "collection"} for name in collections}
    seen = {f"{database}.{name}": {"definition": "{}"} for name in views}
    indexes = {f"{name}.b.c_1": {"definition": '{"name":"b.c_1"}'} for name in named}
    indexes |= {f"{name}._id_": {"definition": '{"name":"_id_"}'} for name in named}
    sizes = dict.fromkeys(named, 120)
    return {
        "label": database,
        "fingerprint": {"collection": named, "view": seen, "index": indexes},
        "sizes_bytes": sizes,
    }


SHOP = facts("shop", "orders", "orders.old", "Äpfel*", views=("names",))
LEDGER = facts("ledger", "entries")
SYSTEM = ["--nsExclude=admin.*", "--nsExclude=config.*", "--nsExclude=local.*"]


def options(**more: Any) -> RestoreOptions:
    details = {"server": {}, "parts": {"database-1": SHOP, "database-2": LEDGER}}
    return RestoreOptions(details=details, parts=("database-1", "database-2"), **more)


def place(**more: Any) -> Placing:
    """Return where the shop goes."""
    return place_parts(options(**more))["database-1"]


def test_everything_goes_where_it_was_and_views_are_not_for_mongorestore() -> None:
    placing = place()
    assert placing.whole == placing.databases == ("shop",)
    assert dict(placing.collections) == {name: name for name in ("shop.orders", "shop.orders.old", "shop.Äpfel*")}
    assert tool_arguments(placing, {}) == [*SYSTEM, "--nsExclude=shop.names"]


def test_chosen_ones_come_alone_and_patterns_leave_some_out() -> None:
    placing = place(tables=("shop.orders", "ledger.*"))
    assert (list(placing.collections), placing.left_out) == (
        ["shop.orders"],
        ("shop.orders.old", "shop.Äpfel*", "shop.names"),
    )
    assert placing.whole == ()
    assert tool_arguments(placing, {}) == ["--nsInclude=shop.orders"]
    placing = place(exclude_tables=("shop.orders*",))
    assert (list(placing.collections), placing.whole) == (["shop.Äpfel*"], ("shop",))
    assert tool_arguments(placing, {}) == ["--nsInclude=shop.Äpfel\\*"]


def test_a_database_with_nothing_to_load_excludes_all_of_it() -> None:
    placing = place(tables=("ledger.entries",))
    assert (dict(placing.collections), placing.databases) == ({}, ())
    assert len(tool_arguments(placing, {})) == len(SYSTEM) + 4


def test_a_collections_own_name_goes_before_its_databases() -> None:
    renames = {"shop.orders": "archive.orders", "shop": "new"}
    placing = place(renames=renames)
    assert list(placing.collections.values()) == ["archive.orders", "new.orders.old", "new.Äpfel*"]
    assert (placing.databases, placing.whole) == (("archive", "new"), ())
    assert placing.names_in("new") == ["orders.old", "Äpfel*", "names"]
    # mongorestore takes the last one that fits
    assert tool_arguments(placing, renames)[len(SYSTEM) + 1 :] == [
        "--nsFrom=shop.*", "--nsTo=new.*", "--nsFrom=shop.orders", "--nsTo=archive.orders",
    ]  # fmt: skip


def test_a_renamed_database_has_to_be_empty_as_a_whole() -> None:
    assert place(renames={"shop": "new"}).whole == ("new",)
    assert not place(renames={"shop": "new"}).renamed_alone("shop.orders")
    assert place(renames={"shop.orders": "shop.orders2"}).renamed_alone("shop.orders")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tables": ("shop.order",)}, "no collection shop.order"),
        ({"exclude_tables": ("shop.nothing*",)}, r"no collection shop.nothing\*"),
        ({"renames": {"shopp": "new"}}, "no collection shopp"),
        ({"renames": {"shop": "ledger"}, "tables": ()}, None),
        ({"renames": {"shop.orders": "shop.orders.old"}}, "both become shop.orders.old"),
        ({"renames": {"shop": "a.b"}}, "one names a database, the other a collection"),
        ({"renames": {"shop.orders": "orders"}}, "one names a database, the other a collection"),
        ({"renames": {"shop.orders": "shop."}}, "one names a database, the other a collection"),
        ({"renames": {"shop": "admin"}}, "admin is no name for a database of data"),
        ({"renames": {"shop": "a b"}}, "a b is no name"),
        ({"renames": {"shop.orders": ".orders"}}, "nothing is no name"),
        ({"renames": {"shop.orders": "shop.system.views"}}, "renames no collection of such a name"),
        ({"renames": {"shop.orders": "shop.a$b"}}, "renames no collection of such a name"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], words: str | None) -> None:
    if words is None:
        place_parts(options(**more))
        return
    with pytest.raises(SourceError, match=words):
        place_parts(options(**more))


def test_two_databases_may_not_meet_in_one_collection() -> None:
    renames = {"ledger.entries": "shop.orders"}
    with pytest.raises(SourceError, match=r"both become shop\.orders"):
        place_parts(options(renames=renames))


def test_a_plan_names_documents_sizes_and_indexes() -> None:
    planned = list(plan_contents(options(renames={"shop": "new"}, tables=("shop.*",))))
    assert [(item.kind, item.source, item.target, item.rows, item.size_bytes) for item in planned] == [
        ("collection", "shop.orders", "new.orders", 3, 120),
        ("collection", "shop.orders.old", "new.orders.old", 3, 120),
        ("collection", "shop.Äpfel*", "new.Äpfel*", 3, 120),
        ("view", "shop.names", "new.names", None, None),
    ]
    assert {item.indexes for item in planned if item.kind == "collection"} == {("b.c_1",)}


def test_a_part_with_all_databases_of_a_server_gives_those_that_are_asked_for() -> None:
    both = {kind: {**SHOP["fingerprint"][kind], **LEDGER["fingerprint"][kind]} for kind in SHOP["fingerprint"]}
    server = {"label": "all databases", "databases": ["shop", "ledger"], "fingerprint": both}
    details = {"server": {}, "parts": {"server": server}}
    placing = place_parts(RestoreOptions(details=details, parts=("server",), renames={"ledger": "old"}))["server"]
    assert placing.whole == placing.databases == ("shop", "old")
    options = RestoreOptions(details=details, parts=("server",), databases=("ledger",))
    placing = place_parts(options)["server"]
    assert (list(placing.collections), placing.whole) == (["ledger.entries"], ("ledger",))
    assert tool_arguments(placing, {}) == ["--nsInclude=ledger.entries"]
