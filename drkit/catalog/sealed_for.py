"""For which recipients the artifacts of a policy are sealed: counted as they are written, like the other sums.

Kept by triggers on manifests, so that a reading of the metrics parses none. Recipients are told by their fingerprints,
sorted, with spaces between: a policy has as many rows as it ever had sets of recipients.
"""

from __future__ import annotations

_OF = """json_extract(MANIFEST, '$.policy'), coalesce((select group_concat(fingerprint, ' ') from (
    select json_extract(r.value, '$.fingerprint') as fingerprint
    from json_each(MANIFEST, '$.encryption.recipients') r order by 1)), '')"""
_ADD = "insert into sealed_for select OF, 1 FROM where true on conflict do update set many = many + 1".replace(
    "OF", _OF
)
_TAKE = "update sealed_for set many = many - 1 where (policy, recipients) = (select OF);".replace("OF", _OF)

MIGRATION = (
    """create table sealed_for (
        policy text not null,
        recipients text not null,  -- fingerprints
        many integer not null,  -- artifacts
        primary key (policy, recipients)
    ) without rowid""",
    _ADD.replace("MANIFEST", "m.manifest").replace("FROM", "from manifests m"),
    "create trigger manifest_written after insert on manifests begin "
    + _ADD.replace("MANIFEST", "new.manifest").replace("FROM", "")
    + "; end",
    "create trigger manifest_gone after delete on manifests begin "
    + _TAKE.replace("MANIFEST", "old.manifest")
    + " end",
)
