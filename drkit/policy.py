"""Policies: what to protect and how. The model of one file; what must hold between fields is in `policy_rules`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from drkit.policy_fields import (
    Cron,
    Duration,
    Interval,
    Name,
    Rate,
    Recipient,
    Size,
    SlotName,
    SourceUrl,
    StoreName,
    Zone,
    scalar,
)
from drkit.policy_notify import PolicyNotify
from drkit.policy_retention import Retention
from drkit.policy_schedule import SCHEDULED, CatchUp, DstRule, Jitter
from drkit.policy_verify import VerifyRule
from drkit.validation import Flag, Section, Text


@dataclass(frozen=True)
class Method:
    """What a policy can say of one method of an engine.

    A continuous one takes no schedule; ``needs`` is the method without which it restores nothing; ``options`` are the
    keys of a rule that mean something to it, beside method, schedule and timezone; ``ways`` the words of ``via``.
    """

    continuous: bool = False
    needs: str | None = None
    options: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()


METHODS: Mapping[str, Mapping[str, Method]] = {
    "postgres": {
        "dump": Method(options=("lock_timeout", "idle_timeout", *SCHEDULED)),
        "base": Method(
            options=("via", "parallel", "max_rate", "full_every", "idle_timeout", *SCHEDULED), ways=("stream", "local")
        ),
        "wal": Method(
            continuous=True,
            needs="base",
            options=("receive", "max_unshipped", "synchronous", "slot", "heartbeat", "idle_timeout"),
        ),
    },
    "mongodb": {
        "dump": Method(options=("via", "parallel", "idle_timeout", *SCHEDULED), ways=("tools", "native")),
        "oplog": Method(continuous=True, needs="dump", options=("slice", "slice_size", "idle_timeout")),
    },
}
"""Every engine and method that a policy may name; which of them this drkit can run is for `engines.registry` to say."""

URL_SCHEMES: Mapping[str, tuple[str, ...]] = {
    "postgres": ("postgresql", "postgres", "libpq"),
    "mongodb": ("mongodb", "mongodb+srv"),
}

LEVELS = ("intact", "loads", "replays", "same-data", "works")

EngineWord = Literal["postgres", "mongodb"]
MethodWord = Literal["dump", "base", "wal", "oplog"]
LevelWord = Literal["intact", "loads", "replays", "same-data", "works"]


class Target(Section):
    """The database server to protect."""

    engine: EngineWord = Field(description="The database technology.", examples=["postgres"])
    url: SourceUrl = Field(
        description="Where the server is: a reference to a URL (env:NAME, file:PATH, aws-secret:NAME#KEY), or a URL "
        "without a password.",
        examples=["env:ORDERS_URL"],
    )
    databases: tuple[Text, ...] = Field(
        default=(), description="The databases to protect; all of the server's when left out.", examples=["[orders]"]
    )
    exclude_tables: tuple[Text, ...] = Field(
        default=(),
        description="Tables that are left out altogether, as schema.table with * and ? as wildcards; schema public "
        "where none is named.",
        examples=["[audit.access_log]"],
    )


class Objectives(Section):
    """What the business asks for; drills and checks are held against it."""

    rpo: Duration | None = Field(default=None, description="How much may be lost, as time.", examples=["15m"])
    rto: Duration | None = Field(default=None, description="How long a restore may take.", examples=["2h"])


class BackupRule(Section):
    """One way in which the target is backed up."""

    method: MethodWord = Field(description="postgres: dump, base or wal; mongodb: dump or oplog.", examples=["dump"])
    schedule: Cron | None = Field(
        default=None,
        description="When, as five cron fields; only by hand when left out. wal and oplog run all the time.",
        examples=['"0 2 * * *"'],
    )
    timezone: Zone = Field(default="UTC", description="The time zone of the schedule.", examples=["Europe/Berlin"])
    dst: DstRule = "wall"
    jitter: Jitter = None
    catch_up: CatchUp = None
    via: Literal["stream", "local", "tools", "native"] | None = Field(
        default=None,
        description="base: stream (over a replication connection, the default) or local (in parallel on the database's "
        "own host); dump of mongodb: tools (mongodump, the default where it is found) or native (drkit itself).",
    )
    full_every: Duration | None = Field(
        default=None,
        description="base only: how old the newest full base may get; until then only what changed since the newest "
        "base is taken (PostgreSQL 17 and newer, with summarize_wal). Every base is a full one when left out.",
        examples=["7d"],
    )
    parallel: Annotated[int, Field(strict=True, ge=1, le=64)] | None = Field(
        default=None,
        description="base: how many files are read at once, 1 when left out; dump of mongodb: how many collections, 4 "
        "when left out.",
        examples=["4"],
    )
    receive: Literal["stream", "archive"] = Field(
        default="stream",
        description="wal only: drkit serve receives the log over a replication connection, or the server hands over "
        "finished segments by archive_command.",
    )
    max_unshipped: Duration = Field(
        default=timedelta(seconds=30),
        description="wal only: how old received log may get before the unfinished segment is shipped as well.",
        examples=["30s"],
    )
    synchronous: Flag = Field(
        default=False,
        description="wal only: write each commit to disk here before the server is told, so that it can wait for that "
        "(synchronous_standby_names).",
    )
    slot: SlotName | None = Field(
        default=None,
        description="wal only: the replication slot, made when it is missing; drkit_ and the policy's name when left "
        "out.",
        examples=["drkit_orders"],
    )
    heartbeat: Interval | None = Field(
        default=None,
        description="wal only: drkit serve writes a row into the table drkit.heartbeat of the target's database this "
        "often, by which drills prove to the row which moment came back; no such table when left out.",
        examples=["10s"],
    )
    max_rate: Rate | None = Field(
        default=None,
        description="base only: how many bytes a second are read at most, so that the server has time for others.",
        examples=["50MB"],
    )
    slice: Interval = Field(
        default=timedelta(seconds=60),
        description="oplog only: after how long what was read of the oplog is stored.",
        examples=["60s"],
    )
    slice_size: Size = Field(
        default=16_000_000,
        description="oplog only: how much is read at most before it is stored; it is held in memory meanwhile.",
        examples=["16MB"],
    )
    lock_timeout: Duration = Field(
        default=timedelta(seconds=60),
        description="dump only: how long to wait for a lock that somebody else holds before the backup fails and "
        "names the blocker.",
        examples=["60s"],
    )
    idle_timeout: Duration = Field(
        default=timedelta(minutes=5),
        description="How long the database may send nothing before the backup fails.",
        examples=["5m"],
    )


class Encryption(Section):
    """Who can open the backups. The backup host needs none of their identities."""

    recipients: tuple[Recipient, ...] = Field(
        min_length=1,
        description="age recipients, all classic (age1…) or all post-quantum (age1pq1…); two or more, of which one "
        "identity is kept far away.",
        examples=["[age1…, age1…]"],
    )
    accept_single_key: Flag = Field(
        default=False, description="Accept one recipient: when its identity is lost, so are all backups."
    )


class Check(Section):
    """One question to the restored data whose answer is known."""

    name: Text = Field(description="What is true when the answer is right.", examples=["orders are fresh"])
    sql: Text | None = Field(
        default=None,
        description="postgres: a query of one row and one column.",
        examples=['"select count(*) > 0 from orders"'],
    )
    collection: Text | None = Field(
        default=None, description="mongodb: the collection to aggregate.", examples=["orders"]
    )
    pipeline: tuple[dict[str, Any], ...] | None = Field(
        default=None,
        description="mongodb: an aggregation pipeline that ends in one document with one value beside _id; types that "
        "YAML does not have as in MongoDB's Extended JSON.",
        examples=["[{$count: n}]"],
    )
    expect: Annotated[Any, BeforeValidator(scalar)] = Field(
        default=True, description="The right answer: true, false, a number or text.", examples=["true"]
    )
    database: Text | None = Field(
        default=None, description="The database to ask; the only one when left out.", examples=["orders"]
    )

    @property
    def query(self) -> str:
        """Return what the engine is asked: SQL, or the collection and its pipeline as JSON."""
        if self.sql is not None:
            return self.sql
        return json.dumps({"collection": self.collection, "pipeline": self.pipeline})


class DrillRule(Section):
    """One rehearsal of a restore."""

    name: Name = Field(description="What to call it.", examples=["quarterly"])
    schedule: Cron | None = Field(
        default=None, description="When, as five cron fields; only by hand when left out.", examples=['"0 6 1 */3 *"']
    )
    timezone: Zone = Field(default="UTC", description="The time zone of the schedule.", examples=["Europe/Berlin"])
    dst: DstRule = "wall"
    jitter: Jitter = None
    catch_up: CatchUp = None
    pick: Literal["latest", "random", "oldest"] = Field(
        default="latest", description="Which moment to restore.", examples=["random"]
    )
    window: Duration | None = Field(
        default=None, description="How far back to pick from; all there is when left out.", examples=["30d"]
    )
    level: LevelWord = Field(
        default="same-data",
        description="How far to prove: intact (digests), loads, replays, same-data (counts and digests of every "
        "table), works (the checks).",
        examples=["works"],
    )
    checks: tuple[Check, ...] = Field(default=(), description="Questions to the restored data, asked at level works.")
    timeout: Duration = Field(
        default=timedelta(hours=12),
        description="How long it may take; then it is ended, its server taken away, and its verdict is timed_out.",
        examples=["4h"],
    )


class Policy(Section):
    """What to protect and how."""

    policy: Name = Field(
        description="The policy's name: letters, digits, - and _. It is part of every key in the stores, so it stays.",
        examples=["orders"],
    )
    owner: Text | None = Field(
        default=None, description="Who answers for the data.", examples=["payments@acme.example"]
    )
    tier: Annotated[int, Field(strict=True, ge=1, le=9)] | None = Field(
        default=None, description="How important it is; 1 is the most.", examples=["1"]
    )
    target: Target = Field(
        description="The database server to protect.", examples=['{engine: postgres, url: "env:URL"}']
    )
    objectives: Objectives = Field(default=Objectives(), description="RPO and RTO.", examples=["{rpo: 24h, rto: 2h}"])
    backups: tuple[BackupRule, ...] = Field(
        min_length=1, description="How it is backed up.", examples=['[{method: dump, schedule: "0 2 * * *"}]']
    )
    stores: tuple[StoreName, ...] = Field(
        min_length=1,
        description="Names of the site's stores; the first is written to, the others get copies.",
        examples=["[primary]"],
    )
    encryption: Encryption = Field(description="Who can open the backups.", examples=["{recipients: [age1…, age1…]}"])
    retention: Retention | None = Field(default=None, description="What to keep; everything when left out.")
    drills: tuple[DrillRule, ...] = Field(default=(), description="Rehearsals of the restore.")
    notify: PolicyNotify | None = Field(
        default=None, description="Whom to tell what, where it is not as the site has it."
    )
    verify: VerifyRule | None = Field(
        default=None, description="How soon every stored byte is read again; the site's section when left out."
    )
    fingerprint: Literal["digests", "counts"] = Field(
        default="digests",
        description="What is recorded of every table at backup time: row count and digest, or the row count alone, "
        "which is quicker and proves less.",
    )
    compression_level: Annotated[int, Field(strict=True, ge=1, le=19)] = Field(
        default=1, description="zstd's level; above 3 the compressor is slower than most databases."
    )
    read_back: Literal["head", "full"] = Field(
        default="head",
        description="How the stored objects are checked before the commit: by the store's own checksum, or by reading "
        "all of it again.",
    )

    _path: Path = PrivateAttr(default_factory=Path)

    def model_post_init(self, context: Any) -> None:
        """Keep the file that the policy was read from."""
        self._path = (context or {}).get("path", Path())

    @property
    def path(self) -> Path:
        """Return the file that the policy was read from."""
        return self._path

    def rule(self, method: str) -> BackupRule | None:
        """Return the first rule of that method, or None when the policy has none."""
        return next((rule for rule in self.backups if rule.method == method), None)

    @property
    def continuous_rule(self) -> BackupRule | None:
        """Return the rule whose log `drkit serve` ships, or None when the policy has none."""
        methods = METHODS[self.target.engine]
        return next((rule for rule in self.backups if methods[rule.method].continuous), None)


def portable(policy: Policy) -> dict[str, Any]:
    """Return a policy for another process, which may not be able to read its file; secrets stay references."""
    values = policy.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {"path": str(policy.path), "values": values}


def unpack(document: Mapping[str, Any], stores: Collection[str]) -> Policy:
    """Return the policy that `portable` wrote; raise ValueError when the site has not the stores for it."""
    context = {"path": Path(document["path"]), "stores": tuple(stores)}
    return Policy.model_validate(document["values"], context=context)


def effective(policy: Policy) -> dict[str, Any]:
    """Return every value in effect as the file would have it: durations in its words, secrets as references.

    What is not set, and what a rule's method has no use for, is left out: the result passes the check again.
    """
    values = policy.model_dump(mode="json", by_alias=True, exclude_none=True)
    unused = {option for methods in METHODS.values() for method in methods.values() for option in method.options}
    for rule in values["backups"]:
        used = METHODS[policy.target.engine][rule["method"]]
        for key in unused - set(used.options):
            rule.pop(key, None)
    return values
