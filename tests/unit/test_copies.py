"""What a copy says of its artifact is what the artifact and its readings say, however it came to be there."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlite_utils import Database

from drkit.catalog.migrations import MIGRATIONS, migrate
from drkit.catalog.sqlite import SqliteCatalog, open_catalog
from tests.fixtures.bucket import entry_of, make_manifest

NOW = datetime(2024, 10, 22, 12, tzinfo=UTC)
_WRONG = """
    select s.artifact_id from artifact_stores s left join artifacts a using (artifact_id)
    left join verified v on v.subject = s.artifact_id and v.store = s.store
    where s.policy is not a.policy or s.stored_bytes is not a.stored_bytes
        or s.read_at is not coalesce(v.at, a.restorable_to_at)"""


def _read_at(catalog: SqliteCatalog) -> list[str]:
    assert catalog._read(_WRONG) == []
    return [row[0] for row in catalog._read("select read_at from artifact_stores order by read_at")]


def _verify(catalog: SqliteCatalog, subject: str, at: datetime) -> None:
    copies = [{"subject": subject, "store": "primary", "verified_at": at.isoformat(), "size_bytes": 7, "sound": True}]
    record = {"kind": "verification", "policy": "orders", "run_id": "r", "verdict": "passed", "copies": copies}
    catalog.index_evidence({**record, "ended_at": at.isoformat()}, f"{at:%j%H}".zfill(64), ["primary"])


def test_a_copy_is_as_its_artifact_and_its_readings(tmp_path: Path) -> None:
    with contextlib.closing(open_catalog(tmp_path / "catalog.db", create=True)) as catalog:
        manifest = make_manifest(at=NOW - timedelta(days=1))
        name = manifest.artifact_id
        _verify(catalog, name, NOW)  # known before the artifact is, as in a rebuild
        catalog.index_artifact(entry_of(manifest, ["primary", "offsite"]))
        assert NOW.isoformat(timespec="microseconds") in _read_at(catalog)
        _verify(catalog, name, NOW + timedelta(days=1))
        assert (NOW + timedelta(days=1)).isoformat(timespec="microseconds") in _read_at(catalog)
        _verify(catalog, name, NOW - timedelta(days=1))
        assert (NOW + timedelta(days=1)).isoformat(timespec="microseconds") in _read_at(catalog)
        catalog.verified.forget(name, "primary")
        assert len(set(_read_at(catalog))) == 1
        _verify(catalog, name, NOW + timedelta(days=2))
        with catalog._transaction() as connection:
            connection.execute("delete from evidence")  # and with the record the reading
        assert len(set(_read_at(catalog))) == 1
        catalog.replace_index([entry_of(manifest)], [], ())
        assert len(_read_at(catalog)) == 1
        catalog.forget_artifact(name)
        assert _read_at(catalog) == []


def test_an_older_catalog_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with contextlib.closing(open_catalog(path, create=True)) as catalog:
        manifest = make_manifest(at=NOW - timedelta(days=1))
        _verify(catalog, manifest.artifact_id, NOW)
        catalog.index_artifact(entry_of(manifest, ["primary", "offsite"]))
        whole = [tuple(row) for row in catalog._read("select * from artifact_stores order by store")]
        source = catalog._connection
        older = Database(memory=True)
        MIGRATIONS.apply(older, stop_before="009_copies")
        for table in ("artifacts", "evidence", "verified"):
            known = older[table].columns_dict
            for row in source.execute(f"select * from {table}"):
                older[table].insert({name: row[name] for name in known})  # type: ignore[union-attr]
        for row in source.execute("select artifact_id, store from artifact_stores"):
            older["artifact_stores"].insert(dict(row))  # type: ignore[union-attr]
    assert migrate(older) >= 9
    assert list(older.query(_WRONG)) == []
    assert [tuple(row.values()) for row in older.query("select * from artifact_stores order by store")] == whole
