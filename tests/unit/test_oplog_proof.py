"""What a replayed restore is held against, and that a difference is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drkit.engines import RestoreOptions
from drkit.engines.mongodb_fingerprint import fingerprint_of
from drkit.engines.mongodb_placing import place_parts, plan_contents
from drkit.engines.mongodb_redo import Progress, RedoFile
from drkit.engines.mongodb_replay_proof import comparable, expected_fingerprint
from drkit.engines.mongodb_replay_scope import catalog_at_dump, name_in_target, totals_at_dump
from drkit.errors import IntegrityError, RecoveryGap
from drkit.fingerprint import compare_fingerprints, describe_difference
from drkit.mongo_archive import ArchiveSummary, CollectionSummary
from drkit.oplog import OplogTs
from drkit.oplog_catalog import OplogCatalog
from drkit.oplog_entries import Write
from drkit.oplog_images import Image
from drkit.oplog_series import as_of_series

DIGEST = 0xABC
CATALOG = OplogCatalog(
    {"shop.orders": {"by day": {"key": {"day": 1}, "name": "by day"}}, "shop.log": {}},
    views={"shop.late": {"viewOn": "orders"}},
    capped={"shop.log"},
)
TOTALS: dict[str, tuple[int, int | None]] = {"shop.orders": (3, DIGEST), "shop.log": (9, 1)}


def restored(**changes: Any) -> dict[str, dict[str, Any]]:
    orders = {"form": "collection", "options": "{}", "rows": 3, "digest": f"{DIGEST:064x}", **changes}
    identity = {"key": {"_id": {"$numberInt": "1"}}, "name": "_id_"}
    by_day = {"v": {"$numberInt": "2"}, "key": {"day": {"$numberDouble": "1.0"}}, "name": "by day"}
    return {
        "collection": {"shop.orders": orders, "shop.log": {"rows": 4, "digest": "0"}},
        "index": {
            "shop.orders._id_": {"definition": json.dumps(identity)},
            "shop.orders.by day": {"definition": json.dumps(by_day)},
        },
        "view": {"shop.late": {"definition": "{}"}},
    }


def differences(found: dict[str, dict[str, Any]]) -> list[str]:
    expected = expected_fingerprint(CATALOG, TOTALS, lambda name: name)
    return [
        describe_difference(item) for item in compare_fingerprints(expected, comparable(found, expected), lambda _: "")
    ]


def test_a_copy_that_is_as_the_replay_left_it_has_no_difference() -> None:
    assert differences(restored()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 2}, "collection shop.orders"),
        ({"digest": f"{1:064x}"}, "collection shop.orders"),
        ({"validate": "index is broken"}, "collection shop.orders"),
    ],
)
def test_a_document_more_or_less_or_other_is_seen(change: dict[str, Any], named: str) -> None:
    (found,) = differences(restored(**change))
    assert found.startswith(named)


@pytest.mark.parametrize("kind", ["collection", "index", "view"])
def test_what_is_missing_or_new_is_seen(kind: str) -> None:
    found = restored()
    name = max(found[kind])
    lost = {**found, kind: {other: facts for other, facts in found[kind].items() if other != name}}
    assert [name in line for line in differences(lost)] == [True]
    new = "shop.new.by day" if kind == "index" else "shop.new"
    more = {**found, kind: {**found[kind], new: found[kind][name]}}
    assert ["shop.new" in line for line in differences(more)] == [True]


def test_two_indexes_that_would_have_one_name_are_both_restored_and_compared() -> None:
    def collection(name: str, *indexes: dict[str, Any]) -> CollectionSummary:
        return CollectionSummary("shop", name, "collection", 0, f"{0:064x}", {"indexes": list(indexes)})

    long, short = ({"key": {name: {"$numberInt": "1"}}, "name": f"{name}_1"} for name in ("b.c", "c"))
    summary = ArchiveSummary("8", "1", (collection("a", long), collection("a.b", short)))
    recorded = fingerprint_of(summary)
    assert sorted(recorded["index"]) == ["shop.a$b.c_1", "shop.a.b$c_1"]
    options = RestoreOptions(
        parts=("server",), details={"parts": {"server": {"label": "all", "fingerprint": recorded}}}
    )
    catalog = catalog_at_dump(options, place_parts(options))
    assert {name: list(indexes) for name, indexes in catalog.indexes.items()} == {
        "shop.a": ["b.c_1"],
        "shop.a.b": ["c_1"],
    }
    expected = expected_fingerprint(catalog, {}, lambda name: name)
    assert compare_fingerprints(expected, comparable(recorded, expected), lambda _: "") == []
    less = ArchiveSummary("8", "1", (collection("a", long), collection("a.b")))
    assert compare_fingerprints(expected, comparable(fingerprint_of(less), expected), lambda _: "")
    assert [item.indexes for item in plan_contents(options)] == [("b.c_1",), ("c_1",)]


@pytest.mark.parametrize(("kind", "options"), [("timeseries", {}), ("collection", {"timeseries": {"timeField": "at"}})])
def test_the_buckets_of_a_time_series_belong_to_it(kind: str, options: dict[str, Any]) -> None:
    heat = CollectionSummary("shop", "heat", kind, 0, f"{0:064x}", {"options": options})
    facts = {"label": "shop", "fingerprint": fingerprint_of(ArchiveSummary("8", "1", (heat,)))}
    chosen = RestoreOptions(parts=("database-1",), details={"parts": {"database-1": facts}})
    assert catalog_at_dump(chosen, place_parts(chosen)).time_series == {"shop.heat"}
    assert name_in_target(chosen, place_parts(chosen))("shop.system.buckets.heat") == "shop.heat"
    without = replace(chosen, exclude_tables=("shop.heat",))
    placings = place_parts(without)
    assert catalog_at_dump(without, placings).time_series == set()
    assert [name_in_target(without, placings)(f"shop.{name}") for name in ("heat", "system.buckets.heat", "new")] == [
        None,
        None,
        "shop.new",
    ]
    catalog = catalog_at_dump(chosen, place_parts(chosen))
    assert totals_at_dump(chosen, place_parts(chosen)) == {"shop.system.buckets.heat": (0, 0)}
    moved = {"shop.system.buckets.heat": (7, 9)}
    expected = expected_fingerprint(catalog, moved, lambda name: name)
    assert expected["collection"]["shop.heat"] == {"rows": 7, "digest": f"{9:064x}"}
    with pytest.raises(RecoveryGap, match=r"is of time series shop\.heat") as caught:
        as_of_series(Write("insert", "shop.heat", b"", b"", OplogTs(5, 1)), catalog)
    assert caught.value.hints[0] == "leave it out: --exclude-table shop.heat"


def test_the_redo_file_is_read_as_it_was_written_and_by_its_restore_only(tmp_path: Path) -> None:
    assert RedoFile(tmp_path, "one").read() is None
    progress = Progress(7, "5:1", command=True, totals={"shop.orders": (3, 1 << 255), "shop.log": (1, None)})
    images = [Image("shop.orders", b"\x10_id\0\1\0\0\0", b"before", b"after"), Image("shop.log", b"x", b"y", None)]
    RedoFile(tmp_path, "one").write(progress, images)
    found = RedoFile(tmp_path, "one").read()
    assert found == (progress, [item._replace(before=None) for item in images])
    assert (tmp_path / "redo").stat().st_mode & 0o777 == 0o600
    with pytest.raises(IntegrityError, match="of another restore"):
        RedoFile(tmp_path, "two").read()
    (tmp_path / "redo").write_bytes((tmp_path / "redo").read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="is damaged"):
        RedoFile(tmp_path, "one").read()
