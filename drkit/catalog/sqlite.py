"""The catalog in one SQLite file, for one host; several processes and threads may use it at once."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drkit.canonical import canonical_json
from drkit.catalog import ArtifactRow, EvidenceEntry, files, rows
from drkit.catalog.parts import SqliteParts
from drkit.errors import Busy, CatalogError, ConfigError, IntegrityError
from drkit.units import format_moment, format_utc, parse_utc

if TYPE_CHECKING:
    from drkit.model import ArtifactEntry, Lease, Run, Scratch


def catalog_path(url: str, folder: Path) -> Path:
    """Return the file of ``sqlite:///PATH``, PATH being relative to the site's folder; raise ConfigError otherwise."""
    scheme, separator, rest = url.partition(":///")
    if scheme != "sqlite" or not separator or not rest:
        raise ConfigError(
            f'catalog: "{url}" is not a catalog this drkit can use', hints=["catalog: sqlite:///var/catalog.db"]
        )
    return folder / rest


def open_catalog(path: Path, *, create: bool = False) -> SqliteCatalog:
    """Open the catalog at ``path``; with ``create``, make an empty one where there is none.

    Raise CatalogError when it is missing, damaged, locked, unreadable or from a newer drkit; the file is left as it is.
    """
    if create and not path.exists():
        files.create(path)
    return SqliteCatalog(path, files.connect(path))


_CLOCKS_APART = timedelta(hours=1)
"""Hosts that share a catalog and whose clocks differ by less do not take each other's leases."""


class SqliteCatalog(SqliteParts):
    """A catalog over one connection, which threads take in turn."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._turn = threading.RLock()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock from the start, so that what is read inside is still true when it is written."""
        with self._turn, files.translated(self.path):
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            finally:
                # SQLite has already rolled back by itself after a full disk.
                if self._connection.in_transaction:
                    self._connection.execute("rollback")

    def _read(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        with self._turn, files.translated(self.path):
            return self._connection.execute(query, values).fetchall()

    def start_run(self, run: Run) -> None:
        """Record a run before it does anything."""
        self._put_run(run)

    def beat(self, run_id: str, now: datetime) -> None:
        """Record that a run is alive."""
        with self._transaction() as connection:
            connection.execute("update runs set heartbeat_at = ? where run_id = ?", (format_utc(now), run_id))

    def note_outcome(self, run_id: str, outcome: Mapping[str, Any]) -> None:
        """Record what is known so far of a run that goes on; no error when its start is not here."""
        with self._transaction() as connection:
            connection.execute("update runs set outcome = ? where run_id = ?", (rows.json_text(outcome), run_id))

    def finish_run(self, run: Run) -> None:
        """Record how a run ended; also one whose start is not here, because the catalog was rebuilt meanwhile."""
        self._put_run(run)

    def _put_run(self, run: Run) -> None:
        outcome = None if run.outcome is None else rows.json_text(run.outcome)
        ended_at = None if run.ended_at is None else format_utc(run.ended_at)
        with self._transaction() as connection:
            connection.execute(
                # Not "or replace", which deletes a row and makes another: sums are kept of how a run changes.
                "insert into runs (run_id, kind, policy, state, started_at, host, pid, heartbeat_at, ended_at, error,"
                " outcome) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (run_id) do update set"
                " state = excluded.state, heartbeat_at = excluded.heartbeat_at, ended_at = excluded.ended_at,"
                " error = excluded.error, outcome = excluded.outcome",
                (
                    *(run.run_id, run.kind, run.policy, run.state, format_utc(run.started_at), run.host, run.pid),
                    *(format_utc(run.heartbeat_at), ended_at, run.error, outcome),
                ),
            )

    def runs(
        self, *, policy: str | None = None, kind: str | None = None, state: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Return runs, newest first."""
        found = self._read(
            "select * from runs where (:policy is null or policy = :policy) and (:kind is null or kind = :kind)"
            " and (:state is null or state = :state) order by started_at desc, run_id desc limit :limit",
            {"policy": policy, "kind": kind, "state": state, "limit": limit},
        )
        return [rows.run_of(row) for row in found]

    def add_event(self, name: str, at: datetime, facts: Mapping[str, Any]) -> None:
        """Record one state change."""
        with self._transaction() as connection:
            connection.execute(
                "insert into events (at, name, facts) values (?, ?, ?)", (format_utc(at), name, rows.json_text(facts))
            )

    def events(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """Return state changes, newest first, each with ``at``, ``name`` and its facts."""
        found = self._read("select at, name, facts from events order by event_id desc limit ?", (limit,))
        return [{**json.loads(row["facts"]), "at": row["at"], "name": row["name"]} for row in found]

    def acquire_lease(self, name: str, holder: str, ttl: timedelta, now: datetime) -> Lease:
        """Take a lease that is free, expired or already ours; raise Busy with its holder otherwise.

        One that ends later than any could, by a clock that was ahead, is nobody's.
        """
        from drkit.model import Lease

        with self._transaction() as connection:
            row = connection.execute("select holder, fence, expires_at from leases where name = ?", (name,)).fetchone()
            seen, fence = (row["holder"], row["fence"]) if row else ("", 0)
            if seen not in ("", holder) and now < parse_utc(row["expires_at"]) <= now + ttl + _CLOCKS_APART:
                raise _busy(name, row)
            lease = Lease(name, holder, fence if seen == holder else fence + 1, now + ttl)
            connection.execute(
                "insert or replace into leases (name, holder, fence, expires_at) values (?, ?, ?, ?)",
                (name, holder, lease.fence, format_utc(lease.expires_at)),
            )
        return lease

    def renew_lease(self, lease: Lease, ttl: timedelta, now: datetime) -> Lease:
        """Extend a lease, even if it expired; raise Busy when somebody else took it meanwhile."""
        from drkit.model import Lease

        with self._transaction() as connection:
            changed = connection.execute(
                "update leases set expires_at = ? where name = ? and holder = ? and fence = ?",
                (format_utc(now + ttl), lease.name, lease.holder, lease.fence),
            ).rowcount
            if not changed:
                row = connection.execute(
                    "select holder, expires_at from leases where name = ?", (lease.name,)
                ).fetchone()
                raise _busy(lease.name, row)
        return Lease(lease.name, lease.holder, lease.fence, now + ttl)

    def lease(self, name: str) -> Lease | None:
        """Return who holds a lease, expired or not; None when nobody does."""
        from drkit.model import Lease

        found = self._read("select holder, fence, expires_at from leases where name = ? and holder <> ''", (name,))
        return Lease(name, found[0]["holder"], found[0]["fence"], parse_utc(found[0]["expires_at"])) if found else None

    def lease_of_run(self, run_id: str) -> Lease | None:
        """Return the lease that a run holds, expired or not; None when it holds none."""
        found = self._read("select name from leases where substr(holder, instr(holder, '#') + 1) = ?", (run_id,))
        return self.lease(found[0]["name"]) if found else None

    def release_lease(self, lease: Lease) -> None:
        """Give a lease back; no error when it is no longer ours. The fence number is kept."""
        with self._transaction() as connection:
            connection.execute(
                "update leases set holder = '' where name = ? and holder = ? and fence = ?",
                (lease.name, lease.holder, lease.fence),
            )

    def index_artifact(self, entry: ArtifactEntry) -> None:
        """Record an artifact, or add what is new about one that is known (its stores, its details).

        Raise IntegrityError when another manifest is known under the same artifact id.
        """
        with self._transaction() as connection:
            known = connection.execute(
                "select manifest_sha256 from artifacts where artifact_id = ?", (entry.manifest.artifact_id,)
            ).fetchone()
            if known and known["manifest_sha256"] != entry.manifest_sha256:
                raise IntegrityError(
                    f"artifact {entry.manifest.artifact_id} has two different manifests",
                    details=[f"known {known['manifest_sha256']}", f"seen  {entry.manifest_sha256}"],
                    hints=[f"drkit check {entry.manifest.policy}"],
                )
            rows.put_artifact(connection, entry)

    def forget_artifact(self, artifact_id: str) -> None:
        """Remove an artifact from the index; no error when it is not there."""
        with self._transaction() as connection:
            connection.execute("delete from artifacts where artifact_id = ?", (artifact_id,))

    def artifacts(self, policy: str | None = None) -> list[ArtifactEntry]:
        """Return artifacts, newest first, without their details."""
        found = self._read(
            f"{rows.ARTIFACTS} where :policy is null or a.policy = :policy"
            " order by a.restorable_to_at desc, a.artifact_id desc",
            {"policy": policy},
        )
        return [rows.artifact_of(row) for row in found]

    def artifact_rows(self, policy: str | None = None) -> list[ArtifactRow]:
        """Return what a list shows of artifacts, newest first; quick for ten thousand of them."""
        return [rows.list_row_of(row) for row in self._read(rows.LIST, {"policy": policy})]

    def artifact(self, prefix: str) -> ArtifactEntry:
        """Return the artifact whose id starts with ``prefix``, with details; raise CatalogError for none or many."""
        wanted = prefix.rstrip("….")
        found = self._beginning_with(wanted.upper()) or self._beginning_with(wanted)
        if not found:
            raise CatalogError(
                f'no artifact starts with "{prefix}"',
                hints=["drkit list", "drkit catalog rebuild   (to look in the stores)"],
            )
        if len(found) > 1:
            raise CatalogError(
                f'more than one artifact starts with "{prefix}"',
                details=[f"{row['artifact_id']}  {row['policy']}" for row in found],
                hints=[f"drkit show {found[0]['artifact_id']}"],
            )
        return rows.artifact_of(found[0], with_details=True)

    def _beginning_with(self, prefix: str) -> list[sqlite3.Row]:
        # A range, unlike a pattern, is found by the index.
        bounds = {"low": prefix, "high": prefix + "\U0010ffff"}
        query = f"{rows.ARTIFACTS} where artifact_id >= :low and artifact_id < :high order by artifact_id limit 6"
        return self._read(query, bounds) if prefix else []

    def index_evidence(self, record: Mapping[str, Any], sha256: str, stores: Sequence[str]) -> None:
        """Record a drill or verification record that is stored."""
        with self._transaction() as connection:
            rows.put_evidence(connection, EvidenceEntry(record, sha256, tuple(stores)))

    def evidence(self, *, policy: str | None = None, artifact_id: str | None = None) -> list[dict[str, Any]]:
        """Return evidence records, newest first."""
        found = self._read(
            "select record from evidence where (:policy is null or policy = :policy)"
            " and (:artifact_id is null or artifact_id = :artifact_id) order by ended_at desc, run_id desc",
            {"policy": policy, "artifact_id": artifact_id},
        )
        return [json.loads(row["record"]) for row in found]

    def evidence_entries(self, *, policy: str | None = None) -> list[EvidenceEntry]:
        """Return evidence records with their digests and stores, newest first."""
        found = self._read(
            "select e.sha256, e.record,"
            " (select group_concat(store, ' ') from evidence_stores s where s.sha256 = e.sha256) as stores"
            " from evidence e where :policy is null or policy = :policy order by ended_at desc, run_id desc",
            {"policy": policy},
        )
        return [EvidenceEntry(json.loads(row["record"]), row["sha256"], rows.stores_of(row)) for row in found]

    def replace_index(
        self, artifacts: Iterable[ArtifactEntry], evidence: Iterable[EvidenceEntry], forget: Collection[str]
    ) -> None:
        """Make artifacts and evidence what the stores say, in one step; all or nothing."""
        with self._transaction() as connection:
            gone = [(name,) for name in forget]
            connection.executemany("delete from artifacts where artifact_id = ?", gone)
            connection.executemany("delete from evidence where sha256 = ?", gone)
            for entry in artifacts:
                artifact_id = entry.manifest.artifact_id
                connection.execute(
                    "delete from artifacts where artifact_id = ? and manifest_sha256 != ?",
                    (artifact_id, entry.manifest_sha256),
                )
                connection.execute("delete from artifact_stores where artifact_id = ?", (artifact_id,))
                rows.put_artifact(connection, entry)
            for record in evidence:
                connection.execute("delete from evidence_stores where sha256 = ?", (record.sha256,))
                rows.put_evidence(connection, record)

    def add_scratch(self, scratch: Scratch) -> None:
        """Record a throw-away thing before it is made."""
        with self._transaction() as connection:
            connection.execute(
                "insert into scratch (scratch_id, kind, locator, host, owner_pid, owner_started, expires_at)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(scratch.scratch_id, scratch.kind, scratch.locator, scratch.host),
                    *(scratch.owner_pid, scratch.owner_started, format_utc(scratch.expires_at)),
                ),
            )

    def remove_scratch(self, scratch_id: str) -> None:
        """Forget a throw-away thing that is gone."""
        with self._transaction() as connection:
            connection.execute("delete from scratch where scratch_id = ?", (scratch_id,))

    def scratches(self) -> list[Scratch]:
        """Return throw-away things that are not yet gone."""
        from drkit.model import Scratch

        found = self._read("select * from scratch order by scratch_id")
        return [Scratch(**{**row, "expires_at": parse_utc(row["expires_at"])}) for row in map(dict, found)]

    def export(self) -> bytes:
        """Return what the stores say, canonically: artifacts and evidence, the same on every host.

        Runs, events, leases, scratch and decrypted details belong to one host and are left out.
        """
        with self._turn:
            artifacts = self._read(f"{rows.ARTIFACTS} order by a.artifact_id")
            evidence = sorted(self.evidence_entries(), key=lambda entry: entry.sha256)
        document = {
            "format": "drkit-catalog",
            "version": 1,
            "artifacts": [
                {
                    "manifest": json.loads(row["manifest"]),
                    "manifest_sha256": row["manifest_sha256"],
                    "stores": list(rows.stores_of(row)),
                }
                for row in artifacts
            ],
            "evidence": [
                {"record": dict(entry.record), "sha256": entry.sha256, "stores": list(entry.stores)}
                for entry in evidence
            ],
        }
        return canonical_json(document)

    def close(self) -> None:
        """Close the database."""
        with self._turn, files.translated(self.path):
            self._connection.close()


def _busy(name: str, row: sqlite3.Row | None) -> Busy:
    if row is None or not row["holder"]:
        return Busy(f"the lease {name} was given up meanwhile", hints=["drkit run list"])
    until = format_moment(parse_utc(row["expires_at"]))
    return Busy(f"{name} is busy: {row['holder']} holds it until {until}", hints=["drkit run list"])
