"""The tables of the SQLite catalog, one function per version; sqlite-utils keeps the record of which were applied.

Moments are UTC text as `units.format_utc` writes it, so that comparing the text compares the moments. Documents are
kept as the canonical JSON they came in; the columns beside them are what lists show and what is searched.

Only creating or upgrading a catalog imports this module: sqlite-utils takes 80 ms to import, and `drkit list` has 500.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from drkit.catalog import sealed_for, sums

MIGRATIONS = Migrations("drkit")

_TABLES = (
    """create table runs (
        run_id text primary key,
        kind text not null,
        policy text not null,
        state text not null,
        started_at text not null,
        host text not null,
        pid integer not null,
        heartbeat_at text not null,
        ended_at text,
        error text,
        outcome text  -- JSON
    )""",
    "create index runs_by_start on runs (started_at desc)",
    "create index runs_by_policy on runs (policy, kind, started_at desc)",
    """create table artifacts (
        artifact_id text primary key,
        policy text not null,
        engine text not null,
        method text not null,
        seq integer not null,
        restorable_to_at text not null,
        stored_bytes integer not null,
        plain_bytes integer not null,
        manifest_sha256 text not null
    )""",
    # Apart from what lists show: ten thousand rows are then a few hundred pages to read, not ten thousand.
    """create table manifests (
        artifact_id text primary key references artifacts (artifact_id) on delete cascade,
        manifest text not null,  -- canonical JSON
        details text  -- JSON; only what this host wrote or could decrypt
    )""",
    "create index artifacts_by_age on artifacts (restorable_to_at desc, artifact_id desc)",
    "create index artifacts_by_policy on artifacts (policy, restorable_to_at desc, artifact_id desc)",
    """create table artifact_stores (
        artifact_id text not null references artifacts (artifact_id) on delete cascade,
        store text not null,
        primary key (artifact_id, store)
    ) without rowid""",
    """create table evidence (
        sha256 text primary key,
        run_id text not null,
        policy text not null,
        artifact_id text,
        kind text not null,
        verdict text not null,
        level text not null,
        ended_at text not null,
        record text not null  -- canonical JSON
    )""",
    "create index evidence_by_policy on evidence (policy, ended_at desc)",
    "create index evidence_by_artifact on evidence (artifact_id, ended_at desc)",
    """create table evidence_stores (
        sha256 text not null references evidence (sha256) on delete cascade,
        store text not null,
        primary key (sha256, store)
    ) without rowid""",
    """create table events (
        event_id integer primary key,
        at text not null,
        name text not null,
        facts text not null  -- JSON
    )""",
    """create table leases (
        name text primary key,
        holder text not null,  -- empty once released: the row stays, because the fence must keep growing
        fence integer not null,
        expires_at text not null
    )""",
    """create table scratch (
        scratch_id text primary key,
        kind text not null,
        locator text not null,
        host text not null,
        owner_pid integer not null,
        owner_started text not null,
        expires_at text not null
    )""",
)


@MIGRATIONS(name="001_first")
def _first(db: Database) -> None:
    for statement in _TABLES:
        db.execute(statement)


@MIGRATIONS(name="002_degraded")
def _degraded(db: Database) -> None:
    """Let lists mark what was taken of a damaged source, also of artifacts that were indexed before."""
    db.execute("alter table artifacts add column degraded integer not null default 0")
    db.execute(
        "update artifacts set degraded = 1"
        " where artifact_id in (select artifact_id from manifests where json_extract(manifest, '$.degraded'))"
    )


@MIGRATIONS(name="003_parent")
def _parent(db: Database) -> None:
    """Let lists mark what holds only changes, and say since which artifact."""
    db.execute("alter table artifacts add column parent text not null default ''")
    db.execute(
        "update artifacts set parent = coalesce((select json_extract(m.manifest, '$.depends_on[#-1]') from manifests m"
        " where m.artifact_id = artifacts.artifact_id), '')"
    )


_KEEPING = (
    """create table holds (
        hold_id text primary key,
        policy text not null,
        artifact_id text not null,
        kind text not null,
        reason text not null,
        placed_at text not null,
        released_at text
    )""",
    "create index holds_by_artifact on holds (artifact_id)",
    """create table marks (
        artifact_id text primary key,
        policy text not null,
        delete_after text
    ) without rowid""",
)


@MIGRATIONS(name="004_holds")
def _holds(db: Database) -> None:
    """Remember which artifacts are held, and which are marked to go."""
    for statement in _KEEPING:
        db.execute(statement)


_LEDGER = (
    "create table schedules (schedule text primary key, cursor_at text not null) without rowid",
    """create table occurrences (
        occurrence_id integer primary key,
        schedule text not null,
        kind text not null,
        policy text not null,
        what text not null,
        due_at text not null,
        state text not null,
        reason text not null,
        decided_at text not null,
        not_before_at text not null,
        attempts integer not null default 0,
        seen integer not null default 1,
        holder text not null default '',
        run_id text not null default '',
        unique (schedule, due_at)  -- whoever writes a moment first has planned it
    )""",
    "create index occurrences_unfinished on occurrences (state, due_at) where state in ('due', 'dispatched')",
    "create index occurrences_by_policy on occurrences (policy, due_at desc)",
    "create index occurrences_by_age on occurrences (due_at desc, schedule)",
    """create table attempts (
        occurrence_id integer not null references occurrences (occurrence_id) on delete cascade,
        number integer not null,
        run_id text not null,
        started_at text not null,
        ended_at text,
        failure text not null,
        error text not null,
        primary key (occurrence_id, number)
    ) without rowid""",
    "create index attempts_by_run on attempts (run_id)",
    """create table claims (
        occurrence_id integer not null references occurrences (occurrence_id) on delete cascade,
        thing text not null,  -- what a limit counts: the site, a store, a database host, a policy's backups
        primary key (thing, occurrence_id)
    ) without rowid""",
    "create table event_readers (reader text primary key, event_id integer not null) without rowid",
)


@MIGRATIONS(name="005_occurrences")
def _occurrences(db: Database) -> None:
    """Remember what was due when, and what became of it."""
    for statement in _LEDGER:
        db.execute(statement)


_TELLING = (
    """create table problems (
        identity text primary key,
        level text not null,
        policy text not null,
        title text not null,
        opened_at text not null,
        resolved_at text
    )""",
    """create table outbox (
        message_id text primary key,
        channel text not null,  -- a name; the address is a secret
        kind text not null,
        identity text not null,
        level text not null,
        policy text not null,
        title text not null,
        body text not null,
        facts text not null,  -- JSON
        made_at text not null,
        due_at text not null,
        digest integer not null,
        attempts integer not null,
        claimed_until text,
        error text,
        ended_at text,
        outcome text not null default ''  -- sent, dropped or given up
    )""",
    "create index outbox_waiting on outbox (due_at) where ended_at is null",
    "create index outbox_by_identity on outbox (identity, made_at)",
    "create table channel_failures (channel text primary key, failures integer not null)",
    "create index artifacts_newest on artifacts (policy, method, restorable_to_at)",
    # What happened before there was anybody to tell is not told now.
    "insert into event_readers (reader, event_id) select 'notify', coalesce(max(event_id), 0) from events",
)


@MIGRATIONS(name="006_telling")
def _telling(db: Database) -> None:
    """Keep what people are to be told until they have been."""
    for statement in _TELLING:
        db.execute(statement)


_VERIFIED = (
    """create table verified (
        subject text not null,  -- an artifact's id, or the key of a log manifest
        store text not null,
        policy text not null,
        at text not null,
        size_bytes integer not null,
        sound integer not null,
        sha256 text not null references evidence (sha256) on delete cascade,
        primary key (subject, store)
    ) without rowid""",
    "create index verified_by_policy on verified (policy, sound, at)",
    "create index verified_by_record on verified (sha256)",
)


@MIGRATIONS(name="007_verified")
def _verified(db: Database) -> None:
    """Remember when each copy was last read; what says so are the records of verifications."""
    for statement in _VERIFIED:
        db.execute(statement)


@MIGRATIONS(name="008_channel_waits")
def _channel_waits(db: Database) -> None:
    """Let a channel that fails wait, and not each of its messages."""
    db.execute("alter table channel_failures add column not_before text")


_COPIES = (
    # What a copy says of its artifact, so that thousands of policies are summed up in one pass over one index.
    "alter table artifact_stores add column policy text not null default ''",
    "alter table artifact_stores add column stored_bytes integer not null default 0",
    "alter table artifact_stores add column read_at text not null default ''",  # before it was ever read: its moment
    """update artifact_stores as s set (policy, stored_bytes, read_at) = (
        select a.policy, a.stored_bytes, coalesce(v.at, a.restorable_to_at) from artifacts a
        left join verified v on v.subject = a.artifact_id and v.store = s.store where a.artifact_id = s.artifact_id)""",
    "create index artifact_copies on artifact_stores (policy, store, read_at, stored_bytes)",
    """create trigger copy_made after insert on artifact_stores begin
        update artifact_stores set (policy, stored_bytes, read_at) = (
            select a.policy, a.stored_bytes, coalesce(v.at, a.restorable_to_at) from artifacts a
            left join verified v on v.subject = a.artifact_id and v.store = new.store
            where a.artifact_id = new.artifact_id)
        where artifact_id = new.artifact_id and store = new.store;
    end""",
    """create trigger copy_read after insert on verified begin
        update artifact_stores set read_at = new.at where artifact_id = new.subject and store = new.store;
    end""",
    """create trigger copy_read_again after update on verified begin
        update artifact_stores set read_at = new.at where artifact_id = new.subject and store = new.store;
    end""",
    """create trigger copy_reading_forgotten after delete on verified begin
        update artifact_stores set read_at = (
            select restorable_to_at from artifacts where artifact_id = old.subject)
        where artifact_id = old.subject and store = old.store;
    end""",
    "drop index artifacts_newest",
    "create index artifacts_newest on artifacts (policy, method, restorable_to_at, stored_bytes)",
)


@MIGRATIONS(name="009_copies")
def _copies(db: Database) -> None:
    """Sum up the copies of a policy without looking at each artifact."""
    for statement in _COPIES:
        db.execute(statement)


@MIGRATIONS(name="010_history")
def _history(db: Database) -> None:
    """Count the moments of schedules that are not in the ledger any more."""
    db.execute("create table former_occurrences (state text primary key, many integer not null) without rowid")


@MIGRATIONS(name="011_sums")
def _sums(db: Database) -> None:
    """Sum up runs, events and moments of schedules as they are written."""
    for statement in sums.MIGRATION:
        db.execute(statement)


@MIGRATIONS(name="012_signatures")
def _signatures(db: Database) -> None:
    """Remember the signatures of a long log, which takes longer to verify than to read."""
    db.execute(
        """create table signatures (
            policy text not null, digest text not null, signer text not null, primary key (policy, digest)
        ) without rowid"""
    )


@MIGRATIONS(name="013_sealed_for")
def _sealed_for(db: Database) -> None:
    """Count artifacts by the recipients that they are sealed for."""
    for statement in sealed_for.MIGRATION:
        db.execute(statement)


def migrate(db: Database) -> int:
    """Apply what is missing, inside the caller's transaction if there is one; return the schema version reached."""
    MIGRATIONS.apply(db)
    return len(MIGRATIONS.applied(db))
