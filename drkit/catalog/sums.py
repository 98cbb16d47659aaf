"""Sums that the catalog keeps as it is written, so that a reading of the metrics goes through no history.

Triggers keep them: whoever writes a run, an event or a moment of a schedule need not know. Both outlive the rows that
they count, because a counter that went down would look to Prometheus as if all that is left had just happened.
"""

from __future__ import annotations

DURATION_BUCKETS_S = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)

# A Julian day tells a millisecond at best: a run of exactly a minute took no longer than one.
_ADD_RUN = """
    insert into run_sums (policy, kind, succeeded_at, newest_at, newest_state, newest_s, sum_s)
    select policy, kind, case when state = 'succeeded' then ended_at end, started_at, state, took_s,
        case when state = 'succeeded' then took_s else 0.0 end
    from (select new.policy as policy, new.kind as kind, new.started_at as started_at, new.ended_at as ended_at,
        new.state as state, max((julianday(new.ended_at) - julianday(new.started_at)) * 86400.0, 0.0) as took_s)
    where true on conflict (policy, kind) do update set
        succeeded_at = nullif(max(coalesce(succeeded_at, ''), coalesce(excluded.succeeded_at, '')), ''),
        newest_state = case when excluded.newest_at >= newest_at then excluded.newest_state else newest_state end,
        newest_s = case when excluded.newest_at >= newest_at then excluded.newest_s else newest_s end,
        newest_at = max(newest_at, excluded.newest_at),
        sum_s = sum_s + excluded.sum_s;
    insert into backup_durations (policy, within_s, many)
    select new.policy, coalesce((select min(value) from json_each('BOUNDS')
        where value >= (julianday(new.ended_at) - julianday(new.started_at)) * 86400.0 - 0.001), 0), 1
    where new.kind = 'backup' and new.state = 'succeeded'
    on conflict (policy, within_s) do update set many = many + 1;""".replace("BOUNDS", str(list(DURATION_BUCKETS_S)))
_COUNT_EVENT = "insert into totals values ('event', new.name, 1) on conflict do update set many = many + 1;"
_UNCOUNT_STATE = "update totals set many = many - 1 where subject = 'occurrence' and name = old.state;"
_COUNT_STATE = "insert into totals values ('occurrence', new.state, 1) on conflict do update set many = many + 1;"

MIGRATION = (
    """create table run_sums (
        policy text not null,
        kind text not null,
        succeeded_at text,  -- when the last one that succeeded ended
        newest_at text not null,  -- when the newest that ended was started
        newest_state text not null,
        newest_s real not null,
        sum_s real not null,  -- of those that succeeded
        primary key (policy, kind)
    ) without rowid""",
    """create table backup_durations (
        policy text not null,
        within_s integer not null,  -- the least bound that it is not above, 0 when it is above all
        many integer not null,
        primary key (policy, within_s)
    ) without rowid""",
    f"create trigger run_written after insert on runs when new.ended_at is not null begin {_ADD_RUN} end",
    # One that was taken for lost may end well after all.
    f"""create trigger run_ended after update of state, ended_at on runs
        when new.ended_at is not null and (old.ended_at is null or old.state <> new.state) begin {_ADD_RUN} end""",
    # Those that are there already are counted in the same way.
    "create table counted (policy, kind, started_at, ended_at, state)",
    f"create trigger run_counted after insert on counted begin {_ADD_RUN} end",
    "insert into counted select policy, kind, started_at, ended_at, state from runs where ended_at is not null",
    "drop table counted",
    """create table totals (
        subject text not null,  -- event, or occurrence
        name text not null,  -- of the event; the state of the occurrence
        many integer not null,
        primary key (subject, name)
    ) without rowid""",
    """insert into totals select 'occurrence', state, sum(n) from (
        select state, count(*) as n from occurrences group by state
        union all select state, many from former_occurrences) group by state""",
    "drop table former_occurrences",
    "insert into totals select 'event', name, count(*) from events group by name",
    f"create trigger event_written after insert on events begin {_COUNT_EVENT} end",
    f"create trigger occurrence_written after insert on occurrences begin {_COUNT_STATE} end",
    f"""create trigger occurrence_changed after update of state on occurrences when old.state <> new.state
        begin {_UNCOUNT_STATE} {_COUNT_STATE} end""",
    # What a drill record says is looked up by policy, and not found by reading every record.
    """alter table evidence add column drill text as (
        case when kind = 'drill' then coalesce(json_extract(record, '$.drill'), '') end) virtual""",
    """alter table evidence add column proves_to text as (
        case when kind = 'drill' and verdict in ('passed', 'passed_with_findings') and level <> 'intact'
            then json_extract(record, '$.restored_to_at') end) virtual""",
    "create index evidence_drills on evidence (policy, drill, ended_at) where drill is not null",
    "create index evidence_proofs on evidence (policy, proves_to) where proves_to is not null",
    # What waits and what runs is asked for twice a second, and the ledger has millions of rows.
    "drop index occurrences_unfinished",
    "create index occurrences_unfinished on occurrences (schedule, due_at) where state in ('due', 'dispatched')",
    "create index occurrences_due on occurrences (due_at, schedule, not_before_at) where state = 'due'",
    "create index occurrences_dispatched on occurrences (due_at) where state = 'dispatched'",
    "create index problems_open on problems (opened_at, identity) where resolved_at is null",
    "create index runs_going_on on runs (heartbeat_at) where state = 'running'",
    """create table workers (
        holder text primary key,
        seen_at text not null
    ) without rowid""",
)

SALVAGE = {
    # The newer table counts what is gone as well; the triggers have counted what is there.
    "former_occurrences": """insert into totals (subject, name, many)
        select 'occurrence', state, many from old.former_occurrences where true
        on conflict do update set many = many + excluded.many""",
    "totals": "insert or replace into totals (subject, name, many) select subject, name, many from old.totals",
    "run_sums": """insert or replace into run_sums
        (policy, kind, succeeded_at, newest_at, newest_state, newest_s, sum_s)
        select policy, kind, succeeded_at, newest_at, newest_state, newest_s, sum_s from old.run_sums""",
    "backup_durations": """insert or replace into backup_durations (policy, within_s, many)
        select policy, within_s, many from old.backup_durations""",
}
